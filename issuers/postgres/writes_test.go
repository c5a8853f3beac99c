package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/postgres/pgtest"
	"github.com/mayfly-broker/mayfly/scope"
)

// europeWith is an account that may do that with the rows of eu.
func (f *fixture) europeWith(issuer issuers.Issuer, actions ...string) *pgx.Conn {
	f.t.Helper()
	return f.mustLogin(f.mint(issuer, f.lease(f.scope(actions, scope.Table{Name: "public.people", Rows: []scope.Condition{is("region", "eq", "eu")}}))))
}

// wrote wants the statement to have touched so many rows.
func wrote(t testing.TB, c *pgx.Conn, n int64, sql string) {
	t.Helper()
	tag, err := c.Exec(t.Context(), sql)
	if err != nil || tag.RowsAffected() != n {
		t.Errorf("%s: %d rows, %v; want %d", sql, tag.RowsAffected(), err, n)
	}
}

// untouched wants the hidden row as it was.
func (f *fixture) untouched() {
	f.t.Helper()
	if n := f.count("SELECT count(*) FROM people WHERE id = 3 AND name = 'HIDDEN' AND region = 'us' AND salary = 30"); n != 1 {
		f.t.Error("the hidden row was changed")
	}
}

// A row meets the filter before it is changed, and after.
func TestHazard14WritesStayWithinTheFilter(t *testing.T) {
	f := newFixture(t, shared).people()
	f.server.Exec(t, f.database, "UPDATE people SET boss = NULL")
	issuer := f.open(1)
	update := f.europeWith(issuer, "select", "update", "delete")
	wrote(t, update, 2, "UPDATE people SET salary = salary + 1")
	wrote(t, update, 0, "UPDATE people SET name = 'x' WHERE id = 3")
	wrote(t, update, 0, "UPDATE people SET name = 'x' WHERE region = 'us' OR name = 'HIDDEN'")
	denied(t, update, "44000", "UPDATE people SET region = 'us' WHERE id = 1")
	denied(t, update, "44000", "UPDATE people SET region = NULL")
	denied(t, update, "42501", "INSERT INTO people (id, region) VALUES (9, 'eu')")
	wrote(t, update, 0, "DELETE FROM people WHERE id = 3")
	wantColumn(t, update, "UPDATE people SET name = 'Bo' WHERE id = 2 RETURNING name || region", "Boeu")
	wantColumn(t, update, "WITH gone AS (DELETE FROM people WHERE id = 2 RETURNING *) SELECT name FROM gone", "Bo")

	insert := f.europeWith(issuer, "select", "insert", "delete")
	denied(t, insert, "42501", "UPDATE people SET name = 'x'")
	denied(t, insert, "44000", "INSERT INTO people (id, region) VALUES (8, 'us')")
	denied(t, insert, "44000", "INSERT INTO people (id) VALUES (8)") // no value is none of the filter's
	denied(t, insert, "44000", "INSERT INTO people (id, region) VALUES (8, 'eu'), (9, 'us')")
	wrote(t, insert, 1, "INSERT INTO people (id, name, region) VALUES (8, 'cy', 'eu')")
	wantColumn(t, insert, "SELECT name FROM people ORDER BY id", "ann", "cy")
	wrote(t, insert, 2, "DELETE FROM people")
	wrote(t, insert, 0, "DELETE FROM people")
	f.untouched()

	// rights that are given, and no others
	only := f.mustLogin(f.mint(issuer, f.lease(f.scope([]string{"delete"}, scope.Table{Name: "public.people", Rows: []scope.Condition{is("region", "eq", "eu")}}))))
	denied(t, only, "42501", "SELECT * FROM people")
	denied(t, only, "42501", "DELETE FROM people WHERE id = 3")
	denied(t, only, "42501", "DELETE FROM people RETURNING name")
	wrote(t, only, 0, "DELETE FROM people")
	f.untouched()
}

