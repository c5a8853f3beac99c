package mysql_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	driver "github.com/go-sql-driver/mysql"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/mysql"
	"github.com/mayfly-broker/mayfly/issuers/mysql/mysqltest"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

// shared is the server of all tests that do not stop it. Each test works in a
// database of its own.
var shared *mysqltest.Server

func TestMain(m *testing.M) {
	os.Exit(func() int {
		s, err := mysqltest.Run(context.Background())
		if err != nil {
			fmt.Fprintln(os.Stderr, "mysql tests:", err)
			return 1
		}
		shared = s
		code := m.Run()
		if err := s.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "mysql tests:", err)
			return 1
		}
		return code
	}())
}

// fixture is a database of its own and what is needed to open it as a target.
type fixture struct {
	t        testing.TB
	server   *mysqltest.Server
	database string
	spec     map[string]any
	secrets  map[string]secret.Text
	log      *slog.Logger
}

func newFixture(t testing.TB, s *mysqltest.Server) *fixture {
	t.Helper()
	// an underscore, so that a grant which is taken for a pattern shows
	db := "d_" + issuertest.NewLeaseID()
	s.Exec(t, "CREATE DATABASE "+db+"; USE "+db+`;
		CREATE TABLE orders (id INT PRIMARY KEY AUTO_INCREMENT, customer TEXT, total INT); INSERT INTO orders (customer, total) VALUES ('ann', 10), ('bo', 20);
		CREATE TABLE secrets (id INT, body TEXT); INSERT INTO secrets VALUES (1, 'x');
		CREATE TABLE staff (id INT, name TEXT, salary INT); INSERT INTO staff VALUES (1, 'kim', 9);
		CREATE FUNCTION seven() RETURNS INT DETERMINISTIC RETURN 7; CREATE PROCEDURE nothing() SELECT 1`)
	f := &fixture{
		t: t, server: s, database: db,
		spec: map[string]any{
			"address": s.Address(), "database": db, "tls": map[string]any{"mode": "disable"}, "admin": map[string]any{"username": mysqltest.AdminUser},
		},
		secrets: map[string]secret.Text{mysql.SecretPassword: secret.New(s.Password)},
		log:     slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	if s.CAPEM != "" {
		f.spec["tls"] = map[string]any{"mode": "verify-full", "ca": s.CAPEM}
	}
	return f
}

// with returns the fixture with one key of its spec changed.
func (f *fixture) with(key string, value any) *fixture {
	g := *f
	g.spec = maps.Clone(f.spec)
	g.spec[key] = value
	return &g
}

func (f *fixture) target(term uint64) issuers.Target {
	f.t.Helper()
	raw, err := json.Marshal(f.spec)
	if err != nil {
		f.t.Fatal(err)
	}
	return issuers.Target{Name: "orders", Spec: raw, Secrets: f.secrets, Term: term, Log: f.log}
}

func (f *fixture) open(term uint64) *mysql.Issuer {
	f.t.Helper()
	i, err := mysql.Kind{}.Open(f.target(term))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = i.Close() })
	return i.(*mysql.Issuer)
}

// scope names tables without their database.
func (f *fixture) scope(actions []string, tables ...scope.Table) scope.Scope {
	f.t.Helper()
	for i := range tables {
		tables[i].Name = f.database + "." + tables[i].Name
	}
	s, err := scope.Scope{{Type: "database", Identifier: f.database, Actions: actions, Tables: tables}}.Normalise()
	if err != nil {
		f.t.Fatal(err)
	}
	return s
}

func (f *fixture) readonly() scope.Scope {
	return f.scope([]string{"select"}, scope.Table{Name: "*"})
}

func (f *fixture) lease(s scope.Scope) issuers.Lease {
	return issuertest.NewLease(mysql.Kind{}, s)
}

// connect logs in with a credential as delivered, on one connection.
func (f *fixture) connect(ctx context.Context, c issuers.Credential) (*session, error) {
	return f.dial(ctx, c.Public["username"], c.Secret["password"].Reveal(), c)
}

