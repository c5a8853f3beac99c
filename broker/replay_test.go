package broker_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/brokertest"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/policy"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/issuers"
)

// draft is a policy as `policy replay -f` sends it.
func draft(name, text string) wire.Object {
	return wire.Object{Kind: "Policy", Name: name, Spec: mustJSON(ledger.PolicySpec{Text: text})}
}

// replay asks as the operator, and checks that nothing was committed.
func (r *rig) replay(in wire.PolicyReplayRequest) wire.PolicyReplayAnswer {
	r.t.Helper()
	before := r.byCallers()
	a, err := r.engine.ReplayPolicies(r.t.Context(), callerOf(operator, ""), in)
	if err != nil {
		r.t.Fatal(err)
	}
	if after := r.byCallers(); after != before {
		r.t.Fatalf("a replay committed %d commands", after-before)
	}
	if a.Same+a.Differences() != a.Decisions {
		r.t.Fatalf("the counts do not add up: %+v", a)
	}
	return a
}

// byCallers counts what was committed for somebody; the leader's own work goes on.
func (r *rig) byCallers() (n int) {
	r.log.Query(func(q ledger.Query) {
		for seq := range q.Size() {
			x, _ := q.Entry(seq)
			if d, err := ledger.DecodePublic(x.Public); err != nil || d.Header.Actor.Principal != "" {
				n++
			}
		}
	})
	return n
}

// lines is a replay's groups, one a line, for comparison.
func lines(a wire.PolicyReplayAnswer) string {
	var b strings.Builder
	for _, g := range a.Groups {
		fmt.Fprintf(&b, "%s %d %s %s %s | %s | %s\n", g.Change, g.Count, g.Principal, g.Action, g.Resource, g.Before, g.After)
	}
	return b.String()
}

func wantLines(t *testing.T, a wire.PolicyReplayAnswer, want string) {
	t.Helper()
	if got := lines(a); got != strings.TrimPrefix(want, "\n") {
		t.Errorf("got\n%swant%s", got, want)
	}
}

func TestReplaySaysWhatADraftChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.lead()
		defer r.stop()
		began := time.Now()
		r.must(appCaller, wire.AccessRequest{Role: "t1/ro"})
		wait(time.Minute)
		newest := r.must(appCaller, wire.AccessRequest{Role: "t1/ro"})
		r.must(appCaller, wire.AccessRequest{Role: "t2/ro"})
		r.must(agentCaller, wire.AccessRequest{Role: "t1/ro"})
		_, err := r.request(agentCaller, wire.AccessRequest{Role: "t1/rw"})
		r.fails(err, fault.Denied, policy.CodeForbidden)
		// Permitted by policy, refused for its scope: it comes to nothing either way.
		_, err = r.request(appCaller, wire.AccessRequest{Role: "t1/ro", Scope: json.RawMessage(simScopeBoth)})
		r.fails(err, fault.Denied, "scope_exceeds_role")

		a := r.replay(wire.PolicyReplayRequest{})
		if a.Decisions != 5 || a.Same != 5 || a.Moot != 1 || a.Next != 0 || a.From != 0 || len(a.Groups) != 0 || a.First == nil || a.Last == nil {
			t.Errorf("the live policies change %+v", a)
		}
		in := wire.PolicyReplayRequest{Policies: []wire.Object{draft("sim", `
@id("everybody") permit (principal, action in [Action::"request", Action::"renew", Action::"delegate"], resource);
@id("short") @max_ttl("30s") @approvals("2") @approvers("dba") permit (principal, action == Action::"request", resource == Role::"t2/ro");
@id("no-apps") forbid (principal is Workload, action == Action::"request", resource == Role::"t1/ro");
@id("operator") permit (principal == Human::"op", action, resource);
`)}}
		a = r.replay(in)
		wantLines(t, a, `
permit_to_deny 2 workload:a request Role/t1/ro | permitted by everybody | forbidden by no-apps
deny_to_permit 1 agent:c request Role/t1/rw | forbidden by no-agents | permitted by everybody
obligations 1 workload:a request Role/t2/ro | permitted by everybody, short, for at most 1m0s | permitted by everybody, short, for at most 30s, with 2 of dba
`)
		g := a.Groups[0]
		if a.PermitToDeny != 2 || a.DenyToPermit != 1 || a.Obligations != 1 || g.DecisionID != newest.DecisionID || g.Already != 0 || g.Last.Sub(g.First) != time.Minute {
			t.Errorf("%+v", a)
		}

		// Once it is live, the differences are there already: not the draft's doing.
		r.put("Policy", "sim", in.Policies[0].Spec)
		a = r.replay(wire.PolicyReplayRequest{})
		if a.PermitToDeny != 2 || a.Groups[0].Already != 2 {
			t.Errorf("against today's policies: %+v", a)
		}
		since := began.Add(30 * time.Second)
		if a := r.replay(wire.PolicyReplayRequest{Since: &since}); a.PermitToDeny != 1 || a.First.Before(since) {
			t.Errorf("since half a minute later: %+v", a)
		}
		if a := r.replay(wire.PolicyReplayRequest{Until: &since}); a.Decisions != 1 || a.PermitToDeny != 1 {
			t.Errorf("until then: %+v", a)
		}
		if a := r.replay(wire.PolicyReplayRequest{Last: 1}); a.Entries != 1 || a.From+1 != a.To {
			t.Errorf("the last: %+v", a)
		}
	})
}

