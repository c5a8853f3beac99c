package tree_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/mayfly-broker/mayfly/broker/audit/tree"
)

// hashes is the stored hashes of a growing tree.
type hashes []tlog.Hash

func (h *hashes) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		if x < 0 || x >= int64(len(*h)) {
			return nil, fmt.Errorf("no hash %d", x)
		}
		out[i] = (*h)[x]
	}
	return out, nil
}

func (h *hashes) append(t testing.TB, seq int64, leaf []byte) {
	t.Helper()
	if int64(len(*h)) != tree.FirstIndex(seq) {
		t.Fatalf("leaf %d starts at index %d, want %d", seq, len(*h), tree.FirstIndex(seq))
	}
	more, err := tree.Append(h, seq, leaf)
	if err != nil {
		t.Fatal(err)
	}
	*h = append(*h, more...)
}

// Hazard 25: the leaf covers the raw command and the result code, without doubt
// where one ends and the other begins. The bytes are frozen.
func TestHazard25LeafBytesAreFrozenAndUnambiguous(t *testing.T) {
	got := hex.EncodeToString(tree.LeafData("ok", []byte(`{"a":1}`)))
	want := hex.EncodeToString([]byte("mayfly.leaf.v1\x00")) + "0000000000000002" + "6f6b" + "0000000000000007" + "7b2261223a317d"
	if got != want {
		t.Fatalf("the encoding changed:\n got %s\nwant %s", got, want)
	}
	// RFC 6962 §2.1: SHA-256 of a zero byte and the leaf.
	if h := tree.LeafHash([]byte("x")); h != sha256.Sum256([]byte("\x00x")) {
		t.Fatalf("leaf hash %s", h)
	}
	seen := map[string]string{}
	for _, c := range [][2]string{{"", ""}, {"a", ""}, {"", "a"}, {"ab", "c"}, {"a", "bc"}, {"abc", ""}, {"\x00", ""}, {"", "\x00"}} {
		b := string(tree.LeafData(c[0], []byte(c[1])))
		if other, ok := seen[b]; ok {
			t.Fatalf("%q and %q have one leaf", c, other)
		}
		seen[b] = fmt.Sprint(c)
	}
}

func TestSpanAgreesWithTheTree(t *testing.T) {
	const size = 70
	var h hashes
	var leaves []tlog.Hash
	for seq := range int64(size) {
		leaf := tree.LeafData("ok", fmt.Appendf(nil, "%d", seq))
		h.append(t, seq, leaf)
		leaves = append(leaves, tree.LeafHash(leaf))
	}
	for n := range int64(size + 1) {
		root, err := tree.Root(&h, n)
		if err != nil {
			t.Fatal(err)
		}
		for from := range n + 1 {
			for to := from; to <= n; to += 1 + n%7 {
				left, err := tree.Left(&h, from)
				if err != nil {
					t.Fatal(err)
				}
				right, err := tree.Right(&h, to, n)
				if err != nil {
					t.Fatal(err)
				}
				s, err := tree.NewSpan(from, left)
				if err != nil {
					t.Fatal(err)
				}
				for _, leaf := range leaves[from:to] {
					s.Add(leaf)
				}
				if at, err := tree.Root(&h, to); err != nil || s.Root() != at || s.Size() != to {
					t.Fatalf("[%d,%d): root at %d differs", from, to, to)
				}
				if err := s.Close(n, right); err != nil {
					t.Fatal(err)
				}
				if s.Root() != root {
					t.Fatalf("[%d,%d) of %d: wrong root", from, to, n)
				}
			}
		}
	}
}

func TestSpanRefusesAWrongProof(t *testing.T) {
	for _, from := range []int64{1, 3, 64, tree.MaxSeq} {
		for _, n := range []int{0, 100} {
			if _, err := tree.NewSpan(from, make([]tlog.Hash, n)); !errors.Is(err, tree.ErrProof) {
				t.Fatalf("from %d with %d hashes: %v", from, n, err)
			}
		}
	}
	for _, from := range []int64{-1, tree.MaxSeq + 1} {
		if _, err := tree.NewSpan(from, nil); !errors.Is(err, tree.ErrSeq) {
			t.Fatalf("from %d: %v", from, err)
		}
		if _, err := tree.Append(nil, from, nil); !errors.Is(err, tree.ErrSeq) {
			t.Fatalf("append %d: %v", from, err)
		}
		if _, err := tree.Root(nil, from); !errors.Is(err, tree.ErrSeq) {
			t.Fatalf("root %d: %v", from, err)
		}
	}
	s, err := tree.NewSpan(0, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(tree.MaxSeq, nil); !errors.Is(err, tree.ErrProof) {
		t.Fatalf("an empty proof of a large tree: %v", err)
	}
	empty, err := tree.Root(nil, 0)
	if err != nil || s.Root() != empty {
		t.Fatal("the empty tree's root differs")
	}
}

func TestKeysSortAsIndexes(t *testing.T) {
	var last []byte
	for _, i := range []int64{0, 1, 255, 256, 1 << 40, 1<<62 - 1} {
		k := tree.Key(i)
		if bytes.Compare(last, k[:]) >= 0 {
			t.Fatalf("key %d sorts before its predecessor", i)
		}
		last = k[:]
		if got, ok := tree.Index(k[:]); !ok || got != i {
			t.Fatalf("%d became %d", i, got)
		}
	}
	for _, bad := range [][]byte{nil, {1}, make([]byte, 9), {0x80, 0, 0, 0, 0, 0, 0, 0}} {
		if _, ok := tree.Index(bad); ok {
			t.Fatalf("%x is a key", bad)
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	var h hashes
	leaf := tree.LeafData("ok", make([]byte, 1024))
	b.ReportAllocs()
	for seq := int64(0); b.Loop(); seq++ {
		more, err := tree.Append(&h, seq, leaf)
		if err != nil {
			b.Fatal(err)
		}
		h = append(h, more...)
	}
}
