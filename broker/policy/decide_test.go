package policy_test

import (
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mayfly-broker/mayfly/broker/policy"
)

// noon is when all these tests take place.
var noon = time.Date(2026, time.March, 3, 12, 0, 0, 0, time.UTC)

func compile(t testing.TB, texts ...string) *policy.Set {
	t.Helper()
	var sources []policy.Source
	for i, text := range texts {
		sources = append(sources, policy.Source{Name: fmt.Sprintf("doc%d.cedar", i), Text: text})
	}
	s, err := policy.Compile(sources)
	if err != nil {
		t.Fatalf("Compile: %v", err)
	}
	return s
}

// ann asks for orders/readwrite in a bound session.
func ann(groups ...string) policy.Request {
	return policy.Request{
		Principal: policy.Principal{Kind: "human", Name: "ann", Groups: groups},
		Action:    policy.ActionRequest,
		Resource: policy.Resource{
			Kind: "Role", Name: "orders/readwrite", Target: "orders", Zone: "eu", Type: "postgres",
			Labels: map[string]string{"classification": "pii"},
		},
		Context: policy.Context{
			Now:     noon,
			Session: policy.Session{Bound: true, Binding: "dpop", AttestedKey: true, Method: "github", Attestation: map[string]string{"repository_id": "815"}},
			Network: policy.Network{IP: netip.MustParseAddr("10.1.2.3")},
			Task:    policy.Task{ID: "t1", Name: "deploy", Owner: "human:ann", Depth: 1},
			Scope:   policy.Scope{Actions: []string{"select", "insert"}, Tables: []string{"public.orders"}},
			Purpose: "ticket:123", TTLSeconds: 600, Risk: 10, Chain: []string{"agent:coder"},
		},
	}
}

func ids(d policy.Decision) []string {
	var out []string
	for _, p := range d.Policies {
		out = append(out, p.ID)
	}
	return out
}

// expect fails unless d has the code, and Permit agrees with it.
func expect(t testing.TB, d policy.Decision, code string, policies ...string) {
	t.Helper()
	if d.Code != code || d.Permit != (code == policy.CodePermit) || !slices.Equal(ids(d), policies) {
		t.Fatalf("got permit=%t code=%s policies=%v errors=%v, want code=%s policies=%v", d.Permit, d.Code, ids(d), d.Errors, code, policies)
	}
}

const contractPolicy = `
@id("dba-write") @approvals("2") @approvers("dba") @max_ttl("15m")
permit (principal in Group::"sre", action == Action::"request", resource == Role::"orders/readwrite")
when { context.session.bound && context.session.attested_key };`

func TestThePolicyOfTheContract(t *testing.T) {
	s := compile(t, contractPolicy)
	d := s.Decide(ann("sre"))
	expect(t, d, policy.CodePermit, "dba-write")
	want := policy.Obligations{MaxTTL: 15 * time.Minute, Approvals: []policy.Quorum{{Group: "dba", Count: 2, Policy: "dba-write"}}}
	if diff := cmp.Diff(want, d.Obligations); diff != "" {
		t.Error(diff)
	}
	expect(t, s.Decide(ann("hr")), policy.CodeNoPermit)

	stepUp := compile(t, `@id("dba-write") @approvals("2") @approvers("dba") @max_ttl("15m") @step_up("passkey")
permit (principal in Group::"sre", action == Action::"request", resource == Role::"orders/readwrite")
when { context.session.bound && context.risk < 60 };`)
	want.StepUp = "passkey"
	if diff := cmp.Diff(want, stepUp.Decide(ann("sre")).Obligations); diff != "" {
		t.Error(diff)
	}
	risky := ann("sre")
	risky.Context.Risk = 60
	expect(t, stepUp.Decide(risky), policy.CodeNoPermit)
}

func TestDefaultIsDeny(t *testing.T) {
	var zero policy.Set
	var none *policy.Set
	for name, s := range map[string]*policy.Set{"zero": &zero, "nil": none, "empty": compile(t)} {
		d := s.Decide(ann("sre"))
		expect(t, d, policy.CodeNoPermit)
		if d.PolicyHash != compile(t).Hash() || s.Len() != 0 {
			t.Errorf("%s: hash %q, length %d", name, d.PolicyHash, s.Len())
		}
	}
	if (policy.Decision{}).Permit {
		t.Error("the zero decision permits")
	}
}

