package broker_test

import (
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// act is something that somebody does at once.
type act struct {
	name string
	do   func(c broker.Caller) error
}

// acts are what ann does to others: what only takes power away, and the rest.
func (p *people) acts() (taking, other []act) {
	e, ctx := p.engine, p.t.Context()
	lease := p.must(p.who["workload:a"], wire.AccessRequest{Role: "t1/ro", Purpose: "p"}).LeaseID
	forced := p.must(p.who["workload:a"], wire.AccessRequest{Role: "t1/ro", Purpose: "p"}).LeaseID
	task, err := e.StartTask(ctx, p.who["workload:a"], wire.StartTaskRequest{Name: "work", Purpose: "p"})
	if err != nil {
		p.t.Fatal(err)
	}
	own, err := e.StartTask(ctx, p.who["human:ann"], wire.StartTaskRequest{Name: "mine", Purpose: "p"})
	if err != nil {
		p.t.Fatal(err)
	}
	taking = []act{
		{"contain", func(c broker.Caller) error {
			_, err := e.Contain(ctx, c, wire.ContainRequest{What: "target/t1", Reason: "odd"})
			return err
		}},
		{"revoke", func(c broker.Caller) error {
			_, err := e.Revoke(ctx, c, lease, wire.RevokeRequest{})
			return err
		}},
		{"end a task", func(c broker.Caller) error { _, err := e.EndTask(ctx, c, task.ID, 0); return err }},
		{"remove a key", func(c broker.Caller) error {
			return e.RemoveKey(ctx, c, "human:kim", p.keys["human:kim"].Thumbprint())
		}},
	}
	other = []act{
		{"revoke without the target's word", func(c broker.Caller) error {
			_, err := e.Revoke(ctx, c, forced, wire.RevokeRequest{Force: true, Reason: "r"})
			return err
		}},
		{"release", func(c broker.Caller) error {
			_, err := e.Release(ctx, c, wire.ContainRequest{What: "target/t1"})
			return err
		}},
		{"enrol", func(c broker.Caller) error { _, err := e.Enrol(ctx, c, "human:kim", wire.EnrolRequest{}); return err }},
		{"administer the cluster", func(c broker.Caller) error { return e.AuthorizeCluster(ctx, c, "join-token") }},
		{"apply", func(c broker.Caller) error {
			_, err := e.Apply(ctx, c, wire.ApplyRequest{Objects: []wire.Object{{Kind: "Zone", Name: "z2", Spec: json.RawMessage(`{}`)}}})
			return err
		}},
		{"delegate", func(c broker.Caller) error {
			_, err := e.StartTask(ctx, c, wire.StartTaskRequest{Name: "theirs", Purpose: "p", Parent: own.ID, For: "agent:c"})
			return err
		}},
		{"look at a target", func(c broker.Caller) error { _, err := e.CheckTarget(ctx, c, "t1"); return err }},
		{"try a target", func(c broker.Caller) error {
			_, err := e.PreviewTarget(ctx, c, wire.TargetPreview{Name: "t9", Spec: json.RawMessage(`{"type":"memory","system":"t1"}`)})
			return err
		}},
		{"audit", func(c broker.Caller) error { _, err := e.AuditEntries(ctx, c, 0, 1); return err }},
		{"read an object", func(c broker.Caller) error { _, err := e.Object(ctx, c, "role", "t1/ro"); return err }},
		{"read keys", func(c broker.Caller) error { _, err := e.Keys(ctx, c, "human:kim"); return err }},
		{"list objects", func(c broker.Caller) error {
			if all, err := e.Objects(ctx, c, "role"); err != nil || len(all) > 0 {
				return err
			}
			return fault.New(fault.Denied, ledger.CodeApprovalRequired, "nothing is shown; all asks for approvals; mayfly policy explain")
		}},
	}
	return taking, other
}

// oblige is people of whom ann may do everything, with approvals or a passkey.
func oblige(t *testing.T, annotation string, test func(p *people, taking, other []act)) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeople(t)
		p.lead()
		defer p.stop()
		p.put("Policy", "ann", mustJSON(ledger.PolicySpec{Text: `@id("all") ` + annotation + ` permit (principal == Human::"ann", action, resource);`}))
		taking, other := p.acts()
		test(p, taking, other)
	})
}

