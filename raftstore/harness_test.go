package raftstore

import (
	"bytes"
	"context"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/crypto/chacha20poly1305"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		runChild()
		return
	}
	goleak.VerifyTestMain(m)
}

// testSealer is XChaCha20-Poly1305 with one key.
type testSealer struct{ aead cipher.AEAD }

func newTestSealer(t testing.TB, key byte) *testSealer {
	t.Helper()
	aead, err := chacha20poly1305.NewX(bytes.Repeat([]byte{key}, chacha20poly1305.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	return &testSealer{aead}
}

func (s *testSealer) Seal(place, plaintext []byte) []byte {
	out := make([]byte, chacha20poly1305.NonceSizeX, chacha20poly1305.NonceSizeX+len(plaintext)+chacha20poly1305.Overhead)
	_, _ = rand.Read(out) // never fails
	return s.aead.Seal(out, out, plaintext, place)
}

func (s *testSealer) Open(place, sealed []byte) ([]byte, error) {
	if len(sealed) < chacha20poly1305.NonceSizeX {
		return nil, errors.New("short")
	}
	return s.aead.Open(nil, sealed[:chacha20poly1305.NonceSizeX], sealed[chacha20poly1305.NonceSizeX:], place)
}

// testMachine understands "set K V", "del K", "get K" and "bad".
type testMachine struct {
	mu    sync.Mutex
	block chan struct{} // Apply waits until it is closed, when set
	calls int
}

var errBad = errors.New("undecodable command")

func (m *testMachine) Apply(tx *Tx, command []byte) (any, error) {
	m.mu.Lock()
	m.calls++
	block := m.block
	m.mu.Unlock()
	if block != nil {
		<-block
	}
	f := bytes.SplitN(command, []byte(" "), 3)
	switch string(f[0]) {
	case "set":
		tx.Put("kv", f[1], f[2])
		return "ok", nil
	case "del":
		tx.Delete("kv", f[1])
		return "ok", nil
	case "get":
		return string(tx.Get("kv", f[1])), nil
	case "refuse":
		return "refused", nil
	}
	return nil, errBad
}

func (m *testMachine) stick() (release func()) {
	ch := make(chan struct{})
	m.mu.Lock()
	defer m.mu.Unlock()
	m.block = ch
	return sync.OnceFunc(func() {
		m.mu.Lock()
		m.block = nil
		m.mu.Unlock()
		close(ch)
	})
}

func (m *testMachine) applied() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.calls
}

func newTestCA(t testing.TB) Authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test cluster"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return Authority{Certificate: cert, Signer: key}
}

// testClock is a wall clock that can be off.
type testClock struct {
	mu  sync.Mutex
	off time.Duration
}

func (c *testClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.off)
}

func (c *testClock) set(off time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.off = off
}

// node is one node of a test cluster; it can be stopped and opened again.
type node struct {
	t       testing.TB
	cfg     Config
	machine *testMachine
	clock   *testClock
	*Store
}

func (n *node) open() {
	n.t.Helper()
	s, err := Open(n.cfg, n.machine)
	if err != nil {
		n.t.Fatalf("open %s: %v", n.cfg.NodeID, err)
	}
	n.Store = s
	n.cfg.Listen = s.parts.port.addr.String() // the same port next time
	n.cfg.Bootstrap = false
}

func (n *node) close() {
	if n.Store == nil {
		return
	}
	if err := n.Close(); err != nil {
		n.t.Errorf("close %s: %v", n.cfg.NodeID, err)
	}
	n.Store = nil
}

type cluster struct {
	t      testing.TB
	ca     Authority
	sealer *testSealer
	adjust func(*Config)
	timing Timing
	nodes  []*node
}

// steady bears with a silence of almost a second before there is another leader,
// where a store by itself bears with a quarter of one: on a busy machine, a test
// that asks the leader which it found a moment ago still finds it leading.
var steady = Timing{Heartbeat: time.Second, Election: time.Second, LeaderLease: 900 * time.Millisecond}

