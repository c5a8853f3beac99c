package raftstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestLaggingFollowerInstallsASnapshot(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) {
		cfg.Timing.TrailingLogs = 1
		cfg.Hooks.Preamble = func() ([]byte, Sealer, error) { return []byte("wrapped keyring"), cfg.Sealer, nil }
	})
	behind := c.followers()[0]
	c.set("first", "1")
	behind.await("first", "1")
	behind.close()
	var preamble []byte
	behind.cfg.Hooks.OnPreamble = func(p []byte) error { preamble = bytes.Clone(p); return nil }
	for i := range 40 {
		c.set(fmt.Sprintf("k%d", i), strings.Repeat("v", 20_000))
	}
	c.set("first", "2")
	for _, n := range c.nodes {
		if n.Store != nil {
			n.takeSnapshot()
		}
	}
	behind.machine = &testMachine{}
	behind.open()
	behind.await("first", "2")
	if got := behind.get("k39"); len(got) != 20_000 {
		t.Fatalf("k39 has %d bytes", len(got))
	}
	if behind.machine.applied() >= 40 {
		t.Fatal("the follower replayed the log instead")
	}
	if string(preamble) != "wrapped keyring" { // HAZARDS 22: keys come before what they open
		t.Fatalf("preamble %q", preamble)
	}
	c.set("after", "1")
	behind.await("after", "1")
	behind.close()
	behind.open()
	behind.await("after", "1")
}

func TestHazard22SnapshotUnderUnknownKeysIsRefusedUntilTheyAreLearnt(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.set("a", "1")
	saved := c.nodes[0].backup()
	other := &cluster{t: t, ca: newTestCA(t), sealer: newTestSealer(t, 2)}
	n := newNode(t, other, 1)
	other.nodes = []*node{n}
	n.open()
	other.leader()
	if _, err := n.Restore(testCtx(t), bytes.NewReader(saved)); !errors.Is(err, ErrSealBroken) {
		t.Fatalf("restore under another key: %v", err)
	}
	n.close()
	ring := &learningSealer{own: other.sealer}
	n.cfg.Sealer = ring
	n.cfg.Hooks.OnPreamble = func([]byte) error { ring.learnt = c.sealer; return nil }
	n.open()
	other.leader()
	if _, err := n.Restore(testCtx(t), bytes.NewReader(saved)); err != nil || n.get("a") != "1" {
		t.Fatalf("restore with the keys learnt: %v", err)
	}
}

// A key that turns while a snapshot is written must not seal the rest of it: the
// preamble has not heard of that key.
func TestHazard22ASnapshotKeepsToTheKeysOfItsPreamble(t *testing.T) {
	var turned atomic.Bool
	old := newTestSealer(t, 1)
	c := newCluster(t, 1, func(cfg *Config) {
		cfg.Sealer = &turningSealer{old: old, next: newTestSealer(t, 2), turned: &turned}
		cfg.Hooks.Preamble = func() ([]byte, Sealer, error) {
			turned.Store(true) // right after the keyring was looked at
			return []byte("wrapped"), old, nil
		}
	})
	for i := range 3 {
		c.set(fmt.Sprintf("k%d", i), strings.Repeat("v", chunkTarget/2))
	}
	saved := c.nodes[0].backup()
	puts := 0
	_, err := readStream(bytes.NewReader(saved), old, func(streamHeader) error { return nil }, func(string, []byte, []byte) error { puts++; return nil })
	if err != nil || puts < 3 {
		t.Fatalf("%d records, %v", puts, err)
	}
}

func TestASnapshotOfAStoreThatIsSealedMeanwhileFails(t *testing.T) {
	c := newCluster(t, 1, func(cfg *Config) {
		cfg.Hooks.Preamble = func() ([]byte, Sealer, error) { return []byte("wrapped"), closedSealer{cfg.Sealer}, nil }
	})
	c.set("a", "1")
	var buf bytes.Buffer
	if err := c.nodes[0].Snapshot(testCtx(t), &buf); err == nil {
		t.Fatal("a snapshot that holds nothing passes for one")
	}
}