// TestPermitThatAsksForApprovalsIsNoneAtOnce: nobody can co-sign these, so a permit
// that asks for it is none; but a brake is pulled by whoever may pull it.
func TestPermitThatAsksForApprovalsIsNoneAtOnce(t *testing.T) {
	oblige(t, `@approvals("2") @approvers("dba")`, func(p *people, taking, other []act) {
		for _, x := range other {
			if x.name == "list objects" { // leaves out, and denies nothing
				if err := x.do(p.who["human:ann"]); err == nil || fault.As(err).StableCode() != ledger.CodeApprovalRequired {
					p.t.Errorf("%s: %v", x.name, err)
				}
				continue
			}
			err := x.do(p.who["human:ann"])
			wantCode(p.t, x.name, err, ledger.CodeApprovalRequired)
			if err != nil && (!strings.Contains(err.Error(), "policy all asks for 2 approval(s) of group dba") || !strings.Contains(err.Error(), "policy explain dec_")) {
				p.t.Errorf("%s: the refusal does not say who asks for what: %v", x.name, err)
			}
		}
		for _, x := range taking {
			if err := x.do(p.who["human:ann"]); err != nil {
				p.t.Errorf("%s: %v", x.name, err)
			}
		}
	})
}

// explained are the explanations of what somebody did that took effect, by command.
func (p *people) explained(who string) map[string]wire.Decision {
	p.t.Helper()
	page, err := p.engine.AuditEntries(p.t.Context(), opCaller, 0, 1000)
	if err != nil {
		p.t.Fatal(err)
	}
	out := map[string]wire.Decision{}
	for _, x := range page.Entries {
		if x.Actor != who || x.DecisionID == "" || x.Result != ledger.CodeOK {
			continue
		}
		if out[x.Type], err = p.engine.Decision(p.t.Context(), opCaller, x.DecisionID); err != nil {
			p.t.Fatal(err)
		}
	}
	return out
}

// TestExplainSaysWhatWasWaived: a brake that was pulled alone is not explained by
// approvals that nobody gave, and what was refused for them is.
func TestExplainSaysWhatWasWaived(t *testing.T) {
	oblige(t, `@approvals("2") @approvers("dba") @step_up("passkey") @max_ttl("15m") @approval_ttl("1h")`, func(p *people, taking, other []act) {
		for _, x := range taking {
			if err := x.do(p.who["human:ann"]); err != nil {
				p.t.Fatalf("%s: %v", x.name, err)
			}
		}
		if err := other[1].do(p.who["human:ann"]); err == nil {
			p.t.Fatal("it was released")
		}
		said := p.explained("human:ann")
		const why = ", because it only takes power away, and that never waits\n"
		for _, command := range []string{"freeze", "end_leases", "end_task", "remove_key"} {
			d := said[command]
			if d.Waived == "" || strings.Contains(d.Text, "so: ") || !strings.Contains(d.Text, "  waived: 2 approval(s) from group dba (all)"+why) || !strings.Contains(d.Text, "  waived: a fresh passkey"+why) {
				p.t.Errorf("%s: %+v", command, d)
			}
		}
		if d := said["record_decision"]; d.Waived != "" || !strings.Contains(d.Text, "so: needs 2 approval(s) from group dba (all)") || !strings.Contains(d.Text, "was refused: approval_required") {
			p.t.Errorf("a denial: %+v", d)
		}
	})
}

