package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/scope"
)

// makeViews makes the views of rows that a scope needs, or repairs them, and
// gives its pooled role its rights on them. The caller holds the pool's lock.
func (p *pooledRoles) makeViews(ctx context.Context, main *pgx.Conn, scopeRole string, c compiled) error {
	owned := false
	for _, g := range c.pooled {
		if len(g.Views) == 0 {
			continue
		}
		w := viewMaker{owner: rowsName(scopeRole), reader: scopeRole, database: g.Database}
		if !owned {
			if err := p.makeOwner(ctx, main, w.owner); err != nil {
				return err
			}
			owned = true
		}
		err := p.in(ctx, main, g.Database, func(conn *pgx.Conn) error {
			if err := g.ownerGrants().apply(ctx, conn, w.owner); err != nil {
				return err
			}
			return pgx.BeginFunc(ctx, conn, func(pgx.Tx) error { return w.make(ctx, conn, g.Views) })
		})
		if err != nil {
			return viewError(g.Database, err)
		}
	}
	return nil
}

// viewError says what is wrong with a filter: a value that the column's type
// does not know is the scope's fault, not the target's.
func viewError(database string, err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && saidNo(err) && strings.HasPrefix(pg.Code, "22") {
		return badValue(pg)
	}
	if codeOf(err) == codePrivilege {
		return &issuers.Error{Kind: issuers.Refused, Err: err,
			Detail: "database " + database + ": the admin account lacks a right that views of rows need; see the target's check"}
	}
	return err
}

func badValue(pg *pgconn.PgError) error {
	return &issuers.Error{Kind: issuers.BadScope, Detail: "rows: " + pg.Message, Err: pg}
}

// makeOwner makes the role that a scope's views belong to. It cannot log in, has
// no attribute and no member, so that nobody acts as it: row-level security of
// the tables holds for it as for anybody.
func (p *pooledRoles) makeOwner(ctx context.Context, conn *pgx.Conn, owner string) error {
	var plain bool
	var text string
	err := conn.QueryRow(ctx, `SELECT NOT (rolcanlogin OR rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls)
		AND NOT EXISTS (SELECT FROM pg_auth_members WHERE member = r.oid), coalesce(shobj_description(oid, 'pg_authid'), '')
		FROM pg_roles r WHERE rolname = $1`, owner).Scan(&plain, &text)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
	case err != nil:
		return err
	case !plain || text != rowsMark(p.server.main):
		return &issuers.Error{Kind: issuers.Foreign, Detail: "the role " + owner + " exists without the broker's mark, or with more rights than it was given"}
	default:
		return nil
	}
	quoted, err := literal(conn, rowsMark(p.server.main))
	if err != nil {
		return err
	}
	_, err = run(ctx, conn, "CREATE ROLE "+ident(owner)+" NOLOGIN NOINHERIT; COMMENT ON ROLE "+ident(owner)+" IS "+quoted)
	return err
}

// removeViews removes a pooled role's views and their owner. The caller holds the
// pool's lock.
func (p *pooledRoles) removeViews(ctx context.Context, conn *pgx.Conn, scopeRole string) error {
	owner := rowsName(scopeRole)
	found, err := list(ctx, conn, "SELECT rolname FROM pg_roles WHERE rolname = $1 AND shobj_description(oid, 'pg_authid') = $2", owner, rowsMark(p.server.main))
	if err != nil || len(found) == 0 {
		return err
	}
	if err := p.dropOwned(ctx, conn, owner); err != nil {
		return err
	}
	return retry(ctx, func() error {
		_, err := run(ctx, conn, "DROP ROLE IF EXISTS "+ident(owner))
		return err
	})
}

// viewMaker makes the views of one scope in one database, in one transaction.
type viewMaker struct {
	owner    string // of the views, and the name of their schema
	reader   string // the pooled role
	database string
}

// stale is a view that has to be made.
type stale struct {
	view    rowView
	exists  bool
	columns []string
	where   string
}

func (w viewMaker) make(ctx context.Context, conn *pgx.Conn, views []rowView) error {
	var todo []stale
	var slots []slot
	for _, v := range views {
		s, fresh, err := w.look(ctx, conn, v, &slots)
		if err != nil {
			return err
		}
		if !fresh {
			todo = append(todo, s)
		}
	}
	statements, err := w.become(ctx, conn)
	if err != nil {
		return err
	}
	for _, s := range todo {
		if s.exists {
			statements = append(statements, "DROP VIEW "+ident(w.owner, s.view.Name)) // never with what others built on it
		}
	}
	if _, err := run(ctx, conn, strings.Join(statements, "; ")); err != nil {
		return err
	}
	if err := w.keep(ctx, conn, slots); err != nil {
		return err
	}
	for _, s := range todo {
		if err := w.create(ctx, conn, s); err != nil {
			return err
		}
	}
	grants := []string{"GRANT USAGE ON SCHEMA " + ident(w.owner) + " TO " + ident(w.reader)}
	for _, v := range views {
		for _, r := range v.Rights {
			right := grant{Privileges: []string{r.Privilege}, Columns: r.Columns}
			if slices.Equal(r.Columns, v.Columns) { // all that the view has
				right.Columns = nil
			}
			grants = append(grants, "GRANT "+right.privilegeList()+" ON "+ident(w.owner, v.Name)+" TO "+ident(w.reader))
		}
	}
	grants = append(grants, "RESET ROLE")
	if !factsOf(conn).superuser {
		grants = append(grants, "REVOKE "+ident(w.owner)+" FROM CURRENT_USER")
	}
	_, err = run(ctx, conn, strings.Join(grants, "; "))
	return err
}

