package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"strings"

	"github.com/mayfly-broker/mayfly/secret"
)

// The prefixes of Mayfly's own tokens, by which scanners and people know them.
const (
	SessionPrefix = "mfs_"
	EnrolPrefix   = "mfe_"
)

// TokenHash is what the ledger stores of a token: SHA-256. The tokens have 256
// random bits, so that the hash needs neither salt nor stretching.
type TokenHash [sha256.Size]byte

// MintSession makes a session token `mfs_…` of 256 random bits. The broker
// gives it out once and stores its hash.
func MintSession() (secret.Text, TokenHash) {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	text := SessionPrefix + strictBase64.EncodeToString(b[:])
	return secret.New(text), sha256.Sum256([]byte(text))
}

// HashSession returns the hash under which a session is stored, or
// [CodeSessionToken] for what cannot be a session token: such requests need no
// look-up.
func HashSession(token secret.Text) (TokenHash, error) {
	text := token.Reveal()
	body, ok := strings.CutPrefix(text, SessionPrefix)
	if !ok || len(body) != 43 || strings.ContainsAny(body, "\r\n") {
		return TokenHash{}, errNoSession()
	}
	if raw, err := strictBase64.DecodeString(body); err != nil || len(raw) != 32 {
		return TokenHash{}, errNoSession()
	}
	return sha256.Sum256([]byte(text)), nil
}

func errNoSession() error {
	return unauthenticated(CodeSessionToken, "The session token is not of the form %s…; log in again.", SessionPrefix)
}
