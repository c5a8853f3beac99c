package mysql_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/mysql"
	"github.com/mayfly-broker/mayfly/issuers/mysql/mysqltest"
	"github.com/mayfly-broker/mayfly/scope"
)

func TestLaw3MySQLAccountDoesNoMoreThanItsScope(t *testing.T) {
	f := newFixture(t, shared)
	// the same name but for its underscore: a pattern would reach it
	neighbour := strings.Replace(f.database, "_", "x", 1)
	f.server.Exec(t, "CREATE DATABASE "+neighbour+"; CREATE TABLE "+neighbour+".t (id INT)")
	for _, grants := range []string{"pooled", "direct"} {
		is := f.with("grants", grants).open(1)
		all, some := f.lease(f.readonly()), f.lease(f.scope([]string{"select", "update"}, scope.Table{Name: "staff", Columns: []string{"id", "name"}}))
		run := f.lease(f.scope([]string{"execute"}, scope.Table{Name: "seven"}))
		conn := f.mustLogin(f.mint(is, all))
		conn.must(t, "SELECT * FROM orders; SELECT * FROM secrets")
		for _, no := range []string{
			"DELETE FROM orders", "SELECT * FROM " + neighbour + ".t", "SELECT * FROM mysql.user", "SELECT * FROM mayfly.leases", "CREATE TABLE mine (id INT)", "SELECT seven()",
			"CREATE VIEW mine AS SELECT 1", "GRANT SELECT ON orders TO PUBLIC", "CREATE USER x", "SELECT * FROM orders INTO OUTFILE '/tmp/x'",
		} {
			conn.mustNot(t, no)
		}
		c := f.mint(is, some)
		conn = f.mustLogin(c)
		conn.must(t, "SELECT id, name FROM staff; UPDATE staff SET name = 'kim' WHERE id = 1")
		conn.mustNot(t, "SELECT salary FROM staff")
		conn.mustNot(t, "UPDATE staff SET salary = 10")
		conn.mustNot(t, "SELECT * FROM orders")
		conn = f.mustLogin(f.mint(is, run))
		conn.must(t, "SELECT seven()")
		conn.mustNot(t, "CALL nothing()")
		f.withdraw(is, all, some, run)
	}
}

// The clear password reaches neither a statement nor the server's log.
func TestLaw6MySQLPasswordReachesNoLog(t *testing.T) {
	f := newFixture(t, mysqltest.Start(t, mysqltest.Flag("--general-log"), mysqltest.Flag("--log-output=TABLE")))
	is := f.open(1)
	l := f.lease(f.readonly())
	c := f.mint(is, l)
	f.mustLogin(c)
	f.withdraw(is, l)
	if n := f.count("SELECT COUNT(*) FROM mysql.general_log WHERE LOCATE(?, argument) > 0", l.Name); n == 0 {
		t.Fatal("the log does not show the mint; the test proves nothing")
	}
	// the question itself is logged, so it must not contain the password whole
	p := c.Secret["password"].Reveal()
	if n := f.count("SELECT COUNT(*) FROM mysql.general_log WHERE LOCATE(CONCAT(?, ?), argument) > 0", p[:16], p[16:]); n != 0 {
		t.Errorf("the password stands in the log %d times", n)
	}
}

func TestHazard9MySQLDeposedLeaderDoesNotOverwrite(t *testing.T) {
	f := newFixture(t, shared)
	deposed, leader := f.open(3), f.open(4)
	l := f.lease(f.readonly())
	f.mint(deposed, l)
	next := issuertest.Regenerate(mysql.Kind{}, l)
	c := f.mint(leader, next)
	for _, late := range []issuers.Lease{l, next, issuertest.Regenerate(mysql.Kind{}, next)} {
		_, err := deposed.Mint(t.Context(), late)
		wantKind(t, err, issuers.Superseded)
	}
	f.mustLogin(c)
	wantKind(t, leader.Withdraw(t.Context(), []issuers.Lease{l})[0].Err, issuers.Superseded)
	f.mustLogin(c)
	f.withdraw(leader, next)
}

