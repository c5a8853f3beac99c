package ledger

import (
	"encoding/base32"
	"encoding/binary"
	"io"
	"strings"
	"time"
)

// Prefixes of ids. What follows is always 26 characters.
const (
	PrefixLease    = "lse_"
	PrefixTask     = "tsk_"
	PrefixGrant    = "grt_"
	PrefixDecision = "dec_"
	PrefixSession  = "ses_"
	PrefixRotation = "rot_"
)

// BareIDLen is the length of an id without its prefix.
const BareIDLen = 26

// crockford without padding, in lower case: no i, l, o, u to misread.
var idEncoding = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// NewID returns prefix and 26 characters: 48 bits of time in milliseconds, so
// that ids made later sort later and inserts stay at the edge of the tree, then
// 80 random bits, so that nobody can guess or collide with one (HAZARDS 16).
func NewID(prefix string, now time.Time, random io.Reader) (string, error) {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], uint64(now.UnixMilli())<<16)
	if _, err := io.ReadFull(random, b[6:]); err != nil {
		return "", err
	}
	return prefix + idEncoding.EncodeToString(b[:]), nil
}

// FirstID returns the least id that could be made at an instant: what was made
// before it sorts below. An instant before 1970 counts as 1970.
func FirstID(prefix string, at time.Time) string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], uint64(max(at.UnixMilli(), 0))<<16)
	return prefix + idEncoding.EncodeToString(b[:])
}

// BareID returns an id without its prefix; targets see this form.
func BareID(id string) string {
	if i := strings.IndexByte(id, '_'); i >= 0 {
		return id[i+1:]
	}
	return id
}

// validID reports whether id is prefix and 26 characters of the alphabet.
func validID(prefix, id string) bool {
	rest, ok := strings.CutPrefix(id, prefix)
	if !ok || len(rest) != BareIDLen {
		return false
	}
	_, err := idEncoding.DecodeString(rest)
	return err == nil
}

// SessionID derives a session's id from its token's hash, so that the session
// is found by its token without another index. It reveals nothing of the token.
func SessionID(tokenHash [32]byte) string {
	return PrefixSession + idEncoding.EncodeToString(tokenHash[:16])
}
