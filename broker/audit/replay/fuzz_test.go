package replay_test

import (
	"bytes"
	"testing"
	"unicode/utf8"

	"github.com/mayfly-broker/mayfly/broker/audit/replay"
	"github.com/mayfly-broker/mayfly/broker/ledger"
)

// FuzzVerify: a line of an export, altered in whatever way and signed anew, ends
// in a report or an error, never in a panic, and never in a report that holds
// unless it is what was recorded, or as good.
func FuzzVerify(f *testing.F) {
	w := newWorld(f)
	w.live()
	for i, e := range w.rec.entries {
		f.Add(uint8(i), e.Outcome(), e.Public)
	}
	f.Add(uint8(200), "not an outcome", []byte("\n"))
	f.Add(uint8(3), "ok@1", []byte("{}\n{}"))
	f.Fuzz(func(t *testing.T, at uint8, outcome string, public []byte) {
		r := w.rec.clone()
		seq := int(at) % len(r.entries)
		code, ms, err := ledger.SplitOutcome(outcome)
		if _, derr := replay.Describe(outcome, public); err != nil || derr != nil {
			// No ledger exports what it cannot read: the line itself is altered.
			lines := bytes.SplitAfter(w.rec.export(t, 0, 0), []byte("\n"))
			lines[1+seq] = append(bytes.ReplaceAll(public, []byte("\n"), nil), '\n')
			if rep, err := verify(t, bytes.Join(lines, nil)); err == nil && !rep.Holds() {
				t.Fatalf("%+v", rep.Result)
			}
			return
		}
		r.entries[seq] = ledger.Entry{TimeMS: ms, Result: code, Public: public}
		if ms < 0 || ms > 1<<45 || !utf8.ValidString(outcome) {
			return // what no line can hold
		}
		rep, err := verify(t, r.export(t, 0, 0))
		if err == nil && rep.Result == nil {
			t.Fatal("nothing was executed")
		}
	})
}
