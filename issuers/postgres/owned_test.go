package postgres_test

import (
	"context"
	"fmt"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/postgres"
	"github.com/mayfly-broker/mayfly/scope"
)

// reassigning returns a maker of leases whose tables go to an owner of their own.
func (f *fixture) reassigning(is *postgres.Issuer) (owner string, lease func() (issuers.Lease, *pgx.Conn)) {
	f.t.Helper()
	owner = "owner_" + f.database
	f.server.Exec(f.t, f.database, `CREATE ROLE "`+owner+`" NOLOGIN; GRANT CREATE, USAGE ON SCHEMA hr TO "`+owner+`"`)
	ddl := f.scope([]string{"create"}, scope.Table{Name: "hr.*"})
	return owner, func() (issuers.Lease, *pgx.Conn) {
		l := f.lease(ddl)
		l.RoleSpec = issuers.RoleSpec{OwnedOnEnd: "reassign", ReassignTo: owner}
		return l, f.mustLogin(f.mint(is, l))
	}
}

// ownerOf returns a table's owner, or nothing where there is no such table.
func (f *fixture) ownerOf(table string) string {
	f.t.Helper()
	var name string
	err := f.server.Admin(f.t, f.database).QueryRow(f.t.Context(), "SELECT coalesce(max(pg_get_userbyid(relowner)), '') FROM pg_class WHERE relname = $1", table).Scan(&name)
	if err != nil {
		f.t.Fatal(err)
	}
	return name
}

func TestHazard11ReassignKeepsPlainTablesAlone(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	owner, lease := f.reassigning(is)
	plain, conn := lease()
	mustExec(t, conn, `CREATE TABLE hr.kept (id serial, v text); CREATE SEQUENCE hr.numbers; GRANT ALL ON hr.kept TO PUBLIC; GRANT SELECT (v) ON hr.kept TO PUBLIC;
		CREATE FUNCTION hr.door() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'; CREATE VIEW hr.look AS SELECT * FROM hr.kept`)
	out := f.withdraw(is, plain)
	if out[0].Receipt.OwnedDropped == 0 {
		t.Error("the receipt counts nothing owned")
	}
	if a, b := f.ownerOf("kept"), f.ownerOf("numbers"); a != owner || b != owner {
		t.Errorf("the table belongs to %q, the sequence to %q; want %q", a, b, owner)
	}
	if n := f.count("SELECT count(*) FROM pg_proc WHERE proname = 'door'") + f.count("SELECT count(*) FROM pg_class WHERE relname = 'look'"); n != 0 {
		t.Error("the function or the view was kept too")
	}
	if n := f.count("SELECT count(*) FROM pg_class WHERE relname = 'kept' AND has_table_privilege('public', oid, 'SELECT')"); n != 0 {
		t.Error("the ended account's grant to PUBLIC lives on")
	}
}

func TestHazard11WhatCouldRunAsItsOwnerIsParked(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	_, lease := f.reassigning(is)
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
	if f.ownerOf("trap") != "" {
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

// One session that does not end (its backend is stopped) delays the others by a
// bounded wait, and nobody calls its lease ended.
func TestHazard12StuckSessionIsNotCalledEnded(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	leases := []issuers.Lease{f.lease(f.readonly()), f.lease(f.readonly()), f.lease(f.readonly())}
	conns := make([]*pgx.Conn, len(leases))
	for i, l := range leases {
		conns[i] = f.mustLogin(f.mint(is, l))
	}
	pid := int(conns[1].PgConn().PID())
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGCONT) }) // long gone, if all went well
	for i, o := range is.Withdraw(t.Context(), leases) {
		if stuck := i == 1; stuck != (o.Err != nil) || stuck && issuers.KindOf(o.Err) != issuers.Unknown {
			t.Errorf("lease %d: %+v", i, o)
		}
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	f.withdraw(is, leases...)
	if conns[1].Ping(t.Context()) == nil {
		t.Error("the session lives")
	}
}
