package awstest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strconv"
	"strings"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// SessionToken asks for a session as keys, and returns the status.
func (s *IAM) SessionToken(ctx context.Context, k Keys) int {
	body := "Action=GetSessionToken&Version=2011-06-15"
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://sts.example/", strings.NewReader(body))
	if err != nil {
		return 0
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	sum := sha256.Sum256([]byte(body))
	if err := v4.NewSigner().SignHTTP(ctx, sdk.Credentials{AccessKeyID: k.ID, SecretAccessKey: k.Secret}, r, hex.EncodeToString(sum[:]), "sts", Region, time.Now()); err != nil {
		return 0
	}
	r.Header.Set("Content-Length", strconv.Itoa(len(body)))
	w := &status{}
	s.ServeHTTP(w, r)
	return w.code
}

// StolenSession is a session that a user opened before anything was denied to it.
func (s *IAM) StolenSession(user string) Keys {
	x := &iamSession{id: "ASIA" + rand.Text()[:16], secret: rand.Text(), token: rand.Text(), user: user, issued: time.Now(), ends: time.Now().Add(time.Hour)}
	s.set(func() { s.sessions[x.id] = x })
	return Keys{x.id, x.secret, x.token}
}

// status keeps an answer's status.
type status struct {
	code   int
	header http.Header
}

// Header implements [http.ResponseWriter].
func (w *status) Header() http.Header {
	if w.header == nil {
		w.header = http.Header{}
	}
	return w.header
}

// Write implements [http.ResponseWriter].
func (w *status) Write(p []byte) (int, error) {
	if w.code == 0 {
		w.code = http.StatusOK
	}
	return len(p), nil
}

// WriteHeader implements [http.ResponseWriter].
func (w *status) WriteHeader(code int) { w.code = code }
