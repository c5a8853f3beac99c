package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/metadb"
)

// sealedLog is raft-wal with every entry's type, data and extensions sealed
// whole to its index and term. It keeps the newest entries open in memory, so
// that replication and apply do not read back what was just written.
type sealedLog struct {
	wal    *wal.WAL
	meta   *metadb.BoltMetaDB
	sealer Sealer
	fail   func(error) // told of write errors: after a failed fsync nothing more can be believed

	mu     sync.RWMutex
	recent [logCacheSlots]*raft.Log
	silent map[uint64]struct{} // indexes of entries that never reach the FSM
}

var (
	_ raft.LogStore          = (*sealedLog)(nil)
	_ raft.MonotonicLogStore = (*sealedLog)(nil)
	_ raft.StableStore       = (*sealedLog)(nil)
)

func openLog(dir string, sealer Sealer, logger hclog.Logger, fail func(error)) (*sealedLog, error) {
	dir = filepath.Join(dir, "log")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("raftstore: log directory: %w", err)
	}
	meta := &metadb.BoltMetaDB{} // passed in because the WAL does not close its own
	w, err := wal.Open(dir, wal.WithLogger(logger), wal.WithMetaStore(meta))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("raftstore: open log: %w", err), meta.Close())
	}
	return &sealedLog{wal: w, meta: meta, sealer: sealer, fail: fail, silent: make(map[uint64]struct{})}, nil
}

// check refuses a log with a gap after the snapshot that ends at snap, and opens
// every entry after from, where raft begins to read. raft panics on an entry that
// it cannot read, so a log that was tampered with is refused here, with a reason.
func (l *sealedLog) check(snap, from uint64) error {
	first, err := l.FirstIndex()
	if err != nil {
		return fmt.Errorf("raftstore: read log: %w", err)
	}
	last, err := l.LastIndex()
	if err != nil {
		return fmt.Errorf("raftstore: read log: %w", err)
	}
	if first > snap+1 {
		return fmt.Errorf("%w: the log begins at %d, the snapshot ends at %d", ErrCorrupt, first, snap)
	}
	for i := from + 1; i <= last; i++ {
		var entry raft.Log
		if err := l.GetLog(i, &entry); err != nil {
			return fmt.Errorf("raftstore: log entry %d: %w", i, err)
		}
		l.note(&entry)
	}
	return nil
}

// note remembers which entries raft keeps from the FSM.
func (l *sealedLog) note(entry *raft.Log) {
	if entry.Type != raft.LogCommand && entry.Type != raft.LogConfiguration {
		l.mu.Lock()
		l.silent[entry.Index] = struct{}{}
		l.mu.Unlock()
	}
}

// visible returns the last index up to index whose entry reaches the FSM, and
// forgets what lies at or below applied.
func (l *sealedLog) visible(index, applied uint64) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.silent {
		if i <= applied {
			delete(l.silent, i)
		}
	}
	for index > applied {
		if _, ok := l.silent[index]; !ok {
			break
		}
		index--
	}
	return index
}

func logPlace(index, term uint64) []byte {
	place := append(make([]byte, 0, 19), "log"...)
	place = binary.BigEndian.AppendUint64(place, index)
	return binary.BigEndian.AppendUint64(place, term)
}

func (l *sealedLog) seal(entry *raft.Log) *raft.Log {
	plain := make([]byte, 0, 1+binary.MaxVarintLen64+len(entry.Data)+len(entry.Extensions))
	plain = append(plain, byte(entry.Type))
	plain = binary.AppendUvarint(plain, uint64(len(entry.Data)))
	plain = append(plain, entry.Data...)
	plain = append(plain, entry.Extensions...)
	return &raft.Log{
		Index: entry.Index, Term: entry.Term, Type: entry.Type, AppendedAt: entry.AppendedAt,
		Data: l.sealer.Seal(logPlace(entry.Index, entry.Term), plain),
	}
}

// unseal replaces entry's sealed content by the original.
func (l *sealedLog) unseal(index uint64, entry *raft.Log) error {
	if entry.Index != index {
		return fmt.Errorf("%w: entry says index %d", ErrSealBroken, entry.Index)
	}
	plain, err := l.sealer.Open(logPlace(entry.Index, entry.Term), entry.Data)
	if err != nil {
		return fmt.Errorf("%w: log entry", ErrSealBroken)
	}
	return decodeEntry(plain, entry)
}

