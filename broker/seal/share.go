package seal

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"fmt"
	"strings"

	"github.com/mayfly-broker/mayfly/secret"
)

// A share is written mfu1-SET-INDEX-PAYLOAD-CHECKSUM, lower case:
//
//	mfu1-7k3m9qxz-003-<52 characters>-<7 characters>
//
// SET and PAYLOAD are base32 in Crockford's alphabet, which has no I, L, O or U.
// INDEX is decimal. Dashes, spaces and case do not matter when reading, and I and
// L are read as 1, O as 0. The checksum, 35 bits of SHA-256 over the rest, finds
// any slip of the hand; it is no defence against somebody who invents a share.
const (
	sharePrefix  = "mfu1"
	setIDBytes   = 5
	setIDChars   = 8
	indexChars   = 3
	scalarBytes  = 32
	payloadChars = 52
	sumChars     = 7
	shareChars   = len(sharePrefix) + setIDChars + indexChars + payloadChars + sumChars
)

// crockford's alphabet (Crockford, "Base 32").
func crockford() *base32.Encoding {
	return base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)
}

// A Share is one operator's part of the root key. It prints as its index and set
// only; [Share.Text] gives the text to hand over.
type Share struct {
	set   string
	index int
	value [scalarBytes]byte
}

// Index is the share's number, 1 to 255.
func (s Share) Index() int { return s.index }

// SetID names the set that the share belongs to: 8 characters.
func (s Share) SetID() string { return s.set }

// Format implements [fmt.Formatter]: it names the share and hides its value.
func (s Share) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "share %d of set %s", s.index, s.set) }

// Text returns the share in writing.
func (s Share) Text() secret.Text {
	payload := crockford().EncodeToString(s.value[:])
	return secret.New(fmt.Sprintf("%s-%s-%03d-%s-%s", sharePrefix, s.set, s.index, payload, shareSum(s.set, s.index, payload)))
}

func shareSum(set string, index int, payload string) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "mayfly/share/v1/%s/%d/%s", set, index, payload))
	return crockford().EncodeToString(sum[:])[:sumChars]
}

func newSetID() string {
	var b [setIDBytes]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	return crockford().EncodeToString(b[:])
}

func decodeSetID(s string) ([]byte, error) {
	b, err := crockford().DecodeString(s)
	if err != nil || len(s) != setIDChars {
		return nil, as(ErrCorrupt, nil, "The id of a set of shares is %d characters; %q is not one.", setIDChars, clip(s))
	}
	return b, nil
}

// ParseShare reads a share as a person typed it. The error says which share it
// is, as far as can be read, and never repeats its payload. Errors: ErrShare.
func ParseShare(text secret.Text) (Share, error) {
	raw := text.Reveal()
	if len(raw) > maxShareText {
		return Share{}, as(ErrShare, nil, "A share has %d characters; this has more than %d.", shareChars, maxShareText)
	}
	plain, ok := normalise(raw)
	if !ok {
		return Share{}, as(ErrShare, nil, "The share holds a character that shares never have.")
	}
	if !strings.HasPrefix(plain, sharePrefix) {
		return Share{}, as(ErrShare, nil, "A share begins with %s.", sharePrefix)
	}
	if len(plain) != shareChars {
		return Share{}, as(ErrShare, nil, "A share has %d characters besides dashes and spaces; this has %d.", shareChars, len(plain))
	}
	rest := plain[len(sharePrefix):]
	set, rest := rest[:setIDChars], rest[setIDChars:]
	number, rest := rest[:indexChars], rest[indexChars:]
	payload, sum := rest[:payloadChars], rest[payloadChars:]

	index, ok := decimal(number)
	if !ok || index < 1 || index > MaxShares {
		return Share{}, as(ErrShare, nil, "A share of set %s is mistyped: its number reads %s, and numbers go from 001 to %d.", set, number, MaxShares)
	}
	if subtle.ConstantTimeCompare([]byte(sum), []byte(shareSum(set, index, payload))) != 1 {
		return Share{}, as(ErrShare, nil, "Share %d of set %s is mistyped: its check characters do not fit.", index, set)
	}
	if _, err := decodeSetID(set); err != nil {
		return Share{}, as(ErrShare, nil, "Share %d is of no set that can be: %s.", index, set)
	}
	value, err := crockford().DecodeString(payload)
	if err != nil || len(value) != scalarBytes || crockford().EncodeToString(value) != payload {
		return Share{}, as(ErrShare, nil, "Share %d of set %s is not a share this program made.", index, set)
	}
	defer clear(value)
	s := Share{set: set, index: index, value: [scalarBytes]byte(value)}
	if _, err := s.scalar(); err != nil {
		return Share{}, err
	}
	return s, nil
}

// ParseShares reads several; the error names the first bad one by its place in
// the list as well. Errors: ErrShare.
func ParseShares(texts []secret.Text) ([]Share, error) {
	if len(texts) > MaxShares {
		return nil, as(ErrShare, nil, "There are at most %d shares.", MaxShares)
	}
	shares := make([]Share, len(texts))
	for i, text := range texts {
		s, err := ParseShare(text)
		if err != nil {
			return nil, as(ErrShare, err, "The share given in place %d of %d is not right. %s", i+1, len(texts), detail(err))
		}
		shares[i] = s
	}
	return shares, nil
}

// normalise drops separators, lowers case and undoes the usual misreadings;
// false if a character is none that a share can have.
func normalise(raw string) (string, bool) {
	var out strings.Builder
	for _, c := range strings.ToLower(raw) {
		switch {
		case c == '-' || c == ' ' || c == '\t' || c == '\r' || c == '\n' || c == '_':
		case c == 'i' || c == 'l':
			out.WriteByte('1')
		case c == 'o':
			out.WriteByte('0')
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z':
			out.WriteByte(byte(c))
		default:
			return "", false
		}
	}
	return out.String(), true
}

func decimal(s string) (n int, ok bool) {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = n*10 + int(s[i]-'0')
	}
	return n, true
}

// clip shortens text from outside before it goes into a message.
func clip(s string) string {
	if len(s) > 32 {
		return s[:32] + "…"
	}
	return s
}
