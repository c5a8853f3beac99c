package redis

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"regexp"
	"strconv"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// Names on the target. Redis cuts none off.
const (
	userPrefix   = "mayfly_"
	gatePrefix   = "mayfly:gate:"
	clientPrefix = "mayfly/"
)

var (
	userPattern   = regexp.MustCompile(`^mayfly_[0-9a-z]{26}$`)
	clientPattern = regexp.MustCompile(`^mayfly/([0-9]{1,20})$`)
)

// mark says which generation of a lease a user is, and which leader's term made
// it.
type mark struct {
	generation uint64
	term       uint64
}

// marker writes and reads marks. A mark stands among the user's password hashes
// as 64 hexadecimal digits: generation, term, and half of an HMAC-SHA-256 over
// these and the user's name. Nobody knows a password with that hash, the broker
// included: finding one means inverting SHA-256.
type marker struct{ key secret.Text }

const markBytes = sha256.Size

func (m marker) tag(name string, fields []byte) []byte {
	mac := hmac.New(sha256.New, []byte(m.key.Reveal()))
	fmt.Fprintf(mac, "mayfly.mark.v1\x00%s\x00", name)
	mac.Write(fields)
	return mac.Sum(nil)[:markBytes-16]
}

func (m marker) write(name string, k mark) string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], k.generation)
	binary.BigEndian.PutUint64(b[8:], k.term)
	return hex.EncodeToString(append(b[:], m.tag(name, b[:])...))
}

// read finds the mark among a user's password hashes.
func (m marker) read(name string, hashes []string) (mark, bool) {
	for _, h := range hashes {
		b, err := hex.DecodeString(h)
		if err != nil || len(b) != markBytes {
			continue
		}
		if subtle.ConstantTimeCompare(b[16:], m.tag(name, b[:16])) == 1 {
			return mark{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:16])}, true
		}
	}
	return mark{}, false
}

// newPassword returns a random password of over 128 bits and its hash as Redis
// keeps it. Redis sees the hash alone.
func newPassword() (password secret.Text, hash string) {
	text := rand.Text()
	sum := sha256.Sum256([]byte(text))
	return secret.New(text), hex.EncodeToString(sum[:])
}

func clientName(term uint64) string { return clientPrefix + strconv.FormatUint(term, 10) }

func parseClientName(name string) (term uint64, ok bool) {
	f := clientPattern.FindStringSubmatch(name)
	if f == nil {
		return 0, false
	}
	term, err := strconv.ParseUint(f[1], 10, 64)
	return term, err == nil
}

// checkLease refuses a lease whose name is not the one that this package
// derives.
func checkLease(l issuers.Lease) error {
	if !userPattern.MatchString(l.Name) || l.Name != (Kind{}).CredentialName(l.ID, l.Generation) {
		return refused("lease %q: the name %q is not mayfly_ and 26 characters of 0-9, a-z", l.ID, l.Name)
	}
	return nil
}
