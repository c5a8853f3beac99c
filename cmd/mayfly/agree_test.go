package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/mayfly-broker/mayfly/broker/audit"
	"github.com/mayfly-broker/mayfly/broker/audit/replay"
	"github.com/mayfly-broker/mayfly/broker/audit/tree"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/identity"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/ledger/ledgertest"
	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/clienttest"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/secret"
)

// The client shares no code with the broker; this is where they are compared.

func TestExitCodesAreTheBrokers(t *testing.T) {
	for _, k := range []fault.Kind{fault.Internal, fault.Invalid, fault.Unauthenticated, fault.Denied, fault.ApprovalRequired, fault.NotFound, fault.Conflict,
		fault.RateLimited, fault.Unavailable, fault.Upstream, fault.Indeterminate} {
		e := &client.Error{Problem: wire.Problem{Kind: string(k)}}
		if k == fault.Internal {
			e.Problem.Kind = client.KindInternal
		}
		if e.ExitCode() != k.Exit() {
			t.Errorf("%q: exit code %d here, %d there", k, e.ExitCode(), k.Exit())
		}
	}
}

func TestKindsAreTheLedgers(t *testing.T) {
	if !slices.Equal(kinds, ledger.Kinds) {
		t.Errorf("kinds %v here, %v there", kinds, ledger.Kinds)
	}
}

func TestEnrolmentTokenOfTheBrokerIsRead(t *testing.T) {
	c := clienttest.New(t, 1)
	made, err := identity.NewEnrolToken(c.CAHash, []string{c.Node(1)})
	if err != nil {
		t.Fatal(err)
	}
	c.AcceptEnrolment(made.Encode().Reveal(), ann)
	a, err := client.Enrol(t.Context(), client.Config{Home: filepath.Join(t.TempDir(), "home")}, made.Encode())
	if err != nil || a.Principal != ann {
		t.Fatalf("%+v, %v", a, err)
	}
	cut := made.Encode().Reveal()
	if _, err := client.Enrol(t.Context(), client.Config{Home: t.TempDir()}, secret.New(cut[:len(cut)-3])); client.KindOf(err) != client.KindUnauthenticated {
		t.Errorf("a token cut short: %v", err)
	}
}

// export writes a true export, one with a changed command, one of a part, and one
// in which an outcome was changed and all signed anew: export TRUE FORGED PART SIGNED
func export(ts *testscript.TestScript, _ bool, args []string) {
	log, vkey, err := newRecord(5)
	ts.Check(err)
	write := func(name string, from int64) (b bytes.Buffer) {
		_, err := audit.Export(context.Background(), &b, log, audit.ExportOptions{From: from, Keys: []string{vkey}})
		ts.Check(err)
		ts.Check(os.WriteFile(ts.MkAbs(name), b.Bytes(), 0o600))
		return b
	}
	b := write(args[0], 0)
	write(args[2], 2)
	ts.Check(log.alter(3, "not_found"))
	write(args[3], 0)
	forged := strings.Replace(b.String(), "purpose 3", "purpose 4", 1)
	if forged == b.String() {
		ts.Fatalf("the export does not hold what was to be forged")
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(forged), 0o600))
}

// record is a ledger in memory, as [audit.Export] reads it.
type record struct {
	entries []audit.Entry
	hashes  []tlog.Hash
	signer  note.Signer
}

func newRecord(size int) (*record, string, error) {
	signer, vkey, err := audit.NewSigner("c1/n1", ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))
	if err != nil {
		return nil, "", err
	}
	r := &record{signer: signer}
	var mem ledgertest.Mem
	commit := func(i int, b ledger.Body) error {
		raw, err := ledger.Encode(ledger.Header{AtMS: 1_800_000_000_000 + int64(i), Actor: ledger.Actor{Principal: ann}}, b)
		if err != nil {
			return err
		}
		if _, err := ledger.Apply(&mem, raw); err != nil {
			return err
		}
		rec, _ := ledger.NewQuery(&mem).Entry(uint64(i))
		sum, err := replay.Describe(rec.Outcome(), rec.Public)
		if err != nil {
			return err
		}
		more, err := tree.Append(r, int64(i), tree.LeafData(rec.Outcome(), rec.Public))
		r.entries, r.hashes = append(r.entries, audit.Entry{Seq: int64(i), Summary: sum, Result: rec.Outcome(), Command: rec.Public}), append(r.hashes, more...)
		return err
	}
	err = commit(0, &ledger.Genesis{Cluster: "c1", Incarnation: 1, VerifierKey: vkey, Objects: []ledger.ObjectChange{{Kind: "Principal", Name: ann, Spec: []byte(`{}`)}}})
	for i := 1; i < size && err == nil; i++ {
		id := ledger.PrefixTask + fmt.Sprintf("%0*d", ledger.BareIDLen, i)
		err = commit(i, &ledger.StartTask{Task: ledger.Task{ID: id, Purpose: fmt.Sprintf("purpose %d", i), Principal: ann, DeadlineMS: 1_900_000_000_000}})
	}
	return r, vkey, err
}

// alter changes an outcome, and the tree with it.
func (r *record) alter(seq int, code string) error {
	_, ms, _ := strings.Cut(r.entries[seq].Result, "@")
	r.entries[seq].Result = code + "@" + ms
	r.hashes = nil
	for _, e := range r.entries {
		more, err := tree.Append(r, e.Seq, tree.LeafData(e.Result, e.Command))
		if err != nil {
			return err
		}
		r.hashes = append(r.hashes, more...)
	}
	return nil
}

func (r *record) Size(context.Context) (int64, error) { return int64(len(r.entries)), nil }

func (r *record) Entry(_ context.Context, seq int64) (audit.Entry, error) { return r.entries[seq], nil }

func (r *record) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	var out []tlog.Hash
	for _, i := range indexes {
		out = append(out, r.hashes[i])
	}
	return out, nil
}

func (r *record) Checkpoint(context.Context) ([]byte, error) {
	root, err := tree.Root(r, int64(len(r.entries)))
	if err != nil {
		return nil, err
	}
	return audit.SignCheckpoint(audit.Checkpoint{Origin: audit.Origin("c1", 1), Size: int64(len(r.entries)), Root: root}, r.signer)
}
