// Package clienttest is a cluster for tests of what speaks to one: nodes with
// real TLS from a CA of their own, that check proofs as RFC 9449 says, keep
// sessions, tasks and leases in memory, and fail when they are told to.
//
// It is no broker: it decides nothing and mints nothing real. It must know
// nothing of the broker's code, so that agreement between the two is a result
// and not a premise.
package clienttest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/client/wire"
)

// Issuer is the cluster's issuer identifier.
const Issuer = "https://mayfly.test"

// Call is a request that reached the cluster's handlers, proofs and all.
type Call struct {
	Node       int
	Method     string
	Path       string // with query
	Idem       string
	Reason     string
	Principal  string // of the session; "" without one
	Body       json.RawMessage
	Proofs     bool // came with a DPoP proof
	ClientCert bool // came with a TLS client certificate

	collecting bool // a change that was approved
}

// Failure makes calls fail. The zero value matches every call, for ever.
type Failure struct {
	Node   int    // 0: every node; 1 is the first
	Method string // "" is any
	Prefix string // of the path; "" is any
	Times  int    // 0: until Heal
	// Problem is the answer; with a zero Status the connection is cut instead.
	Problem wire.Problem
	// After lets the handler do its work first: the answer is lost, not the
	// request.
	After bool
}

// Cluster is a running cluster. Its fields must not change once it is used.
type Cluster struct {
	tb testing.TB
	// CAFile is the CA's certificate in PEM; CAHash the SHA-256 of its DER.
	CAFile string
	CAHash [32]byte
	// SessionTTL, LeaseTTL and LeaseMax are the lives of what is opened.
	SessionTTL, LeaseTTL, LeaseMax time.Duration
	// CoSign makes each change of objects wait for approvers.
	CoSign bool

	nodes []*node
	ca    *authority

	mu       sync.Mutex
	changed  *sync.Cond // of grants; over mu
	calls    []Call
	failures []*Failure
	failed   int                              // calls that a failure answered in the handler's place
	routes   map[string]func(Call) (int, any) // by "METHOD /path"
	state    *state
	leader   int // 0: every node serves; else all others answer 421
	lie      string
}

type node struct {
	n      int
	server *httptest.Server
	nonce  string
	seen   map[string]bool // jti of used proofs
}

// New starts a cluster of n nodes. It ends with the test.
func New(tb testing.TB, n int) *Cluster {
	tb.Helper()
	ca := newAuthority(tb)
	c := &Cluster{
		tb: tb, ca: ca, CAHash: sha256.Sum256(ca.cert.Raw), CAFile: filepath.Join(tb.TempDir(), "ca.pem"),
		SessionTTL: 15 * time.Minute, LeaseTTL: time.Hour, LeaseMax: 8 * time.Hour,
		routes: map[string]func(Call) (int, any){}, state: newState(),
	}
	c.changed = sync.NewCond(&c.mu)
	if err := os.WriteFile(c.CAFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw}), 0o600); err != nil {
		tb.Fatal(err)
	}
	for i := range n {
		nd := &node{n: i + 1, nonce: word(), seen: map[string]bool{}}
		nd.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { c.serve(nd, w, r) }))
		nd.server.TLS = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{ca.issue(tb)}, ClientAuth: tls.RequestClientCert}
		nd.server.Config.ErrorLog = quiet()
		nd.server.StartTLS()
		c.nodes = append(c.nodes, nd)
	}
	tb.Cleanup(func() {
		for _, nd := range c.nodes {
			nd.server.Close()
		}
	})
	return c
}

// Addr returns the nodes' addresses as MAYFLY_ADDR has them.
func (c *Cluster) Addr() string {
	var list []string
	for _, nd := range c.nodes {
		list = append(list, nd.server.Listener.Addr().String())
	}
	return strings.Join(list, ",")
}

// Node returns the address of node n, from 1.
func (c *Cluster) Node(n int) string { return c.nodes[n-1].server.Listener.Addr().String() }

// Stop ends node n, from 1: connections to it are refused from now on.
func (c *Cluster) Stop(n int) { c.nodes[n-1].server.Close() }

// Lead makes node n, from 1, the only one that serves: the others answer 421
// with its address. 0 undoes it.
func (c *Cluster) Lead(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leader = n
}

// LeadElsewhere makes every node answer 421 with a Location under url.
func (c *Cluster) LeadElsewhere(url string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leader, c.lie = -1, url
}

// Fail adds a failure.
func (c *Cluster) Fail(f Failure) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failures = append(c.failures, &f)
}

// Heal takes all failures away.
func (c *Cluster) Heal() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failures = nil
}

// Handle answers "METHOD /path" (without query) by fn, which returns status and
// document; a wire.Problem goes out as one.
func (c *Cluster) Handle(pattern string, fn func(Call) (int, any)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.routes[pattern] = fn
}

// Calls returns the calls whose method and path prefix match; "" is any.
func (c *Cluster) Calls(method, prefix string) []Call {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []Call
	for _, k := range c.calls {
		if (method == "" || k.Method == method) && strings.HasPrefix(k.Path, prefix) {
			out = append(out, k)
		}
	}
	return out
}

// Failed returns how many calls a [Failure] answered in the handler's place.
func (c *Cluster) Failed() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failed
}

// EndSessions makes the cluster forget every session.
func (c *Cluster) EndSessions() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state.sessions = map[string]session{}
}

// RotateNonces gives every node a new nonce, as a restart would.
func (c *Cluster) RotateNonces() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, nd := range c.nodes {
		nd.nonce = word()
	}
}

// Accept makes the cluster log token in by method as principal. Audience, where
// given, is compared with what the token asks for: see [Token].
func (c *Cluster) Accept(method, token, principal string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state.evidence[method+" "+token] = principal
}

// Register makes a key known as a principal's.
func (c *Cluster) Register(thumbprint, principal string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state.keys[thumbprint] = principal
}

// Enrolment returns a one-time token for principal that names node 1.
func (c *Cluster) Enrolment(principal string) string {
	token := enrolmentToken(c.CAHash, []string{c.Node(1)})
	c.AcceptEnrolment(token, principal)
	return token
}

// AcceptEnrolment makes a token that was made elsewhere enrol as principal.
func (c *Cluster) AcceptEnrolment(token, principal string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state.enrolments[presented(token)] = principal
}

// Open returns the leases that are open.
func (c *Cluster) Open() []wire.Lease {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []wire.Lease
	for _, l := range c.state.leases {
		if l.State == "open" {
			out = append(out, *l)
		}
	}
	return out
}

// OpenTasks returns the tasks that are open.
func (c *Cluster) OpenTasks() []wire.Task {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []wire.Task
	for _, t := range c.state.tasks {
		if t.State == "open" {
			out = append(out, *t)
		}
	}
	return out
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(tb testing.TB) *authority {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mayfly test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return &authority{cert, key}
}

// issue makes a node's certificate. The chain shows the CA, so that a client
// with its hash can find it.
func (a *authority) issue(tb testing.TB) tls.Certificate {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "node"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		tb.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: key}
}

// quiet drops what the HTTP server says of handshakes that fail on purpose.
func quiet() *log.Logger { return log.New(io.Discard, "", 0) }