// INSERT … ON CONFLICT DO UPDATE would change, and return, the hidden row that is
// in the way: no view's condition keeps it. So no lease has both rights.
func TestHazard14OnConflictReachesNoHiddenRow(t *testing.T) {
	f := newFixture(t, shared).people()
	issuer := f.open(1)
	insert, update := f.europeWith(issuer, "select", "insert", "delete"), f.europeWith(issuer, "select", "update", "delete")
	for _, conn := range []*pgx.Conn{insert, update} {
		for _, sql := range []string{
			"INSERT INTO people (id, region) VALUES (3, 'eu') ON CONFLICT (id) DO UPDATE SET region = 'eu' RETURNING *",
			"INSERT INTO people AS p (id, region) VALUES (3, 'eu') ON CONFLICT (id) DO UPDATE SET region = 'eu' WHERE p.name = 'HIDDEN' RETURNING p.*",
		} {
			denied(t, conn, "42501", sql)
		}
	}
	// that the key is taken is told, and not by whom
	wrote(t, insert, 0, "INSERT INTO people (id, region) VALUES (3, 'eu') ON CONFLICT DO NOTHING")
	wantColumn(t, insert, "INSERT INTO people (id, region) VALUES (3, 'eu') ON CONFLICT (id) DO NOTHING RETURNING name")
	denied(t, insert, "23505", "INSERT INTO people (id, region) VALUES (3, 'eu')")
	denied(t, update, "23505", "UPDATE people SET id = 3 WHERE id = 1")
	f.untouched()

	// both rights, to show that PostgreSQL would let it: if this fails one day, the
	// refusal can go
	view := column(t, insert, "SELECT format('%I.people', schemaname) FROM pg_views WHERE viewname = 'people' AND has_schema_privilege(schemaname, 'USAGE')")[0]
	owner, _, _ := strings.Cut(view, ".")
	f.server.Exec(t, f.database, "GRANT UPDATE ON people TO "+owner+"; GRANT UPDATE ON "+view+" TO PUBLIC")
	wantColumn(t, insert, "INSERT INTO people (id, region) VALUES (3, 'eu') ON CONFLICT (id) DO UPDATE SET region = 'eu' RETURNING name", "HIDDEN")
}

// What the account was not given stays hidden in results and in errors.
func TestHazard14WritesTellNoHiddenColumn(t *testing.T) {
	f := newFixture(t, shared).people()
	f.server.Exec(t, f.database, `ALTER TABLE people ADD note text DEFAULT 'HIDDEN note', ADD email text UNIQUE, ADD CONSTRAINT sane CHECK (salary >= 0),
		ADD room int4range, ADD EXCLUDE USING gist (room WITH &&); ALTER TABLE people ALTER name SET NOT NULL;
		UPDATE people SET email = 'HIDDEN@x', room = '[7,9)' WHERE id = 3`)
	issuer := f.open(1)
	columns := []string{"id", "name", "region", "email", "room"}
	table := scope.Table{Name: "public.people", Columns: columns, Rows: []scope.Condition{is("region", "eq", "eu")}}
	grant := func(actions ...string) *pgx.Conn {
		s, err := scope.Scope{
			{Type: "database", Identifier: f.database, Actions: []string{"select"}, Tables: []scope.Table{{Name: table.Name, Columns: []string{"id", "region"}, Rows: table.Rows}}},
			{Type: "database", Identifier: f.database, Actions: actions, Tables: []scope.Table{table}},
		}.Normalise()
		if err != nil {
			t.Fatal(err)
		}
		return f.mustLogin(f.mint(issuer, f.lease(s)))
	}
	insert, update := grant("insert"), grant("update")
	for code, sqls := range map[string][]string{
		"42501": {"SELECT name FROM people", "UPDATE people SET name = 'x' RETURNING name", "UPDATE people SET name = 'x' RETURNING *", "UPDATE people SET email = name", "UPDATE people SET name = 'x' WHERE name = 'ann'"},
		"42703": {"UPDATE people SET note = 'x'", "UPDATE people SET name = 'x' RETURNING note", "UPDATE people SET name = salary::text", "SELECT ctid FROM people", "UPDATE people SET name = 'x' RETURNING people.tableoid"},
		"23505": {"UPDATE people SET id = 3 WHERE id = 1", "UPDATE people SET email = 'HIDDEN' || '@x' WHERE id = 1"},
		"23502": {"UPDATE people SET name = NULL WHERE id = 1"},
		"23P01": {"UPDATE people SET room = '[8,10)' WHERE id = 1"},
		"44000": {"UPDATE people SET region = 'us' WHERE id = 1"},
	} {
		for _, sql := range sqls {
			denied(t, update, code, sql)
		}
	}
	wantColumn(t, update, "UPDATE people SET name = 'x' WHERE id = 1 RETURNING id || region", "1eu")
	denied(t, insert, "23505", "INSERT INTO people (id, name, region) VALUES (3, 'x', 'eu')")
	denied(t, insert, "23P01", "INSERT INTO people (id, name, region, room) VALUES (7, 'x', 'eu', '[8,10)')")
	denied(t, insert, "42703", "INSERT INTO people (id, name, region, note) VALUES (7, 'x', 'eu', 'mine')")
	denied(t, insert, "42501", "INSERT INTO people (id, name, region) VALUES (7, 'x', 'eu') RETURNING name")
	denied(t, insert, "42501", "DELETE FROM people")
	wrote(t, insert, 1, "INSERT INTO people (id, name, region) VALUES (7, 'x', 'eu')")
	if n := f.count("SELECT count(*) FROM people WHERE id = 7 AND note = 'HIDDEN note'"); n != 1 {
		t.Error("a column that was not given has no default")
	}
}

