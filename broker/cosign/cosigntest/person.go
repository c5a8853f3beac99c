// Package cosigntest makes approvers for tests: people with software keys of
// every kind, who sign what they are given as a browser, ssh-keygen or a JWS
// library would.
//
// It knows how signatures are made and must know nothing of how they are checked.
package cosigntest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/big"

	"github.com/mayfly-broker/mayfly/broker/cosign"
)

// What the people's passkeys and security keys were made for.
const (
	RPID        = "broker.example"
	Origin      = "https://broker.example"
	OtherOrigin = "https://console.broker.example:8443"
	Application = "ssh:"
)

// Variants of kinds: a key of another algorithm, or in hardware. A kind's own
// name is its usual variant.
const (
	PasskeyEd25519 = "passkey ed25519"
	SSHECDSA       = "ssh ecdsa"
	SSHEd25519SK   = "ssh ed25519-sk"
	SSHECDSASK     = "ssh ecdsa-sk"
	JWSEd25519     = "jws ed25519"
)

// Variants lists every variant.
func Variants() []string {
	return []string{cosign.KindPasskey, PasskeyEd25519, cosign.KindSSH, SSHECDSA, SSHEd25519SK, SSHECDSASK, cosign.KindJWS, JWSEd25519}
}

// Person is an approver with one key. It may be shared by goroutines.
type Person struct {
	key     cosign.Key
	private crypto.Signer
}

// New makes a person with a new key of a kind ("passkey", "ssh" or "jws": P-256,
// Ed25519, P-256) or of one of the variants. It panics if there is no such kind.
func New(kind string) *Person { return Seeded(kind, rand.Text()) }

// Seeded is [New] with a key that follows from the seed, for transcripts and
// golden files: the same person signs the same thing with the same bytes.
func Seeded(kind, seed string) *Person {
	v := map[string]cosign.Key{
		cosign.KindPasskey: {Kind: cosign.KindPasskey},
		PasskeyEd25519:     {Kind: cosign.KindPasskey},
		cosign.KindSSH:     {Kind: cosign.KindSSH, SSHType: "ssh-ed25519"},
		SSHECDSA:           {Kind: cosign.KindSSH, SSHType: "ecdsa-sha2-nistp256"},
		SSHEd25519SK:       {Kind: cosign.KindSSH, SSHType: "sk-ssh-ed25519@openssh.com", Application: Application},
		SSHECDSASK:         {Kind: cosign.KindSSH, SSHType: "sk-ecdsa-sha2-nistp256@openssh.com", Application: Application},
		cosign.KindJWS:     {Kind: cosign.KindJWS},
		JWSEd25519:         {Kind: cosign.KindJWS},
	}
	k, ok := v[kind]
	if !ok {
		panic("cosigntest: no kind of key is called " + kind)
	}
	id := sha256.Sum256([]byte("mayfly test approver\x00" + kind + "\x00" + seed))
	if k.Kind == cosign.KindPasskey {
		k.CredentialID, k.RPID, k.Origins = id[:16], RPID, []string{Origin, OtherOrigin}
	}
	switch kind {
	case cosign.KindSSH, PasskeyEd25519, SSHEd25519SK, JWSEd25519:
		return With(k, ed25519.NewKeyFromSeed(id[:]))
	}
	private, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), id[:])
	must(err)
	return With(k, private)
}

// With makes a person of a private key, P-256 or Ed25519, and of what k says
// besides its JWK.
func With(k cosign.Key, private crypto.Signer) *Person {
	switch public := private.Public().(type) {
	case ed25519.PublicKey:
		k.JWK = marshal(map[string]string{"kty": "OKP", "crv": "Ed25519", "x": encode(public)})
	case *ecdsa.PublicKey:
		point, err := public.Bytes()
		must(err)
		k.JWK = marshal(map[string]string{"kty": "EC", "crv": "P-256", "x": encode(point[1:33]), "y": encode(point[33:])})
	default:
		panic("cosigntest: no approver has such a key")
	}
	return &Person{key: k, private: private}
}

// Key is the person's public key, as the ledger holds it.
func (p *Person) Key() cosign.Key { return p.key }

// Thumbprint names the key (RFC 7638).
func (p *Person) Thumbprint() string {
	name, err := cosign.Thumbprint(p.key.JWK)
	must(err)
	return name
}

// Sign signs a hash under a domain, as an honest person's tools do.
func (p *Person) Sign(domain string, hash cosign.Hash) cosign.Signature {
	switch p.key.Kind {
	case cosign.KindPasskey:
		return p.Passkey(Touch(p.key.RPID), ClientData(hash, p.key.Origins[0]))
	case cosign.KindSSH:
		return p.SSH(SSHMessage(domain, "", "sha512", hash[:]), 0x01)
	}
	return p.JWS(marshal(map[string]string{"alg": p.alg(), "kid": p.Thumbprint(), "typ": domain + "+jws"}), hash[:])
}

// Touch is the data of an authenticator that somebody touched and that made sure who.
func Touch(rpID string) []byte {
	sum := sha256.Sum256([]byte(rpID))
	return append(sum[:], 0x05, 0, 0, 0, 0)
}

