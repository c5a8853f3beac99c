package vault_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/postgres/pgtest"
	"github.com/mayfly-broker/mayfly/issuers/vault"
	"github.com/mayfly-broker/mayfly/issuers/vault/vaulttest"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

// shared is the Vault of all tests that do not stop it, and database the real
// system behind it and every other: what Vault gives is used there.
var (
	shared   *vaulttest.Server
	database *pgtest.Server
)

func TestMain(m *testing.M) {
	os.Exit(func() int {
		ctx := context.Background()
		fail := func(err error) int {
			fmt.Fprintln(os.Stderr, "vault tests:", err)
			return 1
		}
		dir, err := os.MkdirTemp("", "vault-tests-")
		if err != nil {
			return fail(err)
		}
		defer func() { _ = os.RemoveAll(dir) }()
		if database, err = pgtest.Run(ctx, dir, pgtest.Setting("max_connections", "300")); err != nil {
			return fail(err)
		}
		defer func() { _ = database.Close() }()
		if shared, err = vaulttest.Run(ctx); err != nil {
			return fail(err)
		}
		defer func() { _ = shared.Close() }()
		if err := furnish(ctx, shared); err != nil {
			return fail(err)
		}
		return m.Run()
	}())
}

// block reads a block of the page that operators read.
func block(name string) string {
	page, err := os.ReadFile("../../docs/issuers/vault.md")
	if err != nil {
		panic(err)
	}
	_, rest, ok := strings.Cut(string(page), "```hcl "+name+"\n")
	text, _, ok2 := strings.Cut(rest, "\n```")
	if !ok || !ok2 {
		panic("the page has no block " + name)
	}
	return text
}

// more is what the tests' other engines need beside the page's rules.
const (
	moreBroker = `
path "sys/leases/renew/pki/*"  { capabilities = ["update"] }
path "sys/leases/revoke/pki/*" { capabilities = ["update"] }
path "sys/leases/revoke/ssh/*" { capabilities = ["update"] }`
	moreLeases = `
path "pki/issue/*"   { capabilities = ["update"] }
path "ssh/creds/*"   { capabilities = ["update"] }
path "secret/data/*" { capabilities = ["read"] }
path "kv/*"          { capabilities = ["read"] }`
	// of Vault's policy default the broker needs this; the tests give nothing else of it
	self = `
path "auth/token/lookup-self"  { capabilities = ["read"] }
path "auth/token/renew-self"   { capabilities = ["update"] }
path "auth/token/revoke-self"  { capabilities = ["update"] }
path "sys/capabilities-self"   { capabilities = ["update"] }`
)

const createRole = `CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'`

// furnish gives a Vault its engines, policies and token role.
func furnish(ctx context.Context, s *vaulttest.Server) error {
	put := func(path string, body map[string]any) error {
		if err := s.Call(ctx, http.MethodPut, path, s.Root, body, nil); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		return nil
	}
	type step struct {
		path string
		body map[string]any
	}
	role := func(name string, statements []string, ttl, longest string) step {
		return step{"database/roles/" + name, map[string]any{"db_name": "pg", "creation_statements": statements, "default_ttl": ttl, "max_ttl": longest}}
	}
	for _, m := range []string{"database", "pki", "ssh"} {
		if err := put("sys/mounts/"+m, map[string]any{"type": m}); err != nil {
			return err
		}
	}
	for _, x := range []step{
		{"sys/mounts/kv", map[string]any{"type": "kv"}},
		{"sys/mounts/secret", map[string]any{"type": "kv", "options": map[string]any{"version": "2"}}},
		{"sys/auth/approle", map[string]any{"type": "approle"}},
		{"sys/auth/cert", map[string]any{"type": "cert"}},
		{"sys/auth/jwt", map[string]any{"type": "jwt"}},
		{"database/config/pg", map[string]any{
			"plugin_name": "postgresql-database-plugin", "allowed_roles": "*", "username": "admin", "password": database.Password,
			"connection_url":    "postgresql://{{username}}:{{password}}@" + database.Address() + "/postgres?sslmode=disable",
			"username_template": "{{.DisplayName}}-{{random 8}}", "max_open_connections": 20,
		}},
		role("app", []string{createRole}, "1h", "24h"),
		role("other", []string{createRole}, "5m", "24h"),
		role("brief", []string{createRole}, "1m", "2m"),
		role("slow", []string{"SELECT pg_sleep(4)", createRole}, "1h", "24h"),
		{"kv/canary", map[string]any{"password": "the canary of the old store"}},
		{"kv/plain", map[string]any{"password": "a password of the old store", "user": "somebody who is known", "port": 5432, "list": []string{"one", "two"}}},
		{"pki/root/generate/internal", map[string]any{"common_name": "vault tests", "ttl": "100h"}},
		{"pki/roles/web", map[string]any{"allow_any_name": true, "max_ttl": "2h", "key_type": "ec", "key_bits": 256}},
		{"pki/roles/leased", map[string]any{"allow_any_name": true, "max_ttl": "2h", "ttl": "2h", "key_type": "ec", "key_bits": 256, "generate_lease": true}},
		{"ssh/roles/otp", map[string]any{"key_type": "otp", "default_user": "ubuntu", "cidr_list": "127.0.0.0/8"}},
		{"sys/policies/acl/mayfly-broker", map[string]any{"policy": block("broker-policy") + moreBroker}},
		{"sys/policies/acl/mayfly-leases", map[string]any{"policy": block("leases-policy") + moreLeases}},
		{"sys/policies/acl/self", map[string]any{"policy": self}},
		{"auth/token/roles/mayfly", map[string]any{"allowed_policies": "mayfly-leases,mayfly-ended", "orphan": true, "renewable": true, "token_type": "service"}},
	} {
		if err := put(x.path, x.body); err != nil {
			return err
		}
	}
	// the versioned store is not ready at once
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 500 {
		err := put("secret/data/app", map[string]any{"data": map[string]any{"password": "a password of the new store"}})
		if err == nil {
			return nil
		}
		<-tick.C
	}
	return errors.New("the versioned store never became ready")
}