// Pages of any size come to the same, and each ends where the next begins.
func TestReplayGoesOnWhereItStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.lead()
		defer r.stop()
		for range 6 {
			r.must(appCaller, wire.AccessRequest{Role: "t1/ro"})
		}
		forbid := []wire.Object{draft("no", `@id("no") forbid (principal is Workload, action, resource);`)}
		whole := r.replay(wire.PolicyReplayRequest{Policies: forbid})
		if whole.PermitToDeny != 6 {
			t.Fatalf("%+v", whole)
		}
		for _, size := range []int{1, 2, 5} {
			in := wire.PolicyReplayRequest{Policies: forbid, Limit: size}
			entries, denied, pages := 0, 0, 0
			for {
				a := r.replay(in)
				entries, denied, pages = entries+a.Entries, denied+a.PermitToDeny, pages+1
				r.must(agentCaller, wire.AccessRequest{Role: "t2/ro", TTL: "1s"}) // what comes later does not count
				wait(2 * time.Second)
				if a.Next == 0 {
					break
				}
				in.From, in.To = a.Next, a.To
			}
			if denied != 6 || pages < 6/size || entries < whole.Entries {
				t.Errorf("pages of %d: %d of 6, %d entries, %d pages", size, denied, entries, pages)
			}
		}
	})
}

func TestReplayStopsWhenItsTimeIsUp(t *testing.T) {
	r := newRig(t)
	fill(r, 1000)
	clock := time.Now()
	slow, err := broker.New(broker.Config{Log: r.log, Node: "n2", Issuer: "https://mayfly.example", Kinds: []issuers.Kind{r.kind},
		Clock: func() time.Time { clock = clock.Add(4 * time.Second); return clock }})
	if err != nil {
		t.Fatal(err)
	}
	a, err := slow.ReplayPolicies(t.Context(), callerOf(operator, ""), wire.PolicyReplayRequest{})
	if err != nil || a.Next == 0 || a.Entries == 0 || a.Entries >= 1000 || a.Next != a.From+uint64(a.Entries) {
		t.Errorf("%+v, %v", a, err)
	}
}

// meddled is a log that does something after each look at the state.
type meddled struct {
	*brokertest.Log
	after func()
}

func (m *meddled) View(fn func(ledger.Reader) error) error {
	err := m.Log.View(fn)
	if after := m.after; after != nil {
		m.after = nil
		after()
		m.after = after
	}
	return err
}

func TestOneReplayAtATime(t *testing.T) {
	r := newRig(t)
	log := &meddled{Log: r.log}
	e, err := broker.New(broker.Config{Log: log, Node: "n2", Issuer: "https://mayfly.example", Kinds: []issuers.Kind{r.kind}})
	if err != nil {
		t.Fatal(err)
	}
	passed, refused := 0, 0
	log.after = func() {
		_, err := e.ReplayPolicies(t.Context(), callerOf(operator, ""), wire.PolicyReplayRequest{})
		if err == nil {
			passed++
			return
		}
		if fe := fault.As(err); fe.Kind != fault.Unavailable || fe.StableCode() != "busy" || fe.RetryAfter <= 0 {
			t.Error(err)
		}
		refused++
	}
	if _, err := e.ReplayPolicies(t.Context(), callerOf(operator, ""), wire.PolicyReplayRequest{}); err != nil || passed == 0 || refused == 0 {
		t.Errorf("%v; %d passed, %d refused", err, passed, refused)
	}
}

