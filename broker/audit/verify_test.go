package audit_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker/audit"
	"github.com/mayfly-broker/mayfly/broker/audit/tree"
	"github.com/mayfly-broker/mayfly/broker/fault"
)

func export(t testing.TB, l *memLog, from, to int64) []byte {
	t.Helper()
	var out bytes.Buffer
	if _, err := audit.Export(t.Context(), &out, l, audit.ExportOptions{From: from, To: to, Keys: l.keys}); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func verify(b []byte, opts audit.Options) (audit.Report, error) {
	return audit.VerifyExport(bytes.NewReader(b), opts)
}

func TestExportVerifies(t *testing.T) {
	l := newLog(t, 23)
	for size := int64(0); size <= 23; size++ {
		l.signed = size
		for from := int64(0); from <= size; from += 3 {
			for to := max(from, 1); to <= size; to += 2 {
				r, err := verify(export(t, l, from, to), audit.Options{Trusted: l.keys, Quorum: 3, Describe: describe})
				if err != nil {
					t.Fatalf("[%d,%d) of %d: %v", from, to, size, err)
				}
				at, err := tree.Root(l, to)
				if err != nil {
					t.Fatal(err)
				}
				if r.From != from || r.To != to || r.Checkpoint.Size != size || r.RootTo != at ||
					r.ClusterID != "c1" || r.Incarnation != 1 || len(r.SignedBy) != 3 {
					t.Fatalf("[%d,%d) of %d: %+v", from, to, size, r)
				}
				if to > from && (!r.First.Equal(l.entries[from].Time) || !r.Last.Equal(l.entries[to-1].Time)) {
					t.Fatalf("times %v %v", r.First, r.Last)
				}
			}
		}
	}
}

func TestReportSaysWhatItDoesNotProve(t *testing.T) {
	l := newLog(t, 9)
	r, err := verify(export(t, l, 0, 0), audit.Options{})
	if err != nil || r.Pinned || r.SummariesChecked {
		t.Fatalf("%+v, %v", r, err)
	}
	if c := strings.Join(r.Caveats(), "\n"); !strings.Contains(c, "key the file itself names") || !strings.Contains(c, "not compared") {
		t.Fatalf("caveats: %s", c)
	}
	r, err = verify(export(t, l, 0, 0), audit.Options{Trusted: l.keys[1:2], Describe: describe})
	if err != nil || !r.Pinned || !r.SummariesChecked || len(r.Caveats()) != 0 {
		t.Fatalf("%+v %v %v", r, r.Caveats(), err)
	}
	r, err = verify(export(t, l, 2, 5), audit.Options{Trusted: l.keys, Describe: describe})
	if err != nil || len(r.Caveats()) != 1 || !strings.Contains(r.Caveats()[0], "2 up to 5 of 9") {
		t.Fatalf("%v %v", r.Caveats(), err)
	}
}

// The command's bytes come back exactly, whatever they are.
func TestExportKeepsTheRawBytes(t *testing.T) {
	l := newLog(t, 0)
	at := time.Unix(1_800_000_000, 1).UTC()
	for _, c := range []string{"", "{}", "{\"a\": 1 }\n", "<&>\u2028\u202e\x00\x7f", "\xff\xfe", strings.Repeat("\x01", 400_000), strings.Repeat(`"`, 1_100_000)} {
		l.append(t, audit.Entry{Summary: audit.Summary{Time: at, Type: "x"}, Result: "r\u202e", Command: []byte(c)})
	}
	b := export(t, l, 0, 0)
	if _, err := verify(b, audit.Options{Trusted: l.keys}); err != nil {
		t.Fatal(err)
	}
	l.append(t, audit.Entry{Summary: audit.Summary{Time: at}, Command: bytes.Repeat([]byte{0xff}, audit.MaxLine)})
	_, err := audit.Export(t.Context(), io.Discard, l, audit.ExportOptions{Keys: l.keys})
	if fault.KindOf(err) != fault.Invalid {
		t.Fatalf("an entry longer than a line: %v", err)
	}
}

// Every single altered byte of an export is noticed, and so is every cut.
func TestEveryAlteredByteIsNoticed(t *testing.T) {
	l := newLog(t, 5)
	l.signed = 5
	for _, part := range [][2]int64{{0, 5}, {1, 4}} {
		good := export(t, l, part[0], part[1])
		opts := audit.Options{Trusted: l.keys, Quorum: 3, Describe: describe}
		if _, err := verify(good, opts); err != nil {
			t.Fatal(err)
		}
		header := bytes.IndexByte(good, '\n')
		for i := range good {
			bad := bytes.Clone(good)
			bad[i] ^= 1
			_, err := verify(bad, opts)
			// With pinned keys the header's own list of keys is not used.
			inKeys := i < header && bytes.Contains(good[:i], []byte(`"keys":["`)) && !bytes.Contains(good[:i], []byte(`"from"`))
			if err == nil && !inKeys {
				t.Fatalf("byte %d altered (%q) and not noticed", i, bad[max(0, i-20):i+1])
			}
			if _, err := verify(good[:i], opts); err == nil {
				t.Fatalf("cut to %d bytes and not noticed", i)
			}
			if i%7 == 0 {
				if _, err := verify(append(append(bytes.Clone(good[:i]), '\n'), good[i:]...), opts); err == nil {
					t.Fatalf("a newline put in at %d and not noticed", i)
				}
			}
		}
	}
}

// lines splits an export, keeping the newlines.
func lines(b []byte) [][]byte {
	return bytes.SplitAfter(bytes.TrimSuffix(b, []byte("\n")), []byte("\n"))
}

func join(l [][]byte) []byte { return append(bytes.TrimSuffix(bytes.Join(l, nil), []byte("\n")), '\n') }

func TestTamperingIsLocated(t *testing.T) {
	l := newLog(t, 12)
	good := export(t, l, 0, 0)
	entry := func(n int) int { return n + 1 } // index of entry n in lines
	recompute := func(line []byte, change func(m map[string]any, e *audit.Entry)) []byte {
		var m map[string]any
		if err := json.Unmarshal(line, &m); err != nil {
			t.Fatal(err)
		}
		e := audit.Entry{Result: m["result"].(string), Command: []byte(m["command"].(string))}
		change(m, &e)
		leaf := tree.LeafHash(tree.LeafData(e.Result, e.Command)).String()
		out := bytes.Replace(line, []byte(m["leaf"].(string)), []byte(leaf), 1)
		old, _ := json.Marshal(m["command"])
		now, _ := json.Marshal(string(e.Command))
		return bytes.Replace(out, old, now, 1)
	}
	for name, c := range map[string]struct {
		change func(l [][]byte) [][]byte
		code   string
		line   int64
		seq    int64
	}{
		"changed command": {func(l [][]byte) [][]byte {
			l[entry(4)] = bytes.Replace(l[entry(4)], []byte(`agent:a4\"`), []byte(`agent:a0\"`), 1)
			return l
		}, "leaf", 6, 4},
		"changed result": {func(l [][]byte) [][]byte {
			l[entry(4)] = bytes.Replace(l[entry(4)], []byte(`"result":"ok"`), []byte(`"result":"no"`), 1)
			return l
		}, "leaf", 6, 4},
		"changed actor": {func(l [][]byte) [][]byte {
			l[entry(4)] = bytes.Replace(l[entry(4)], []byte(`"actor":"agent:a4"`), []byte(`"actor":"agent:a0"`), 1)
			return l
		}, "summary", 6, 4},
		"changed command with its leaf hash": {func(l [][]byte) [][]byte {
			l[entry(4)] = recompute(l[entry(4)], func(_ map[string]any, e *audit.Entry) { e.Command = append(e.Command, ' ') })
			return l
		}, "root", 14, -1},
		"time before its predecessor's": {func(l [][]byte) [][]byte {
			l[entry(4)] = bytes.Replace(l[entry(4)], []byte(`"time":"2027`), []byte(`"time":"2026`), 1)
			return l
		}, "time", 6, 4},
		"dropped line": {func(l [][]byte) [][]byte {
			return append(l[:entry(4)], l[entry(5):]...)
		}, "sequence", 6, 5},
		"dropped last entry": {func(l [][]byte) [][]byte {
			return append(l[:entry(11)], l[entry(12):]...)
		}, "sequence", 13, -1},
		"swapped lines": {func(l [][]byte) [][]byte {
			l[entry(4)], l[entry(5)] = l[entry(5)], l[entry(4)]
			return l
		}, "sequence", 6, 5},
		"duplicated line": {func(l [][]byte) [][]byte {
			return append(l[:entry(5)], append([][]byte{l[entry(4)]}, l[entry(5):]...)...)
		}, "sequence", 7, 4},
		"entry appended before the closing line": {func(l [][]byte) [][]byte {
			return append(l[:entry(12)], l[entry(11)], l[entry(12)])
		}, "sequence", 14, -1},
		"line appended": {func(l [][]byte) [][]byte {
			return append(l, []byte("\n"), l[entry(11)])
		}, "trailing", 15, -1},
		"closing line missing": {func(l [][]byte) [][]byte { return l[:entry(12)] }, "truncated", 13, -1},
		"half a closing line": {func(l [][]byte) [][]byte {
			l[entry(12)] = l[entry(12)][:20]
			return l
		}, "malformed", 14, -1},
		"field doubled": {func(l [][]byte) [][]byte {
			l[entry(4)] = bytes.Replace(l[entry(4)], []byte(`"seq":4,`), []byte(`"seq":9,"seq":4,`), 1)
			return l
		}, "malformed", 6, -1},
		"field added": {func(l [][]byte) [][]byte {
			l[entry(4)] = bytes.Replace(l[entry(4)], []byte(`"seq":4,`), []byte(`"seq":4,"note":"x",`), 1)
			return l
		}, "malformed", 6, -1},
		"longer line than any": {func(l [][]byte) [][]byte {
			l[entry(4)] = append(bytes.Repeat([]byte(" "), audit.MaxLine), '\n')
			return l
		}, "line_too_long", 6, -1},
		"another cluster's header": {func(l [][]byte) [][]byte {
			l[0] = bytes.Replace(l[0], []byte(`"cluster":"c1"`), []byte(`"cluster":"c2"`), 1)
			return l
		}, "checkpoint", 14, -1},
		"another incarnation's header": {func(l [][]byte) [][]byte {
			l[0] = bytes.Replace(l[0], []byte(`"incarnation":1`), []byte(`"incarnation":2`), 1)
			return l
		}, "checkpoint", 14, -1},
		"range beyond the checkpoint": {func(l [][]byte) [][]byte {
			l[0] = bytes.Replace(l[0], []byte(`"to":12`), []byte(`"to":13`), 1)
			return l
		}, "sequence", 14, -1},
		"range shortened, entry dropped": {func(l [][]byte) [][]byte {
			l[0] = bytes.Replace(l[0], []byte(`"to":12`), []byte(`"to":11`), 1)
			return append(l[:entry(11)], l[entry(12)])
		}, "proof", 13, -1},
		"no range at all": {func(l [][]byte) [][]byte {
			l[0] = bytes.Replace(l[0], []byte(`"to":12`), []byte(`"to":-1`), 1)
			return l
		}, "header", 1, -1},
	} {
		t.Run(name, func(t *testing.T) {
			bad := join(c.change(lines(bytes.Clone(good))))
			if bytes.Equal(bad, good) {
				t.Fatal("the test altered nothing")
			}
			_, err := verify(bad, audit.Options{Trusted: l.keys, Describe: describe})
			if d := wantDefect(t, err, c.code); d.Line != c.line || d.Seq != c.seq {
				t.Fatalf("located at line %d, entry %d; want line %d, entry %d: %v", d.Line, d.Seq, c.line, c.seq, err)
			}
		})
	}
}

func TestAlteredProofIsNoticed(t *testing.T) {
	l := newLog(t, 13)
	good := export(t, l, 5, 9)
	for _, field := range []string{`"left":["`, `"right":["`} {
		i := bytes.Index(good, []byte(field)) + len(field)
		bad := bytes.Clone(good)
		if bad[i] == 'A' {
			bad[i] = 'B'
		} else {
			bad[i] = 'A'
		}
		_, err := verify(bad, audit.Options{Trusted: l.keys})
		wantDefect(t, err, "root")
	}
}

// Somebody rewrites the log and signs it with a key of their own.
func TestResignedByAnotherKey(t *testing.T) {
	l := newLog(t, 8)
	thief := newLog(t, 7)
	thief.add(t, "nothing to see")
	s, vkey := testSigner(t, "c1/node-0", 99) // the same name, another key
	thief.signers, thief.keys = thief.signers[:0], []string{vkey}
	thief.signers = append(thief.signers, s)
	forged := export(t, thief, 0, 0)
	if r, err := verify(forged, audit.Options{}); err != nil || r.Pinned {
		t.Fatalf("an export vouches for itself, and the report says so: %+v %v", r, err)
	}
	_, err := verify(forged, audit.Options{Trusted: l.keys})
	wantDefect(t, err, "signature")
	// The closing line of the true log on the thief's entries.
	mixed := lines(forged)
	true8 := lines(export(t, l, 0, 0))
	mixed[0], mixed[len(mixed)-1] = true8[0], true8[len(true8)-1]
	_, err = verify(join(mixed), audit.Options{Trusted: l.keys})
	wantDefect(t, err, "root")
	// One of three signatures spoilt is refused, not counted out.
	closing := true8[len(true8)-1]
	i := bytes.LastIndex(closing, []byte("node-2 ")) + 20
	closing[i] ^= 1
	_, err = verify(join(true8), audit.Options{Trusted: l.keys})
	wantDefect(t, err, "signature")
}

func TestQuorumOfSignaturesIsWanted(t *testing.T) {
	l := newLog(t, 4)
	l.signers = l.signers[:2]
	b := export(t, l, 0, 0)
	if _, err := verify(b, audit.Options{Trusted: l.keys, Quorum: 2}); err != nil {
		t.Fatal(err)
	}
	_, err := verify(b, audit.Options{Trusted: l.keys, Quorum: 3})
	wantDefect(t, err, "signature")
}

// Two logs that part at entry 6, each signed with the true keys.
func TestForkedTreeIsNoticedByAKnownCheckpoint(t *testing.T) {
	a, b := newLog(t, 6), newLog(t, 6)
	a.signed = 6
	common, err := a.checkpoint()
	if err != nil {
		t.Fatal(err)
	}
	a.add(t, "left")
	b.add(t, "right")
	a.signed = 7
	known, err := a.checkpoint()
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		b.add(t, "")
	}
	for _, part := range [][2]int64{{0, 12}, {7, 12}, {7, 9}, {5, 7}} {
		opts := audit.Options{Trusted: b.keys, Known: []audit.Checkpoint{known}}
		_, err = verify(export(t, b, part[0], part[1]), opts)
		if d := wantDefect(t, err, "fork"); d.Seq != 6 {
			t.Fatalf("the fork is put at %d", d.Seq)
		}
	}
	stranger := audit.Checkpoint{Origin: audit.Origin("c9", 1), Size: 6}
	r, err := verify(export(t, b, 0, 0), audit.Options{Trusted: b.keys, Known: []audit.Checkpoint{common, stranger}})
	if err != nil || r.KnownMatched != 1 || r.KnownUnreached != 1 {
		t.Fatalf("%+v %v", r, err)
	}
}

