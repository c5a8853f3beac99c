package replay_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/broker/cosign/cosigntest"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
)

// find returns the first entry of a type and result at or after a sequence.
func (r *record) find(t *testing.T, from int, typ, result string) int {
	t.Helper()
	for i := from; i < len(r.entries); i++ {
		if d, err := ledger.DecodePublic(r.entries[i].Public); err == nil && d.Type == typ && r.entries[i].Result == result {
			return i
		}
	}
	t.Fatalf("no %s with result %s after %d", typ, result, from)
	return 0
}

// insert puts a command into the record, as a leader could have, with an outcome.
func (r *record) insert(t *testing.T, at int, actor, result string, b ledger.Body) {
	t.Helper()
	h := by(actor)
	h.AtMS = r.entries[at-1].TimeMS
	raw, err := ledger.Encode(h, b)
	if err != nil {
		t.Fatal(err)
	}
	d, err := ledger.Decode(raw)
	if err != nil {
		t.Fatal(err)
	}
	r.entries = slices.Insert(r.entries, at, ledger.Entry{TimeMS: h.AtMS, Result: result, Public: d.Public})
}

// replaceText alters the text of one command.
func (r *record) replaceText(t *testing.T, seq int, old, with string) {
	t.Helper()
	e := &r.entries[seq]
	if !bytes.Contains(e.Public, []byte(old)) {
		t.Fatalf("entry %d does not hold %q", seq, old)
	}
	e.Public = bytes.Replace(e.Public, []byte(old), []byte(with), 1)
}

// wantDefects verifies a record that was signed anew with the stolen key: the
// chain holds, and the first defects are those wanted, as "seq code".
func wantDefects(t *testing.T, r *record, seq int, codes ...string) string {
	t.Helper()
	rep, err := verify(t, r.export(t, 0, 0))
	if err != nil {
		t.Errorf("the chain was made anew and should hold: %v", err)
		return ""
	}
	if rep.Holds() {
		t.Error("nothing was found")
		return ""
	}
	var got, text []string
	for _, d := range rep.Result.Defects {
		if d.Seq == rep.Result.Defects[0].Seq {
			got, text = append(got, d.Code), append(text, d.Detail)
		}
	}
	if first := rep.Result.Defects[0]; first.Seq != int64(seq) || !slices.Equal(got, codes) || first.Line != first.Seq+2 {
		t.Errorf("first found: %+v, wanted %v at %d", rep.Result.Defects, codes, seq)
	}
	return strings.Join(text, "\n")
}

// Hazard 1: whoever has the leader and the key that signs checkpoints can write
// another history, and not other people's signatures.
func TestHazard1StolenCheckpointKeyForgesNoApproval(t *testing.T) {
	w := newWorld(t)
	w.live()
	grant := w.rec.find(t, 0, "request_grant", ledger.CodeOK)
	lease := w.rec.find(t, 0, "open_lease", ledger.CodeOK)
	sig := w.rec.find(t, 0, "approve_grant", ledger.CodeOK)
	tests := map[string]struct {
		do    func(r *record)
		at    int
		codes []string
	}{
		"a byte of a signature": {func(r *record) {
			i := len(r.entries[sig].Public) - 40 // base64 of the signature's end
			c := byte('A')
			if r.entries[sig].Public[i] == c {
				c = 'B'
			}
			r.entries[sig].Public[i] = c
		}, sig, []string{"outcome", "signature"}},
		"another document under the signatures": {func(r *record) { r.replaceText(t, grant, `"reason":"needed"`, `"reason":"harmless"`) }, sig, []string{"outcome", "signature"}},
		"another approver's name":               {func(r *record) { r.replaceText(t, sig, ann, kim) }, sig, []string{"outcome", "signature"}},
		"a roster changed by one alone": {func(r *record) {
			r.insert(t, len(r.entries), ann, ledger.CodeOK, &ledger.ChangeObjects{Changes: []ledger.ObjectChange{object("Group", "mine", `{"members":[]}`)}})
		}, len(w.rec.entries), []string{"outcome", "custody"}},
		"a lease on an approval that was dropped": {func(r *record) {
			r.entries[lease-1] = ledger.Entry{TimeMS: r.entries[lease-1].TimeMS, Result: ledger.CodeNotFound, Public: heartbeat(t, r.entries[lease-1].TimeMS)}
		}, lease, []string{"outcome", "floor"}},
		"a change made before it was approved": {func(r *record) { r.entries[r.find(t, 0, "make_change", ledger.CodeGrantOver)].Result = ledger.CodeOK },
			w.rec.find(t, 0, "make_change", ledger.CodeGrantOver), []string{"outcome", "custody"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := w.rec.clone()
			tt.do(r)
			wantDefects(t, r, tt.at, tt.codes...)
		})
	}
}

