package rabbitmq

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// Names on the target.
const (
	userPrefix    = "mayfly_"
	generationTag = "mayfly-g"
	termTag       = "mayfly-t"
)

// maxGeneration bounds how often one lease may be minted anew. RabbitMQ makes an
// atom of every tag it ever saw and forgets none until it restarts; its table
// holds five million, and a full one ends the node.
const maxGeneration = 100_000

var (
	userPattern   = regexp.MustCompile(`^mayfly_[0-9a-z]{26}$`)
	numberPattern = regexp.MustCompile(`^(?:0|[1-9][0-9]{0,19})$`)
)

// mark says which generation of a lease a user is, and which leader's term made
// it. It stands among the user's tags, beside the target's own tag. RabbitMQ
// gives rights to a handful of tags (administrator, monitoring …); to others it
// gives none.
type mark struct {
	generation uint64
	term       uint64
}

// targetTag is what a target calls its users by. Whoever may list users sees
// it; whoever may set tags may do anything.
func targetTag(key secret.Text) string {
	mac := hmac.New(sha256.New, []byte(key.Reveal()))
	mac.Write([]byte("mayfly.rabbitmq.tag.v1"))
	return "mayfly-" + hex.EncodeToString(mac.Sum(nil)[:12])
}

// tags are those of a user of ours.
func (m mark) tags(own string) []string {
	return []string{own, generationTag + strconv.FormatUint(m.generation, 10), termTag + strconv.FormatUint(m.term, 10)}
}

// readMark finds the mark among tags. Two numbers of one sort, or one that is no
// number, are no mark.
func readMark(own string, tags []string) (m mark, ours bool) {
	if !slices.Contains(tags, own) {
		return mark{}, false
	}
	for _, part := range []struct {
		prefix string
		to     *uint64
	}{{generationTag, &m.generation}, {termTag, &m.term}} {
		found := 0
		for _, t := range tags {
			text, ok := strings.CutPrefix(t, part.prefix)
			if !ok || t == own {
				continue
			}
			n, err := strconv.ParseUint(text, 10, 64)
			if err != nil || !numberPattern.MatchString(text) {
				return mark{}, false
			}
			*part.to, found = n, found+1
		}
		if found != 1 {
			return mark{}, false
		}
	}
	return m, true
}

// hashing is the server's name of the hash that newPassword makes.
const hashing = "rabbit_password_hashing_sha512"

// newPassword returns a random password of over 128 bits, and its hash as RabbitMQ
// keeps it: four bytes of salt, then SHA-512 over salt and password, in base64.
// The server sees the hash alone until somebody logs in.
func newPassword() (password secret.Text, hash string, err error) {
	password = secret.New(rand.Text())
	hash, err = hashOf(password)
	return password, hash, err
}

// hashOf is a secret's hash, with another salt each time.
func hashOf(s secret.Text) (string, error) {
	var salt [4]byte
	if _, err := rand.Read(salt[:]); err != nil {
		return "", err
	}
	sum := sha512.Sum512(append(salt[:], s.Reveal()...))
	return base64.StdEncoding.EncodeToString(append(salt[:], sum[:]...)), nil
}

// checkLease refuses a lease whose name is not the one that this package
// derives.
func checkLease(l issuers.Lease) error {
	if !userPattern.MatchString(l.Name) || l.Name != (Kind{}).CredentialName(l.ID, l.Generation) {
		return refused("lease %q: the name %q is not mayfly_ and 26 characters of 0-9, a-z", l.ID, l.Name)
	}
	return nil
}
