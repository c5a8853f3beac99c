package replay

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"go.etcd.io/bbolt"
)

// Bounds of the state, with their reasons.
const (
	// batchEntries and batchBytes end a transaction: bbolt holds in memory what a
	// transaction has written.
	batchEntries = 4096
	batchBytes   = 16 << 20
	// maxKey and maxValue are what the replicated store takes. A command that
	// asks for more has stopped every node, and was never recorded.
	maxKey   = 4 << 10
	maxValue = 1<<20 + 64<<10
)

// errBounds is kept when the ledger puts what no replica could store.
var errBounds = errors.New("the state would hold a key or value that no node can store")

// store is an ordered map in a file of its own, for one verification: nothing is
// synced, and [store.close] removes it. It satisfies [ledger.Writer]. Its first
// error sticks: then reads find nothing and writes do nothing.
type store struct {
	dir     string
	db      *bbolt.DB
	tx      *bbolt.Tx
	buckets map[string]*bbolt.Bucket
	entries int // since the last commit
	written int // bytes, since the last commit
	err     error
}

// openStore makes the file in a new directory under dir; "" is the system's.
func openStore(dir string) (*store, error) {
	own, err := os.MkdirTemp(dir, "mayfly-verify-")
	if err != nil {
		return nil, err
	}
	db, err := bbolt.Open(filepath.Join(own, "state.db"), 0o600, &bbolt.Options{
		NoSync: true, NoGrowSync: true, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType,
	})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(own))
	}
	s := &store{dir: own, db: db}
	if s.begin(); s.err != nil {
		return nil, errors.Join(s.err, s.close())
	}
	return s, nil
}

// close removes the file.
func (s *store) close() error {
	if s.tx != nil {
		_ = s.tx.Rollback() // nobody needs it any more
	}
	return errors.Join(s.db.Close(), os.RemoveAll(s.dir))
}

func (s *store) begin() {
	s.tx, s.err = s.db.Begin(true)
	s.buckets, s.entries, s.written = map[string]*bbolt.Bucket{}, 0, 0
}

// step ends an entry, and now and then a transaction.
func (s *store) step() error {
	if s.entries++; s.err == nil && (s.entries >= batchEntries || s.written >= batchBytes) {
		if s.err = s.tx.Commit(); s.err == nil {
			s.begin()
		}
	}
	return s.err
}

func (s *store) fail(err error) {
	if s.err == nil && err != nil {
		s.err = fmt.Errorf("state of the replay: %w", err)
	}
}

func (s *store) bucket(name string) *bbolt.Bucket {
	if s.err != nil {
		return nil
	}
	b := s.buckets[name]
	if b == nil {
		var err error
		if b, err = s.tx.CreateBucketIfNotExists([]byte(name)); err != nil {
			s.fail(err)
			return nil
		}
		s.buckets[name] = b
	}
	return b
}

// Get implements [ledger.Reader]. It copies: bbolt may move what it gave as soon
// as something is written.
func (s *store) Get(bucket string, key []byte) []byte {
	b := s.bucket(bucket)
	if b == nil || len(key) == 0 {
		return nil
	}
	if v := b.Get(key); v != nil {
		return append([]byte{}, v...) // empty is not absent
	}
	return nil
}

// Scan implements [ledger.Reader].
func (s *store) Scan(bucket string, prefix, from []byte, fn func(key, value []byte) bool) {
	b := s.bucket(bucket)
	if b == nil {
		return
	}
	start := prefix
	if bytes.Compare(from, prefix) > 0 {
		start = from
	}
	c := b.Cursor()
	for k, v := c.Seek(start); k != nil && bytes.HasPrefix(k, prefix); k, v = c.Next() {
		if !fn(bytes.Clone(k), append([]byte{}, v...)) {
			return
		}
	}
}

// Put implements [ledger.Writer].
func (s *store) Put(bucket string, key, value []byte) {
	if len(key) == 0 || len(key) > maxKey || len(value) > maxValue {
		s.fail(errBounds)
	}
	if b := s.bucket(bucket); b != nil {
		s.written += len(key) + len(value)
		s.fail(b.Put(bytes.Clone(key), bytes.Clone(value))) // bbolt keeps both until it commits
	}
}

// Delete implements [ledger.Writer].
func (s *store) Delete(bucket string, key []byte) {
	if len(key) == 0 || len(key) > maxKey {
		s.fail(errBounds)
	}
	if b := s.bucket(bucket); b != nil {
		s.fail(b.Delete(key))
	}
}