func heartbeat(t *testing.T, ms int64) []byte {
	h := by(app)
	h.AtMS = ms
	raw, err := ledger.Encode(h, &ledger.HeartbeatTask{ID: "tsk_none"})
	if err != nil {
		t.Fatal(err)
	}
	d, err := ledger.Decode(raw)
	if err != nil {
		t.Fatal(err)
	}
	return d.Public
}

// Law 4: no privileged mint without its co-signatures, whatever the record calls it.
func TestLaw4LeaseWithoutApprovalsIsFound(t *testing.T) {
	w := newWorld(t)
	w.live()
	refused := w.rec.find(t, 0, "open_lease", ledger.CodeApprovalRequired) // of a grant with no signature yet
	bare := w.rec.find(t, refused+1, "open_lease", ledger.CodeApprovalRequired)
	for _, seq := range []int{refused, bare} {
		r := w.rec.clone()
		r.entries[seq].Result = ledger.CodeOK
		wantDefects(t, r, seq, "outcome", "floor")
	}
	t.Run("a denied grant is used", func(t *testing.T) {
		w.now += 2 * ledger.CoolingMS
		denied := w.ask(app)
		w.ok(kim, &ledger.EndGrant{GrantID: denied, State: ledger.GrantDenied})
		w.refused(ledger.CodeApprovalRequired, app, w.open(app, "db/priv", denied))
		r := w.rec.clone()
		last := len(r.entries) - 1
		r.entries[last].Result = ledger.CodeOK
		if text := wantDefects(t, r, last, "outcome", "floor"); !strings.Contains(text, "which was denied") {
			t.Error(text)
		}
	})
	t.Run("a denial is recorded as an approval", func(t *testing.T) {
		r := w.rec.clone()
		denial := r.find(t, 0, "end_grant", ledger.CodeOK)
		d, err := ledger.DecodePublic(r.entries[denial].Public)
		if err != nil {
			t.Fatal(err)
		}
		old := r.entries[r.find(t, denial-5, "approve_grant", ledger.CodeOK)] // kim's, of another grant
		od, err := ledger.DecodePublic(old.Public)
		if err != nil {
			t.Fatal(err)
		}
		e := ledger.Entry{TimeMS: r.entries[denial].TimeMS, Result: ledger.CodeOK, Public: old.Public}
		e.Public = bytes.Replace(e.Public, []byte(od.Body.(*ledger.ApproveGrant).GrantID), []byte(d.Body.(*ledger.EndGrant).GrantID), 1)
		e.Public = bytes.Replace(e.Public, fmt.Append(nil, old.TimeMS), fmt.Append(nil, e.TimeMS), 1)
		r.entries[denial] = e
		wantDefects(t, r, denial, "outcome", "signature")
	})
}

// A key to approve with that nobody vouched for is found, however it came in.
func TestHazard1UnvouchedKeyIsFound(t *testing.T) {
	w := newWorld(t)
	w.live()
	thief := cosigntest.Seeded(cosign.KindJWS, "thief")
	t.Run("added", func(t *testing.T) {
		for _, vouch := range []*cosigntest.Person{nil, thief} {
			r := w.rec.clone()
			r.insert(t, len(r.entries), eve, ledger.CodeOK, w.addKey(eve, thief, vouch))
			wantDefects(t, r, len(r.entries)-1, "outcome", "vouch")
		}
	})
	t.Run("enrolled", func(t *testing.T) {
		hash := sha256.Sum256([]byte("token"))
		token := hex.EncodeToString(hash[:])
		w.ok("", &ledger.IssueEnrolment{TokenHash: token, Principal: kim, ExpiresMS: w.now + 60_000, Why: "recover"})
		key := thief.Key()
		id := sha256.Sum256([]byte("session"))
		w.do(by(kim), &ledger.OpenSession{
			Session:       ledger.Session{ID: ledger.SessionID(id), TokenHash: token, Principal: kim, Method: "enrol", ExpiresMS: w.now + 60_000},
			EnrolmentHash: token, NewKey: &ledger.Key{Thumbprint: thief.Thumbprint(), Principal: kim, Use: ledger.UseApprove, JWK: key.JWK, Approve: &key},
		})
		r := w.rec.clone()
		last := len(r.entries) - 1
		r.entries[last].Result = ledger.CodeOK // should the rules refuse it
		rep, err := verify(t, r.export(t, 0, 0))
		if err != nil || rep.Holds() {
			t.Fatalf("%+v, %v", rep.Result, err)
		}
		if d := rep.Result.Defects[len(rep.Result.Defects)-1]; d.Seq != int64(last) || d.Code != "vouch" {
			t.Errorf("%+v", rep.Result.Defects)
		}
	})
}