// closedSealer is sealed.
type closedSealer struct{ Sealer }

func (closedSealer) Seal(_, _ []byte) []byte { return nil }

// turningSealer seals by the next key once it has turned, and opens both.
type turningSealer struct {
	old, next *testSealer
	turned    *atomic.Bool
}

func (s *turningSealer) Seal(place, plain []byte) []byte {
	if s.turned.Load() {
		return s.next.Seal(place, plain)
	}
	return s.old.Seal(place, plain)
}

func (s *turningSealer) Open(place, sealed []byte) ([]byte, error) {
	plain, err := s.old.Open(place, sealed)
	if err != nil {
		return s.next.Open(place, sealed)
	}
	return plain, err
}

// learningSealer opens with a second key once it has learnt it.
type learningSealer struct{ own, learnt *testSealer }

func (s *learningSealer) Seal(place, plain []byte) []byte { return s.own.Seal(place, plain) }

func (s *learningSealer) Open(place, sealed []byte) ([]byte, error) {
	plain, err := s.own.Open(place, sealed)
	if err != nil && s.learnt != nil {
		return s.learnt.Open(place, sealed)
	}
	return plain, err
}

func TestLeadersWorkEndsWhenItIsDeposed(t *testing.T) {
	c := newCluster(t, 3, nil)
	type event struct {
		node string
		term uint64
		on   bool
	}
	events := make(chan event, 16)
	for _, n := range c.nodes {
		n.Lead(func(ctx context.Context) {
			term, ok := LeadTerm(ctx)
			if !ok {
				t.Error("no term in the work's context")
			}
			events <- event{n.cfg.NodeID, term, true}
			<-ctx.Done()
			if again, _ := LeadTerm(ctx); again != term {
				t.Error("the work's term changed")
			}
			events <- event{n.cfg.NodeID, term, false}
		})
	}
	first := <-events
	old := c.leader()
	if err := old.StepDown(testCtx(t)); err != nil {
		t.Fatal(err)
	}
	for second, ended := (event{}), false; second.node == "" || !ended; {
		e := <-events
		switch {
		case e.node == first.node && !e.on:
			ended = true
		case e.on:
			second = e
			if e.node == first.node || e.term <= first.term {
				t.Fatalf("then led %+v after %+v", e, first)
			}
		}
	}
	if _, err := old.Propose(testCtx(t), Proposal{Command: []byte("set a 1")}); !errors.Is(err, ErrNotLeader) {
		t.Fatalf("deposed: %v", err)
	}
	if err := old.Barrier(testCtx(t)); !errors.Is(err, ErrNotLeader) {
		t.Fatalf("barrier on the deposed: %v", err)
	}
}

func TestProposeThatLosesItsQuorumIsIndeterminate(t *testing.T) {
	c := newCluster(t, 3, nil)
	leader := c.leader()
	for _, f := range c.followers() {
		f.close()
	}
	_, err := leader.Propose(testCtx(t), Proposal{Command: []byte("set a 1")})
	if !errors.Is(err, ErrIndeterminate) && !errors.Is(err, ErrNotLeader) {
		t.Fatalf("without a quorum: %v", err)
	}
	eventually(t, "the leader gives up", func() bool { return !leader.IsLeader() })
	if err := leader.Barrier(testCtx(t)); !errors.Is(err, ErrNotLeader) {
		t.Fatalf("barrier: %v", err)
	}
	eventually(t, "stale", func() bool { return errors.Is(leader.Fresh(), ErrStale) })
}

func TestProposeGivenUpIsIndeterminateAndStillCommits(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[0]
	release := n.machine.stick()
	defer release()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err := n.Propose(ctx, Proposal{Command: []byte("set a 1")})
	if !errors.Is(err, ErrIndeterminate) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("given up: %v", err)
	}
	release()
	n.await("a", "1")
}

