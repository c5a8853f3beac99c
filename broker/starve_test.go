package broker_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/issuers"
)

// TestLaw8ADeadTargetHidesNoOthersRotations: more accounts of a target that answers
// nothing wait for their turn than the leader takes up at once. They do
// not keep another target's account waiting.
func TestLaw8ADeadTargetHidesNoOthersRotations(t *testing.T) {
	turnings(t, func(t *testing.T, r *rig, k *turning) {
		k.hangs = "t1"
		r.apply(wire.Object{Kind: "Target", Name: "t2", Spec: json.RawMessage(`{"type":"memory","system":"t2"}`), Secrets: map[string]string{"admin_password": "first"}})
		const many = 1100
		var accounts []wire.Object
		for i := range many {
			accounts = append(accounts, wire.Object{Kind: "Account", Name: fmt.Sprintf("a%04d", i), Spec: json.RawMessage(fmt.Sprintf(`{"target":"t1","usernames":["u%d"]}`, i))})
		}
		for len(accounts) > 0 {
			n := min(len(accounts), ledger.MaxObjectsPut)
			r.apply(accounts[:n]...)
			accounts = accounts[n:]
		}
		wait(time.Second)
		r.apply(wire.Object{Kind: "Account", Name: "other", Spec: json.RawMessage(`{"target":"t2","usernames":["app"]}`)})
		r.within(5*time.Second, "the other target's account turns", func() bool { return r.rotation("Account/other").Turns == 1 })
	})
}

// TestFewSecretsOfATargetTurnAtATime: a target that answers nothing certain leaves a
// few secrets in doubt and no more, and when it answers again all turn in the end,
// still few at a time.
func TestFewSecretsOfATargetTurnAtATime(t *testing.T) {
	turnings(t, func(t *testing.T, r *rig, k *turning) {
		k.refuses = &issuers.Error{Kind: issuers.Unknown, Detail: "no answer"}
		const many = 3 * ledger.MaxTurning
		var accounts []wire.Object
		for i := range many {
			accounts = append(accounts, wire.Object{Kind: "Account", Name: fmt.Sprintf("a%d", i), Spec: json.RawMessage(fmt.Sprintf(`{"target":"t1","usernames":["u%d"]}`, i))})
		}
		r.apply(accounts...)
		inDoubt := func() (n, turned int) {
			for i := range many {
				x := r.rotation(fmt.Sprintf("Account/a%d", i))
				if x.InFlight() {
					n++
				}
				turned += int(x.Turns)
			}
			if n > ledger.MaxTurning {
				t.Fatalf("%d secrets are in doubt at a time", n)
			}
			return n, turned
		}
		for range 300 {
			wait(time.Second)
			inDoubt()
		}
		if n, turned := inDoubt(); n != ledger.MaxTurning || turned != 0 {
			t.Errorf("after five minutes %d secrets are in doubt and %d have turned", n, turned)
		}
		k.mu.Lock()
		k.refuses = nil
		k.mu.Unlock()
		r.within(time.Hour, "all have turned", func() bool { n, turned := inDoubt(); return n == 0 && turned == many })
	})
}

// TestHazard17RefusedTurnsHoldUpNoOthers: accounts that the target does not have, more
// than may be in doubt at a time, keep no other from turning, and not the broker's own
// secret; each can be deleted.
func TestHazard17RefusedTurnsHoldUpNoOthers(t *testing.T) {
	turnings(t, func(t *testing.T, r *rig, k *turning) {
		k.strict = true
		var misspelt []wire.Object
		for i := range 2 * ledger.MaxTurning {
			spec := fmt.Sprintf(`{"target":"t1","usernames":["nobody%d"]}`, i)
			if i%2 == 1 {
				spec = fmt.Sprintf(`{"target":"t1","usernames":["nobody%d","noone%[1]d"],"grace":"1m"}`, i)
			}
			misspelt = append(misspelt, wire.Object{Kind: "Account", Name: fmt.Sprintf("m%d", i), Spec: json.RawMessage(spec)})
		}
		r.apply(misspelt...)
		wait(time.Minute)
		r.apply(account(oneName)...)
		r.within(time.Minute, "another account turns", func() bool { return r.rotation("Account/app").Turns == 1 })
		x, err := r.engine.Rotate(t.Context(), opCaller, wire.RotateRequest{Kind: "target", Name: "t1"})
		if err != nil || x.Turns != 1 {
			t.Errorf("the broker's own secret: %+v %v", x, err)
		}
		for _, o := range misspelt {
			if x := r.rotation("Account/" + o.Name); x.InFlight() || x.Tries == 0 || x.Problem == "" {
				t.Errorf("%+v", x)
			}
			if _, err := r.engine.Apply(t.Context(), opCaller, wire.ApplyRequest{Delete: []wire.Ref{{Kind: "Account", Name: o.Name}}}); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestRefusedTurnOfAWithdrawnSecretGivesNothingOut: somebody holds it who must not, and
// the target will not replace it.
func TestRefusedTurnOfAWithdrawnSecretGivesNothingOut(t *testing.T) {
	turnings(t, func(t *testing.T, r *rig, k *turning) {
		r.apply(account(oneName)...)
		r.turns("Account/app", 1)
		a := r.must(appCaller, wire.AccessRequest{Role: "t1/app", Purpose: "p"})
		k.refusing(&issuers.Error{Kind: issuers.Refused, Detail: "may not alter app"})
		if _, err := r.engine.Revoke(t.Context(), opCaller, a.LeaseID, wire.RevokeRequest{Reason: "leaked"}); err != nil {
			t.Fatal(err)
		}
		for range 30 {
			wait(10 * time.Second)
			_, err := r.request(agentCaller, wire.AccessRequest{Role: "t1/app", Purpose: "p"})
			r.fails(err, fault.Unavailable, "account_turning")
		}
		if r.ended(a.LeaseID)() {
			t.Error("the lease has ended while its secret logs in")
		}
		k.refusing(nil)
		r.within(time.Hour, "the lease has ended", r.ended(a.LeaseID))
		if k.has("app", a.Credential["password"]) {
			t.Error("what was revoked still logs in")
		}
	})
}

// TestTurnThatMayArriveYetIsNotTakenBack: a node died in the midst of telling a target
// that fences nobody. A refusal of the next node's attempt says nothing of the first.
func TestTurnThatMayArriveYetIsNotTakenBack(t *testing.T) {
	turnings(t, func(t *testing.T, r *rig, k *turning) {
		r.apply(account(oneName)...)
		r.turns("Account/app", 1)
		k.mu.Lock()
		k.left = 4 // the wish and the beginning are in the log, each by two points
		k.mu.Unlock()
		_, _ = r.engine.Rotate(t.Context(), opCaller, wire.RotateRequest{Kind: "account", Name: "app"})
		r.within(time.Minute, "the node is dead", func() bool { k.mu.Lock(); defer k.mu.Unlock(); return k.dead })
		begun := r.rotation("Account/app")
		if !begun.InFlight() {
			t.Fatalf("%+v", begun)
		}
		k.refusing(&issuers.Error{Kind: issuers.Refused, Detail: "may not alter app"})
		r.restart(k)
		wait(time.Minute)
		if x := r.rotation("Account/app"); !x.InFlight() || x.ID != begun.ID || x.Tries == 0 {
			t.Errorf("%+v", x)
		}
		k.refusing(nil)
		r.turns("Account/app", 2)
	})
}