// What an account defined goes with it; a view in its pooled role's name cannot
// be made, since no pooled role can define.
func TestHazard11MySQLDefinedIsDroppedOrParked(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	l := f.lease(f.scope([]string{"select", "insert", "create", "create_view", "create_routine", "trigger", "event"}, scope.Table{Name: "*"}))
	conn := f.mustLogin(f.mint(is, l))
	conn.must(t, "CREATE VIEW v AS SELECT * FROM secrets")
	conn.must(t, "CREATE FUNCTION fn() RETURNS INT DETERMINISTIC RETURN 1")
	conn.must(t, "CREATE PROCEDURE pr() SELECT 1")
	conn.must(t, "CREATE TRIGGER tr BEFORE INSERT ON orders FOR EACH ROW SET NEW.total = 1")
	conn.must(t, "CREATE EVENT ev ON SCHEDULE EVERY 1 DAY DO SELECT 1")
	conn.must(t, "CREATE TABLE kept (id INT)")
	conn.mustNot(t, "CREATE DEFINER = admin@'127.0.0.1' VIEW w AS SELECT * FROM mysql.user")
	conn.mustNot(t, "CREATE DEFINER = CURRENT_ROLE VIEW w AS SELECT 1")

	parked := l
	parked.RoleSpec.OwnedOnEnd, parked.RoleSpec.ReassignTo = "reassign", "archive"
	out := is.Withdraw(t.Context(), []issuers.Lease{parked})[0]
	wantKind(t, out.Err, issuers.Poison)
	if !strings.Contains(out.Err.Error(), "`v`") {
		t.Errorf("the parked lease does not say what it defines: %v", out.Err)
	}
	if conn.PingContext(t.Context()) == nil {
		t.Error("a parked lease's session lives")
	}
	if got := f.withdraw(is, l)[0].Receipt.OwnedDropped; got != 5 {
		t.Errorf("%d things dropped; want 5", got)
	}
	const left = `SELECT (SELECT COUNT(*) FROM information_schema.views WHERE table_schema = ?) + (SELECT COUNT(*) FROM information_schema.routines WHERE routine_schema = ? AND routine_name IN ('fn', 'pr'))
		+ (SELECT COUNT(*) FROM information_schema.triggers WHERE trigger_schema = ?) + (SELECT COUNT(*) FROM information_schema.events WHERE event_schema = ?)`
	if n := f.count(left, f.database, f.database, f.database, f.database); n != 0 {
		t.Errorf("%d things that the account defined outlive it", n)
	}
	f.count("SELECT COUNT(*) FROM kept") // tables have no owner
}

