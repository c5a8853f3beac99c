package broker_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker/brokertest"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/issuers"
)

// TestHazard8ReconcileHealsOnlyWhenToldTo: both ways of drift are shown, an open
// lease's credential is left alone, and a person with a reason puts the rest right.
func TestHazard8ReconcileHealsOnlyWhenToldTo(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		kept := r.must(appCaller, wire.AccessRequest{Role: "t1/rw", Purpose: "p"})
		lost := r.must(appCaller, wire.AccessRequest{Role: "t1/ro", Purpose: "p", TTL: "40s"})
		wait(16 * time.Second) // past their mint deadlines
		r.t1.Plant(brokertest.Account{Name: "mf-nobodys", LeaseID: "nobodys", Generation: 3})
		drop(r, lost.Credential["username"])

		look := func(in wire.ReconcileRequest) wire.Drift {
			t.Helper()
			in.Target = "t1"
			list, err := r.engine.Reconcile(context.Background(), callerOf(operator, ""), in)
			if err != nil || len(list) != 1 || list[0].Error != "" {
				t.Fatalf("%+v %v", list, err)
			}
			return list[0]
		}
		for range 2 {
			d := look(wire.ReconcileRequest{})
			if !slices.Equal(d.Unknown, []string{"mf-nobodys"}) || !slices.Equal(d.Missing, []string{lost.Credential["username"]}) || len(d.Healed) > 0 {
				t.Fatalf("%+v", d)
			}
		}
		_, err := r.engine.Reconcile(t.Context(), callerOf(operator, ""), wire.ReconcileRequest{Target: "t1", Heal: true})
		r.fails(err, fault.Invalid, "reason_missing")
		_, err = r.engine.Reconcile(t.Context(), appCaller, wire.ReconcileRequest{Target: "t1", Heal: true, Reason: "mine"})
		r.fails(err, fault.Denied, "denied")
		if d := look(wire.ReconcileRequest{Heal: true, Reason: "left by a drill"}); len(d.Healed) != 2 {
			t.Fatalf("%+v", d)
		}
		r.within(gone, "the lease has ended", r.ended(lost.LeaseID))
		if d := look(wire.ReconcileRequest{}); len(d.Unknown)+len(d.Missing)+len(d.Ended) > 0 {
			t.Errorf("after healing: %+v", d)
		}
		if _, there := r.t1.Account(kept.Credential["username"]); there != (r.lease(kept.LeaseID).State == "open") {
			t.Error("an open lease's credential was removed")
		}
	})
}

// TestHazard8HealingIsRecordedAfterTheLook: the record is what proves that this node
// led when it looked, so that it knows the lease of all that it saw.
func TestHazard8HealingIsRecordedAfterTheLook(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		var order []string
		r.wire(func(_ context.Context, c brokertest.Call, act func() error) error {
			if c.Verb == "list" || c.Verb == "withdraw" {
				order = append(order, c.Verb)
			}
			return act()
		})
		deposed := errors.New("deposed")
		var refuse error
		r.before(func(d ledger.Decoded) error {
			if d.Type == "record_decision" {
				order = append(order, d.Type)
				return refuse
			}
			return nil
		})
		heal := func() wire.Drift {
			r.t1.Plant(brokertest.Account{Name: "mf-next", LeaseID: "next", Generation: 1})
			list, err := r.engine.Reconcile(context.Background(), callerOf(operator, ""), wire.ReconcileRequest{Target: "t1", Heal: true, Reason: "r"})
			if err != nil || len(list) != 1 {
				t.Fatal(list, err)
			}
			return list[0]
		}
		refuse = deposed
		if d := heal(); d.Error == "" || len(d.Healed) > 0 || !slices.Equal(order, []string{"list", "record_decision"}) {
			t.Errorf("a leader that was deposed before the look: %+v %v", d, order)
		}
		if _, there := r.t1.Account("mf-next"); !there {
			t.Error("it removed what its successor may have minted")
		}
		order, refuse = nil, nil
		if d := heal(); len(d.Healed) != 1 || !slices.Equal(order, []string{"list", "record_decision", "withdraw"}) {
			t.Errorf("%+v %v", d, order)
		}
	})
}

// drop removes an account as somebody else would.
func drop(r *rig, name string) {
	i, err := r.kind.Open(issuers.Target{Spec: []byte(`{"system":"t1"}`)})
	if err != nil {
		r.t.Fatal(err)
	}
	if o := i.Withdraw(context.Background(), []issuers.Lease{{Name: name}}); o[0].Err != nil {
		r.t.Fatal(o[0].Err)
	}
}