func TestForbidWinsOverAnyPermit(t *testing.T) {
	s := compile(t, contractPolicy, `
@id("all") permit (principal, action, resource);
@id("z-no-pii") forbid (principal, action == Action::"request", resource)
when { resource.hasTag("classification") && resource.getTag("classification") == "pii" };
@id("a-no-eu") forbid (principal, action, resource in Zone::"eu");`)
	d := s.Decide(ann("sre"))
	expect(t, d, policy.CodeForbidden, "a-no-eu", "z-no-pii")
	if diff := cmp.Diff(policy.Obligations{}, d.Obligations); diff != "" {
		t.Errorf("a denial obliges: %s", diff)
	}
}

// Cedar skips a policy whose evaluation fails; a forbid that is skipped would let through
// what it forbids.
func TestAnyEvaluationErrorDenies(t *testing.T) {
	const permit = `@id("all") permit (principal, action, resource);`
	for name, failing := range map[string]string{
		"forbid": `@id("broken") forbid (principal, action, resource) when { context.risk + 1 > 50 };`,
		"permit": `@id("broken") permit (principal, action, resource) when { context.risk + 1 > 50 };`,
	} {
		t.Run(name, func(t *testing.T) {
			s := compile(t, permit, failing)
			r := ann()
			if name == "forbid" {
				expect(t, s.Decide(r), policy.CodePermit, "all")
			}
			r.Context.Risk = math.MaxInt64 // risk + 1 overflows
			d := s.Decide(r)
			expect(t, d, policy.CodePolicyError)
			if len(d.Errors) != 1 || !strings.HasPrefix(d.Errors[0], "broken: ") {
				t.Errorf("errors %q do not name the policy", d.Errors)
			}
		})
	}
	t.Run("beside a forbid that applies", func(t *testing.T) {
		s := compile(t, permit, `@id("no") forbid (principal, action, resource);
			@id("broken") permit (principal, action, resource) when { context.risk + 1 > 50 };`)
		r := ann()
		r.Context.Risk = math.MaxInt64
		d := s.Decide(r)
		expect(t, d, policy.CodeForbidden, "no")
		if len(d.Errors) != 1 {
			t.Errorf("errors: %q", d.Errors)
		}
	})
	t.Run("many", func(t *testing.T) {
		var text strings.Builder
		for i := range 40 {
			fmt.Fprintf(&text, "@id(\"p%02d\") forbid (principal, action, resource) when { context.risk + 1 > 50 };\n", 39-i)
		}
		r := ann()
		r.Context.Risk = math.MaxInt64
		d := compile(t, text.String()).Decide(r)
		expect(t, d, policy.CodePolicyError)
		if len(d.Errors) != policy.MaxErrors || !slices.IsSorted(d.Errors) {
			t.Errorf("%d errors, sorted %t", len(d.Errors), slices.IsSorted(d.Errors))
		}
	})
}

// Law 3: scope only narrows, TTLs likewise. A looser permit beside a stricter one, in any
// order and under any name, changes nothing.
func TestLaw3LooserPermitNeverRelaxesAStricterOne(t *testing.T) {
	const head = ` permit (principal, action == Action::"request", resource);` + "\n"
	all := []string{
		`@id("a-free")` + head,
		`@id("b-long") @max_ttl("8h")` + head,
		`@id("c-short") @max_ttl("15m") @approvals("2") @approvers("dba") @approval_ttl("4h")` + head,
		`@id("d-more") @approvals("3") @approvers("dba") @approval_ttl("1h")` + head,
		`@id("e-sec") @approvals("1") @approvers("security") @step_up("passkey")` + head,
		`@id("f-less") @approvals("1") @approvers("dba") @max_ttl("1h") @approval_ttl("2h")` + head,
	}
	want := policy.Obligations{
		MaxTTL: 15 * time.Minute, ApprovalTTL: time.Hour, StepUp: "passkey",
		Approvals: []policy.Quorum{{Group: "dba", Count: 3, Policy: "d-more"}, {Group: "security", Count: 1, Policy: "e-sec"}},
	}
	for turn := range all {
		rotated := append(slices.Clone(all[turn:]), all[:turn]...)
		d := compile(t, rotated...).Decide(ann())
		expect(t, d, policy.CodePermit, "a-free", "b-long", "c-short", "d-more", "e-sec", "f-less")
		if diff := cmp.Diff(want, d.Obligations); diff != "" {
			t.Fatalf("turn %d: %s", turn, diff)
		}
	}
}