// become returns the statements after which the connection acts as the views'
// owner, in a schema of that role's own.
func (w viewMaker) become(ctx context.Context, conn *pgx.Conn) ([]string, error) {
	var out []string
	if !factsOf(conn).superuser {
		out = append(out, "GRANT "+ident(w.owner)+" TO CURRENT_USER")
	}
	owners, err := list(ctx, conn, "SELECT pg_get_userbyid(nspowner)::text FROM pg_namespace WHERE nspname = $1", w.owner)
	if err != nil {
		return nil, err
	}
	switch {
	case len(owners) == 0:
		out = append(out, "CREATE SCHEMA "+ident(w.owner)+" AUTHORIZATION "+ident(w.owner))
	case owners[0] != w.owner:
		return nil, &issuers.Error{Kind: issuers.Foreign, Detail: "database " + w.database + ": the schema " + w.owner + " exists, and is not the broker's"}
	}
	return append(out, "SET LOCAL ROLE "+ident(w.owner)), nil
}

func (w viewMaker) create(ctx context.Context, conn *pgx.Conn, s stale) error {
	name := ident(w.owner, s.view.Name)
	selected := make([]string, len(s.columns))
	for i, c := range s.columns {
		selected[i] = "t." + ident(c)
	}
	sql := "CREATE VIEW " + name + " WITH (security_barrier = true) AS SELECT " + strings.Join(selected, ", ") +
		" FROM " + ident(s.view.Schema, s.view.Name) + " AS t WHERE " + s.where
	if s.view.writes() {
		sql += " WITH CASCADED CHECK OPTION"
	}
	if _, err := run(ctx, conn, sql); err != nil {
		return err
	}
	marks, err := list(ctx, conn, "SELECT md5(pg_get_viewdef($1::text::regclass))", name)
	if err != nil {
		return err
	}
	text, err := literal(conn, marks[0])
	if err != nil {
		return err
	}
	_, err = run(ctx, conn, "COMMENT ON VIEW "+name+" IS "+text)
	return err
}

const (
	tableSQL = `SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p', 'v', 'm', 'f')`
	// Filters are on types whose reading and comparing runs the server's own code
	// alone: a domain's check would run its owner's.
	columnsSQL = `SELECT a.attname::text, CASE
			WHEN a.atttypid = ANY ('{date,timestamp,timestamptz}'::regtype[]::oid[]) THEN 'time'
			WHEN t.typtype = 'e' OR a.atttypid = ANY ('{bool,int2,int4,int8,numeric,float4,float8,text,varchar,bpchar,uuid,inet}'::regtype[]::oid[]) THEN 'plain'
			ELSE '' END, format_type(a.atttypid, -1)
		FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum`
	// what PUBLIC may do with the table, its partitions or its children, an
	// account may, too
	openSQL = `WITH RECURSIVE d(oid) AS (SELECT $1::oid UNION SELECT i.inhrelid FROM pg_inherits i JOIN d ON i.inhparent = d.oid)
		SELECT c.oid::regclass::text FROM d JOIN pg_class c USING (oid)
		WHERE has_any_column_privilege($2::name, c.oid, 'SELECT, INSERT, UPDATE, REFERENCES') OR has_table_privilege($2::name, c.oid, 'DELETE, TRUNCATE, TRIGGER')`
	// A view's comment is the hash of how the server wrote it down when it was
	// made. A table or column renamed since changes what the server writes.
	viewSQL = `SELECT coalesce(pg_get_userbyid(c.relowner) = $1 AND c.relkind = 'v' AND 'security_barrier=true' = ANY (c.reloptions)
			AND ('check_option=cascaded' = ANY (c.reloptions)) = $4 AND NOT EXISTS (SELECT FROM pg_rewrite WHERE ev_class = c.oid AND ev_type <> '1')
			AND obj_description(c.oid, 'pg_class') = md5(pg_get_viewdef(c.oid))
			AND ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 ORDER BY a.attnum) = $3::text[], false)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2`
	// A rule of the table's rewrites what is written, and check options are then
	// ignored (documentation, CREATE VIEW); a foreign table's rows are changed
	// elsewhere. Rules on partitions do not matter, where rows come in from above.
	unwritableSQL = `WITH RECURSIVE d(oid) AS (SELECT $1::oid UNION SELECT i.inhrelid FROM pg_inherits i JOIN d ON i.inhparent = d.oid)
		SELECT CASE WHEN c.relkind NOT IN ('r', 'p') THEN c.oid::regclass || ' is no ordinary table' ELSE c.oid::regclass || ' has rules' END
		FROM d JOIN pg_class c USING (oid) WHERE c.relkind NOT IN ('r', 'p') OR c.oid = $1 AND EXISTS (SELECT FROM pg_rewrite WHERE ev_class = c.oid)`
)

