package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/raftstore"
)

// machine applies commands to the ledger. applied is told after each one.
type machine struct {
	ledger  *ledger.Machine
	applied func()
}

// Apply implements [raftstore.Machine].
func (m machine) Apply(tx *raftstore.Tx, command []byte) (any, error) {
	res, err := m.ledger.Apply(tx, command)
	if err != nil {
		return nil, err
	}
	m.applied()
	return res, nil
}

// replicated is the raft store as the engine sees it.
type replicated struct{ store *raftstore.Store }

// proposeTimeout bounds the wait for a commit: longer than a failover, so that
// a caller with no deadline of its own learns what became of its command.
const proposeTimeout = 10 * time.Second

// Propose implements broker.Log.
func (r replicated) Propose(ctx context.Context, command []byte, urgent bool) (ledger.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	out, err := r.store.Propose(ctx, raftstore.Proposal{Command: command, Urgent: urgent})
	if err != nil {
		return ledger.Result{}, storeFault(err)
	}
	res, ok := out.(ledger.Result)
	if !ok {
		return ledger.Result{}, fmt.Errorf("node: the machine answered with a %T", out)
	}
	return res, nil
}

// View implements broker.Log.
func (r replicated) View(fn func(ledger.Reader) error) error {
	var inner error
	err := r.store.View(func(tx *raftstore.Tx) error {
		inner = fn(tx)
		return inner
	})
	if err != nil && inner == nil {
		return storeFault(err)
	}
	return err
}

// Fresh implements broker.Log.
func (r replicated) Fresh() error {
	if err := r.store.Fresh(); err != nil {
		return storeFault(err)
	}
	return nil
}

// Term implements broker.Log.
func (r replicated) Term() uint64 { return r.store.Term() }

// storeFault says what a failure of the store means to a caller.
func storeFault(err error) *fault.Error {
	unavailable := func(code, detail string, after time.Duration) *fault.Error {
		return &fault.Error{Kind: fault.Unavailable, Code: code, Detail: detail, RetryAfter: after, Err: err}
	}
	switch {
	case errors.Is(err, raftstore.ErrIndeterminate):
		return &fault.Error{Kind: fault.Indeterminate, Code: "indeterminate", RetryAfter: time.Second, Err: err,
			Detail: "The outcome is unknown: the command may or may not have been committed. Retry with the same idempotency key."}
	case errors.Is(err, raftstore.ErrNotLeader), errors.Is(err, raftstore.ErrNoLeader):
		return unavailable("no_leader", "This node does not lead and knows no leader now. Retry.", time.Second)
	case errors.Is(err, raftstore.ErrStale):
		return unavailable("stale", "This node is cut off from the cluster and answers nothing that may be out of date. Ask another node.", time.Second)
	case errors.Is(err, raftstore.ErrDiskLow):
		return unavailable("disk_low", "Disk space is low: nothing new is issued, and what is live still ends on time. Free some space.", 30*time.Second)
	case errors.Is(err, raftstore.ErrTooLarge):
		return fault.Wrap(err, fault.Invalid, "too_large", "The request is too large for one record.")
	case errors.Is(err, raftstore.ErrClosed), errors.Is(err, raftstore.ErrStopped):
		return unavailable("stopped", "This node is stopping or has stopped. Ask another node.", time.Second)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return unavailable("no_leader", "No leader took the command in time; nothing was committed. Retry.", time.Second)
	default:
		return fault.Wrap(err, fault.Internal, "", "The store failed.")
	}
}
