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
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/mayfly-broker/mayfly/broker/audit"
	"github.com/mayfly-broker/mayfly/broker/audit/tree"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/identity"
	"github.com/mayfly-broker/mayfly/broker/ledger"
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

// export writes a true export and one with a changed command: export TRUE FORGED
func export(ts *testscript.TestScript, _ bool, args []string) {
	log, vkey, err := newRecord(5)
	ts.Check(err)
	var b bytes.Buffer
	_, err = audit.Export(context.Background(), &b, log, audit.ExportOptions{Keys: []string{vkey}})
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b.Bytes(), 0o600))
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
	for i := range size {
		raw, err := ledger.Encode(ledger.Header{AtMS: 1_800_000_000_000, Actor: ledger.Actor{Principal: ann}},
			&ledger.StartTask{Task: ledger.Task{ID: fmt.Sprintf("t_%d", i), Name: "x", Purpose: fmt.Sprintf("purpose %d", i), Principal: ann}})
		if err != nil {
			return nil, "", err
		}
		command := raw[bytes.IndexByte(raw, '{') : bytes.LastIndexByte(raw, '}')+1]
		at := time.UnixMilli(1_800_000_000_000 + int64(i)).UTC()
		d, err := ledger.DecodePublic(command)
		if err != nil {
			return nil, "", err
		}
		e := audit.Entry{Seq: int64(i), Summary: audit.Summary{Time: at, Type: d.Type, Actor: ann}, Result: fmt.Sprintf("ok@%d", at.UnixMilli()), Command: command}
		more, err := tree.Append(r, e.Seq, tree.LeafData(e.Result, e.Command))
		if err != nil {
			return nil, "", err
		}
		r.entries, r.hashes = append(r.entries, e), append(r.hashes, more...)
	}
	return r, vkey, nil
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
