package api_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker/api"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/identity"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/keys"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// logBuffer collects log lines from many goroutines.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// testNode is a real TLS server over fakes.
type testNode struct {
	url    string
	broker *fakeBroker
	node   *fakeNode
	server *api.Server
	logs   *logBuffer
	addr   string
	done   chan error
}

// serverCert is self-signed, for 127.0.0.1 and localhost.
func serverCert(t testing.TB) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mayfly test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"localhost", "leader"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	leaf, err := x509.ParseCertificate(der)
	must(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, pool
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// testCluster is nodes that share sessions; the first one leads.
type testCluster struct {
	*cluster
	nodes []*testNode
	roots *x509.CertPool
	cert  tls.Certificate
}

type option func(*api.Config)

// start runs n nodes. Their external URLs are those of all of them.
func start(t testing.TB, n int, options ...option) *testCluster {
	t.Helper()
	cert, roots := serverCert(t)
	tc := &testCluster{cluster: &cluster{sessions: map[string]ledger.Session{}}, roots: roots, cert: cert}
	var listeners []net.Listener
	var urls []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		listeners = append(listeners, l)
		urls = append(urls, "https://"+l.Addr().String())
	}
	tc.leader, tc.leadURL = "node0", urls[0]
	for i, l := range listeners {
		tc.nodes = append(tc.nodes, tc.startNode(t, i, l, urls, options))
	}
	if n > 1 {
		tc.joinPorts(t)
	}
	return tc
}

func (tc *testCluster) startNode(t testing.TB, i int, l net.Listener, urls []string, options []option) *testNode {
	t.Helper()
	name := "node" + string(rune('0'+i))
	v, err := identity.NewVerifier(identity.VerifierConfig{ExternalURLs: urls, Nonces: identity.NewNonces(name)})
	must(t, err)
	n := &testNode{url: urls[i], addr: l.Addr().String(), logs: &logBuffer{}, done: make(chan error, 1),
		broker: &fakeBroker{c: tc.cluster, verifier: v}, node: &fakeNode{c: tc.cluster, name: name}}
	certs, err := api.NewCertificates(func() (tls.Certificate, error) { return tc.cert, nil })
	must(t, err)
	cfg := api.Config{
		Node: n.node,
		Engine: func() (api.Broker, error) {
			if n.node.isSealed() {
				return nil, fault.New(fault.Unavailable, "sealed", "This node is sealed.")
			}
			return n.broker, nil
		},
		ExternalURLs: urls, Certificates: certs, Version: "test",
		Logger: slog.New(slog.NewJSONHandler(n.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Clock:  func() time.Time { return now },
	}
	for _, o := range options {
		o(&cfg)
	}
	n.server, err = api.New(cfg)
	must(t, err)
	go func() { n.done <- n.server.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = n.server.Shutdown(ctx)
		<-n.done
	})
	return n
}

// joinPorts gives every node a cluster port on mutual TLS, and everybody a
// transport to the first one's.
func (tc *testCluster) joinPorts(t testing.TB) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	srv := &http.Server{Handler: tc.nodes[0].server.Forwarded(), ReadHeaderTimeout: 5 * time.Second, TLSConfig: &tls.Config{
		Certificates: []tls.Certificate{tc.cert}, ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS13,
	}}
	done := make(chan error, 1)
	go func() { done <- srv.ServeTLS(l, "", "") }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	tr := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
		},
		TLSClientConfig: &tls.Config{RootCAs: tc.roots, Certificates: []tls.Certificate{tc.cert}, ServerName: "leader", MinVersion: tls.VersionTLS13},
	}
	t.Cleanup(tr.CloseIdleConnections)
	for _, n := range tc.nodes {
		n.node.transport = tr
	}
}

// one runs a single node.
func one(t testing.TB, options ...option) (*testCluster, *testNode) {
	t.Helper()
	tc := start(t, 1, options...)
	return tc, tc.nodes[0]
}

// client is a caller with a key, a certificate of it, and a session.
type client struct {
	t     testing.TB
	key   *keys.Key
	cert  tls.Certificate
	http  *http.Client
	token string
	nonce string
}

const sesame = "mfs_sesame-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

