package mysql_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/mysql"
	"github.com/mayfly-broker/mayfly/issuers/mysql/mysqltest"
	"github.com/mayfly-broker/mayfly/secret"
)

// sqlQuote writes a string literal for the tests' own statements.
func sqlQuote(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`, "\n", `\n`).Replace(s) + "'"
}

// makeAccount makes an account that is no lease's, for each host; clause follows
// its name, with %s for the secret.
func (f *fixture) makeAccount(t *testing.T, name, clause string, hosts ...string) secret.Text {
	t.Helper()
	first := issuertest.NewSecret()
	if len(hosts) == 0 {
		hosts = []string{"%"}
	}
	if clause == "" {
		clause = "IDENTIFIED BY '%s'"
	}
	for _, h := range hosts {
		who := sqlQuote(name) + "@" + sqlQuote(h)
		if strings.Contains(clause, "%s") {
			f.server.Exec(t, "CREATE USER "+who+" "+fmt.Sprintf(clause, first.Reveal()))
		} else {
			f.server.Exec(t, "CREATE USER "+who+" "+clause)
		}
		t.Cleanup(func() {
			db, err := f.server.Open(mysqltest.AdminUser, f.server.Password, "")
			if err == nil {
				_, err = db.ExecContext(context.Background(), "DROP USER "+who)
				err = errors.Join(err, db.Close())
			}
			if err != nil {
				t.Errorf("drop %q: %v", name, err)
			}
		})
	}
	return first
}

// loginAs logs in without the issuer's help.
func (f *fixture) loginAs(ctx context.Context, username string, s secret.Text) (*session, error) {
	host, port, err := net.SplitHostPort(f.server.Address())
	if err != nil {
		return nil, err
	}
	public := map[string]string{"host": host, "port": port, "ca": f.server.CAPEM}
	return f.dial(ctx, username, s.Reveal(), issuers.Credential{Public: public})
}

func (f *fixture) rotation() *issuertest.Rotation {
	return &issuertest.Rotation{
		Account: func(t *testing.T, name string) secret.Text { return f.makeAccount(t, name, "", "127.0.0.1", "10.%") },
		Login: func(ctx context.Context, username string, s secret.Text) error {
			conn, err := f.loginAs(ctx, username, s)
			if err != nil {
				return err
			}
			return conn.Close()
		},
		Hold: func(ctx context.Context, username string, s secret.Text) (issuertest.Session, error) {
			return f.loginAs(ctx, username, s)
		},
		Freeze: func(t *testing.T) func() {
			signal := func(s syscall.Signal) {
				if err := f.server.Signal(s); err != nil {
					t.Error(err)
				}
			}
			signal(syscall.SIGSTOP)
			t.Cleanup(func() { signal(syscall.SIGCONT) })
			return func() { signal(syscall.SIGCONT) }
		},
		Names: []string{"a`; DROP TABLE orders; -- x", `a'; DROP USER admin; -- x`, `a"b`, `a\'b\`, "a%_b", "two\nlines", "Ünïcode", "a@b", strings.Repeat("x", 80)},
	}
}

func (f *fixture) replaceIn(is *mysql.Issuer, username string, next secret.Text, d time.Duration) error {
	return is.Replace(f.t.Context(), issuers.Replacement{Username: username, Next: next, Deadline: time.Now().Add(d)})
}

func (f *fixture) waitingAlter() int {
	return f.count("SELECT COUNT(*) FROM information_schema.processlist WHERE state LIKE 'Waiting for table%' AND info LIKE 'ALTER USER%'")
}

// mustHold fails the test unless the account is entered by one secret alone.
func (f *fixture) mustHold(is *mysql.Issuer, username string, one, other secret.Text) {
	f.t.Helper()
	if err := is.TryLogin(f.t.Context(), username, one); err != nil {
		f.t.Errorf("the secret that should hold: %v", err)
	}
	wantKind(f.t, is.TryLogin(f.t.Context(), username, other), issuers.Refused)
}

