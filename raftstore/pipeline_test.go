package raftstore

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// TestRefusedEntriesHoldNoSender: a follower refuses entries, and raft reads no
// answer after that. Sending on must fail; where it waits for a reader instead, the
// follower gets no entry again and the leader cannot be closed.
func TestRefusedEntriesHoldNoSender(t *testing.T) {
	c := newCluster(t, 2, nil)
	f := c.followers()[0]
	p, err := c.leader().parts.trans.AppendEntriesPipeline(raft.ServerID(f.cfg.NodeID), raft.ServerAddress(f.parts.port.addr.String()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	send := func() error {
		old := &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}} // of term 0
		_, err := p.AppendEntries(old, &raft.AppendEntriesResponse{})
		return err
	}
	if err := send(); err != nil {
		t.Fatal(err)
	}
	select {
	case answer := <-p.Consumer():
		if err := answer.Error(); err != nil || answer.Response().Success {
			t.Fatalf("entries of an old term: %+v, %v", answer.Response(), err)
		}
	case <-time.After(15 * time.Second):
		t.Fatal("no answer")
	}
	failed := make(chan int, 1)
	go func() {
		sent := 0
		for send() == nil {
			sent++
		}
		failed <- sent
	}()
	select {
	case sent := <-failed:
		if sent > 0 {
			t.Errorf("%d requests were taken after the one that ended it", sent)
		}
	case <-time.After(15 * time.Second):
		t.Error("the sender is held")
	}
}