func TestHazard12MySQLPoisonLeaseParksAlone(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	leases := make([]issuers.Lease, 5)
	for i := range leases {
		leases[i] = f.lease(f.scope([]string{"select", "create_view"}, scope.Table{Name: "*"}))
	}
	var free func() error
	for i, l := range leases {
		c := f.mint(is, l)
		if i == 2 {
			var err error
			if free, err = f.stick(t.Context(), l, c); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i, o := range is.Withdraw(t.Context(), leases) {
		if i == 2 {
			wantKind(t, o.Err, issuers.Poison)
		} else if o.Err != nil {
			t.Errorf("lease %d: %v", i, o.Err)
		}
	}
	if err := free(); err != nil {
		t.Fatal(err)
	}
	f.withdraw(is, leases...)
}

func TestHazard15MySQLOnePooledRolePerScope(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	var leases []issuers.Lease
	var wg sync.WaitGroup
	for range 24 {
		l := f.lease(f.readonly())
		leases = append(leases, l)
		wg.Go(func() {
			if _, err := is.Mint(t.Context(), l); err != nil {
				t.Errorf("Mint: %v", err)
			}
		})
	}
	wg.Wait()
	pooled := "SELECT COUNT(*) FROM mayfly.scopes WHERE owner = ?"
	if n := f.count(pooled, f.database); n != 1 {
		t.Fatalf("%d pooled roles for one scope", n)
	}
	narrowed := f.lease(f.readonly())
	narrowed.RoleVersion = 2
	f.mint(is, narrowed)
	if n := f.count(pooled, f.database); n != 2 {
		t.Error("a new version of the role shares the old one's pooled role")
	}
	f.withdraw(is, append(leases, narrowed)...)

	// one that was only half made, by a leader that died, is completed before use
	role := func() string {
		var name string
		if err := f.server.Admin(t).QueryRowContext(t.Context(), "SELECT MIN(name) FROM mayfly.scopes WHERE owner = ?", f.database).Scan(&name); err != nil {
			t.Fatal(err)
		}
		return name
	}()
	f.server.Exec(t, "UPDATE mayfly.scopes SET state = 'making' WHERE owner = "+"'"+f.database+"'; REVOKE ALL, GRANT OPTION FROM "+role)
	again := []issuers.Lease{f.lease(f.readonly()), f.lease(f.readonly())}
	again[1].RoleVersion = 2
	for _, l := range again { // this issuer believed both ready
		f.mustLogin(f.mint(is, l)).must(t, "SELECT * FROM orders")
	}
	f.withdraw(is, again...)
	if err := is.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if f.exists(role) || f.count(pooled, f.database) != 0 {
		t.Error("a pooled role that nobody joins survives the sweep")
	}
	f.mint(is, again[0]) // and is made again when asked for
	f.withdraw(is, again[0])
}

func TestHazard15MySQLCap(t *testing.T) {
	f := newFixture(t, shared).with("max_pooled_scopes", 2)
	is := f.open(1)
	one, two, three := f.lease(f.scope([]string{"select"}, scope.Table{Name: "orders"})), f.lease(f.readonly()), f.lease(f.scope([]string{"select"}, scope.Table{Name: "staff"}))
	f.mint(is, one)
	f.mint(is, two)
	_, err := is.Mint(t.Context(), three)
	wantKind(t, err, issuers.Refused)
	f.withdraw(is, one)
	f.mint(is, three) // the unused one made room
	f.withdraw(is, two, three)
}

// Sweeping, minting and withdrawing at once, by two leaders: no account without
// its rights, no error but a clean one.
func TestHazard15MySQLSweepRacesJoin(t *testing.T) {
	f := newFixture(t, shared)
	a, b := f.open(5), f.open(5)
	scopes := []scope.Scope{f.readonly(), f.scope([]string{"select"}, scope.Table{Name: "orders"})}
	done := make(chan struct{})
	var sweeper, minters sync.WaitGroup
	sweeper.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				if err := b.Sweep(t.Context()); err != nil {
					t.Errorf("Sweep: %v", err)
				}
			}
		}
	})
	for worker := range 4 {
		minters.Go(func() {
			for n := range 8 {
				is := []*mysql.Issuer{a, b}[worker%2]
				l := f.lease(scopes[n%2])
				c, err := is.Mint(t.Context(), l)
				if err != nil {
					t.Errorf("Mint: %v", err)
					continue
				}
				conn, err := f.connect(t.Context(), c)
				if err == nil {
					_, err = conn.ExecContext(t.Context(), "SELECT * FROM orders")
					_ = conn.Close()
				}
				if err != nil {
					t.Errorf("the minted account does not work: %v", err)
				}
				if out := is.Withdraw(t.Context(), []issuers.Lease{l}); out[0].Err != nil {
					t.Errorf("Withdraw: %v", out[0].Err)
				}
			}
		})
	}
	minters.Wait()
	close(done)
	sweeper.Wait()
}

func TestHazard16MySQLForeignAccountIsLeftAlone(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	f.mint(is, f.lease(f.readonly())) // the broker's tables stand
	for _, host := range []string{"%", "10.9.9.9"} {
		l := f.lease(f.readonly())
		f.server.Exec(t, fmt.Sprintf("CREATE USER %s@'%s' IDENTIFIED BY 'theirs'", l.Name, host))
		if host == "%" {
			_, err := is.Mint(t.Context(), l)
			wantKind(t, err, issuers.Foreign)
			wantKind(t, is.Extend(t.Context(), l), issuers.Foreign)
		}
		beside := f.lease(f.readonly())
		f.mint(is, beside)
		out := is.Withdraw(t.Context(), []issuers.Lease{l, beside})
		wantKind(t, out[0].Err, issuers.Foreign)
		if out[1].Err != nil {
			t.Errorf("the lease beside it: %v", out[1].Err)
		}
		if !f.exists(l.Name) {
			t.Error("somebody else's account was dropped")
		}
		f.server.Exec(t, "DROP USER "+l.Name+"@'"+host+"'")
	}
	// one that joined ours later, at another host
	l := f.lease(f.readonly())
	f.mint(is, l)
	f.server.Exec(t, "CREATE USER "+l.Name+"@'10.9.9.9'")
	wantKind(t, is.Withdraw(t.Context(), []issuers.Lease{l})[0].Err, issuers.Foreign)
	f.server.Exec(t, "DROP USER "+l.Name+"@'10.9.9.9'")
	f.withdraw(is, l)
	bad := l
	bad.Name = "root"
	_, err := is.Mint(t.Context(), bad)
	wantKind(t, err, issuers.Refused)
	wantKind(t, is.Withdraw(t.Context(), []issuers.Lease{bad})[0].Err, issuers.Refused)
}

