package broker_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/brokertest"
	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/broker/cosign/cosigntest"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/issuers"
)

// restart puts another engine, of another node, on the same log.
func (p *people) restart(node string) {
	p.t.Helper()
	p.stop()
	p.endLead = nil
	e, err := broker.New(broker.Config{
		Log: p.log, Node: node, Issuer: "https://mayfly.example", Kinds: []issuers.Kind{p.kind},
		Logger: slog.New(slog.NewJSONHandler(p.logged, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		p.t.Fatal(err)
	}
	p.engine = e
	p.lead()
}

// gathering runs a test with people and a leader.
func gathering(t *testing.T, test func(t *testing.T, p *people)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p := newPeople(t)
		p.lead()
		defer func() { p.stop() }()
		test(t, p)
	})
}

func (p *people) approves(id string, who ...string) (g wire.Grant) {
	p.t.Helper()
	for _, w := range who {
		var err error
		if g, err = p.approve(w, id); err != nil {
			p.t.Fatalf("%s approves: %v", w, err)
		}
	}
	return g
}

func (p *people) state(id string) string {
	p.t.Helper()
	var g ledger.Cosigned
	p.log.Query(func(q ledger.Query) { g, _ = q.Cosigned(id) })
	return g.State
}

var priv = wire.AccessRequest{Role: "t2/priv", Purpose: "incident 7"}

// TestLaw4SurvivesRestartAndLeaderChange: one signature before, one after, and the
// collecting after yet another.
func TestLaw4SurvivesRestartAndLeaderChange(t *testing.T) {
	gathering(t, func(t *testing.T, p *people) {
		a := p.ask("workload:a", priv)
		p.approves(a.GrantID, "human:bo")
		p.restart("n2")
		if again := p.ask("workload:a", priv); again.GrantID != a.GrantID {
			t.Errorf("asked again after a restart: %s, not %s", again.GrantID, a.GrantID)
		}
		p.approves(a.GrantID, "human:kim")
		p.restart("n1")
		got, err := p.collect("workload:a", a.GrantID)
		if err != nil || got.Status != "issued" {
			t.Fatalf("%+v, %v", got, err)
		}
	})
}

// TestAskingAgainLeadsToTheSameGrant: with a key or without, for more than is
// allowed, and when it is approved the request itself is answered.
func TestAskingAgainLeadsToTheSameGrant(t *testing.T) {
	gathering(t, func(t *testing.T, p *people) {
		who := withKey(p.who["workload:a"], "k")
		in := wire.AccessRequest{Role: "t2/priv", Purpose: "p", TTL: "59m"}
		p.put("Policy", "brief", mustJSON(ledger.PolicySpec{Text: `@id("brief") @max_ttl("5m") permit (principal, action == Action::"request", resource == Role::"t2/priv");`}))
		a := p.must(who, in)
		if b := p.must(who, in); b.GrantID != a.GrantID || b.Status != "waiting" {
			t.Fatalf("%s, then %s", a.GrantID, b.GrantID)
		}
		if b := p.ask("workload:a", in); b.GrantID != a.GrantID {
			t.Fatalf("%s, then %s without the key", a.GrantID, b.GrantID)
		}
		p.approves(a.GrantID, "human:bo", "human:kim")
		b := p.must(who, in)
		if b.Status != "issued" || b.GrantID != a.GrantID || b.Credential["password"] == "" {
			t.Fatalf("%+v", b)
		}
		c := p.must(who, in) // the answer was lost
		if c.LeaseID != b.LeaseID || c.Credential["password"] == "" || c.Credential["password"] == b.Credential["password"] {
			t.Fatalf("%s, then %s", b.LeaseID, c.LeaseID)
		}
		thief := withKey(p.who["workload:a"], "k")
		thief.Session.ID, thief.Session.Thumbprint = "ses_other", "jkt-thief"
		_, err := p.request(thief, in)
		wantCode(t, "the same key of another session", err, ledger.CodeNotFound)
	})
}

// TestAwaitGrantWakes: a long poll returns at the signature, not at its end.
func TestAwaitGrantWakes(t *testing.T) {
	gathering(t, func(t *testing.T, p *people) {
		a := p.ask("workload:a", priv)
		g, err := p.engine.Grant(t.Context(), p.who["workload:a"], a.GrantID)
		if err != nil {
			t.Fatal(err)
		}
		type answer struct {
			g   wire.Grant
			err error
		}
		got := make(chan answer, 1)
		begin := time.Now()
		go func() {
			g, err := p.engine.AwaitGrant(t.Context(), p.who["workload:a"], a.GrantID, g.Version, time.Minute)
			got <- answer{g, err}
		}()
		synctest.Wait()
		p.approves(a.GrantID, "human:bo")
		if r := <-got; r.err != nil || r.g.Version == g.Version || time.Since(begin) > time.Second {
			t.Errorf("%+v after %s", r, time.Since(begin))
		}
		last, err := p.engine.AwaitGrant(t.Context(), p.who["workload:a"], a.GrantID, p.version(a.GrantID), time.Minute)
		if err != nil || last.State != wire.GrantWaiting || time.Since(begin) < time.Minute {
			t.Errorf("%+v, %v after %s", last, err, time.Since(begin))
		}
	})
}

func (p *people) version(id string) uint64 {
	var g ledger.Cosigned
	p.log.Query(func(q ledger.Query) { g, _ = q.Cosigned(id) })
	return g.Version
}

// TestLaw4StepUp: policy asks the agent's owner for a passkey.
func TestLaw4StepUp(t *testing.T) {
	gathering(t, func(t *testing.T, p *people) {
		p.put("Policy", "step", mustJSON(ledger.PolicySpec{Text: `@id("step") @step_up("passkey") permit (principal is Agent, action == Action::"request", resource == Role::"t1/ro");`}))
		a := p.ask("agent:helper", wire.AccessRequest{Role: "t1/ro", Purpose: "p"})
		if a.Status != "waiting" || a.StepUp != "passkey" || len(a.Needs) != 0 {
			t.Fatalf("%+v", a)
		}
		_, err := p.approve("human:ann", a.GrantID) // her key is an SSH key
		wantCode(t, "another kind", err, ledger.CodeStepUp)
		pass := cosigntest.New(cosign.KindPasskey)
		if res := p.addKey("human:ann", pass, p.keys["human:ann"]); !res.OK() {
			t.Fatal(res.Detail)
		}
		p.keys["human:ann"] = pass
		if g := p.approves(a.GrantID, "human:ann"); g.State != wire.GrantApproved {
			t.Fatalf("%+v", g)
		}
		if got, err := p.collect("agent:helper", a.GrantID); err != nil || got.Status != "issued" {
			t.Fatalf("%+v, %v", got, err)
		}
	})
}

// TestDenyCancelRevoke: who may end a grant, and what follows.
func TestDenyCancelRevoke(t *testing.T) {
	gathering(t, func(t *testing.T, p *people) {
		end := func(do func() (wire.Grant, error)) error { _, err := do(); return err }
		a := p.ask("agent:helper", priv)
		err := end(func() (wire.Grant, error) {
			return p.engine.DenyGrant(t.Context(), p.who["human:ann"], a.GrantID, wire.EndGrantRequest{})
		})
		wantCode(t, "the owner denies", err, ledger.CodeNotEligible)
		err = end(func() (wire.Grant, error) {
			return p.engine.CancelGrant(t.Context(), p.who["human:bo"], a.GrantID, wire.EndGrantRequest{})
		})
		wantCode(t, "an approver cancels", err, ledger.CodeNotFound)
		g, err := p.engine.CancelGrant(t.Context(), p.who["human:ann"], a.GrantID, wire.EndGrantRequest{Reason: "my mistake"})
		if err != nil || g.State != wire.GrantCancelled {
			t.Fatalf("%+v, %v", g, err)
		}
		b := p.ask("agent:helper", priv)
		if b.GrantID == a.GrantID {
			t.Fatal("a cancelled grant is found again")
		}
		p.approves(b.GrantID, "human:bo")
		if g, err = p.engine.DenyGrant(t.Context(), p.who["human:kim"], b.GrantID, wire.EndGrantRequest{Reason: "no"}); err != nil || g.State != wire.GrantDenied {
			t.Fatalf("%+v, %v", g, err)
		}
		_, err = p.approve("human:kim", b.GrantID)
		wantCode(t, "after the denial", err, ledger.CodeGrantOver)
		_, err = p.collect("agent:helper", b.GrantID)
		wantCode(t, "collecting it", err, ledger.CodeGrantOver)
		_, err = p.request(p.who["agent:helper"], priv)
		wantCode(t, "asking at once", err, ledger.CodeCooling)
		wait(5*time.Minute + time.Second)
		c := p.ask("agent:helper", priv)
		p.approves(c.GrantID, "human:bo", "human:kim")
		got, err := p.collect("agent:helper", c.GrantID)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.engine.RevokeGrant(t.Context(), p.who["human:bo"], c.GrantID, wire.EndGrantRequest{Reason: "regret"}); err != nil {
			t.Fatal(err)
		}
		p.within(time.Minute, "the lease is withdrawn", func() bool { return p.lease(got.LeaseID).State == ledger.LeaseEnded })
		d := p.ask("agent:helper", priv)
		wait(25 * time.Hour)
		if s := p.state(d.GrantID); s != ledger.GrantExpired {
			t.Errorf("after a day it is %s", s)
		}
	})
}

// TestHazard17PoisonGrantDelaysNoLease: a grant that will not expire is no reason
// for leases to live on.
func TestHazard17PoisonGrantDelaysNoLease(t *testing.T) {
	gathering(t, func(t *testing.T, p *people) {
		a := p.ask("workload:a", priv)
		p.before(func(d ledger.Decoded) error {
			if d.Type == "end_grant" { // somebody was faster, each time
				p.before(nil)
				p.propose(&ledger.EndGrant{GrantID: a.GrantID, State: ledger.GrantDenied}, ledger.Actor{Principal: "human:bo"})
			}
			return nil
		})
		wait(24*time.Hour - 10*time.Second)
		got := p.must(appCaller, wire.AccessRequest{Role: "t1/ro", Purpose: "p", TTL: "10s"})
		wait(10 * time.Second)
		p.within(time.Minute, "the lease ends", func() bool { return p.lease(got.LeaseID).State == ledger.LeaseEnded })
		if s := p.state(a.GrantID); s != ledger.GrantDenied {
			t.Errorf("the grant is %s", s)
		}
	})
}

// TestSeveralObligations: every group's quorum, the shortest times; and what is
// asked for once more than was approved voids.
func TestSeveralObligations(t *testing.T) {
	gathering(t, func(t *testing.T, p *people) {
		text := `
@id("a") @approvals("1") @approvers("dba") @max_ttl("30m") @approval_ttl("2h") permit (principal, action == Action::"request", resource == Role::"t2/priv");
@id("b") @approvals("1") @approvers("security") @max_ttl("10m") @approval_ttl("1h") permit (principal, action == Action::"request", resource == Role::"t2/priv");`
		p.put("Policy", "more", mustJSON(ledger.PolicySpec{Text: text}))
		begin := time.Now()
		a := p.ask("workload:a", priv)
		if len(a.Needs) != 2 || a.Needs[0].Group != "dba" || a.Needs[0].Required != 2 || a.Needs[0].By != "role" || a.Needs[1].Group != "security" || a.Needs[1].By != "policy:b" {
			t.Fatalf("%+v", a.Needs)
		}
		if a.CollectBefore.After(begin.Add(time.Hour)) {
			t.Errorf("it waits until %s", a.CollectBefore)
		}
		p.approves(a.GrantID, "human:bo", "human:kim")
		if s := p.state(a.GrantID); s != ledger.GrantWaiting {
			t.Errorf("bo fills two places: %s", s)
		}
		p.approves(a.GrantID, "human:eve")
		got, err := p.collect("workload:a", a.GrantID)
		if err != nil {
			t.Fatal(err)
		}
		if l := p.lease(got.LeaseID); l.NotAfterMS > time.Now().Add(10*time.Minute).UnixMilli() {
			t.Errorf("it lives until %d", l.NotAfterMS)
		}
		p.login("workload:b")
		b := p.ask("workload:b", priv)
		p.approves(b.GrantID, "human:bo", "human:kim", "human:eve")
		p.put("Policy", "unrelated", mustJSON(ledger.PolicySpec{Text: `@id("u") permit (principal == Human::"x", action == Action::"request", resource);`}))
		p.put("Policy", "late", mustJSON(ledger.PolicySpec{Text: `@id("l") @approvals("2") @approvers("security") permit (principal, action == Action::"request", resource == Role::"t2/priv");`}))
		_, err = p.collect("workload:b", b.GrantID)
		wantCode(t, "more is asked now", err, ledger.CodeGrantVoid)
	})
}

func glass() json.RawMessage {
	return json.RawMessage(`{"scope":` + simScopeBoth + `,"ttl":{"default":"20m","max":"1h"},"approvals":[{"group":"dba","count":2}],"emergency":{"max_ttl":"10m","review":[{"group":"security","count":1},{"group":"dba","count":1}]}}`)
}

// TestHazard7EmergencyFromEndToEnd.
func TestHazard7EmergencyFromEndToEnd(t *testing.T) {
	gathering(t, func(t *testing.T, p *people) {
		p.put("Role", "t2/glass", glass())
		in := wire.AccessRequest{Role: "t2/glass", Purpose: "p", Emergency: true, Reason: "orders are lost", TTL: "1h"}
		_, err := p.request(p.who["agent:helper"], in)
		wantCode(t, "an agent", err, ledger.CodeEmergency)
		_, err = p.request(p.who["human:eve"], wire.AccessRequest{Role: "t2/glass", Purpose: "p", Emergency: true})
		wantCode(t, "without a reason", err, "reason_missing")
		_, err = p.request(p.who["human:eve"], wire.AccessRequest{Role: "t2/priv", Purpose: "p", Emergency: true, Reason: "r"})
		wantCode(t, "a role that has none", err, ledger.CodeEmergency)
		eve := withKey(p.who["human:eve"], "k")
		got := p.must(eve, in)
		if got.Status != "issued" || got.Credential["password"] == "" || p.lease(got.LeaseID).NotAfterMS > time.Now().Add(10*time.Minute).UnixMilli() {
			t.Fatalf("%+v", got)
		}
		if again := p.must(eve, in); again.LeaseID != got.LeaseID || again.Credential["password"] == got.Credential["password"] { // the answer was lost
			t.Errorf("%s, then %s", got.LeaseID, again.LeaseID)
		}
		_, err = p.request(p.who["human:eve"], in)
		wantCode(t, "a second one", err, ledger.CodeEmergency)
		_, err = p.review("human:eve", got.GrantID)
		wantCode(t, "her own review", err, ledger.CodeSelfApproval)
		wait(25 * time.Hour)
		late, err := p.engine.Grants(t.Context(), callerOf(operator, ""), broker.GrantFilter{Overdue: true})
		if err != nil || len(late) != 1 || late[0].ID != got.GrantID {
			t.Errorf("overdue: %+v, %v", late, err)
		}
		p.who["human:bo"] = callerOf("human:bo", "")
		if g, err := p.review("human:bo", got.GrantID); err != nil || g.Review.Done {
			t.Errorf("one word is enough: %+v, %v", g, err)
		}
		p.who["human:kim"] = callerOf("human:kim", "")
		if g, err := p.review("human:kim", got.GrantID); err != nil || !g.Review.Done {
			t.Errorf("%+v, %v", g, err)
		}
	})
}

func (p *people) review(who, id string) (wire.Grant, error) {
	p.t.Helper()
	var g ledger.Cosigned
	p.log.Query(func(q ledger.Query) { g, _ = q.Cosigned(id) })
	text, err := cosign.Canonical(cosign.ReviewDocument{Type: cosign.DomainReview, Cluster: "c", GrantID: id, Grant: g.Hash, Verdict: ledger.Justified})
	if err != nil {
		p.t.Fatal(err)
	}
	s := p.keys[who].Sign(cosign.DomainReview, cosign.Sum(cosign.DomainReview, text))
	in := wire.ReviewRequest{Verdict: ledger.Justified, Signature: wire.Signature{Kind: s.Kind, Key: s.Key, AuthenticatorData: s.AuthenticatorData, ClientDataJSON: s.ClientDataJSON, Assertion: s.Assertion, SSHSIG: s.SSHSIG, JWS: s.JWS}}
	return p.engine.ReviewGrant(p.t.Context(), p.who[who], id, in)
}

// newDual is people under dual control: any two of the administrators ann, bo and kim.
func newDual(t *testing.T) *people {
	r := &rig{t: t, log: &brokertest.Log{}, t1: brokertest.NewSystem("t1"), t2: brokertest.NewSystem("t2"), logged: &bytes.Buffer{}}
	r.kind = &brokertest.Kind{Systems: map[string]*brokertest.System{"t1": r.t1, "t2": r.t2}}
	p := &people{rig: r, who: map[string]broker.Caller{}, keys: map[string]*cosigntest.Person{}}
	var err error
	if p.engine, err = broker.New(broker.Config{Log: p.log, Node: "n1", Issuer: "https://mayfly.example", Kinds: []issuers.Kind{p.kind}}); err != nil {
		t.Fatal(err)
	}
	obj := func(kind, name, spec string) ledger.ObjectChange {
		return ledger.ObjectChange{Kind: kind, Name: name, Spec: json.RawMessage(spec)}
	}
	g := ledger.Genesis{Cluster: "c", Incarnation: 1, Approvals: []ledger.Approval{{Group: "administrators", Count: 2}}}
	names := []string{"human:ann", "human:bo", "human:kim"}
	g.Objects = append(simObjects(), obj("Group", "administrators", `{"members":[{"name":"human:ann"},{"name":"human:bo"},{"name":"human:kim"}]}`))
	for _, name := range names {
		g.Objects = append(g.Objects, obj("Principal", name, `{}`))
		g.Founders = append(g.Founders, ledger.Founder{Principal: name, JWK: cosigntest.Seeded(cosign.KindJWS, name).Key().JWK})
	}
	if err := p.engine.Begin(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	for _, name := range append(names, operator, "workload:a") {
		p.login(name)
	}
	for _, name := range names {
		p.keys[name] = cosigntest.New(cosign.KindSSH)
		if res := p.addKey(name, p.keys[name], cosigntest.Seeded(cosign.KindJWS, name)); !res.OK() {
			t.Fatal(res.Detail)
		}
	}
	return p
}

// TestHazard1ApplyUnderDualControl: it waits, is approved, and the last approval
// makes it; secrets arrive; what policy no longer permits is not made.
func TestHazard1ApplyUnderDualControl(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newDual(t)
		p.lead()
		defer p.stop()
		apply := func(objects ...wire.Object) wire.ApplyAnswer {
			t.Helper()
			out, err := p.engine.Apply(t.Context(), p.who[operator], wire.ApplyRequest{Objects: objects, Reason: "a && b"})
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
		if a := apply(wire.Object{Kind: "Principal", Name: "workload:new"}); a.GrantID != "" {
			t.Errorf("a workload without any power waits: %+v", a)
		}
		floor := wire.Object{Kind: "Role", Name: "t2/priv", Spec: simRole(simScopeBoth, "20s", "40s", `{}`, `[{"group":"administrators","count":2}]`)}
		a := apply(floor)
		if a.GrantID == "" || a.Hash == "" || len(a.Needs) != 1 || a.Needs[0].Required != 2 {
			t.Fatalf("%+v", a)
		}
		p.approves(a.GrantID, "human:ann")
		if s := p.state(a.GrantID); s != ledger.GrantWaiting {
			t.Fatalf("%s after one", s)
		}
		p.approves(a.GrantID, "human:bo")
		if s := p.state(a.GrantID); s != ledger.GrantEnded {
			t.Fatalf("%s after two", s)
		}
		var role ledger.RoleSpec
		p.log.Query(func(q ledger.Query) { q.Spec("Role", "t2/priv", &role) })
		if len(role.Approvals) != 1 || role.Approvals[0].Group != "administrators" {
			t.Errorf("%+v", role)
		}
		_, err := p.approve("human:kim", a.GrantID)
		wantCode(t, "a third", err, ledger.CodeGrantOver)

		const word = "hunter two"
		b := apply(wire.Object{Kind: "Target", Name: "t3", Spec: json.RawMessage(`{"type":"memory","system":"t1"}`), Secrets: map[string]string{"password": word}})
		g, err := p.engine.Grant(t.Context(), p.who["human:ann"], b.GrantID)
		if err != nil || bytes.Contains(g.Document, []byte(word)) {
			t.Fatalf("%+v, %v", g, err)
		}
		p.approves(b.GrantID, "human:ann", "human:kim")
		p.log.Query(func(q ledger.Query) {
			if got := string(q.Secret("Target", "t3", "password")); got != word {
				t.Errorf("the secret is %q", got)
			}
		})

		// The operator loses the right while a change waits.
		c := apply(wire.Object{Kind: "Role", Name: "t1/ro", Spec: simRole(simScopeRead, "1m", "2m", `{}`, "")})
		d := apply(wire.Object{Kind: "Policy", Name: "sim2", Spec: mustJSON(ledger.PolicySpec{Text: `
@id("ann") permit (principal == Human::"ann", action, resource);
@id("not") forbid (principal == Human::"op", action == Action::"administer", resource);`})})
		p.approves(d.GrantID, "human:bo", "human:kim")
		p.approves(c.GrantID, "human:bo")
		_, err = p.approve("human:kim", c.GrantID)
		wantCode(t, "what policy permits no more", err, ledger.CodeGrantVoid)
		_, err = p.engine.Apply(t.Context(), p.who["human:ann"], wire.ApplyRequest{Delete: []wire.Ref{{Kind: "Group", Name: "administrators"}}})
		wantCode(t, "the administrators' group deleted", err, ledger.CodeLastAdmin)
	})
}

// TestMintsAtOnceOnOneGrant: many collect the same approved grant at the same time;
// one credential comes of it.
func TestMintsAtOnceOnOneGrant(t *testing.T) {
	gathering(t, func(t *testing.T, p *people) {
		a := p.ask("workload:a", priv)
		p.approves(a.GrantID, "human:bo", "human:kim")
		got := make(chan error, 8)
		for range cap(got) {
			go func() {
				_, err := p.collect("workload:a", a.GrantID)
				got <- err
			}()
		}
		won := 0
		for range cap(got) {
			if err := <-got; err == nil {
				won++
			} else if fe := fault.As(err); fe.StableCode() != ledger.CodeGrantOver {
				t.Error(fmt.Sprint(err))
			}
		}
		if n := len(p.t2.Accounts()); won != 1 || n != 1 {
			t.Errorf("%d won, %d accounts", won, n)
		}
	})
}

// TestFailedMintCostsNoApproval: the target is down when the credential is
// collected; when it is up again the same approval serves, once.
func TestFailedMintCostsNoApproval(t *testing.T) {
	for name, broken := range map[string]error{
		"not sent":          &issuers.Error{Kind: issuers.Unreachable, Detail: "down"},
		"of unknown effect": &issuers.Error{Kind: issuers.Unknown, Detail: "the connection broke"},
	} {
		t.Run(name, func(t *testing.T) {
			gathering(t, func(t *testing.T, p *people) {
				a := p.ask("workload:a", priv)
				p.approves(a.GrantID, "human:bo", "human:kim")
				p.wire(fail("t2", "mint", broken))
				if _, err := p.collect("workload:a", a.GrantID); err == nil {
					t.Fatal("the mint was to fail")
				}
				if s := p.state(a.GrantID); s != ledger.GrantApproved {
					t.Fatalf("the grant is %s", s)
				}
				p.wire(nil)
				got, err := p.collect("workload:a", a.GrantID)
				if err != nil || got.Credential["password"] == "" {
					t.Fatalf("%+v %v", got, err)
				}
				_, err = p.collect("workload:a", a.GrantID)
				wantCode(t, "a second credential", err, ledger.CodeGrantOver)
				wait(gone)
				if n := len(p.t2.Accounts()); n != 1 {
					t.Errorf("%d accounts", n)
				}
			})
		})
	}
}

// TestRepeatThatFailsGivesNoGrantBack: its first answer held the secret, whoever
// has it; were the grant given back, two people's word would serve for ever.
func TestRepeatThatFailsGivesNoGrantBack(t *testing.T) {
	gathering(t, func(t *testing.T, p *people) {
		a := p.ask("workload:a", priv)
		p.approves(a.GrantID, "human:bo", "human:kim")
		who := p.who["workload:a"]
		who.Idem = &ledger.Idem{Key: "k", Hash: "h"}
		got, err := p.engine.CollectGrant(t.Context(), who, a.GrantID, wire.CollectRequest{})
		if err != nil {
			t.Fatal(err)
		}
		p.wire(fail("t2", "mint", &issuers.Error{Kind: issuers.Unreachable, Detail: "down"}))
		if _, err := p.engine.CollectGrant(t.Context(), who, a.GrantID, wire.CollectRequest{}); err == nil {
			t.Fatal("the repeat was to fail")
		}
		p.wire(nil)
		if l := p.lease(got.LeaseID); l.State == ledger.LeaseOpen || l.Generation != 2 {
			t.Fatalf("%+v", l)
		}
		if again, err := p.collect("workload:a", a.GrantID); err == nil {
			t.Errorf("a second lease: %+v", again)
		}
		if g, err := p.engine.Grant(t.Context(), p.who["workload:a"], a.GrantID); err != nil || g.State == wire.GrantApproved {
			t.Errorf("the grant is %s (%v)", g.State, err)
		}
		wait(gone)
		if n := len(p.t2.Accounts()); n != 0 {
			t.Errorf("%d accounts", n)
		}
	})
}
