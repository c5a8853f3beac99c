package postgres_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/postgres"
	"github.com/mayfly-broker/mayfly/issuers/postgres/pgtest"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

// Law 3: the account can do what its scope says, and nothing beside it.
func TestLaw3AccountDoesNoMoreThanItsScope(t *testing.T) {
	f := newFixture(t, shared)
	f.server.Exec(t, f.database, `CREATE FUNCTION hr.f() RETURNS int LANGUAGE sql AS 'SELECT 1'; REVOKE EXECUTE ON FUNCTION hr.f() FROM PUBLIC`)
	is := f.open(1)
	all := []string{
		"SELECT id FROM orders", "SELECT customer FROM orders", "INSERT INTO orders (customer, total) VALUES ('x', 1)", "UPDATE orders SET total = 1",
		"DELETE FROM orders", "TRUNCATE orders", "SELECT * FROM secrets", "SELECT name FROM hr.staff", "SELECT salary FROM hr.staff", "SELECT hr.f()",
		"CREATE TABLE hr.x (id int)", "CREATE TABLE public.x (id int)", "CREATE ROLE x", "SELECT * FROM pg_authid", "CREATE SCHEMA x",
	}
	for _, c := range []struct {
		scope   scope.Scope
		allowed []int
	}{
		{f.scope([]string{"select"}, scope.Table{Name: "public.orders", Columns: []string{"id"}}), []int{0}},
		{f.scope([]string{"select"}, scope.Table{Name: "public.orders"}), []int{0, 1}},
		{f.scope([]string{"select", "insert"}, scope.Table{Name: "public.orders"}), []int{0, 1, 2}},
		{f.scope([]string{"select"}, scope.Table{Name: "public.*"}), []int{0, 1, 6}},
		{f.scope([]string{"select", "insert", "update", "delete"}, scope.Table{Name: "public.*"}), []int{0, 1, 2, 3, 4, 6}},
		{f.scope([]string{"select"}, scope.Table{Name: "hr.staff", Columns: []string{"id", "name"}}), []int{7}},
		{f.scope([]string{"execute"}, scope.Table{Name: "hr.f"}), []int{9}},
		{f.scope([]string{"execute"}, scope.Table{Name: "hr.*"}), []int{9}},
		{f.scope([]string{"usage"}, scope.Table{Name: "hr.*"}), nil},
		{f.scope([]string{"create"}, scope.Table{Name: "hr.*"}), []int{10}},
		{f.scope([]string{"select"}), []int{0, 1, 6, 7, 8}},
		{f.scope([]string{"temporary"}), nil},
	} {
		l := f.lease(c.scope)
		conn := f.mustLogin(f.mint(is, l))
		for i, sql := range all {
			tx, err := conn.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			_, err = tx.Exec(t.Context(), sql)
			want := false
			for _, a := range c.allowed {
				want = want || a == i
			}
			if (err == nil) != want {
				t.Errorf("%s: %s: %v; want allowed %t", c.scope, sql, err, want)
			}
			if err := tx.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		f.withdraw(is, l)
	}
}

func TestMissingTableIsRefusedAndLeavesNothing(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	for _, s := range []scope.Scope{
		f.scope([]string{"select"}, scope.Table{Name: "public.absent"}),
		f.scope([]string{"select"}, scope.Table{Name: "absent.*"}),
		f.scope([]string{"select"}, scope.Table{Name: "public.orders", Columns: []string{"absent"}}),
		f.scope([]string{"execute"}, scope.Table{Name: "public.absent"}),
		f.scope([]string{"create"}, scope.Table{Name: "absent.*"}),
	} {
		l := f.lease(s)
		_, err := is.Mint(t.Context(), l)
		wantKind(t, err, issuers.BadScope)
		if f.exists(l.Name) {
			t.Errorf("%s: the account stands", s)
		}
	}
}

// An admin account without rights is told what is missing, and what the check
// proposes makes minting work.
func TestCheckProposesWhatMakesMintingWork(t *testing.T) {
	f := newFixture(t, shared)
	name := "poor_" + f.database
	f.server.Exec(t, f.database, fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD 'poor-password'", name))
	f.spec["admin"] = map[string]any{"username": name}
	f.secrets = map[string]secret.Text{postgres.SecretPassword: secret.New("poor-password")}
	is := f.open(1)
	l := f.lease(f.scope([]string{"select", "insert"}, scope.Table{Name: "public.*"}))
	_, err := is.Mint(t.Context(), l)
	wantKind(t, err, issuers.Refused)

	findings, err := is.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	failing := 0
	for _, x := range findings {
		if !x.OK && !x.Warning {
			failing++
		}
		if x.Fix != "" {
			f.server.Exec(t, f.database, x.Fix)
		}
	}
	if failing < 3 {
		t.Errorf("the check of an account without rights: %+v", findings)
	}
	findings, err = is.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range findings {
		if !x.OK {
			t.Errorf("after its own fixes: %+v", x)
		}
	}
	conn := f.mustLogin(f.mint(is, l))
	mustExec(t, conn, "INSERT INTO orders (customer, total) VALUES ('x', 1)")
	f.withdraw(is, l)
	if err := is.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Login by certificate: the account has no password, and its end ends the
// certificate's use too, expired or not (HAZARDS 13).
func TestHazard13CertificateLogin(t *testing.T) {
	server := pgtest.Start(t, pgtest.TLS(), pgtest.HBA("hostssl all /^mayfly_ 127.0.0.1/32 cert", "hostssl all +certified 127.0.0.1/32 cert"))
	f := newFixture(t, server)
	server.Exec(t, f.database, "CREATE ROLE certified NOLOGIN")
	f.spec["login"] = "certificate"
	f.spec["tls"] = map[string]any{"mode": "verify-ca", "ca": server.CAPEM}
	is := f.open(1)
	l := f.lease(f.readonly())
	c := f.mint(is, l)
	if _, ok := c.Secret["password"]; ok {
		t.Error("a certificate login has a password")
	}
	if n := f.count("SELECT count(*) FROM pg_authid WHERE rolname = $1 AND rolpassword IS NULL", l.Name); n != 1 {
		t.Error("the account has a password on the target")
	}
	// before version 16 pg_hba.conf knows no patterns; a group does there
	server.Exec(t, f.database, "GRANT certified TO "+l.Name)
	login := func(notAfter time.Time) (*pgx.Conn, error) {
		certPEM, keyPEM, err := server.ClientCertificate(l.Name, notAfter)
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := pgx.ParseConfig(c.Secret["url"].Reveal())
		if err != nil {
			t.Fatal(err)
		}
		if cfg.TLSConfig, err = server.ClientTLS(certPEM, keyPEM); err != nil {
			t.Fatal(err)
		}
		return pgx.ConnectConfig(t.Context(), cfg)
	}
	conn, err := login(l.NotAfter)
	if err != nil {
		t.Fatalf("log in by certificate: %v", err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	mustExec(t, conn, "SELECT * FROM orders")
	if c, err := login(time.Now().Add(-time.Minute)); err == nil {
		_ = c.Close(t.Context())
		t.Error("an expired certificate logs in")
	}
	if out := f.withdraw(is, l); out[0].Receipt.SessionsEnded != 1 {
		t.Errorf("receipt %+v", out[0].Receipt)
	}
	if c, err := login(l.NotAfter); err == nil {
		_ = c.Close(t.Context())
		t.Error("the certificate logs in after the end")
	}
}

func TestTLSVerifies(t *testing.T) {
	server := pgtest.Start(t, pgtest.TLS())
	other := pgtest.Start(t, pgtest.TLS())
	f := newFixture(t, server)
	_, port, _ := strings.Cut(server.Address(), ":")
	for _, c := range []struct {
		name, address, mode, ca string
		ok                      bool
	}{
		{"full", "localhost:" + port, "verify-full", server.CAPEM, true},
		{"full, by address", server.Address(), "verify-full", server.CAPEM, true},
		{"ca", server.Address(), "verify-ca", server.CAPEM, true},
		{"ca of another", server.Address(), "verify-ca", other.CAPEM, false},
		{"full, ca of another", server.Address(), "verify-full", other.CAPEM, false},
		{"full, system's CAs", server.Address(), "verify-full", "", false},
		{"full, another name", "127.0.0.2:" + port, "verify-full", server.CAPEM, false},
		{"no TLS on a server that asks for it", server.Address(), "disable", "", false},
	} {
		f.spec["address"] = c.address
		tls := map[string]any{"mode": c.mode}
		if c.ca != "" {
			tls["ca"] = c.ca
		}
		f.spec["tls"] = tls
		_, err := f.open(1).Check(t.Context())
		if (err == nil) != c.ok {
			t.Errorf("%s: %v; want ok %t", c.name, err, c.ok)
		}
	}
}

// Law 6: neither the server's log, nor ours, nor an error shows a password.
func TestLaw6NoPasswordReachesServerOrLog(t *testing.T) {
	server := pgtest.Start(t, pgtest.Setting("log_statement", "all"), pgtest.Setting("logging_collector", "on"), pgtest.Setting("log_directory", "log"))
	f := newFixture(t, server)
	var said bytes.Buffer
	f.log = slog.New(slog.NewTextHandler(io.MultiWriter(&said, t.Output()), &slog.HandlerOptions{Level: slog.LevelDebug}))
	is := f.open(1)
	l := f.lease(f.readonly())
	c := f.mint(is, l)
	_, err := is.Mint(t.Context(), f.lease(f.scope([]string{"select"}, scope.Table{Name: "public.absent"})))
	password := c.Secret["password"].Reveal()
	log := ""
	if e := f.server.Admin(t, f.database).QueryRow(t.Context(), "SELECT pg_read_file(pg_current_logfile())").Scan(&log); e != nil {
		t.Fatal(e)
	}
	if !strings.Contains(log, l.Name) {
		t.Fatal("the server's log does not show the mint; the test proves nothing")
	}
	for where, text := range map[string]string{"the server's log": log, "our log": said.String(), "an error": fmt.Sprintf("%+v", err), "the credential": fmt.Sprintf("%+v", c)} {
		if strings.Contains(text, password) || strings.Contains(text, server.Password) {
			t.Errorf("%s shows a password", where)
		}
	}
	u, err := url.Parse(c.Secret["url"].Reveal())
	if err != nil || u.User.Username() != l.Name || u.Hostname() != "127.0.0.1" {
		t.Errorf("url: %v %v", u.Redacted(), err)
	}
	for variable, field := range c.Env {
		if _, public := c.Public[field]; !public && c.Secret[field].IsZero() {
			t.Errorf("%s names the field %s, which is empty", variable, field)
		}
	}
}

// Errors of one kind, whatever the server's language.
func TestErrorsAreClassifiedByCodeNotText(t *testing.T) {
	f := newFixture(t, shared)
	f.spec["database"] = "no_such_database"
	_, err := f.open(1).Mint(t.Context(), f.lease(scope.Scope{{Type: "database", Actions: []string{"select"}}}))
	wantKind(t, err, issuers.Refused)
	var e *issuers.Error
	if !errors.As(err, &e) || e.Detail == "" {
		t.Errorf("%v has no detail for the operator", err)
	}
}