// A replacement waits on a lock, its client dies without a word, the deadline
// passes, and only then is the lock free: the secret must be the one before.
func TestHazard8MySQLStuckReplacementOfADeadClientChangesNothing(t *testing.T) {
	f := newFixture(t, shared)
	name := "app_" + issuertest.NewLeaseID()
	first, next := f.makeAccount(t, name, ""), issuertest.NewSecret()
	g, proxy := f.throughProxy()
	dying, living := g.open(100), f.open(100)
	ample := issuertest.Ample(func() {
		if err := f.replaceIn(dying, name, first, 30*time.Second); err != nil { // connected
			t.Fatal(err)
		}
	})
	release := f.blockCreateUser()
	defer release()
	deadline := time.Now().Add(ample)
	done := make(chan error, 1)
	go func() {
		done <- dying.Replace(t.Context(), issuers.Replacement{Username: name, Next: next, Deadline: deadline})
	}()
	eventually(t, "the replacement waits for the lock", func() bool { return f.waitingAlter() == 1 })
	proxy.Hold(true)
	wantKind(t, <-done, issuers.Unknown) // the client saw no answer
	if time.Now().Before(deadline) {
		t.Fatal("the client gave up before the deadline; the test proves nothing")
	}
	release()
	eventually(t, "the replacement ends on the server", func() bool { return f.waitingAlter() == 0 })
	f.mustHold(living, name, first, next)
	proxy.Hold(false)
}

// A message of a replacement reaches the server only after the deadline: the first
// one, or the one with the change.
func TestHazard8MySQLLateReplacementIsRefusedByTheTargetsClock(t *testing.T) {
	for _, word := range []string{"GET_LOCK", "ALTER USER"} {
		f := newFixture(t, shared)
		name := "app_" + issuertest.NewLeaseID()
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
		f.mustHold(is, name, first, next)
	}
}

// A new leader's fence ends a deposed one's replacement; and the deposed one, when
// it connects again, finds itself followed.
func TestHazard8MySQLFenceEndsOlderReplacements(t *testing.T) {
	f := newFixture(t, shared)
	name := "app_" + issuertest.NewLeaseID()
	first, next := f.makeAccount(t, name, ""), issuertest.NewSecret()
	deposed, leader := f.open(120), f.open(121)
	if err := f.replaceIn(deposed, name, first, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	release := f.blockCreateUser()
	defer release()
	done := make(chan error, 1)
	go func() { done <- f.replaceIn(deposed, name, next, 30*time.Second) }()
	eventually(t, "the replacement waits for the lock", func() bool { return f.waitingAlter() == 1 })
	if err := leader.Fence(t.Context()); err != nil {
		t.Fatalf("Fence: %v", err)
	}
	wantKind(t, <-done, issuers.Unknown)
	release()
	wantKind(t, f.replaceIn(deposed, name, next, 30*time.Second), issuers.Superseded)
	f.mustHold(leader, name, first, next)
}

func TestHazard16MySQLReplaceLeavesTheBrokersOwnAlone(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(130)
	f.server.Exec(t, "CREATE ROLE some_role")
	t.Cleanup(func() { _, _ = f.number(context.Background(), "DROP ROLE some_role") })
	for name, kind := range map[string]issuers.ErrorKind{
		"mayfly" + issuertest.NewLeaseID(): issuers.Foreign, // by its name alone
		"mayfly_s_0123456789":              issuers.Foreign,
		"some_role":                        issuers.Gone,
	} {
		wantKind(t, f.replaceIn(is, name, issuertest.NewSecret(), 30*time.Second), kind)
	}
}

// Every host of the account gets the secret, by the plugin that each has; ways in
// that are no secret's are left as they are.
func TestReplaceReachesEveryHostAndKeepsThePlugin(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(140)
	name := "app_" + issuertest.NewLeaseID()
	f.makeAccount(t, name, "IDENTIFIED BY '%s' REQUIRE SSL WITH MAX_USER_CONNECTIONS 7 ACCOUNT LOCK", "10.%", "db.internal")
	f.makeAccount(t, name, "IDENTIFIED VIA ed25519 USING PASSWORD('%s')", "localhost", "127.0.0.1")
	f.makeAccount(t, name, "IDENTIFIED VIA unix_socket", "10.1.1.1")
	const look = `SELECT COUNT(*) FROM mysql.global_priv WHERE User = ? AND CONCAT(Host, ' ', JSON_VALUE(Priv, '$.plugin'), ' ', COALESCE(JSON_VALUE(Priv, '$.account_locked'), 0),
		' ', COALESCE(JSON_VALUE(Priv, '$.max_user_connections'), 0), ' ', COALESCE(JSON_VALUE(Priv, '$.ssl_type'), 0))
		IN ('10.%% mysql_native_password 1 7 1', 'db.internal mysql_native_password 1 7 1', '127.0.0.1 ed25519 0 0 0', 'localhost ed25519 0 0 0', '10.1.1.1 unix_socket 0 0 0')`
	if n := f.count(strings.ReplaceAll(look, "%%", "%"), name); n != 5 {
		t.Fatalf("%d of 5 entries are as they should be before", n)
	}
	for _, next := range []secret.Text{issuertest.NewSecret(), secret.New("short"), secret.New(strings.Repeat("long ", 40))} {
		if err := f.replaceIn(is, name, next, 30*time.Second); err != nil {
			t.Fatal(err)
		}
		f.mustHold(is, name, next, issuertest.NewSecret()) // the server takes 127.0.0.1 for either
		same := f.count("SELECT COUNT(*) FROM mysql.global_priv WHERE User = ? AND JSON_VALUE(Priv, '$.authentication_string') = PASSWORD(?)", name, next.Reveal())
		if n := f.count(strings.ReplaceAll(look, "%%", "%"), name); n != 5 || same != 2 {
			t.Errorf("%d of 5 entries are as they should be, %d of 2 have the secret", n, same)
		}
	}
	for clause, want := range map[string]string{"IDENTIFIED VIA unix_socket": "by a password", "IDENTIFIED VIA unix_socket OR mysql_native_password USING PASSWORD('%s')": "several ways"} {
		other := "app_" + issuertest.NewLeaseID()
		f.makeAccount(t, other, clause)
		err := f.replaceIn(is, other, issuertest.NewSecret(), 30*time.Second)
		wantKind(t, err, issuers.Refused)
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", clause, err)
		}
	}
}