// Triggers and defaults run as the account, and what they make of a row must meet
// the filter, too.
func TestHazard14TriggersDefaultsAndGenerated(t *testing.T) {
	f := newFixture(t, shared)
	f.server.Exec(t, f.database, `CREATE TABLE jobs (id serial PRIMARY KEY, n int GENERATED BY DEFAULT AS IDENTITY, owner text, made_by text DEFAULT current_user, log text, kind text GENERATED ALWAYS AS (upper(owner)) STORED);
		CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.log := current_user; IF NEW.made_by = ''move'' THEN NEW.owner := ''other''; END IF; RETURN NEW; END';
		CREATE TRIGGER stamp BEFORE INSERT OR UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION stamp(); INSERT INTO jobs (owner) VALUES ('other'), ('bot')`)
	issuer := f.open(1)
	table := scope.Table{Name: "public.jobs", Rows: []scope.Condition{is("kind", "eq", "BOT")}}
	l := f.lease(f.scope([]string{"select", "insert"}, table))
	insert := f.mustLogin(f.mint(issuer, l))
	update := f.mustLogin(f.mint(issuer, f.lease(f.scope([]string{"select", "update"}, table))))
	wantColumn(t, insert, "INSERT INTO jobs (owner) VALUES ('bot') RETURNING made_by || log", l.Name+l.Name)
	denied(t, insert, "44000", "INSERT INTO jobs (owner) VALUES ('other')")
	denied(t, insert, "44000", "INSERT INTO jobs (owner, made_by) VALUES ('bot', 'move')")
	denied(t, insert, "428C9", "INSERT INTO jobs (owner, kind) VALUES ('other', 'BOT')")
	denied(t, update, "44000", "UPDATE jobs SET made_by = 'move'")
	denied(t, update, "44000", "UPDATE jobs SET owner = 'other'")
	denied(t, update, "428C9", "UPDATE jobs SET kind = 'BOT', owner = 'other'")
	wrote(t, update, 2, "UPDATE jobs SET log = 'x'")
	denied(t, insert, "42501", "SELECT setval('public.jobs_id_seq', 1)")
	// a function of the table's owner that the account may not call is not called
	f.server.Exec(t, f.database, `CREATE FUNCTION secret() RETURNS text LANGUAGE sql AS 'SELECT body FROM public.secrets'; ALTER TABLE jobs ALTER made_by SET DEFAULT secret()`)
	denied(t, insert, "42501", "INSERT INTO jobs (owner) VALUES ('bot')")
}

