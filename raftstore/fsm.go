package raftstore

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
)

// unapplied is what a proposer gets back for a committed command that this node
// failed to apply.
type unapplied struct{}

// fsm applies committed entries to the state, one transaction per batch. raft
// has no way to hear that applying failed; so after a failure the fsm is dead:
// it applies nothing more and refuses to snapshot, while the store stops the node.
type fsm struct {
	machine Machine
	state   *state
	hooks   Hooks
	clock   func() time.Time
	fail    func(error) // must not block
	dead    atomic.Bool
}

var _ raft.BatchingFSM = (*fsm)(nil)

func (f *fsm) die(err error) {
	f.dead.Store(true)
	f.fail(err)
}

// Apply implements [raft.FSM].
func (f *fsm) Apply(entry *raft.Log) any { return f.ApplyBatch([]*raft.Log{entry})[0] }

// ApplyBatch implements [raft.BatchingFSM].
func (f *fsm) ApplyBatch(entries []*raft.Log) []any {
	results := make([]any, len(entries))
	if !f.dead.Load() {
		err := f.applyNew(entries, results)
		if err == nil {
			return results
		}
		f.die(err)
	}
	for i := range results {
		results[i] = unapplied{}
	}
	return results
}

// applyNew applies the entries beyond the state's position: after a restart
// raft replays everything since the snapshot.
func (f *fsm) applyNew(entries []*raft.Log, results []any) error {
	done := f.state.pos.index
	last := entries[len(entries)-1]
	if last.Index <= done {
		return nil
	}
	return f.state.apply(position{last.Index, last.Term}, func(tx *Tx) error {
		for i, e := range entries {
			if e.Index <= done {
				continue
			}
			if e.Type == raft.LogConfiguration {
				if err := writeMembers(tx.bolt, f.state.sealer, e.Index, e.Data); err != nil {
					return err
				}
				continue
			}
			result, err := f.machine.Apply(tx, e.Data)
			if err = errors.Join(err, tx.err); err != nil {
				return fmt.Errorf("raftstore: apply entry %d: %w", e.Index, err)
			}
			results[i] = result
		}
		return nil
	})
}

// Snapshot implements [raft.FSM].
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	if f.dead.Load() {
		return nil, ErrStopped
	}
	tx, err := f.state.begin(false)
	if err != nil {
		return nil, fmt.Errorf("raftstore: snapshot: %w", err)
	}
	return &fsmSnapshot{fsm: f, tx: tx, applied: f.state.pos.index}, nil
}

type fsmSnapshot struct {
	fsm     *fsm
	tx      *bbolt.Tx
	applied uint64
}

// Persist implements [raft.FSMSnapshot].
func (s *fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	sealed, ok := sink.(*sealedSink)
	if !ok {
		return fmt.Errorf("raftstore: snapshot into a %T", sink)
	}
	if err := s.fsm.writeStream(sink, s.tx, sealed.at); err != nil {
		return err
	}
	return s.fsm.state.cover(s.applied, sealed.at)
}

// Release implements [raft.FSMSnapshot].
func (s *fsmSnapshot) Release() { _ = s.tx.Rollback() } // a read transaction has nothing to lose

// writeStream writes all of tx's state to w, as of at.
func (f *fsm) writeStream(w io.Writer, b *bbolt.Tx, at position) error {
	out, err := f.hooks.begin(w, f.state.sealer, at, f.clock().Unix())
	if err != nil {
		return err
	}
	tx := newTx(b, f.state.sealer)
	err = b.ForEach(func(name []byte, _ *bbolt.Bucket) error {
		if string(name) == metaBucket {
			return nil
		}
		var failed error
		tx.Scan(string(name), nil, nil, func(key, value []byte) bool {
			failed = out.put(string(name), key, value)
			return failed == nil
		})
		return errors.Join(failed, tx.err)
	})
	if err != nil {
		return fmt.Errorf("raftstore: write snapshot: %w", err)
	}
	return out.finish()
}

// Restore implements [raft.FSM]: it replaces the state by a snapshot's.
func (f *fsm) Restore(rc io.ReadCloser) error {
	if f.dead.Load() {
		return ErrStopped
	}
	var inner io.ReadCloser = rc
	for {
		wrapper, ok := inner.(raft.ReadCloserWrapper)
		if !ok {
			break
		}
		inner = wrapper.WrappedReadCloser()
	}
	snap, ok := inner.(*snapshotReader)
	if !ok {
		return fmt.Errorf("raftstore: restore from a %T", inner)
	}
	// The snapshot's index as raft knows it: a restored backup gets a new one.
	at := position{snap.meta.Index, snap.meta.Term}
	who := members{snap.meta.ConfigurationIndex, snap.meta.Configuration}
	return f.state.replace(at, who, func(put func(string, []byte, []byte) error) error {
		_, err := readStream(rc, f.state.sealer, func(h streamHeader) error {
			if f.hooks.OnPreamble == nil {
				return nil
			}
			return f.hooks.OnPreamble(h.preamble)
		}, put)
		return err
	})
}