// An approval needs no permit where the approver's group is asked; a forbid
// would have stopped it all the same. Grants of a role fall together.
func TestReplayOfApprovals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeople(t)
		p.lead()
		defer p.stop()
		for i := range 2 {
			a := p.ask("workload:a", wire.AccessRequest{Role: "t2/priv", Purpose: fmt.Sprint("incident ", i)})
			if _, err := p.approve("human:bo", a.GrantID); err != nil {
				t.Fatal(err)
			}
		}
		if a := p.replay(wire.PolicyReplayRequest{}); a.Differences() != 0 {
			t.Errorf("the live policies change\n%s", lines(a))
		}
		permit := draft("more", `@id("more") permit (principal, action == Action::"approve", resource);`)
		if a := p.replay(wire.PolicyReplayRequest{Policies: []wire.Object{permit}}); a.Differences() != 0 {
			t.Errorf("a permit that nobody needs changes\n%s", lines(a))
		}
		forbid := draft("no", `@id("no") forbid (principal == Human::"bo", action == Action::"approve", resource);`)
		wantLines(t, p.replay(wire.PolicyReplayRequest{Policies: []wire.Object{forbid}}), `
permit_to_deny 2 human:bo approve Grant of Role/t2/priv | no policy forbids it to who is asked | forbidden by no
`)
	})
}

func TestReplayLooksAtEachOfSeveralDecisions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		if _, err := r.engine.Apply(t.Context(), callerOf(operator, ""), wire.ApplyRequest{Objects: []wire.Object{
			{Kind: "Zone", Name: "z2", Spec: json.RawMessage(`{}`)}, {Kind: "Zone", Name: "z3", Spec: json.RawMessage(`{}`)}, draft("note", `@id("note") permit (principal, action == Action::"read", resource is Zone);`),
		}}); err != nil {
			t.Fatal(err)
		}
		a := r.replay(wire.PolicyReplayRequest{Policies: []wire.Object{draft("zones", `@id("zones") forbid (principal, action == Action::"administer", resource is Zone);`)}, Delete: []string{"note"}})
		wantLines(t, a, `
permit_to_deny 1 human:op administer Zone/z2 | permitted by operator | forbidden by zones
permit_to_deny 1 human:op administer Zone/z3 | permitted by operator | forbidden by zones
`)
		if a.Decisions != 3 {
			t.Errorf("%+v", a)
		}
	})
}

func TestReplayRefusesWhatIsNoDraft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		for name, c := range map[string]struct {
			in   wire.PolicyReplayRequest
			code string
			says string
		}{
			"does not compile": {wire.PolicyReplayRequest{Policies: []wire.Object{draft("bad", "permit (principal, action, resource);\n@id(\"x\") permit (principal, action == Action::\"fly\", resource);")}}, "invalid_policy", "bad:2"},
			"an id twice":      {wire.PolicyReplayRequest{Policies: []wire.Object{draft("copy", `@id("short") permit (principal, action, resource);`)}}, "invalid_policy", "@id is taken"},
			"another kind":     {wire.PolicyReplayRequest{Policies: []wire.Object{{Kind: "Zone", Name: "z", Spec: json.RawMessage(`{}`)}}}, "invalid_spec", "Zone z"},
			"no spec":          {wire.PolicyReplayRequest{Policies: []wire.Object{{Kind: "Policy", Name: "z", Spec: json.RawMessage(`7`)}}}, "invalid_spec", "Policy z"},
			"delete nothing":   {wire.PolicyReplayRequest{Delete: []string{"nothing"}}, "policy_not_found", "nothing"},
			"both":             {wire.PolicyReplayRequest{Policies: []wire.Object{draft("sim", "")}, Delete: []string{"sim"}}, "object_twice", "sim"},
			"too much":         {wire.PolicyReplayRequest{Limit: 1_000_000}, "invalid_limit", "50000"},
		} {
			_, err := r.engine.ReplayPolicies(t.Context(), callerOf(operator, ""), c.in)
			wantCode(t, name, err, c.code)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v does not say %q", name, err, c.says)
			}
		}
	})
}