// Every subset of the permits: adding one never makes any obligation looser.
func TestLaw3AddingAPermitNeverLoosens(t *testing.T) {
	asks := []string{
		``, `@max_ttl("1h")`, `@max_ttl("5m") @step_up("passkey")`,
		`@approvals("1") @approvers("dba")`, `@approvals("2") @approvers("dba") @approval_ttl("1h")`, `@approvals("1") @approvers("sec") @approval_ttl("2h")`,
	}
	decide := func(subset int) policy.Obligations {
		var text string
		for i, ask := range asks {
			if subset&(1<<i) != 0 {
				text += fmt.Sprintf("@id(\"p%d\") %s permit (principal, action, resource);\n", i, ask)
			}
		}
		d := compile(t, text).Decide(ann())
		if !d.Permit {
			t.Fatalf("subset %b: %s", subset, d.Code)
		}
		return d.Obligations
	}
	all := make([]policy.Obligations, 1<<len(asks))
	for subset := 1; subset < len(all); subset++ {
		all[subset] = decide(subset)
	}
	for subset := 1; subset < len(all); subset++ {
		for i := range asks {
			if bigger := all[subset|1<<i]; !atLeastAsStrict(bigger, all[subset]) {
				t.Fatalf("%+v with %q became %+v", all[subset], asks[i], bigger)
			}
		}
	}
}

func atLeastAsStrict(a, b policy.Obligations) bool {
	ttl := func(a, b time.Duration) bool { return b == 0 || (a != 0 && a <= b) }
	for _, q := range b.Approvals {
		if !slices.ContainsFunc(a.Approvals, func(have policy.Quorum) bool { return have.Group == q.Group && have.Count >= q.Count }) {
			return false
		}
	}
	return ttl(a.MaxTTL, b.MaxTTL) && ttl(a.ApprovalTTL, b.ApprovalTTL) && (b.StepUp == "" || a.StepUp == b.StepUp)
}

// An obligation of a permit that did not apply is nobody's.
func TestObligationsComeFromPermitsThatApplied(t *testing.T) {
	d := compile(t, `
@id("a") permit (principal, action, resource);
@id("b") @max_ttl("1s") permit (principal in Group::"other", action, resource);
@id("c") @max_ttl("1s") permit (principal, action, resource) when { context.risk > 50 };`).Decide(ann())
	expect(t, d, policy.CodePermit, "a")
	if d.Obligations.MaxTTL != 0 {
		t.Errorf("max_ttl %s", d.Obligations.MaxTTL)
	}
}

