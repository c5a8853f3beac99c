package policy

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	cedar "github.com/cedar-policy/cedar-go"
	publicast "github.com/cedar-policy/cedar-go/ast"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
	"github.com/cedar-policy/cedar-go/x/exp/schema/resolved"
	"pgregory.net/rapid"
)

// drawPolicies makes a document of policies over a small world, so that heads often match, and
// conditions sometimes fail to evaluate.
func drawPolicies(t *rapid.T) string {
	name := rapid.SampledFrom([]string{"a", "b", "c"})
	entity := func(label string, kinds ...string) string {
		return fmt.Sprintf("%s::%q", rapid.SampledFrom(kinds).Draw(t, label), name.Draw(t, label+" name"))
	}
	principal := func() string {
		switch rapid.IntRange(0, 5).Draw(t, "principal form") {
		case 0:
			return "principal"
		case 1:
			return "principal == " + entity("principal", "Human", "Agent")
		case 2:
			return "principal in " + entity("group", "Group", "Zone")
		case 3:
			return "principal is " + rapid.SampledFrom([]string{"Human", "Agent"}).Draw(t, "type")
		case 4:
			return "principal in " + entity("self", "Human", "Agent")
		default:
			return "principal is Human in " + entity("group", "Group")
		}
	}
	resource := func() string {
		switch rapid.IntRange(0, 5).Draw(t, "resource form") {
		case 0:
			return "resource"
		case 1:
			return "resource == " + entity("resource", "Role")
		case 2:
			return "resource in " + entity("parent", "Target", "Zone", "Role")
		case 3:
			return "resource is Role"
		case 4:
			return "resource is Lease in " + entity("parent", "Role", "Zone")
		default:
			return "resource is Role in " + entity("parent", "Target", "Zone")
		}
	}
	actions := []string{
		`action`, `action in [Action::"revoke", Action::"read"]`, `action in [Action::"read", Action::"read"]`,
		`action == Action::"read"`, `action in Action::"renew"`, `action in [Action::"renew", Action::"read", Action::"revoke"]`,
	}
	conditions := []string{
		``, ``, `when { context.emergency }`, `unless { context.session.bound }`, `when { context.risk + 1 > 5 }`,
		`when { context.emergency && context.risk + 1 > 5 }`, `when { principal in Group::"a" || resource in Zone::"b" }`,
		`when { principal.name == "human:a" || resource.zone == "b" }`, `when { (if context.emergency then principal else principal).zone == "a" }`,
		`when { {c: context}.c.session.bound }`, `when { context == context && !context.scope.actions.contains("x") }`,
		`when { context.device.hasTag(principal.zone) && context.device.getTag(principal.zone) == "x" }`,
		`unless { resource.hasTag("a") } when { [context.chain].contains(["a"]) || context has network && context.network has ip }`,
	}
	asks := []string{``, `@max_ttl("1h")`, `@max_ttl("2h") @step_up("passkey")`, `@approvals("2") @approvers("a")`, `@approvals("1") @approvers("b") @approval_ttl("1h")`}
	var text strings.Builder
	for i := range rapid.IntRange(0, 24).Draw(t, "policies") {
		effect, ask := "permit", rapid.SampledFrom(asks).Draw(t, "asks")
		if rapid.IntRange(0, 6).Draw(t, "effect") == 0 {
			effect, ask = "forbid", ""
		}
		fmt.Fprintf(&text, "@id(\"p%d\") %s %s (%s, %s, %s) %s;\n", i, ask, effect, principal(),
			rapid.SampledFrom(actions).Draw(t, "action"), resource(), rapid.SampledFrom(conditions).Draw(t, "condition"))
	}
	return text.String()
}