// Where check options would be ignored, writing is refused, and reading is not.
func TestHazard14RulesAndForeignTablesRefuseWrites(t *testing.T) {
	f := newFixture(t, shared).people()
	issuer := f.open(1)
	rows := []scope.Condition{is("region", "eq", "eu")}
	try := func(name string, actions ...string) error {
		_, err := issuer.Mint(t.Context(), f.lease(f.scope(actions, scope.Table{Name: "public." + name, Rows: rows})))
		return err
	}
	f.server.Exec(t, f.database, `CREATE VIEW seen AS SELECT * FROM people; CREATE MATERIALIZED VIEW kept AS SELECT * FROM people;
		CREATE TABLE ruled (LIKE people); CREATE RULE away AS ON INSERT TO ruled DO INSTEAD INSERT INTO people VALUES (NEW.*);
		CREATE FOREIGN DATA WRAPPER none; CREATE SERVER nowhere FOREIGN DATA WRAPPER none;
		CREATE TABLE parted (id int, region text) PARTITION BY LIST (region); CREATE FOREIGN TABLE far PARTITION OF parted FOR VALUES IN ('far') SERVER nowhere`)
	for _, name := range []string{"seen", "kept", "ruled", "parted"} {
		for _, actions := range [][]string{{"select", "insert"}, {"update"}, {"select", "delete"}} {
			err := try(name, actions...)
			wantKind(t, err, issuers.Refused)
			if !strings.Contains(err.Error(), "only select is allowed there with rows") {
				t.Errorf("%v does not say what is allowed", err)
			}
		}
		if err := try(name, "select"); err != nil {
			t.Errorf("read %s: %v", name, err)
		}
	}
	// a rule that comes later: no more accounts from the next sweep on
	if err := try("people", "select", "update"); err != nil {
		t.Fatal(err)
	}
	f.server.Exec(t, f.database, "CREATE RULE later AS ON UPDATE TO people DO ALSO NOTHING")
	if err := issuer.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantKind(t, try("people", "select", "update"), issuers.Refused)
	f.server.Exec(t, f.database, "DROP RULE later ON people")
	if err := issuer.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := try("people", "select", "update"); err != nil {
		t.Error(err)
	}
}

// The table's own policies hold for what is written, too, as they do for the
// views' owner.
func TestHazard14WritesUnderRowLevelSecurity(t *testing.T) {
	f := newFixture(t, shared).people()
	f.server.Exec(t, f.database, "UPDATE people SET boss = NULL; ALTER TABLE people ENABLE ROW LEVEL SECURITY")
	issuer := f.open(1)
	insert, update := f.europeWith(issuer, "select", "insert"), f.europeWith(issuer, "select", "update", "delete")
	denied(t, insert, "42501", "INSERT INTO people (id, region) VALUES (8, 'eu')")
	wrote(t, update, 0, "UPDATE people SET ok = true")
	f.server.Exec(t, f.database, "CREATE POLICY low ON people USING (salary < 15) WITH CHECK (salary < 15)")
	wrote(t, insert, 1, "INSERT INTO people (id, salary, region) VALUES (8, 1, 'eu')")
	denied(t, insert, "42501", "INSERT INTO people (id, salary, region) VALUES (9, 99, 'eu')")
	denied(t, insert, "44000", "INSERT INTO people (id, salary, region) VALUES (9, 1, 'us')")
	wrote(t, update, 2, "UPDATE people SET ok = true")
	denied(t, update, "42501", "UPDATE people SET salary = 99 WHERE id = 1")
	wrote(t, update, 2, "DELETE FROM people")
	f.untouched()
}

