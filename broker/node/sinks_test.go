package node_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/mayfly-broker/mayfly/broker/node"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// fileRoot reads a sink's file: how many entries it has and what Merkle root
// they make. Entries that are missing, repeated or out of order are an error.
func fileRoot(path string) (digest []byte, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(at []int64) (out []tlog.Hash, err error) {
		for _, i := range at {
			out = append(out, stored[i])
		}
		return out, nil
	})
	size := int64(0)
	for line := range bytes.Lines(b) {
		var e struct {
			Seq  int64     `json:"seq"`
			Leaf tlog.Hash `json:"leaf"`
		}
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("line %d: %w", size, err)
		}
		if e.Seq != size {
			return nil, fmt.Errorf("line %d has entry %d", size, e.Seq)
		}
		more, err := tlog.StoredHashesForRecordHash(size, e.Leaf, reader)
		if err != nil {
			return nil, err
		}
		stored = append(stored, more...)
		size++
	}
	root, err := tlog.TreeHash(size, reader)
	return append(binary.BigEndian.AppendUint64(nil, uint64(size)), root[:]...), err
}

// drained waits until the file holds all that the ledger holds.
func drained(t *testing.T, n *node.Node, path string) {
	t.Helper()
	var last error
	t.Cleanup(func() {
		if t.Failed() && last != nil {
			t.Log(last)
		}
	})
	eventually(t, path+" holds every entry", func() bool {
		var got []byte
		got, last = fileRoot(path)
		return last == nil && bytes.Equal(got, n.Digest())
	})
}

func TestLaw5SinkHoldsEveryEntryOverRestarts(t *testing.T) {
	t.Parallel()
	cfg := config(t, "n1", t.TempDir())
	cfg.LocalKey = filepath.Join(t.TempDir(), "seal.key")
	n := start(t, cfg)
	_, err := n.Init(t.Context(), wire.InitRequest{Admins: []string{ann}})
	must(t, err)
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	sink := func(path string) wire.Object {
		spec, err := json.Marshal(map[string]string{"type": "file", "path": path})
		must(t, err)
		return wire.Object{Kind: "Sink", Name: "file", Spec: spec}
	}
	write(t, n, "workload:earlier") // before there is a sink
	must(t, tryWrite(t.Context(), n, sink(path)))
	for i := range 20 {
		write(t, n, fmt.Sprintf("workload:a%d", i))
	}
	drained(t, n, path)

	// Entries are on their way when it stops.
	for i := range 20 {
		write(t, n, fmt.Sprintf("workload:b%d", i))
	}
	n = restart(t, n, cfg)
	ready(t, n)
	for i := range 20 {
		write(t, n, fmt.Sprintf("workload:c%d", i))
	}
	drained(t, n, path)

	// A sink whose place is gone blocks nobody and has missed nothing when the
	// place is back.
	away := filepath.Join(t.TempDir(), "away")
	elsewhere := filepath.Join(away, "audit.jsonl")
	must(t, tryWrite(t.Context(), n, sink(elsewhere)))
	write(t, n, "workload:meanwhile")
	must(t, os.Mkdir(away, 0o700))
	drained(t, n, elsewhere)
}