func drawRequest(t *rapid.T) Request {
	name := rapid.SampledFrom([]string{"a", "b", "c", "d"})
	maybe := rapid.SampledFrom([]string{"", "a", "b", "c"})
	return Request{
		Principal: Principal{
			Kind: rapid.SampledFrom([]string{"human", "agent"}).Draw(t, "kind"), Name: name.Draw(t, "name"),
			Groups: rapid.SliceOfN(name, 0, 4).Draw(t, "groups"), Zone: maybe.Draw(t, "zone"),
		},
		Action: rapid.SampledFrom([]string{"read", "renew"}).Draw(t, "action"),
		Resource: Resource{
			Kind: rapid.SampledFrom([]string{"Role", "Lease"}).Draw(t, "resource kind"), Name: name.Draw(t, "resource"),
			Target: maybe.Draw(t, "target"), Zone: maybe.Draw(t, "resource zone"),
		},
		Context: Context{
			Now: time.Unix(1_700_000_000, 0), Emergency: rapid.Bool().Draw(t, "emergency"),
			Device: map[string]string{"a": "x", "b": "y"}, Chain: []string{"a"},
			Session: Session{Bound: rapid.Bool().Draw(t, "bound")},
			Risk:    rapid.SampledFrom([]int64{0, 4, 5, math.MaxInt64}).Draw(t, "risk"),
		},
	}
}

// The index must not change any answer: what Cedar says of the whole set, read afresh and without
// our index, is what Decide says.
func TestIndexedDecisionEqualsUnindexed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := drawPolicies(t)
		set, err := Compile([]Source{{Name: "a", Text: text}})
		if err != nil {
			t.Fatal(err)
		}
		list, err := cedar.NewPolicyListFromBytes("a", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		whole := cedar.NewPolicySet()
		for _, p := range list {
			whole.Add(cedar.PolicyID(p.Annotations()["id"]), p)
		}
		for range 8 {
			compareWithCedar(t, set, whole, drawRequest(t))
		}
	})
}

func compareWithCedar(t *rapid.T, set *Set, whole *cedar.PolicySet, r Request) {
	f, code, problem := set.words.facts(&r)
	if code != "" {
		t.Fatalf("%s: %s", code, problem)
	}
	f.fill(&r, needEverything)
	verdict, diag := cedar.Authorize(whole, f, f.request)
	var want []string
	for _, reason := range diag.Reasons {
		want = append(want, string(reason.PolicyID))
	}
	slices.Sort(want)
	var wantErrors []string
	for _, e := range diag.Errors {
		wantErrors = append(wantErrors, string(e.PolicyID)+": "+e.Message)
	}
	slices.Sort(wantErrors)

	got := set.Decide(r)
	var have []string
	for _, p := range got.Policies {
		have = append(have, p.ID)
	}
	if got.Permit != (verdict == cedar.Allow && len(wantErrors) == 0) {
		t.Fatalf("permit=%t (%s), Cedar says %v with errors %v", got.Permit, got.Code, verdict, wantErrors)
	}
	if got.Code != CodePolicyError && !slices.Equal(have, want) {
		t.Fatalf("policies %v, Cedar says %v", have, want)
	}
	if got.Code == CodePolicyError && len(wantErrors) == 0 {
		t.Fatal("an error that Cedar does not see")
	}
	if !slices.Equal(got.Errors, wantErrors[:min(len(wantErrors), MaxErrors)]) {
		t.Fatalf("errors %v, Cedar says %v", got.Errors, wantErrors)
	}
	if got.Permit {
		compareObligations(t, got.Obligations, whole, want)
	}
}

// compareObligations works the strictest of all out in another way: from the annotations' text.
func compareObligations(t *rapid.T, got Obligations, whole *cedar.PolicySet, applied []string) {
	quorums := make(map[string]int)
	var ttls []time.Duration
	stepUp := ""
	for _, id := range applied {
		a := whole.Get(cedar.PolicyID(id)).Annotations()
		if d, err := time.ParseDuration(string(a["max_ttl"])); err == nil {
			ttls = append(ttls, d)
		}
		if a["approvals"] != "" {
			quorums[string(a["approvers"])] = max(quorums[string(a["approvers"])], int(a["approvals"][0]-'0'))
		}
		stepUp = max(stepUp, string(a["step_up"]))
	}
	wantTTL := time.Duration(0)
	if len(ttls) > 0 {
		wantTTL = slices.Min(ttls)
	}
	if got.MaxTTL != wantTTL || got.StepUp != stepUp || len(got.Approvals) != len(quorums) {
		t.Fatalf("%+v, want max_ttl %s, step_up %q, quorums %v", got, wantTTL, stepUp, quorums)
	}
	for _, q := range got.Approvals {
		if quorums[q.Group] != q.Count || !slices.Contains(applied, q.Policy) {
			t.Fatalf("%+v, want quorums %v", got, quorums)
		}
	}
}

