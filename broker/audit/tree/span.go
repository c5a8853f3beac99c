package tree

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

// A Span computes the root of a tree of which only the leaves [from, to) are at
// hand, from the hashes of what lies to the left and to the right of them. It
// holds at most one hash per level, so memory does not grow with the tree.
//
// The hashes to the left are the roots of the complete subtrees that make up
// [0, from), largest first ([Left]); those to the right are the complete subtrees
// that make up [to, size), as aligned blocks ([Right]). A root that comes out
// right proves every leaf and every position at once: it is all the leaves'
// inclusion proofs, and the consistency proof of from, in one (RFC 6962 §2.1.1,
// §2.1.2). The zero value is a Span from 0.
type Span struct {
	size  int64
	stack []node // levels strictly falling: the binary digits of size
}

type node struct {
	level int
	hash  tlog.Hash
}

// ErrProof is returned for a proof of the wrong length.
var ErrProof = errors.New("audit tree: the proof has the wrong number of hashes")

// NewSpan starts at from with the hashes of Left. Errors: ErrSeq, ErrProof.
func NewSpan(from int64, left []tlog.Hash) (*Span, error) {
	if from < 0 || from > MaxSeq {
		return nil, ErrSeq
	}
	s := &Span{}
	for _, b := range blocks(0, from) {
		if len(left) == 0 {
			return nil, ErrProof
		}
		s.push(b.level, left[0])
		left = left[1:]
	}
	if len(left) != 0 {
		return nil, ErrProof
	}
	return s, nil
}

// Size is the number of leaves so far.
func (s *Span) Size() int64 { return s.size }

// Add appends the hash of the next leaf.
func (s *Span) Add(leaf tlog.Hash) { s.push(0, leaf) }

// push appends a complete subtree at an aligned position and merges what it completes.
func (s *Span) push(level int, h tlog.Hash) {
	s.size += 1 << level
	for n := len(s.stack); n > 0 && s.stack[n-1].level == level; n = len(s.stack) {
		h = tlog.NodeHash(s.stack[n-1].hash, h)
		s.stack = s.stack[:n-1]
		level++
	}
	s.stack = append(s.stack, node{level, h})
}

// Root is the root of the tree of the leaves so far.
func (s *Span) Root() tlog.Hash {
	n := len(s.stack)
	if n == 0 {
		return sha256.Sum256(nil) // RFC 6962 §2.1
	}
	h := s.stack[n-1].hash
	for i := n - 2; i >= 0; i-- {
		h = tlog.NodeHash(s.stack[i].hash, h)
	}
	return h
}

// Close appends the hashes of Right, up to size. Errors: ErrSeq, ErrProof.
func (s *Span) Close(size int64, right []tlog.Hash) error {
	if size < s.size || size > MaxSeq {
		return ErrSeq
	}
	todo := blocks(s.size, size)
	if len(todo) != len(right) {
		return ErrProof
	}
	for i, b := range todo {
		s.push(b.level, right[i])
	}
	return nil
}

// Left reads the hashes that NewSpan needs: at most 61.
func Left(hr tlog.HashReader, from int64) ([]tlog.Hash, error) { return readBlocks(hr, 0, from) }

// Right reads the hashes that Close needs: at most 122.
func Right(hr tlog.HashReader, to, size int64) ([]tlog.Hash, error) { return readBlocks(hr, to, size) }

func readBlocks(hr tlog.HashReader, from, to int64) ([]tlog.Hash, error) {
	if from < 0 || from > to || to > MaxSeq {
		return nil, ErrSeq
	}
	var indexes []int64
	for _, b := range blocks(from, to) {
		indexes = append(indexes, tlog.StoredHashIndex(b.level, b.start>>b.level))
	}
	if len(indexes) == 0 {
		return nil, nil
	}
	hashes, err := hr.ReadHashes(indexes)
	if err != nil {
		return nil, fmt.Errorf("audit tree: hashes of [%d, %d): %w", from, to, err)
	}
	if len(hashes) != len(indexes) {
		return nil, fmt.Errorf("audit tree: asked for %d hashes, got %d", len(indexes), len(hashes))
	}
	return hashes, nil
}

// block is a complete subtree: 1<<level leaves from start, a multiple of that.
type block struct {
	start int64
	level int
}

// blocks divides [from, to) into the fewest complete subtrees, left to right.
func blocks(from, to int64) []block {
	var out []block
	for from < to {
		level := bits.Len64(uint64(to-from)) - 1
		if from > 0 {
			level = min(level, bits.TrailingZeros64(uint64(from)))
		}
		out = append(out, block{from, level})
		from += 1 << level
	}
	return out
}