func newNode(t testing.TB, c *cluster, i int) *node {
	t.Helper()
	clock := &testClock{}
	n := &node{t: t, machine: &testMachine{}, clock: clock, cfg: Config{
		NodeID: fmt.Sprintf("n%d", i), Dir: filepath.Join(t.TempDir(), fmt.Sprintf("n%d", i)), Listen: "127.0.0.1:0",
		CA: c.ca, Sealer: c.sealer, Bootstrap: i == 1, Clock: clock.now,
		Logger: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn})),
		OnJoin: func(_ context.Context, req JoinRequest) ([]byte, error) {
			if req.Token != "letmein" {
				return nil, errors.New("unknown token")
			}
			return []byte("wrapped keyring"), nil
		},
		Disk: Disk{Reserve: 1 << 20, Poll: 20 * time.Millisecond}, Timing: c.timing,
	}}
	if c.adjust != nil {
		c.adjust(&n.cfg)
	}
	t.Cleanup(n.close)
	return n
}

// testWriter logs to t; verbose runs only, so that failures are readable.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	if testing.Verbose() && os.Getenv("RAFTSTORE_TEST_LOG") != "" {
		_, _ = os.Stderr.WriteString(w.t.Name() + " " + string(p))
	}
	return len(p), nil
}

func newCluster(t testing.TB, size int, adjust func(*Config)) *cluster {
	t.Helper()
	c := &cluster{t: t, ca: newTestCA(t), sealer: newTestSealer(t, 1), adjust: adjust}
	if size > 1 { // one alone has nobody to lose
		c.timing = steady
	}
	for i := 1; i <= size; i++ {
		n := newNode(t, c, i)
		n.open()
		c.nodes = append(c.nodes, n)
		if i == 1 {
			c.leader()
			continue
		}
		c.join(n)
	}
	return c
}

func (c *cluster) join(n *node) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var addrs []string
	for _, other := range c.nodes {
		if other.Store != nil && other != n {
			addrs = append(addrs, other.parts.port.addr.String())
		}
	}
	req := JoinRequest{Token: "letmein", NodeID: n.cfg.NodeID, Addr: n.parts.port.addr.String()}
	res, err := Join(ctx, addrs, CAHash(c.ca.Certificate), req)
	if err != nil || string(res.Payload) != "wrapped keyring" {
		c.t.Fatalf("join: %q, %v", res.Payload, err)
	}
	if err := n.JoinCluster(ctx, addrs); err != nil {
		c.t.Fatalf("become a voter: %v", err)
	}
}

// eventually polls until cond holds.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(15 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("never happened: %s", what)
		}
	}
}

func (c *cluster) leader() *node {
	c.t.Helper()
	var leader *node
	eventually(c.t, "a leader", func() bool {
		for _, n := range c.nodes {
			if n.Store != nil && n.IsLeader() {
				leader = n
				return true
			}
		}
		return false
	})
	return leader
}

func (c *cluster) followers() []*node {
	leader := c.leader()
	var out []*node
	for _, n := range c.nodes {
		if n.Store != nil && n != leader {
			out = append(out, n)
		}
	}
	return out
}

func testCtx(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// set commits key = value, whoever leads.
func (c *cluster) set(key, value string) {
	c.t.Helper()
	ctx := testCtx(c.t)
	for {
		_, err := c.leader().Propose(ctx, Proposal{Command: []byte("set " + key + " " + value)})
		if err == nil {
			return
		}
		if ctx.Err() != nil || !errors.Is(err, ErrNotLeader) && !errors.Is(err, ErrIndeterminate) {
			c.t.Fatalf("set %s: %v", key, err)
		}
	}
}

func (n *node) get(key string) string {
	n.t.Helper()
	var v []byte
	if err := n.View(func(tx *Tx) error { v = tx.Get("kv", []byte(key)); return nil }); err != nil {
		n.t.Fatalf("get %s on %s: %v", key, n.cfg.NodeID, err)
	}
	return string(v)
}

func (n *node) await(key, value string) {
	n.t.Helper()
	eventually(n.t, n.cfg.NodeID+" has "+key+"="+value, func() bool { return n.get(key) == value })
}

func freePort(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	return ln.Addr().String()
}

func okHandler(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "%s got %s from %s", name, r.URL.Path, PeerID(r))
	})
}

func has(s, sub string) bool { return strings.Contains(s, sub) }