func decodeEntry(plain []byte, entry *raft.Log) error {
	if len(plain) < 2 {
		return fmt.Errorf("%w: log entry of %d bytes", ErrCorrupt, len(plain))
	}
	size, n := binary.Uvarint(plain[1:])
	if n <= 0 || size > uint64(len(plain)-1-n) {
		return fmt.Errorf("%w: log entry's length", ErrCorrupt)
	}
	entry.Type = raft.LogType(plain[0])
	rest := plain[1+n:]
	entry.Data, entry.Extensions = rest[:size:size], rest[size:]
	if len(entry.Extensions) == 0 {
		entry.Extensions = nil
	}
	return nil
}

// GetLog implements [raft.LogStore].
func (l *sealedLog) GetLog(index uint64, entry *raft.Log) error {
	l.mu.RLock()
	hit := l.recent[index%logCacheSlots]
	l.mu.RUnlock()
	if hit != nil && hit.Index == index {
		*entry = *hit
		return nil
	}
	// The WAL goes on reading what was deleted from the front of its newest segment.
	if first, err := l.wal.FirstIndex(); err != nil {
		return err
	} else if index < first {
		return raft.ErrLogNotFound
	}
	if err := l.wal.GetLog(index, entry); err != nil {
		return err
	}
	return l.unseal(index, entry)
}

// StoreLog implements [raft.LogStore].
func (l *sealedLog) StoreLog(entry *raft.Log) error { return l.StoreLogs([]*raft.Log{entry}) }

// StoreLogs implements [raft.LogStore]: one fsync for all entries.
func (l *sealedLog) StoreLogs(entries []*raft.Log) error {
	sealed := make([]*raft.Log, len(entries))
	for i, e := range entries {
		sealed[i] = l.seal(e)
		l.note(e)
	}
	if err := l.wal.StoreLogs(sealed); err != nil {
		l.fail(fmt.Errorf("raftstore: write log: %w", err))
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range entries {
		slot := &l.recent[e.Index%logCacheSlots]
		if *slot = nil; len(e.Data)+len(e.Extensions) <= logCacheMaxEntry {
			kept := *e // e is part of a larger thing of raft's
			*slot = &kept
		}
	}
	return nil
}

// DeleteRange implements [raft.LogStore]. Of what raft compacts away it keeps
// the last entry, which is the snapshot's own where that reaches so far: see standIn.
func (l *sealedLog) DeleteRange(first, last uint64) error {
	if end, err := l.LastIndex(); err != nil {
		return err
	} else if last < end {
		if last--; last < first {
			return nil
		}
	}
	l.mu.Lock()
	for i, e := range l.recent {
		if e != nil && e.Index >= first && e.Index <= last {
			l.recent[i] = nil
		}
	}
	for i := range l.silent {
		if i >= first && i <= last {
			delete(l.silent, i)
		}
	}
	l.mu.Unlock()
	if err := l.wal.DeleteRange(first, last); err != nil {
		l.fail(fmt.Errorf("raftstore: truncate log: %w", err))
		return err
	}
	return nil
}

// FirstIndex implements [raft.LogStore].
func (l *sealedLog) FirstIndex() (uint64, error) { return l.wal.FirstIndex() }

// LastIndex implements [raft.LogStore].
func (l *sealedLog) LastIndex() (uint64, error) { return l.wal.LastIndex() }

// IsMonotonic implements [raft.MonotonicLogStore].
func (l *sealedLog) IsMonotonic() bool { return true }

// Set implements [raft.StableStore].
func (l *sealedLog) Set(key, val []byte) error { return l.stable(l.wal.Set(key, val)) }

// Get implements [raft.StableStore].
func (l *sealedLog) Get(key []byte) ([]byte, error) { return l.wal.Get(key) }

// SetUint64 implements [raft.StableStore].
func (l *sealedLog) SetUint64(key []byte, val uint64) error {
	return l.stable(l.wal.SetUint64(key, val))
}

// GetUint64 implements [raft.StableStore].
func (l *sealedLog) GetUint64(key []byte) (uint64, error) { return l.wal.GetUint64(key) }

func (l *sealedLog) stable(err error) error {
	if err != nil {
		l.fail(fmt.Errorf("raftstore: write term or vote: %w", err))
	}
	return err
}

// termAt returns the term of the entry at index, 0 when the log does not hold it.
func (l *sealedLog) termAt(index uint64) uint64 {
	var entry raft.Log
	if err := l.GetLog(index, &entry); err != nil {
		return 0
	}
	return entry.Term
}

func (l *sealedLog) close() error {
	return errors.Join(l.wal.Close(), l.meta.Close())
}