func (f *fixture) dial(ctx context.Context, user, password string, c issuers.Credential) (*session, error) {
	cfg := driver.NewConfig()
	cfg.User, cfg.Passwd, cfg.DBName = user, password, c.Public["database"]
	cfg.Net, cfg.Addr, cfg.MultiStatements, cfg.Logger = "tcp", net.JoinHostPort(c.Public["host"], c.Public["port"]), true, &driver.NopLogger{}
	if ca := c.Public["ca"]; ca != "" {
		cfg.TLS = &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "localhost", MinVersion: tls.VersionTLS12}
		cfg.TLS.RootCAs.AppendCertsFromPEM([]byte(ca))
	}
	connector, err := driver.NewConnector(cfg)
	if err != nil {
		return nil, err
	}
	db := sql.OpenDB(connector)
	conn, err := db.Conn(ctx)
	for n := 0; n < 3 && errors.Is(err, driver.ErrMalformPkt); n++ { // one Ed25519 login in 256; see connector.Connect
		conn, err = db.Conn(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return &session{conn, db}, nil
}

// session is one connection of a client, and the suite's view of it.
type session struct {
	*sql.Conn
	db *sql.DB
}

func (s *session) Alive(ctx context.Context) error { return s.PingContext(ctx) }
func (s *session) Close() error                    { return errors.Join(s.Conn.Close(), s.db.Close()) }

func (s *session) must(t testing.TB, text string) {
	t.Helper()
	if _, err := s.ExecContext(t.Context(), text); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

func (s *session) mustNot(t testing.TB, text string) {
	t.Helper()
	if _, err := s.ExecContext(t.Context(), text); err == nil {
		t.Errorf("was allowed: %s", text)
	}
}

func (f *fixture) mustLogin(c issuers.Credential) *session {
	f.t.Helper()
	s, err := f.connect(f.t.Context(), c)
	if err != nil {
		f.t.Fatalf("log in as the minted account: %v", err)
	}
	f.t.Cleanup(func() { _ = s.Close() })
	return s
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

// count runs a query that yields one number, as the administrator.
func (f *fixture) count(query string, args ...any) int {
	f.t.Helper()
	n, err := f.number(f.t.Context(), query, args...)
	if err != nil {
		f.t.Fatalf("%s: %v", query, err)
	}
	return n
}

func (f *fixture) number(ctx context.Context, query string, args ...any) (n int, err error) {
	db, err := f.server.Open(mysqltest.AdminUser, f.server.Password, f.database)
	if err != nil {
		return 0, err
	}
	return n, errors.Join(db.QueryRowContext(ctx, query, args...).Scan(&n), db.Close())
}

func (f *fixture) exists(name string) bool {
	f.t.Helper()
	return f.count("SELECT COUNT(*) FROM mysql.global_priv WHERE User = ?", name) > 0
}

// gone asks for every trace of a lease.
func (f *fixture) gone(ctx context.Context, l issuers.Lease) error {
	n, err := f.number(ctx, `SELECT (SELECT COUNT(*) FROM mysql.global_priv WHERE User = ?) + (SELECT COUNT(*) FROM information_schema.processlist WHERE user = ?)
		+ (SELECT COUNT(*) FROM mysql.roles_mapping WHERE User = ?) + (SELECT COUNT(*) FROM mysql.db WHERE User = ?) + (SELECT COUNT(*) FROM mysql.tables_priv WHERE User = ?)`,
		l.Name, l.Name, l.Name, l.Name, l.Name)
	if err == nil && n != 0 {
		err = fmt.Errorf("%d entries of %s in the catalogue", n, l.Name)
	}
	return err
}

// leastPrivilege makes an admin account as the documentation says.
func (f *fixture) leastPrivilege() {
	f.t.Helper()
	raw, err := os.ReadFile("../../docs/issuers/mysql.md")
	if err != nil {
		f.t.Fatal(err)
	}
	_, text, ok := strings.Cut(string(raw), "```sql least-privilege\n")
	text, _, end := strings.Cut(text, "```")
	if !ok || !end {
		f.t.Fatal("docs/issuers/mysql.md has no block of SQL called least-privilege")
	}
	text = strings.ReplaceAll(text, "`orders`", "`"+strings.ReplaceAll(f.database, "_", `\_`)+"`")
	user := "m" + issuertest.NewLeaseID()[:12]
	text = strings.ReplaceAll(text, "mayfly@", user+"@")
	f.server.Exec(f.t, text+"ALTER USER "+user+"@'%' IDENTIFIED BY 'mayfly-admin-password'")
	f.spec["admin"] = map[string]any{"username": user}
	f.secrets = map[string]secret.Text{mysql.SecretPassword: secret.New("mayfly-admin-password")}
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
		t.Fatalf("%v; want an error of kind %s", err, kind)
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
