package raftstore

import (
	"bytes"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// countingSealer counts how many log entries are opened.
type countingSealer struct {
	Sealer
	opened atomic.Int64
}

func (s *countingSealer) Open(place, sealed []byte) ([]byte, error) {
	if bytes.HasPrefix(place, []byte("log")) {
		s.opened.Add(1)
	}
	return s.Sealer.Open(place, sealed)
}

// What a restart costs must not grow with the log: the state has it all already.
func TestHazard23RestartReadsOnlyWhatTheStateLacks(t *testing.T) {
	counted := map[string]*countingSealer{}
	c := newCluster(t, 1, func(cfg *Config) {
		s := &countingSealer{Sealer: cfg.Sealer}
		counted[cfg.NodeID], cfg.Sealer = s, s
	})
	n := c.nodes[0]
	c.fill(50)
	n.close()
	counted["n1"].opened.Store(0)
	if again := n.reopened(c); again != 0 {
		t.Fatalf("%d commands were applied again", again)
	}
	if read := counted["n1"].opened.Load(); read > 10 {
		t.Fatalf("%d of 50 entries were read again", read)
	}
}

// The members stand in the log, which a restart no longer reads, and in
// snapshots, of which there is none yet: the state has them.
func TestHazard23RestartKnowsTheMembers(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.fill(50)
	for round := range 2 {
		for _, n := range c.nodes {
			n.await("k049", "v")
		}
		for _, n := range c.nodes {
			n.close()
		}
		for _, n := range c.nodes {
			n.machine = &testMachine{}
			n.open()
		}
		c.leader()
		c.set("after", fmt.Sprint(round))
		for _, n := range c.nodes {
			n.await("after", fmt.Sprint(round))
			if got := len(n.raft.GetConfiguration().Configuration().Servers); got != 3 {
				t.Fatalf("%s knows %d members", n.cfg.NodeID, got)
			}
			if again := n.machine.applied(); again > 2 {
				t.Fatalf("%s applied %d commands again", n.cfg.NodeID, again)
			}
		}
	}
}

// A build that kept no members in the state left a file that is good otherwise.
func TestHazard23StateWithoutMembersIsReadTheLongWay(t *testing.T) {
	counted := map[string]*countingSealer{}
	c := newCluster(t, 3, func(cfg *Config) {
		s := &countingSealer{Sealer: cfg.Sealer}
		counted[cfg.NodeID], cfg.Sealer = s, s
	})
	c.fill(50)
	for _, n := range c.nodes {
		n.await("k049", "v")
	}
	for _, n := range c.nodes {
		n.editState(func(b *bbolt.Tx) error { return b.Bucket([]byte(metaBucket)).Delete([]byte(membersKey)) })
		n.close()
		counted[n.cfg.NodeID].opened.Store(0)
	}
	for _, n := range c.nodes {
		n.machine = &testMachine{}
		n.open()
	}
	c.leader()
	c.set("after", "v")
	for _, n := range c.nodes {
		n.await("after", "v")
		if again := n.machine.applied(); again > 2 {
			t.Errorf("%s applied %d commands again", n.cfg.NodeID, again)
		}
		if got := len(n.raft.GetConfiguration().Configuration().Servers); got != 3 {
			t.Errorf("%s knows %d members", n.cfg.NodeID, got)
		}
		if read := counted[n.cfg.NodeID].opened.Load(); read < 50 {
			t.Errorf("%s read %d entries: something stood in for the log", n.cfg.NodeID, read)
		}
	}
}

// raft counts from where it started; a node that is restarted before it has
// written a threshold's worth must take its snapshot all the same, and the
// snapshot must serve a node that needs it.
func TestOftenRestartedNodeStillTakesSnapshots(t *testing.T) {
	c := newCluster(t, 1, func(cfg *Config) {
		cfg.Timing.SnapshotInterval = 20 * time.Millisecond
		cfg.Timing.SnapshotThreshold, cfg.Timing.TrailingLogs = 60, 5
	})
	n := c.nodes[0]
	for i := range 8 {
		for j := range 10 {
			c.set(fmt.Sprintf("k%03d", i*10+j), "v")
		}
		if i < 7 {
			n.close()
			n.machine = &testMachine{}
			n.open()
			c.leader()
		}
	}
	eventually(t, "a snapshot", func() bool { at, err := n.parts.snaps.latest(); return err == nil && at.index > 0 })
	eventually(t, "a shorter log", func() bool { first, err := n.parts.log.FirstIndex(); return err == nil && first > 1 })

	n.close() // the state file stands in for that snapshot now
	n.open()
	late := newNode(t, c, 2)
	late.open()
	c.nodes = append(c.nodes, late)
	c.join(late)
	late.await("k079", "v")
}
