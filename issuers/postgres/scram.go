package postgres

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"

	"github.com/mayfly-broker/mayfly/secret"
)

// saltBytes is what PostgreSQL itself uses (SCRAM_DEFAULT_SALT_LEN).
const saltBytes = 16

// newPassword returns 26 characters of 5 random bits each. They are ASCII, so
// that SASLprep (RFC 4013) leaves them as they are, and need no escaping
// anywhere.
func newPassword() secret.Text { return secret.New(rand.Text()) }

// newVerifier returns what PostgreSQL stores of a password: RFC 5803's form of
// the SCRAM-SHA-256 keys (RFC 5802 §3, RFC 7677). The server takes it as it is,
// so that the clear password reaches neither the server nor its log.
func newVerifier(password secret.Text, iterations int) (string, error) {
	var salt [saltBytes]byte
	_, _ = rand.Read(salt[:]) // never fails; see crypto/rand
	return verifier(password, salt[:], iterations)
}

func verifier(password secret.Text, salt []byte, iterations int) (string, error) {
	salted, err := pbkdf2.Key(sha256.New, password.Reveal(), salt, iterations, sha256.Size)
	if err != nil {
		return "", err
	}
	stored := sha256.Sum256(mac(salted, "Client Key"))
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", iterations, b64(salt), b64(stored[:]), b64(mac(salted, "Server Key"))), nil
}

func mac(key []byte, text string) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(text))
	return m.Sum(nil)
}
