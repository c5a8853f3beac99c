package postgres_test

import (
	"context"
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

func TestHazard11ReassignKeepsPlainTablesAlone(t *testing.T) {
	f := newFixture(t, shared)
	owner := "owner_" + f.database
	f.server.Exec(t, f.database, `CREATE ROLE "`+owner+`" NOLOGIN; GRANT CREATE, USAGE ON SCHEMA hr TO "`+owner+`"`)
	is := f.open(1)
	ddl := f.scope([]string{"create"}, scope.Table{Name: "hr.*"})
	lease := func() (issuers.Lease, *pgx.Conn) {
		l := f.lease(ddl)
		l.RoleSpec = issuers.RoleSpec{OwnedOnEnd: "reassign", ReassignTo: owner}
		return l, f.mustLogin(f.mint(is, l))
	}
	ownerOf := func(table string) string {
		var name string
		err := f.server.Admin(t, f.database).QueryRow(t.Context(), "SELECT coalesce(max(pg_get_userbyid(relowner)), '') FROM pg_class WHERE relname = $1", table).Scan(&name)
		if err != nil {
			t.Fatal(err)
		}
		return name
	}

	plain, conn := lease()
	mustExec(t, conn, `CREATE TABLE hr.kept (id serial, v text); CREATE SEQUENCE hr.numbers; GRANT ALL ON hr.kept TO PUBLIC; GRANT SELECT (v) ON hr.kept TO PUBLIC;
		CREATE FUNCTION hr.door() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'; CREATE VIEW hr.look AS SELECT * FROM hr.kept`)
	out := f.withdraw(is, plain)
	if out[0].Receipt.OwnedDropped == 0 {
		t.Error("the receipt counts nothing owned")
	}
	if a, b := ownerOf("kept"), ownerOf("numbers"); a != owner || b != owner {
		t.Errorf("the table belongs to %q, the sequence to %q; want %q", a, b, owner)
	}
	if n := f.count("SELECT count(*) FROM pg_proc WHERE proname = 'door'") + f.count("SELECT count(*) FROM pg_class WHERE relname = 'look'"); n != 0 {
		t.Error("the function or the view was kept too")
	}
	if n := f.count("SELECT count(*) FROM pg_class WHERE relname = 'kept' AND has_table_privilege('public', oid, 'SELECT')"); n != 0 {
		t.Error("the ended account's grant to PUBLIC lives on")
	}

	for name, sql := range map[string]string{
		"trigger":    `CREATE FUNCTION hr.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; CREATE TRIGGER x BEFORE INSERT ON hr.trap EXECUTE FUNCTION hr.f()`,
		"rule":       `CREATE RULE x AS ON INSERT TO hr.trap DO ALSO NOTIFY x`,
		"policy":     `CREATE POLICY x ON hr.trap USING (true)`,
		"expression": `CREATE FUNCTION hr.f(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1'; CREATE INDEX ON hr.trap (hr.f(id))`,
		"function":   `CREATE FUNCTION hr.f() RETURNS int LANGUAGE sql AS 'SELECT 1'; ALTER TABLE hr.trap ALTER id SET DEFAULT hr.f()`,
		"type":       `CREATE DOMAIN hr.d AS int; ALTER TABLE hr.trap ADD x hr.d`,
	} {
		l, conn := lease()
		mustExec(t, conn, "CREATE TABLE hr.trap (id int); "+sql)
		got := is.Withdraw(t.Context(), []issuers.Lease{l})[0]
		if issuers.KindOf(got.Err) != issuers.Poison {
			t.Errorf("a table with a %s: %+v; want it parked", name, got)
		}
		if err := conn.Ping(t.Context()); err == nil {
			t.Errorf("a table with a %s: the parked account's session lives", name)
		}
		l.RoleSpec = issuers.RoleSpec{}
		f.withdraw(is, l)
	}

	l, conn := lease()
	mustExec(t, conn, "CREATE TABLE hr.trap (id int)")
	l.RoleSpec.ReassignTo = "admin"
	wantKind(t, is.Withdraw(t.Context(), []issuers.Lease{l})[0].Err, issuers.Poison)
	l.RoleSpec = issuers.RoleSpec{OwnedOnEnd: "drop"}
	f.withdraw(is, l)
	if ownerOf("trap") != "" {
		t.Error("drop kept the table")
	}
}

func TestHazard12SessionsPreparedAndOwnedInTwoDatabases(t *testing.T) {
	f := newFixture(t, shared)
	second := newFixture(t, shared)
	f.spec["databases"] = []string{second.database}
	is := f.open(1)
	both, err := scope.Scope{
		{Type: "database", Identifier: f.database, Actions: []string{"select", "create"}, Tables: []scope.Table{{Name: "public.*"}}},
		{Type: "database", Identifier: second.database, Actions: []string{"create", "select"}, Tables: []scope.Table{{Name: "hr.*"}}},
	}.Normalise()
	if err != nil {
		t.Fatal(err)
	}
	leases := make([]issuers.Lease, 6)
	conns := make([]*pgx.Conn, len(leases))
	for i := range leases {
		leases[i] = f.lease(both)
		conns[i] = f.mustLogin(f.mint(is, leases[i]))
		mustExec(t, conns[i], fmt.Sprintf("CREATE TABLE public.own%d (id int)", i))
	}
	// one with objects in the other database too, one in doubt, one that others depend on
	cfg := conns[0].Config().Copy()
	cfg.Database = second.database
	other, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close(context.Background()) }()
	mustExec(t, other, "CREATE TABLE hr.own (id int)")
	mustExec(t, conns[1], "BEGIN; INSERT INTO own1 VALUES (1); PREPARE TRANSACTION '"+leases[1].ID+"'")
	f.server.Exec(t, f.database, "CREATE VIEW public.others AS SELECT * FROM public.own2")

	out := is.Withdraw(t.Context(), leases)
	for i, o := range out {
		if stuck := i == 1 || i == 2; stuck != (issuers.KindOf(o.Err) == issuers.Poison && o.Err != nil) || !stuck && o.Err != nil {
			t.Errorf("lease %d: %+v", i, o)
		}
		if conns[i].Ping(t.Context()) == nil {
			t.Errorf("lease %d: its session lives", i)
		}
		if f.exists(leases[i].Name) != (i == 1 || i == 2) {
			t.Errorf("lease %d: account exists is %t", i, f.exists(leases[i].Name))
		}
	}
	if r := out[0].Receipt; r.SessionsEnded != 2 || r.OwnedDropped < 2 {
		t.Errorf("the receipt of two sessions and two tables in two databases: %+v", r)
	}
	if second.count("SELECT count(*) FROM pg_class WHERE relname = 'own'") != 0 {
		t.Error("the table in the second database is left")
	}
	f.server.Exec(t, f.database, "ROLLBACK PREPARED '"+leases[1].ID+"'")
	f.server.Exec(t, f.database, "DROP VIEW public.others")
	f.withdraw(is, leases...)
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
