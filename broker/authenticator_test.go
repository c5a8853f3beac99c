package broker_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/cosign"
)

// token is an authenticator with one passkey. Its fields say what it claims.
type token struct {
	id     []byte
	signer crypto.Signer
	rp     string
	origin string
	flags  byte
	cross  bool
	handle string
}

func newToken(t testing.TB, alg string) *token {
	t.Helper()
	k := &token{id: []byte("credential of sixteen bytes or more"), rp: "mayfly.example", origin: "https://mayfly.example", flags: 0x05, handle: "human:ann"}
	var err error
	switch alg {
	case "ES256":
		k.signer, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ES384":
		k.signer, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	default:
		_, k.signer, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// cose is the public key (RFC 9053).
func (k *token) cose() []byte {
	switch pub := k.signer.Public().(type) {
	case *ecdsa.PublicKey:
		raw, _ := pub.Bytes()
		half := (len(raw) - 1) / 2
		head := []byte{0xa5, 1, 2, 3, 0x26, 0x20, 1}
		if half == 48 {
			head = []byte{0xa5, 1, 2, 3, 0x38, 34, 0x20, 2}
		}
		out := append(append(head, 0x21, 0x58, byte(half)), raw[1:1+half]...)
		return append(append(out, 0x22, 0x58, byte(half)), raw[1+half:]...)
	case ed25519.PublicKey:
		return append([]byte{0xa4, 1, 1, 3, 0x27, 0x20, 6, 0x21, 0x58, 32}, pub...)
	}
	return nil
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func (k *token) client(kind, challenge string) []byte {
	b, _ := json.Marshal(map[string]any{"type": kind, "challenge": challenge, "origin": k.origin, "crossOrigin": k.cross})
	return b
}

func (k *token) authData(attested bool) []byte {
	rp := sha256.Sum256([]byte(k.rp))
	flags := k.flags
	if attested {
		flags |= 0x40
	}
	out := append(rp[:], flags, 0, 0, 0, 1)
	if attested {
		out = append(out, make([]byte, 16)...)
		out = binary.BigEndian.AppendUint16(out, uint16(len(k.id)))
		out = append(append(out, k.id...), k.cose()...)
	}
	return out
}

// make answers options of a new passkey.
func (k *token) make(options []byte) json.RawMessage {
	var o struct{ Challenge string }
	_ = json.Unmarshal(options, &o)
	data := k.authData(true)
	object := append([]byte{0xa3, 0x63}, "fmt"...)
	object = append(append(object, 0x64), "none"...)
	object = append(append(object, 0x67), "attStmt"...)
	object = append(append(append(object, 0xa0), 0x68), "authData"...)
	object = append(append(object, 0x59, byte(len(data)>>8), byte(len(data))), data...)
	return json.RawMessage(fmt.Sprintf(`{"id":%q,"rawId":%q,"type":"public-key","clientExtensionResults":{},"response":{"attestationObject":%q,"clientDataJSON":%q}}`,
		b64(k.id), b64(k.id), b64(object), b64(k.client("webauthn.create", o.Challenge))))
}

// sign answers options of a sign-in.
func (k *token) sign(options []byte) json.RawMessage {
	var o struct{ Challenge string }
	_ = json.Unmarshal(options, &o)
	data, client := k.authData(false), k.client("webauthn.get", o.Challenge)
	sum := sha256.Sum256(client)
	signed := append(slices.Clone(data), sum[:]...)
	var sig []byte
	if _, ok := k.signer.(ed25519.PrivateKey); ok {
		sig, _ = k.signer.Sign(rand.Reader, signed, crypto.Hash(0))
	} else {
		hashed := sha256.Sum256(signed)
		sig, _ = k.signer.Sign(rand.Reader, hashed[:], crypto.SHA256)
	}
	return json.RawMessage(fmt.Sprintf(`{"id":%q,"rawId":%q,"type":"public-key","clientExtensionResults":{},"response":{"authenticatorData":%q,"clientDataJSON":%q,"signature":%q,"userHandle":%q}}`,
		b64(k.id), b64(k.id), b64(data), b64(client), b64(sig), b64([]byte(k.handle))))
}

// hall is the ceremonies, and the one person who has a passkey.
type hall struct {
	*broker.Passkeys
	now  time.Time
	keys []broker.RegisteredKey
}

func newHall() *hall {
	h := &hall{now: time.UnixMilli(1_800_000_000_000)}
	h.Passkeys = broker.NewPasskeys([]string{"https://mayfly.example"}, func() time.Time { return h.now })
	return h
}

func (h *hall) keysOf(principal string) ([]broker.RegisteredKey, error) {
	if principal == "human:ann" {
		return h.keys, nil
	}
	return nil, nil
}

// enrol registers a token's passkey.
func (h *hall) enrol(t *testing.T, k *token) {
	t.Helper()
	options, err := h.NewOptions("human:ann", nil)
	if err != nil {
		t.Fatal(err)
	}
	key, thumb, err := h.Made("human:ann", k.make(options))
	if err != nil {
		t.Fatalf("%v", err)
	}
	if key.Kind != cosign.KindPasskey || string(key.CredentialID) != string(k.id) || key.RPID != "mayfly.example" || !slices.Equal(key.Origins, []string{"https://mayfly.example"}) || thumb == "" {
		t.Errorf("key %+v", key)
	}
	h.keys = append(h.keys, broker.RegisteredKey{Thumbprint: thumb, Key: key})
}

func TestPasskeysSignIn(t *testing.T) {
	for _, alg := range []string{"ES256", "EdDSA"} {
		h, k := newHall(), newToken(t, alg)
		h.enrol(t, k)
		for range 2 {
			options, err := h.LoginOptions()
			if err != nil {
				t.Fatal(err)
			}
			answer := k.sign(options)
			who, thumb, err := h.Login(answer, h.keysOf)
			if err != nil || who != "human:ann" || thumb != h.keys[0].Thumbprint {
				t.Errorf("%s: %q, %q, %v", alg, who, thumb, err)
			}
			if _, _, err := h.Login(answer, h.keysOf); err == nil {
				t.Errorf("%s: an answer is good twice", alg)
			}
		}
		// What syncs between devices is as good; the ledger keeps no flag of it.
		k.flags |= 0x18
		options, _ := h.LoginOptions()
		if _, _, err := h.Login(k.sign(options), h.keysOf); err != nil {
			t.Errorf("%s: a backed-up passkey: %v", alg, err)
		}
	}
}

// A sign-in that is wrong in one thing opens nothing.
func TestPasskeysThatAreRefused(t *testing.T) {
	for name, spoil := range map[string]func(h *hall, k *token, options *json.RawMessage){
		"no user present":    func(_ *hall, k *token, _ *json.RawMessage) { k.flags = 0x04 },
		"user not verified":  func(_ *hall, k *token, _ *json.RawMessage) { k.flags = 0x01 },
		"another site":       func(_ *hall, k *token, _ *json.RawMessage) { k.origin = "https://mayfly.example.evil.example" },
		"without TLS":        func(_ *hall, k *token, _ *json.RawMessage) { k.origin = "http://mayfly.example" },
		"in a frame":         func(_ *hall, k *token, _ *json.RawMessage) { k.cross = true },
		"another party":      func(_ *hall, k *token, _ *json.RawMessage) { k.rp = "evil.example" },
		"another person":     func(_ *hall, k *token, _ *json.RawMessage) { k.handle = "human:bo" },
		"no handle":          func(_ *hall, k *token, _ *json.RawMessage) { k.handle = "" },
		"another credential": func(_ *hall, k *token, _ *json.RawMessage) { k.id = []byte("another credential") },
		"another key":        func(_ *hall, k *token, _ *json.RawMessage) { k.signer = newToken(t, "ES256").signer },
		"removed":            func(h *hall, _ *token, _ *json.RawMessage) { h.keys = nil },
		"an SSH key":         func(h *hall, _ *token, _ *json.RawMessage) { h.keys[0].Key.Kind = cosign.KindSSH },
		"of an old name":     func(h *hall, _ *token, _ *json.RawMessage) { h.keys[0].Key.RPID = "old.example" },
		"late":               func(h *hall, _ *token, _ *json.RawMessage) { h.now = h.now.Add(2*time.Minute + time.Millisecond) },
		"own challenge": func(_ *hall, _ *token, o *json.RawMessage) {
			*o = json.RawMessage(`{"challenge":"` + b64(make([]byte, 56)) + `"}`)
		},
		"registration's": func(h *hall, _ *token, o *json.RawMessage) {
			*o, _ = h.NewOptions("human:ann", nil)
		},
		"another process's": func(h *hall, _ *token, o *json.RawMessage) { *o, _ = newHall().LoginOptions() },
	} {
		t.Run(name, func(t *testing.T) {
			h, k := newHall(), newToken(t, "ES256")
			h.enrol(t, k)
			options, err := h.LoginOptions()
			if err != nil {
				t.Fatal(err)
			}
			spoil(h, k, &options)
			if who, _, err := h.Login(k.sign(options), h.keysOf); err == nil {
				t.Errorf("%s signs in", who)
			} else if strings.Contains(err.Error(), "panic") {
				t.Error(err)
			}
		})
	}
}

// A passkey that the ledger's verifier could not check is not taken.
func TestPasskeysThatAreNotTaken(t *testing.T) {
	for name, spoil := range map[string]func(h *hall, k *token, options *json.RawMessage){
		"P-384":             func(_ *hall, k *token, _ *json.RawMessage) { k.signer = newToken(t, "ES384").signer },
		"user not verified": func(_ *hall, k *token, _ *json.RawMessage) { k.flags = 0x01 },
		"another site":      func(_ *hall, k *token, _ *json.RawMessage) { k.origin = "https://evil.example" },
		"in a frame":        func(_ *hall, k *token, _ *json.RawMessage) { k.cross = true },
		"another party":     func(_ *hall, k *token, _ *json.RawMessage) { k.rp = "evil.example" },
		"late":              func(h *hall, _ *token, _ *json.RawMessage) { h.now = h.now.Add(3 * time.Minute) },
		"another person's": func(h *hall, _ *token, o *json.RawMessage) {
			*o, _ = h.NewOptions("human:bo", nil)
		},
		"a sign-in's": func(h *hall, _ *token, o *json.RawMessage) { *o, _ = h.LoginOptions() },
	} {
		t.Run(name, func(t *testing.T) {
			h, k := newHall(), newToken(t, "ES256")
			options, err := h.NewOptions("human:ann", nil)
			if err != nil {
				t.Fatal(err)
			}
			spoil(h, k, &options)
			if key, _, err := h.Made("human:ann", k.make(options)); err == nil {
				t.Errorf("%+v is taken", key)
			}
		})
	}
	h, k := newHall(), newToken(t, "ES256")
	options, _ := h.NewOptions("human:ann", nil)
	answer := k.make(options)
	if _, _, err := h.Made("human:ann", answer); err != nil {
		t.Fatal(err)
	}
	if _, _, err := h.Made("human:ann", answer); err == nil {
		t.Error("an answer is taken twice")
	}
}
