package postgres_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/postgres"
	"github.com/mayfly-broker/mayfly/scope"
)

func mustExec(t testing.TB, c *pgx.Conn, sql string) {
	t.Helper()
	if _, err := c.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func mustNot(t testing.TB, c *pgx.Conn, sql string) {
	t.Helper()
	if _, err := c.Exec(t.Context(), sql); err == nil {
		t.Errorf("was allowed: %s", sql)
	}
}

func TestHazard9DeposedLeaderDoesNotOverwrite(t *testing.T) {
	f := newFixture(t, shared)
	deposed, leader := f.open(3), f.open(4)
	l := f.lease(f.readonly())
	f.mint(deposed, l)
	next := issuertest.Regenerate(postgres.Kind{}, l)
	c := f.mint(leader, next)
	for _, late := range []issuers.Lease{l, next, issuertest.Regenerate(postgres.Kind{}, next)} {
		_, err := deposed.Mint(t.Context(), late)
		wantKind(t, err, issuers.Superseded)
	}
	f.mustLogin(c)
	wantKind(t, leader.Withdraw(t.Context(), []issuers.Lease{l})[0].Err, issuers.Superseded)
	f.mustLogin(c)
	f.withdraw(leader, next)
}

// An account acts as its pooled role (possible before version 16) and tries to
// leave something behind.
func TestHazard10PooledRoleCreatesNothing(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	l := f.lease(f.scope([]string{"select", "create"}, scope.Table{Name: "hr.*"}))
	conn := f.mustLogin(f.mint(is, l))
	mustExec(t, conn, "CREATE FUNCTION hr.own() RETURNS int LANGUAGE sql AS 'SELECT 1'")
	var pooled string
	if err := conn.QueryRow(t.Context(), "SELECT roleid::regrole::text FROM pg_auth_members WHERE member = current_user::regrole").Scan(&pooled); err != nil {
		t.Fatal(err)
	}
	mustExec(t, conn, "SET ROLE "+pooled)
	mustNot(t, conn, "CREATE FUNCTION hr.door() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'")
	mustNot(t, conn, "CREATE FUNCTION public.door() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'")
	f.withdraw(is, l)
	if n := f.count("SELECT count(*) FROM pg_proc WHERE proname = 'own'"); n != 0 {
		t.Error("the account's own function outlives it")
	}
}

func TestHazard10CheckWarnsOfPublicCreateAndSweepClosesTheDoor(t *testing.T) {
	f := newFixture(t, shared)
	f.server.Exec(t, f.database, "GRANT CREATE ON SCHEMA public TO PUBLIC")
	is := f.open(1)
	live, l := f.lease(f.readonly()), f.lease(f.readonly())
	still := f.mint(is, live)
	conn := f.mustLogin(f.mint(is, l))
	mustExec(t, conn, `DO $$ BEGIN EXECUTE 'SET ROLE ' || (SELECT roleid::regrole FROM pg_auth_members WHERE member = session_user::regrole); END $$;
		CREATE FUNCTION public.door() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT count(*) FROM orders'`)
	f.withdraw(is, l)

	name := "public create " + f.database + ".public"
	fix := f.finding(is, name, false).Fix
	if err := is.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := f.count("SELECT count(*) FROM pg_proc WHERE proname = 'door'"); n != 0 {
		t.Error("the door stands after a sweep")
	}
	mustExec(t, f.mustLogin(still), "SELECT count(*) FROM orders") // its grants are back
	f.server.Exec(t, f.database, fix)
	f.finding(is, name, true)
	f.withdraw(is, live)
}

// finding returns the one finding of that name.
func (f *fixture) finding(is *postgres.Issuer, name string, ok bool) issuers.Finding {
	f.t.Helper()
	findings, err := is.Check(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	for _, x := range findings {
		if x.Name == name {
			if x.OK != ok {
				f.t.Fatalf("finding %+v; want OK %t", x, ok)
			}
			return x
		}
	}
	f.t.Fatalf("no finding %q among %+v", name, findings)
	return issuers.Finding{}
}

func TestHazard13ValidUntilAndExtend(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	until := func(l issuers.Lease) time.Time {
		var at time.Time
		if err := f.server.Admin(t, f.database).QueryRow(t.Context(), "SELECT rolvaliduntil FROM pg_roles WHERE rolname = $1", l.Name).Scan(&at); err != nil {
			t.Fatal(err)
		}
		return at
	}
	l := f.lease(f.readonly())
	c := f.mint(is, l)
	if at := until(l); at.After(l.NotAfter) || at.Before(l.NotAfter.Add(-10*time.Second)) {
		t.Errorf("valid until %s; the lease ends at %s", at, l.NotAfter)
	}
	longer := l
	longer.NotAfter = l.NotAfter.Add(time.Hour)
	for _, step := range []issuers.Lease{longer, l} {
		if err := is.Extend(t.Context(), step); err != nil {
			t.Fatal(err)
		}
		if at := until(l); at.After(longer.NotAfter) || at.Before(longer.NotAfter.Add(-10*time.Second)) {
			t.Errorf("extended, then asked for less: valid until %s; want %s", at, longer.NotAfter)
		}
	}

	// an account that changes its own password keeps neither it nor the session
	conn := f.mustLogin(c)
	mustExec(t, conn, "ALTER ROLE CURRENT_USER PASSWORD 'chosen'")
	mustNot(t, conn, "ALTER ROLE CURRENT_USER VALID UNTIL 'infinity'")
	mustNot(t, conn, "COMMENT ON ROLE CURRENT_USER IS 'mine'")
	f.withdraw(is, l)
	if conn.Ping(t.Context()) == nil {
		t.Error("the session lives")
	}
	if _, err := pgx.Connect(t.Context(), f.server.URL(l.Name, "chosen", f.database)); err == nil {
		t.Error("the password it chose works after the end")
	}
	if err := is.Extend(t.Context(), longer); issuers.KindOf(err) != issuers.Gone {
		t.Errorf("Extend of what is gone: %v", err)
	}
	if f.exists(l.Name) {
		t.Error("Extend made the account anew")
	}
}

func TestHazard15OnePooledRolePerScope(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	var leases []issuers.Lease
	for range 64 {
		leases = append(leases, f.lease(f.readonly()))
	}
	var wg sync.WaitGroup
	for _, l := range leases {
		wg.Go(func() {
			if _, err := is.Mint(t.Context(), l); err != nil {
				t.Errorf("Mint: %v", err)
			}
		})
	}
	wg.Wait()
	pooledOf := func(l issuers.Lease) string {
		var name string
		err := f.server.Admin(t, f.database).QueryRow(t.Context(), "SELECT string_agg(roleid::regrole::text, ',') FROM pg_auth_members WHERE member = $1::regrole", l.Name).Scan(&name)
		if err != nil {
			t.Fatal(err)
		}
		return name
	}
	first := pooledOf(leases[0])
	for _, l := range leases {
		if got := pooledOf(l); got != first {
			t.Fatalf("pooled roles %s and %s for one scope", first, got)
		}
	}
	narrowed := f.lease(f.readonly())
	narrowed.RoleVersion = 2
	f.mint(is, narrowed)
	if pooledOf(narrowed) == first {
		t.Error("a new version of the role shares the old one's pooled role")
	}

	// one that was only half made, by a leader that died, is completed before use
	f.withdraw(is, append(leases, narrowed)...)
	f.server.Exec(t, f.database, "REVOKE ALL ON ALL TABLES IN SCHEMA public FROM "+first+"; COMMENT ON ROLE "+first+" IS 'mayfly scope: being made for "+f.database+"'")
	again := f.lease(f.readonly())
	mustExec(t, f.mustLogin(f.mint(f.open(2), again)), "SELECT * FROM orders")
	stale := f.lease(f.readonly())
	f.server.Exec(t, f.database, "REVOKE ALL ON ALL TABLES IN SCHEMA public FROM "+first+"; COMMENT ON ROLE "+first+" IS 'mayfly scope: being made for "+f.database+"'")
	mustExec(t, f.mustLogin(f.mint(is, stale)), "SELECT * FROM orders") // this issuer believed it ready
	f.withdraw(is, again, stale)
	if err := is.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if f.exists(first) {
		t.Error("a pooled role that nobody joins survives the sweep")
	}
	f.mint(is, again) // and is made again when asked for
	f.withdraw(is, again)
}

func TestHazard15CapSweepAndRefresh(t *testing.T) {
	f := newFixture(t, shared)
	f.spec["max_pooled_scopes"] = 2 // another target's pooled roles on the same server do not count
	is := f.open(1)
	one := f.lease(f.scope([]string{"select"}, scope.Table{Name: "public.orders"}))
	two := f.lease(f.readonly())
	three := f.lease(f.scope([]string{"select"}, scope.Table{Name: "hr.*"}))
	f.mint(is, one)
	c := f.mint(is, two)
	_, err := is.Mint(t.Context(), three)
	wantKind(t, err, issuers.Refused)
	f.withdraw(is, one)
	f.mint(is, three) // the unused one made room

	neighbour := newFixture(t, shared).open(1) // another target on the same server keeps its hands off
	f.withdraw(is, three)
	before := f.count("SELECT count(*) FROM pg_roles WHERE starts_with(rolname, 'mayfly_scope_')")
	if err := neighbour.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := f.count("SELECT count(*) FROM pg_roles WHERE starts_with(rolname, 'mayfly_scope_')"); after != before {
		t.Errorf("another target's sweep removed %d pooled roles", before-after)
	}

	f.server.Exec(t, f.database, "CREATE TABLE public.later (id int)")
	conn := f.mustLogin(c)
	mustNot(t, conn, "SELECT * FROM public.later")
	if err := is.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustExec(t, conn, "SELECT * FROM public.later")
	f.withdraw(is, two, three)
}

// Sweeping, minting and withdrawing at once, by two leaders: no account without
// its rights, no error but a clean one.
func TestHazard15SweepRacesJoin(t *testing.T) {
	f := newFixture(t, shared)
	a, b := f.open(5), f.open(5)
	scopes := []scope.Scope{f.readonly(), f.scope([]string{"select"}, scope.Table{Name: "public.orders"})}
	done := make(chan struct{})
	var sweeper, minters sync.WaitGroup
	sweeper.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				if err := b.Sweep(t.Context()); err != nil {
					t.Errorf("Sweep: %v", err)
				}
			}
		}
	})
	for worker := range 4 {
		minters.Go(func() {
			for n := range 8 {
				is := []*postgres.Issuer{a, b}[worker%2]
				l := f.lease(scopes[n%2])
				c, err := is.Mint(t.Context(), l)
				if err != nil {
					t.Errorf("Mint: %v", err)
					continue
				}
				conn, err := pgx.Connect(t.Context(), c.Secret["url"].Reveal())
				if err == nil {
					_, err = conn.Exec(t.Context(), "SELECT * FROM orders")
					_ = conn.Close(t.Context())
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

func TestHazard16ForeignAccountIsLeftAlone(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	for mark, want := range map[string]issuers.ErrorKind{
		"":                   issuers.Foreign,
		"mayfly lease=other": issuers.Foreign,
		"mayfly lease=" + strings.Repeat("a", 26) + " gen=1 term=1": issuers.Foreign,
	} {
		l := f.lease(f.readonly())
		f.server.Exec(t, f.database, fmt.Sprintf(`CREATE ROLE %s LOGIN PASSWORD 'theirs'; COMMENT ON ROLE %[1]s IS '%s'`, l.Name, mark))
		_, err := is.Mint(t.Context(), l)
		wantKind(t, err, want)
		beside := f.lease(f.readonly())
		f.mint(is, beside)
		out := is.Withdraw(t.Context(), []issuers.Lease{l, beside})
		wantKind(t, out[0].Err, want)
		if out[1].Err != nil {
			t.Errorf("the lease beside it: %v", out[1].Err)
		}
		wantKind(t, is.Extend(t.Context(), l), want)
		conn := f.server.Connect(t, l.Name, "theirs", f.database) // untouched
		_ = conn.Close(t.Context())
		f.server.Exec(t, f.database, "DROP ROLE "+l.Name)
	}
	l := f.lease(f.readonly())
	for _, name := range []string{"postgres", "mayfly_x", l.Name + "x", strings.ToUpper(l.Name), `mayfly_"; DROP ROLE admin; --`} {
		bad := l
		bad.Name = name
		_, err := is.Mint(t.Context(), bad)
		wantKind(t, err, issuers.Refused)
		wantKind(t, is.Withdraw(t.Context(), []issuers.Lease{bad})[0].Err, issuers.Refused)
	}
	found, err := is.List(t.Context())
	if err != nil || slices.ContainsFunc(found, func(x issuers.Found) bool { return x.LeaseID == l.ID }) {
		t.Errorf("List: %v, %v", found, err)
	}
}

func TestConcurrentMintsAndWithdrawals(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			l := f.lease(f.readonly())
			c, err := is.Mint(t.Context(), l)
			if err != nil {
				t.Errorf("Mint: %v", err)
				return
			}
			if c.Public["username"] != l.Name || c.Secret["password"].IsZero() {
				t.Errorf("credential of another lease: %s", c.Public["username"])
			}
			if out := is.Withdraw(t.Context(), []issuers.Lease{l}); out[0].Err != nil {
				t.Errorf("Withdraw: %v", out[0].Err)
			}
		})
	}
	wg.Wait()
}
