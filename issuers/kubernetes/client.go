package kubernetes

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
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mayfly-broker/mayfly/secret"
)

// What an answer is asked as. Metadata alone is asked for wherever that is enough:
// then the contents of other people's Secrets never reach the broker.
const (
	asObject   = "application/json"
	asMetadata = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
	asList     = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
)

// client speaks to one API server over HTTP/1.1: each connection carries one
// request, so that one that hangs holds up no other. Safe for concurrent use.
type client struct {
	http   *http.Client
	bare   *http.Client // without the broker's certificate, to speak as somebody else
	server url.URL
	login  login
	closed atomic.Bool
}

// login is how the broker proves who it is, beside a client certificate.
type login struct {
	token secret.Text
	file  string // read for each request: kubelet replaces it
}

func newClient(s spec, ca string, secrets map[string]secret.Text, connections int) (*client, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: s.TLS.ServerName}
	if ca != "" {
		conf.RootCAs = x509.NewCertPool()
		conf.RootCAs.AppendCertsFromPEM([]byte(ca)) // readCA looked
	}
	l := login{token: secrets[SecretToken], file: s.TokenFile}
	switch {
	case s.ClientCertificate != "":
		pair, err := tls.X509KeyPair([]byte(s.ClientCertificate), []byte(secrets[SecretClientKey].Reveal()))
		if err != nil {
			return nil, errors.New("kubernetes: client_certificate and the secret client_key are not a pair in PEM")
		}
		conf.Certificates = []tls.Certificate{pair}
		l = login{}
	case l.file != "":
	case l.token.IsZero():
		return nil, errors.New("kubernetes: how does the broker log in? the target has neither the secret token, nor token_file, nor client_certificate")
	default:
		if _, err := l.bearer(); err != nil {
			return nil, fmt.Errorf("kubernetes: %w", err)
		}
	}
	c := &client{server: s.server, login: l, http: connect(conf, connections)}
	if c.bare = c.http; len(conf.Certificates) > 0 {
		without := conf.Clone()
		without.Certificates = nil
		c.bare = connect(without, connections)
	}
	return c, nil
}

func connect(conf *tls.Config, connections int) *http.Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Client{
		Transport: &http.Transport{
			DialContext:         (&net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}).DialContext,
			TLSClientConfig:     conf,
			TLSHandshakeTimeout: dialTimeout,
			MaxConnsPerHost:     connections, MaxIdleConnsPerHost: connections, IdleConnTimeout: idleTime,
			DisableCompression: true, // the bound on an answer is a bound on what is read
			Protocols:          protocols,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func (l login) bearer() (string, error) {
	text := l.token.Reveal()
	if l.file != "" {
		b, err := readBounded(l.file, maxTokenFile)
		if err != nil {
			return "", fmt.Errorf("token_file: %w", err)
		}
		text = string(b)
	}
	text = strings.TrimSpace(text)
	if text == "" || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", errors.New("the broker's token is empty, or holds spaces or control characters")
	}
	return text, nil
}

func (c *client) close() {
	c.closed.Store(true)
	c.http.CloseIdleConnections()
	c.bare.CloseIdleConnections()
}

// call is one request.
type call struct {
	method, path string
	query        url.Values
	accept       string // asObject when empty
	body         any
	as           secret.Text // another bearer token than the broker's own
	limit        int64       // bytes of the answer; maxAnswer when 0
}

// do sends a call and decodes a 2xx answer into `into`, if that is not nil. What
// the server refuses for now (429) is sent again until ctx ends. The error is a
// *failure.
func (c *client) do(ctx context.Context, x call, into any) error {
	for {
		err := c.once(ctx, x, into)
		var f *failure
		if !errors.As(err, &f) || f.status != http.StatusTooManyRequests {
			return err
		}
		t := time.NewTimer(f.retryAfter)
		select {
		case <-ctx.Done():
			t.Stop()
			return err
		case <-t.C:
		}
	}
}

func (c *client) once(ctx context.Context, x call, into any) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if c.closed.Load() {
		return &failure{what: x, err: errors.New("the issuer is closed")}
	}
	var sent atomic.Bool
	req, err := c.request(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { sent.Store(true) }}), x)
	if err != nil {
		return &failure{what: x, err: err}
	}
	by := c.http
	if !x.as.IsZero() {
		by = c.bare
	}
	answer, err := by.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // without the address, which says nothing new
		}
		return &failure{what: x, sent: sent.Load(), err: err}
	}
	defer func() { _ = answer.Body.Close() }()
	limit := x.limit
	if limit == 0 {
		limit = maxAnswer
	}
	text, err := io.ReadAll(io.LimitReader(answer.Body, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = fmt.Errorf("an answer of more than %d bytes", limit)
	}
	if err != nil {
		return &failure{what: x, sent: true, err: err}
	}
	if answer.StatusCode < 200 || answer.StatusCode > 299 {
		return refusal(x, answer, text)
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(text, into); err != nil {
		return &failure{what: x, sent: true, err: errors.New("the answer is not the JSON that was asked for")} // it may hold a token
	}
	return nil
}

func (c *client) request(ctx context.Context, x call) (*http.Request, error) {
	to := c.server
	to.Path += x.path
	if to.RawPath = ""; strings.Contains(x.path, "%") {
		plain, err := url.PathUnescape(to.Path)
		if err != nil {
			return nil, err
		}
		to.RawPath, to.Path = to.Path, plain
	}
	to.RawQuery = x.query.Encode()
	var body io.Reader
	if x.body != nil {
		b, err := json.Marshal(x.body)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, x.method, to.String(), body)
	if err != nil {
		return nil, err
	}
	accept := x.accept
	if accept == "" {
		accept = asObject
	}
	req.Header.Set("Accept", accept)
	req.Header.Set("User-Agent", fieldManager)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	token := x.as.Reveal()
	if token == "" && c.login != (login{}) {
		if token, err = c.login.bearer(); err != nil {
			return nil, err
		}
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	return req, nil
}

// refusal reads a Status of the API server (meta.k8s.io/v1); a proxy before it
// answers in its own words, of which nothing is kept.
func refusal(x call, answer *http.Response, text []byte) *failure {
	f := &failure{what: x, sent: true, status: answer.StatusCode}
	var status struct {
		Kind    string `json:"kind"`
		Reason  string `json:"reason"`
		Message string `json:"message"`
		Details struct {
			Kind  string `json:"kind"`
			After int    `json:"retryAfterSeconds"`
		} `json:"details"`
	}
	if json.Unmarshal(text, &status) == nil && status.Kind == "Status" {
		f.reason, f.kind, f.message = status.Reason, status.Details.Kind, plain(status.Message)
	}
	if answer.StatusCode == http.StatusTooManyRequests {
		after := status.Details.After
		if n, err := strconv.Atoi(answer.Header.Get("Retry-After")); err == nil {
			after = n
		}
		f.retryAfter = throttledPause
		if after > 0 {
			f.retryAfter = min(time.Duration(after)*time.Second, longestThrottledPause)
		}
	}
	return f
}

// plain makes one bounded line of printable characters of a server's words.
func plain(s string) string {
	s = strings.ToValidUTF8(s, "?")
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || !strconv.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	if len(s) > maxMessage {
		s = strings.ToValidUTF8(s[:maxMessage], "") + "…"
	}
	return s
}
