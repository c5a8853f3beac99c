package raftstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
)

// fill commits n commands and returns how often Apply ran.
func (c *cluster) fill(n int) {
	c.t.Helper()
	for i := range n {
		c.set(fmt.Sprintf("k%03d", i), "v")
	}
}

// reopened opens n with a new machine and returns how many commands were applied again.
func (n *node) reopened(c *cluster) int {
	n.t.Helper()
	n.machine = &testMachine{}
	n.open()
	c.leader()
	if got := n.get("k049"); got != "v" {
		n.t.Fatalf("k049 = %q after reopening", got)
	}
	return n.machine.applied()
}

func TestHazard23CleanRestartReusesTheStateFile(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[0]
	c.fill(50)
	n.close()
	if again := n.reopened(c); again != 0 {
		t.Fatalf("%d commands were applied again", again)
	}
}

func TestHazard23KilledProcessReusesTheStateFile(t *testing.T) {
	c := &cluster{t: t, ca: newTestCA(t), sealer: newTestSealer(t, 1)}
	n := newNode(t, c, 1)
	c.nodes = []*node{n}
	child := startChild(t, n.cfg.Dir, c.ca)
	for i := range 50 {
		child.commit(fmt.Sprintf("set k%03d v", i))
	}
	child.kill()
	n.cfg.Bootstrap = false
	if again := n.reopened(c); again != 0 {
		t.Fatalf("%d commands were applied again", again)
	}
}

// A write to the state fails for real; the node stops, and the next start
// trusts nothing of the file.
func TestHazard23WriteErrorStopsTheNodeAndTheFileIsRebuilt(t *testing.T) {
	c := &cluster{t: t, ca: newTestCA(t), sealer: newTestSealer(t, 1)}
	n := newNode(t, c, 1)
	c.nodes = []*node{n}
	child := startChild(t, n.cfg.Dir, c.ca)
	child.commit("set k049 v")
	child.commit("limit")
	stopped, commits := "", 1
	for ; stopped == "" && commits < 200; commits++ {
		if _, err := fmt.Fprintf(child.in, "set big%d %s\n", commits, strings.Repeat("x", 20_000)); err != nil {
			t.Fatal(err)
		}
		if line := child.line(); !strings.HasSuffix(line, "<nil>") {
			stopped = line
		}
	}
	if !has(stopped, "before applying") { // the log took it, the state did not
		t.Fatalf("after %d commits: %q", commits, stopped)
	}
	child.kill()
	if _, err := os.Stat(filepath.Join(n.cfg.Dir, passportFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("the state file keeps its passport: %v", err)
	}
	n.cfg.Bootstrap = false
	if again := n.reopened(c); again < commits-1 {
		t.Fatalf("%d of %d commands were applied again", again, commits)
	}
}

// Each of these leaves a state file that may be missing anything.
func TestHazard23DoubtfulStateFileIsRebuilt(t *testing.T) {
	edit := func(dir string, change func(*passport)) error {
		name := filepath.Join(dir, passportFile)
		raw, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		var p passport
		if err := json.Unmarshal(raw, &p); err != nil {
			return err
		}
		change(&p)
		if raw, err = json.Marshal(p); err != nil {
			return err
		}
		return os.WriteFile(name, raw, 0o600)
	}
	copyState := func(dir string) error {
		name := filepath.Join(dir, stateFile)
		raw, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(name+".copy", raw, 0o600); err != nil {
			return err
		}
		return os.Rename(name+".copy", name)
	}
	for name, harm := range map[string]func(dir string) error{
		"another boot":     func(d string) error { return edit(d, func(p *passport) { p.BootID = "other" }) },
		"another device":   func(d string) error { return edit(d, func(p *passport) { p.Device++ }) },
		"another file":     copyState,
		"I/O error marked": func(d string) error { return os.WriteFile(filepath.Join(d, failedFile), nil, 0o600) },
		"voided":           voidPassport,
		"passport damaged": func(d string) error { return os.WriteFile(filepath.Join(d, passportFile), []byte("{"), 0o600) },
		"no passport":      func(d string) error { return os.Remove(filepath.Join(d, passportFile)) },
		"file damaged":     func(d string) error { return os.Truncate(filepath.Join(d, stateFile), 100) },
		"file gone":        func(d string) error { return os.Remove(filepath.Join(d, stateFile)) },
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 1, nil)
			n := c.nodes[0]
			c.fill(50)
			n.close()
			if err := harm(n.cfg.Dir); err != nil {
				t.Fatal(err)
			}
			if again := n.reopened(c); again != 50 {
				t.Fatalf("%d of 50 commands were applied again", again)
			}
			n.close() // the rebuilt file is good again
			if again := n.reopened(c); again != 0 {
				t.Fatalf("%d commands were applied again after a clean restart", again)
			}
		})
	}
}

func (n *node) takeSnapshot() {
	n.t.Helper()
	if err := n.raft.Snapshot().Error(); err != nil {
		n.t.Fatal(err)
	}
}

func TestHazard23SnapshotDoesNotSpoilReuse(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[0]
	c.fill(50)
	if err := n.raft.Barrier(0).Error(); err != nil { // the snapshot ends with an entry that Apply never sees
		t.Fatal(err)
	}
	n.takeSnapshot()
	inode := func() uint64 {
		p, err := passportOf(filepath.Join(n.cfg.Dir, stateFile))
		if err != nil {
			t.Fatal(err)
		}
		return p.Inode
	}
	before := inode()
	n.close()
	if again := n.reopened(c); again != 0 || inode() != before {
		t.Fatalf("%d commands were applied again; file replaced: %v", again, inode() != before)
	}
}

// A crash after a snapshot was received and before the state was swapped leaves
// a state behind the snapshot, which raft would take as applied.
func TestHazard23CrashBetweenReceivingASnapshotAndSwapping(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[0]
	c.set("k049", "old")
	n.close()
	old, err := os.ReadFile(filepath.Join(n.cfg.Dir, stateFile))
	if err != nil {
		t.Fatal(err)
	}
	n.open()
	c.leader()
	c.fill(50)
	n.takeSnapshot()
	n.close()
	// The old contents in the file that the passport names: as if never swapped.
	if err := os.WriteFile(filepath.Join(n.cfg.Dir, stateFile), old, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.cfg.Dir, stateTmpFile), []byte("half a state"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.reopened(c)
}

func TestHazard23StateAheadOfTheLogIsRebuilt(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[0]
	c.fill(50)
	n.close()
	log, err := openLog(n.cfg.Dir, c.sealer, newHCLog(n.cfg.Logger), func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	last, err := log.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	for back := range uint64(5) { // the disk lost the end of the log
		if err := log.DeleteRange(last-back, last-back); err != nil {
			t.Fatal(err)
		}
	}
	var entry raft.Log
	if err := log.GetLog(last, &entry); err == nil {
		t.Fatal("the entry is still there")
	}
	if err := log.close(); err != nil {
		t.Fatal(err)
	}
	n.machine = &testMachine{}
	n.open()
	c.leader()
	if got, again := n.get("k049"), n.machine.applied(); got != "" || again != 45 {
		t.Fatalf("k049 = %q, %d commands applied", got, again)
	}
}