// ClientData is what a browser says of an assertion (WebAuthn §5.8.1).
func ClientData(hash cosign.Hash, origin string) []byte {
	return fmt.Appendf(nil, `{"type":"webauthn.get","challenge":"%s","origin":"%s","crossOrigin":false}`, encode(hash[:]), origin)
}

// Passkey signs authenticator and client data, whatever they say.
func (p *Person) Passkey(authenticator, client []byte) cosign.Signature {
	s := p.signature()
	s.AuthenticatorData, s.ClientDataJSON = authenticator, client
	sum := sha256.Sum256(client)
	s.Assertion = p.sign(append(authenticator[:len(authenticator):len(authenticator)], sum[:]...))
	return s
}

// Signed is what stands in an SSH signature's blob, apart from key and signature.
type Signed struct{ Namespace, Reserved, Algorithm, Message []byte }

// SSHMessage is a message as ssh-keygen -Y sign hashes it.
func SSHMessage(namespace, reserved, algorithm string, message []byte) Signed {
	var h crypto.Hash
	switch algorithm {
	case "sha256":
		h = crypto.SHA256
	default:
		h = crypto.SHA512
	}
	sum := h.New()
	sum.Write(message)
	return Signed{[]byte(namespace), []byte(reserved), []byte(algorithm), sum.Sum(nil)}
}

// SSH makes the blob of PROTOCOL.sshsig. flags are a security key's (PROTOCOL.u2f).
func (p *Person) SSH(m Signed, flags byte) cosign.Signature {
	message := text([]byte("SSHSIG"), m.Namespace, m.Reserved, m.Algorithm, m.Message)
	inner := text(nil, []byte(p.key.SSHType))
	if p.key.Application == "" {
		inner = text(inner, p.sshSign(message))
	} else {
		counter := []byte{flags, 0, 0, 0, 7}
		app, sum := sha256.Sum256([]byte(p.key.Application)), sha256.Sum256(message)
		inner = text(inner, p.sshSign(append(append(app[:], counter...), sum[:]...)))
		inner = append(inner, counter...)
	}
	s := p.signature()
	s.SSHSIG = text([]byte("SSHSIG\x00\x00\x00\x01"), p.SSHPublic(), m.Namespace, m.Reserved, m.Algorithm, inner)
	return s
}

// SSHPublic is the public key in SSH's encoding: in base64, that of an
// authorized_keys file.
func (p *Person) SSHPublic() []byte {
	out := text(nil, []byte(p.key.SSHType))
	switch public := p.private.Public().(type) {
	case ed25519.PublicKey:
		out = text(out, public)
	case *ecdsa.PublicKey:
		point, err := public.Bytes()
		must(err)
		out = text(out, []byte("nistp256"), point)
	}
	if p.key.Application != "" {
		out = text(out, []byte(p.key.Application))
	}
	return out
}

func (p *Person) sshSign(message []byte) []byte {
	sig := p.sign(message)
	if _, ok := p.private.(ed25519.PrivateKey); ok {
		return sig
	}
	var n struct{ R, S *big.Int }
	_, err := asn1.Unmarshal(sig, &n)
	must(err)
	return text(nil, mpint(n.R), mpint(n.S))
}

// JWS signs header and payload, whatever they say.
func (p *Person) JWS(header, payload []byte) cosign.Signature {
	message := encode(header) + "." + encode(payload)
	sig := p.sign([]byte(message))
	if _, ok := p.private.(ed25519.PrivateKey); !ok {
		var n struct{ R, S *big.Int }
		_, err := asn1.Unmarshal(sig, &n)
		must(err)
		sig = append(n.R.FillBytes(make([]byte, 32)), n.S.FillBytes(make([]byte, 32))...)
	}
	s := p.signature()
	s.JWS = message + "." + encode(sig)
	return s
}

func (p *Person) signature() cosign.Signature {
	return cosign.Signature{Verifier: cosign.Verifier1, Kind: p.key.Kind, Key: p.Thumbprint()}
}

func (p *Person) alg() string {
	if _, ok := p.private.(ed25519.PrivateKey); ok {
		return "EdDSA"
	}
	return "ES256"
}

// sign signs without randomness (RFC 8032; RFC 6979, which a nil source asks
// for), so that what a seeded person signs can stand in a golden file.
func (p *Person) sign(message []byte) []byte {
	if private, ok := p.private.(ed25519.PrivateKey); ok {
		return ed25519.Sign(private, message)
	}
	sum := sha256.Sum256(message)
	sig, err := p.private.Sign(nil, sum[:], crypto.SHA256)
	must(err)
	return sig
}

// text appends strings of RFC 4251 §5.
func text(out []byte, parts ...[]byte) []byte {
	for _, s := range parts {
		out = binary.BigEndian.AppendUint32(out, uint32(len(s)))
		out = append(out, s...)
	}
	return out
}

// mpint is a positive number as in RFC 4251 §5, without its length.
func mpint(n *big.Int) []byte {
	b := n.Bytes()
	if len(b) > 0 && b[0]&0x80 != 0 {
		b = append([]byte{0}, b...)
	}
	return b
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func marshal(v any) []byte {
	b, err := json.Marshal(v)
	must(err)
	return b
}

func must(err error) {
	if err != nil {
		panic("cosigntest: " + err.Error())
	}
}
