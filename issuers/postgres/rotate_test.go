package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/postgres"
	"github.com/mayfly-broker/mayfly/issuers/postgres/pgtest"
	"github.com/mayfly-broker/mayfly/secret"
)

// loginAs logs in without the issuer's help.
func (f *fixture) loginAs(ctx context.Context, username string, s secret.Text) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(f.server.URL(pgtest.AdminUser, "", f.database))
	if err != nil {
		return nil, err
	}
	cfg.User, cfg.Password = username, s.Reveal()
	return pgx.ConnectConfig(ctx, cfg)
}

// makeAccount makes a login role that is no lease's.
func (f *fixture) makeAccount(t *testing.T, name, attributes string) secret.Text {
	t.Helper()
	first, role := issuertest.NewSecret(), pgx.Identifier{name}.Sanitize()
	f.server.Exec(t, f.database, "CREATE ROLE "+role+" LOGIN PASSWORD '"+first.Reveal()+"'; ALTER ROLE "+role+" "+attributes)
	t.Cleanup(func() {
		// connections that a test has just closed may still take all there are
		eventually(t, fmt.Sprintf("%q is dropped", name), func() bool {
			return f.server.Do(context.Background(), f.database, "DROP OWNED BY "+role+"; DROP ROLE "+role) == nil
		})
	})
	return first
}

func (f *fixture) rotation() *issuertest.Rotation {
	return &issuertest.Rotation{
		Account: func(t *testing.T, name string) secret.Text { return f.makeAccount(t, name, "") },
		Login: func(ctx context.Context, username string, s secret.Text) error {
			conn, err := f.loginAs(ctx, username, s)
			if err != nil {
				return err
			}
			return conn.Close(ctx)
		},
		Hold: func(ctx context.Context, username string, s secret.Text) (issuertest.Session, error) {
			conn, err := f.loginAs(ctx, username, s)
			return session{conn}, err
		},
		Freeze: func(t *testing.T) func() {
			freeze(t, f.server)
			return func() { thaw(t, f.server) }
		},
		Names: []string{`a"; DROP ROLE admin; --`, `a'; DROP TABLE orders; --`, `$$; DROP TABLE orders; $$`, `a\"b`, "two\nlines", "Ünïcode 🦟", " ", strings.Repeat("x", 63)},
	}
}

func (f *fixture) replaceIn(is *postgres.Issuer, username string, next secret.Text, d time.Duration) error {
	return is.Replace(f.t.Context(), issuers.Replacement{Username: username, Next: next, Deadline: time.Now().Add(d)})
}

const (
	waitingForAuth = waitingSQL + " AND starts_with(query, 'ALTER ROLE')"
)

// blockAlterRole holds row locks that ALTER ROLE waits for, and logins do not.
func (f *fixture) blockAlterRole() (release func()) {
	f.t.Helper()
	conn := f.server.Admin(f.t, f.database)
	if _, err := conn.Exec(f.t.Context(), "BEGIN; LOCK TABLE pg_authid IN SHARE ROW EXCLUSIVE MODE"); err != nil {
		f.t.Fatal(err)
	}
	return func() { _ = conn.Close(context.Background()) }
}

// A replacement waits on a lock, its client dies without a word, the deadline
// passes, and only then is the lock free: the secret must be the one before.
func TestHazard8StuckReplacementOfADeadClientChangesNothing(t *testing.T) {
	f := newFixture(t, shared)
	name := "app_" + f.database
	first, next := f.makeAccount(t, name, ""), issuertest.NewSecret()
	g, proxy := f.throughProxy()
	dying, living := g.open(100), f.open(100)
	ample := issuertest.Ample(func() {
		if err := f.replaceIn(dying, name, first, 30*time.Second); err != nil { // connected
			t.Fatal(err)
		}
	})
	release := f.blockAlterRole()
	defer release()
	deadline := time.Now().Add(ample)
	done := make(chan error, 1)
	go func() {
		done <- dying.Replace(t.Context(), issuers.Replacement{Username: name, Next: next, Deadline: deadline})
	}()
	eventually(t, "the replacement waits for the lock", func() bool { return f.count(waitingForAuth) == 1 })
	proxy.Hold(true)
	wantKind(t, <-done, issuers.Unknown) // the client saw no answer
	if time.Now().Before(deadline) {
		t.Fatal("the client gave up before the deadline; the test proves nothing")
	}
	release()
	eventually(t, "the replacement ends on the server", func() bool { return f.count(waitingForAuth) == 0 })
	wantKind(t, living.TryLogin(t.Context(), name, next), issuers.Refused)
	if err := living.TryLogin(t.Context(), name, first); err != nil {
		t.Errorf("the secret before: %v", err)
	}
	proxy.Hold(false)
}

