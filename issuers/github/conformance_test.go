package github_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/github"
	"github.com/mayfly-broker/mayfly/issuers/github/githubtest"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

// shared is the stand-in of the tests that change nothing about it.
var shared *githubtest.StandIn

func TestMain(m *testing.M) {
	var err error
	if shared, err = githubtest.New(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	shared.Close()
	os.Exit(code)
}

func fresh(t testing.TB) *githubtest.StandIn {
	t.Helper()
	s, err := githubtest.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func target(s *githubtest.StandIn, more map[string]any) issuers.Target {
	spec := map[string]any{"client_id": githubtest.ClientID, "owner": githubtest.Owner, "api": s.URL, "tls": map[string]any{"ca": s.CA}}
	for k, v := range more {
		spec[k] = v
		if v == nil {
			delete(spec, k)
		}
	}
	raw, err := json.Marshal(spec)
	if err != nil {
		panic(err)
	}
	return issuers.Target{Name: "code", Spec: raw, Secrets: map[string]secret.Text{github.SecretKey: secret.New(s.Key)}}
}

func open(t testing.TB, k github.Kind, target issuers.Target) issuers.Issuer {
	t.Helper()
	i, err := k.Open(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = i.Close() })
	return i
}

func allow(actions string, repositories ...string) scope.Scope {
	return scope.Scope{{Type: "github", Actions: strings.Fields(actions), Locations: repositories}}
}

// forgetful tells the suite which errors mean that another process holds the token.
type forgetful struct{ github.Kind }

// Forgotten implements [issuertest.Forgetful].
func (forgetful) Forgotten(err error) bool { return errors.Is(err, github.ErrNotHeld) }

// TestConformance has no Unreachable: a lease that nothing was minted for is
// withdrawn without asking anybody. TestNobodyAnswers tries the rest.
func TestConformance(t *testing.T) {
	issuertest.Run(t, issuertest.Harness{
		Kind: forgetful{github.New()}, Target: target(shared, nil),
		Scope:    allow("contents:read contents:write issues:read", "Acme/orders", "Acme/billing"),
		Narrower: allow("contents:read", "Acme/orders"),
		Invalid:  invalid(), Accepted: accepted(), Hostile: hostile(), RefusesOlder: true,
		Use: func(_ context.Context, c issuers.Credential) error {
			return shared.Read(c.Secret["token"].Reveal(), "orders")
		},
		Gone:    func(_ context.Context, _ issuers.Lease) error { return nil }, // GitHub lists no tokens; Use says it
		Expires: func(c issuers.Credential) (time.Time, error) { return time.Parse(time.RFC3339, c.Public["expires_at"]) },
	})
	if n := shared.Live(); n != 0 {
		t.Errorf("%d tokens live after the suite", n)
	}
}

func accepted() []scope.Scope {
	return []scope.Scope{
		allow("metadata:read", "Acme/Web.Site"), allow("contents:write", "Acme/x_y-z"), allow("pull_requests:write issues:write", "Acme/orders", "Acme/billing", "Acme/x_y-z"),
	}
}

func invalid() []scope.Scope {
	one := []string{"Acme/orders"}
	return []scope.Scope{
		allow("contents:read"), // no repository: never all of them
		allow("contents:read", "Acme/*"), allow("contents:read", "*"), allow("contents:read", "Acme/ord*"), allow("contents:read", "orders"), allow("contents:read", "Other/orders"),
		allow("contents:read", "acme/orders"), allow("contents:read", "Acme/"), allow("contents:read", "Acme/.."), allow("contents:read", "Acme/."), allow("contents:read", "Acme/a/b"),
		allow("contents:read", "Acme/orders.git"), allow("contents:read", "Acme/"+strings.Repeat("x", 101)),
		allow("contents", one...), allow("contents:", one...), allow("contents:admin", one...), allow("contents:read:x", one...), allow(":read", one...), allow("metadata:write", one...),
		allow("members:read", one...), allow("organization_administration:write", one...), allow("administration:write", one...), allow("workflows:write", one...), allow("secrets:write", one...),
		append(allow("contents:read", "Acme/orders"), allow("contents:write", "Acme/billing")...), // they would mix
		{{Type: "github", Actions: []string{"contents:read"}, Locations: one, Identifier: "x"}},
		{{Type: "github", Actions: []string{"contents:read"}, Locations: one, Privileges: []string{"x"}}},
		{{Type: "github", Actions: []string{"contents:read"}, Locations: one, Datatypes: []string{"x"}}},
		{{Type: "github", Actions: []string{"contents:read"}, Locations: one, Tables: []scope.Table{{Name: "a.b"}}}},
	}
}

func hostile() []scope.Scope {
	var out []scope.Scope
	for _, s := range append(issuertest.HostileStrings(), `x"],"repositories":[]`, "../app", "orders/../billing", "orders?x=1", "orders#", "%2e%2e", "orders\u2028", "-", "...") {
		if s == "-" || s == "..." { // names that GitHub takes, and has not
			continue
		}
		out = append(out, allow("contents:read", "Acme/"+s), allow("contents:read", s), allow("contents:read", s+"/orders"))
		out = append(out, scope.Scope{{Type: "github", Actions: []string{"contents:" + s}, Locations: []string{"Acme/orders"}}}, scope.Scope{{Type: "github", Actions: []string{s}, Locations: []string{"Acme/orders"}}})
	}
	return out
}
