package replay_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/audit"
	"github.com/mayfly-broker/mayfly/broker/audit/replay"
	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
)

// Law 4, years later: from the export alone an auditor has every co-signature,
// by whom, over what, and what it led to.
func TestLaw4AuditorSeesEveryCosignature(t *testing.T) {
	w := newWorld(t)
	w.live()
	w.now += 2 * ledger.CoolingMS
	waiting := w.ask(app)
	dir := t.TempDir()
	var told []int64
	r, err := replay.Verify(t.Context(), bytes.NewReader(w.rec.export(t, 0, 0)), replay.Options{Dir: dir, Progress: func(done, total int64) { told = append(told, done, total) }})
	if err != nil || !r.Holds() {
		t.Fatalf("%+v, %v", r.Result, err)
	}
	n := int64(len(w.rec.entries))
	if got := r.Result; got.Entries != n || got.Refused != 7 || got.SizeAssumed != 1 || got.Changes != 1 || got.Stopped != "" {
		t.Errorf("%+v", got)
	}
	if !slices.Equal(told, []int64{1, n, n, n}) {
		t.Errorf("progress %v", told)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	g := r.Result.Grants
	if g.Asked != 5 || g.Access != 3 || g.Changes != 1 || g.Emergencies != 1 || g.Approved != 2 ||
		!maps.Equal(g.States, map[string]int64{ledger.GrantDenied: 1, ledger.GrantEnded: 1, ledger.GrantOpen: 2, ledger.GrantWaiting: 1}) {
		t.Errorf("grants %+v; %s waits", g, waiting)
	}
	if l := r.Result.Leases; l != (replay.Leases{Opened: 3, Cosigned: 1, Emergency: 1, Floored: 2}) {
		t.Errorf("leases %+v", l)
	}
	if s := r.Result.Signatures; !maps.Equal(s, map[string]int64{cosign.KindSSH: 1, cosign.KindJWS: 3, cosign.KindPasskey: 2}) {
		t.Errorf("signatures %v", s)
	}
	if v := r.Result.Reviews; v.Begun != 1 || v.Reviewed != 1 || len(v.Unreviewed) != 0 {
		t.Errorf("emergencies %+v", v)
	}
	var lines []string
	for _, a := range r.Result.Approvals {
		lines = append(lines, strings.Join([]string{a.Person, a.KeyKind, a.Kind, a.What, "for", a.For, a.Verdict}, " "))
		if e := w.rec.entries[a.Seq]; !a.At.Equal(at(e.TimeMS)) || !strings.Contains(string(e.Public), a.Key) || len(a.Hash) != 64 {
			t.Errorf("%+v is not entry %d", a, a.Seq)
		}
	}
	want := []string{
		"human:ann ssh change Target db2, key of human:kim for human:eve ", "human:bo jws change Target db2, key of human:kim for human:eve ",
		"human:bo jws access db/priv for workload:app ", "human:kim passkey access db/priv for workload:app ", "human:bo jws emergency db/priv for human:ann justified",
		"human:kim passkey emergency db/priv for human:ann justified",
	}
	if !slices.Equal(lines, want) {
		t.Errorf("approvals:\n%s", strings.Join(lines, "\n"))
	}
	var keys []string
	for _, k := range r.Result.Keys {
		keys = append(keys, k.Principal+" "+k.Kind+": "+k.VouchedBy)
	}
	if len(keys) != 3 || keys[0] != "human:ann ssh: the enrolment token of the genesis record" || !strings.HasSuffix(keys[2], "approved by human:ann, human:bo") {
		t.Errorf("keys %q", keys)
	}
	if gen := r.Result.Genesis; gen.Cluster != cluster || len(gen.Founders) != 2 || len(gen.Approvals) != 1 || !slices.Contains(gen.Objects, "Group/dba") {
		t.Errorf("genesis %+v", gen)
	}
	if raw, err := json.Marshal(r.Result); err != nil || bytes.Contains(raw, []byte("null")) {
		t.Errorf("%s, %v", raw, err)
	}
}

// Any beginning of a ledger can be executed again; a later part cannot.
func TestPartOfALedger(t *testing.T) {
	w := newWorld(t)
	w.live()
	for _, to := range []int64{1, 9, 20} {
		r, err := verify(t, w.rec.export(t, 0, to))
		if err != nil || !r.Holds() || r.Result.Entries != to {
			t.Fatalf("up to %d: %+v, %v", to, r.Result, err)
		}
	}
	r, err := verify(t, w.rec.export(t, 3, 0))
	if err != nil || r.Result != nil || r.Holds() {
		t.Fatalf("%+v, %v", r.Result, err)
	}
	if c := strings.Join(r.Caveats(), "\n"); !strings.Contains(c, "takes an export from the beginning") {
		t.Error(c)
	}
}

func TestInterruptedVerificationLeavesNothing(t *testing.T) {
	w := newWorld(t)
	ctx, stop := context.WithCancel(t.Context())
	stop()
	dir := t.TempDir()
	_, err := replay.Verify(ctx, bytes.NewReader(w.rec.export(t, 0, 0)), replay.Options{Dir: dir})
	if f := fault.As(err); err == nil || f.Code != "interrupted" {
		t.Errorf("%v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if _, err := replay.Verify(t.Context(), bytes.NewReader(nil), replay.Options{Dir: dir + "/none"}); err == nil || fault.As(err).Code != "no_space_to_replay" {
		t.Errorf("%v", err)
	}
}

// The lists of a report are bounded; what is beyond is counted.
func TestDefectsAreBounded(t *testing.T) {
	w := newWorld(t)
	for range replay.MaxDefects + 5 {
		w.refused(ledger.CodeNotFound, app, &ledger.HeartbeatTask{ID: "tsk_none"})
	}
	for i := range w.rec.entries {
		if e := &w.rec.entries[i]; e.Result == ledger.CodeNotFound {
			e.Result = ledger.CodeOK
		}
	}
	r, err := verify(t, w.rec.export(t, 0, 0))
	if err != nil || len(r.Result.Defects) != replay.MaxDefects || r.Result.LeftOut.Defects != 5 {
		t.Fatalf("%d listed, %+v, %v", len(r.Result.Defects), r.Result.LeftOut, err)
	}
}

// A file that was altered without the key does not get as far as a replay.
func TestTamperingWithoutTheKeyBreaksTheChain(t *testing.T) {
	w := newWorld(t)
	w.live()
	export := w.rec.export(t, 0, 0)
	for _, a := range must(verify(t, export)).Result.Approvals {
		lines := bytes.SplitAfter(bytes.Clone(export), []byte("\n"))
		line := lines[a.Seq+1]
		i := bytes.LastIndex(line, []byte(`signature\":`)) + 150 // somewhere in the signature
		line[i] ^= 1
		_, err := verify(t, bytes.Join(lines, nil))
		if f := fault.As(err); err == nil || f.Code != "audit_leaf" && f.Code != "audit_malformed" {
			t.Errorf("entry %d: %v", a.Seq, err)
		}
	}
}

func must(r replay.Report, err error) replay.Report {
	if err != nil {
		panic(err)
	}
	return r
}

// The genesis record says whose log it is and who signs it.
func TestHazard1GenesisNamesTheSigner(t *testing.T) {
	w := newWorld(t)
	thief, vkey, err := audit.NewSigner("thief", ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize)))
	if err != nil {
		t.Fatal(err)
	}
	r := w.rec.clone()
	r.signer, r.vkey = thief, vkey
	rep, err := verify(t, r.export(t, 0, 0))
	if err != nil || len(rep.Result.Defects) != 1 || rep.Result.Defects[0].Code != "genesis" {
		t.Errorf("%+v, %v", rep.Result.Defects, err)
	}
}
