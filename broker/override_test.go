package broker_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/issuers"
)

// reset is what a person does by hand on the target.
func (k *turning) reset(username, password string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.secrets[username] = password
}

func withSecret(password string) wire.ApplyRequest {
	return wire.ApplyRequest{Override: true, Reason: "reset by hand, ticket 12", Objects: []wire.Object{{Kind: "Target", Name: "t1",
		Spec: json.RawMessage(`{"type":"memory","zone":"z1","system":"t1"}`), Secrets: map[string]string{"admin_password": password}}}}
}

// knows says whether the broker enters the target, by a secret that no person knows.
func (r *rig) knows(k *turning, not ...string) bool {
	var admin string
	r.log.Query(func(q ledger.Query) { admin = string(q.Secret("Target", "t1", "admin_password")) })
	for _, n := range not {
		if admin == n {
			return false
		}
	}
	return k.has("admin", admin)
}

// TestResetSecretIsHandedIn: whether the broker rests, or has tried in vain to turn
// what it no longer knows. It is on record, and turned at once.
func TestResetSecretIsHandedIn(t *testing.T) {
	for _, stuck := range []bool{false, true} {
		turnings(t, func(t *testing.T, r *rig, k *turning) {
			if x, err := r.engine.Rotate(t.Context(), opCaller, wire.RotateRequest{Kind: "target", Name: "t1"}); err != nil || x.Turns != 1 {
				t.Fatalf("%+v %v", x, err)
			}
			k.reset("admin", "by hand")
			if stuck {
				if x, err := r.engine.Rotate(t.Context(), opCaller, wire.RotateRequest{Kind: "target", Name: "t1"}); err != nil || x.Tries == 0 {
					t.Fatalf("%+v %v", x, err)
				}
				wait(20 * time.Minute)
			}
			before := r.rotation("Target/t1")
			if _, err := r.request(appCaller, wire.AccessRequest{Role: "t1/ro", Purpose: "p"}); err == nil {
				t.Fatal("the broker is not locked out")
			}
			plain := withSecret("by hand")
			plain.Override = false
			if a, err := r.engine.Apply(t.Context(), opCaller, plain); err != nil || a.Changes[0].Action != "unchanged" || r.knows(k) {
				t.Fatalf("without the flag: %+v %v", a, err)
			}
			if _, err := r.engine.Apply(t.Context(), opCaller, withSecret("by hand")); err != nil {
				t.Fatal(err)
			}
			r.within(time.Minute, "it has turned", func() bool { return r.rotation("Target/t1").Turns > before.Turns && r.knows(k, "by hand") })
			r.must(appCaller, wire.AccessRequest{Role: "t1/ro", Purpose: "p"})
			if k.has("admin", "by hand") {
				t.Error("what a person knows still opens the target")
			}
			page, err := r.engine.AuditEntries(t.Context(), opCaller, 0, 1000)
			if err != nil {
				t.Fatal(err)
			}
			said := false
			for _, x := range page.Entries {
				said = said || x.Type == "change_objects" && x.Actor == operator && strings.Contains(string(x.Command), `"override":true`) && strings.Contains(string(x.Command), "ticket 12")
				if bytes.Contains(x.Command, []byte("by hand\"")) && !strings.Contains(string(x.Command), "ticket 12") {
					t.Errorf("the secret is on record: %s", x.Command)
				}
			}
			if !said {
				t.Error("the record does not say who overrode it, and why")
			}
			// The one time was the one time.
			if a, err := r.engine.Apply(t.Context(), opCaller, plain); err != nil || a.Changes[0].Action != "unchanged" || !r.knows(k, "by hand") {
				t.Errorf("afterwards: %+v %v", a, err)
			}
		})
	}
}

// TestOverrideIsTriedFirst: what the target does not take changes nothing, nor does
// what overrides nothing, says no reason, or is not permitted.
func TestOverrideIsTriedFirst(t *testing.T) {
	turnings(t, func(t *testing.T, r *rig, k *turning) {
		try := func(c broker.Caller, in wire.ApplyRequest, kind fault.Kind, code string) {
			t.Helper()
			_, err := r.engine.Apply(t.Context(), c, in)
			r.fails(err, kind, code)
		}
		try(opCaller, withSecret("first"), fault.Invalid, "nothing_to_override") // never rotated
		if _, err := r.engine.Rotate(t.Context(), opCaller, wire.RotateRequest{Kind: "target", Name: "t1"}); err != nil {
			t.Fatal(err)
		}
		try(opCaller, withSecret("a guess"), fault.Invalid, "secret_refused")
		silent := withSecret("first")
		silent.Reason = " "
		try(opCaller, silent, fault.Invalid, "reason_missing")
		try(appCaller, withSecret("first"), fault.Denied, "")
		r.apply(account(oneName)...)
		r.turns("Account/app", 1)
		of := withSecret("x")
		of.Objects = []wire.Object{{Kind: "Account", Name: "app", Spec: json.RawMessage(oneName), Secrets: map[string]string{"initial_password": "x"}}}
		try(opCaller, of, fault.Invalid, "nothing_to_override")
		if x := r.rotation("Target/t1"); x.Turns != 1 || x.Wanted != "" || !r.knows(k, "first") {
			t.Errorf("%+v", x)
		}
	})
}

// TestOverrideUnderDualControl: nothing changes before two have signed for it; it is
// tried again then, since hours may lie between.
func TestOverrideUnderDualControl(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newDual(t)
		k := &turning{Kind: p.kind, secrets: map[string]string{"admin": "first"}}
		p.become(k)
		defer func() { p.engine.Close() }()
		p.lead()
		defer func() { p.stop() }()
		write := func(in wire.ApplyRequest) wire.ApplyAnswer {
			t.Helper()
			a, err := p.engine.Apply(t.Context(), p.who[operator], in)
			if err != nil || a.GrantID == "" {
				t.Fatalf("%+v %v", a, err)
			}
			return a
		}
		first := withSecret("first")
		first.Override = false
		p.approves(write(first).GrantID, "human:ann", "human:bo")
		if x, err := p.engine.Rotate(t.Context(), p.who[operator], wire.RotateRequest{Kind: "target", Name: "t1"}); err != nil || x.Turns != 1 {
			t.Fatalf("%+v %v", x, err)
		}
		k.reset("admin", "by hand")
		a := write(withSecret("by hand"))
		g, err := p.engine.Grant(t.Context(), p.who["human:ann"], a.GrantID)
		if err != nil || !bytes.Contains(g.Document, []byte(`"override":true`)) || bytes.Contains(g.Document, []byte(`by hand"`)) {
			t.Fatalf("%s %v", g.Document, err)
		}
		p.approves(a.GrantID, "human:ann")
		if p.knows(k) {
			t.Fatal("one signature sufficed")
		}
		k.reset("admin", "again")
		_, err = p.approve("human:bo", a.GrantID)
		wantCode(t, "what the target no longer takes", err, "secret_refused")
		k.reset("admin", "by hand")
		if _, err := p.collect(operator, a.GrantID); err != nil {
			t.Fatal(err)
		}
		p.within(time.Minute, "it has turned", func() bool { return p.rotation("Target/t1").Turns == 2 && p.knows(k, "by hand") })
		if x := p.rotation("Target/t1"); x.Reason != ledger.RotateOverride {
			t.Errorf("%+v", x)
		}
	})
}

var _ issuers.AdminHolder = (*turning)(nil)