func TestUndecodableCommandStopsTheNodeAndIsNeverSkipped(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[0]
	c.set("a", "1")
	if _, err := n.Propose(testCtx(t), Proposal{Command: []byte("nonsense")}); !errors.Is(err, ErrIndeterminate) {
		t.Fatalf("undecodable: %v", err)
	}
	select {
	case <-n.Done():
	case <-testCtx(t).Done():
		t.Fatal("the node goes on")
	}
	if !errors.Is(n.Err(), errBad) {
		t.Fatalf("stopped because of %v", n.Err())
	}
	if _, err := n.Propose(testCtx(t), Proposal{Command: []byte("set a 2")}); !errors.Is(err, ErrStopped) {
		t.Fatalf("after stopping: %v", err)
	}
	if err := n.View(func(*Tx) error { return nil }); !errors.Is(err, ErrStopped) {
		t.Fatalf("view after stopping: %v", err)
	}
	n.close()
	n.open() // meets the entry again
	select {
	case <-n.Done():
	case <-testCtx(t).Done():
		t.Fatal("the entry was skipped after a restart")
	}
}

func TestForwardedCallReachesTheLeadersHandler(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) { cfg.Handler = okHandler(cfg.NodeID) })
	call := func(n *node) string {
		client := http.Client{Transport: n.LeaderTransport()}
		resp, err := client.Get("http://leader/some/path")
		if err != nil {
			return err.Error()
		}
		defer func() { _ = resp.Body.Close() }()
		body, _ := io.ReadAll(resp.Body)
		return string(body)
	}
	for range 2 { // before and after a change of leader
		leader := c.leader()
		for _, f := range c.followers() {
			want := fmt.Sprintf("%s got /some/path from %s", leader.cfg.NodeID, f.cfg.NodeID)
			eventually(t, want, func() bool { return call(f) == want })
		}
		if err := leader.StepDown(testCtx(t)); err != nil {
			t.Fatal(err)
		}
		eventually(t, "another leader", func() bool { return c.leader() != leader })
	}
	f := c.followers()[0]
	leader := c.leader()
	if err := leader.RemovePeer(testCtx(t), f.cfg.NodeID); err != nil {
		t.Fatal(err)
	}
	if got := call(f); !has(got, "not a member") && !has(got, "no leader") {
		t.Fatalf("a removed node was answered: %s", got)
	}
	eventually(t, "the removed node is stale", func() bool { return f.Fresh() != nil })
}

// TestAnyMemberReachesAnyOther: whoever leads, and none but members.
func TestAnyMemberReachesAnyOther(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) { cfg.Handler = okHandler(cfg.NodeID) })
	for _, from := range c.nodes {
		for _, to := range c.nodes {
			if from == to {
				continue
			}
			client := http.Client{Transport: from.PeerTransport(to.cfg.NodeID)}
			want := fmt.Sprintf("%s got /some/path from %s", to.cfg.NodeID, from.cfg.NodeID)
			eventually(t, want, func() bool {
				resp, err := client.Get("http://member/some/path")
				if err != nil {
					return false
				}
				defer func() { _ = resp.Body.Close() }()
				body, _ := io.ReadAll(resp.Body)
				return string(body) == want
			})
		}
	}
	client := http.Client{Transport: c.leader().PeerTransport("stranger")}
	if _, err := client.Post("http://member/", "text/plain", strings.NewReader("x")); !errors.Is(err, errNoMember) {
		t.Errorf("%v", err)
	}
}

