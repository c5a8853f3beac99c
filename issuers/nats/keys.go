package nats

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/go-jose/go-jose/v4"
	"github.com/nats-io/nkeys"

	"github.com/mayfly-broker/mayfly/secret"
)

// maxKeyBytes bounds a requester's key: an Ed25519 JWK takes about 100.
const maxKeyBytes = 4 << 10

// maxSeedBytes bounds a seed as a file holds it, with the lines around it.
const maxSeedBytes = 4 << 10

// keyring is a target's own keys, read. Nothing of it is ever logged: its pairs
// hold seeds.
type keyring struct {
	account string        // public key of the account that leases are in
	signer  nkeys.KeyPair // signs users
	made    bool          // the signer was made by the broker, and no rotation has put it in force
	ring    ring          // the signer is its first
	users   userKeys

	// for revocation
	operator nkeys.KeyPair
	system   nkeys.KeyPair
}

func readKeys(sp spec, secrets map[string]secret.Text) (keyring, error) {
	k := keyring{users: userKeys{secrets[SecretUsers]}, account: sp.Account}
	if len(k.users.root.Reveal()) < 32 {
		return k, errors.New("the target lacks its secret user_key, which the broker makes when the target is written; write the target again")
	}
	var err error
	if k.ring, k.made, err = readRing(secrets); err != nil {
		return k, err
	}
	if k.signer, err = k.ring.pair(0); err != nil {
		return k, err
	}
	if k.account == "" && k.made {
		return k, errors.New("account: the account's public key is needed: nsc describe account")
	}
	if k.account == "" { // then the seed is the account's identity
		if k.account, err = k.signer.PublicKey(); err != nil {
			return k, errors.New("signing_key: it has no public key")
		}
	}
	if sp.Revocation == nil {
		return k, nil
	}
	if k.account == sp.Revocation.SystemAccount {
		return k, errors.New("account: leases in the system account could do everything; name another")
	}
	if k.operator, err = readSeed(SecretOperator, secrets[SecretOperator], nkeys.PrefixByteOperator); err != nil {
		return k, err
	}
	k.system, err = readSeed(SecretSystem, secrets[SecretSystem], nkeys.PrefixByteAccount)
	return k, err
}

// readSeed reads a seed, bare or with the lines that nsc puts around it.
func readSeed(name string, text secret.Text, want nkeys.PrefixByte) (nkeys.KeyPair, error) {
	what := map[nkeys.PrefixByte]string{nkeys.PrefixByteAccount: "an account, which begins with SA", nkeys.PrefixByteOperator: "an operator, which begins with SO"}[want]
	if text.IsZero() {
		return nil, fmt.Errorf("%s: the target lacks it: the seed of a key of %s", name, what)
	}
	if len(text.Reveal()) > maxSeedBytes {
		return nil, fmt.Errorf("%s: more than %d bytes are no seed", name, maxSeedBytes)
	}
	pair, err := nkeys.ParseDecoratedNKey([]byte(text.Reveal()))
	if err != nil {
		return nil, fmt.Errorf("%s: it is not the seed of a key of %s", name, what)
	}
	seed, err := pair.Seed()
	if err != nil {
		return nil, fmt.Errorf("%s: it is not a seed", name)
	}
	if prefix, _, err := nkeys.DecodeSeed(seed); err != nil || prefix != want {
		return nil, fmt.Errorf("%s: it is not the seed of a key of %s", name, what)
	}
	return pair, nil
}

// holderKey reads the requester's public key, an Ed25519 JWK, and returns it as
// NATS writes the key of a user.
func holderKey(raw json.RawMessage) (string, error) {
	const allowed = "an Ed25519 public key as a JWK is needed, since NATS has no other; leave it out and the broker makes one"
	if len(raw) > maxKeyBytes {
		return "", fmt.Errorf("public key: %d bytes; at most %d are allowed", len(raw), maxKeyBytes)
	}
	var key jose.JSONWebKey
	if err := json.Unmarshal(raw, &key); err != nil || !key.Valid() {
		return "", errors.New("public key: not a JWK; " + allowed)
	}
	public, ok := key.Key.(ed25519.PublicKey)
	if !ok || len(public) != ed25519.PublicKeySize {
		return "", errors.New("public key: " + allowed)
	}
	out, err := nkeys.Encode(nkeys.PrefixByteUser, public)
	if err != nil {
		return "", errors.New("public key: " + allowed)
	}
	return string(out), nil
}