// What the server says beside the secret is told apart from what it says of it.
func TestTryLoginTellsTheSecretFromAllElse(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(150)
	wrong := issuertest.NewSecret()
	for _, c := range []struct {
		clause       string
		right, wrong issuers.ErrorKind // -1: nil
	}{
		{"", -1, issuers.Refused},
		{"IDENTIFIED BY '%s' ACCOUNT LOCK", issuers.Unknown, issuers.Refused},
		{"IDENTIFIED BY '%s' PASSWORD EXPIRE", -1, issuers.Refused},
		{"IDENTIFIED BY '%s' REQUIRE SSL", issuers.Unknown, issuers.Unknown}, // this target has no TLS
		{"IDENTIFIED VIA unix_socket", issuers.Unknown, issuers.Unknown},
	} {
		name := "app_" + issuertest.NewLeaseID()
		first := f.makeAccount(t, name, c.clause)
		if err := is.TryLogin(t.Context(), name, first); (err == nil) != (c.right == -1) || err != nil && issuers.KindOf(err) != c.right {
			t.Errorf("%q with its secret: %v; want %s", c.clause, err, c.right)
		}
		if err := is.TryLogin(t.Context(), name, wrong); err == nil || issuers.KindOf(err) != c.wrong {
			t.Errorf("%q with another secret: %v; want %s", c.clause, err, c.wrong)
		}
	}
	wantKind(t, is.TryLogin(t.Context(), "nobody", wrong), issuers.Unknown)
	wantKind(t, is.TryLogin(t.Context(), mysqltest.AdminUser, secret.New("")), issuers.Unknown)
}

// The right that is missing is named.
func TestReplaceNamesTheMissingRight(t *testing.T) {
	f := newFixture(t, shared)
	f.open(160) // the broker's schema stands once somebody has connected
	if err := f.replaceIn(f.open(160), "nobody", issuertest.NewSecret(), 30*time.Second); issuers.KindOf(err) != issuers.Gone {
		t.Fatal(err)
	}
	poor, name := "poor_"+issuertest.NewLeaseID()[:8], "app_"+issuertest.NewLeaseID()
	f.secrets = map[string]secret.Text{mysql.SecretPassword: f.makeAccount(t, poor, "")}
	first := f.makeAccount(t, name, "")
	f.server.Exec(t, "GRANT ALL ON mayfly.* TO "+poor+"@'%'")
	g := f.with("admin", map[string]any{"username": poor})
	is := g.open(161)
	for _, step := range []struct{ want, grant string }{
		{"GRANT SELECT ON mysql.global_priv", "GRANT SELECT ON mysql.global_priv TO " + poor + "@'%'"},
		{"GRANT CREATE USER ON *.*", "GRANT CREATE USER ON *.* TO " + poor + "@'%'"},
	} {
		err := f.replaceIn(is, name, first, 30*time.Second)
		wantKind(t, err, issuers.Refused)
		if !strings.Contains(err.Error(), step.want) {
			t.Errorf("%v; want it to say %s", err, step.want)
		}
		f.server.Exec(t, step.grant)
	}
	if err := f.replaceIn(g.open(162), name, first, 30*time.Second); err != nil {
		t.Errorf("with all rights: %v", err)
	}
}