// Hazard 2: an outcome that this build's rules do not give is found, whoever
// wrote it, be it a thief or a replica of another version.
func TestHazard2RecordedOutcomeIsExecutedAgain(t *testing.T) {
	w := newWorld(t)
	w.live()
	plain := w.rec.find(t, w.rec.find(t, 0, "review_grant", ledger.CodeOK), "open_lease", ledger.CodeOK)
	approve := w.rec.find(t, 0, "approve_grant", ledger.CodeOK)
	sessions := w.rec.find(t, 0, "open_session", ledger.CodeOK)
	made := w.rec.find(t, 0, "make_change", ledger.CodeOK)
	twice := w.rec.find(t, 0, "approve_grant", ledger.CodeTwice)
	tests := map[string]struct {
		do    func(r *record)
		at    int
		codes []string
	}{
		"done, recorded as refused":   {func(r *record) { r.entries[plain].Result = ledger.CodeCapRole }, plain, []string{"outcome"}},
		"refused, recorded as done":   {func(r *record) { r.entries[twice].Result = ledger.CodeOK }, twice, []string{"outcome"}},
		"refused for another reason":  {func(r *record) { r.entries[twice].Result = ledger.CodeNotEligible }, twice, []string{"outcome"}},
		"earlier than the rules give": {func(r *record) { r.entries[approve].TimeMS = r.entries[approve-1].TimeMS }, approve, []string{"outcome"}},
		"later than the rules give":   {func(r *record) { r.entries[approve].TimeMS++ }, approve, []string{"outcome"}},
		"an entry dropped":            {func(r *record) { r.entries = slices.Delete(r.entries, approve, approve+1) }, made - 1, []string{"outcome", "custody"}},
		"two swapped": {func(r *record) {
			r.entries[made], r.entries[made-1] = r.entries[made-1], r.entries[made]
			r.entries[made].TimeMS = r.entries[made-1].TimeMS
		}, made - 1, []string{"outcome", "custody"}},
		"an entry twice":  {func(r *record) { r.entries = slices.Insert(r.entries, sessions, r.entries[sessions]) }, sessions + 1, []string{"outcome"}},
		"genesis dropped": {func(r *record) { r.entries = r.entries[1:] }, 0, []string{"outcome"}},
		"genesis without quorum": {func(r *record) {
			r.replaceText(t, 0, `"approvals":[{"group":"administrators","count":2}],`, "")
		}, w.rec.find(t, 0, "request_grant", ledger.CodeOK), []string{"outcome"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := w.rec.clone()
			tt.do(r)
			wantDefects(t, r, tt.at, tt.codes...)
		})
	}
	t.Run("time runs backwards", func(t *testing.T) {
		r := w.rec.clone()
		r.entries[approve].TimeMS = r.entries[approve-1].TimeMS - 1
		_, err := verify(t, r.export(t, 0, 0))
		if f := fault.As(err); err == nil || f.Code != "audit_time" {
			t.Errorf("%v", err)
		}
	})
	t.Run("what no node could store", func(t *testing.T) {
		r := w.rec.clone()
		r.replaceText(t, plain, `"name":"acc-`, `"name":"acc-`+strings.Repeat("x", 5000))
		wantDefects(t, r, plain, "unreadable")
		rep, err := verify(t, r.export(t, 0, 0))
		if err != nil || rep.Result.Stopped == "" || rep.Result.Entries != int64(plain+1) {
			t.Errorf("%+v, %v", rep.Result, err)
		}
	})
}
