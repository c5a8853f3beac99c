package raftstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

// Peer is a member of the cluster.
type Peer struct {
	ID, Addr string
	Voter    bool
	Leader   bool
	Self     bool
	// Applied is the peer's applied index, known only to the leader and of itself.
	Applied uint64
	// Heard is when the peer last answered a beacon; zero except on the leader.
	Heard time.Time
}

// Peers lists the members, this node included.
func (s *Store) Peers() []Peer {
	leader, _, _ := s.Leader()
	servers := s.members()
	s.beacons.mu.Lock()
	defer s.beacons.mu.Unlock()
	peers := make([]Peer, 0, len(servers))
	for _, m := range servers {
		id := string(m.ID)
		p := Peer{ID: id, Addr: string(m.Address), Voter: m.Suffrage == raft.Voter, Leader: id == leader, Self: id == s.cfg.NodeID}
		if l := s.beacons.lines[id]; l != nil {
			p.Applied, p.Heard = l.applied, l.heard
		}
		if p.Self {
			p.Applied = s.parts.state.applied.get()
		}
		peers = append(peers, p)
	}
	return peers
}

// catchUpGap is how far behind, in entries, a new member may be when it gets its vote.
const catchUpGap = 1024

// AddVoter makes the node id, listening at addr, a voter, or moves a member to
// addr. A new node is first brought up to date without a vote, so that a
// majority never waits for its snapshot. On the leader only.
func (s *Store) AddVoter(ctx context.Context, id, addr string) error {
	if !nodeIDPattern.MatchString(id) {
		return fmt.Errorf("%w: node id %q", ErrMisuse, id)
	}
	if err := s.lead.awaitReady(ctx); err != nil {
		return err
	}
	voter, known := false, false
	for _, m := range s.members() {
		if string(m.ID) == id {
			known, voter = string(m.Address) == addr, m.Suffrage == raft.Voter
		} else if string(m.Address) == addr {
			return fmt.Errorf("%w: %s is the address of node %q", ErrMisuse, addr, m.ID)
		}
	}
	if voter && known {
		return nil
	}
	if !voter {
		if err := s.reconfigure(ctx, func() raft.Future {
			return s.raft.AddNonvoter(raft.ServerID(id), raft.ServerAddress(addr), 0, 0)
		}); err != nil {
			return err
		}
		if err := s.awaitCaughtUp(ctx, id); err != nil {
			return err
		}
	}
	return s.reconfigure(ctx, func() raft.Future {
		return s.raft.AddVoter(raft.ServerID(id), raft.ServerAddress(addr), 0, 0)
	})
}

func (s *Store) awaitCaughtUp(ctx context.Context, id string) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		for _, p := range s.Peers() {
			if p.ID == id && !p.Heard.IsZero() && p.Applied+catchUpGap >= s.parts.state.applied.get() {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("raftstore: node %q has not caught up: %w", id, ctx.Err())
		case <-s.failed:
			return ErrStopped
		}
		if s.raft.State() != raft.Leader {
			return ErrNotLeader
		}
	}
}

// RemovePeer takes the node id out of the cluster; absent is fine. A leader may
// remove itself, and then steps down. On the leader only.
func (s *Store) RemovePeer(ctx context.Context, id string) error {
	if err := s.lead.awaitReady(ctx); err != nil {
		return err
	}
	return s.reconfigure(ctx, func() raft.Future { return s.raft.RemoveServer(raft.ServerID(id), 0, 0) })
}

// StepDown hands leadership to the most up-to-date voter. On the leader only.
func (s *Store) StepDown(ctx context.Context) error {
	if s.raft.State() != raft.Leader {
		return ErrNotLeader
	}
	return s.reconfigure(ctx, func() raft.Future { return s.raft.LeadershipTransfer() })
}

// reconfigure runs a change of raft's and waits for it as long as ctx lives.
func (s *Store) reconfigure(ctx context.Context, change func() raft.Future) error {
	done := make(chan error, 1)
	if err := s.intake.run(func() { done <- change().Error() }); err != nil {
		return err
	}
	select {
	case err := <-done:
		switch {
		case err == nil:
			return nil
		case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
			return ErrNotLeader
		case errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrRaftShutdown):
			return fmt.Errorf("%w: %w", ErrIndeterminate, err)
		}
		return fmt.Errorf("raftstore: change of the cluster: %w", err)
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrIndeterminate, ctx.Err())
	}
}
