package jwt

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-broker/mayfly/secret"
)

// SecretKeys names the target's secret: a JWK Set (RFC 7517 §5) of private
// keys. The first key signs; all are published. A rotation ([Kind.TurnKeys]) first
// appends the new key, so that verifiers learn it, then moves it to the front, and
// removes the old one when the last token that it signed has ended.
const SecretKeys = "jwks"

// maxKeys bounds the published set; two overlap in an ordinary rotation.
const maxKeys = 8

// maxJWKBytes bounds a requester's key; RSA 4096 takes about 750.
const maxJWKBytes = 4 << 10

func newKey(alg jose.SignatureAlgorithm) (jose.JSONWebKey, error) {
	var private any
	var err error
	if alg == jose.EdDSA {
		_, private, err = ed25519.GenerateKey(rand.Reader)
	} else {
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		return jose.JSONWebKey{}, fmt.Errorf("make a signing key: %w", err)
	}
	key := jose.JSONWebKey{Key: private, Algorithm: string(alg), Use: "sig"}
	key.KeyID, err = thumbprint(key)
	return key, err
}

// thumbprint is the base64url of a key's SHA-256 thumbprint (RFC 7638).
func thumbprint(key jose.JSONWebKey) (string, error) {
	sum, err := key.Thumbprint(crypto.SHA256)
	if err != nil {
		return "", fmt.Errorf("thumbprint: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(sum), nil
}

// readKeys reads the sealed key set, and which phase of a rotation it is in. Its
// errors never quote what they read.
func readKeys(text secret.Text) (keys []jose.JSONWebKey, phase string, err error) {
	var set sealedSet
	if err := json.Unmarshal([]byte(text.Reveal()), &set); err != nil {
		return nil, "", errors.New("the secret jwks is not a JWK Set")
	}
	if set.Turn != "" && set.Turn != turnPublished && set.Turn != turnUsed || set.Turn != "" && len(set.Keys) < 2 {
		return nil, "", errors.New("the secret jwks is in a phase of its rotation that does not fit its keys")
	}
	if len(set.Keys) == 0 || len(set.Keys) > maxKeys {
		return nil, "", fmt.Errorf("the secret jwks holds %d keys; 1 to %d are allowed", len(set.Keys), maxKeys)
	}
	for i, key := range set.Keys {
		kid, err := thumbprint(key)
		if err != nil || kid != key.KeyID || !key.Valid() || key.Algorithm != algOf(key.Key) {
			return nil, "", fmt.Errorf("key %d of the secret jwks is not a private ES256 or EdDSA key whose kid is its thumbprint", i)
		}
	}
	return set.Keys, set.Turn, nil
}

// algOf is the one algorithm that a private key is used with; empty for what is
// not a private key of ours.
func algOf(key any) string {
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		if k.Curve == elliptic.P256() {
			return string(jose.ES256)
		}
	case ed25519.PrivateKey:
		return string(jose.EdDSA)
	}
	return ""
}

// publicSet is what verifiers may see of the keys.
func publicSet(keys []jose.JSONWebKey) ([]byte, error) {
	set := jose.JSONWebKeySet{Keys: make([]jose.JSONWebKey, len(keys))}
	for i, key := range keys {
		set.Keys[i] = key.Public()
	}
	out, err := json.Marshal(set)
	if err != nil {
		return nil, fmt.Errorf("encode the key set: %w", err)
	}
	return out, nil
}

// bindingOf checks the requester's key and returns its thumbprint for
// `cnf.jkt` (RFC 9449 §6.1). Only a public, asymmetric key of full strength
// binds anything.
func bindingOf(raw json.RawMessage) (string, error) {
	if len(raw) > maxJWKBytes {
		return "", fmt.Errorf("public key: %d bytes; at most %d are allowed", len(raw), maxJWKBytes)
	}
	var key jose.JSONWebKey
	if err := json.Unmarshal(raw, &key); err != nil {
		return "", errors.New("public key: not a JWK")
	}
	switch k := key.Key.(type) {
	case *ecdsa.PublicKey, ed25519.PublicKey:
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < 2048 || bits > 4096 {
			return "", fmt.Errorf("public key: RSA with %d bits; allowed are 2048 to 4096", bits)
		}
	default:
		return "", errors.New("public key: not a public EC, Ed25519 or RSA key; a private or symmetric key must never be sent")
	}
	if !key.Valid() {
		return "", errors.New("public key: its parameters are not valid")
	}
	return thumbprint(key)
}
