package raftstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/raft"
)

func nopLogger() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestJoinRefusals(t *testing.T) {
	c := newCluster(t, 1, nil)
	addrs := []string{c.nodes[0].parts.port.addr.String()}
	good := JoinRequest{Token: "letmein", NodeID: "n2", Addr: "127.0.0.1:1"}
	hash := CAHash(c.ca.Certificate)

	if res, err := Join(testCtx(t), addrs, hash, good); err != nil || string(res.Payload) != "wrapped keyring" || !res.CA.Equal(c.ca.Certificate) {
		t.Fatalf("a good joiner: %+v, %v", res, err)
	}
	bad := good
	bad.Token = "guess"
	if _, err := Join(testCtx(t), addrs, hash, bad); !errors.Is(err, ErrRefused) {
		t.Errorf("wrong token: %v", err)
	}
	bad = good
	bad.NodeID = "../n2"
	if _, err := Join(testCtx(t), addrs, hash, bad); !errors.Is(err, ErrRefused) {
		t.Errorf("bad node id: %v", err)
	}
	bad = good
	bad.Token = strings.Repeat("x", maxJoinBody)
	if _, err := Join(testCtx(t), addrs, hash, bad); !errors.Is(err, ErrRefused) {
		t.Errorf("large body: %v", err)
	}
	if _, err := Join(testCtx(t), nil, hash, good); err == nil {
		t.Error("no address, no error")
	}
}

// The token must not reach a server that is not the pinned cluster's.
func TestJoinerDoesNotShowItsTokenToAnotherCluster(t *testing.T) {
	var mu sync.Mutex
	var tokens []string
	c := newCluster(t, 1, func(cfg *Config) {
		cfg.OnJoin = func(_ context.Context, req JoinRequest) ([]byte, error) {
			mu.Lock()
			defer mu.Unlock()
			tokens = append(tokens, req.Token)
			return nil, nil
		}
	})
	other := newTestCA(t)
	_, err := Join(testCtx(t), []string{c.nodes[0].parts.port.addr.String()}, CAHash(other.Certificate), JoinRequest{Token: "t", NodeID: "n2", Addr: "h:1"})
	mu.Lock()
	defer mu.Unlock()
	if err == nil || len(tokens) > 0 {
		t.Fatalf("tokens seen: %q, %v", tokens, err)
	}
}

func TestFollowerSendsJoinersToTheLeader(t *testing.T) {
	c := newCluster(t, 2, nil)
	n := newNode(t, c, 3)
	n.open()
	c.nodes = append(c.nodes, n)
	follower := c.nodes[1]
	eventually(t, "n1 leads", func() bool {
		_, addr, ok := follower.Leader()
		return ok && addr == c.nodes[0].parts.port.addr.String()
	})
	addrs := []string{"127.0.0.1:1", follower.parts.port.addr.String()} // the first one does not answer
	res, err := Join(testCtx(t), addrs, CAHash(c.ca.Certificate), JoinRequest{Token: "letmein", NodeID: "n3", Addr: n.parts.port.addr.String()})
	if err != nil || res.Leader != c.nodes[0].parts.port.addr.String() {
		t.Fatalf("%+v, %v", res, err)
	}
	if err := n.JoinCluster(testCtx(t), addrs); err != nil {
		t.Fatal(err)
	}
	c.set("a", "1")
	n.await("a", "1")
}

func TestOnlyAdmittedNodesBecomeVoters(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := newNode(t, c, 2)
	n.open()
	addrs := []string{c.nodes[0].parts.port.addr.String()}
	if err := n.JoinCluster(testCtx(t), addrs); !errors.Is(err, ErrRefused) {
		t.Fatalf("not admitted: %v", err)
	}
	if _, err := Join(testCtx(t), addrs, CAHash(c.ca.Certificate), JoinRequest{Token: "letmein", NodeID: "n2", Addr: "127.0.0.1:1"}); err != nil {
		t.Fatal(err)
	}
	n.parts.port.addr = "127.0.0.1:1" // unreachable: would cost the cluster its majority
	if err := n.JoinCluster(testCtx(t), addrs); !errors.Is(err, ErrRefused) {
		t.Fatalf("unreachable: %v", err)
	}
	if got := len(c.nodes[0].Peers()); got != 1 {
		t.Fatalf("%d members", got)
	}
}

