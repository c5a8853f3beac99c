package policy_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/policy"
)

const goodCases = `
cases:
- name: sre may write with two signatures
  request:
    principal: {kind: human, name: ann, groups: [sre], labels: {team: a}}
    action: request
    resource: {kind: Role, name: orders/readwrite, target: orders, zone: eu, parents: [{kind: Zone, name: europe}]}
    context:
      session: {bound: true, attested_key: true, method: github, attestation: {repository_id: "815"}}
      network: {ip: 10.1.2.3}
      now: 2026-03-03T12:00:00Z
      scope: {actions: [select], tables: ["public.*"]}
      risk: 10
  want: {permit: true, code: permit, policies: [dba-write], max_ttl: 15m, approvals: {dba: 2}, step_up: none, approval_ttl: none}
- name: not without a bound session
  request:
    principal: {kind: human, name: ann, groups: [sre]}
    action: request
    resource: {kind: Role, name: orders/readwrite}
  want: {permit: false, code: no_permit, policies: []}
`

func TestCasesPassAndFail(t *testing.T) {
	cases, err := policy.DecodeCases([]byte(goodCases))
	if err != nil {
		t.Fatal(err)
	}
	s := compile(t, contractPolicy)
	for _, r := range policy.RunCases(s, cases) {
		if !r.Passed || len(r.Differences) > 0 {
			t.Errorf("%s: %v", r.Name, r.Differences)
		}
	}
	// Each of these changes one thing, and one difference must name it.
	for field, c := range map[string]struct {
		text   string
		change func(*policy.Want)
	}{
		"permit":       {contractPolicy, func(w *policy.Want) { *w = policy.Want{Permit: false} }},
		"code":         {contractPolicy + `@id("x") forbid (principal, action, resource);`, func(w *policy.Want) { *w = policy.Want{Code: policy.CodeNoPermit} }},
		"policies":     {contractPolicy, func(w *policy.Want) { w.Policies = []string{} }},
		"max_ttl":      {contractPolicy, func(w *policy.Want) { w.MaxTTL = "16m" }},
		"max_ttl: ":    {contractPolicy, func(w *policy.Want) { w.MaxTTL = "none" }},
		"approvals":    {contractPolicy, func(w *policy.Want) { w.Approvals = map[string]int{"dba": 1} }},
		"approvals: ":  {contractPolicy, func(w *policy.Want) { w.Approvals = map[string]int{} }},
		"approvals:":   {contractPolicy, func(w *policy.Want) { w.Approvals = map[string]int{"dba": 2, "sec": 1} }},
		"step_up":      {contractPolicy, func(w *policy.Want) { w.StepUp = "passkey" }},
		"approval_ttl": {contractPolicy, func(w *policy.Want) { w.ApprovalTTL = "1h" }},
	} {
		changed := cases[0]
		c.change(&changed.Want)
		r := policy.RunCases(compile(t, c.text), []policy.Case{changed})[0]
		if r.Passed || len(r.Differences) != 1 || !strings.HasPrefix(r.Differences[0], field) {
			t.Errorf("%s: passed=%t %v", field, r.Passed, r.Differences)
		}
	}
}

func TestACaseWithoutATimeIsAtNoon(t *testing.T) {
	s := compile(t, `@id("p") permit (principal, action, resource) when { context.now == datetime("2020-01-01T12:00:00Z") };`)
	r := ann()
	r.Context.Now = time.Time{}
	if got := policy.RunCases(s, []policy.Case{{Request: r, Want: policy.Want{Permit: true}}})[0]; !got.Passed {
		t.Error(got)
	}
}

// A test that expects nothing readable must not pass.
func TestAnUnreadableExpectationIsNoPass(t *testing.T) {
	s := compile(t, contractPolicy)
	for _, w := range []policy.Want{
		{Permit: true, MaxTTL: "soon"}, {Permit: true, StepUp: "sms"}, {Permit: true, Code: "ok"}, {Permit: true, Code: policy.CodeNoPermit},
	} {
		if got := policy.RunCases(s, []policy.Case{{Request: ann("sre"), Want: w}})[0]; got.Passed || len(got.Differences) == 0 {
			t.Errorf("%+v passed", w)
		}
	}
}

func TestCasesAreReadStrictly(t *testing.T) {
	const request = `{principal: {kind: human, name: a}, action: read, resource: {kind: Role, name: r}}`
	one := func(want string) string {
		return fmt.Sprintf("cases: [{name: a, request: %s, want: %s}]", request, want)
	}
	if _, err := policy.DecodeCases([]byte(one("{permit: false}"))); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ text, says string }{
		"empty":               {"", "0 cases"},
		"no cases":            {"cases: []", "0 cases"},
		"a list":              {"[]", "array"},
		"unknown at top":      {"cases: []\ncase: 1", `unknown field`},
		"unknown in case":     {strings.Replace(one("{permit: true}"), "name: a,", "name: a, nam: b,", 1), `unknown field "nam"`},
		"unknown in request":  {strings.Replace(one("{permit: true}"), "action:", "acton: read, action:", 1), `unknown field "acton"`},
		"unknown in want":     {one("{permit: true, polices: [x]}"), `unknown field "polices"`},
		"repeated key":        {one("{permit: true, permit: false}"), "permit"},
		"permit left out":     {one("{code: permit}"), "want.permit is missing"},
		"want left out":       {fmt.Sprintf("cases: [{name: a, request: %s}]", request), "want.permit is missing"},
		"name left out":       {strings.Replace(one("{permit: true}"), "name: a, request", "request", 1), "needs a name"},
		"name twice":          {fmt.Sprintf("cases: [%[1]s, %[1]s]", fmt.Sprintf("{name: a, request: %s, want: {permit: true}}", request)), "needs a name of its own"},
		"ttl":                 {one("{permit: true, max_ttl: 15}"), "max_ttl"},
		"ttl text":            {one("{permit: true, max_ttl: 15 minutes}"), "max_ttl"},
		"step up":             {one("{permit: true, step_up: sms}"), "step_up"},
		"code":                {one("{permit: true, code: yes}"), "code"},
		"contradiction":       {one("{permit: true, code: no_permit}"), "exclude each other"},
		"denial that obliges": {one("{permit: false, max_ttl: 1h}"), "no obligations"},
		"permit as text":      {one(`{permit: "true"}`), "permit"},
		"address":             {strings.Replace(one("{permit: true}"), "action:", "context: {network: {ip: 10.0.0.0/8}}, action:", 1), "10.0.0.0/8"},
		"not yaml":            {"cases: [", "yaml"},
		"too big":             {strings.Repeat("#", policy.MaxCasesBytes+1), "bytes"},
		"two documents":       {one("{permit: true}") + "\n---\n" + one("{permit: true}"), "document"},
	} {
		t.Run(name, func(t *testing.T) {
			cases, err := policy.DecodeCases([]byte(c.text))
			if !errors.Is(err, &fault.Error{Kind: fault.Invalid, Code: "invalid_cases"}) {
				t.Fatalf("read as %+v, error %v", cases, err)
			}
			if detail := fault.As(err).Detail; !strings.Contains(detail, c.says) {
				t.Errorf("says %q, want %q", detail, c.says)
			}
		})
	}
}
