package audit_test

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/mayfly-broker/mayfly/broker/audit"
	"github.com/mayfly-broker/mayfly/broker/audit/tree"
	"github.com/mayfly-broker/mayfly/broker/fault"
)

// memLog is a ledger in memory: entries, stored hashes, and nodes' keys.
type memLog struct {
	mu      sync.Mutex
	origin  string
	entries []audit.Entry
	hashes  []tlog.Hash
	signers []note.Signer
	keys    []string
	signed  int64 // size of the checkpoint; -1 for the whole log
}

// command is what the tests' commands look like on the wire.
type command struct {
	Type     string    `json:"type"`
	Time     time.Time `json:"time"`
	Actor    string    `json:"actor,omitempty"`
	Decision string    `json:"decision,omitempty"`
	Purpose  string    `json:"purpose,omitempty"`
}

func describe(_ string, b []byte) (audit.Summary, error) {
	var c command
	if err := json.Unmarshal(b, &c); err != nil {
		return audit.Summary{}, err
	}
	return audit.Summary{Time: c.Time, Type: c.Type, Actor: c.Actor, DecisionID: c.Decision}, nil
}

func testSigner(t testing.TB, name string, seed byte) (note.Signer, string) {
	t.Helper()
	key := ed25519.NewKeyFromSeed(slices.Repeat([]byte{seed}, ed25519.SeedSize))
	s, vkey, err := audit.NewSigner(name, key)
	if err != nil {
		t.Fatal(err)
	}
	return s, vkey
}

func newLog(t testing.TB, size int) *memLog {
	t.Helper()
	l := &memLog{origin: audit.Origin("c1", 1), signed: -1}
	for i := range 3 {
		s, vkey := testSigner(t, fmt.Sprintf("c1/node-%d", i), byte(i+1))
		l.signers, l.keys = append(l.signers, s), append(l.keys, vkey)
	}
	for range size {
		l.add(t, "")
	}
	return l
}

func (l *memLog) add(t testing.TB, purpose string) {
	t.Helper()
	l.mu.Lock()
	n := len(l.entries)
	l.mu.Unlock()
	c := command{
		Type: "lease.open", Time: time.Unix(1_800_000_000+int64(n/3), int64(n%3)).UTC(),
		Actor: fmt.Sprintf("agent:a%d", n%5), Decision: fmt.Sprintf("d-%d", n), Purpose: purpose,
	}
	if n%4 == 3 {
		c.Decision = ""
	}
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	s, err := describe("", b)
	if err != nil {
		t.Fatal(err)
	}
	l.append(t, audit.Entry{Summary: s, Result: "ok", Command: b})
}

func (l *memLog) append(t testing.TB, e audit.Entry) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	e.Seq = int64(len(l.entries))
	more, err := tree.Append(tlog.HashReaderFunc(l.read), e.Seq, tree.LeafData(e.Result, e.Command))
	if err != nil {
		t.Fatal(err)
	}
	l.entries, l.hashes = append(l.entries, e), append(l.hashes, more...)
}

func (l *memLog) Size(context.Context) (int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int64(len(l.entries)), nil
}

func (l *memLog) Entry(_ context.Context, seq int64) (audit.Entry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if seq < 0 || seq >= int64(len(l.entries)) {
		return audit.Entry{}, fault.New(fault.NotFound, "", "no entry %d", seq)
	}
	return l.entries[seq], nil
}

func (l *memLog) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.read(indexes)
}

func (l *memLog) read(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		if x < 0 || x >= int64(len(l.hashes)) {
			return nil, fmt.Errorf("no hash %d", x)
		}
		out[i] = l.hashes[x]
	}
	return out, nil
}

func (l *memLog) checkpoint() (audit.Checkpoint, error) {
	size := l.signed
	if size < 0 {
		size = int64(len(l.entries))
	}
	root, err := tree.Root(l, size)
	return audit.Checkpoint{Origin: l.origin, Size: size, Root: root}, err
}

func (l *memLog) Checkpoint(context.Context) ([]byte, error) {
	c, err := l.checkpoint()
	if err != nil {
		return nil, err
	}
	return audit.SignCheckpoint(c, l.signers...)
}

// wantDefect checks that err is a Defect with a code, and returns it.
func wantDefect(t testing.TB, err error, code string) *audit.Defect {
	t.Helper()
	var d *audit.Defect
	if !errors.As(err, &d) || d.Code != code {
		t.Fatalf("got %v, want a defect %q", err, code)
	}
	if f := fault.As(err); f.Code != "audit_"+code || f.Kind.Exit() != fault.ExitFailed {
		t.Fatalf("as a fault: %s, exit %d", f.Code, f.Kind.Exit())
	}
	return d
}
