package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/scope"
)

// valuesTable is the table of a scope's views in which each lease's account has a
// row: the values of its filters. The views ask it for the row of session_user,
// which no SET ROLE changes. No account has a right on it, and the views' owner
// may only read it, so that not even LOCK TABLE on a view reaches it (HAZARDS 15).
const valuesTable = "mayfly_leases"

// slot is one column of it: what one condition of one view is compared with.
type slot struct{ name, typeSQL string }

func slotName(n int) string { return "v" + strconv.Itoa(n+1) }

// shape is a pooled role that stands, as far as mints need to know it.
type shape struct {
	compiled
	// calendar says, by database, which values are dates or times.
	calendar map[string][]bool
}

const slotsSQL = `SELECT a.attname::text, format_type(a.atttypid, -1),
		CASE WHEN t.typcategory = 'A' THEN t.typelem ELSE t.oid END = ANY ('{date,timestamp,timestamptz}'::regtype[]::oid[])
	FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 1 AND NOT a.attisdropped JOIN pg_type t ON t.oid = a.atttypid
	WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = $1) AND c.relname = $2 AND c.relkind = 'r' AND pg_get_userbyid(c.relowner) = $1
	ORDER BY a.attnum`

// slots reads what columns a table of values has; none if there is no table.
func slots(ctx context.Context, conn *pgx.Conn, owner string) (out []slot, calendar []bool, err error) {
	rows, err := conn.Query(ctx, slotsSQL, owner, valuesTable)
	if err != nil {
		return nil, nil, err
	}
	var s slot
	var at bool
	_, err = pgx.ForEachRow(rows, []any{&s.name, &s.typeSQL, &at}, func() error {
		out, calendar = append(out, s), append(calendar, at)
		return nil
	})
	return out, calendar, err
}

// describe finds out what a mint must know of a pooled role. It is false where a
// table of values is missing: the role is then to be made again.
func (p *pooledRoles) describe(ctx context.Context, main *pgx.Conn, scopeRole string, c compiled) (*shape, bool, error) {
	s := &shape{compiled: c, calendar: map[string][]bool{}}
	for _, g := range c.pooled {
		if len(g.values) == 0 {
			continue
		}
		err := p.in(ctx, main, g.Database, func(conn *pgx.Conn) (err error) {
			_, s.calendar[g.Database], err = slots(ctx, conn, rowsName(scopeRole))
			return err
		})
		if err != nil || len(s.calendar[g.Database]) != len(g.values) {
			return nil, false, err
		}
	}
	return s, true, nil
}

// checkValues refuses words for dates and times; the target refuses what is no
// value of a column's type.
func (s *shape) checkValues(c compiled) error {
	for _, g := range c.pooled {
		for i, v := range g.values {
			if calendar := s.calendar[g.Database]; i >= len(calendar) || !calendar[i] {
				continue
			}
			for _, text := range v.Values {
				if err := checkTime(text); err != nil {
					return &issuers.Error{Kind: issuers.BadScope, Detail: fmt.Sprintf("rows: column %q: %q: %v", v.Column, text, err)}
				}
			}
		}
	}
	return nil
}

// valuesSQL writes an account's row in one database. The server reads the texts as
// values of the columns' types.
func (a *account) valuesSQL(conn *pgx.Conn, g databaseGrants, from string) (string, error) {
	name, err := literal(conn, a.lease.Name)
	if err != nil {
		return "", err
	}
	columns, values, set := []string{"account"}, []string{name + "::name"}, make([]string, len(g.values))
	for i, c := range g.values {
		text := c.Values[0]
		if c.Op == "in" {
			text = arrayText(c.Values)
		}
		if text, err = literal(conn, text); err != nil {
			return "", err
		}
		columns, values = append(columns, slotName(i)), append(values, text)
		set[i] = slotName(i) + " = EXCLUDED." + slotName(i)
	}
	return "INSERT INTO " + ident(rowsName(a.scopeRole), valuesTable) + " (" + strings.Join(columns, ", ") + ") SELECT " + strings.Join(values, ", ") + from +
		" ON CONFLICT (account) DO UPDATE SET " + strings.Join(set, ", "), nil
}

// arrayText writes an array as the server reads it (documentation, "Array Input
// and Output Syntax"): quoted elements are never NULL.
func arrayText(values []string) string {
	quoted := make([]string, len(values))
	for i, v := range values {
		quoted[i] = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(v) + `"`
	}
	return "{" + strings.Join(quoted, ",") + "}"
}

// rowsSQL is what a mint's own transaction writes beside the account: its values
// in the main database.
func (a *account) rowsSQL(conn *pgx.Conn, main string) ([]string, error) {
	for _, g := range a.grants.pooled {
		if g.Database == main && len(g.values) > 0 {
			sql, err := a.valuesSQL(conn, g, "")
			return []string{sql}, err
		}
	}
	return nil, nil
}