// A replay tells of everybody's requests: who may read the policies alone, or
// the cluster alone, gets nothing.
func TestReplayIsForWhoReadsPoliciesAndTheCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.put("Policy", "readers", mustJSON(ledger.PolicySpec{Text: `
@id("a-policies") permit (principal == Workload::"a", action == Action::"read", resource is Policy);
@id("b-cluster") permit (principal == Workload::"b", action == Action::"read", resource is Cluster);
@id("c-both") permit (principal == Agent::"c", action == Action::"read", resource);
`}))
		for name, want := range map[string]string{"workload:a": "denied", "workload:b": "denied", "agent:c": ""} {
			_, err := r.engine.ReplayPolicies(t.Context(), callerOf(name, ""), wire.PolicyReplayRequest{})
			if want != "" {
				wantCode(t, name, err, want)
			} else if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// fill records n denials with the engine's own form of a decision.
func fill(r *rig, n int) {
	set, err := policy.Compile([]policy.Source{{Name: "sim", Text: simPolicy}})
	if err != nil {
		r.t.Fatal(err)
	}
	for i := range n {
		req := policy.Request{
			Principal: policy.Principal{Kind: "agent", Name: "c", Owner: operator, Groups: []string{"team", "other"}},
			Action:    policy.ActionRequest,
			Resource:  policy.Resource{Kind: "Role", Name: "t1/rw", Target: "t1", Zone: "z1", Type: "memory", Labels: map[string]string{"classification": "pii"}},
			Context: policy.Context{Now: time.Now(), Purpose: "a purpose", TTLSeconds: 900, Scope: policy.Scope{Types: []string{"memory"}, Actions: []string{"read", "write"}},
				Session: policy.Session{Bound: true, Binding: "dpop", Method: "key", AgeSeconds: 60}},
		}
		if i%100 == 0 {
			req.Principal.Name = fmt.Sprint("c", i)
		}
		id, err := ledger.NewID(ledger.PrefixDecision, time.Now(), strings.NewReader(fmt.Sprintf("%010d", i)))
		if err != nil {
			r.t.Fatal(err)
		}
		h := ledger.Header{AtMS: time.Now().UnixMilli(), Actor: ledger.Actor{Principal: "agent:c"}, DecisionID: id,
			Decision: mustJSON(map[string]any{"decision": set.Decide(req), "request": req})}
		raw, err := ledger.Encode(h, &ledger.RecordDecision{Action: "request", Resource: "Role/t1/rw", Code: policy.CodeForbidden})
		if err != nil {
			r.t.Fatal(err)
		}
		if res, err := r.log.Propose(r.t.Context(), raw, false); err != nil || !res.OK() {
			r.t.Fatal(res, err)
		}
	}
}

// What ten thousand decisions cost to make again.
func BenchmarkReplay(b *testing.B) {
	r := newRig(b)
	fill(r, 10_000)
	free := strings.Replace(simPolicy, `@id("no-agents") forbid (principal is Agent,`, `@id("no-agents") forbid (principal == Agent::"x",`, 1)
	for name, in := range map[string]wire.PolicyReplayRequest{"same": {}, "all-differ": {Policies: []wire.Object{draft("sim", free)}}} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				a, err := r.engine.ReplayPolicies(b.Context(), callerOf(operator, ""), in)
				if err != nil || a.Decisions < 9_990 || name == "same" && a.Differences() != 0 || name != "same" && a.DenyToPermit != a.Decisions {
					b.Fatalf("%+v", a)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/10_000, "µs/decision")
		})
	}
}

func TestObligationsAreComparedWithoutWhoAsks(t *testing.T) {
	q := func(count int, by string) policy.Obligations {
		return policy.Obligations{Approvals: []policy.Quorum{{Group: "dba", Count: count, Policy: by}}}
	}
	if !q(1, "a").Same(q(1, "b")) || q(1, "a").Same(q(2, "a")) || q(1, "a").Same(policy.Obligations{}) || (policy.Obligations{StepUp: "passkey"}).Same(policy.Obligations{}) ||
		(policy.Obligations{MaxTTL: time.Second}).Same(policy.Obligations{}) || (policy.Obligations{ApprovalTTL: time.Second}).Same(policy.Obligations{}) {
		t.Error("obligations are compared wrongly")
	}
	d := policy.Decision{Permit: true, Obligations: policy.Obligations{StepUp: "passkey", ApprovalTTL: time.Hour}}
	for _, id := range []string{"a", "b", "c", "d", "e\u202e"} {
		d.Policies = append(d.Policies, policy.Reason{ID: id})
	}
	if got, want := policy.Brief(d), "permitted by a, b, c, 2 more, approved within 1h0m0s, with a fresh passkey"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	near := policy.Decision{Code: policy.CodeNoPermit, Nearly: []policy.NearMiss{{ID: "p", Missing: "context.session.bound\n&& x"}}}
	if got, want := policy.Brief(near), `no policy permits it; p would, but for: context.session.bound\n&& x`; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := policy.Brief(policy.Decision{Code: policy.CodePolicyError, Errors: []string{"p: overflow"}}); !slices.Contains([]string{"policy_error: p: overflow"}, got) {
		t.Error(got)
	}
}

// TestNoVerificationBesideAReplay: both read history again, and one at a time is
// enough for a node that has leases to end.
func TestNoVerificationBesideAReplay(t *testing.T) {
	r := newRig(t)
	log := &meddled{Log: r.log}
	e, err := broker.New(broker.Config{Log: log, Node: "n2", Issuer: "https://mayfly.example", Kinds: []issuers.Kind{r.kind}})
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	log.after = func() {
		if _, err := e.AuditVerify(t.Context(), callerOf(operator, ""), 0); err != nil && fault.As(err).StableCode() == "busy" {
			refused++
		}
	}
	if _, err := e.ReplayPolicies(t.Context(), callerOf(operator, ""), wire.PolicyReplayRequest{}); err != nil || refused == 0 {
		t.Errorf("%v; %d verifications were refused meanwhile", err, refused)
	}
}