// A process that is killed between any two steps leaves what its successor can
// name, re-mint and end.
func TestCrashPoints(t *testing.T) {
	f := newFixture(t, shared)
	f.mint(f.open(1), f.lease(f.readonly()))
	row := func(l issuers.Lease, state string) string {
		return fmt.Sprintf("INSERT INTO mayfly.leases VALUES ('%s', '%s', 1, 1, '%s', '%%', '', 0, UTC_TIMESTAMP(6), UTC_TIMESTAMP(6), UTC_TIMESTAMP(6)); ", l.Name, l.ID, state)
	}
	user := "CREATE USER %[1]s; "
	for what, c := range map[string]struct {
		state, then string
		remint      bool
	}{
		"a row alone":                   {"open", "", true},
		"an account without its grants": {"open", user, true},
		"an account nobody heard of":    {"open", user + "GRANT SELECT ON " + f.database + ".* TO %[1]s", true},
		"an account that is shut":       {"ending", user + "ALTER USER %[1]s ACCOUNT LOCK", false},
		"an account that is to be shut": {"ending", user, false},
		"a row that outlived it":        {"ending", "", false},
	} {
		for _, remint := range []bool{false, true} {
			l := f.lease(f.readonly())
			f.server.Exec(t, row(l, c.state)+strings.ReplaceAll(c.then, "%[1]s", l.Name))
			successor := f.open(2)
			found, err := successor.List(t.Context())
			if err != nil || !slices.ContainsFunc(found, func(x issuers.Found) bool { return x.LeaseID == l.ID }) {
				t.Errorf("%s is not listed: %v", what, err)
			}
			if remint {
				l = issuertest.Regenerate(mysql.Kind{}, l)
				cred, err := successor.Mint(t.Context(), l)
				if !c.remint {
					wantKind(t, err, issuers.Superseded)
				} else if err != nil {
					t.Errorf("%s: re-mint: %v", what, err)
				} else {
					f.mustLogin(cred).must(t, "SELECT * FROM orders")
				}
			}
			f.withdraw(successor, l)
			if err := f.gone(t.Context(), l); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			if n := f.count("SELECT COUNT(*) FROM mayfly.leases WHERE name = ?", l.Name); n != 0 {
				t.Errorf("%s: the row stands", what)
			}
		}
	}
}

// A scope that names what is not there leaves nothing behind and says what.
func TestMissingTableIsABadScope(t *testing.T) {
	f := newFixture(t, shared)
	for _, grants := range []string{"pooled", "direct"} {
		is := f.with("grants", grants).open(1)
		for _, sc := range []scope.Scope{
			f.scope([]string{"select"}, scope.Table{Name: "nowhere"}), f.scope([]string{"select"}, scope.Table{Name: "staff", Columns: []string{"nothing"}}),
			f.scope([]string{"execute"}, scope.Table{Name: "nowhere"}),
		} {
			l := f.lease(sc)
			_, err := is.Mint(t.Context(), l)
			wantKind(t, err, issuers.BadScope)
			if err := f.gone(context.Background(), l); err != nil {
				t.Error(err)
			}
			if n := f.count("SELECT COUNT(*) FROM mayfly.leases WHERE name = ?", l.Name); n != 0 {
				t.Error("a row is left")
			}
		}
	}
}
