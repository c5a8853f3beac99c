package ssh

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/go-jose/go-jose/v4"
	"golang.org/x/crypto/ssh"
)

// maxKeyBytes bounds a requester's key; RSA 4096 takes about 750.
const maxKeyBytes = 4 << 10

const allowedHolderKeys = "allowed are Ed25519, ECDSA P-256, P-384 or P-521, and RSA with 2048 to 4096 bits, as a JWK or as the line of an OpenSSH public key; a private key must never be sent"

// holderKey reads the requester's public key: a JWK, or a JSON string that holds
// the line of an OpenSSH public key. The line alone can name a hardware key
// (sk-…), whose application a JWK has no member for.
func holderKey(raw json.RawMessage) (ssh.PublicKey, error) {
	if len(raw) > maxKeyBytes {
		return nil, fmt.Errorf("public key: %d bytes; at most %d are allowed", len(raw), maxKeyBytes)
	}
	key, err := decodeHolder(raw)
	if err != nil {
		return nil, err
	}
	if crypt, ok := key.(ssh.CryptoPublicKey); ok {
		if r, ok := crypt.CryptoPublicKey().(*rsa.PublicKey); ok {
			if bits := r.N.BitLen(); bits < 2048 || bits > 4096 {
				return nil, fmt.Errorf("public key: RSA with %d bits; %s", bits, allowedHolderKeys)
			}
		}
	}
	switch key.Type() {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoRSA,
		ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256:
		return key, nil
	default: // DSA, certificates, and what OpenSSH has no certificate for
		return nil, errors.New("public key: " + allowedHolderKeys)
	}
}

func decodeHolder(raw json.RawMessage) (ssh.PublicKey, error) {
	if bytes.HasPrefix(bytes.TrimSpace(raw), []byte(`"`)) {
		var line string
		if err := json.Unmarshal(raw, &line); err != nil {
			return nil, errors.New("public key: not a JSON string")
		}
		key, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
		if err != nil || len(options) > 0 || len(bytes.TrimSpace(rest)) > 0 {
			return nil, errors.New("public key: not one line of an OpenSSH public key; " + allowedHolderKeys)
		}
		return key, nil
	}
	var jwk jose.JSONWebKey
	if err := json.Unmarshal(raw, &jwk); err != nil || !jwk.Valid() {
		return nil, errors.New("public key: not a JWK; " + allowedHolderKeys)
	}
	switch k := jwk.Key.(type) {
	case ed25519.PublicKey, *ecdsa.PublicKey, *rsa.PublicKey:
		key, err := ssh.NewPublicKey(k)
		if err != nil {
			return nil, errors.New("public key: " + allowedHolderKeys)
		}
		return key, nil
	default:
		return nil, errors.New("public key: " + allowedHolderKeys)
	}
}
