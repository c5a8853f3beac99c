package notify_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker/notify"
	"github.com/mayfly-broker/mayfly/secret"
)

// What stands between the two lines below is what docs/notifications.md shows.

// snippet: begin

// verify returns the body of a message if it is Mayfly's, and fresh.
func verify(r *http.Request, secret []byte) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, 64<<10))
	if err != nil {
		return nil, err
	}
	t, signature, _ := strings.Cut(strings.TrimPrefix(r.Header.Get("Mayfly-Signature"), "t="), ",v1=")
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(t + "." + string(body)))
	got, _ := hex.DecodeString(signature)
	if !hmac.Equal(got, mac.Sum(nil)) { // in constant time
		return nil, errors.New("not signed with our secret")
	}
	seconds, err := strconv.ParseInt(t, 10, 64)
	if age := time.Since(time.Unix(seconds, 0)); err != nil || age.Abs() > 5*time.Minute {
		return nil, errors.New("an old message, sent again by somebody")
	}
	return body, nil
}

// snippet: end

// knownSignature was computed with openssl dgst -sha256 -hmac.
const knownSignature = "t=1700000000,v1=9d713ed406bb7076d4123f0dc2c39d2df5c654ed4b0cd56b52c8b4c940bd63ae"

// TestDocumentedVerification: what the page tells receivers to do is what works,
// and what it says to refuse is refused.
func TestDocumentedVerification(t *testing.T) {
	key := "0123456789abcdef0123456789abcdef"
	body := `{"id":"evt_1"}`
	at := time.Now()
	good := notify.Sign(secret.New(key), at, []byte(body))
	for name, c := range map[string]struct {
		header, body, key string
		ok                bool
	}{
		"as sent":        {good, body, key, true},
		"another body":   {good, body + " ", key, false},
		"another secret": {good, body, "another", false},
		"another time":   {strings.Replace(good, "t=", "t=1", 1), body, key, false},
		"old":            {notify.Sign(secret.New(key), at.Add(-6*time.Minute), []byte(body)), body, key, false},
		"of the future":  {notify.Sign(secret.New(key), at.Add(6*time.Minute), []byte(body)), body, key, false},
		"nothing":        {"", body, key, false},
		"no signature":   {"t=" + strconv.FormatInt(at.Unix(), 10) + ",v1=", body, key, false},
		"no number":      {"t=x,v1=" + strings.Repeat("0", 64), body, key, false},
	} {
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(c.body))
		r.Header.Set(notify.HeaderSignature, c.header)
		got, err := verify(r, []byte(c.key))
		if (err == nil) != c.ok || c.ok && string(got) != c.body {
			t.Errorf("%s: %q %v", name, got, err)
		}
	}
	// The same by hand: HMAC-SHA-256 of "1700000000.{}" under "key".
	if got := notify.Sign(secret.New("key"), time.Unix(1700000000, 0), []byte("{}")); got != knownSignature {
		t.Errorf("signed as %s", got)
	}
}

// TestPageShowsTheSnippet: the page shows what the test above ran.
func TestPageShowsTheSnippet(t *testing.T) {
	source, err := os.ReadFile("verify_test.go")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(source), "// snippet: begin\n")
	snippet, _, ok := strings.Cut(rest, "// snippet: end\n")
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "notifications.md"))
	if err != nil {
		t.Fatal(err)
	}
	if !ok || !strings.Contains(string(page), "```go\n"+strings.TrimSpace(snippet)+"\n```") {
		t.Errorf("docs/notifications.md does not show this:\n%s", snippet)
	}
}
