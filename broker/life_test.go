package broker_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-broker/mayfly/broker/brokertest"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/issuers"
)

// bubble runs a test of a leading engine with time that passes by itself.
func bubble(t *testing.T, test func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.stop()
		r.lead()
		test(t, r)
	})
}

func (r *rig) ended(id string) func() bool {
	return func() bool { return r.lease(id).State == ledger.LeaseEnded }
}

// gone is how long a withdrawal may take when all is well: until no mint can be
// in flight any more, and a look.
const gone = 25 * time.Second

// TestLaw2ExpiryEndsAccountAndSessions.
func TestLaw2ExpiryEndsAccountAndSessions(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		a := r.must(appCaller, wire.AccessRequest{Role: "t1/ro", TTL: "30s", Purpose: "p"})
		if err := r.t1.Login(a.Credential["username"], a.Credential["password"]); err != nil {
			t.Fatal(err)
		}
		wait(29 * time.Second)
		if _, there := r.t1.Account(a.Credential["username"]); !there {
			t.Fatal("gone before its time")
		}
		r.within(3*time.Second, "the account is gone after its expiry", func() bool { _, there := r.t1.Account(a.Credential["username"]); return !there })
		r.within(gone, "the lease has ended", r.ended(a.LeaseID))
		l := r.lease(a.LeaseID)
		if l.End.Reason != ledger.EndExpired || !strings.Contains(string(l.End.Receipt), issuers.ProofAbsent) || l.Grant.TaskID == "" {
			t.Errorf("end: %+v", l.End)
		}
	})
}

// TestLaw2MintOfUnknownOutcomeIsLookedForTwice: the first look finds nothing, the
// statement acts after it, and only a look after its deadline counts.
func TestLaw2MintOfUnknownOutcomeIsLookedForTwice(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		var late func() error
		r.wire(func(_ context.Context, c brokertest.Call, act func() error) error {
			if c.Verb == "mint" {
				late = act
				return &issuers.Error{Kind: issuers.Unknown, Detail: "the connection broke"}
			}
			return act()
		})
		if _, err := r.request(appCaller, wire.AccessRequest{Role: "t1/ro", Purpose: "p"}); err == nil {
			t.Fatal("the mint was to fail")
		}
		var id string
		r.log.Query(func(q ledger.Query) { id = q.LeasesOn("t1", 1)[0] })
		wait(5 * time.Second)
		if n := r.t1.Calls("withdraw"); n != 1 || r.ended(id)() {
			t.Errorf("after the first look: %d looks, the lease is %s", n, r.lease(id).State)
		}
		if err := late(); err != nil {
			t.Fatal(err)
		}
		r.within(gone, "the lease has ended", r.ended(id))
		if left := r.t1.Accounts(); len(left) != 0 || r.t1.Calls("withdraw") != 2 {
			t.Errorf("%d looks; left are %+v", r.t1.Calls("withdraw"), left)
		}
	})
}

// TestLaw2MintThatWasSeenToReturnIsLookedForOnce, and revoking twice is done.
func TestLaw2MintThatWasSeenToReturnIsLookedForOnce(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		a := r.must(appCaller, wire.AccessRequest{Role: "t1/ro", Purpose: "p"})
		for range 2 {
			l, err := r.engine.Revoke(t.Context(), appCaller, a.LeaseID, wire.RevokeRequest{})
			if err != nil || l.State != ledger.LeaseEnded {
				t.Fatalf("%+v %v", l, err)
			}
		}
		if n := r.t1.Calls("withdraw"); n != 1 || len(r.t1.Accounts()) != 0 {
			t.Errorf("%d looks; left are %+v", n, r.t1.Accounts())
		}
	})
}

// TestLaw2EndOfTaskEndsTheTreesLeases.
func TestLaw2EndOfTaskEndsTheTreesLeases(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		top, err := r.engine.StartTask(t.Context(), appCaller, wire.StartTaskRequest{Name: "top", Purpose: "p"})
		if err != nil {
			t.Fatal(err)
		}
		low, err := r.engine.StartTask(t.Context(), appCaller, wire.StartTaskRequest{Name: "low", Purpose: "p", Parent: top.ID, For: "agent:c"})
		if err != nil {
			t.Fatal(err)
		}
		mine := r.must(appCaller, wire.AccessRequest{Role: "t1/ro", Task: top.ID})
		theirs := r.must(agentCaller, wire.AccessRequest{Role: "t2/ro", Task: low.ID})
		if l := r.lease(theirs.LeaseID); !slices.Equal(l.Grant.Chain, []string{"workload:a"}) {
			t.Errorf("chain %v", l.Grant.Chain)
		}
		end, err := r.engine.EndTask(t.Context(), appCaller, top.ID, gone)
		if err != nil || end.Leases != 2 || !end.Withdrawn {
			t.Errorf("%+v %v", end, err)
		}
		for _, id := range []string{mine.LeaseID, theirs.LeaseID} {
			if !r.ended(id)() {
				t.Errorf("%s is %s", id, r.lease(id).State)
			}
		}
		_, err = r.request(agentCaller, wire.AccessRequest{Role: "t2/ro", Task: low.ID})
		r.fails(err, fault.Denied, "task_ended")
	})
}

