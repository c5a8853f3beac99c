package policy_test

import (
	"os"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/policy"
)

// TestStaticSecretsCanBeForbidden: the policies on the page of static secrets do what
// it says of them, each for its own reason, and leave what is minted alone.
func TestStaticSecretsCanBeForbidden(t *testing.T) {
	page, err := os.ReadFile("../../docs/issuers/kv.md")
	if err != nil {
		t.Fatal(err)
	}
	_, block, ok := strings.Cut(string(page), "```cedar\n")
	block, _, closed := strings.Cut(block, "```")
	if !ok || !closed {
		t.Fatal("the page has no policies")
	}
	s := compile(t, block, `@id("all") permit (principal, action, resource);`)
	static := func(change func(*policy.Request)) policy.Request {
		r := full()
		r.Principal.Kind, r.Principal.Name = "human", "ann"
		r.Resource.Type, r.Resource.Zone, r.Resource.Labels = "kv", "lab", nil
		r.Resource.Parents = nil
		r.Context.Emergency = false
		if change != nil {
			change(&r)
		}
		return r
	}
	expect(t, s.Decide(static(nil)), policy.CodePermit, "all")
	agents := func(r *policy.Request) { r.Principal.Kind, r.Principal.Name = "agent", "coder" }
	expect(t, s.Decide(static(agents)), policy.CodeForbidden, "no-static-secrets-for-agents")
	expect(t, s.Decide(static(func(r *policy.Request) { agents(r); r.Action = policy.ActionRenew })), policy.CodeForbidden, "no-static-secrets-for-agents")
	expect(t, s.Decide(static(func(r *policy.Request) { r.Context.Session.AttestedKey = false })), policy.CodeForbidden, "static-secrets-only-with-a-key-of-ones-own")
	expect(t, s.Decide(static(func(r *policy.Request) {
		r.Resource.Zone, r.Resource.Labels = "production", map[string]string{"secrets": "static"}
	})), policy.CodeForbidden, "none-labelled-static-in-production")
	expect(t, s.Decide(static(func(r *policy.Request) { agents(r); r.Resource.Type = "postgres" })), policy.CodePermit, "all")
}
