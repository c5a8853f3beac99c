package postgres_test

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/postgres"
	"github.com/mayfly-broker/mayfly/issuers/postgres/pgtest"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

// shared is the server of all tests that do not stop it. Each test works in a
// database of its own.
var shared *pgtest.Server

func TestMain(m *testing.M) {
	os.Exit(func() int {
		s, err := pgtest.Run(context.Background(), "")
		if err != nil {
			fmt.Fprintln(os.Stderr, "postgres tests:", err)
			return 1
		}
		shared = s
		code := m.Run()
		if err := s.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "postgres tests:", err)
			return 1
		}
		return code
	}())
}

const schemaSQL = `
CREATE TABLE orders (id serial PRIMARY KEY, customer text, total int);
INSERT INTO orders (customer, total) VALUES ('ann', 10), ('bo', 20);
CREATE TABLE secrets (id int, body text);
INSERT INTO secrets VALUES (1, 'x');
CREATE SCHEMA hr; CREATE TABLE hr.staff (id int, name text, salary int); INSERT INTO hr.staff VALUES (1, 'kim', 9);`

// fixture is a database of its own and what is needed to open it as a target.
type fixture struct {
	t        testing.TB
	server   *pgtest.Server
	database string
	spec     map[string]any
	secrets  map[string]secret.Text
	log      *slog.Logger
}

func newFixture(t testing.TB, s *pgtest.Server) *fixture {
	t.Helper()
	db := "d_" + issuertest.NewLeaseID()
	s.Exec(t, "postgres", `CREATE DATABASE "`+db+`"`)
	s.Exec(t, db, schemaSQL)
	f := &fixture{
		t: t, server: s, database: db,
		spec: map[string]any{
			"address": s.Address(), "database": db, "tls": map[string]any{"mode": "disable"},
			"admin": map[string]any{"username": pgtest.AdminUser}, "scram_iterations": 16,
		},
		secrets: map[string]secret.Text{postgres.SecretPassword: secret.New(s.Password)},
		log:     slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	return f
}

func (f *fixture) target(term uint64) issuers.Target {
	f.t.Helper()
	raw, err := json.Marshal(f.spec)
	if err != nil {
		f.t.Fatal(err)
	}
	return issuers.Target{Name: "orders", Spec: raw, Secrets: f.secrets, Term: term, Log: f.log}
}

func (f *fixture) open(term uint64) *postgres.Issuer {
	f.t.Helper()
	i, err := postgres.Kind{}.Open(f.target(term))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = i.Close() })
	return i.(*postgres.Issuer)
}

func (f *fixture) scope(actions []string, tables ...scope.Table) scope.Scope {
	f.t.Helper()
	s, err := scope.Scope{{Type: "database", Identifier: f.database, Actions: actions, Tables: tables}}.Normalise()
	if err != nil {
		f.t.Fatal(err)
	}
	return s
}

func (f *fixture) readonly() scope.Scope {
	return f.scope([]string{"select"}, scope.Table{Name: "public.*"})
}

func (f *fixture) lease(s scope.Scope) issuers.Lease {
	return issuertest.NewLease(postgres.Kind{}, s)
}

// connect logs in with a credential as delivered; a server with TLS has a CA that
// the machine does not know, which a client takes from the credential.
func (f *fixture) connect(ctx context.Context, c issuers.Credential) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(c.Secret["url"].Reveal())
	if err != nil {
		return nil, err
	}
	if ca := c.Public["ca"]; ca != "" {
		cfg.TLSConfig.RootCAs = x509.NewCertPool()
		cfg.TLSConfig.RootCAs.AppendCertsFromPEM([]byte(ca))
	}
	return pgx.ConnectConfig(ctx, cfg)
}

// login opens a session with a credential; the caller closes it, or the test.
func (f *fixture) login(c issuers.Credential) (*pgx.Conn, error) {
	conn, err := f.connect(f.t.Context(), c)
	if err == nil {
		f.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	}
	return conn, err
}

func (f *fixture) mustLogin(c issuers.Credential) *pgx.Conn {
	f.t.Helper()
	conn, err := f.login(c)
	if err != nil {
		f.t.Fatalf("log in as the minted account: %v", err)
	}
	return conn
}

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

// count runs a query that yields one number, as the superuser.
func (f *fixture) count(sql string, args ...any) int {
	f.t.Helper()
	var n int
	conn, err := pgx.Connect(f.t.Context(), f.server.URL(pgtest.AdminUser, f.server.Password, f.database))
	if err == nil {
		err = errors.Join(conn.QueryRow(f.t.Context(), sql, args...).Scan(&n), conn.Close(f.t.Context()))
	}
	if err != nil {
		f.t.Fatalf("%s: %v", sql, err)
	}
	return n
}

func (f *fixture) exists(name string) bool {
	f.t.Helper()
	return f.count("SELECT count(*) FROM pg_roles WHERE rolname = $1", name) > 0
}

// eventually polls until ok, and fails after a minute.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
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

// wantTooLate fails the test unless the target's clock refused a call. Nobody waits
// for its answer for longer than a second past the deadline; where this machine was
// slower than that, what the test sees on the target is all there is to see.
func wantTooLate(t testing.TB, err error, deadline time.Time) {
	t.Helper()
	if err != nil && issuers.KindOf(err) == issuers.Unknown && time.Since(deadline) > time.Second {
		return
	}
	wantKind(t, err, issuers.TooLate)
}

func freeze(t testing.TB, s *pgtest.Server) {
	t.Helper()
	if err := s.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Signal(syscall.SIGCONT) }) // a stopped server cannot end
}

func thaw(t testing.TB, s *pgtest.Server) {
	t.Helper()
	if err := s.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
}
