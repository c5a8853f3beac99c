package postgres_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/postgres"
	"github.com/mayfly-broker/mayfly/issuers/postgres/pgtest"
	"github.com/mayfly-broker/mayfly/scope"
)

// valuesIn is the one table of values of a fixture whose leases have one shape.
func (f *fixture) valuesIn() string {
	f.t.Helper()
	return column(f.t, f.server.Admin(f.t, f.database), "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE tablename = 'mayfly_leases'")[0]
}

func (f *fixture) valued() int {
	f.t.Helper()
	return f.count("SELECT count(*) FROM " + f.valuesIn())
}

// customers has one row for each of n values of c.
func (f *fixture) customers(n int) *fixture {
	f.t.Helper()
	f.server.Exec(f.t, f.database, fmt.Sprintf("CREATE TABLE customers (c text PRIMARY KEY, n int); INSERT INTO customers SELECT 'c-' || i, i FROM generate_series(1, %d) i; ANALYZE customers", n))
	return f
}

func (f *fixture) customer(values ...string) scope.Scope {
	f.t.Helper()
	return f.scope([]string{"select"}, scope.Table{Name: "public.customers", Rows: []scope.Condition{is("c", "in", values...)}})
}

// Thousands of values are no more than one view, one pooled role and a row each.
func TestHazard15ManyValuesShareOneView(t *testing.T) {
	f := newFixture(t, shared).customers(400)
	f.spec["max_pooled_scopes"] = 2
	issuer := f.open(1)
	const n = 120
	var wg sync.WaitGroup
	leases := make([]issuers.Lease, n)
	for c := range 8 {
		wg.Go(func() {
			for i := c; i < n; i += 8 {
				leases[i] = f.lease(f.customer(fmt.Sprint("c-", i+1)))
				if i%2 == 1 {
					leases[i] = f.lease(f.customer(fmt.Sprint("c-", i+1), fmt.Sprint("c-", i+200)))
				}
				if _, err := issuer.Mint(context.Background(), leases[i]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if views, roles := f.count("SELECT count(*) FROM pg_views WHERE starts_with(schemaname, 'mayfly_rows_')"),
		f.count("SELECT count(*) FROM pg_roles WHERE starts_with(rolname, 'mayfly_rows_') AND shobj_description(oid, 'pg_authid') LIKE '%' || current_database()"); views != 2 || roles != 2 {
		t.Errorf("%d views and %d owners for %d values; want two, for = and for in", views, roles, n)
	}
	for _, i := range []int{0, 1, 7, 64, 119} { // a new secret says who it is for; the values stay
		conn := f.mustLogin(f.mint(issuer, issuertest.Regenerate(postgres.Kind{}, leases[i])))
		want := []string{fmt.Sprint("c-", i+1)}
		if i%2 == 1 {
			want = append(want, fmt.Sprint("c-", i+200))
		}
		wantColumn(t, conn, "SELECT c FROM customers ORDER BY n", want...)
		leases[i].Generation++
	}
	f.withdraw(issuer, leases...)
	if err := issuer.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := f.count("SELECT count(*) FROM pg_tables WHERE tablename = 'mayfly_leases'"); n != 0 {
		t.Errorf("%d tables of values are left", n)
	}
}

// The account that logged in decides, whatever role it acts as and whoever's
// function it runs.
func TestHazard15SessionUserDecides(t *testing.T) {
	f := newFixture(t, shared).customers(9)
	issuer := f.open(1)
	one, two := f.lease(f.customer("c-1")), f.lease(f.customer("c-2"))
	a, b := f.mustLogin(f.mint(issuer, one)), f.mustLogin(f.mint(issuer, two))
	plain := f.mustLogin(f.mint(issuer, f.lease(f.scope([]string{"select"}, scope.Table{Name: "public.orders"}))))
	own := func(conn *pgx.Conn, want string) {
		t.Helper()
		wantColumn(t, conn, "SELECT c FROM customers", want)
	}
	own(a, "c-1")
	pooled := column(t, a, "SELECT roleid::regrole::text FROM pg_auth_members WHERE member = current_user::regrole")[0]
	mustExec(t, a, "SET ROLE "+pooled)
	own(a, "c-1")
	mustExec(t, a, "RESET ROLE")
	for _, sql := range []string{"SET ROLE " + two.Name, "SET SESSION AUTHORIZATION " + two.Name, "SET LOCAL SESSION AUTHORIZATION " + pooled} {
		mustNot(t, a, sql)
	}
	mustExec(t, a, "SET SESSION AUTHORIZATION "+one.Name)
	own(a, "c-1")
	// functions that run as the account that owns them
	view := column(t, a, "SELECT 'customers'::regclass::oid::regclass::text FROM (SELECT set_config('search_path', 'pg_catalog', true)) x")[0]
	f.server.Exec(t, f.database, fmt.Sprintf(`CREATE FUNCTION peek() RETURNS text LANGUAGE sql SECURITY DEFINER AS 'SELECT string_agg(c, '','') || current_user FROM %s';
		ALTER FUNCTION peek() OWNER TO %s`, view, one.Name))
	wantColumn(t, b, "SELECT public.peek()", "c-2"+one.Name)
	wantColumn(t, plain, "SELECT coalesce(public.peek(), 'nothing')", "nothing")
	denied(t, plain, "42501", "SELECT * FROM "+view)
	// parallel workers
	mustExec(t, a, "SET max_parallel_workers_per_gather = 4; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0; SET force_parallel_mode = on")
	own(a, "c-1")
	f.withdraw(issuer, one, two)
}

// Nobody but the broker reads, writes or locks the table of values.
func TestHazard15NobodyReachesTheValues(t *testing.T) {
	f := newFixture(t, shared).people()
	issuer := f.open(1)
	hidden := f.lease(f.scope([]string{"select", "update", "delete"}, scope.Table{Name: "public.people", Rows: []scope.Condition{is("name", "eq", "HIDDEN")}}))
	f.mint(issuer, hidden)
	mine := f.lease(f.scope([]string{"select", "update", "delete"}, scope.Table{Name: "public.people", Rows: []scope.Condition{is("name", "eq", "ann")}}))
	conn := f.mustLogin(f.mint(issuer, mine))
	pooled := column(t, conn, "SELECT roleid::regrole::text FROM pg_auth_members WHERE member = current_user::regrole")[0]
	for _, as := range []string{mine.Name, pooled} {
		mustExec(t, conn, "SET ROLE "+as)
		for _, sql := range []string{
			"SELECT * FROM mayfly_leases", "SELECT count(*) FROM mayfly_leases", "INSERT INTO mayfly_leases VALUES ('x', 'HIDDEN')", "UPDATE mayfly_leases SET v1 = 'HIDDEN'",
			"DELETE FROM mayfly_leases", "TRUNCATE mayfly_leases", "COPY mayfly_leases TO STDOUT", "BEGIN; LOCK TABLE mayfly_leases IN ACCESS SHARE MODE",
			"CREATE INDEX ON mayfly_leases (v1)", "ALTER TABLE mayfly_leases ADD CHECK (v1 <> 'x')", "CREATE STATISTICS s ON account, v1 FROM mayfly_leases",
			"CREATE POLICY p ON mayfly_leases", "COMMENT ON TABLE mayfly_leases IS 'x'", "CREATE TRIGGER t AFTER INSERT ON mayfly_leases EXECUTE FUNCTION pg_catalog.suppress_redundant_updates_trigger()",
			"CREATE RULE r AS ON INSERT TO mayfly_leases DO NOTHING", "DROP TABLE mayfly_leases", "CREATE TEMP TABLE mine (a name REFERENCES mayfly_leases)",
		} {
			_, err := conn.Exec(t.Context(), sql)
			if err == nil || strings.Contains(err.Error(), "HIDDEN") {
				t.Errorf("as %s, %s: %v", as, sql, err)
			}
			mustExec(t, conn, "ROLLBACK")
		}
		mustNot(t, conn, "GRANT ALL ON mayfly_leases TO PUBLIC")
	}
	mustExec(t, conn, "RESET ROLE")
	if n := f.count("SELECT count(*) FROM pg_class c, aclexplode(c.relacl) a WHERE c.relname = 'mayfly_leases' AND (a.grantee = 0 OR a.grantee = c.relowner AND a.privilege_type <> 'SELECT')"); n != 0 {
		t.Error("others than the broker may write the values")
	}
	for _, sql := range []string{"EXPLAIN (ANALYZE, VERBOSE) SELECT * FROM people", "EXPLAIN (VERBOSE) UPDATE people SET ok = true",
		"SELECT s::text FROM pg_stats s WHERE tablename = 'mayfly_leases'", "SELECT pg_get_viewdef('people'::regclass)"} {
		if plan := strings.Join(column(t, conn, sql), "\n"); strings.Contains(plan, "HIDDEN") || strings.Contains(plan, hidden.Name) {
			t.Errorf("%s: %s", sql, plan)
		}
	}
	// Whatever it locks, others are minted, extended and withdrawn meanwhile.
	for _, sql := range []string{"LOCK TABLE people IN ACCESS EXCLUSIVE MODE", "LOCK TABLE people IN SHARE MODE", "LOCK TABLE people IN ROW EXCLUSIVE MODE", "LOCK TABLE people IN ACCESS SHARE MODE",
		"SELECT * FROM people FOR UPDATE", "UPDATE people SET ok = true", "SELECT pg_advisory_xact_lock(1)"} {
		mustExec(t, conn, "BEGIN")
		_, err := conn.Exec(t.Context(), sql)
		if strings.HasSuffix(sql, "EXCLUSIVE MODE") && err == nil {
			t.Errorf("%s: allowed, and reaches the table of values", sql)
		}
		other := f.lease(mine.Scope)
		f.mint(issuer, other)
		other.NotAfter = other.NotAfter.Add(time.Minute)
		if err := issuer.Extend(t.Context(), other); err != nil {
			t.Errorf("%s: extend another lease: %v", sql, err)
		}
		f.withdraw(issuer, other)
		mustExec(t, conn, "ROLLBACK")
	}
}

// At no instant is there an account without its values, or the other way round.
func TestHazard15ValuesComeAndGoWithTheAccount(t *testing.T) {
	f := newFixture(t, shared).customers(9)
	issuer := f.open(1)
	first := f.lease(f.customer("c-1"))
	f.mint(issuer, first)
	look := fmt.Sprintf(`SELECT count(*) FROM %s k FULL JOIN (SELECT a.rolname FROM pg_auth_members m JOIN pg_roles a ON a.oid = m.member
		WHERE m.roleid = (SELECT roleid FROM pg_auth_members WHERE member = '%s'::regrole)) r ON r.rolname = k.account WHERE k.account IS NULL OR r.rolname IS NULL`, f.valuesIn(), first.Name)
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 12 {
				l := f.lease(f.customer("c-2"))
				if _, err := issuer.Mint(context.Background(), l); err != nil {
					t.Error(err)
				}
				if out := issuer.Withdraw(context.Background(), []issuers.Lease{l}); out[0].Err != nil {
					t.Error(out[0].Err)
				}
			}
		})
	}
	go func() { wg.Wait(); close(done) }()
	admin := f.server.Admin(t, f.database)
	for looking := true; looking; {
		select {
		case <-done:
			looking = false
		default:
		}
		wantColumn(t, admin, strings.Replace(look, "count(*)", "count(*)::text", 1), "0")
	}
	if n := f.valued(); n != 1 {
		t.Errorf("%d rows of values; want the live lease's", n)
	}
	// what cannot be ended keeps its values, and what is refused has none
	if _, err := issuer.Mint(t.Context(), f.lease(f.customer("c-1\\"))); err != nil {
		t.Error(err)
	}
	late := f.lease(f.customer("c-1"))
	late.MintDeadline = time.Now().Add(-time.Second)
	_, err := issuer.Mint(t.Context(), late)
	wantKind(t, err, issuers.TooLate)
	if n := f.valued(); n != 2 {
		t.Errorf("%d rows of values; want two", n)
	}
}

// Values that outlived their account are listed, and go with a sweep or a
// withdrawal.
func TestHazard15StaleValuesAreFound(t *testing.T) {
	f := newFixture(t, pgtest.Start(t)).customers(9)
	issuer := f.open(1)
	f.mint(issuer, f.lease(f.customer("c-9")))
	for name, remove := range map[string]func(issuers.Lease){
		"sweep":    func(issuers.Lease) { _ = issuer.Sweep(t.Context()) },
		"withdraw": func(l issuers.Lease) { f.withdraw(f.open(2), l) },
	} {
		l := f.lease(f.customer("c-1"))
		f.mint(issuer, l)
		f.server.Exec(t, f.database, "DROP OWNED BY "+l.Name+"; DROP ROLE "+l.Name)
		listed := func() bool {
			found, err := issuer.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range found {
				if x.Name == l.Name && x.LeaseID == l.ID {
					return true
				}
			}
			return false
		}
		if !listed() {
			t.Errorf("%s: the values of an account that is gone are not listed", name)
		}
		remove(l)
		if listed() || f.valued() != 1 {
			t.Errorf("%s: the values are still there", name)
		}
	}
}

// A name that comes back has its own values; a generation that is late, or a
// renewal, changes none.
func TestHazard15NewestGenerationsValuesStand(t *testing.T) {
	f := newFixture(t, shared).customers(9)
	issuer := f.open(1)
	l := f.lease(f.customer("c-1"))
	f.mint(issuer, l)
	f.server.Exec(t, f.database, "DROP ROLE "+l.Name) // by hand: its values stay
	l.Scope = f.customer("c-2")
	wantColumn(t, f.mustLogin(f.mint(issuer, l)), "SELECT c FROM customers", "c-2")

	next := issuertest.Regenerate(postgres.Kind{}, l)
	next.Scope = f.customer("c-3")
	conn := f.mustLogin(f.mint(issuer, next))
	wantColumn(t, conn, "SELECT c FROM customers", "c-3")
	_, err := issuer.Mint(t.Context(), l)
	wantKind(t, err, issuers.Superseded)
	next.NotAfter = next.NotAfter.Add(time.Hour)
	if err := issuer.Extend(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	wantColumn(t, conn, "SELECT c FROM customers", "c-3")

	// its role changed meanwhile: another view, and no values under the old one
	last := issuertest.Regenerate(postgres.Kind{}, next)
	last.RoleVersion++
	last.Scope = f.customer("c-4", "c-5")
	before := f.valuesIn()
	conn = f.mustLogin(f.mint(issuer, last))
	wantColumn(t, conn, "SELECT c FROM customers ORDER BY c", "c-4", "c-5")
	if n := f.count("SELECT count(*) FROM " + before); n != 0 {
		t.Errorf("%d rows of values are left under the view that the account has left", n)
	}
	f.withdraw(issuer, last)
}

// In another database the values come after the account, and go before it.
func TestHazard15ValuesInAnotherDatabase(t *testing.T) {
	f, side := newFixture(t, shared).customers(9), newFixture(t, shared).customers(9)
	f.spec["databases"] = []string{side.database}
	issuer := f.open(1)
	both := func(values ...string) scope.Scope {
		table := []scope.Table{{Name: "public.customers", Rows: []scope.Condition{is("c", "in", values...)}}}
		s, err := scope.Scope{{Type: "database", Identifier: "d_*", Actions: []string{"select"}, Tables: table}}.Normalise()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	l := f.lease(both("c-1"))
	c := f.mint(issuer, l)
	there := func(c issuers.Credential, database string) *pgx.Conn {
		return f.server.Connect(t, c.Public["username"], c.Secret["password"].Reveal(), database)
	}
	wantColumn(t, there(c, f.database), "SELECT c FROM customers", "c-1")
	wantColumn(t, there(c, side.database), "SELECT c FROM customers", "c-1")
	next := issuertest.Regenerate(postgres.Kind{}, l)
	next.Scope = both("c-2")
	c = f.mint(issuer, next)
	wantColumn(t, there(c, side.database), "SELECT c FROM customers", "c-2")
	f.withdraw(issuer, next)
	if f.valued() != 0 || side.valued() != 0 {
		t.Error("values are left of an account that has ended")
	}
	// without its values there, a mint is none
	side.server.Exec(t, side.database, "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''no''; END'; CREATE TRIGGER no BEFORE INSERT ON "+side.valuesIn()+" FOR EACH ROW EXECUTE FUNCTION no()")
	bad := f.lease(both("c-3"))
	if _, err := issuer.Mint(t.Context(), bad); err == nil {
		t.Error("a mint succeeded without its values")
	}
	if f.exists(bad.Name) || f.valued() != 0 {
		t.Error("an account is left of a mint that failed")
	}
}

// A mint that is still writing in another database when its lease ends leaves
// nothing there.
func TestHazard8ValuesOfALateMint(t *testing.T) {
	f, side := newFixture(t, shared).customers(9), newFixture(t, shared).customers(9)
	f.spec["databases"] = []string{side.database}
	issuer := f.open(1)
	s, err := scope.Scope{{Type: "database", Identifier: side.database, Actions: []string{"select"},
		Tables: []scope.Table{{Name: "public.customers", Rows: []scope.Condition{is("c", "eq", "c-1")}}}}}.Normalise()
	if err != nil {
		t.Fatal(err)
	}
	f.mint(issuer, f.lease(s))
	// before the statement has looked at the account, and after
	for name, hold := range map[string]string{"before": "LOCK TABLE " + side.valuesIn() + " IN ACCESS EXCLUSIVE MODE", "after": "SELECT pg_advisory_xact_lock(42)"} {
		side.server.Exec(t, side.database, `CREATE OR REPLACE FUNCTION stall() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock(42); RETURN NEW; END';
			CREATE OR REPLACE TRIGGER stall BEFORE INSERT ON `+side.valuesIn()+` FOR EACH ROW EXECUTE FUNCTION stall(); GRANT EXECUTE ON FUNCTION stall() TO PUBLIC`)
		holder := side.server.Admin(t, side.database)
		mustExec(t, holder, "BEGIN; "+hold)
		l := f.lease(s)
		minted, ended := make(chan error, 1), make(chan issuers.Outcome, 1)
		go func() { _, err := issuer.Mint(context.Background(), l); minted <- err }()
		waits := func(n int) func() bool {
			return func() bool {
				return f.count("SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND wait_event_type = 'Lock'", side.database) == n
			}
		}
		eventually(t, "the mint writes its values", waits(1))
		go func() { ended <- issuer.Withdraw(context.Background(), []issuers.Lease{l})[0] }()
		eventually(t, "the withdrawal waits for that", waits(2))
		mustExec(t, holder, "ROLLBACK")
		if err := <-minted; name == "before" && err == nil {
			t.Error("a lease that has ended was minted")
		}
		if out := <-ended; out.Err != nil || f.exists(l.Name) {
			t.Errorf("%s: withdrawal: %v; the account stands: %t", name, out.Err, f.exists(l.Name))
		}
		if n := side.valued(); n != 1 {
			t.Errorf("%s: %d rows of values; want the other lease's", name, n)
		}
	}
}

// The broker's server session reads the texts, once; an account's settings have no
// part in what its filter means, and neither have lengths of columns.
func TestHazard14ValuesAreReadByTheBrokerAlone(t *testing.T) {
	f := newFixture(t, shared).people()
	f.server.Exec(t, f.database, `CREATE TABLE odd (id int, t text COLLATE "C", i text COLLATE "de-x-icu", n numeric(6,1), v varchar(3), at timestamptz, e mood, b bool, d float8, u uuid, ip inet);
		INSERT INTO odd VALUES (1, 'x', 'ä', 1.5, 'abc', '2024-01-01 12:00Z', 'calm', true, 0.1, '00000000-0000-0000-0000-000000000001', '10.0.0.1'),
			(2, 'NULL', 'z', 1.6, 'b', '2024-01-01 13:00Z', 'cross', false, 0.3, '00000000-0000-0000-0000-000000000002', '10.0.0.2'),
			(3, 'a,"\}', '', 9, '', NULL, NULL, NULL, 'NaN', NULL, NULL)`)
	issuer := f.open(1)
	for _, x := range []struct {
		want  string
		where scope.Condition
	}{
		{"1", is("t", "eq", "x")}, {"2,3", is("t", "in", "NULL", `a,"\}`)}, {"1", is("i", "eq", "ä")}, {"1,3", is("i", "in", "ä", "")},
		{"2,3", is("n", "gt", "1.54")}, {"", is("n", "eq", "1.54")}, {"", is("v", "eq", "abcd")}, {"1", is("v", "in", "abc", "abcd")},
		{"1", is("at", "lt", "2024-01-01 12:30:00")}, {"1,2", is("at", "in", "2024-01-01 12:00:00", "2024-01-01 13:00:00Z")},
		{"1", is("e", "eq", "calm")}, {"1,2", is("e", "in", "calm", "cross")}, {"1", is("b", "eq", "true")}, {"1", is("d", "lt", "0.3")}, {"2", is("d", "eq", "0.3")},
		{"1,2", is("u", "in", "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002")}, {"1", is("ip", "eq", "10.0.0.1")},
	} {
		l := f.lease(f.scope([]string{"select"}, scope.Table{Name: "public.odd", Rows: []scope.Condition{x.where}}))
		conn := f.mustLogin(f.mint(issuer, l))
		for _, set := range []string{"", "SET timezone = 'Asia/Tokyo'; SET datestyle = 'German, DMY'", "SET extra_float_digits = -15; SET array_nulls = off; SET lc_numeric = 'C'; SET search_path = pg_temp, public"} {
			mustExec(t, conn, set)
			view := column(t, conn, "SELECT format('%I.odd', schemaname) FROM pg_views WHERE viewname = 'odd' AND has_schema_privilege(schemaname, 'USAGE')")[0]
			wantColumn(t, conn, "SELECT coalesce(string_agg(id::text, ',' ORDER BY id), '') FROM "+view, x.want)
		}
		f.withdraw(issuer, l)
	}
	// where the view stands, a value is still looked at
	f.mint(issuer, f.lease(f.rows(is("id", "eq", "1"))))
	f.mint(issuer, f.lease(f.rows(is("seen", "lt", "2024-01-01"))))
	for _, where := range []scope.Condition{is("id", "eq", "one"), is("id", "eq", "99999999999"), is("seen", "lt", "now"), is("seen", "lt", "2024-13-01")} {
		for _, leader := range []issuers.Issuer{issuer, f.open(2)} {
			l := f.lease(f.rows(where))
			_, err := leader.Mint(t.Context(), l)
			if err == nil || issuers.KindOf(err) != issuers.BadScope || f.exists(l.Name) {
				t.Errorf("%v: %v; want a scope refused as bad", where, err)
			}
		}
	}
}

// A filter finds its rows by the table's own index, and its values by theirs.
func TestHazard15ValuesPlanLikeLiterals(t *testing.T) {
	f := newFixture(t, shared).customers(20_000)
	issuer := f.open(1)
	for _, s := range []scope.Scope{f.customer("c-77"), f.customer("c-77", "c-78")} {
		conn := f.mustLogin(f.mint(issuer, f.lease(s)))
		plan := strings.Join(column(t, conn, "EXPLAIN SELECT * FROM customers"), "\n")
		if strings.Contains(plan, "Seq Scan on customers") || !strings.Contains(plan, "customers_pkey") || !strings.Contains(plan, "mayfly_leases_pkey") {
			t.Errorf("plan:\n%s", plan)
		}
	}
}