// TestExplainSaysThatAnEmergencyDidNotWait, nor its renewal; how long its credential
// may live applies all the same.
func TestExplainSaysThatAnEmergencyDidNotWait(t *testing.T) {
	gathering(t, func(t *testing.T, p *people) {
		p.put("Role", "t2/glass", glass())
		p.put("Policy", "eve", mustJSON(ledger.PolicySpec{Text: `@id("glass") @approvals("2") @approvers("dba") @max_ttl("8m") permit (principal == Human::"eve", action in [Action::"request", Action::"renew"], resource == Role::"t2/glass");`}))
		a := p.ask("human:eve", wire.AccessRequest{Role: "t2/glass", Purpose: "p", Emergency: true, Reason: "orders are lost", TTL: "4m"})
		if _, err := p.engine.Renew(t.Context(), p.who["human:eve"], a.LeaseID, wire.RenewRequest{TTL: "5m"}); err != nil {
			t.Fatal(err)
		}
		p.ask("human:eve", wire.AccessRequest{Role: "t2/glass", Purpose: "p"}) // waits as any other
		said := p.explained("human:eve")
		for _, command := range []string{"open_lease", "extend_lease"} {
			if d := said[command]; !strings.Contains(d.Text, "  waived: 2 approval(s) from group dba (glass), because it is an emergency, which is reviewed afterwards\n") || !strings.Contains(d.Text, "so: lives at most 8m0s") {
				t.Errorf("%s: %+v", command, d)
			}
		}
		if d := said["request_grant"]; d.Waived != "" || !strings.Contains(d.Text, "so: needs 2 approval(s) from group dba (glass)") { // the last one
			t.Errorf("%+v", d)
		}
	})
}

// TestStepUpAtOnceIsAFreshPasskeySession.
func TestStepUpAtOnceIsAFreshPasskeySession(t *testing.T) {
	oblige(t, `@step_up("passkey")`, func(p *people, taking, other []act) {
		fresh := p.who["human:ann"]
		fresh.Session.Method, fresh.Session.CreatedMS = "passkey", time.Now().UnixMilli()
		stale := fresh
		stale.Session.CreatedMS = time.Now().Add(-6 * time.Minute).UnixMilli()
		for _, x := range other {
			if x.name == "list objects" || x.name == "release" {
				continue // see below
			}
			for _, c := range []broker.Caller{p.who["human:ann"], stale} {
				err := x.do(c)
				wantCode(p.t, x.name+" by "+c.Session.Method, err, ledger.CodeStepUp)
				if err != nil && !strings.Contains(err.Error(), "policy all asks for a fresh passkey") {
					p.t.Errorf("%s: %v", x.name, err)
				}
			}
			if err := x.do(fresh); err != nil {
				p.t.Errorf("%s with a fresh passkey: %v", x.name, err)
			}
			wait(5 * time.Second) // denials are rate-limited
			fresh.Session.CreatedMS = time.Now().UnixMilli()
		}
		for _, x := range taking {
			if err := x.do(p.who["human:ann"]); err != nil {
				p.t.Errorf("%s: %v", x.name, err)
			}
		}
		if err := other[1].do(fresh); err != nil {
			p.t.Errorf("release of what is contained, with a fresh passkey: %v", err)
		}
	})
}