// fixture is a Vault and what is needed to open it as a target.
type fixture struct {
	t       testing.TB
	server  *vaulttest.Server
	spec    map[string]any
	secrets map[string]secret.Text
	log     *slog.Logger
}

func newFixture(t testing.TB, s *vaulttest.Server) *fixture {
	t.Helper()
	secrets, err := vault.Kind{}.MakeSecrets(nil)
	if err != nil {
		t.Fatal(err)
	}
	token, err := s.Token(t.Context(), []string{"mayfly-broker", "self"}, map[string]any{"period": "1h"})
	if err != nil {
		t.Fatal(err)
	}
	secrets[vault.SecretToken] = secret.New(token)
	f := &fixture{t: t, server: s, secrets: secrets, log: slog.New(slog.NewTextHandler(t.Output(), nil)), spec: map[string]any{"address": s.Address}}
	if s.CAPEM != "" {
		f.spec["tls"] = map[string]any{"ca": s.CAPEM}
	}
	return f
}

func (f *fixture) target(term uint64) issuers.Target {
	f.t.Helper()
	raw, err := json.Marshal(f.spec)
	if err != nil {
		f.t.Fatal(err)
	}
	return issuers.Target{Name: "legacy", Spec: raw, Secrets: f.secrets, Term: term, Log: f.log}
}

func (f *fixture) open(term uint64) *vault.Issuer {
	f.t.Helper()
	i, err := vault.Kind{}.Open(f.target(term))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = i.Close() })
	return i.(*vault.Issuer)
}

// allow is a scope of one detail.
func allow(action string, locations ...string) scope.Scope {
	return scope.Scope{{Type: "vault", Actions: []string{action}, Locations: locations}}
}

func lease(s scope.Scope) issuers.Lease { return issuertest.NewLease(vault.Kind{}, s) }

func (f *fixture) mint(is issuers.Issuer, l issuers.Lease) issuers.Credential {
	f.t.Helper()
	c, err := is.Mint(f.t.Context(), l)
	if err != nil {
		f.t.Fatalf("Mint: %v", err)
	}
	return c
}

func (f *fixture) withdraw(is issuers.Issuer, l issuers.Lease) issuers.Receipt {
	f.t.Helper()
	out := is.Withdraw(f.t.Context(), []issuers.Lease{l})
	if out[0].Err != nil {
		f.t.Fatalf("Withdraw: %v", out[0].Err)
	}
	return out[0].Receipt
}

// use logs in to the database with every account that the credential holds.
func use(ctx context.Context, c issuers.Credential) error {
	n := 0
	for field, user := range c.Public {
		prefix, ok := strings.CutSuffix(field, "username")
		if !ok {
			continue
		}
		n++
		conn, err := pgx.Connect(ctx, database.URL(user, c.Secret[prefix+"password"].Reveal(), "postgres"))
		if err != nil {
			return err
		}
		if err := conn.Close(ctx); err != nil {
			return err
		}
	}
	if n == 0 {
		return errors.New("the credential holds no account")
	}
	return nil
}

// accounts counts what the database has of a lease.
func accounts(ctx context.Context, l issuers.Lease) (int, error) {
	conn, err := pgx.Connect(ctx, database.URL("admin", database.Password, "postgres"))
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close(ctx) }()
	var n int
	err = conn.QueryRow(ctx, "SELECT count(*) FROM pg_roles WHERE rolname LIKE '%' || $1 || '%'", l.ID).Scan(&n)
	return n, err
}

func (f *fixture) accounts(l issuers.Lease) int {
	f.t.Helper()
	n, err := accounts(context.Background(), l)
	if err != nil {
		f.t.Fatal(err)
	}
	return n
}

// token is what Vault itself, asked as root, says of a lease's token; nil if it
// knows none.
func (f *fixture) token(ctx context.Context, l issuers.Lease) (map[string]any, error) {
	var answer struct {
		Data map[string]any `json:"data"`
	}
	err := f.server.Call(ctx, http.MethodPut, "auth/token/lookup", f.server.Root, map[string]any{"token": vault.TokenOf(f.secrets[vault.SecretMark], l.ID)}, &answer)
	var status *vaulttest.Status
	if errors.As(err, &status) && status.Code == http.StatusForbidden {
		return nil, nil
	}
	return answer.Data, err
}

// gone asks Vault and the database for anything of a lease. A tombstone is nothing.
func (f *fixture) gone(ctx context.Context, l issuers.Lease) error {
	data, err := f.token(ctx, l)
	if err != nil {
		return err
	}
	if data != nil && fmt.Sprint(data["policies"]) != "[mayfly-ended]" {
		return fmt.Errorf("Vault has a token of %s with %v", l.Name, data["policies"])
	}
	n, err := accounts(ctx, l)
	if err == nil && n > 0 {
		err = fmt.Errorf("the database has %d accounts of %s", n, l.Name)
	}
	return err
}

// eventually polls until ok, and fails after a minute.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(time.Minute)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("did not happen within a minute: %s", what)
		}
	}
}

func wantKind(t testing.TB, err error, kind issuers.ErrorKind) {
	t.Helper()
	if err == nil || issuers.KindOf(err) != kind {
		t.Fatalf("error %v; want one of kind %s", err, kind)
	}
}