// newClient opens a session bound as told ("dpop", "mtls" or "bearer").
func (tc *testCluster) newClient(t testing.TB, token, binding string) *client {
	t.Helper()
	k, err := keys.Generate(keys.P256)
	must(t, err)
	cert, err := k.Certificate("client", time.Now(), time.Hour)
	must(t, err)
	c := &client{t: t, key: k, cert: cert, token: token}
	conf := &tls.Config{RootCAs: tc.roots, MinVersion: tls.VersionTLS13}
	thumb := k.Thumbprint()
	if binding == "mtls" {
		conf.Certificates = []tls.Certificate{cert}
		thumb = keys.CertificateThumbprint(cert.Leaf)
	}
	tr := &http.Transport{TLSClientConfig: conf, MaxIdleConnsPerHost: 64}
	t.Cleanup(tr.CloseIdleConnections)
	c.http = &http.Client{Transport: tr, Timeout: 20 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	if token != "" {
		tc.mu.Lock()
		tc.sessions[token] = ledger.Session{ID: "ses_1", Principal: "human:ann", Binding: binding, Thumbprint: thumb}
		tc.mu.Unlock()
	}
	return c
}

// reply is an answer that has been read.
type reply struct {
	status int
	header http.Header
	body   []byte
}

func (r reply) problem(t testing.TB) wire.Problem {
	t.Helper()
	var p wire.Problem
	if err := json.Unmarshal(r.body, &p); err != nil {
		t.Fatalf("%d %s is no problem document: %v", r.status, r.body, err)
	}
	return p
}

// request builds an unsigned request.
func (c *client) request(method, url, body string) *http.Request {
	c.t.Helper()
	var in io.Reader
	if body != "" {
		in = strings.NewReader(body)
	}
	r, err := http.NewRequest(method, url, in)
	must(c.t, err)
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	return r
}

// sign adds the token and a proof for the request as it is.
func (c *client) sign(r *http.Request) *http.Request {
	c.t.Helper()
	proof, err := c.key.DPoP(r.Method, r.URL.String(), c.nonce, c.token, now)
	must(c.t, err)
	if c.token != "" {
		r.Header.Set("Authorization", "DPoP "+c.token)
	}
	r.Header.Set("DPoP", proof)
	return r
}

// send sends r as it is.
func (c *client) send(r *http.Request) reply {
	c.t.Helper()
	resp, err := c.http.Do(r)
	must(c.t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	must(c.t, err)
	return reply{resp.StatusCode, resp.Header, body}
}

// fresh fetches this node's nonce, as a client learns it from any answer.
func (c *client) fresh(n *testNode) *client {
	c.t.Helper()
	c.nonce = c.send(c.request("GET", n.url+"/api/v1/sys/status", "")).header.Get("DPoP-Nonce")
	if c.nonce == "" {
		c.t.Fatal("no DPoP-Nonce on an ordinary answer")
	}
	return c
}

// do signs and sends to n with n's nonce.
func (c *client) do(n *testNode, method, path, body string) reply {
	c.t.Helper()
	c.fresh(n)
	return c.send(c.sign(c.request(method, n.url+"/api/v1"+path, body)))
}

// refused checks a refusal in full: status, code, media type and shape.
func refused(t testing.TB, r reply, status int, code string) wire.Problem {
	t.Helper()
	if r.status != status || r.header.Get("Content-Type") != "application/problem+json" {
		t.Fatalf("got %d %s %s; want %d %s", r.status, r.header.Get("Content-Type"), r.body, status, code)
	}
	p := r.problem(t)
	if p.Code != code || p.Status != status || p.Type != "about:blank" || p.Title == "" || p.Detail == "" {
		t.Fatalf("problem %+v; want code %s, status %d, type, title and detail", p, code, status)
	}
	return p
}

// okay checks a success and decodes it.
func okay(t testing.TB, r reply, out any) {
	t.Helper()
	if r.status != http.StatusOK && r.status != http.StatusNoContent {
		t.Fatalf("got %d %s", r.status, r.body)
	}
	if out != nil {
		must(t, json.Unmarshal(r.body, out))
	}
}

// eventually polls until ok holds: a log line is written after its answer.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(5 * time.Second); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not in 5 s: %s", what)
		}
	}
}
