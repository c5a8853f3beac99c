package redis_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/redis"
	"github.com/mayfly-broker/mayfly/issuers/redis/redistest"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

// shared is the server of all tests that do not stop it.
var shared *redistest.Server

func TestMain(m *testing.M) {
	os.Exit(func() int {
		s, err := redistest.Run(context.Background(), redistest.Config("acl-pubsub-default allchannels"))
		if err != nil {
			fmt.Fprintln(os.Stderr, "redis tests:", err)
			return 1
		}
		shared = s
		code := m.Run()
		if err := s.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "redis tests:", err)
			return 1
		}
		return code
	}())
}

// fixture is a server and what is needed to open it as a target.
type fixture struct {
	t       testing.TB
	server  *redistest.Server
	admin   *goredis.Client
	spec    map[string]any
	secrets map[string]secret.Text
	log     *slog.Logger
}

func newFixture(t testing.TB, s *redistest.Server) *fixture {
	t.Helper()
	secrets, err := redis.Kind{}.MakeSecrets(nil)
	if err != nil {
		t.Fatal(err)
	}
	secrets[redis.SecretPassword] = secret.New(s.Password)
	f := &fixture{
		t: t, server: s, admin: s.Admin(t), secrets: secrets, log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		spec: map[string]any{"address": s.Address(), "tls": map[string]any{"mode": "disable"}, "admin": map[string]any{"username": redistest.AdminUser}},
	}
	if s.CAPEM != "" {
		f.spec["tls"] = map[string]any{"mode": "verify-full", "ca": s.CAPEM}
	}
	return f
}

// fill puts the keys there that tests read.
func (f *fixture) fill() {
	f.t.Helper()
	for _, k := range []string{"orders:1", "orders:2", "secret:1"} {
		if err := f.admin.Set(f.t.Context(), k, "value", 0).Err(); err != nil {
			f.t.Fatal(err)
		}
	}
}

func (f *fixture) target(term uint64) issuers.Target {
	f.t.Helper()
	raw, err := json.Marshal(f.spec)
	if err != nil {
		f.t.Fatal(err)
	}
	return issuers.Target{Name: "cache", Spec: raw, Secrets: f.secrets, Term: term, Log: f.log}
}

func (f *fixture) open(term uint64) *redis.Issuer {
	f.t.Helper()
	i, err := redis.Kind{}.Open(f.target(term))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = i.Close() })
	return i.(*redis.Issuer)
}

// allow is a scope of one detail.
func allow(actions []string, locations ...string) scope.Scope {
	return scope.Scope{{Type: "redis", Actions: actions, Locations: locations}}
}

func lease(s scope.Scope) issuers.Lease { return issuertest.NewLease(redis.Kind{}, s) }

func (f *fixture) mint(is issuers.Issuer, l issuers.Lease) issuers.Credential {
	f.t.Helper()
	c, err := is.Mint(f.t.Context(), l)
	if err != nil {
		f.t.Fatalf("Mint: %v", err)
	}
	return c
}

func (f *fixture) withdraw(is issuers.Issuer, leases ...issuers.Lease) []issuers.Outcome {
	f.t.Helper()
	out := is.Withdraw(f.t.Context(), leases)
	for i, o := range out {
		if o.Err != nil {
			f.t.Fatalf("Withdraw %s: %v", leases[i].Name, o.Err)
		}
		if o.Receipt.Proof != issuers.ProofAbsent {
			f.t.Fatalf("Withdraw %s: proof %q", leases[i].Name, o.Receipt.Proof)
		}
	}
	return out
}

// dial opens a client with a credential as delivered, on one connection.
func (f *fixture) dial(c issuers.Credential) (*goredis.Client, error) {
	o, err := goredis.ParseURL(c.Secret["url"].Reveal())
	if err != nil {
		return nil, err
	}
	o.Protocol, o.DisableIdentity, o.MaxRetries, o.DialerRetries, o.PoolSize, o.MaxActiveConns, o.PipelinePoolSize = 2, true, -1, 1, 1, 1, -1
	o.ContextTimeoutEnabled = true
	if f.server.CAPEM != "" {
		o.TLSConfig = f.server.Options("", "").TLSConfig
	}
	return goredis.NewClient(o), nil
}

// as is a client with a credential that ends with the test.
func (f *fixture) as(c issuers.Credential) *goredis.Client {
	f.t.Helper()
	r, err := f.dial(c)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = r.Close() })
	return r
}

func (f *fixture) exists(name string) bool {
	f.t.Helper()
	return userExists(f.t, f.admin, name)
}

func userExists(t testing.TB, admin *goredis.Client, name string) bool {
	t.Helper()
	users, err := admin.Do(context.Background(), "ACL", "USERS").StringSlice()
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range users {
		if u == name {
			return true
		}
	}
	return false
}

// eventually polls until ok, and fails after a minute.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
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
