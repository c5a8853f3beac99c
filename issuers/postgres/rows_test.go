package postgres_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/postgres"
	"github.com/mayfly-broker/mayfly/issuers/postgres/pgtest"
	"github.com/mayfly-broker/mayfly/scope"
)

// peopleSQL has rows that a filter on region must hide, and columns of every
// kind that it can be on.
const peopleSQL = `
CREATE TYPE mood AS ENUM ('calm', 'cross');
CREATE DOMAIN score AS int CHECK (VALUE >= 0);
CREATE TABLE people (id int PRIMARY KEY, name text, region varchar(8), salary numeric, code char(4), born date, seen timestamptz, feels mood, ok bool, points score, boss int REFERENCES people);
INSERT INTO people VALUES
	(1, 'ann', 'eu', 10, 'a', '1990-01-01', '2024-01-01 00:00:00Z', 'calm', true, 1, NULL),
	(2, 'bo', 'eu', 20, 'b', '1980-01-01', '2023-01-01 00:00:00Z', 'cross', false, 2, 1),
	(3, 'HIDDEN', 'us', 30, 'c', '1970-01-01', NULL, 'cross', true, 3, 1);
ANALYZE people;`

func (f *fixture) people() *fixture {
	f.t.Helper()
	f.server.Exec(f.t, f.database, peopleSQL)
	return f
}

func is(column, op string, values ...string) scope.Condition {
	return scope.Condition{Column: column, Op: op, Values: values}
}

func (f *fixture) rows(where ...scope.Condition) scope.Scope {
	f.t.Helper()
	return f.scope([]string{"select"}, scope.Table{Name: "public.people", Rows: where})
}

// europe is an account that may see two of three people.
func (f *fixture) europe(issuer issuers.Issuer) (issuers.Lease, *pgx.Conn) {
	f.t.Helper()
	l := f.lease(f.rows(is("region", "eq", "eu")))
	return l, f.mustLogin(f.mint(issuer, l))
}

