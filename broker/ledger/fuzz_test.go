package ledger_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/ledger"
)

// wrap makes a command of a public part, as Encode lays it out.
func wrap(public []byte) []byte {
	return append(binary.AppendUvarint([]byte{1}, uint64(len(public))), public...)
}

// FuzzDecode: no bytes panic, and what decodes is the same when read again.
func FuzzDecode(f *testing.F) {
	for _, body := range samples() {
		raw, err := ledger.Encode(sampleHeader(), body, sampleSecret)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
		f.Add(raw[:len(raw)-1])
	}
	f.Add([]byte{1, 2, '{', '}'})
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0xff, 0x7f})
	f.Fuzz(func(t *testing.T, raw []byte) {
		d, err := ledger.Decode(raw)
		if err != nil {
			return
		}
		again, err := ledger.DecodePublic(d.Public)
		if err != nil || again.Type != d.Type || again.Type != d.Body.Type() {
			t.Fatalf("%q decodes as %s, its public part as %s (%v)", raw, d.Type, again.Type, err)
		}
	})
}

// FuzzApply: whatever decodes is applied or refused; it stops no node, and the
// state stays one that can be read.
func FuzzApply(f *testing.F) {
	public := func(h ledger.Header, body ledger.Body) []byte {
		raw, err := ledger.Encode(h, body)
		if err != nil {
			f.Fatal(err)
		}
		return publicOf(raw)
	}
	for _, body := range samples() {
		f.Add(public(ledger.Header{AtMS: 1_000_000, Actor: ledger.Actor{Principal: app}}, body), []byte{})
	}
	seed := newBook(&testing.T{})
	h := seed.header(app)
	open := seed.open(app, "db/rw", "b", "", instance("i1"))
	f.Add(public(h, open), public(h, seed.open(app, "db/rw", "c", "", instance("i1"))))
	f.Add(public(h, &ledger.RemintLease{ID: id(ledger.PrefixLease, "a"), Generation: 2, Name: "acc-a"}), public(h, &ledger.EndTask{ID: id(ledger.PrefixTask, "t1"), Reason: ledger.EndDone}))
	f.Add(public(h, &ledger.ForceEnd{IDs: []string{id(ledger.PrefixLease, "a")}, Reason: "gone"}), public(h, &ledger.EndLeases{IDs: []string{id(ledger.PrefixLease, "a")}, Reason: ledger.EndRevoked}))
	f.Fuzz(func(t *testing.T, one, two []byte) {
		b := newBook(t)
		b.start(app, "t1", "")
		b.ok(app, b.open(app, "db/rw", "a", id(ledger.PrefixTask, "t1")))
		for _, pub := range [][]byte{one, two} {
			raw := wrap(pub)
			before := b.mem.Clone()
			_, derr := ledger.Decode(raw)
			res, err := ledger.Apply(b.mem, raw)
			if (derr == nil) != (err == nil) {
				t.Fatalf("%s decodes (%v), and the node stops: %v", pub, derr, err)
			}
			if err != nil {
				if !before.Equal(b.mem) {
					t.Fatalf("%s does not decode and changes the state", pub)
				}
				continue
			}
			if !res.OK() {
				if diff := onlyTheRecord(before, b.mem); diff != "" {
					t.Fatalf("%s is refused (%s) and leaves %s", pub, res.Code, diff)
				}
			}
			e, ok := b.q().Entry(res.Seq)
			if !ok || !bytes.Equal(e.Public, pub) {
				t.Fatalf("entry %d is %q, wanted %q", res.Seq, e.Public, pub)
			}
		}
		checkBook(t, b)
	})
}
