package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
)

const (
	stateFile    = "state.db"
	stateTmpFile = "state.tmp"
	// Address space, not memory: bbolt need not remap while a snapshot's long
	// read transaction is open, which would stop the writer until it ends.
	stateMapSize = 64 << 30
	metaBucket   = "\x00meta" // no Tx reaches a name with a NUL
	appliedKey   = "applied"  // index, term
	coveredKey   = "covered"  // see cover
)

// position is a place in the log.
type position struct{ index, term uint64 }

// state is the state file: an ordered map in bbolt, written without fsync, that
// carries the position it was applied up to.
type state struct {
	dir    string
	sealer Sealer
	log    *slog.Logger

	mu      sync.RWMutex // held for writing only while the file is swapped
	db      *bbolt.DB
	closers sync.WaitGroup // closing of swapped-out files

	pos     position // of the last applied entry; the FSM's goroutine owns it
	applied progress // its index, for everybody
}

func openBolt(path string) (*bbolt.DB, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout: time.Second, NoSync: true, NoGrowSync: true,
		FreelistType: bbolt.FreelistMapType, InitialMmapSize: stateMapSize,
	})
	if err != nil {
		return nil, fmt.Errorf("raftstore: open state: %w", err)
	}
	return db, nil
}

// openState opens the state in dir, reusing the file of an earlier process if
// that is safe and believable says so of the position it carries.
func openState(dir string, sealer Sealer, log *slog.Logger, believable func(position) bool) (*state, error) {
	s := &state{dir: dir, sealer: sealer, log: log}
	path := filepath.Join(dir, stateFile)
	if err := os.Remove(filepath.Join(dir, stateTmpFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("raftstore: remove unfinished state: %w", err)
	}
	reusable, reason := takePassport(dir, path)
	if reusable {
		if reason = s.reuse(path, believable); reason != "" {
			reusable = false
		}
	}
	if !reusable {
		if err := s.startAfresh(path, reason); err != nil {
			return nil, err
		}
	}
	if err := issuePassport(dir, path); err != nil {
		return nil, errors.Join(fmt.Errorf("raftstore: record state file: %w", err), s.db.Close())
	}
	return s, nil
}

// reuse opens the existing file; a reason not to is its answer.
func (s *state) reuse(path string, believable func(position) bool) (reason string) {
	db, err := openBolt(path)
	if err != nil {
		return "the file does not open"
	}
	pos, err := readApplied(db, s.sealer)
	if err != nil {
		_ = db.Close()
		return "the applied index does not read"
	}
	if !believable(pos) {
		_ = db.Close()
		return "the applied index does not fit the log"
	}
	s.db = db
	s.setPosition(pos)
	s.log.Info("state file reused", "applied", pos.index)
	return ""
}

func (s *state) startAfresh(path, reason string) error {
	for _, name := range []string{path, filepath.Join(s.dir, failedFile)} {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("raftstore: remove old state: %w", err)
		}
	}
	db, err := openBolt(path)
	if err != nil {
		return err
	}
	s.db = db
	s.log.Info("state file started afresh", "reason", reason)
	return nil
}

func (s *state) setPosition(pos position) {
	s.pos = pos
	s.applied.advance(pos.index)
}

func (s *state) begin(writable bool) (*bbolt.Tx, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.db.Begin(writable)
}

// freelistLimit is how many free pages are still written out with each commit
// (8 bytes each). Without the list on disk the next start walks the whole file
// (0.4 s for 1 GB); with a long one every commit pays.
const freelistLimit = 8192

// beginWrite begins a write transaction.
func (s *state) beginWrite() (*bbolt.Tx, error) {
	b, err := s.begin(true)
	if err != nil {
		return nil, fmt.Errorf("raftstore: write state: %w", err)
	}
	stats := b.DB().Stats()
	b.DB().NoFreelistSync = stats.FreePageN+stats.PendingPageN > freelistLimit // the transaction guards it
	return b, nil
}