// The near misses rest on a second reading of heads; it must agree with Cedar's.
func TestHeadsAreReadAsCedarReadsThem(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		set, err := Compile([]Source{{Name: "a", Text: drawPolicies(t)}})
		if err != nil {
			t.Fatal(err)
		}
		r := drawRequest(t)
		f, code, _ := set.words.facts(&r)
		if code != "" {
			t.Fatal(code)
		}
		found := set.candidates(f)
		for at, p := range set.policies {
			head := *p.ast
			head.Effect, head.Conditions = ast.EffectPermit, nil
			verdict, _ := cedar.Authorize(cedar.PolicyMap{"head": cedar.NewPolicyFromAST((*publicast.Policy)(&head))}, f, f.request)
			matched := verdict == cedar.Allow
			actions := headActions(p.ast.Action)
			mine := f.matches(f.principal, p.ast.Principal) && f.matches(f.resource, p.ast.Resource) &&
				(slices.Contains(actions, anything) || slices.Contains(actions, f.request.Action))
			if mine != matched {
				t.Fatalf("%s: matches=%t, Cedar says %t", p.id, mine, matched)
			}
			if matched && !slices.Contains(found.at, int32(at)) {
				t.Fatalf("the index lost %s", p.id)
			}
		}
	})
}

// The schema's promises that other code here relies on.
func TestSchemaIsUniform(t *testing.T) {
	v, err := newVocabulary()
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Fields("administer approve contain delegate read release renew request review revoke rotate")
	if !slices.Equal(v.actions, want) {
		t.Errorf("actions %v", v.actions)
	}
	shapes := make(map[string][]string)
	for uid, action := range v.schema.Actions {
		shapes["context"] = append(shapes["context"], describe(action.AppliesTo.Context))
		if len(action.Entity.Parents.Slice()) > 0 {
			t.Errorf("%s is in a group of actions, which the index does not know", uid)
		}
		for _, kind := range action.AppliesTo.Resources {
			shapes["resource"] = append(shapes["resource"], describe(v.schema.Entities[kind].Shape))
		}
		for _, kind := range action.AppliesTo.Principals {
			shapes["principal"] = append(shapes["principal"], describe(v.schema.Entities[kind].Shape))
		}
	}
	for what, list := range shapes {
		slices.Sort(list)
		if list = slices.Compact(list); len(list) != 1 {
			t.Errorf("%s has several shapes: %v", what, list)
		}
	}
}

func describe(r resolved.RecordType) string {
	var fields []string
	for name, a := range r {
		kind := fmt.Sprintf("%T", a.Type)
		if nested, ok := a.Type.(resolved.RecordType); ok {
			kind = describe(nested)
		}
		fields = append(fields, fmt.Sprintf("%s %t %s", name, a.Optional, kind))
	}
	slices.Sort(fields)
	return "{" + strings.Join(fields, "; ") + "}"
}

// What is built from a request is what the schema promises to policies, so that a policy that
// passed the type check cannot meet a missing attribute.
func TestFactsConformToTheSchema(t *testing.T) {
	v, err := newVocabulary()
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		r := drawRequest(t)
		r.Principal.Labels = rapid.MapOfN(rapid.StringN(0, 5, 20), rapid.StringN(0, 5, 20), 0, 3).Draw(t, "labels")
		r.Context.Chain = rapid.SliceOfN(rapid.StringN(0, 5, 20), 0, 3).Draw(t, "chain")
		f, code, problem := v.facts(&r)
		if code != "" {
			t.Fatalf("%s %s", code, problem)
		}
		f.fill(&r, needEverything)
		if err := v.validator.Request(f.request); err != nil {
			t.Fatal(err)
		}
		for _, e := range []cedar.Entity{f.principal, f.resource, f.session, f.device} {
			if err := v.validator.Entity(e); err != nil {
				t.Fatal(err)
			}
		}
	})
}