// TestHazard18EndOfTaskSaysWhatLivesOn: what nothing can withdraw is counted by its
// proof, with the time until which it works; before the targets were heard, too.
func TestHazard18EndOfTaskSaysWhatLivesOn(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		for _, waits := range []time.Duration{0, gone} {
			for _, only := range []bool{true, false} {
				r.kind.ExpiresOnly = only
				task, err := r.engine.StartTask(t.Context(), appCaller, wire.StartTaskRequest{Name: "top", Purpose: "p"})
				if err != nil {
					t.Fatal(err)
				}
				a := r.must(appCaller, wire.AccessRequest{Role: "t1/ro", Task: task.ID})
				end, err := r.engine.EndTask(t.Context(), appCaller, task.ID, waits)
				if err != nil || (end.WorksUntil != nil) != only || only && !end.WorksUntil.Equal(a.ExpiresAt) {
					t.Errorf("wait %s, expires only %v: %+v %v", waits, only, end, err)
				}
				if want := map[bool]string{true: issuers.ProofExpiresOnly, false: issuers.ProofAbsent}[only]; waits > 0 && (len(end.Proofs) != 1 || end.Proofs[want] != 1) {
					t.Errorf("proofs %v; want one %s", end.Proofs, want)
				}
				r.within(gone, "the lease has ended", r.ended(a.LeaseID))
				if l, err := r.engine.Lease(t.Context(), appCaller, a.LeaseID); err != nil {
					t.Error(err)
				} else if _, lives := l.Outlived(); lives != only {
					t.Errorf("expires only %v; receipt %s", only, l.Receipt)
				}
			}
		}
	})
}

// Where the leader's own round is quicker to set the leases to end, whoever ends the
// task waits for them all the same.
func TestLaw2EndOfTaskWaitsForWhatOthersEnd(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		task, err := r.engine.StartTask(t.Context(), appCaller, wire.StartTaskRequest{Name: "top", Purpose: "p"})
		if err != nil {
			t.Fatal(err)
		}
		mine := r.must(appCaller, wire.AccessRequest{Role: "t1/ro", Task: task.ID})
		slow := func(_ context.Context, c brokertest.Call, act func() error) error {
			if c.Verb == "withdraw" {
				wait(3 * time.Second)
			}
			return act()
		}
		r.wire(slow)
		r.after(func(d ledger.Decoded, _ ledger.Result) error {
			if _, ok := d.Body.(*ledger.EndTask); ok {
				wait(2 * time.Second) // the leader's round comes meanwhile
			}
			return nil
		})
		end, err := r.engine.EndTask(t.Context(), appCaller, task.ID, gone)
		if err != nil || end.Leases != 1 || !end.Withdrawn || !r.ended(mine.LeaseID)() {
			t.Errorf("%+v %v; the lease is %s", end, err, r.lease(mine.LeaseID).State)
		}
	})
}

// TestCrashLoopCannotExceedCaps: the client of hashicorp/vault#5475 left 84,000
// accounts behind. Here an instance replaces its own, and a client without an
// instance meets its cap.
func TestCrashLoopCannotExceedCaps(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		looping, healthy := callerOf("workload:a", "pod-1"), callerOf("workload:a", "pod-2")
		good := r.must(healthy, wire.AccessRequest{Role: "t1/ro", Purpose: "p", TTL: "120s"})
		most := 0
		for i := range 200 {
			a := r.must(looping, wire.AccessRequest{Role: "t1/ro", Purpose: "p"})
			if i > 0 && len(a.Replaced) != 1 {
				t.Fatalf("start %d replaced %v", i, a.Replaced)
			}
			wait(50 * time.Millisecond)
			most = max(most, len(r.t1.Accounts()))
		}
		if most > 4 {
			t.Errorf("%d accounts at once", most)
		}
		if r.lease(good.LeaseID).State != ledger.LeaseOpen {
			t.Error("the healthy instance lost its lease")
		}
		refused := 0
		for range 200 {
			if _, err := r.request(callerOf("workload:b", ""), wire.AccessRequest{Role: "t1/ro", Purpose: "p"}); err != nil {
				if k := fault.KindOf(err); k != fault.RateLimited {
					t.Fatal(err)
				}
				refused++
			}
		}
		if refused != 194 { // caps.per_principal is 6
			t.Errorf("%d of 200 refused", refused)
		}
	})
}