func column(t testing.TB, c *pgx.Conn, sql string) []string {
	t.Helper()
	rows, err := c.Query(t.Context(), sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return out
}

func wantColumn(t testing.TB, c *pgx.Conn, sql string, want ...string) {
	t.Helper()
	if got := column(t, c, sql); !slices.Equal(got, want) {
		t.Errorf("%s: %q; want %q", sql, got, want)
	}
}

// denied wants the statement refused with that SQLSTATE, and without a word of
// what is hidden.
func denied(t testing.TB, c *pgx.Conn, code, sql string) {
	t.Helper()
	_, err := c.Exec(t.Context(), sql)
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.Code != code {
		t.Errorf("%s: %v; want SQLSTATE %s", sql, err, code)
		return
	}
	if strings.Contains(fmt.Sprintf("%+v", *pg), "HIDDEN") {
		t.Errorf("%s: the error tells what is hidden: %+v", sql, pg)
	}
}

func TestHazard14FilterHidesRowsUnderTheTablesName(t *testing.T) {
	f := newFixture(t, shared).people()
	issuer := f.open(1)
	l, conn := f.europe(issuer)
	wantColumn(t, conn, "SELECT name FROM people ORDER BY id", "ann", "bo")
	denied(t, conn, "42501", "SELECT * FROM public.people")
	denied(t, conn, "42501", "SELECT count(*) FROM orders") // nothing else is granted
	// the account's own path gives nothing more
	mustExec(t, conn, "SET search_path = public")
	denied(t, conn, "42501", "SELECT name FROM people")
	f.withdraw(issuer, l)
	if n := f.count("SELECT count(*) FROM pg_db_role_setting s LEFT JOIN pg_roles r ON r.oid = s.setrole WHERE s.setrole <> 0 AND r.oid IS NULL"); n != 0 {
		t.Errorf("%d settings of dropped accounts are left", n)
	}
}

func TestHazard14EveryOperatorAndType(t *testing.T) {
	f := newFixture(t, shared).people()
	issuer := f.open(1)
	for want, where := range map[string][]scope.Condition{
		"1,2":   {is("region", "eq", "eu")},
		"3":     {is("region", "ne", "eu")},
		"1,3":   {is("id", "in", "1", "3")},
		"2":     {is("region", "eq", "eu"), is("salary", "gt", "10.5")},
		"1":     {is("code", "eq", "a")},
		"2,3":   {is("born", "le", "1980-01-01")},
		"1,2,3": {is("born", "ge", "1970-01-01"), is("born", "lt", "2000-01-01")},
		"":      {is("name", "eq", `' OR true --`)},
	} {
		l := f.lease(f.rows(where...))
		conn := f.mustLogin(f.mint(issuer, l))
		wantColumn(t, conn, "SELECT coalesce(string_agg(id::text, ',' ORDER BY id), '') FROM people", want)
		f.withdraw(issuer, l)
	}
	for want, where := range map[string]scope.Condition{
		"1": is("seen", "ge", "2023-06-01 00:00:00Z"), "3": is("seen", "null"), "1,2": is("seen", "notnull"),
		"2,3": is("feels", "eq", "cross"), "2": is("ok", "eq", "false"),
	} {
		l := f.lease(f.rows(where))
		conn := f.mustLogin(f.mint(issuer, l))
		wantColumn(t, conn, "SELECT coalesce(string_agg(id::text, ',' ORDER BY id), '') FROM people", want)
		f.withdraw(issuer, l)
	}
	for name, where := range map[string]scope.Condition{
		"no such column":  is("nothing", "eq", "1"),
		"system column":   is("ctid", "eq", "(0,1)"),
		"not of the type": is("id", "eq", "one"),
		"no such label":   is("feels", "eq", "glad"),
		"a domain":        is("points", "eq", "1"),
		"now":             is("seen", "lt", "now"),
		"a word in time":  is("seen", "lt", "12:00 today"),
		"infinity":        is("born", "gt", "-infinity"),
	} {
		_, err := issuer.Mint(t.Context(), f.lease(f.rows(where)))
		if err == nil || issuers.KindOf(err) != issuers.BadScope {
			t.Errorf("%s: %v; want a scope refused as bad", name, err)
		}
	}
}

// What an account can run beside the filter, to see what it hides.
func TestHazard14NothingLeaksThroughTheView(t *testing.T) {
	f := newFixture(t, shared).people()
	issuer := f.open(1)
	_, conn := f.europe(issuer)
	var heard []string
	cfg := conn.Config().Copy()
	cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { heard = append(heard, n.Message) }
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()

	// a function that costs nothing, and tells; the planner would run it first
	mustExec(t, conn, `CREATE FUNCTION pg_temp.tell(text) RETURNS bool LANGUAGE plpgsql COST 0.0000001 AS 'BEGIN RAISE NOTICE ''heard %'', $1; RETURN true; END'`)
	mustExec(t, conn, "SELECT * FROM people WHERE pg_temp.tell(name)")
	mustExec(t, conn, "EXPLAIN ANALYZE SELECT * FROM people WHERE pg_temp.tell(name)")
	mustExec(t, conn, "SELECT * FROM people a JOIN people b ON pg_temp.tell(a.name || b.name)")
	// a leaky operator, shown to the planner's statistics
	mustExec(t, conn, `CREATE FUNCTION pg_temp.sly(text, text) RETURNS bool LANGUAGE plpgsql AS 'BEGIN RAISE NOTICE ''heard % %'', $1, $2; RETURN true; END';
		CREATE OPERATOR pg_temp.<<< (LEFTARG = text, RIGHTARG = text, FUNCTION = pg_temp.sly, RESTRICT = scalarltsel)`)
	mustExec(t, conn, "EXPLAIN SELECT * FROM people WHERE name OPERATOR(pg_temp.<<<) 'x'")
	if len(heard) == 0 {
		t.Error("the function heard nothing: the test proves nothing")
	}
	for _, m := range heard {
		if strings.Contains(m, "HIDDEN") {
			t.Errorf("heard: %s", m)
		}
	}
	// errors: the row that would raise one is hidden
	mustExec(t, conn, "SELECT 1 / (id - 3) FROM people")
	mustExec(t, conn, "SELECT CASE WHEN name = 'HIDDEN' THEN name::int END FROM people WHERE name <> 'x' OR name::int > 0")
	// other ways to read
	wantColumn(t, conn, "SELECT count(*)::text FROM pg_stats WHERE tablename = 'people'", "0")
	wantColumn(t, conn, "SELECT p::text FROM people p WHERE p.id = 3")
	wantColumn(t, conn, "WITH w AS (TABLE people) SELECT name FROM w WHERE region = 'us'")
	var copied strings.Builder
	if _, err := conn.PgConn().CopyTo(t.Context(), &copied, "COPY (SELECT * FROM people) TO STDOUT"); err != nil || strings.Contains(copied.String(), "HIDDEN") || !strings.Contains(copied.String(), "ann") {
		t.Errorf("COPY: %q, %v", copied.String(), err)
	}
	mustExec(t, conn, "BEGIN; DECLARE c SCROLL CURSOR FOR SELECT name FROM people ORDER BY id")
	wantColumn(t, conn, "FETCH ALL FROM c", "ann", "bo")
	denied(t, conn, "0A000", "DELETE FROM people WHERE CURRENT OF c")
	mustExec(t, conn, "ROLLBACK")
	for _, sql := range []string{
		"COPY public.people TO STDOUT", "SELECT * FROM people FOR UPDATE", "SELECT 1 FROM public.people", "BEGIN; LOCK TABLE public.people",
	} {
		denied(t, conn, "42501", sql)
	}
}

func TestHazard14WritesAreRefused(t *testing.T) {
	f := newFixture(t, shared).people()
	_, conn := f.europe(f.open(1))
	for _, sql := range []string{
		"INSERT INTO people (id, region) VALUES (9, 'eu')", "INSERT INTO people (id) VALUES (3) ON CONFLICT DO NOTHING", "UPDATE people SET region = 'us'",
		"UPDATE people SET name = name RETURNING *", "DELETE FROM people RETURNING *", "TRUNCATE public.people", "INSERT INTO public.people (id) VALUES (3) ON CONFLICT (id) DO UPDATE SET id = 4 RETURNING *",
		"ALTER VIEW people SET (security_barrier = false)", "COPY public.people FROM STDIN",
	} {
		if _, err := conn.Exec(t.Context(), sql); err == nil {
			t.Errorf("was allowed: %s", sql)
		}
	}
	mustNot(t, conn, "CREATE OR REPLACE VIEW people AS SELECT 1")
	if n := f.count("SELECT count(*) FROM people WHERE region = 'eu'"); n != 2 {
		t.Errorf("%d rows of eu", n)
	}
}

// An account acts as its pooled role (before version 16), and as whoever else it
// can, to reach the table or the view itself.
func TestHazard14NobodyActsAsTheOwner(t *testing.T) {
	f := newFixture(t, shared).people()
	_, conn := f.europe(f.open(1))
	owner := column(t, conn, "SELECT tableowner FROM (SELECT viewowner AS tableowner FROM pg_views WHERE viewname = 'people') x")[0]
	pooled := column(t, conn, "SELECT roleid::regrole::text FROM pg_auth_members WHERE member = current_user::regrole")[0]
	if !strings.HasPrefix(owner, "mayfly_rows_") || len(owner) > 63 {
		t.Errorf("the view belongs to %s", owner)
	}
	denied(t, conn, "42501", "SET ROLE "+owner)
	mustExec(t, conn, "SET ROLE "+pooled)
	denied(t, conn, "42501", "SELECT * FROM public.people")
	denied(t, conn, "42501", "SET ROLE "+owner)
	mustNot(t, conn, "CREATE OR REPLACE VIEW "+owner+".people AS SELECT 1 AS id")
	mustNot(t, conn, "ALTER VIEW "+owner+".people OWNER TO "+pooled)
	mustNot(t, conn, "CREATE TABLE "+owner+".mine (id int)")
	mustExec(t, conn, "GRANT SELECT ON "+owner+".people TO PUBLIC") // a warning, and nothing granted
	if n := f.count("SELECT count(*) FROM pg_class c, aclexplode(c.relacl) a WHERE c.oid = ($1 || '.people')::regclass AND a.grantee = 0", owner); n != 0 {
		t.Error("an account lets everybody read its view")
	}
	if n := f.count("SELECT count(*) FROM pg_auth_members WHERE roleid = $1::regrole", owner); n != 0 {
		t.Error("somebody is a member of the views' owner")
	}
	if n := f.count("SELECT count(*) FROM pg_roles WHERE rolname = $1 AND (rolcanlogin OR rolsuper OR rolbypassrls OR rolinherit)", owner); n != 0 {
		t.Error("the views' owner is no plain role")
	}
}

// The table's own row-level security holds as well: ours only narrows it, and an
// application's permissive policy does not widen ours.
func TestHazard14RowLevelSecurityHoldsToo(t *testing.T) {
	f := newFixture(t, shared).people()
	f.server.Exec(t, f.database, `ALTER TABLE people ENABLE ROW LEVEL SECURITY; CREATE ROLE "app_`+f.database+`"; GRANT SELECT ON people TO "app_`+f.database+`"`)
	_, conn := f.europe(f.open(1))
	wantColumn(t, conn, "SELECT name FROM people") // no policy, no rows
	f.server.Exec(t, f.database, "CREATE POLICY older ON people USING (id <> 1)")
	wantColumn(t, conn, "SELECT name FROM people", "bo")
	f.server.Exec(t, f.database, "CREATE POLICY all_of_it ON people USING (true)")
	wantColumn(t, conn, "SELECT name FROM people ORDER BY id", "ann", "bo")
	// and the application's users see what they always saw
	if n := f.count(`SELECT count(*) FROM pg_policies WHERE tablename = 'people'`); n != 2 {
		t.Errorf("%d policies", n)
	}
	mustExec(t, conn, "SET row_security = off")
	denied(t, conn, "42501", "SELECT name FROM people")
}

func TestHazard14PublicRightsMakeItRefuse(t *testing.T) {
	f := newFixture(t, shared).people()
	issuer := f.open(1)
	for _, grant := range []string{"SELECT ON people", "SELECT (name) ON people", "UPDATE (region) ON people", "DELETE ON people"} {
		f.server.Exec(t, f.database, "GRANT "+grant+" TO PUBLIC")
		_, err := issuer.Mint(t.Context(), f.lease(f.rows(is("region", "eq", "eu"))))
		wantKind(t, err, issuers.Refused)
		if !strings.Contains(err.Error(), "REVOKE ALL ON") {
			t.Errorf("%v does not say what to do", err)
		}
		f.server.Exec(t, f.database, "REVOKE "+grant+" FROM PUBLIC")
	}
	f.server.Exec(t, f.database, "CREATE TABLE part (CHECK (id > 0)) INHERITS (people); GRANT SELECT ON part TO PUBLIC")
	_, err := issuer.Mint(t.Context(), f.lease(f.rows(is("region", "eq", "eu"))))
	wantKind(t, err, issuers.Refused)

	// opened while the views stand: from the next sweep on, no more accounts
	f.server.Exec(t, f.database, "REVOKE ALL ON part FROM PUBLIC")
	f.mint(issuer, f.lease(f.rows(is("region", "eq", "eu"))))
	f.server.Exec(t, f.database, "GRANT SELECT ON people TO PUBLIC")
	sweep := func() {
		t.Helper()
		if err := issuer.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	sweep()
	late := f.lease(f.rows(is("region", "eq", "eu")))
	_, err = issuer.Mint(t.Context(), late)
	wantKind(t, err, issuers.Refused)
	if f.exists(late.Name) {
		t.Error("an account stands that was refused")
	}
	f.server.Exec(t, f.database, "REVOKE SELECT ON people FROM PUBLIC")
	sweep()
	f.mint(issuer, late)
}

// A table changed, renamed or dropped under its view never shows other rows.
func TestHazard14TableChangesUnderTheView(t *testing.T) {
	f := newFixture(t, shared).people()
	issuer := f.open(1)
	_, conn := f.europe(issuer)
	sweep := func() {
		t.Helper()
		if err := issuer.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.server.Do(t.Context(), f.database, "DROP TABLE people"); err == nil {
		t.Error("the table is dropped in silence under its view")
	}
	f.server.Exec(t, f.database, "ALTER TABLE people ADD COLUMN extra text DEFAULT 'new'")
	mustNot(t, conn, "SELECT extra FROM people")
	sweep()
	wantColumn(t, conn, "SELECT extra FROM people", "new", "new")

	// columns that swap names: the filter follows the name, after a sweep
	f.server.Exec(t, f.database, "ALTER TABLE people RENAME region TO old; ALTER TABLE people ADD COLUMN region varchar(8) DEFAULT 'eu'")
	wantColumn(t, conn, "SELECT name FROM people ORDER BY id", "ann", "bo")
	sweep()
	wantColumn(t, conn, "SELECT count(*)::text FROM people", "3")

	// another table under the name
	f.server.Exec(t, f.database, "ALTER TABLE people RENAME TO people_old; CREATE TABLE people (id int, name text, region text); INSERT INTO people VALUES (7, 'cy', 'eu'), (8, 'HIDDEN', 'us')")
	sweep()
	wantColumn(t, conn, "SELECT name FROM people", "cy")
	f.server.Exec(t, f.database, "DROP TABLE people CASCADE")
	mustNot(t, conn, "SELECT * FROM people")
	sweep() // logs that the scope cannot stand
	f.server.Exec(t, f.database, "CREATE TABLE people (id int, name text, region text); INSERT INTO people VALUES (9, 'di', 'eu'), (8, 'HIDDEN', 'us')")
	sweep()
	wantColumn(t, conn, "SELECT name FROM people", "di")
	// one that somebody tampered with is made anew
	owner := column(t, conn, "SELECT viewowner FROM pg_views WHERE viewname = 'people'")[0]
	f.server.Exec(t, f.database, "ALTER VIEW "+owner+".people SET (security_barrier = false)")
	sweep()
	f.server.Exec(t, f.database, "CREATE OR REPLACE VIEW "+owner+".people WITH (security_barrier = true) AS SELECT id, name, region FROM public.people")
	sweep()
	wantColumn(t, conn, "SELECT name FROM people", "di")
}

func TestHazard15ViewsArePooledAndSwept(t *testing.T) {
	f := newFixture(t, shared).people()
	f.spec["databases"] = []string{"postgres"}
	issuer := f.open(1)
	rows := func() int {
		return f.count("SELECT count(*) FROM pg_roles WHERE starts_with(rolname, 'mayfly_rows_') AND shobj_description(oid, 'pg_authid') LIKE '%' || current_database()")
	}
	views := func() int {
		return f.count("SELECT count(*) FROM pg_views WHERE starts_with(schemaname, 'mayfly_rows_')")
	}
	one, same, other := f.lease(f.rows(is("id", "eq", "1"))), f.lease(f.rows(is("id", "in", "3"))), f.lease(f.rows(is("id", "le", "2")))
	for _, l := range []issuers.Lease{one, same, other} {
		f.mint(issuer, l)
	}
	if rows() != 2 || views() != 2 {
		t.Errorf("%d owners and %d views; want one each for two scopes", rows(), views())
	}
	// a re-mint, and a leader who knows nothing of what is ready
	next := issuertest.Regenerate(postgres.Kind{}, one)
	wantColumn(t, f.mustLogin(f.mint(f.open(2), next)), "SELECT name FROM people", "ann")
	f.withdraw(issuer, next, same)
	if err := issuer.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if rows() != 1 || views() != 1 {
		t.Errorf("%d owners and %d views after a sweep; want those of the live lease", rows(), views())
	}
	f.withdraw(issuer, other)
	if err := issuer.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := f.count("SELECT count(*) FROM pg_namespace WHERE starts_with(nspname, 'mayfly_rows_')"); rows() != 0 || n != 0 {
		t.Errorf("%d owners and %d schemas are left", rows(), n)
	}
	again := f.lease(f.rows(is("id", "le", "1")))
	wantColumn(t, f.mustLogin(f.mint(issuer, again)), "SELECT name FROM people", "ann")
}

func TestHazard15FiltersCountAgainstTheCap(t *testing.T) {
	f := newFixture(t, shared).people()
	f.spec["max_pooled_scopes"] = 2
	issuer := f.open(1)
	for _, op := range []string{"eq", "ne"} {
		f.mint(issuer, f.lease(f.rows(is("id", op, "1"))))
	}
	_, err := issuer.Mint(t.Context(), f.lease(f.rows(is("id", "lt", "1"))))
	wantKind(t, err, issuers.Refused)
}

// Somebody was there first, under a name of ours.
func TestHazard16ForeignOwnerOfViewsIsNotAdopted(t *testing.T) {
	f := newFixture(t, shared).people()
	issuer := f.open(1)
	l, conn := f.europe(issuer)
	owner := column(t, conn, "SELECT viewowner FROM pg_views WHERE viewname = 'people'")[0]
	f.withdraw(issuer, l)
	if err := issuer.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.server.Exec(t, f.database, "CREATE ROLE "+owner+" NOLOGIN BYPASSRLS")
	_, err := issuer.Mint(t.Context(), l)
	wantKind(t, err, issuers.Foreign)
	f.server.Exec(t, f.database, "DROP ROLE "+owner+"; CREATE SCHEMA "+owner)
	_, err = issuer.Mint(t.Context(), l)
	wantKind(t, err, issuers.Foreign)
	f.server.Exec(t, f.database, "DROP SCHEMA "+owner)
	f.mint(issuer, l)
}

// Hostile names and values end up as names and values.
func TestHazard14HostileNamesAndValues(t *testing.T) {
	f := newFixture(t, shared)
	issuer := f.open(1)
	for _, name := range []string{`a"; DROP TABLE orders; --`, `a' OR '1'='1`, `$$; DROP ROLE admin; $$`, `x) OR (true`, `%I%L%s`, `a\' OR true --`, `PUBLIC`, `name`} {
		q := pgx.Identifier{name}.Sanitize()
		f.server.Exec(t, f.database, fmt.Sprintf(`CREATE SCHEMA %s; CREATE TABLE %[1]s.%[1]s (%[1]s text, other text)`, q))
		admin := f.server.Admin(t, f.database)
		if _, err := admin.Exec(t.Context(), fmt.Sprintf("INSERT INTO %s.%[1]s VALUES ($1, 'seen'), ('HIDDEN', 'no')", q), name); err != nil {
			t.Fatal(err)
		}
		l := f.lease(f.scope([]string{"select"}, scope.Table{Name: name + "." + name, Columns: []string{name}, Rows: []scope.Condition{is(name, "eq", name)}}))
		conn := f.mustLogin(f.mint(issuer, l))
		wantColumn(t, conn, "SELECT * FROM "+q, name)
		mustNot(t, conn, "SELECT other FROM "+q)
		f.withdraw(issuer, l)
	}
	if n := f.count("SELECT count(*) FROM orders"); n != 2 {
		t.Errorf("%d orders", n)
	}
}

func TestHazard14FiltersThatMeanNothingAreRefused(t *testing.T) {
	f := newFixture(t, shared).people()
	eu := []scope.Condition{is("region", "eq", "eu")}
	with := scope.Table{Name: "public.people", Rows: eu}
	check := func(d ...scope.Detail) error {
		for i := range d {
			d[i].Type, d[i].Identifier = "database", f.database
		}
		return postgres.Kind{}.CheckScope(f.target(1).Spec, d)
	}
	reading := []string{"select"}
	for name, d := range map[string][]scope.Detail{
		"insert and update":     {{Actions: []string{"insert", "update"}, Tables: []scope.Table{with}}},
		"both in two details":   {{Actions: []string{"select", "insert"}, Tables: []scope.Table{with}}, {Actions: []string{"update"}, Tables: []scope.Table{with}}},
		"truncate":              {{Actions: []string{"truncate"}, Tables: []scope.Table{with}}},
		"references":            {{Actions: []string{"references"}, Tables: []scope.Table{with}}},
		"trigger":               {{Actions: []string{"trigger"}, Tables: []scope.Table{with}}},
		"the table of values":   {{Actions: reading, Tables: []scope.Table{{Name: "public.mayfly_leases", Rows: eu}}}},
		"a write without":       {{Actions: reading, Tables: []scope.Table{with}}, {Actions: []string{"insert"}, Tables: []scope.Table{{Name: "public.people"}}}},
		"a wildcard":            {{Actions: reading, Tables: []scope.Table{{Name: "public.*", Rows: eu}}}},
		"the table without":     {{Actions: reading, Tables: []scope.Table{with, {Name: "public.people"}}}},
		"columns without":       {{Actions: reading, Tables: []scope.Table{with, {Name: "public.people", Columns: []string{"id"}}}}},
		"all tables":            {{Actions: reading, Tables: []scope.Table{with, {Name: "public.*"}}}},
		"everything":            {{Actions: reading, Tables: []scope.Table{with}}, {Actions: []string{"delete"}}},
		"two filters":           {{Actions: reading, Tables: []scope.Table{with, {Name: "public.people", Rows: []scope.Condition{is("id", "eq", "1")}}}}},
		"one name, two schemas": {{Actions: reading, Tables: []scope.Table{with, {Name: "hr.people", Rows: eu}}}},
	} {
		if err := check(d...); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := check(scope.Detail{Actions: reading, Tables: []scope.Table{with, {Name: "public.orders"}, {Name: "hr.*"}}}, scope.Detail{Actions: []string{"execute", "temporary"}}); err != nil {
		t.Errorf("a filter beside other tables: %v", err)
	}
}

func TestHazard14LeastPrivilegeAndCheck(t *testing.T) {
	f := newFixture(t, pgtest.Start(t)).people()
	f.leastPrivilege()
	issuer := f.open(1)
	fix := f.finding(issuer, "row filters "+f.database, false).Fix
	_, err := issuer.Mint(t.Context(), f.lease(f.rows(is("region", "eq", "eu"))))
	wantKind(t, err, issuers.Refused)
	f.server.Exec(t, f.database, fix)
	f.finding(issuer, "row filters "+f.database, true)
	f.finding(issuer, "row filter statistics", true)
	l, conn := f.europe(issuer)
	wantColumn(t, conn, "SELECT name FROM people ORDER BY id", "ann", "bo")
	owner := column(t, conn, "SELECT viewowner FROM pg_views WHERE viewname = 'people'")[0]
	if n := f.count("SELECT count(*) FROM pg_auth_members WHERE roleid = $1::regrole", owner); n != 0 {
		t.Error("the admin account stays a member of the views' owner")
	}
	f.withdraw(issuer, l)
	if err := issuer.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := f.count("SELECT count(*) FROM pg_roles WHERE starts_with(rolname, 'mayfly_rows_')"); n != 0 {
		t.Error("the views' owner is left")
	}
}
