package ssh

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"

	"golang.org/x/crypto/ssh"

	"github.com/mayfly-broker/mayfly/secret"
)

// SecretKey names the target's secret: private keys in PEM, in OpenSSH's format
// or PKCS#8. The first signs; all are published, and certificates of all can be
// revoked. A rotation first appends the new key, so that servers learn it, then
// moves it to the front, and removes the old one when its last certificate has
// ended.
const SecretKey = "ca_key"

// maxKeys bounds the CA's keys; two overlap in an ordinary rotation.
const maxKeys = 4

// MakeSecrets makes the target's CA key. To have the key of a CA that servers
// trust already, the target is written with the secret given.
func (Kind) MakeSecrets(raw json.RawMessage) (map[string]secret.Text, error) {
	sp, err := parseSpec(raw)
	if err != nil {
		return nil, err
	}
	var key crypto.PrivateKey
	if sp.CAAlgorithm == algP256 {
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	} else {
		_, key, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		return nil, fmt.Errorf("make the CA key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, errors.New("the CA key could not be encoded")
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	return map[string]secret.Text{SecretKey: secret.New(string(text))}, nil
}

// encodeKey writes a private key as ssh-keygen does, without a passphrase.
func encodeKey(key crypto.PrivateKey) (secret.Text, error) {
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		return secret.Text{}, errors.New("a private key could not be encoded")
	}
	return secret.New(string(pem.EncodeToMemory(block))), nil
}

// authority is an opened CA.
type authority struct {
	signer ssh.Signer      // the first key
	keys   []ssh.PublicKey // all of them, in order
}

// keyBlocks takes the target's secret apart. Its errors never quote it.
func keyBlocks(text secret.Text) ([]*pem.Block, error) {
	var out []*pem.Block
	rest := []byte(text.Reveal())
	for len(bytes.TrimSpace(rest)) > 0 {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil || len(out) == maxKeys {
			return nil, fmt.Errorf("the secret ca_key is not 1 to %d private keys in PEM", maxKeys)
		}
		out = append(out, block)
	}
	if len(out) == 0 {
		return nil, errors.New("the secret ca_key is missing")
	}
	return out, nil
}

// readCA reads the target's secret. Its errors never quote it. While a new key is
// only published, the one before may be of another algorithm.
func readCA(text secret.Text, algorithm string) (authority, error) {
	var ca authority
	blocks, err := keyBlocks(text)
	if err != nil {
		return ca, err
	}
	fits, first := false, ""
	for i, block := range blocks {
		raw, err := ssh.ParseRawPrivateKey(pem.EncodeToMemory(block))
		if err != nil {
			return ca, fmt.Errorf("key %d of the secret ca_key is not readable; give OpenSSH's format or PKCS#8, without a passphrase", i+1)
		}
		signer, alg, err := signerOf(raw)
		if err != nil {
			return ca, fmt.Errorf("key %d of the secret ca_key: %w", i+1, err)
		}
		if i == 0 {
			ca.signer, first = signer, alg
		}
		fits = fits || alg == algorithm && (i == 0 || block.Headers[turnHeader] == turnNext)
		ca.keys = append(ca.keys, signer.PublicKey())
	}
	if !fits {
		return ca, fmt.Errorf("the spec says ca_algorithm %s, but the signing key is %s; rotate the target's key to change it", algorithm, first)
	}
	return ca, nil
}

func signerOf(raw any) (ssh.Signer, string, error) {
	alg := ""
	switch k := raw.(type) {
	case *ed25519.PrivateKey: // what OpenSSH's format yields
		raw, alg = *k, algEd25519
	case ed25519.PrivateKey:
		alg = algEd25519
	case *ecdsa.PrivateKey:
		if k.Curve == elliptic.P256() {
			alg = algP256
		}
	}
	if alg == "" {
		return nil, "", fmt.Errorf("allowed are %s and %s", algEd25519, algP256)
	}
	signer, err := ssh.NewSignerFromKey(raw)
	if err != nil {
		return nil, "", errors.New("it cannot sign")
	}
	return signer, alg, nil
}

// public is the CA as servers read it: one line for each key.
func (ca authority) public() []byte {
	var out []byte
	for _, k := range ca.keys {
		out = append(out, ssh.MarshalAuthorizedKey(k)...)
	}
	return out
}
