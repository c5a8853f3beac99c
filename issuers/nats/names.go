package nats

import (
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
	"regexp"
	"strconv"

	"github.com/nats-io/nkeys"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// maxGenerations bounds how often a lease on a target that revokes may be minted
// anew. Each generation is an entry in the account's JWT until the lease would
// have ended.
const maxGenerations = 32

var leasePattern = regexp.MustCompile(`^[0-9a-z]{26}$`)

func userName(leaseID string, generation uint64) string {
	return "mayfly-" + leaseID + "-" + strconv.FormatUint(generation, 10)
}

// checkLease refuses a lease whose name is not the one that this package
// derives.
func checkLease(l issuers.Lease) error {
	if !leasePattern.MatchString(l.ID) || l.Generation == 0 || l.Name != userName(l.ID, l.Generation) {
		return refused("lease %q: the name %q is not the one of its id and generation", l.ID, l.Name)
	}
	return nil
}

// userKeys derives users' key pairs.
type userKeys struct{ root secret.Text }

// pair is the key pair of one generation of a lease. It is derived and never
// stored, so that any later leader can name the key that it has to revoke. What
// it is derived from is as secret as the account's signing key, which can do no
// less.
func (k userKeys) pair(leaseID string, generation uint64) (nkeys.KeyPair, error) {
	info := fmt.Sprintf("mayfly.nats.user.v1\x00%s\x00%d", leaseID, generation)
	raw, err := hkdf.Key(sha256.New, []byte(k.root.Reveal()), nil, info, 32)
	if err != nil {
		return nil, err
	}
	return nkeys.FromRawSeed(nkeys.PrefixByteUser, raw)
}

func (k userKeys) public(leaseID string, generation uint64) (string, error) {
	pair, err := k.pair(leaseID, generation)
	if err != nil {
		return "", err
	}
	return pair.PublicKey()
}

// all are the public keys of generations 1 to last. Generations beyond
// [maxGenerations] were never minted.
func (k userKeys) all(leaseID string, last uint64) ([]string, error) {
	var out []string
	for g := uint64(1); g <= min(last, maxGenerations); g++ {
		public, err := k.public(leaseID, g)
		if err != nil {
			return nil, err
		}
		out = append(out, public)
	}
	return out, nil
}