func TestForwardWithoutALeader(t *testing.T) {
	c := &cluster{t: t, ca: newTestCA(t), sealer: newTestSealer(t, 1)}
	n := newNode(t, c, 2) // not bootstrapped: belongs to no cluster
	n.open()
	client := http.Client{Transport: n.LeaderTransport()}
	if _, err := client.Post("http://leader/", "text/plain", strings.NewReader("x")); !errors.Is(err, ErrNoLeader) {
		t.Fatal(err)
	}
	if n.Fresh() == nil {
		t.Fatal("a node of no cluster says it is fresh")
	}
}

func TestDiskLow(t *testing.T) {
	for name, tc := range map[string]struct {
		reserve, floor   uint64
		ordinary, urgent error
	}{
		"room":          {1, 1, nil, nil},
		"below reserve": {1 << 62, 1, ErrDiskLow, nil},
		"below floor":   {1 << 62, 1 << 61, ErrDiskLow, ErrDiskLow},
	} {
		t.Run("Hazard17 "+name, func(t *testing.T) {
			c := newCluster(t, 1, func(cfg *Config) { cfg.Disk.Reserve, cfg.Disk.Floor = tc.reserve, tc.floor })
			for urgent, want := range map[bool]error{false: tc.ordinary, true: tc.urgent} {
				_, err := c.nodes[0].Propose(testCtx(t), Proposal{Command: []byte("set a 1"), Urgent: urgent})
				if !errors.Is(err, want) {
					t.Errorf("urgent %v: %v, want %v", urgent, err, want)
				}
			}
		})
	}
}

// The leader's own disk is fine, but a majority could not store the entry.
func TestHazard17LeaderHeedsTheFollowersDisks(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) {
		if cfg.NodeID != "n1" {
			cfg.Disk.Reserve, cfg.Disk.Floor = 1<<62, 1
		}
	})
	n := c.nodes[0]
	if c.leader() != n {
		t.Fatal("n1 does not lead")
	}
	eventually(t, "ordinary commands refused", func() bool {
		_, err := n.Propose(testCtx(t), Proposal{Command: []byte("set a 1")})
		return errors.Is(err, ErrDiskLow)
	})
	if _, err := n.Propose(testCtx(t), Proposal{Command: []byte("set a 2"), Urgent: true}); err != nil {
		t.Fatalf("urgent: %v", err)
	}
}

func TestAddressMayChange(t *testing.T) {
	c := newCluster(t, 3, nil)
	f := c.followers()[0]
	f.close()
	f.cfg.Listen = freePort(t)
	f.open()
	leader := c.leader()
	if err := f.JoinCluster(testCtx(t), []string{leader.parts.port.addr.String()}); err != nil {
		t.Fatal(err)
	}
	c.set("a", "1")
	f.await("a", "1")
}

func TestFailover(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) { cfg.Timing = Timing{} }) // as it is run
	var times []time.Duration
	for range 3 {
		old := c.leader()
		began := time.Now()
		old.close()
		c.set("a", "1")
		times = append(times, time.Since(began))
		old.open()
		eventually(t, "three nodes in contact", func() bool {
			for _, n := range c.nodes {
				if n.Fresh() != nil {
					return false
				}
			}
			return true
		})
	}
	t.Logf("close to first commit: %v", times)
	for _, d := range times {
		if d > 5*time.Second {
			t.Fatalf("failover took %v", d)
		}
	}
}

// HAZARDS 2: whoever compares replicas hears every follower's digest on the leader.
func TestHazard2DigestsReachTheLeader(t *testing.T) {
	var mu sync.Mutex
	heard := map[string]string{}
	c := newCluster(t, 3, func(cfg *Config) {
		id := cfg.NodeID
		cfg.Hooks.Digest = func() []byte { return []byte("root of " + id) }
		cfg.Hooks.OnDigest = func(from string, digest []byte) {
			mu.Lock()
			defer mu.Unlock()
			heard[from] = string(digest)
		}
	})
	for _, f := range c.followers() {
		eventually(t, "the digest of "+f.cfg.NodeID, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return heard[f.cfg.NodeID] == "root of "+f.cfg.NodeID
		})
	}
}