// cedar-go's own set iterates a map, so its reasons come in another order each time.
func TestReasonsAreSortedAndDecisionsRepeat(t *testing.T) {
	var texts []string
	for i := range 50 {
		texts = append(texts, fmt.Sprintf(`@id("p%02d") @max_ttl("1h") @description("d") permit (principal, action, resource);`, (i*37)%50))
	}
	s := compile(t, texts...)
	first, err := json.Marshal(s.Decide(ann("b", "a")))
	if err != nil {
		t.Fatal(err)
	}
	var d policy.Decision
	if err := json.Unmarshal(first, &d); err != nil {
		t.Fatal(err)
	}
	if !slices.IsSorted(ids(d)) || len(ids(d)) != 50 {
		t.Errorf("ids %v", ids(d))
	}
	var wg sync.WaitGroup
	for range 4 { // concurrently: a Set is shared
		wg.Go(func() {
			for range 50 {
				again, err := json.Marshal(s.Decide(ann("a", "b")))
				if err != nil || string(again) != string(first) {
					t.Errorf("another answer: %s %v", again, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// The JSON form is part of replicated commands: this text must never change.
func TestDecisionHasItsJSONForm(t *testing.T) {
	d := compile(t, `@id("b") @max_ttl("15m") @approvals("2") @approvers("dba") @approval_ttl("1h") @step_up("passkey") @description("x")
permit (principal, action, resource);`, `@id("a") permit (principal, action, resource);`).Decide(ann())
	for i := range d.Policies {
		d.Policies[i].Hash = "h"
	}
	d.PolicyHash = "H"
	got, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"permit":true,"code":"permit","policies":[` +
		`{"id":"a","source":"doc1.cedar","line":1,"effect":"permit","hash":"h"},` +
		`{"id":"b","source":"doc0.cedar","line":1,"effect":"permit","hash":"h","annotations":{"approval_ttl":"1h","approvals":"2","approvers":"dba","description":"x","max_ttl":"15m","step_up":"passkey"}}],` +
		`"obligations":{"max_ttl_ns":900000000000,"approvals":[{"group":"dba","count":2,"policy":"b"}],"step_up":"passkey","approval_ttl_ns":3600000000000},"policy_hash":"H"}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	var back policy.Decision
	if err := json.Unmarshal(got, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(d, back); diff != "" {
		t.Error(diff)
	}
	denied, err := json.Marshal(compile(t).Decide(ann()))
	if want := `{"permit":false,"code":"no_permit","policy_hash":"` + compile(t).Hash() + `"}`; err != nil || string(denied) != want {
		t.Errorf("got %s, %v; want %s", denied, err, want)
	}
}

// A caller that changes what it got must not change the next decision.
func TestDecisionsShareNothingWithTheSet(t *testing.T) {
	s := compile(t, contractPolicy)
	d := s.Decide(ann("sre"))
	d.Policies[0].Annotations["max_ttl"] = "999h"
	d.Obligations.Approvals[0].Count = 0
	again := s.Decide(ann("sre"))
	if again.Policies[0].Annotations["max_ttl"] != "15m" || again.Obligations.Approvals[0].Count != 2 {
		t.Errorf("changed from outside: %+v", again)
	}
}

func TestDevPolicy(t *testing.T) {
	s, err := policy.Compile([]policy.Source{policy.DevPolicy()})
	if err != nil {
		t.Fatal(err)
	}
	operator := func(action, kind, name string) policy.Request {
		return policy.Request{
			Principal: policy.Principal{Kind: "human", Name: "operator"}, Action: action,
			Resource: policy.Resource{Kind: kind, Name: name}, Context: policy.Context{Now: noon},
		}
	}
	for action, kind := range map[string]string{
		policy.ActionRequest: "Role", policy.ActionRenew: "Lease", policy.ActionDelegate: "Task", policy.ActionApprove: "Grant",
		policy.ActionRevoke: "Lease", policy.ActionReview: "Grant", policy.ActionRotate: "Account", policy.ActionContain: "Zone",
		policy.ActionRelease: "Zone", policy.ActionRead: "Plugin", policy.ActionAdminister: "Cluster",
	} {
		expect(t, s.Decide(operator(action, kind, "x")), policy.CodePermit, "dev-operator")
	}
	own := operator(policy.ActionApprove, "Grant", "g1")
	own.Resource.Owner = "human:operator"
	expect(t, s.Decide(own), policy.CodeForbidden, "dev-operator-own-grants")
	agents := operator(policy.ActionApprove, "Grant", "g2")
	agents.Resource.Owner, agents.Resource.Involved = "agent:coder", []string{"agent:coder", "human:operator"}
	expect(t, s.Decide(agents), policy.CodeForbidden, "dev-operator-own-grants")
	for _, other := range []policy.Principal{{Kind: "human", Name: "ann"}, {Kind: "agent", Name: "operator"}, {Kind: "human", Name: "operator2"}} {
		r := operator(policy.ActionRead, "Role", "x")
		r.Principal = other
		expect(t, s.Decide(r), policy.CodeNoPermit)
	}
}