// Hazard 19: a restored cluster's log is another log, with another origin.
func TestHazard19AnotherIncarnationIsAnotherLog(t *testing.T) {
	a, b := newLog(t, 6), newLog(t, 6)
	b.origin = audit.Origin("c1", 2)
	known, err := a.checkpoint()
	if err != nil {
		t.Fatal(err)
	}
	r, err := verify(export(t, b, 0, 0), audit.Options{Trusted: b.keys, Known: []audit.Checkpoint{known}})
	if err != nil || r.Incarnation != 2 || r.KnownMatched != 0 || r.KnownUnreached != 1 {
		t.Fatalf("%+v %v", r, err)
	}
}

// The exports of consecutive parts fit together by their roots.
func TestConsecutiveExportsFit(t *testing.T) {
	l := newLog(t, 20)
	first, err := verify(export(t, l, 0, 11), audit.Options{Trusted: l.keys})
	if err != nil {
		t.Fatal(err)
	}
	second, err := verify(export(t, l, 11, 20), audit.Options{Trusted: l.keys})
	if err != nil || first.RootTo != second.RootFrom {
		t.Fatalf("the parts do not fit: %v", err)
	}
}

func TestExportRefusesWhatDoesNotMatchTheTree(t *testing.T) {
	l := newLog(t, 9)
	l.entries[4].Command = []byte(`{"rewritten":true}`)
	var out bytes.Buffer
	_, err := audit.Export(t.Context(), &out, l, audit.ExportOptions{Keys: l.keys})
	wantDefect(t, err, "root")
	_, err = verify(out.Bytes(), audit.Options{Trusted: l.keys})
	wantDefect(t, err, "truncated")
	for _, bad := range [][2]int64{{-1, 2}, {5, 4}, {0, 10}, {10, 0}} {
		_, err := audit.Export(t.Context(), io.Discard, l, audit.ExportOptions{From: bad[0], To: bad[1], Keys: l.keys})
		if fault.KindOf(err) != fault.Invalid {
			t.Fatalf("%v: %v", bad, err)
		}
	}
	full := errors.New("disk full")
	_, err = audit.Export(t.Context(), failing{full}, l, audit.ExportOptions{Keys: l.keys})
	if !errors.Is(err, full) {
		t.Fatalf("a failing writer: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }
func (f failing) Read([]byte) (int, error)  { return 0, f.err }

func TestReaderErrorIsNotADefect(t *testing.T) {
	gone := errors.New("gone")
	var d *audit.Defect
	if _, err := audit.VerifyExport(failing{gone}, audit.Options{}); !errors.Is(err, gone) || errors.As(err, &d) {
		t.Fatalf("%v", err)
	}
}

func TestVerifyLive(t *testing.T) {
	l := newLog(t, 15)
	l.signed = 11
	opts := audit.Options{Trusted: l.keys, Quorum: 3, Describe: describe}
	r, err := audit.VerifyLive(t.Context(), l, audit.Part{}, opts)
	if err != nil || r.Unsigned != 4 || r.To != 11 || len(r.Caveats()) != 1 {
		t.Fatalf("%+v %v", r, err)
	}
	if _, err := audit.VerifyLive(t.Context(), l, audit.Part{}, audit.Options{}); err == nil {
		t.Fatal("a live log was verified with no key")
	}
	for entries := range 12 {
		if last, _, err := inParts(t, l, entries, opts); err != nil || last.To != r.To || last.RootTo != r.RootTo || last.Unsigned != r.Unsigned || last.Checkpoint != r.Checkpoint {
			t.Errorf("in parts of %d entries: %+v %v; want what one call says: %+v", entries, last, err, r)
		}
	}
	for _, from := range []int64{-1, 12} {
		if _, err := audit.VerifyLive(t.Context(), l, audit.Part{From: from}, opts); fault.As(err).Kind != fault.Invalid {
			t.Errorf("from %d: %v", from, err)
		}
	}
	for name, c := range map[string]struct {
		spoil func(l *memLog)
		code  string
	}{
		"rewritten entry":             {func(l *memLog) { l.entries[3].Result = "denied" }, "root"},
		"rewritten unsigned entry":    {func(l *memLog) { l.entries[13].Result = "denied" }, "root"},
		"rewritten summary":           {func(l *memLog) { l.entries[3].Actor = "human:bo" }, "summary"},
		"dropped tail":                {func(l *memLog) { l.entries = l.entries[:10] }, "checkpoint"},
		"swapped":                     {func(l *memLog) { l.entries[3], l.entries[4] = l.entries[4], l.entries[3] }, "sequence"},
		"altered unsigned tree hash":  {func(l *memLog) { l.hashes[tree.FirstIndex(14)][0] ^= 1 }, "root"},
		"clock that goes back":        {func(l *memLog) { l.entries[9].Time = l.entries[2].Time }, "time"},
		"checkpoint of another's log": {func(l *memLog) { l.origin = "elsewhere" }, "checkpoint"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLog(t, 15)
			l.signed = 11
			c.spoil(l)
			_, err := audit.VerifyLive(t.Context(), l, audit.Part{}, opts)
			wantDefect(t, err, c.code)
			for entries := range 12 {
				_, calls, err := inParts(t, l, entries, opts)
				if wantDefect(t, err, c.code); entries > 0 && calls > 11/entries+1 {
					t.Errorf("%d calls, in parts of %d entries", calls, entries)
				}
			}
		})
	}
}

// inParts verifies a live log by as many calls as it takes, of which each has enough
// after some entries; it is one all the same where that is none.
func inParts(t *testing.T, l *memLog, entries int, opts audit.Options) (r audit.Report, calls int, err error) {
	t.Helper()
	for {
		part, looked := audit.Part{From: r.Next}, 0
		part.Enough = func() bool { looked++; return looked >= entries }
		calls++
		switch before := r.Next; {
		case calls > 20:
			t.Fatal("it has no end")
		default:
			if r, err = audit.VerifyLive(t.Context(), l, part, opts); err != nil || r.Next == 0 {
				return r, calls, err
			}
			if r.From != before || r.Next <= before || r.To != r.Next {
				t.Fatalf("a part from %d on: %+v", before, r)
			}
		}
	}
}

func FuzzVerifyExport(f *testing.F) {
	l := newLog(f, 7)
	whole, part := export(f, l, 0, 0), export(f, l, 2, 5)
	f.Add(whole)
	f.Add(part)
	f.Add(whole[:len(whole)/2])
	f.Add(append(bytes.Clone(lines(whole)[0]), lines(part)[1]...))
	f.Add(fmt.Appendf(nil, `{"format":%q,"cluster":"","incarnation":0,"keys":null,"from":0,"to":9223372036854775807}`+"\n", audit.Format))
	f.Add([]byte("\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := verify(b, audit.Options{Trusted: l.keys, Describe: describe})
		if err != nil {
			var d *audit.Defect
			if !errors.As(err, &d) || d.Line < 1 && len(b) > 0 {
				t.Fatalf("an unlocated error: %v", err)
			}
			return
		}
		if r.Checkpoint.Size != 7 || r.To > 7 {
			t.Fatalf("verified what was never signed: %+v", r)
		}
	})
}

func BenchmarkVerifyExport(b *testing.B) {
	l := newLog(b, 2000)
	file := export(b, l, 0, 0)
	b.SetBytes(int64(len(file)))
	for b.Loop() {
		if _, err := verify(file, audit.Options{Trusted: l.keys}); err != nil {
			b.Fatal(err)
		}
	}
}
