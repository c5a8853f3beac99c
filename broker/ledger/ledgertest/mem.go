// Package ledgertest holds an in-memory state for tests and simulations of the
// ledger, and shorthand for the commands that most tests begin with.
package ledgertest

import (
	"maps"
	"slices"
	"strings"
)

// Mem is an ordered key-value state in memory. It satisfies ledger.Writer. The
// zero value is empty and ready. It is not safe for concurrent use.
type Mem struct {
	buckets map[string]*bucket
}

type bucket struct {
	values map[string][]byte
	keys   []string // sorted when !dirty
	dirty  bool
}

func (m *Mem) bucket(name string) *bucket {
	if m.buckets == nil {
		m.buckets = map[string]*bucket{}
	}
	b, ok := m.buckets[name]
	if !ok {
		b = &bucket{values: map[string][]byte{}}
		m.buckets[name] = b
	}
	return b
}

// Get implements ledger.Reader.
func (m *Mem) Get(name string, key []byte) []byte { return m.bucket(name).values[string(key)] }

// Put implements ledger.Writer.
func (m *Mem) Put(name string, key, value []byte) {
	b := m.bucket(name)
	if _, ok := b.values[string(key)]; !ok {
		b.dirty = true
	}
	b.values[string(key)] = slices.Clone(value)
}

// Delete implements ledger.Writer.
func (m *Mem) Delete(name string, key []byte) {
	b := m.bucket(name)
	if _, ok := b.values[string(key)]; ok {
		delete(b.values, string(key))
		b.dirty = true
	}
}

// Scan implements ledger.Reader.
func (m *Mem) Scan(name string, prefix, from []byte, fn func(key, value []byte) bool) {
	b := m.bucket(name)
	if b.dirty {
		b.keys, b.dirty = slices.Sorted(maps.Keys(b.values)), false
	}
	start := max(string(prefix), string(from))
	i, _ := slices.BinarySearch(b.keys, start)
	for _, k := range b.keys[i:] {
		if !strings.HasPrefix(k, string(prefix)) || !fn([]byte(k), b.values[k]) {
			return
		}
	}
}

// Clone returns a copy, as a snapshot would.
func (m *Mem) Clone() *Mem {
	out := &Mem{buckets: map[string]*bucket{}}
	for name, b := range m.buckets {
		out.buckets[name] = &bucket{values: maps.Clone(b.values), dirty: true}
	}
	return out
}

// Equal reports whether two states hold the same.
func (m *Mem) Equal(o *Mem) bool { return m.Dump() == o.Dump() }

// Dump prints the state in key order, for comparison and for people.
func (m *Mem) Dump() string {
	var sb strings.Builder
	for _, name := range slices.Sorted(maps.Keys(m.buckets)) {
		m.Scan(name, nil, nil, func(k, v []byte) bool {
			sb.WriteString(name + "/" + strings.ReplaceAll(string(k), "\x00", "|") + " = " + string(v) + "\n")
			return true
		})
	}
	return sb.String()
}

// Each calls fn for every record, in order of bucket and key.
func (m *Mem) Each(fn func(bucket, key string, value []byte)) {
	for _, name := range slices.Sorted(maps.Keys(m.buckets)) {
		m.Scan(name, nil, nil, func(k, v []byte) bool {
			fn(name, string(k), v)
			return true
		})
	}
}
