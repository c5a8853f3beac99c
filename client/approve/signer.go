package approve

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"
	"golang.org/x/crypto/ssh"

	"github.com/mayfly-broker/mayfly/client/escape"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// Kinds of keys.
const (
	KindSSH = "ssh" // SSHSIG, by an OpenSSH key from a file, an agent or a security key
	KindJWS = "jws" // compact JWS, by a JWK
)

// Key is a key to approve with: its public half and where it lies.
type Key struct {
	wire.ApproveKey
	Kind string // [KindSSH] or [KindJWS]
	// Thumbprint is the key's name (RFC 7638 with SHA-256), base64url.
	Thumbprint string
	// Fingerprint is an SSH key's name as ssh-keygen -l prints it.
	Fingerprint string
	// Where says where it lies, for people: a path, or the agent.
	Where string

	sshType, application string // as documents have them
}

// Signer signs the hashes of documents.
type Signer interface {
	// Key is the key that signs.
	Key() Key
	// Sign signs a document's hash under its domain. It may wait for somebody to
	// touch a security key. Errors are *[Error].
	Sign(domain string, hash [32]byte) (wire.Signature, error)
}

// sshTypes are the SSH keys whose signatures every replica can check.
var sshTypes = []string{ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256}

// sshKey names a public SSH key; those that cannot approve are refused.
func sshKey(public ssh.PublicKey, where string) (Key, error) {
	if !slices.Contains(sshTypes, public.Type()) {
		return Key{}, refuse(CodeKey, nil, "%s holds a key of type %s, which cannot approve: take ed25519 or ecdsa on P-256, also from a security key (ssh-keygen -t ed25519)",
			escape.Line(where), escape.Line(public.Type()))
	}
	holder, ok := public.(ssh.CryptoPublicKey)
	if !ok {
		return Key{}, refuse(CodeKey, nil, "%s holds a key whose public half cannot be read", escape.Line(where))
	}
	name, err := thumbprint(holder.CryptoPublicKey())
	if err != nil {
		return Key{}, err
	}
	k := Key{Kind: KindSSH, Thumbprint: name, Fingerprint: ssh.FingerprintSHA256(public), Where: where, sshType: public.Type()}
	k.SSH = strings.TrimSpace(string(ssh.MarshalAuthorizedKey(public)))
	if strings.HasPrefix(k.sshType, "sk-") {
		k.application = applicationOf(public)
	}
	return k, nil
}

// applicationOf reads what a security key was made for: the last string of its
// public key (PROTOCOL.u2f).
func applicationOf(public ssh.PublicKey) string {
	if public.Type() == ssh.KeyAlgoSKECDSA256 {
		var k struct {
			Type, Curve string
			Point       []byte
			Application string
		}
		_ = ssh.Unmarshal(public.Marshal(), &k) // it was parsed once already
		return k.Application
	}
	var k struct {
		Type        string
		Key         []byte
		Application string
	}
	_ = ssh.Unmarshal(public.Marshal(), &k) // it was parsed once already
	return k.Application
}

// thumbprint is a key's name by RFC 7638.
func thumbprint(public crypto.PublicKey) (string, error) {
	switch k := public.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return "", refuse(CodeKey, nil, "the key is ECDSA on another curve than P-256 and cannot approve; take P-256 or ed25519")
		}
	default:
		return "", refuse(CodeKey, nil, "the key is a %T and cannot approve; take ed25519 or ECDSA on P-256", public)
	}
	jwk := jose.JSONWebKey{Key: public}
	sum, err := jwk.Thumbprint(crypto.SHA256)
	if err != nil {
		return "", refuse(CodeKey, err, "the key has no thumbprint")
	}
	return base64.RawURLEncoding.EncodeToString(sum), nil
}

// PublicKey reads a public key to approve with: one line in authorized_keys
// form, or a JWK, of which only the public half is taken.
func PublicKey(data []byte, where string) (Key, error) {
	text := strings.TrimSpace(string(data))
	if strings.HasPrefix(text, "{") {
		jwk, err := parseJWK([]byte(text), where)
		if err != nil {
			return Key{}, err
		}
		return jwsKey(jwk.Public(), where)
	}
	public, _, _, _, err := ssh.ParseAuthorizedKey([]byte(text))
	if err != nil {
		return Key{}, refuse(CodeKey, err, "%s holds neither an OpenSSH public key nor a JWK", escape.Line(where))
	}
	return sshKey(public, where)
}

func parseJWK(data []byte, where string) (jose.JSONWebKey, error) {
	var jwk jose.JSONWebKey
	if err := json.Unmarshal(data, &jwk); err != nil || !jwk.Valid() {
		return jwk, refuse(CodeKey, nil, "%s holds no JWK that can be read", escape.Line(where))
	}
	return jwk, nil
}

func jwsKey(public jose.JSONWebKey, where string) (Key, error) {
	name, err := thumbprint(public.Key)
	if err != nil {
		return Key{}, err
	}
	out, err := json.Marshal(jose.JSONWebKey{Key: public.Key}) // the required members alone
	if err != nil {
		return Key{}, refuse(CodeKey, err, "the key cannot be written as a JWK")
	}
	return Key{ApproveKey: wire.ApproveKey{JWK: out}, Kind: KindJWS, Thumbprint: name, Where: where}, nil
}