// TestApprovalsOfAPolicyAndDualControl: a change gathers the approvals that the
// genesis record names; a permit that asks for others is none for it.
func TestApprovalsOfAPolicyAndDualControl(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newDual(t)
		p.lead()
		defer p.stop()
		zone := func(name string) (wire.ApplyAnswer, error) {
			return p.engine.Apply(t.Context(), p.who["human:ann"], wire.ApplyRequest{Objects: []wire.Object{{Kind: "Zone", Name: name, Spec: json.RawMessage(`{}`)}}})
		}
		policy := func(text string) {
			t.Helper()
			a, err := p.engine.Apply(t.Context(), p.who[operator], wire.ApplyRequest{Objects: []wire.Object{{Kind: "Policy", Name: "ann", Spec: mustJSON(ledger.PolicySpec{Text: text})}}})
			if err != nil {
				t.Fatal(err)
			}
			p.approves(a.GrantID, "human:bo", "human:kim")
		}
		policy(`@id("all") @approvals("2") @approvers("administrators") permit (principal == Human::"ann", action, resource);`)
		held, err := zone("covered")
		if err != nil || held.GrantID == "" {
			t.Fatalf("%+v %v", held, err)
		}
		if _, err := p.engine.PreviewTarget(t.Context(), p.who["human:ann"], wire.TargetPreview{Name: "t9", Spec: json.RawMessage(`{"type":"memory","system":"t1"}`)}); err != nil {
			t.Errorf("to try what would be approved: %v", err)
		}
		if _, err := p.engine.Apply(t.Context(), p.who["human:ann"], wire.ApplyRequest{Objects: []wire.Object{{Kind: "Principal", Name: "workload:new", Spec: json.RawMessage(`{}`)}}}); err == nil {
			t.Error("a change that nobody approves was made by a permit that asks for approvals")
		}
		p.approves(held.GrantID, "human:bo", "human:kim")
		if s := p.state(held.GrantID); s != ledger.GrantEnded {
			t.Errorf("the change is %s", s)
		}
		policy(`@id("all") @approvals("3") @approvers("administrators") permit (principal == Human::"ann", action, resource);`)
		_, err = zone("more")
		wantCode(t, "three of them", err, ledger.CodeApprovalRequired)
		if err != nil && !strings.Contains(err.Error(), "approved by 2 of administrators and nobody else") {
			t.Error(err)
		}
	})
}

// TestRenewalAsksForWhatTheGrantWasGivenWith.
func TestRenewalAsksForWhatTheGrantWasGivenWith(t *testing.T) {
	gathering(t, func(t *testing.T, p *people) {
		a := p.ask("workload:a", priv)
		p.approves(a.GrantID, "human:bo", "human:kim")
		got, err := p.collect("workload:a", a.GrantID)
		if err != nil {
			t.Fatal(err)
		}
		plain := p.ask("workload:a", wire.AccessRequest{Role: "t1/ro", Purpose: "p"})
		p.put("Policy", "two", mustJSON(ledger.PolicySpec{Text: `@id("two") @approvals("2") @approvers("dba") permit (principal, action == Action::"renew", resource);`}))
		if _, err := p.engine.Renew(t.Context(), p.who["workload:a"], got.LeaseID, wire.RenewRequest{}); err != nil {
			t.Errorf("what two approved is not renewed: %v", err)
		}
		_, err = p.engine.Renew(t.Context(), p.who["workload:a"], plain.LeaseID, wire.RenewRequest{})
		wantCode(t, "what nobody approved", err, ledger.CodeApprovalRequired)
	})
}

// TestPoliciesThatCannotMeanWhatTheySay are refused when they are written.
func TestPoliciesThatCannotMeanWhatTheySay(t *testing.T) {
	r := newRig(t)
	write := func(name, text string) error {
		_, err := r.engine.Apply(t.Context(), opCaller, wire.ApplyRequest{Objects: []wire.Object{{Kind: "Policy", Name: name, Spec: mustJSON(ledger.PolicySpec{Text: text})}}})
		return err
	}
	err := write("brake", `@id("brake") @approvals("2") @approvers("dba") permit (principal, action in [Action::"contain", Action::"revoke"], resource);`)
	r.fails(err, fault.Invalid, "invalid_policy")
	if !strings.Contains(err.Error(), "what only takes power away never waits") {
		t.Error(err)
	}
	if err := write("mixed", `@id("mixed") @approvals("2") @approvers("dba") permit (principal is Agent, action in [Action::"contain", Action::"request"], resource);`); err != nil {
		t.Error(err)
	}
	// Everybody who administers would have to gather what nothing gathers.
	err = write("all", `@id("all") @approvals("1") @approvers("dba") permit (principal, action == Action::"administer", resource);`)
	r.fails(err, fault.Conflict, ledger.CodeLastAdmin)
}
