package raftstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/hashicorp/raft"
)

// Proposal is one command for the log.
type Proposal struct {
	// Command goes to [Machine].Apply as it is. The store keeps it: do not change it afterwards.
	Command []byte
	// Urgent commands (ends, withdrawals, containment) are still taken when the
	// disk is low, down to [Disk].Floor.
	Urgent bool
}

// Propose commits a command and returns what [Machine].Apply made of it, after
// it has been applied here. On the leader only.
//
// Errors: [ErrNotLeader], [ErrDiskLow], [ErrTooLarge], [ErrClosed] and
// [ErrStopped] mean that nothing was proposed, and so does ctx's own error.
// [ErrIndeterminate] means that the command may or may not commit, and may
// still do so after Propose has returned.
func (s *Store) Propose(ctx context.Context, p Proposal) (any, error) {
	if len(p.Command) > MaxCommandSize {
		return nil, fmt.Errorf("%w: %d bytes", ErrTooLarge, len(p.Command))
	}
	if !s.disk.allows(p.Urgent) || !s.beacons.diskAllows(p.Urgent) {
		return nil, ErrDiskLow
	}
	if err := s.lead.awaitReady(ctx); err != nil {
		return nil, err
	}
	weight := int64(len(p.Command)) + proposalOverhead
	if err := s.intake.room.Acquire(ctx, weight); err != nil {
		return nil, err
	}
	answer, err := s.submit(p.Command, weight)
	if err != nil {
		s.intake.room.Release(weight)
		return nil, err
	}
	select {
	case a := <-answer:
		return a.result, a.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", ErrIndeterminate, ctx.Err())
	}
}

type outcome struct {
	result any
	err    error
}

// submit hands the command to raft. The goroutine ends when raft answers, which
// it does within the leader lease, and releases weight.
func (s *Store) submit(command []byte, weight int64) (<-chan outcome, error) {
	if s.failure.Load() != nil {
		return nil, ErrStopped
	}
	answer := make(chan outcome, 1)
	return answer, s.intake.run(func() {
		defer s.intake.room.Release(weight)
		future := s.raft.Apply(command, 0)
		answer <- judge(future, future.Error())
	})
}

// judge says what raft's answer means to the proposer.
func judge(future raft.ApplyFuture, err error) outcome {
	switch {
	case err == nil:
		result := future.Response()
		if _, ok := result.(unapplied); ok {
			return outcome{err: fmt.Errorf("%w: committed, but this node stopped before applying it", ErrIndeterminate)}
		}
		return outcome{result: result}
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return outcome{err: ErrNotLeader} // raft says so only of what it has not appended
	default:
		return outcome{err: fmt.Errorf("%w: %w", ErrIndeterminate, err)}
	}
}

// View runs fn in a read transaction over the state as applied here, which may
// be behind: see [Store.Barrier] and [Store.Fresh]. It returns fn's error, or
// the transaction's own. Keep it short: pages that it may see are not reused.
func (s *Store) View(fn func(*Tx) error) error {
	if s.failure.Load() != nil {
		return ErrStopped
	}
	return s.parts.state.view(fn)
}

// Stats says how the node is doing.
type Stats struct {
	NodeID        string
	State         string // raft's word: Follower, Candidate, Leader, Shutdown
	Term          uint64
	CommitIndex   uint64
	AppliedIndex  uint64 // of the last entry that the state carries
	LastIndex     uint64
	SnapshotIndex uint64
	Peers         int
	DiskFree      uint64 // bytes
	Waiting       bool   // leader, but its background work has not started
	Fresh         bool
}

// Stats returns the node's figures. They are read one by one, not as of one instant.
func (s *Store) Stats() Stats {
	snap, _ := s.parts.snaps.latest() // zero when unreadable: these are figures, not decisions
	return Stats{
		NodeID: s.cfg.NodeID, State: s.raft.State().String(), Term: s.raft.CurrentTerm(),
		CommitIndex: s.raft.CommitIndex(), AppliedIndex: s.parts.state.applied.get(), LastIndex: s.raft.LastIndex(),
		SnapshotIndex: snap.index, Peers: len(s.Peers()), DiskFree: s.disk.free.Load(),
		Waiting: s.raft.State() == raft.Leader && !s.IsLeader(), Fresh: s.Fresh() == nil,
	}
}
