package raftstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"
)

// Backup says what a backup holds, as far as it can be known without a key.
type Backup struct {
	Index, Term uint64
	Created     time.Time // by the clock of the node that wrote it
	Preamble    []byte    // see [Hooks].Preamble
}

// Snapshot writes a backup of the state as applied here to w: one consistent
// cut, sealed, with a checksum. Call [Store.Barrier] first for everything
// committed so far. Commands go on being applied meanwhile.
func (s *Store) Snapshot(ctx context.Context, w io.Writer) error {
	if s.failure.Load() != nil {
		return ErrStopped
	}
	tx, err := s.parts.state.begin(false)
	if err != nil {
		return fmt.Errorf("raftstore: snapshot: %w", err)
	}
	defer func() { _ = tx.Rollback() }() // a read transaction has nothing to lose
	var at position
	if err := readPosition(tx, s.cfg.Sealer, &at); err != nil {
		return err
	}
	return s.parts.fsm.writeStream(writerFunc(func(p []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return w.Write(p)
	}), tx, at)
}

// writerFunc is a writer made of a function.
type writerFunc func(p []byte) (int, error)

// Write implements [io.Writer].
func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// CheckBackup reads a whole backup and verifies its checksum, which needs no
// key and therefore finds damage, not forgery: [Store.Restore] finds both.
func CheckBackup(r io.Reader) (Backup, error) {
	sum := sha256.New()
	var head bytes.Buffer
	var tail []byte // the last 32 bytes read are the checksum, or not yet known to be content
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		tail = append(tail, buf[:n]...)
		if extra := len(tail) - sha256.Size; extra > 0 {
			sum.Write(tail[:extra])
			if room := streamHeaderSize + MaxPreamble - head.Len(); room > 0 {
				head.Write(tail[:min(extra, room)])
			}
			tail = append(tail[:0], tail[extra:]...)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return Backup{}, fmt.Errorf("raftstore: read backup: %w", err)
		}
	}
	if !bytes.Equal(tail, sum.Sum(nil)) {
		return Backup{}, fmt.Errorf("%w: backup checksum", ErrCorrupt)
	}
	s := &streamReader{r: bufferOf(&head), sum: sha256.New()}
	h, err := s.readHeader()
	if err != nil {
		return Backup{}, err
	}
	return h.backup(), nil
}

func (h *streamHeader) backup() Backup {
	return Backup{Index: h.at.index, Term: h.at.term, Created: time.Unix(h.created, 0).UTC(), Preamble: h.preamble}
}

const restoreTmpFile = "restore.tmp"

// Restore replaces the whole cluster's state by a backup's, as a new
// incarnation: [IncarnationKey] gets a new random value, within the restored
// state itself, so that no node ever sees the old state under the new name of
// the other. The leader's work is stopped meanwhile and started anew. The
// backup is read, opened and checked to its end before anything changes.
// On the leader only. Errors: [ErrNotLeader]; [ErrCorrupt], [ErrSealBroken] for
// the backup; [ErrIndeterminate] when leadership was lost on the way.
func (s *Store) Restore(ctx context.Context, r io.Reader) (Backup, error) {
	if err := s.lead.awaitReady(ctx); err != nil {
		return Backup{}, err
	}
	if !s.restoring.TryLock() {
		return Backup{}, fmt.Errorf("%w: another restore is under way", ErrMisuse)
	}
	defer s.restoring.Unlock()
	f, err := os.OpenFile(filepath.Join(s.cfg.Dir, restoreTmpFile), os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return Backup{}, fmt.Errorf("raftstore: restore: %w", err)
	}
	defer func() { _ = errors.Join(f.Close(), os.Remove(f.Name())) }() // a copy that is not needed any more
	header, err := s.reincarnate(f, r)
	if err != nil {
		return Backup{}, err
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return Backup{}, fmt.Errorf("raftstore: restore: %w", err)
	}
	resume := s.lead.pause()
	defer resume()
	meta := &raft.SnapshotMeta{Version: 1, Index: header.at.index, Term: header.at.term, Size: size}
	err = s.reconfigure(context.WithoutCancel(ctx), func() raft.Future { // f must outlive it
		return restoreResult{s.raft.Restore(meta, f, 0)}
	})
	return header.backup(), err
}

// restoreResult is the answer of a call that raft does not make a future of.
type restoreResult struct{ err error }

// Error implements [raft.Future].
func (r restoreResult) Error() error { return r.err }

// reincarnate copies a backup to w, with a new incarnation.
func (s *Store) reincarnate(w io.Writer, r io.Reader) (streamHeader, error) {
	var incarnation [16]byte
	if _, err := rand.Read(incarnation[:]); err != nil {
		return streamHeader{}, err
	}
	var out *streamWriter
	var at streamHeader
	header, err := readStream(r, s.cfg.Sealer, func(h streamHeader) error {
		if s.cfg.Hooks.OnPreamble != nil {
			if err := s.cfg.Hooks.OnPreamble(h.preamble); err != nil {
				return err
			}
		}
		at = h
		var err error
		out, err = s.cfg.Hooks.begin(w, s.cfg.Sealer, at.at, s.cfg.Clock().Unix())
		return err
	}, func(bucket string, key, value []byte) error {
		if bucket == MetaBucket && string(key) == IncarnationKey {
			return nil
		}
		return out.put(bucket, key, value)
	})
	if err != nil {
		return header, err
	}
	if err := out.put(MetaBucket, []byte(IncarnationKey), incarnation[:]); err != nil {
		return header, fmt.Errorf("raftstore: restore: %w", err)
	}
	return header, out.finish()
}
