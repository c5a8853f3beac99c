package rabbitmq

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mayfly-broker/mayfly/secret"
)

// Sizes and times of the connections to the management API.
const (
	endLanes    = 4 // kept for withdrawal and upkeep, so that slow mints never starve them (HAZARDS 17)
	dialTimeout = 3 * time.Second
	ioTimeout   = 5 * time.Second  // one answer
	listTimeout = 30 * time.Second // the list of all users
	idleTime    = 30 * time.Second // the server closes at 60 s
	maxAnswer   = 1 << 20          // bytes of one answer
	maxList     = 256 << 20        // bytes of the list of users, which is read as a stream: over a million
)

// api is the management API of one cluster. Every node answers for all.
type api struct {
	bases    []string // https://host:port, in the spec's order
	last     atomic.Int32
	username string
	password secret.Text
	mint     *http.Client
	end      *http.Client
	tls      *tls.Config
	closed   atomic.Bool
}

func newAPI(sp spec, password secret.Text) (*api, error) {
	c, err := sp.config()
	if err != nil {
		return nil, err
	}
	a := &api{username: sp.Admin.Username, password: password, tls: c}
	scheme := "https://"
	if sp.TLS.Mode == tlsDisable {
		scheme = "http://"
	}
	for _, n := range sp.nodes {
		a.bases = append(a.bases, scheme+n)
	}
	a.mint, a.end = newClient(c, sp.MaxConnections), newClient(c, endLanes)
	return a, nil
}

func newClient(c *tls.Config, size int) *http.Client {
	dialer := &net.Dialer{Timeout: dialTimeout}
	return &http.Client{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				conn, err := dialer.DialContext(ctx, network, address)
				if t, ok := conn.(*net.TCPConn); ok {
					// What has not left when the connection is given up, or its process
					// dies, must not arrive later (HAZARDS 8).
					_ = t.SetLinger(0)
				}
				return conn, err
			},
			TLSClientConfig: c, TLSHandshakeTimeout: ioTimeout,
			TLSNextProto:    map[string]func(string, *tls.Conn) http.RoundTripper{}, // HTTP/1.1: one request a connection
			MaxConnsPerHost: size, MaxIdleConnsPerHost: size, IdleConnTimeout: idleTime,
			ExpectContinueTimeout: listTimeout, // longer than any request: a body goes when it is asked for
			DisableCompression:    true, MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func (a *api) close() {
	a.closed.Store(true)
	a.mint.CloseIdleConnections()
	a.end.CloseIdleConnections()
}

// call is one request.
type call struct {
	method string
	path   string // escaped; see at
	body   any    // nil for none
	header string // "Name: value", or empty
	asked  bool   // the body is sent once the server asks for it
	read   func(io.Reader) error
}

// reply is what the server answered.
type reply struct {
	status int
	body   []byte
}

// lost says that no answer came. If sent is false, no byte of the request left.
type lost struct {
	sent bool
	err  error
}

func (l *lost) Error() string { return l.err.Error() }
func (l *lost) Unwrap() error { return l.err }

var errClosed = errors.New("the issuer is closed")

// at is the path of a thing: its words are escaped one by one.
func at(words ...string) string {
	var b strings.Builder
	b.WriteString("/api")
	for _, w := range words {
		b.WriteByte('/')
		b.WriteString(url.PathEscape(w))
	}
	return b.String()
}

// do asks the node that answered last, and goes on to the next only while nothing
// was sent. An error is a *lost.
func (a *api) do(ctx context.Context, client *http.Client, c call) (reply, error) {
	if a.closed.Load() {
		return reply{}, &lost{err: errClosed}
	}
	var body []byte
	if c.body != nil {
		var err error
		if body, err = json.Marshal(c.body); err != nil {
			return reply{}, &lost{err: err}
		}
	}
	first := int(a.last.Load())
	var out *lost
	for i := range a.bases {
		n := (first + i) % len(a.bases)
		r, err := a.ask(ctx, client, a.bases[n], c, body)
		if err == nil {
			a.last.Store(int32(n))
			return r, nil
		}
		if out = err; err.sent || ctx.Err() != nil {
			// a node that hangs is not asked first the next time
			a.last.CompareAndSwap(int32(n), int32((n+1)%len(a.bases)))
			break
		}
	}
	return reply{}, out
}

func (a *api) ask(ctx context.Context, client *http.Client, base string, c call, body []byte) (reply, *lost) {
	timeout := ioTimeout
	if c.read != nil {
		timeout = listTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var sent atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { sent.Store(true) }})
	req, err := http.NewRequestWithContext(ctx, c.method, base+c.path, bytes.NewReader(body))
	if err != nil {
		return reply{}, &lost{err: err}
	}
	req.SetBasicAuth(a.username, a.password.Reveal())
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "mayfly")
	if c.asked {
		req.Header.Set("Expect", "100-continue")
	}
	if name, value, ok := strings.Cut(c.header, ": "); ok {
		req.Header.Set(name, value)
	}
	resp, err := client.Do(req)
	if err != nil {
		return reply{}, &lost{sent.Load(), err}
	}
	defer func() { _ = resp.Body.Close() }()
	r := reply{status: resp.StatusCode}
	if c.read != nil && r.status == http.StatusOK {
		err = c.read(io.LimitReader(resp.Body, maxList))
	} else {
		r.body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
		if len(r.body) > maxAnswer {
			err = fmt.Errorf("the answer has more than %d bytes", maxAnswer)
		}
	}
	if err != nil {
		return reply{}, &lost{true, err}
	}
	return r, nil
}