// A row that another transaction moves out of the filter is looked at again before
// it is written, and functions of the account's see none that is hidden.
func TestHazard14WritesSeeWhatOthersCommit(t *testing.T) {
	f := newFixture(t, shared).people()
	f.server.Exec(t, f.database, "UPDATE people SET boss = NULL")
	conn := f.europeWith(f.open(1), "select", "update", "delete")
	admin := f.server.Admin(t, f.database)
	for _, sql := range []string{"UPDATE people SET salary = 99 WHERE id = 1", "DELETE FROM people WHERE id = 1"} {
		mustExec(t, admin, "BEGIN; UPDATE people SET region = 'us', name = 'HIDDEN' WHERE id = 1")
		done := make(chan error, 1)
		go func() {
			tag, err := conn.Exec(context.Background(), sql)
			if err == nil && tag.RowsAffected() != 0 {
				err = fmt.Errorf("%d rows", tag.RowsAffected())
			}
			done <- err
		}()
		eventually(t, "the account waits for the row", func() bool {
			return f.count("SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND wait_event_type = 'Lock'", conn.PgConn().PID()) == 1
		})
		mustExec(t, admin, "COMMIT")
		if err := <-done; err != nil {
			t.Errorf("%s: %v; want no row, since it is hidden by now", sql, err)
		}
		mustExec(t, admin, "UPDATE people SET region = 'eu', name = 'ann' WHERE id = 1 AND salary = 10")
	}
	var heard []string
	cfg := conn.Config().Copy()
	cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { heard = append(heard, n.Message) }
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	mustExec(t, conn, `CREATE FUNCTION pg_temp.tell(text) RETURNS bool LANGUAGE plpgsql COST 0.0000001 AS 'BEGIN RAISE NOTICE ''heard %'', $1; RETURN true; END'`)
	wrote(t, conn, 2, "UPDATE people SET ok = pg_temp.tell(name) WHERE pg_temp.tell(name)")
	wrote(t, conn, 2, "DELETE FROM people WHERE pg_temp.tell(name)")
	if len(heard) == 0 || strings.Contains(strings.Join(heard, " "), "HIDDEN") {
		t.Errorf("heard: %q", heard)
	}
	f.untouched()
}

// Whatever else writes or destroys.
func TestHazard14OtherWaysToWrite(t *testing.T) {
	f := newFixture(t, shared).people()
	issuer := f.open(1)
	for _, conn := range []*pgx.Conn{f.europeWith(issuer, "select", "insert", "delete"), f.europeWith(issuer, "select", "update", "delete")} {
		for _, sql := range []string{
			"COPY people FROM STDIN", "COPY public.people FROM STDIN", "TRUNCATE people", "TRUNCATE public.people",
			"INSERT INTO public.people (id, region) VALUES (9, 'eu')", "UPDATE public.people SET ok = true", "DELETE FROM public.people",
			"ALTER VIEW people SET (check_option = local)", "ALTER VIEW people RESET (check_option)", "CREATE RULE r AS ON DELETE TO people DO INSTEAD NOTHING",
			"CREATE TRIGGER t INSTEAD OF INSERT ON people FOR EACH ROW EXECUTE FUNCTION pg_catalog.suppress_redundant_updates_trigger()",
			"MERGE INTO people USING (VALUES (3)) v (i) ON id = i WHEN MATCHED THEN UPDATE SET region = 'eu' WHEN NOT MATCHED THEN INSERT (id, region) VALUES (i, 'eu')",
			"MERGE INTO public.people USING (VALUES (3)) v (i) ON id = i WHEN MATCHED THEN DELETE",
			"BEGIN; DECLARE c CURSOR FOR SELECT * FROM people; FETCH c; DELETE FROM people WHERE CURRENT OF c",
			"CREATE TEMP VIEW mine AS SELECT * FROM public.people; UPDATE mine SET ok = true",
		} {
			if _, err := conn.Exec(t.Context(), sql); err == nil {
				t.Errorf("was allowed: %s", sql)
			}
			mustExec(t, conn, "ROLLBACK")
		}
		// a view of its own over ours adds nothing
		mustExec(t, conn, "CREATE TEMP VIEW own AS SELECT id, name, region FROM people")
		_, err := conn.Exec(t.Context(), "INSERT INTO own VALUES (9, 'x', 'us')")
		var pg *pgconn.PgError
		if !errors.As(err, &pg) || pg.Code != "44000" && pg.Code != "42501" {
			t.Errorf("through a view of its own: %v", err)
		}
	}
	f.untouched()
}