// A message of a replacement reaches the server only after the deadline: the first
// one, or the one that would commit.
func TestHazard8LateReplacementIsRefusedByTheTargetsClock(t *testing.T) {
	for _, word := range []string{"BEGIN", "ALTER ROLE"} {
		f := newFixture(t, shared)
		name := "app_" + f.database
		first, next := f.makeAccount(t, name, ""), issuertest.NewSecret()
		g, proxy := f.throughProxy()
		is := g.open(110)
		ample := issuertest.Ample(func() {
			if err := f.replaceIn(is, name, first, 30*time.Second); err != nil {
				t.Fatal(err)
			}
		})
		proxy.HoldAt(word)
		deadline := time.Now().Add(ample)
		done := make(chan error, 1)
		go func() {
			done <- is.Replace(t.Context(), issuers.Replacement{Username: name, Next: next, Deadline: deadline})
		}()
		eventually(t, "the deadline passes", func() bool { return time.Now().After(deadline.Add(100 * time.Millisecond)) })
		if !proxy.Held() {
			t.Fatalf("%s was never sent; the test proves nothing", word)
		}
		proxy.Hold(false)
		wantTooLate(t, <-done, deadline)
		wantKind(t, is.TryLogin(t.Context(), name, next), issuers.Refused)
		if err := is.TryLogin(t.Context(), name, first); err != nil {
			t.Errorf("the secret before: %v", err)
		}
	}
}