// TestJoinerOutlivesAnElection: a leader that loses its office while it makes a node a
// voter has refused nobody.
func TestJoinerOutlivesAnElection(t *testing.T) {
	for _, lost := range []error{ErrNotLeader, ErrIndeterminate} {
		var asked atomic.Int32
		c := newCluster(t, 1, func(cfg *Config) {
			cfg.OnVoter = func(context.Context, string, string) error {
				if asked.Add(1) == 1 {
					return fmt.Errorf("lost: %w", lost)
				}
				return nil
			}
		})
		n := newNode(t, c, 2)
		n.open()
		if err := n.JoinCluster(testCtx(t), []string{c.nodes[0].parts.port.addr.String()}); err != nil || asked.Load() != 2 {
			t.Errorf("%v: %v, asked %d times", lost, err, asked.Load())
		}
	}
}

func TestDirectoryIsLocked(t *testing.T) {
	c := newCluster(t, 1, nil)
	cfg := c.nodes[0].cfg
	cfg.Listen = "127.0.0.1:0"
	if s, err := Open(cfg, &testMachine{}); !errors.Is(err, ErrLocked) {
		if s != nil {
			_ = s.Close()
		}
		t.Fatalf("opened twice: %v", err)
	}
}

func FuzzReadStream(f *testing.F) {
	sealer := newTestSealer(f, 1)
	var buf bytes.Buffer
	w, err := newStreamWriter(&buf, sealer, position{7, 2}, 0, []byte("pre"))
	if err != nil {
		f.Fatal(err)
	}
	if err := errors.Join(w.put("kv", []byte("k"), []byte("v")), w.finish()); err != nil {
		f.Fatal(err)
	}
	f.Add(buf.Bytes())
	f.Add(buf.Bytes()[:streamHeaderSize])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, _ = CheckBackup(bytes.NewReader(raw))
		h, err := readStream(bytes.NewReader(raw), openSealer{}, func(streamHeader) error { return nil }, func(b string, k, v []byte) error {
			return checkEntry(b, len(k), len(v))
		})
		if err == nil && len(h.preamble) > MaxPreamble {
			t.Fatal("a preamble beyond the limit")
		}
	})
}

// openSealer opens everything: the decoder must stand on its own behind it.
type openSealer struct{}

func (openSealer) Seal(_, plain []byte) []byte           { return plain }
func (openSealer) Open(_, sealed []byte) ([]byte, error) { return bytes.Clone(sealed), nil }

func FuzzDecodeJoin(f *testing.F) {
	f.Add([]byte(`{"token":"t","node_id":"n2","addr":"h:1"}`))
	f.Add([]byte(`{"token":1}`))
	f.Add([]byte(`{"node_id":"n","addr":"h:1","x":2}{}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		req, err := decodeJoin(bytes.NewReader(raw))
		if err == nil && (!nodeIDPattern.MatchString(req.NodeID) || checkAddr(req.Addr) != nil) {
			t.Fatalf("accepted %+v", req)
		}
	})
}

func FuzzFrames(f *testing.F) {
	b := beacon{term: 1, seq: 2, index: 3, asOf: 4}
	a := answer{term: 1, seq: 2, applied: 3, digest: []byte("root")}
	f.Add(b.encode())
	f.Add(a.encode())
	f.Fuzz(func(t *testing.T, raw []byte) {
		if got, err := readBeacon(bytes.NewReader(raw)); err == nil && !bytes.Equal(got.encode(), raw[:beaconSize]) {
			t.Fatal("a beacon does not encode as it was read")
		}
		if got, err := readAnswer(bytes.NewReader(raw)); err == nil && len(got.digest) > MaxDigest {
			t.Fatal("a digest beyond the limit")
		}
	})
}

func FuzzDecodeEntry(f *testing.F) {
	f.Add([]byte{0, 3, 'a', 'b', 'c', 'x'})
	f.Add([]byte{0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, raw []byte) {
		var e raft.Log
		if err := decodeEntry(raw, &e); err == nil && len(e.Data)+len(e.Extensions) > len(raw) {
			t.Fatal("more came out than went in")
		}
	})
}
