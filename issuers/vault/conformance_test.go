package vault_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/vault"
	"github.com/mayfly-broker/mayfly/issuers/vault/vaulttest"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

// The page's own policies are enough for everything.
func TestConformance(t *testing.T) {
	f := newFixture(t, shared)
	issuertest.Run(t, f.harness())
}

func TestConformanceWithTLSAndAppRole(t *testing.T) {
	s := vaulttest.Start(t, vaulttest.ClientCertificates())
	if err := furnish(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	f := newFixture(t, s)
	f.appRole("30s")
	cert, key, err := s.ClientCertificate("mayfly")
	if err != nil {
		t.Fatal(err)
	}
	f.spec["tls"] = map[string]any{"ca": s.CAPEM, "client_cert": cert}
	f.secrets[vault.SecretClientKey] = secret.New(key)
	issuertest.Run(t, f.harness())
}

// appRole has the broker log in by AppRole, with tokens that live that long.
func (f *fixture) appRole(ttl string) {
	f.t.Helper()
	f.server.Do(f.t, http.MethodPut, "auth/approle/role/mayfly", map[string]any{"token_policies": "mayfly-broker", "token_ttl": ttl})
	role := f.server.Do(f.t, http.MethodGet, "auth/approle/role/mayfly/role-id", nil)["role_id"].(string)
	id := f.server.Do(f.t, http.MethodPut, "auth/approle/role/mayfly/secret-id", nil)["secret_id"].(string)
	f.spec["auth"] = map[string]any{"method": "approle", "role_id": role}
	delete(f.secrets, vault.SecretToken)
	f.secrets[vault.SecretSecretID] = secret.New(id)
}

func (f *fixture) harness() issuertest.Harness {
	f.t.Helper()
	elsewhere := maps.Clone(f.spec)
	elsewhere["address"] = strings.SplitN(f.server.Address, ":", 2)[0] + "://127.0.0.1:1"
	nowhere, err := json.Marshal(elsewhere)
	if err != nil {
		f.t.Fatal(err)
	}
	return issuertest.Harness{
		Kind:     vault.Kind{},
		Target:   f.target(1),
		Scope:    allow("read", "database/creds/app", "database/creds/other"),
		Narrower: allow("read", "database/creds/app"),
		Invalid:  invalid(),
		Accepted: []scope.Scope{allow("write", "pki/issue/leased?common_name=a.example"), allow("write", "ssh/creds/otp?ip=127.0.0.1")},
		Hostile:  hostile(),
		Intact: func(ctx context.Context) error {
			return errors.Join(
				f.server.Call(ctx, http.MethodGet, "kv/canary", f.server.Root, nil, nil),
				f.server.Call(ctx, http.MethodGet, "auth/token/roles/mayfly", f.server.Root, nil, nil),
				f.server.Call(ctx, http.MethodGet, "sys/policies/acl/mayfly-leases", f.server.Root, nil, nil),
			)
		},
		Use:          use,
		Gone:         f.gone,
		RefusesOlder: true,
		Unreachable:  nowhere,
	}
}

func invalid() []scope.Scope {
	out := []scope.Scope{
		{{Type: "vault", Actions: []string{"read"}}},
		{{Type: "vault", Identifier: "x", Actions: []string{"read"}, Locations: []string{"database/creds/app"}}},
		{{Type: "vault", Actions: []string{"read"}, Locations: []string{"database/creds/app"}, Privileges: []string{"x"}}},
		{{Type: "vault", Actions: []string{"read"}, Locations: []string{"database/creds/app"}, Datatypes: []string{"x"}}},
		{{Type: "vault", Actions: []string{"read"}, Locations: []string{"database/creds/app"}, Tables: []scope.Table{{Name: "a.b"}}}},
		allow("issue", "pki/issue/web?common_name=a&ttl=90h"), allow("issue", "pki/issue/web?not_after=2099-01-01"),
	}
	for _, action := range []string{"delete", "list", "sudo", "patch", "create", "update"} {
		out = append(out, allow(action, "database/creds/app"))
	}
	for _, location := range []string{
		"*", "database", "database/", "/database/creds/app", "database//creds", "database/creds/app/", "database/creds/../config/pg", "database/./creds", "database/...",
		"sys/mounts", "sys/leases/lookup", "auth/token/create", "auth/token/create/mayfly", "identity/entity", "cubbyhole/mayfly/x", "cubbyhole/a", "SYS/mounts", "Auth/token/create",
		"team/sys/policies/acl/root", "team/auth/token/create", "sys/*", "auth/*", "team/sys/*", "database/creds*", "database/*/app", "database/+/app", "database/creds/+",
		"database/creds/app%2f..", "database/creds/app?", "database/creds/app?b=1&a=2", "database/creds/app?a=1&a=2", "database/creds/app?a", "database/creds/app?a=*", "database/creds/app?a=%0a",
		"database/creds/app?A=1", "database/creds/app?list=true", "database/creds/app?help=1", "database/creds/app?scan=true", "database/creds/app?a=b c", "database/creds/app#x", "database/creds/a b", `database\creds\app`, "database/creds/app;x", "https://elsewhere/v1/x/y",
		"v1/../sys/mounts", "x/..", "./x/y",
	} {
		out = append(out, allow("read", location))
	}
	return out
}

// hostile are names that try to leave their path, or to become another request.
func hostile() []scope.Scope {
	var out []scope.Scope
	for _, name := range append(issuertest.HostileStrings(), "app\r\nX-Vault-Token: root", "app HTTP/1.1", "%2e%2e/sys", "..%2f..", "app?list=true", "app&x=1", "{{identity.entity.id}}") {
		out = append(out, allow("read", "database/creds/"+name), allow("read", name), allow(name, "database/creds/app"), allow("write", "pki/issue/leased?x="+name+"&common_name=a"))
	}
	return out
}

// Vault's own metadata of a lease's token say whose it is, whatever the words are.
func TestTokenTellsWhoseItIs(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	l := lease(allow("read", "database/creds/app"))
	l.Principal, l.Role = "workload:a\nb", strings.Repeat("ü", 3000)
	f.mint(is, l)
	data, err := f.token(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	meta := data["meta"].(map[string]any)
	if meta["mayfly_lease"] != l.ID || meta["mayfly_principal"] != "workload:a?b" || len(meta["mayfly_role"].(string)) > 128 || data["display_name"] != "token-"+l.Name {
		t.Errorf("the token says %v", data)
	}
	if fmt.Sprint(data["policies"]) != "[mayfly-leases]" || data["orphan"] != true {
		t.Errorf("the token has %v, orphan: %v", data["policies"], data["orphan"])
	}
	if r := f.withdraw(is, l); r.Proof != issuers.ProofAbsent || !strings.Contains(r.Detail, "leases revoked: 1") {
		t.Errorf("%+v", r)
	}
}
