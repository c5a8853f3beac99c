package raftstore

import (
	"errors"
	"strings"
	"testing"
)

func TestSingleNodeCommitsAndReads(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[0]
	ctx := testCtx(t)
	for _, cmd := range []string{"set a 1", "set b 2", "set a 3", "del b"} {
		if got, err := n.Propose(ctx, Proposal{Command: []byte(cmd)}); err != nil || got != "ok" {
			t.Fatalf("%s: %v, %v", cmd, got, err)
		}
	}
	if got, err := n.Propose(ctx, Proposal{Command: []byte("get a")}); err != nil || got != "3" {
		t.Fatalf("get a: %v, %v", got, err)
	}
	if err := n.Barrier(ctx); err != nil {
		t.Fatal(err)
	}
	if a, b := n.get("a"), n.get("b"); a != "3" || b != "" {
		t.Fatalf("a=%q b=%q", a, b)
	}
	eventually(t, "fresh", func() bool { return n.Fresh() == nil })
	if _, err := n.Propose(ctx, Proposal{Command: make([]byte, MaxCommandSize+1)}); !errors.Is(err, ErrTooLarge) {
		t.Fatalf("too large: %v", err)
	}
	n.Store.Close()
	if _, err := n.Propose(ctx, Proposal{Command: []byte("set a 4")}); !errors.Is(err, ErrClosed) {
		t.Fatalf("after close: %v", err)
	}
}

func TestThreeNodesGoOnWithoutTheLeader(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.set("a", "1")
	for _, n := range c.nodes {
		n.await("a", "1")
	}
	old := c.leader()
	old.close()
	c.set("a", "2")
	for _, n := range c.followers() {
		n.await("a", "2")
	}
	old.open()
	old.await("a", "2")
	if got := len(old.Peers()); got != 3 {
		t.Fatalf("%d peers", got)
	}
}

func TestLargeCommandsReplicate(t *testing.T) {
	c := newCluster(t, 3, nil)
	big := strings.Repeat("x", MaxCommandSize-6)
	c.set("b", big)
	for _, n := range c.nodes {
		n.await("b", big)
	}
}
