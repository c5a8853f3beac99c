package raftstore

import (
	"bytes"
	"fmt"
	"strings"

	"go.etcd.io/bbolt"
)

// MetaBucket is the store's own bucket. A [Machine] may read it, never write it.
const MetaBucket = "raftstore"

// IncarnationKey, in [MetaBucket], holds 16 random bytes that [Store.Restore]
// sets; absent in a state that was never restored. Whoever acts on the outside
// world compares it with the incarnation it last adopted.
const IncarnationKey = "incarnation"

// Tx is a transaction over the state: a read of one consistent version, or a
// batch of commands being applied. It must not outlive the function it was
// given to, nor be shared between goroutines. Its first error sticks: later
// reads find nothing, later writes do nothing, and the owner of the
// transaction gets the error.
type Tx struct {
	bolt    *bbolt.Tx
	sealer  Sealer
	err     error
	place   []byte // reused
	buckets map[string]*bbolt.Bucket
	writes  uint64 // so that Scan notices writes made under it
}

func newTx(b *bbolt.Tx, sealer Sealer) *Tx {
	return &Tx{bolt: b, sealer: sealer, buckets: make(map[string]*bbolt.Bucket, 8)}
}

func (t *Tx) fail(err error) {
	if t.err == nil {
		t.err = err
	}
}

// statePlace is where a value belongs: a name, a NUL that names never hold, a key.
func (t *Tx) statePlace(bucket string, key []byte) []byte {
	t.place = append(t.place[:0], "state"...)
	t.place = append(t.place, bucket...)
	t.place = append(t.place, 0)
	t.place = append(t.place, key...)
	return t.place
}

func (t *Tx) bucket(name string) *bbolt.Bucket {
	if b := t.buckets[name]; b != nil {
		return b
	}
	b := t.bolt.Bucket([]byte(name))
	if b != nil {
		t.buckets[name] = b
	}
	return b
}

func (t *Tx) open(bucket string, key, sealed []byte) []byte {
	v, err := t.sealer.Open(t.statePlace(bucket, key), sealed)
	if err != nil {
		t.fail(fmt.Errorf("%w: bucket %q, key %x", ErrSealBroken, bucket, key))
		return nil
	}
	if v == nil {
		v = []byte{} // empty is not absent
	}
	return v
}

// Get returns key's value, nil when absent. The caller owns it.
func (t *Tx) Get(bucket string, key []byte) []byte {
	if t.err != nil {
		return nil
	}
	b := t.bucket(bucket)
	if b == nil {
		return nil
	}
	sealed := b.Get(key)
	if sealed == nil {
		return nil
	}
	return t.open(bucket, key, sealed)
}

// Scan calls fn for each key that has prefix, in order, starting at from when
// that lies further on, until fn returns false. The caller owns key and value.
// fn may write: what it writes ahead of its own key is seen.
func (t *Tx) Scan(bucket string, prefix, from []byte, fn func(key, value []byte) bool) {
	if t.err != nil {
		return
	}
	b := t.bucket(bucket)
	if b == nil {
		return
	}
	start := prefix
	if bytes.Compare(from, prefix) > 0 {
		start = from
	}
	c := b.Cursor()
	for k, sealed := c.Seek(start); k != nil && bytes.HasPrefix(k, prefix); {
		key := bytes.Clone(k)
		value := t.open(bucket, key, sealed)
		if t.err != nil {
			return
		}
		before := t.writes
		if !fn(key, value) || t.err != nil {
			return
		}
		if t.writes == before {
			k, sealed = c.Next()
			continue
		}
		// A write may have moved what the cursor stands on.
		if k, sealed = c.Seek(key); bytes.Equal(k, key) {
			k, sealed = c.Next()
		}
	}
}

// Put sets key's value. It keeps neither slice.
func (t *Tx) Put(bucket string, key, value []byte) {
	if t.err == nil && bucket == MetaBucket {
		t.fail(fmt.Errorf("%w: bucket %q is the store's own", ErrMisuse, bucket))
	}
	t.put(bucket, key, value)
}

func (t *Tx) put(bucket string, key, value []byte) {
	if t.err != nil {
		return
	}
	if err := checkEntry(bucket, len(key), len(value)); err != nil {
		t.fail(err)
		return
	}
	b := t.bucket(bucket)
	if b == nil {
		var err error
		if b, err = t.bolt.CreateBucketIfNotExists([]byte(bucket)); err != nil {
			t.fail(fmt.Errorf("raftstore: bucket %q: %w", bucket, err))
			return
		}
		t.buckets[bucket] = b
	}
	t.writes++
	if err := b.Put(key, t.sealer.Seal(t.statePlace(bucket, key), value)); err != nil {
		t.fail(fmt.Errorf("raftstore: put in bucket %q: %w", bucket, err))
	}
}

// Delete removes key; absent is fine.
func (t *Tx) Delete(bucket string, key []byte) {
	if t.err != nil {
		return
	}
	if err := checkEntry(bucket, len(key), 0); err != nil || bucket == MetaBucket {
		t.fail(fmt.Errorf("%w: delete in bucket %q", ErrMisuse, bucket))
		return
	}
	b := t.bucket(bucket)
	if b == nil {
		return
	}
	t.writes++
	if err := b.Delete(key); err != nil {
		t.fail(fmt.Errorf("raftstore: delete in bucket %q: %w", bucket, err))
	}
}

// checkEntry refuses what could not be stored, or could be mistaken for another place.
func checkEntry(bucket string, key, value int) error {
	switch {
	case bucket == "" || len(bucket) > MaxBucketName || strings.IndexByte(bucket, 0) >= 0:
		return fmt.Errorf("%w: bucket name of %d bytes", ErrMisuse, len(bucket))
	case key == 0 || key > MaxKeySize:
		return fmt.Errorf("%w: key of %d bytes in bucket %q", ErrMisuse, key, bucket)
	case value > MaxValueSize:
		return fmt.Errorf("%w: value of %d bytes in bucket %q", ErrMisuse, value, bucket)
	}
	return nil
}