// TestRenewExtendsTheLedgerFirstThenTheTarget.
func TestRenewExtendsTheLedgerFirstThenTheTarget(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		a := r.must(appCaller, wire.AccessRequest{Role: "t1/ro", Purpose: "p"})
		name := a.Credential["username"]
		wait(20 * time.Second)
		r.wire(func(_ context.Context, c brokertest.Call, act func() error) error {
			if c.Verb == "extend" && r.lease(a.LeaseID).ExpiresMS != c.Leases[0].NotAfter.UnixMilli() {
				t.Errorf("the target is told %s before the ledger", c.Leases[0].NotAfter)
			}
			return act()
		})
		l, err := r.engine.Renew(t.Context(), appCaller, a.LeaseID, wire.RenewRequest{})
		acc, _ := r.t1.Account(name)
		if err != nil || l.ExpiresAt.Sub(a.ExpiresAt) != 20*time.Second || !acc.Until.Equal(l.ExpiresAt) {
			t.Errorf("renewed until %s (%v), the account lives until %s", l.ExpiresAt, err, acc.Until)
		}
		r.wire(nil)
		if _, err := r.engine.Renew(t.Context(), agentCaller, a.LeaseID, wire.RenewRequest{}); fault.KindOf(err) != fault.NotFound {
			t.Errorf("somebody else's renewal: %v", err)
		}
		wait(30 * time.Second)
		if l, err = r.engine.Renew(t.Context(), appCaller, a.LeaseID, wire.RenewRequest{TTL: "10h"}); err != nil || !l.ExpiresAt.Equal(a.NotAfter) {
			t.Errorf("renewed until %s, the hard end is %s (%v)", l.ExpiresAt, a.NotAfter, err)
		}
	})
}

// TestLaw3RepeatedRenewalDoesNotOutrunTheLedger: found by the simulation.
func TestLaw3RepeatedRenewalDoesNotOutrunTheLedger(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		a := r.must(appCaller, wire.AccessRequest{Role: "t1/ro", Purpose: "p"})
		for range 3 {
			wait(5 * time.Second)
			if _, err := r.engine.Renew(t.Context(), withKey(appCaller, "again"), a.LeaseID, wire.RenewRequest{}); err != nil {
				t.Fatal(err)
			}
			acc, _ := r.t1.Account(a.Credential["username"])
			if l := r.lease(a.LeaseID); acc.Until.UnixMilli() != l.ExpiresMS {
				t.Fatalf("the account lives until %d, its lease until %d", acc.Until.UnixMilli(), l.ExpiresMS)
			}
		}
	})
}

// TestRenewalThatMissedTheTargetReachesItLater: found by the simulation. The
// ledger was extended to the hard end and the target was not there.
func TestRenewalThatMissedTheTargetReachesItLater(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		a := r.must(appCaller, wire.AccessRequest{Role: "t1/ro", Purpose: "p"})
		r.wire(fail("t1", "extend", &issuers.Error{Kind: issuers.Unreachable, Detail: "down"}))
		_, err := r.engine.Renew(t.Context(), appCaller, a.LeaseID, wire.RenewRequest{TTL: "10h"})
		r.fails(err, fault.Unavailable, "target_unavailable")
		r.wire(nil)
		l, err := r.engine.Renew(t.Context(), appCaller, a.LeaseID, wire.RenewRequest{TTL: "10h"})
		if acc, _ := r.t1.Account(a.Credential["username"]); err != nil || !acc.Until.Equal(l.ExpiresAt) {
			t.Errorf("told %s (%v), the account lives until %s", l.ExpiresAt, err, acc.Until)
		}
	})
}