// writeSides writes the account's values in the other databases, where it has no
// rows to see until then. The account must stand, able to log in and with this
// very mark: looked at under the lease's lock, which its end takes there as well,
// so that nothing is left of a mint that comes late.
func (is *Issuer) writeSides(ctx context.Context, a *account) error {
	for _, g := range a.grants.pooled {
		if g.Database == is.server.main || len(g.values) == 0 {
			continue
		}
		err := is.writeSide(ctx, a, g)
		if issuers.KindOf(err) == issuers.Superseded { // nothing there is ours to undo
			return err
		}
		if err != nil {
			return is.orUndo(ctx, a, a.valueError(err))
		}
	}
	return nil
}

func (is *Issuer) writeSide(ctx context.Context, a *account, g databaseGrants) error {
	pool, err := is.server.database(g.Database)
	if err != nil {
		return err
	}
	conn, f, err := acquire(ctx, pool)
	if err != nil {
		return err
	}
	defer conn.Release()
	check, err := inTimeSQL(conn.Conn(), a.deadline.Add(f.offset))
	if err != nil {
		return err
	}
	mark, err := literal(conn.Conn(), a.mark.String())
	if err != nil {
		return err
	}
	insert, err := a.valuesSQL(conn.Conn(), g, " FROM pg_roles WHERE rolname = '"+a.lease.Name+"' AND rolcanlogin AND shobj_description(oid, 'pg_authid') = "+mark)
	if err != nil {
		return err
	}
	return retry(ctx, func() error {
		results, err := run(ctx, conn.Conn(), fmt.Sprintf("SELECT %s, pg_advisory_xact_lock(%d), %s; %s; SELECT %[3]s", limitSQL(a.deadline), leaseKey(a.lease.ID), check, insert))
		if err == nil && results[1].CommandTag.RowsAffected() != 1 {
			err = &issuers.Error{Kind: issuers.Superseded, Detail: "the account is being ended, or has a newer generation of the secret"}
		}
		return err
	})
}

// valueError says what is wrong with a value that a column's type does not know:
// that is the scope's fault. A guard's own error is in the same class.
func (a *account) valueError(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && saidNo(err) && a.hasValues() && strings.HasPrefix(pg.Code, "22") && pg.Code != codeDivisionByZero {
		return badValue(pg)
	}
	return err
}

// hasValues reports whether the account has a row in some table of values.
func (a *account) hasValues() bool {
	return slices.ContainsFunc(a.grants.pooled, func(g databaseGrants) bool { return len(g.values) > 0 })
}

// keep makes the table of a scope's values, or repairs it. The connection acts as
// the views' owner, so that nobody's default privileges bear on the table.
func (w viewMaker) keep(ctx context.Context, conn *pgx.Conn, wanted []slot) error {
	if len(wanted) == 0 {
		return nil
	}
	have, _, err := slots(ctx, conn, w.owner)
	if err != nil {
		return err
	}
	name := ident(w.owner, valuesTable)
	var statements []string
	if len(have) == 0 {
		columns := "account name PRIMARY KEY"
		for _, s := range wanted {
			columns += ", " + s.name + " " + s.typeSQL
		}
		statements = append(statements, "CREATE TABLE "+name+" ("+columns+")", "COMMENT ON TABLE "+name+" IS 'mayfly rows: the values of each lease'")
	}
	for i, s := range wanted {
		if len(have) == len(wanted) && have[i] != s { // a column under a view has another type now
			through := "text"
			if strings.HasSuffix(s.typeSQL, "[]") {
				through = "text[]"
			}
			statements = append(statements, fmt.Sprintf("ALTER TABLE %s ALTER COLUMN %s TYPE %s USING %[2]s::%[4]s::%[3]s", name, s.name, s.typeSQL, through))
		}
	}
	statements = append(statements, "REVOKE ALL ON "+name+" FROM "+ident(w.owner)+", PUBLIC", "GRANT SELECT ON "+name+" TO "+ident(w.owner),
		"GRANT SELECT, INSERT, UPDATE, DELETE ON "+name+" TO SESSION_USER", "GRANT USAGE ON SCHEMA "+ident(w.owner)+" TO SESSION_USER")
	_, err = run(ctx, conn, strings.Join(statements, "; "))
	return err
}

// compareSQL compares a column with the value that session_user has for it, by the
// column's collation, which goes before the value's default one. The table has one
// row for each account at most; without one nothing is equal.
func (w viewMaker) compareSQL(c scope.Condition, s slot) string {
	value := "(SELECT k." + s.name + " FROM " + ident(w.owner, valuesTable) + " AS k WHERE k.account OPERATOR(pg_catalog.=) SESSION_USER)"
	if c.Op == "in" { // with the cast an array, else a subquery of many rows
		value = "ANY (" + value + "::" + s.typeSQL + ")"
	}
	return "t." + ident(c.Column) + " OPERATOR(pg_catalog." + operators[c.Op] + ") " + value
}