// view runs fn in a read transaction.
func (s *state) view(fn func(*Tx) error) error {
	b, err := s.begin(false)
	if err != nil {
		return fmt.Errorf("raftstore: read state: %w", err)
	}
	defer func() { _ = b.Rollback() }() // a read transaction has nothing to lose
	tx := newTx(b, s.sealer)
	if err := fn(tx); err != nil {
		return err
	}
	return tx.err
}

// apply runs fn in a write transaction that also moves the position to pos.
// Only the FSM's goroutine calls it.
func (s *state) apply(pos position, fn func(*Tx) error) error {
	b, err := s.beginWrite()
	if err != nil {
		return err
	}
	defer func() { _ = b.Rollback() }() // does nothing after a commit
	tx := newTx(b, s.sealer)
	if err := fn(tx); err != nil {
		return err
	}
	if tx.err != nil {
		return tx.err
	}
	if err := writeApplied(b, s.sealer, pos); err != nil {
		return err
	}
	if err := b.Commit(); err != nil {
		return fmt.Errorf("raftstore: commit state: %w", err)
	}
	s.setPosition(pos)
	return nil
}

func metaPlace(key string) []byte { return []byte("state" + metaBucket + "\x00" + key) }

func putMeta(b *bbolt.Tx, sealer Sealer, key string, value []byte) error {
	bucket, err := b.CreateBucketIfNotExists([]byte(metaBucket))
	if err == nil {
		err = bucket.Put([]byte(key), sealer.Seal(metaPlace(key), value))
	}
	if err != nil {
		return fmt.Errorf("raftstore: state's %s: %w", key, err)
	}
	return nil
}

// getMeta returns nil when key is absent.
func getMeta(b *bbolt.Tx, sealer Sealer, key string) ([]byte, error) {
	bucket := b.Bucket([]byte(metaBucket))
	if bucket == nil {
		return nil, nil
	}
	sealed := bucket.Get([]byte(key))
	if sealed == nil {
		return nil, nil
	}
	value, err := sealer.Open(metaPlace(key), sealed)
	if err != nil {
		return nil, fmt.Errorf("%w: state's %s", ErrSealBroken, key)
	}
	return value, nil
}

// bigEndian encodes ns, eight bytes each; number decodes the first of them.
func bigEndian(ns ...uint64) []byte {
	raw := make([]byte, 0, 8*len(ns))
	for _, n := range ns {
		raw = binary.BigEndian.AppendUint64(raw, n)
	}
	return raw
}

func number(raw []byte) uint64 { return binary.BigEndian.Uint64(raw) }

// readNumbers fills ns in, or leaves them alone when key is absent.
func readNumbers(b *bbolt.Tx, sealer Sealer, key string, ns ...*uint64) error {
	raw, err := getMeta(b, sealer, key)
	if err != nil || raw == nil {
		return err
	}
	if len(raw) != 8*len(ns) {
		return fmt.Errorf("%w: state's %s", ErrSealBroken, key)
	}
	for i, n := range ns {
		*n = number(raw[8*i:])
	}
	return nil
}

func writeApplied(b *bbolt.Tx, sealer Sealer, pos position) error {
	return putMeta(b, sealer, appliedKey, bigEndian(pos.index, pos.term))
}

func readApplied(db *bbolt.DB, sealer Sealer) (pos position, err error) {
	err = db.View(func(b *bbolt.Tx) error { return readPosition(b, sealer, &pos) })
	return pos, err
}

func readPosition(b *bbolt.Tx, sealer Sealer, pos *position) error {
	var from uint64
	var covered position
	if err := errors.Join(
		readNumbers(b, sealer, appliedKey, &pos.index, &pos.term),
		readNumbers(b, sealer, coveredKey, &from, &covered.index, &covered.term),
	); err != nil {
		return err
	}
	if from == pos.index && covered.index > pos.index {
		*pos = covered
	}
	return nil
}

