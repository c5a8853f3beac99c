package vault

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

const (
	namePrefix = "mayfly-"
	// endedPolicy is what a tombstone has instead of a policy: nobody writes a
	// policy of that name, so that it opens nothing.
	endedPolicy = "mayfly-ended"
	// journal is where a lease's token keeps what was read with it.
	journal = "cubbyhole/mayfly"
)

var namePattern = regexp.MustCompile(`^mayfly-[0-9a-z]{26}$`)

// marker derives and reads what only this target's broker can make.
type marker struct{ key secret.Text }

func (m marker) hmac(what, fields string) string {
	mac := hmac.New(sha256.New, []byte(m.key.Reveal()))
	fmt.Fprintf(mac, "mayfly.vault.%s.v1\x00%s", what, fields)
	return hex.EncodeToString(mac.Sum(nil))
}

// token is the id of a lease's token: known before Vault hears of it, found again
// by whoever holds the key, and by nobody else.
func (m marker) token(leaseID string) secret.Text {
	return secret.New("mayfly_" + m.hmac("token", leaseID))
}

// mark is what a token's metadata say.
type mark struct {
	lease      string
	generation uint64
	term       uint64
	mint       string // distinguishes two mints under the same id
	ended      bool   // a tombstone
}

func (k mark) fields() string {
	return fmt.Sprintf("%s\x00%d\x00%d\x00%s\x00%t", k.lease, k.generation, k.term, k.mint, k.ended)
}

// Names of metadata.
const (
	metaLease      = "mayfly_lease"
	metaGeneration = "mayfly_generation"
	metaTerm       = "mayfly_term"
	metaMint       = "mayfly_mint"
	metaEnded      = "mayfly_ended"
	metaMark       = "mayfly_mark"
)

func (m marker) write(k mark) map[string]string {
	out := map[string]string{
		metaLease: k.lease, metaGeneration: strconv.FormatUint(k.generation, 10), metaTerm: strconv.FormatUint(k.term, 10), metaMint: k.mint,
		metaMark: m.hmac("mark", k.fields()),
	}
	if k.ended {
		out[metaEnded] = "true"
	}
	return out
}

// read checks a token's metadata; ok is false unless this target's broker wrote
// them.
func (m marker) read(meta map[string]string) (k mark, ok bool) {
	k = mark{lease: meta[metaLease], mint: meta[metaMint], ended: meta[metaEnded] == "true"}
	var err1, err2 error
	k.generation, err1 = strconv.ParseUint(meta[metaGeneration], 10, 64)
	k.term, err2 = strconv.ParseUint(meta[metaTerm], 10, 64)
	if err1 != nil || err2 != nil {
		return mark{}, false
	}
	return k, subtle.ConstantTimeCompare([]byte(meta[metaMark]), []byte(m.hmac("mark", k.fields()))) == 1
}

// plain makes text fit for metadata and logs of Vault: printable, one line, short.
func plain(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	for len(s) > most {
		r := []rune(s)
		s = string(r[:max(0, len(r)-max(1, (len(s)-most)/4))])
	}
	return s
}

// checkLease refuses a lease whose name is not the one that this package derives.
func checkLease(l issuers.Lease) error {
	if !namePattern.MatchString(l.Name) || l.Name != (Kind{}).CredentialName(l.ID, l.Generation) {
		return refused("lease %q: the name %q is not mayfly- and 26 characters of 0-9, a-z", l.ID, l.Name)
	}
	return nil
}
