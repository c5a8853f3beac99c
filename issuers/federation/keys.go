package federation

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

const (
	maxKeys = 8 // two overlap in an ordinary rotation
	rsaBits = 3072
)

// How long a rotation's steps take.
const (
	// KeyPublish is how long a new key is published before it signs: clouds say
	// nowhere for how long they keep a provider's keys.
	KeyPublish = 24 * time.Hour
	// KeySlack is how much longer than what it signed an old key is honoured.
	KeySlack = time.Hour
)

// Phases of a rotation, as the sealed key set says them: a member "turn" beside
// "keys" (RFC 7517 §5 has readers ignore it). A set without it is in none.
const (
	turnPublished = "published" // the last key is new and does not sign
	turnUsed      = "used"      // the keys after the first sign no more
)

// keySet is the secret [SecretKeys]. Its first key signs; all are published.
type keySet struct {
	Keys []jose.JSONWebKey `json:"keys"`
	Turn string            `json:"turn,omitempty"`
}

func (s keySet) seal() (secret.Text, error) {
	text, err := json.Marshal(s)
	if err != nil {
		return secret.Text{}, errors.New("the signing keys cannot be encoded")
	}
	return secret.New(string(text)), nil
}

// MakeSecrets makes a set of one signing key for alg, which is ES256 or RS256.
func MakeSecrets(alg jose.SignatureAlgorithm) (map[string]secret.Text, error) {
	key, err := newKey(alg)
	if err != nil {
		return nil, err
	}
	text, err := keySet{Keys: []jose.JSONWebKey{key}}.seal()
	return map[string]secret.Text{SecretKeys: text}, err
}

func newKey(alg jose.SignatureAlgorithm) (jose.JSONWebKey, error) {
	key := jose.JSONWebKey{Algorithm: string(alg), Use: "sig"}
	var err error
	if alg == jose.RS256 {
		key.Key, err = rsa.GenerateKey(rand.Reader, rsaBits)
	} else {
		key.Key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		return key, fmt.Errorf("make a signing key: %w", err)
	}
	key.KeyID, err = thumbprint(key)
	return key, err
}

// thumbprint is the base64url of a key's SHA-256 thumbprint (RFC 7638).
func thumbprint(key jose.JSONWebKey) (string, error) {
	sum, err := key.Thumbprint(crypto.SHA256)
	if err != nil {
		return "", errors.New("the signing key has no thumbprint")
	}
	return base64.RawURLEncoding.EncodeToString(sum), nil
}

// fits says whether a key can sign by alg.
func fits(key jose.JSONWebKey, alg jose.SignatureAlgorithm) bool {
	switch private := key.Key.(type) {
	case *ecdsa.PrivateKey:
		return alg == jose.ES256 && private.Curve == elliptic.P256()
	case *rsa.PrivateKey:
		return alg == jose.RS256 && private.N.BitLen() >= 2048
	}
	return false
}

// readKeys reads the sealed key set. Its errors never quote what they read.
func readKeys(text secret.Text, alg jose.SignatureAlgorithm) (keySet, error) {
	var set keySet
	if err := json.Unmarshal([]byte(text.Reveal()), &set); err != nil {
		return set, errors.New("the target lacks its secret identity_jwks, which the broker makes when the target is written; write the target again")
	}
	if len(set.Keys) == 0 || len(set.Keys) > maxKeys {
		return set, fmt.Errorf("the secret identity_jwks holds %d keys; 1 to %d are allowed", len(set.Keys), maxKeys)
	}
	for i, key := range set.Keys {
		kid, err := thumbprint(key)
		if err != nil || !fits(key, alg) || kid != key.KeyID || !key.Valid() || key.Algorithm != string(alg) {
			return set, fmt.Errorf("key %d of the secret identity_jwks is not a private %s key whose kid is its thumbprint", i, alg)
		}
	}
	return set, nil
}

// TurnKeys takes one step of a rotation, as [issuers.KeyTurner] says.
func TurnKeys(secrets map[string]secret.Text, alg jose.SignatureAlgorithm, turn issuers.KeyTurn) (map[string]secret.Text, error) {
	set, err := readKeys(secrets[SecretKeys], alg)
	if err != nil {
		return nil, err
	}
	keys, last := set.Keys, len(set.Keys)-1
	switch {
	case turn == issuers.KeyPublish && len(keys) == 1 && set.Turn == "":
		key, err := newKey(alg)
		if err != nil {
			return nil, err
		}
		set = keySet{append(slices.Clone(keys), key), turnPublished}
	case turn == issuers.KeyUse && set.Turn == turnPublished && last > 0:
		set = keySet{append([]jose.JSONWebKey{keys[last]}, keys[:last]...), turnUsed}
	case turn == issuers.KeyRetire && (set.Turn == turnUsed || set.Turn == "" && last > 0):
		set = keySet{Keys: keys[:1]}
	default:
		return nil, errors.New("the step does not fit the target's keys: a new key is published, then used, then the old one retired")
	}
	text, err := set.seal()
	if err != nil {
		return nil, err
	}
	return map[string]secret.Text{SecretKeys: text}, nil
}