// cover records that the log between from and at holds nothing for the FSM, so
// that a snapshot which ends there does not make the next start rebuild a state
// that is complete.
func (s *state) cover(from uint64, at position) error {
	if from >= at.index {
		return nil
	}
	b, err := s.beginWrite()
	if err != nil {
		return err
	}
	defer func() { _ = b.Rollback() }() // does nothing after a commit
	if err := putMeta(b, s.sealer, coveredKey, bigEndian(from, at.index, at.term)); err != nil {
		return err
	}
	return b.Commit()
}

// sync writes what the page cache holds to the disk. Durability does not need
// it; it is how write errors come to light.
func (s *state) sync() error {
	s.mu.RLock()
	db := s.db
	s.mu.RUnlock()
	if err := db.Sync(); err != nil {
		return fmt.Errorf("raftstore: sync state: %w", err)
	}
	return nil
}

// replace fills a new state file by fill, at position pos, in a cluster of who, and swaps it in.
// Readers of the old file finish undisturbed. A crash at any point leaves
// either the old file, whose position is behind the snapshot's, or a file
// without a passport: both are rebuilt.
func (s *state) replace(pos position, who members, fill func(put func(bucket string, key, value []byte) error) error) error {
	tmp, path := filepath.Join(s.dir, stateTmpFile), filepath.Join(s.dir, stateFile)
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("raftstore: replace state: %w", err)
	}
	db, err := openBolt(tmp)
	if err != nil {
		return err
	}
	if err := fillBolt(db, s.sealer, pos, who, fill); err != nil {
		return errors.Join(err, db.Close(), os.Remove(tmp))
	}
	if err := s.swap(db, tmp, path); err != nil {
		return err
	}
	s.setPosition(pos)
	return nil
}

func (s *state) swap(db *bbolt.DB, tmp, path string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.Rename(tmp, path); err != nil {
		return errors.Join(fmt.Errorf("raftstore: swap state: %w", err), db.Close())
	}
	old := s.db
	s.db = db
	s.closers.Go(func() {
		if err := old.Close(); err != nil { // waits for its readers
			s.log.Warn("old state file did not close", "error", err)
		}
	})
	if err := issuePassport(s.dir, path); err != nil {
		s.log.Warn("state file has no passport and will be rebuilt at the next start", "error", err)
	}
	return nil
}

// fillBatch bounds one transaction while a state file is filled, in bytes.
const fillBatch = 8 << 20

func fillBolt(db *bbolt.DB, sealer Sealer, pos position, who members, fill func(put func(bucket string, key, value []byte) error) error) error {
	var tx *Tx
	size := 0
	flush := func() error {
		if tx == nil {
			return nil
		}
		if tx.err != nil {
			return errors.Join(tx.err, tx.bolt.Rollback())
		}
		err := tx.bolt.Commit()
		tx, size = nil, 0
		return err
	}
	put := func(bucket string, key, value []byte) error {
		if tx == nil {
			b, err := db.Begin(true)
			if err != nil {
				return err
			}
			tx = newTx(b, sealer)
		}
		tx.put(bucket, key, value)
		if size += len(key) + len(value) + 64; size < fillBatch && tx.err == nil {
			return nil
		}
		return flush()
	}
	err := fill(put)
	if tx != nil && err != nil {
		err = errors.Join(err, tx.bolt.Rollback())
	} else if err == nil {
		err = flush()
	}
	if err != nil {
		return fmt.Errorf("raftstore: fill state: %w", err)
	}
	return db.Update(func(b *bbolt.Tx) error {
		return errors.Join(writeApplied(b, sealer, pos), writeMembers(b, sealer, who.index, raft.EncodeConfiguration(who.conf)))
	})
}

// close syncs and closes the file. An error voids its reuse.
func (s *state) close() error {
	err := s.sync()
	if err != nil {
		err = errors.Join(err, voidPassport(s.dir))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	err = errors.Join(err, s.db.Close())
	s.closers.Wait()
	return err
}