// TestForceEnd: an operator may end a lease without the target's word, with a
// reason, which is the receipt; a workload may not.
func TestForceEnd(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		a := r.must(appCaller, wire.AccessRequest{Role: "t1/ro", Purpose: "p"})
		r.wire(fail("t1", "withdraw", &issuers.Error{Kind: issuers.Unreachable, Detail: "gone for good"}))
		_, err := r.engine.Revoke(t.Context(), callerOf(operator, ""), a.LeaseID, wire.RevokeRequest{Force: true})
		r.fails(err, fault.Invalid, "reason_missing")
		_, err = r.engine.Revoke(t.Context(), appCaller, a.LeaseID, wire.RevokeRequest{Force: true, Reason: "me"})
		r.fails(err, fault.Denied, "")
		l, err := r.engine.Revoke(t.Context(), callerOf(operator, ""), a.LeaseID, wire.RevokeRequest{Force: true, Reason: "burnt down"})
		if err != nil || l.State != ledger.LeaseEnded || !strings.Contains(string(l.Receipt), "burnt down") || !strings.Contains(string(l.Receipt), operator) {
			t.Errorf("%+v %s %v", l, l.Receipt, err)
		}
	})
}

// TestContainmentEndsWhatLives.
func TestContainmentEndsWhatLives(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		a := r.must(appCaller, wire.AccessRequest{Role: "t1/ro", Purpose: "p"})
		b := r.must(agentCaller, wire.AccessRequest{Role: "t2/ro", TTL: "60s", Purpose: "p"})
		op := callerOf(operator, "")
		if dry, err := r.engine.Contain(t.Context(), op, wire.ContainRequest{What: "zone/z1", Reason: "x", DryRun: true}); err != nil || dry.Leases != 1 || r.lease(a.LeaseID).State != ledger.LeaseOpen {
			t.Errorf("%+v %v", dry, err)
		}
		if _, err := r.engine.Contain(t.Context(), op, wire.ContainRequest{What: "zone/z1", Reason: "x"}); err != nil {
			t.Fatal(err)
		}
		r.within(gone, "the zone's lease has ended", r.ended(a.LeaseID))
		if r.lease(b.LeaseID).State != ledger.LeaseOpen {
			t.Error("a lease outside the zone was ended")
		}
		_, err := r.request(appCaller, wire.AccessRequest{Role: "t1/ro", Purpose: "p"})
		r.fails(err, fault.Denied, ledger.CodeFrozen)
		if _, err := r.engine.Release(t.Context(), op, wire.ContainRequest{What: "zone/z1", Reason: "fine"}); err != nil {
			t.Fatal(err)
		}
		r.must(appCaller, wire.AccessRequest{Role: "t1/ro", Purpose: "p"})
	})
}

// TestLaw6NoSecretIsWrittenAnywhere: every password that a target ever held, and
// a target's own, against every byte that was logged or committed.
func TestLaw6NoSecretIsWrittenAnywhere(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		const admins = "the-admins-own-password"
		op := callerOf(operator, "")
		if _, err := r.engine.Apply(t.Context(), op, wire.ApplyRequest{Objects: []wire.Object{{
			Kind: "Target", Name: "t1", Spec: []byte(`{"type":"memory","zone":"z1","system":"t1"}`), Secrets: map[string]string{"password": admins}}}}); err != nil {
			t.Fatal(err)
		}
		who := withKey(appCaller, "k")
		for range 3 {
			r.must(who, wire.AccessRequest{Role: "t1/ro", Purpose: "p"})
		}
		r.wire(func(_ context.Context, c brokertest.Call, act func() error) error {
			if c.Verb == "mint" {
				return fmt.Errorf("mint answered, then broke: %w", errAfter(act))
			}
			return act()
		})
		if _, err := r.request(appCaller, wire.AccessRequest{Role: "t1/ro", Purpose: "p"}); err == nil {
			t.Fatal("no error")
		}
		wait(2 * time.Minute)
		secrets := r.t1.Passwords()
		if len(secrets) != 4 {
			t.Fatalf("%d passwords", len(secrets))
		}
		for _, s := range append(secrets, admins) {
			if bytes.Contains(r.logged.Bytes(), []byte(s)) {
				t.Errorf("%s was logged", s)
			}
			r.log.Query(func(q ledger.Query) {
				for seq := range q.Size() {
					if e, _ := q.Entry(seq); bytes.Contains(e.Public, []byte(s)) {
						t.Errorf("%s stands in entry %d", s, seq)
					}
				}
			})
			for _, c := range r.log.Commands() {
				if s != admins && bytes.Contains(c, []byte(s)) {
					t.Errorf("%s was committed", s)
				}
			}
		}
		page, err := r.engine.AuditEntries(t.Context(), op, 0, 1000)
		if err != nil || len(page.Entries) == 0 || strings.Contains(string(mustJSON(page.Entries)), admins) {
			t.Errorf("the audit shows a secret, or nothing (%v)", err)
		}
	})
}

func errAfter(act func() error) error {
	if err := act(); err != nil {
		return err
	}
	return &issuers.Error{Kind: issuers.Unknown, Detail: "no answer"}
}
