package ledger_test

import (
	"bytes"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/ledger/ledgertest"
)

// TestHazard2ReplayGivesTheRecordedOutcomes: what an auditor executes from the
// public parts alone comes to what the replicas recorded, and to their state but
// for the record itself and the secrets.
func TestHazard2ReplayGivesTheRecordedOutcomes(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		b := newBook(t)
		for range rapid.IntRange(20, 120).Draw(rt, "commands") {
			h, body := randomCommand(rt, b)
			raw, err := ledger.Encode(h, body)
			if err != nil {
				rt.Fatal(err)
			}
			if _, err := ledger.Apply(b.mem, raw); err != nil {
				rt.Fatal(err)
			}
		}
		mem := &ledgertest.Mem{}
		r := ledger.NewReplayer(mem)
		for seq := range b.q().Size() {
			e, _ := b.q().Entry(seq)
			d, err := ledger.DecodePublic(e.Public)
			if err != nil {
				rt.Fatal(err)
			}
			got, err := r.Apply(d, e.Outcome())
			if err != nil || got.Outcome() != e.Outcome() || got.Seq != seq {
				rt.Fatalf("entry %d, %s: recorded %s, replayed %s (%v)", seq, d.Type, e.Outcome(), got.Outcome(), err)
			}
		}
		if diff := onlyTheRecord(mem, b.mem); diff != "" || r.Query().Size() != b.q().Size() || r.Query().Clock() != b.q().Clock() {
			rt.Fatalf("the states differ:\n%s", diff)
		}
	})
}

// Secrets are absent from the record: their names stand in, and a refusal for
// length is taken on trust, and said to be.
func TestReplayStandsInForSecrets(t *testing.T) {
	b := newBook(t)
	secret := func(n int) ledger.Secret {
		return ledger.Secret{Name: "Target/x/password", Salt: make([]byte, 16), Value: bytes.Repeat([]byte("s"), n)}
	}
	put := &ledger.ChangeObjects{Changes: []ledger.ObjectChange{{Kind: "Target", Name: "x", Spec: rawJSON(`{"type":"memory"}`), Secrets: []string{"Target/x/password"}}}}
	if res := b.apply(b.header(admin), put, secret(ledger.MaxSecretBytes+1)); res.Code != ledger.CodeInvalid {
		t.Fatal(res)
	}
	if res := b.apply(b.header(admin), put, secret(7)); !res.OK() {
		t.Fatal(res)
	}
	mem := &ledgertest.Mem{}
	r := ledger.NewReplayer(mem)
	for seq, assumed := range []bool{false, true, false} {
		e, _ := b.q().Entry(uint64(seq))
		d, err := ledger.DecodePublic(e.Public)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := r.Apply(d, e.Outcome()); err != nil || got.Outcome() != e.Outcome() || got.SizeAssumed != assumed {
			t.Errorf("entry %d: %+v, %v; recorded %s", seq, got, err, e.Outcome())
		}
	}
	if v := r.Query().Secret("Target", "x", "password"); v == nil || len(v) != 0 {
		t.Errorf("the secret's stand-in is %q", v)
	}
	// A refusal that length cannot explain is not taken.
	e, _ := b.q().Entry(2)
	d, err := ledger.DecodePublic(e.Public)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := r.Apply(d, "invalid@1000000"); err != nil || got.Code == ledger.CodeInvalid || got.SizeAssumed {
		t.Errorf("%+v, %v", got, err)
	}
}

// FuzzReplay: whatever an export holds, the replayer neither panics nor stops in
// any way but with an error.
func FuzzReplay(f *testing.F) {
	var mem ledgertest.Mem
	raw, err := ledger.Encode(ledger.Header{AtMS: 1_000_000}, &ledger.Genesis{Cluster: "c", Incarnation: 1, Objects: firstObjects()})
	if err != nil {
		f.Fatal(err)
	}
	if _, err := ledger.Apply(&mem, raw); err != nil {
		f.Fatal(err)
	}
	e, _ := ledger.NewQuery(&mem).Entry(0)
	first := fmt.Appendf(nil, "%s\n%s", e.Outcome(), e.Public)
	f.Add(first)
	for _, body := range samples() {
		raw, err := ledger.Encode(sampleHeader(), body, sampleSecret)
		if err != nil {
			f.Fatal(err)
		}
		line := publicOf(raw)
		f.Add(bytes.Join([][]byte{first, fmt.Appendf(nil, "ok@1000001\n%s", line)}, []byte{0}))
		f.Add(bytes.Join([][]byte{first, fmt.Appendf(nil, "invalid@1000001\n%s", line)}, []byte{0}))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := ledger.NewReplayer(&ledgertest.Mem{})
		for entry := range bytes.SplitSeq(data, []byte{0}) {
			recorded, public, _ := bytes.Cut(entry, []byte{'\n'})
			d, err := ledger.DecodePublic(public)
			if err != nil {
				return
			}
			if _, err := r.Apply(d, string(recorded)); err != nil {
				return
			}
			if err := r.Query().Err(); err != nil {
				t.Fatal(err)
			}
		}
	})
}
