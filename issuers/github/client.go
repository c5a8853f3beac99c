package github

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// Bounds of what is asked and answered.
const (
	maxConnections = 16
	dialTimeout    = 5 * time.Second
	callTimeout    = 20 * time.Second // besides the mint deadline
	maxAnswerBytes = 2 << 20          // 64 repositories with all that GitHub knows of each
	idleTimeout    = time.Minute
	apiVersion     = "2022-11-28"
	// How long to leave GitHub alone where it says so, or does not say (Rate limits
	// for the REST API).
	defaultPause = time.Minute
	longestPause = 15 * time.Minute
)

// client asks one GitHub.
type client struct {
	base  string
	http  *http.Client
	pause [2]atomic.Int64 // Unix milliseconds until when: of the App's calls, of its tokens'
}

// Whose rate limit a call counts against.
const (
	asApp = iota
	asToken
)

// reply is one answer, whatever its status.
type reply struct {
	status int
	body   []byte
	ahead  time.Duration // GitHub's clock before ours, to a second or so; 0 if not said
}

func newClient(s spec) (*client, error) {
	trust := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.TLS.CA != "" || s.TLS.CAFile != "" {
		pem := []byte(s.TLS.CA)
		if s.TLS.CAFile != "" {
			var err error
			if pem, err = os.ReadFile(s.TLS.CAFile); err != nil {
				return nil, fmt.Errorf("github: tls.ca_file: %w", err)
			}
		}
		trust.RootCAs = x509.NewCertPool()
		if !trust.RootCAs.AppendCertsFromPEM(pem) {
			return nil, errors.New("github: tls: no certificate can be read from the CA's PEM")
		}
	}
	return &client{base: s.API, http: &http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, DialContext: (&net.Dialer{Timeout: dialTimeout}).DialContext, TLSClientConfig: trust, TLSHandshakeTimeout: dialTimeout,
			MaxConnsPerHost: maxConnections, MaxIdleConnsPerHost: maxConnections, IdleConnTimeout: idleTimeout, ForceAttemptHTTP2: true, MaxResponseHeaderBytes: 64 << 10,
		},
		// A token is for the host that it was made for.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// do sends one request. The error is an *issuers.Error of kind unreachable, when
// nothing was sent or GitHub asks everybody to wait, or unknown.
func (c *client) do(ctx context.Context, as int, bearer secret.Text, method, path string, body any) (reply, error) {
	var r reply
	if wait := time.Until(time.UnixMilli(c.pause[as].Load())); wait > 0 {
		return r, &issuers.Error{Kind: issuers.Unreachable, Detail: fmt.Sprintf("GitHub's rate limit is reached; it is asked again in %s; nothing was sent", wait.Round(time.Second))}
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var sent atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { sent.Store(true) }})
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return r, refused("the request cannot be encoded")
		}
		content = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, content)
	if err != nil {
		return r, refused("the request cannot be made")
	}
	for k, v := range map[string]string{"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": apiVersion, "User-Agent": "mayfly", "Authorization": "Bearer " + bearer.Reveal()} {
		req.Header.Set(k, v)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if !sent.Load() {
			return r, &issuers.Error{Kind: issuers.Unreachable, Detail: method + " " + path + ": no connection; nothing was sent", Err: err}
		}
		return r, &issuers.Error{Kind: issuers.Unknown, Detail: method + " " + path + ": no answer", Err: err}
	}
	defer func() { _ = resp.Body.Close() }()
	r.status = resp.StatusCode
	if at, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		r.ahead = time.Until(at)
	}
	if wait := limited(resp); wait > 0 {
		c.pause[as].Store(time.Now().Add(wait).UnixMilli())
		return r, &issuers.Error{Kind: issuers.Unreachable, Detail: fmt.Sprintf("%s %s: GitHub's rate limit is reached (status %d); it is asked again in %s", method, path, r.status, wait.Round(time.Second))}
	}
	if r.body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes+1)); err != nil || len(r.body) > maxAnswerBytes {
		return r, &issuers.Error{Kind: issuers.Unknown, Detail: fmt.Sprintf("%s %s: the answer broke off, or is longer than %d bytes", method, path, maxAnswerBytes), Err: err}
	}
	return r, nil
}

// limited says how long to wait where the answer is that of a rate limit, 0 where it
// is not. A 403 without any of the signs is a right that is missing.
func limited(resp *http.Response) time.Duration {
	if resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusForbidden {
		return 0
	}
	wait := time.Duration(0)
	if s, err := strconv.ParseInt(resp.Header.Get("Retry-After"), 10, 32); err == nil && s >= 0 {
		wait = max(time.Duration(s)*time.Second, time.Second)
	} else if resp.Header.Get("X-RateLimit-Remaining") == "0" {
		wait = defaultPause
		if at, err := strconv.ParseInt(resp.Header.Get("X-RateLimit-Reset"), 10, 64); err == nil {
			wait = max(time.Until(time.Unix(at, 0)), time.Second)
		}
	} else if resp.StatusCode == http.StatusTooManyRequests {
		wait = defaultPause
	}
	return min(wait, longestPause)
}

// refusal turns an answer that is no success into an error.
func (r reply) refusal(what string) *issuers.Error {
	var said struct {
		Message string `json:"message"`
	}
	_ = json.Unmarshal(r.body, &said) // what is no JSON says nothing
	kind, hint := issuers.Refused, "GitHub refuses"
	switch {
	case r.status == http.StatusUnauthorized:
		hint = "GitHub does not know the App by this id and key, or the broker's clock is off"
	case r.status == http.StatusForbidden:
		hint = "the installation is suspended, or the App lacks a right"
	case r.status == http.StatusNotFound:
		hint = "there is no such installation of this App"
	case r.status == http.StatusUnprocessableEntity:
		kind, hint = issuers.BadScope, "the App's installation does not have one of the repositories, or one of the permissions"
	case r.status >= 500 || r.status < 300:
		kind, hint = issuers.Unknown, "GitHub failed"
	}
	return &issuers.Error{Kind: kind, Detail: fmt.Sprintf("%s: %s (status %d: %s)", what, hint, r.status, oneLine(said.Message))}
}

// oneLine makes a server's words fit for a log line.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > 200 {
		s = strings.ToValidUTF8(s[:200], "") + "…"
	}
	return s
}

func refused(format string, args ...any) *issuers.Error {
	return &issuers.Error{Kind: issuers.Refused, Detail: fmt.Sprintf(format, args...)}
}

func tooLate(detail string) *issuers.Error {
	return &issuers.Error{Kind: issuers.TooLate, Detail: detail + "; nothing was asked of GitHub"}
}