// A partitioned table's rows move between partitions, within the filter.
func TestHazard14WritesToPartitions(t *testing.T) {
	f := newFixture(t, shared)
	f.server.Exec(t, f.database, `CREATE TABLE events (id int, tenant text, day date) PARTITION BY RANGE (day);
		CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM ('2024-01-01') TO ('2024-02-01'); CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM ('2024-02-01') TO ('2024-03-01');
		INSERT INTO events VALUES (1, 'a', '2024-01-05'), (2, 'b', '2024-01-06')`)
	table := scope.Table{Name: "public.events", Rows: []scope.Condition{is("tenant", "eq", "a"), is("day", "ge", "2024-01-02")}}
	conn := f.mustLogin(f.mint(f.open(1), f.lease(f.scope([]string{"select", "update", "delete"}, table))))
	wrote(t, conn, 1, "UPDATE events SET day = '2024-02-05'")
	denied(t, conn, "44000", "UPDATE events SET day = '2024-01-01'")
	denied(t, conn, "44000", "UPDATE events SET tenant = 'b', day = '2024-01-07'")
	denied(t, conn, "42501", "DELETE FROM events_1")
	wrote(t, conn, 1, "DELETE FROM events")
	if n := f.count("SELECT count(*) FROM events"); n != 1 {
		t.Errorf("%d events; want the other tenant's", n)
	}
}

// The page says so: keys that are taken, rows that are referred to, and what the
// table's owner has cascade.
func TestHazard14WhatWritesTell(t *testing.T) {
	f := newFixture(t, shared).people()
	issuer := f.open(1)
	insert, update := f.europeWith(issuer, "select", "insert", "delete"), f.europeWith(issuer, "select", "update", "delete")
	denied(t, insert, "23505", "INSERT INTO people (id, region) VALUES (3, 'eu')")
	denied(t, insert, "23503", "INSERT INTO people (id, region, boss) VALUES (8, 'eu', 99)")
	wrote(t, insert, 1, "INSERT INTO people (id, region, boss) VALUES (8, 'eu', 3)")
	denied(t, update, "23503", "DELETE FROM people WHERE id = 1") // somebody hidden has it as boss
	denied(t, update, "23503", "UPDATE people SET id = 10 WHERE id = 1")
	f.untouched()
}

func TestHazard14WritesWithLeastPrivilege(t *testing.T) {
	f := newFixture(t, pgtest.Start(t)).people()
	f.leastPrivilege()
	f.server.Exec(t, f.database, "GRANT CREATE ON DATABASE \""+f.database+"\" TO mayfly; ALTER TABLE people ADD n serial")
	f.server.Exec(t, f.database, "GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO mayfly WITH GRANT OPTION")
	issuer := f.open(1)
	l := f.lease(f.scope([]string{"select", "insert", "delete"}, scope.Table{Name: "public.people", Rows: []scope.Condition{is("region", "in", "eu", "uk")}}))
	conn := f.mustLogin(f.mint(issuer, l))
	wrote(t, conn, 1, "INSERT INTO people (id, region) VALUES (8, 'uk')")
	denied(t, conn, "44000", "INSERT INTO people (id, region) VALUES (9, 'us')")
	wrote(t, conn, 1, "DELETE FROM people WHERE id = 8")
	if err := issuer.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.withdraw(issuer, l)
	if err := issuer.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := f.count("SELECT count(*) FROM pg_roles WHERE rolname ~ '^mayfly_(rows|scope)_'"); n != 0 {
		t.Errorf("%d pooled roles and owners are left", n)
	}
}