// look compares a view with what it should be.
func (w viewMaker) look(ctx context.Context, conn *pgx.Conn, v rowView, slots *[]slot) (s stale, fresh bool, err error) {
	s.view = v
	var table uint32
	err = conn.QueryRow(ctx, tableSQL, v.Schema, v.Name).Scan(&table)
	if errors.Is(err, pgx.ErrNoRows) {
		return s, false, &issuers.Error{Kind: issuers.BadScope, Detail: "the database has no table " + ident(v.Schema, v.Name)}
	}
	if err != nil {
		return s, false, err
	}
	if err := w.sound(ctx, conn, v, table); err != nil {
		return s, false, err
	}
	rows, err := conn.Query(ctx, columnsSQL, table)
	if err != nil {
		return s, false, err
	}
	columns, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (c column, err error) {
		err = r.Scan(&c.name, &c.kind, &c.typeName)
		return c, err
	})
	if err != nil {
		return s, false, err
	}
	if s.columns, err = pick(v, columns); err != nil {
		return s, false, err
	}
	if s.where, err = w.whereSQL(v, columns, slots); err != nil {
		return s, false, err
	}
	err = conn.QueryRow(ctx, viewSQL, w.owner, v.Name, s.columns, v.writes()).Scan(&fresh)
	if errors.Is(err, pgx.ErrNoRows) {
		return s, false, nil
	}
	s.exists = true
	return s, fresh, err
}

// pick returns the columns of a view, in the table's order.
func pick(v rowView, columns []column) ([]string, error) {
	var out []string
	for _, c := range columns {
		if len(v.Columns) == 0 || slices.Contains(v.Columns, c.name) {
			out = append(out, c.name)
		}
	}
	if len(v.Columns) > len(out) || len(out) == 0 {
		return nil, &issuers.Error{Kind: issuers.BadScope, Detail: fmt.Sprintf("%s lacks some of the columns %s", ident(v.Schema, v.Name), strings.Join(v.Columns, ", "))}
	}
	return out, nil
}

// sound refuses a table whose filter would mean nothing, or not be kept.
func (w viewMaker) sound(ctx context.Context, conn *pgx.Conn, v rowView, table uint32) error {
	open, err := list(ctx, conn, openSQL, table, w.reader)
	if err != nil {
		return err
	}
	if len(open) > 0 {
		return refused("database %s: PUBLIC has rights on %s, so that a row filter on %s would mean nothing; REVOKE ALL ON %s FROM PUBLIC",
			w.database, open[0], ident(v.Schema, v.Name), open[0])
	}
	if len(v.Rights) == 1 && v.may(mayRead) {
		return nil
	}
	why, err := list(ctx, conn, unwritableSQL, table)
	if err == nil && len(why) > 0 {
		err = refused("database %s: %s, so that what is written to %s could not be held to its row filter; only select is allowed there with rows",
			w.database, why[0], ident(v.Schema, v.Name))
	}
	return err
}

// whereSQL is a filter as SQL, and adds the values that it needs.
func (w viewMaker) whereSQL(v rowView, columns []column, slots *[]slot) (string, error) {
	var all []string
	for _, c := range v.Where {
		text, err := w.conditionSQL(c, columns, slots)
		if err != nil {
			return "", err
		}
		all = append(all, "("+text+")")
	}
	return strings.Join(all, " AND "), nil
}

func (w viewMaker) conditionSQL(c scope.Condition, columns []column, slots *[]slot) (string, error) {
	i := slices.IndexFunc(columns, func(x column) bool { return x.name == c.Column })
	if i < 0 {
		return "", &issuers.Error{Kind: issuers.BadScope, Detail: fmt.Sprintf("rows: the table has no column %q", c.Column)}
	}
	switch c.Op {
	case "null":
		return "t." + ident(c.Column) + " IS NULL", nil
	case "notnull":
		return "t." + ident(c.Column) + " IS NOT NULL", nil
	}
	if columns[i].kind == "" {
		return "", &issuers.Error{Kind: issuers.BadScope, Detail: fmt.Sprintf("rows: column %q is of type %s; filters can be on booleans, numbers, texts, "+
			"enums, uuids, inet, dates and timestamps", c.Column, columns[i].typeName)}
	}
	s := slot{name: slotName(len(*slots)), typeSQL: columns[i].typeName}
	if c.Op == "in" {
		s.typeSQL += "[]"
	}
	*slots = append(*slots, s)
	return w.compareSQL(c, s), nil
}