// A new leader's fence ends a deposed one's replacement; and the deposed one, when
// it connects again, finds itself followed.
func TestHazard8FenceEndsOlderReplacements(t *testing.T) {
	f := newFixture(t, shared)
	name := "app_" + f.database
	first, next := f.makeAccount(t, name, ""), issuertest.NewSecret()
	deposed, leader := f.open(120), f.open(121)
	if err := f.replaceIn(deposed, name, first, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	release := f.blockAlterRole()
	defer release()
	done := make(chan error, 1)
	go func() { done <- f.replaceIn(deposed, name, next, 30*time.Second) }()
	eventually(t, "the replacement waits for the lock", func() bool { return f.count(waitingForAuth) == 1 })
	if err := leader.Fence(t.Context()); err != nil {
		t.Fatalf("Fence: %v", err)
	}
	wantKind(t, <-done, issuers.Unknown)
	release()
	wantKind(t, f.replaceIn(deposed, name, next, 30*time.Second), issuers.Superseded)
	if err := leader.TryLogin(t.Context(), name, first); err != nil {
		t.Errorf("the secret before: %v", err)
	}
	wantKind(t, leader.TryLogin(t.Context(), name, next), issuers.Refused)
}

// Only a lease's mark or name makes an account a lease's; the broker's own roles
// are left alone, too.
func TestHazard16ReplaceLeavesMarkedRolesAlone(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(130)
	l := f.lease(f.readonly())
	f.mint(is, l)
	scopeRole := "mayfly_scope_x" + issuertest.NewLeaseID()
	for name, mark := range map[string]string{
		"app_" + f.database:                 "mayfly lease=forged",
		"mayfly_" + issuertest.NewLeaseID(): "",
		scopeRole:                           "mayfly scope: ready for " + f.database,
	} {
		first := f.makeAccount(t, name, "")
		f.server.Exec(t, f.database, "COMMENT ON ROLE "+pgx.Identifier{name}.Sanitize()+" IS '"+mark+"'")
		wantKind(t, f.replaceIn(is, name, issuertest.NewSecret(), 30*time.Second), issuers.Foreign)
		if err := is.TryLogin(t.Context(), name, first); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	f.withdraw(is, l)
}

// What the server says beside the secret is told apart from what it says of it.
func TestTryLoginTellsTheSecretFromAllElse(t *testing.T) {
	server := pgtest.Start(t, pgtest.HBA("host all trusted 127.0.0.1/32 trust", "host all barred 127.0.0.1/32 reject"), pgtest.Setting("max_connections", "10"))
	f := newFixture(t, server)
	f.server.Exec(t, f.database, `REVOKE CONNECT ON DATABASE "`+f.database+`" FROM PUBLIC`)
	is := f.open(1)
	wrong := issuertest.NewSecret()
	for _, c := range []struct {
		name, attributes string
		right            issuers.ErrorKind // -1: nil
		wrong            issuers.ErrorKind
	}{
		{"elsewhere", "", -1, issuers.Refused}, // 42501 after the login
		{"locked", "NOLOGIN", -1, issuers.Refused},
		{"full", "CONNECTION LIMIT 0", -1, issuers.Refused},
		{"expired", "VALID UNTIL '2001-01-01'", issuers.Unknown, issuers.Unknown},
		{"trusted", "SUPERUSER", issuers.Unknown, issuers.Unknown}, // nobody asked for the secret
		{"barred", "SUPERUSER", issuers.Unknown, issuers.Unknown},
		{"good", "SUPERUSER", -1, issuers.Refused},
	} {
		first := f.makeAccount(t, c.name, c.attributes)
		if err := is.TryLogin(t.Context(), c.name, first); (err == nil) != (c.right == -1) || err != nil && issuers.KindOf(err) != c.right {
			t.Errorf("%s with its secret: %v; want %s", c.name, err, c.right)
		}
		if err := is.TryLogin(t.Context(), c.name, wrong); err == nil || issuers.KindOf(err) != c.wrong {
			t.Errorf("%s with another secret: %v; want %s", c.name, err, c.wrong)
		}
	}
	wantKind(t, is.TryLogin(t.Context(), "nobody", wrong), issuers.Unknown)
	wantKind(t, is.TryLogin(t.Context(), "good", secret.New("")), issuers.Unknown)
	f.fill()
	wantKind(t, is.TryLogin(t.Context(), "good", wrong), issuers.Unknown) // 53300
}

// fill takes every connection that the server has.
func (f *fixture) fill() {
	f.t.Helper()
	for range 20 {
		conn, err := f.loginAs(f.t.Context(), pgtest.AdminUser, secret.New(f.server.Password))
		if err != nil {
			return
		}
		f.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	}
	f.t.Fatal("the server has more connections than it should")
}

// The right that is missing is named, and what the detail says gives it.
func TestReplaceNamesTheMissingRight(t *testing.T) {
	f := newFixture(t, shared)
	poor, name := "poor_"+f.database, "app_"+f.database
	f.secrets = map[string]secret.Text{postgres.SecretPassword: f.makeAccount(t, poor, "")}
	f.spec["admin"] = map[string]any{"username": poor}
	first := f.makeAccount(t, name, "")
	is := f.open(140)
	err := f.replaceIn(is, name, first, 30*time.Second)
	wantKind(t, err, issuers.Refused)
	var said *issuers.Error
	if !errors.As(err, &said) {
		t.Fatal(err)
	}
	_, fix, ok := strings.Cut(said.Detail, "run as a superuser: ")
	if !ok {
		t.Fatalf("the detail has no fix: %s", said.Detail)
	}
	f.server.Exec(t, f.database, fix)
	if err := f.replaceIn(is, name, first, 30*time.Second); err != nil {
		t.Errorf("after %s: %v", fix, err)
	}
	err = f.replaceIn(is, pgtest.AdminUser, first, 30*time.Second)
	wantKind(t, err, issuers.Refused)
	if !strings.Contains(err.Error(), "only a superuser") {
		t.Errorf("a superuser's secret: %v", err)
	}
}

// Nothing but the password changes, and the clear one reaches neither the
// catalogue nor a statement.
func TestReplaceChangesThePasswordAlone(t *testing.T) {
	f := newFixture(t, shared)
	name := "app_" + f.database
	f.makeAccount(t, name, "CREATEDB NOINHERIT CONNECTION LIMIT 3 VALID UNTIL '2099-01-01'")
	f.server.Exec(t, f.database, fmt.Sprintf(`COMMENT ON ROLE %[1]s IS 'mine'; GRANT pg_monitor TO %[1]s; ALTER ROLE %[1]s SET work_mem = '8MB'`, name))
	look := func() (whole string, verifier string) {
		err := f.server.Admin(t, f.database).QueryRow(t.Context(), `SELECT row(r.*, shobj_description(r.oid, 'pg_authid'), ARRAY(SELECT roleid FROM pg_auth_members WHERE member = r.oid),
			(SELECT setconfig FROM pg_db_role_setting WHERE setrole = r.oid))::text, a.rolpassword FROM pg_roles r JOIN pg_authid a USING (oid) WHERE r.rolname = $1`, name).Scan(&whole, &verifier)
		if err != nil {
			t.Fatal(err)
		}
		return whole, verifier
	}
	before, oldVerifier := look()
	is := f.open(150)
	next := issuertest.NewSecret()
	if err := f.replaceIn(is, name, next, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	after, verifier := look()
	if before != after || verifier == oldVerifier || !strings.HasPrefix(verifier, "SCRAM-SHA-256$") {
		t.Errorf("before: %s\nafter: %s\nverifier: %.20s", before, after, verifier)
	}
}
