// Package keys holds a client's own key: the one thing a workload, an agent or
// a person keeps. It makes and stores the key, and signs with it what Mayfly
// asks of a client: DPoP proofs (RFC 9449), private_key_jwt assertions
// (RFC 7523), and a self-signed certificate for sessions bound to mutual TLS
// (RFC 8705).
//
// The package must know nothing of the broker, of sessions or of the network:
// it turns inputs into signed text, and a path into a key.
package keys

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"

	"github.com/go-jose/go-jose/v4"
)

// Algorithm names a kind of key. The zero value means [P256].
type Algorithm string

// The kinds of key a client may hold.
const (
	// P256 is ECDSA on P-256 with SHA-256 (JWS ES256): the default, because
	// hardware keys, TPMs and every TLS stack have it.
	P256 Algorithm = "p256"
	// Ed25519 is EdDSA on Curve25519 (JWS EdDSA).
	Ed25519 Algorithm = "ed25519"
)

// The errors of this package. Each is wrapped with what was found.
var (
	// ErrAlgorithm: the key is of a kind that Mayfly's clients do not use.
	ErrAlgorithm = errors.New("keys: unsupported kind of key")
	// ErrMode: the file or its directory can be read or written by others.
	ErrMode = errors.New("keys: permissions are too open")
	// ErrNotPlain: the path is a symbolic link or not a plain file or directory.
	ErrNotPlain = errors.New("keys: not a plain file or directory")
	// ErrOwner: the file or its directory belongs to another user.
	ErrOwner = errors.New("keys: belongs to another user")
	// ErrFormat: the file does not hold one PKCS #8 key in PEM.
	ErrFormat = errors.New("keys: not a key file")
	// ErrInput: an argument cannot go into a proof or an assertion.
	ErrInput = errors.New("keys: invalid argument")
)

// Key is a client's private key. It is immutable and may be shared between
// goroutines. Printing one by any verb shows its thumbprint only.
type Key struct {
	private    crypto.Signer
	public     jose.JSONWebKey
	thumbprint string
	proofs     jose.Signer // typ dpop+jwt
	assertions jose.Signer // typ client-authentication+jwt
}

// Generate makes a new key; the empty algorithm means [P256].
// It returns [ErrAlgorithm] for an unknown one.
func Generate(alg Algorithm) (*Key, error) {
	switch alg {
	case "", P256:
		private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("keys: generate: %w", err)
		}
		return FromSigner(private)
	case Ed25519:
		_, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("keys: generate: %w", err)
		}
		return FromSigner(private)
	default:
		return nil, fmt.Errorf("%w: %q", ErrAlgorithm, alg)
	}
}

// FromSigner makes a Key of an *ecdsa.PrivateKey on P-256 or an
// ed25519.PrivateKey; it returns [ErrAlgorithm] for anything else.
func FromSigner(private crypto.Signer) (*Key, error) {
	var alg jose.SignatureAlgorithm
	switch k := private.(type) {
	case *ecdsa.PrivateKey:
		if k == nil || k.Curve != elliptic.P256() {
			return nil, fmt.Errorf("%w: ECDSA on another curve than P-256", ErrAlgorithm)
		}
		alg = jose.ES256
	case ed25519.PrivateKey:
		if len(k) != ed25519.PrivateKeySize {
			return nil, fmt.Errorf("%w: Ed25519 key of %d bytes", ErrAlgorithm, len(k))
		}
		alg = jose.EdDSA
	default:
		return nil, fmt.Errorf("%w: %T", ErrAlgorithm, private)
	}
	key := &Key{private: private, public: jose.JSONWebKey{Key: private.Public()}}
	sum, err := key.public.Thumbprint(crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("keys: thumbprint: %w", err)
	}
	key.thumbprint = base64.RawURLEncoding.EncodeToString(sum)
	if key.proofs, err = newSigner(alg, private, typeProof); err != nil {
		return nil, err
	}
	if key.assertions, err = newSigner(alg, private, typeAssertion); err != nil {
		return nil, err
	}
	return key, nil
}

// newSigner returns a signer that puts the public key into each header: the
// verifier knows the key by its thumbprint and needs no other way to find it.
func newSigner(alg jose.SignatureAlgorithm, private crypto.Signer, typ jose.ContentType) (jose.Signer, error) {
	opts := (&jose.SignerOptions{EmbedJWK: true}).WithType(typ)
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: private}, opts)
	if err != nil {
		return nil, fmt.Errorf("keys: signer: %w", err)
	}
	return s, nil
}

// Algorithm says which kind of key k is.
func (k *Key) Algorithm() Algorithm {
	if _, ok := k.private.(ed25519.PrivateKey); ok {
		return Ed25519
	}
	return P256
}

// Thumbprint returns the key's name: the RFC 7638 SHA-256 thumbprint of its
// public half, base64url without padding, 43 characters.
func (k *Key) Thumbprint() string { return k.thumbprint }

// Public returns the public key: *ecdsa.PublicKey or ed25519.PublicKey.
func (k *Key) Public() crypto.PublicKey { return k.private.Public() }

// PublicJWK returns the public key as a JWK (RFC 7517), to be registered.
func (k *Key) PublicJWK() ([]byte, error) {
	out, err := json.Marshal(k.public)
	if err != nil {
		return nil, fmt.Errorf("keys: public JWK: %w", err)
	}
	return out, nil
}

// String implements [fmt.Stringer]: the thumbprint, never the key.
func (k *Key) String() string { return "key " + k.thumbprint }

// Format implements [fmt.Formatter], so that no verb reaches the private half.
func (k *Key) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(k.String())) }

// LogValue implements [slog.LogValuer].
func (k *Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// MarshalJSON implements [json.Marshaler]: the thumbprint, never the key.
func (k *Key) MarshalJSON() ([]byte, error) { return json.Marshal(k.String()) }
