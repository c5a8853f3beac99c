// Package tree is what the writer and the verifiers of the audit log share: the
// bytes of a leaf, the hashes to store for it, and the root. It is an RFC 6962
// tree by golang.org/x/mod/sumdb/tlog.
//
// It is pure and runs inside the state machine: no clock, no randomness, no I/O,
// and what it returns for given input never changes. It must know nothing of any
// other package of the broker, nor of what a command means.
package tree

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// leafPrefix names the encoding. A new encoding gets a new prefix, so that no
// leaf can be read in two ways.
const leafPrefix = "mayfly.leaf.v1\x00"

// MaxSeq is the highest sequence number: beyond it the hash indexes would not fit
// 63 bits.
const MaxSeq = int64(1)<<61 - 1

// ErrSeq is returned for a sequence number or size below 0 or above MaxSeq.
var ErrSeq = errors.New("audit tree: sequence number out of range")

// LeafData returns the bytes that the leaf of a command hashes: the prefix, then
// the result code and the raw command, each with its length as a big-endian
// uint64. The position in the tree says the sequence number, so it is not
// repeated. The command bytes never hold a secret, only salted commitments
// (HAZARDS 25): what enters a leaf can never be taken out again.
func LeafData(result string, command []byte) []byte {
	out := make([]byte, 0, len(leafPrefix)+8+len(result)+8+len(command))
	out = append(out, leafPrefix...)
	out = binary.BigEndian.AppendUint64(out, uint64(len(result)))
	out = append(out, result...)
	out = binary.BigEndian.AppendUint64(out, uint64(len(command)))
	return append(out, command...)
}

// LeafHash is the RFC 6962 §2.1 hash of a leaf's data.
func LeafHash(leaf []byte) tlog.Hash { return tlog.RecordHash(leaf) }

// Append returns the hashes to store for leaf number seq (counted from 0), in
// order, from index FirstIndex(seq) on. It reads at most 61 earlier hashes from
// hr; seq must be the present size of the tree. Errors: ErrSeq; what hr returned.
func Append(hr tlog.HashReader, seq int64, leaf []byte) ([]tlog.Hash, error) {
	if seq < 0 || seq > MaxSeq {
		return nil, ErrSeq
	}
	hashes, err := tlog.StoredHashes(seq, leaf, hr)
	if err != nil {
		return nil, fmt.Errorf("audit tree: leaf %d: %w", seq, err)
	}
	return hashes, nil
}

// FirstIndex is the index of the first hash that Append returns for seq.
func FirstIndex(seq int64) int64 { return tlog.StoredHashIndex(0, seq) }

// Root returns the tree's root hash at a size; of the empty tree, SHA-256 of
// nothing. Errors: ErrSeq; what hr returned.
func Root(hr tlog.HashReader, size int64) (tlog.Hash, error) {
	if size < 0 || size > MaxSeq {
		return tlog.Hash{}, ErrSeq
	}
	root, err := tlog.TreeHash(size, hr)
	if err != nil {
		return tlog.Hash{}, fmt.Errorf("audit tree: root at %d: %w", size, err)
	}
	return root, nil
}

// KeyBytes is the length of a stored hash's key.
const KeyBytes = 8

// Key returns the key under which the hash with an index is stored: big-endian,
// so that keys sort as indexes do.
func Key(index int64) [KeyBytes]byte {
	var k [KeyBytes]byte
	binary.BigEndian.PutUint64(k[:], uint64(index))
	return k
}

// Index is the inverse of Key; false for what is no key.
func Index(key []byte) (int64, bool) {
	if len(key) != KeyBytes || key[0]&0x80 != 0 {
		return 0, false
	}
	return int64(binary.BigEndian.Uint64(key)), true
}
