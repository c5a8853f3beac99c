package federation

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/mayfly-broker/mayfly/issuers"
)

// Bounds of what is asked and answered.
const (
	// CallTimeout bounds one question, besides the mint deadline.
	CallTimeout = 20 * time.Second

	maxConnections = 16
	dialTimeout    = 5 * time.Second
	maxAnswerBytes = 64 << 10 // the longest token takes a few KiB
	idleTimeout    = time.Minute
)

// NewHTTP makes the client that all of a target's requests go through. roots nil
// are the system's. A proxy of the node's environment is used as everywhere: it
// forwards TLS and sees no secret.
func NewHTTP(roots *x509.CertPool) *http.Client {
	t := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		TLSHandshakeTimeout:    dialTimeout,
		MaxConnsPerHost:        maxConnections,
		MaxIdleConnsPerHost:    maxConnections,
		IdleConnTimeout:        idleTimeout,
		ForceAttemptHTTP2:      true,
		MaxResponseHeaderBytes: maxAnswerBytes,
	}
	return &http.Client{
		Transport: Watch(t),
		// A signed request, or a token, is for the one it was made for.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Roots reads the CA of a spec, given in PEM or as a file; none of them, and it
// returns nil: the system's.
func Roots(ca, caFile string) (*x509.CertPool, error) {
	if ca == "" && caFile == "" {
		return nil, nil
	}
	pem := []byte(ca)
	if caFile != "" {
		var err error
		if pem, err = os.ReadFile(caFile); err != nil {
			return nil, fmt.Errorf("tls.ca_file: %w", err)
		}
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New("tls: no certificate can be read from the CA's PEM")
	}
	return pool, nil
}

// Journey is what became of one request on the wire.
type Journey struct {
	Sent atomic.Bool // a connection stood, and bytes may have left
	// Ahead is how far the answering clock is ahead of ours, give or take Unsure;
	// valid once Dated.
	Ahead, Unsure time.Duration
	Dated         bool
}

type journeyKey struct{}

// Travel returns a context that reports on the request made with it.
func Travel(ctx context.Context) (context.Context, *Journey) {
	j := &Journey{}
	return context.WithValue(ctx, journeyKey{}, j), j
}

// watched reports on each request and bounds its answer.
type watched struct{ next http.RoundTripper }

// Watch makes a transport report to [Travel]'s contexts, and bounds its answers.
func Watch(next http.RoundTripper) http.RoundTripper { return watched{next} }

// RoundTrip implements [http.RoundTripper].
func (w watched) RoundTrip(r *http.Request) (*http.Response, error) {
	j, _ := r.Context().Value(journeyKey{}).(*Journey)
	if j != nil {
		trace := &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { j.Sent.Store(true) }}
		r = r.WithContext(httptrace.WithClientTrace(r.Context(), trace))
	}
	began := time.Now()
	resp, err := w.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if at, err := http.ParseTime(resp.Header.Get("Date")); err == nil && j != nil {
		// Their clock was read somewhere between our two looks, and cut to a second.
		half := time.Since(began) / 2
		j.Ahead, j.Unsure, j.Dated = at.Add(time.Second/2).Sub(began.Add(half)), half+time.Second/2, true
	}
	resp.Body = &bounded{resp.Body, maxAnswerBytes}
	return resp, nil
}

// CloseIdleConnections passes http.Client's call on.
func (w watched) CloseIdleConnections() {
	if t, ok := w.next.(*http.Transport); ok {
		t.CloseIdleConnections()
	}
}

var errTooLong = fmt.Errorf("the answer is longer than %d bytes", maxAnswerBytes)

// bounded fails a read past its bound, where a cut would look like the end.
type bounded struct {
	io.ReadCloser
	left int
}

// Read implements [io.Reader].
func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		if n, err := b.ReadCloser.Read(p[:min(len(p), 1)]); n == 0 {
			return 0, err
		}
		return 0, errTooLong
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// Answer is a whole answer.
type Answer struct {
	Status int
	Body   []byte
}

// Post asks by one POST and reads the whole answer. what is the question's name
// for errors, which are of package issuers: [issuers.Unreachable] where nothing
// was sent, [issuers.Unknown] where no answer came.
func Post(ctx context.Context, hc *http.Client, what, url string, header map[string]string, body string) (Answer, *Journey, error) {
	ctx, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	ctx, j := Travel(ctx)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return Answer{}, j, Unanswered(what, errors.New("its address cannot be read"), j)
	}
	for k, v := range header {
		r.Header.Set(k, v)
	}
	resp, err := hc.Do(r)
	if err != nil {
		return Answer{}, j, Unanswered(what, err, j)
	}
	defer func() { _ = resp.Body.Close() }()
	a := Answer{Status: resp.StatusCode}
	if a.Body, err = io.ReadAll(resp.Body); err != nil {
		return Answer{}, j, Unanswered(what, err, j)
	}
	return a, j, nil
}

// Unanswered classifies a question to which no answer came that can be read.
func Unanswered(what string, err error, j *Journey) *issuers.Error {
	switch {
	case !j.Sent.Load() && errors.Is(err, context.DeadlineExceeded):
		return &issuers.Error{Kind: issuers.Unreachable, Detail: what + ": no connection within the deadline; nothing was sent", Err: err}
	case !j.Sent.Load():
		return &issuers.Error{Kind: issuers.Unreachable, Detail: what + ": no connection; nothing was sent", Err: err}
	}
	// A credential may have been made. Nobody holds it, and it does nothing after
	// the lease's end.
	return &issuers.Error{Kind: issuers.Unknown, Detail: what + ": no answer that can be read", Err: err}
}

// OneLine makes a server's words fit for a log line.
func OneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > 400 {
		s = strings.ToValidUTF8(s[:400], "") + "…"
	}
	return s
}
