package vault_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/vault"
	"github.com/mayfly-broker/mayfly/secret"
)

// check returns the findings that are not good, by name.
func (f *fixture) check() map[string]issuers.Finding {
	f.t.Helper()
	findings, err := f.open(1).Check(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	out := map[string]issuers.Finding{}
	for _, x := range findings {
		if !x.OK {
			out[x.Name] = x
		}
	}
	return out
}

// Each line of the page's policies is needed, and the check names the one that is
// missing, with the line that gives it.
func TestCheckNamesEveryMissingRight(t *testing.T) {
	f := newFixture(t, shared)
	f.spec["paths"] = []string{"database/creds/app", "database/creds/*"}
	if bad := f.check(); len(bad) != 0 {
		t.Fatalf("with the page's own policies: %+v", bad)
	}
	lines := func(text string) (all []string) {
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "path ") {
				all = append(all, strings.TrimSpace(line))
			}
		}
		return all
	}
	without := func(all []string, n int) string {
		return strings.Join(append(append([]string{}, all[:n]...), all[n+1:]...), "\n")
	}
	squeeze := func(s string) string { return strings.Join(strings.Fields(s), " ") }
	put := func(name, text string) {
		t.Helper()
		if err := shared.Policy(t.Context(), name, text); err != nil {
			t.Fatal(err)
		}
	}
	names := func(bad map[string]issuers.Finding, line string) bool {
		for _, x := range bad {
			if squeeze(x.Fix) == squeeze(line) || strings.Contains(squeeze(x.Fix), squeeze(strings.Replace(line, "database/*", "database/creds/app/*", 1))) {
				return true
			}
		}
		return false
	}
	broker := lines(block("broker-policy"))
	token, err := shared.Token(t.Context(), []string{"mayfly-partial", "self"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	f.secrets[vault.SecretToken] = secret.New(token)
	for n, line := range broker {
		if strings.Contains(line, "accessors/") {
			continue // the same right under LIST's own spelling
		}
		rest := without(broker, n)
		if strings.Contains(line, "accessors") {
			rest = strings.ReplaceAll(rest, "auth/token/accessors/", "auth/token/elsewhere/")
		}
		put("mayfly-partial", rest)
		if bad := f.check(); !names(bad, line) {
			t.Errorf("without %s the check says %+v", line, bad)
		}
	}
	put("mayfly-partial", strings.Join(broker, "\n"))
	f.spec["token_policy"] = "mayfly-thin"
	shared.Do(t, http.MethodPut, "auth/token/roles/thin", map[string]any{"allowed_policies": "mayfly-thin,mayfly-ended", "orphan": true, "renewable": true})
	f.spec["token_role"] = "thin"
	put("mayfly-partial", strings.ReplaceAll(strings.Join(broker, "\n"), "/mayfly\"", "/thin\""))
	leases := lines(block("leases-policy"))
	for n, line := range leases {
		put("mayfly-thin", without(leases, n))
		bad := f.check()
		if !names(bad, line) {
			t.Errorf("without %s the check says %+v", line, bad)
		}
		for _, x := range bad {
			if x.Warning {
				t.Errorf("only warned of: %+v", x)
			}
		}
	}
}

// The check sees what is wrong with a token role before a lease does.
func TestCheckLooksAtTheTokenRole(t *testing.T) {
	f := newFixture(t, shared)
	f.secrets[vault.SecretToken] = secret.New(shared.Root)
	f.spec["token_role"] = "odd"
	if bad := f.check(); bad["token role"].Fix == "" || !bad["login"].Warning {
		t.Errorf("no role: %+v", bad)
	}
	good := map[string]any{"allowed_policies": "mayfly-leases,mayfly-ended", "orphan": true, "renewable": true, "token_type": "service"}
	for name, change := range map[string]map[string]any{
		"orphan":           {"orphan": false},
		"renewable":        {"renewable": false},
		"batch":            {"token_type": "batch", "orphan": true, "renewable": false},
		"mayfly-ended":     {"allowed_policies": "mayfly-leases"},
		"mayfly-leases":    {"allowed_policies": "mayfly-ended"},
		"token_num_uses":   {"token_num_uses": 5},
		"token_period":     {"token_period": "1h"},
		"also lets":        {"allowed_policies": "mayfly-leases,mayfly-ended,admin"},
		"leases live 1h0m": {"token_explicit_max_ttl": "1h"},
	} {
		body := map[string]any{}
		for k, v := range good {
			body[k] = v
		}
		for k, v := range change {
			body[k] = v
		}
		_ = shared.Call(t.Context(), http.MethodDelete, "auth/token/roles/odd", shared.Root, nil, nil)
		shared.Do(t, http.MethodPut, "auth/token/roles/odd", body)
		findings, err := f.open(1).Check(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		said := false
		for _, x := range findings {
			said = said || strings.HasPrefix(x.Name, "token role") && strings.Contains(x.Detail, name)
		}
		if !said {
			t.Errorf("%s: the check says %+v", name, findings)
		}
	}
	// and what a lease finds, it does not take
	for _, change := range []map[string]any{{"orphan": false}, {"token_type": "batch", "renewable": false}} {
		body := map[string]any{"allowed_policies": "mayfly-leases,mayfly-ended", "orphan": true}
		for k, v := range change {
			body[k] = v
		}
		_ = shared.Call(t.Context(), http.MethodDelete, "auth/token/roles/odd", shared.Root, nil, nil)
		shared.Do(t, http.MethodPut, "auth/token/roles/odd", body)
		l := lease(allow("read", "database/creds/app"))
		_, err := f.open(1).Mint(t.Context(), l)
		wantKind(t, err, issuers.Refused)
		if err := f.gone(t.Context(), l); err != nil {
			t.Error(err)
		}
	}
}

// Each of the broker's rights that is gone while leases live gives an error, never
// a receipt.
func TestMissingRightIsNoReceipt(t *testing.T) {
	f := newFixture(t, shared)
	l := lease(allow("read", "database/creds/app"))
	f.mint(f.open(1), l)
	for _, line := range []string{"auth/token/lookup\"", "auth/token/revoke\"", "sys/leases/lookup\"", "sys/leases/revoke/database/*\""} {
		policy := strings.ReplaceAll(block("broker-policy"), line, "no/such\"")
		if err := shared.Policy(t.Context(), "mayfly-lame", policy); err != nil {
			t.Fatal(err)
		}
		token, err := shared.Token(t.Context(), []string{"mayfly-lame", "self"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		g := *f
		g.secrets = map[string]secret.Text{vault.SecretToken: secret.New(token), vault.SecretMark: f.secrets[vault.SecretMark]}
		is := g.open(1)
		out := is.Withdraw(t.Context(), []issuers.Lease{l})
		wantKind(t, out[0].Err, issuers.Refused)
		if strings.Contains(line, "lookup\"") {
			wantKind(t, is.Extend(t.Context(), l), issuers.Refused)
		}
	}
	f.withdraw(f.open(2), l)
	if err := f.gone(t.Context(), l); err != nil {
		t.Error(err)
	}
}
