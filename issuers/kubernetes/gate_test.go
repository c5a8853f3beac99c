package kubernetes_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// gate stands between an issuer and its API server. The first request of a method
// to a path with some end is held, also when its client goes away, until it is
// released; then it is delivered, and its answer told.
type gate struct {
	server    *httptest.Server
	to        string
	client    *http.Client
	method    string
	suffix    string
	once      sync.Once
	held      chan struct{} // closed when the request is here
	free      chan struct{} // closed by release
	delivered chan int      // the status of its answer
	accepts   atomic.Bool   // answers who a token is of, whatever the server says
	mu        sync.Mutex
	seen      []string // all requests, in order
	bearers   []string // and what they brought
}

func newGate(t testing.TB, f *fixture, method, suffix string) (*fixture, *gate) {
	t.Helper()
	cert, key, err := f.server.ClientCertificate("gate")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(f.server.CAPEM))
	g := &gate{
		to: "https://" + f.server.Address(), method: method, suffix: suffix, held: make(chan struct{}), free: make(chan struct{}), delivered: make(chan int, 1),
		client: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}},
	}
	g.server = httptest.NewUnstartedServer(g)
	g.server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	g.server.StartTLS()
	t.Cleanup(func() {
		g.release()
		g.server.Close()
		g.client.CloseIdleConnections()
	})
	return f.with(map[string]any{"address": g.server.URL}), g
}

func (g *gate) release() { g.once.Do(func() { close(g.free) }) }

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	g.mu.Lock()
	g.seen = append(g.seen, r.Method+" "+r.URL.Path)
	g.bearers = append(g.bearers, strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
	hold := g.suffix != "" && r.Method == g.method && strings.HasSuffix(r.URL.Path, g.suffix)
	select {
	case <-g.held:
		hold = false
	default:
		if hold {
			close(g.held)
		}
	}
	g.mu.Unlock()
	if hold {
		<-g.free
	}
	if g.accepts.Load() && strings.HasSuffix(r.URL.Path, "/selfsubjectreviews") {
		_, _ = io.WriteString(w, `{"status":{"userInfo":{"username":"somebody"}}}`)
		return
	}
	// the client's end is not the request's: it is on its way
	req, err := http.NewRequestWithContext(context.WithoutCancel(r.Context()), r.Method, g.to+r.URL.RequestURI(), bytes.NewReader(body))
	if err != nil {
		return
	}
	req.Header = r.Header.Clone()
	answer, err := g.client.Do(req)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer func() { _ = answer.Body.Close() }()
	if hold {
		g.delivered <- answer.StatusCode
	}
	w.Header().Set("Content-Type", answer.Header.Get("Content-Type"))
	w.WriteHeader(answer.StatusCode)
	_, _ = io.Copy(w, answer.Body)
}

// requests are those of a method to a path with that end, so far.
func (g *gate) requests(method, suffix string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	for _, s := range g.seen {
		if strings.HasPrefix(s, method+" ") && strings.HasSuffix(s, suffix) {
			n++
		}
	}
	return n
}

func (g *gate) waitHeld(t testing.TB) {
	t.Helper()
	select {
	case <-g.held:
	case <-t.Context().Done():
		t.Fatal("the request was never sent")
	}
}

func (g *gate) answer(t testing.TB) int {
	t.Helper()
	select {
	case status := <-g.delivered:
		return status
	case <-t.Context().Done():
		t.Fatal("the server never answered")
		return 0
	}
}
