package broker_test

import (
	"context"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/issuers"
)

// TestLaw2ARepeatThatFailsTakesBackWhatWasGivenOutBefore: a client asks again with
// its key while the secret is being replaced. What it was given the first time is
// not forgotten with the lease.
func TestLaw2ARepeatThatFailsTakesBackWhatWasGivenOutBefore(t *testing.T) {
	turnings(t, func(t *testing.T, r *rig, k *turning) {
		r.apply(account(usedOnce)...)
		r.turns("Account/app", 1)
		who := appCaller
		who.Idem = &ledger.Idem{Key: "k", Hash: "h"}
		in := wire.AccessRequest{Role: "t1/app", Purpose: "p"}
		a := r.must(who, in)
		k.presents(&issuers.Error{Kind: issuers.Unreachable, Detail: "away"})
		if _, err := r.request(who, in); err == nil {
			t.Fatal("it was presented")
		}
		k.presents(nil)
		r.within(gone, "the lease has ended", r.ended(a.LeaseID))
		if l := r.lease(a.LeaseID); !strings.Contains(string(l.End.Receipt), `"rotated"`) {
			t.Errorf("receipt: %s", l.End.Receipt)
		}
		if k.has("app", a.Credential["password"]) {
			t.Error("what the lease gave out still logs in")
		}
	})
}

// TestLaw2AnEndedLeaseGivesOutNothing: the lease is revoked, and the secret replaced
// for that, between the commit of the lease and its answer.
func TestLaw2AnEndedLeaseGivesOutNothing(t *testing.T) {
	turnings(t, func(t *testing.T, r *rig, k *turning) {
		r.apply(account(oneName)...)
		r.turns("Account/app", 1)
		var lease string
		r.log.After = func(d ledger.Decoded, res ledger.Result) error {
			if d.Type != "open_lease" {
				return nil
			}
			lease = res.ID
			if _, err := r.engine.Revoke(context.Background(), opCaller, lease, wire.RevokeRequest{Reason: "leaked"}); err != nil {
				t.Error(err)
			}
			r.within(gone, "the lease has ended", r.ended(lease))
			return nil
		}
		a, err := r.request(appCaller, wire.AccessRequest{Role: "t1/app", Purpose: "p"})
		r.log.After = func(ledger.Decoded, ledger.Result) error { return nil }
		if err == nil && k.has("app", a.Credential["password"]) {
			t.Errorf("%s has ended, and gave out a secret that works: %s", lease, r.lease(lease).End.Receipt)
		}
	})
}

// presents sets what the target answers when it is to present an account; nil: well.
func (k *turning) presents(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.silent = err
}

// TestLaw2ATurnOfTheSameInstantIsNotTheLeases: where ledger time stands still, as
// after a clock that was ahead, a turn that began before the lease is not one that
// began after its end.
func TestLaw2ATurnOfTheSameInstantIsNotTheLeases(t *testing.T) {
	turnings(t, func(t *testing.T, r *rig, k *turning) {
		r.apply(account(oneName)...)
		r.turns("Account/app", 1)
		if x, err := r.engine.Rotate(t.Context(), opCaller, wire.RotateRequest{Kind: "account", Name: "app"}); err != nil || x.Turns != 2 {
			t.Fatalf("%+v %v", x, err)
		}
		a := r.must(appCaller, wire.AccessRequest{Role: "t1/app", Purpose: "p"})
		if _, err := r.engine.Revoke(t.Context(), opCaller, a.LeaseID, wire.RevokeRequest{Reason: "leaked"}); err != nil {
			t.Fatal(err)
		}
		r.within(gone, "the lease has ended", r.ended(a.LeaseID))
		if k.has("app", a.Credential["password"]) {
			t.Errorf("what the lease gave out still logs in: %s", r.lease(a.LeaseID).End.Receipt)
		}
	})
}

// TestTargetIsNotEnteredByAnAccount that is given out, whichever came first.
func TestTargetIsNotEnteredByAnAccount(t *testing.T) {
	turnings(t, func(t *testing.T, r *rig, k *turning) {
		r.apply(account(oneName)...)
		r.turns("Account/app", 1)
		k.enters = "app" // as the spec says that is written now
		_, err := r.engine.Apply(t.Context(), opCaller, wire.ApplyRequest{Objects: []wire.Object{{Kind: "Target", Name: "t1", Spec: []byte(`{"type":"memory","system":"t1"}`)}}})
		if err == nil || !strings.Contains(err.Error(), "app is account app") {
			t.Error(err)
		}
	})
}

// TestRotationCannotWaitForApprovals: a permit that asks for co-signatures is none
// for what nobody can co-sign.
func TestRotationCannotWaitForApprovals(t *testing.T) {
	turnings(t, func(t *testing.T, r *rig, k *turning) {
		r.apply(account(oneName)...)
		r.turns("Account/app", 1)
		r.put("Policy", "two", mustJSON(ledger.PolicySpec{Text: `@id("two") @approvals("2") @approvers("dba") permit (principal == Human::"op", action == Action::"rotate", resource);`}))
		_, err := r.engine.Rotate(t.Context(), opCaller, wire.RotateRequest{Kind: "account", Name: "app"})
		r.fails(err, fault.Denied, ledger.CodeApprovalRequired)
		if x := r.rotation("Account/app"); x.Turns != 1 || x.Wanted != "" {
			t.Errorf("%+v", x)
		}
	})
}
