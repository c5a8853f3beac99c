package raftstore

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
)

func (n *node) backup() []byte {
	n.t.Helper()
	var buf bytes.Buffer
	if err := n.Snapshot(testCtx(n.t), &buf); err != nil {
		n.t.Fatal(err)
	}
	return buf.Bytes()
}

func (n *node) incarnation() string {
	n.t.Helper()
	var v []byte
	if err := n.View(func(tx *Tx) error { v = tx.Get(MetaBucket, []byte(IncarnationKey)); return nil }); err != nil {
		n.t.Fatal(err)
	}
	return string(v)
}

func TestHazard19RestoreIsANewIncarnationOnEveryNode(t *testing.T) {
	var seen []string
	c := newCluster(t, 3, func(cfg *Config) {
		cfg.Hooks.Preamble = func() ([]byte, Sealer, error) { return []byte("wrapped"), cfg.Sealer, nil }
	})
	c.set("a", "1")
	saved := c.leader().backup()
	if info, err := CheckBackup(bytes.NewReader(saved)); err != nil || string(info.Preamble) != "wrapped" || info.Index == 0 {
		t.Fatalf("check: %+v, %v", info, err)
	}
	c.set("a", "2")
	c.set("b", "2")
	for range 2 {
		if _, err := c.leader().Restore(testCtx(t), bytes.NewReader(saved)); err != nil {
			t.Fatal(err)
		}
		inc := c.leader().incarnation()
		if inc == "" {
			t.Fatal("no incarnation after a restore")
		}
		for _, n := range c.nodes {
			eventually(t, "the same incarnation", func() bool { return n.incarnation() == inc })
			if a, b := n.get("a"), n.get("b"); a != "1" || b != "" {
				t.Fatalf("%s: a=%q b=%q", n.cfg.NodeID, a, b)
			}
		}
		seen = append(seen, inc)
	}
	if seen[0] == seen[1] {
		t.Fatal("two restores share an incarnation")
	}
	c.set("c", "3")
	for _, n := range c.nodes {
		n.await("c", "3")
		n.close()
		n.open()
		n.await("c", "3")
	}
	if _, err := c.followers()[0].Restore(testCtx(t), bytes.NewReader(saved)); !errors.Is(err, ErrNotLeader) {
		t.Fatalf("restore on a follower: %v", err)
	}
}

func TestDamagedBackupChangesNothing(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[0]
	c.set("a", strings.Repeat("1", 3000))
	saved := n.backup()
	for i := 0; i < len(saved); i += 13 {
		bad := bytes.Clone(saved)
		bad[i] ^= 0x40
		if _, err := CheckBackup(bytes.NewReader(bad)); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("byte %d: check says %v", i, err)
		}
		if _, err := n.Restore(testCtx(t), bytes.NewReader(bad)); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrSealBroken) {
			t.Fatalf("byte %d: restore says %v", i, err)
		}
	}
	for _, cut := range []int{0, 1, streamHeaderSize, len(saved) - 1} {
		if _, err := n.Restore(testCtx(t), bytes.NewReader(saved[:cut])); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut at %d: %v", cut, err)
		}
	}
	if n.incarnation() != "" || n.get("a") == "" {
		t.Fatal("a refused backup changed the state")
	}
}

func TestSnapshotStopsWithItsContext(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.set("a", "1")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.nodes[0].Snapshot(ctx, io.Discard); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestRestoreStopsTheLeadersWorkMeanwhile(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[0]
	began, ended := make(chan uint64, 8), make(chan string, 8)
	n.Lead(func(ctx context.Context) {
		term, _ := LeadTerm(ctx)
		began <- term
		<-ctx.Done()
		ended <- n.incarnation()
	})
	<-began
	c.set("a", "1")
	saved := n.backup()
	if _, err := n.Restore(testCtx(t), bytes.NewReader(saved)); err != nil {
		t.Fatal(err)
	}
	if inc := <-ended; inc != "" {
		t.Fatal("the work saw the restored state")
	}
	<-began
}
