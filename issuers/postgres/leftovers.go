package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/mayfly-broker/mayfly/issuers"
)

const (
	// In which databases there are views of which pooled roles: the views' owner has
	// a schema there, and so maybe a table of values.
	ownersOfSQL = `SELECT DISTINCT d.datname::text, r.rolname::text FROM pg_auth_members m
		JOIN pg_roles p ON p.oid = m.roleid AND starts_with(p.rolname, $2) JOIN pg_roles r ON r.rolname = $3 || substr(p.rolname, length($2) + 1)
		JOIN pg_shdepend s ON s.refclassid = 'pg_authid'::regclass AND s.refobjid = r.oid AND s.deptype = 'o' AND s.classid = 'pg_namespace'::regclass
		JOIN pg_database d ON d.oid = s.dbid AND d.datallowconn
		WHERE m.member = ANY ($1::oid[]) ORDER BY 1, 2`
	allOwnersSQL = `SELECT DISTINCT d.datname::text, r.rolname::text FROM pg_roles r
		JOIN pg_shdepend s ON s.refclassid = 'pg_authid'::regclass AND s.refobjid = r.oid AND s.deptype = 'o' AND s.classid = 'pg_namespace'::regclass
		JOIN pg_database d ON d.oid = s.dbid AND d.datallowconn
		WHERE starts_with(r.rolname, $1) AND shobj_description(r.oid, 'pg_authid') = $2 ORDER BY 1, 2`
	withTableSQL = `SELECT n.nspname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relname = $1 AND c.relkind = 'r' AND n.nspname = ANY ($2::text[]) AND pg_get_userbyid(c.relowner) = n.nspname ORDER BY 1`
)

// owners lists the views' owners by database.
func owners(ctx context.Context, conn *pgx.Conn, sql string, args ...any) (map[string][]string, error) {
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	out := map[string][]string{}
	var database, owner string
	_, err = pgx.ForEachRow(rows, []any{&database, &owner}, func() error {
		out[database] = append(out[database], owner)
		return nil
	})
	return out, err
}

// allOwners lists every owner of views of this target.
func (p *pooledRoles) allOwners(ctx context.Context, conn *pgx.Conn) (map[string][]string, error) {
	return owners(ctx, conn, allOwnersSQL, rowsPrefix, rowsMark(p.server.main))
}

// eachTable runs f for the tables of values of a database that stand.
func eachTable(ctx context.Context, conn *pgx.Conn, owners []string, f func(owner, table string) error) error {
	found, err := list(ctx, conn, withTableSQL, valuesTable, owners)
	if err != nil {
		return err
	}
	for _, owner := range found {
		if err := f(owner, ident(owner, valuesTable)); err != nil {
			return err
		}
	}
	return nil
}

// deleteSQL removes accounts' values from tables. Accounts' names need no quotes.
func deleteSQL(ctx context.Context, conn *pgx.Conn, owners, accounts []string, only string) (string, error) {
	var sql strings.Builder
	err := eachTable(ctx, conn, owners, func(_, table string) error {
		fmt.Fprintf(&sql, "DELETE FROM %s AS k WHERE account = ANY ('{%s}'::name[])%s; ", table, strings.Join(accounts, ","), only)
		return nil
	})
	return sql.String(), err
}

const accountGone = " AND NOT EXISTS (SELECT FROM pg_roles WHERE rolname = k.account)"

// forgetSides removes what other databases hold of the accounts' values, and finds
// what the main one holds, which goes with the account itself. The leases' locks keep out a mint
// that is still writing there; one that comes later finds that the account cannot
// log in.
func (b *withdrawal) forgetSides(ctx context.Context, items []*ending) error {
	byDatabase, err := owners(ctx, b.conn, ownersOfSQL, oids(items), scopePrefix, rowsPrefix)
	if err != nil {
		return err
	}
	b.kept = append(b.kept, byDatabase[b.is.server.main]...)
	delete(byDatabase, b.is.server.main)
	return b.forget(ctx, items, byDatabase, "")
}

// forgetAll removes the values of accounts that are gone, wherever they are: an
// account may have been dropped by hand.
func (b *withdrawal) forgetAll(ctx context.Context, items []*ending) error {
	byDatabase, err := b.is.pooled.allOwners(ctx, b.conn)
	if err != nil {
		return err
	}
	return b.forget(ctx, items, byDatabase, accountGone)
}

func (b *withdrawal) forget(ctx context.Context, items []*ending, byDatabase map[string][]string, only string) error {
	keys := make([]string, len(items))
	for i, e := range items {
		keys[i] = fmt.Sprint(leaseKey(e.lease.ID))
	}
	slices.Sort(keys) // two withdrawals of the same leases take their locks in one order
	for database, owners := range byDatabase {
		err := b.is.pooled.in(ctx, b.conn, database, func(conn *pgx.Conn) error {
			for n := 0; ; n++ {
				sql, err := deleteSQL(ctx, conn, owners, names(items), only)
				if err != nil || sql == "" {
					return err
				}
				if database != b.is.server.main {
					sql = "SELECT pg_advisory_xact_lock(k) FROM unnest('{" + strings.Join(keys, ",") + "}'::bigint[]) k; " + sql
				}
				if _, err = run(ctx, conn, sql); !noTable(err) || n == attempts { // a table may be swept meanwhile
					return err
				}
			}
		})
		if codeOf(err) == codeLockNotAvailable {
			return &issuers.Error{Kind: issuers.Unknown, Detail: "a mint of this lease is still writing its values in database " + database}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// sweepValues removes values of accounts that are no members of their pooled role
// any more. A mint commits both at once, or the member first.
func (p *pooledRoles) sweepValues(ctx context.Context, main *pgx.Conn) error {
	byDatabase, err := p.allOwners(ctx, main)
	if err != nil {
		return err
	}
	var failed error
	for database, owners := range byDatabase {
		err := p.in(ctx, main, database, func(conn *pgx.Conn) error {
			return eachTable(ctx, conn, owners, func(owner, table string) error {
				_, err := conn.Exec(ctx, "DELETE FROM "+table+` k WHERE NOT EXISTS (SELECT FROM pg_auth_members m
					JOIN pg_roles p ON p.oid = m.roleid JOIN pg_roles a ON a.oid = m.member WHERE p.rolname = $1 AND a.rolname = k.account)`,
					scopePrefix+strings.TrimPrefix(owner, rowsPrefix))
				return err
			})
		})
		if err != nil { // one database does not keep the others
			failed = errors.Join(failed, fmt.Errorf("database %s: values of ended leases: %w", database, err))
		}
	}
	return failed
}

// leftovers lists accounts that are gone and have values yet.
func (p *pooledRoles) leftovers(ctx context.Context, main *pgx.Conn) ([]issuers.Found, error) {
	byDatabase, err := p.allOwners(ctx, main)
	if err != nil {
		return nil, err
	}
	var out []issuers.Found
	for database, owners := range byDatabase {
		err := p.in(ctx, main, database, func(conn *pgx.Conn) error {
			return eachTable(ctx, conn, owners, func(_, table string) error {
				gone, err := list(ctx, conn, "SELECT account::text FROM "+table+" k WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = k.account)")
				for _, name := range gone {
					out = append(out, issuers.Found{Name: name, LeaseID: strings.TrimPrefix(name, accountPrefix)})
				}
				return err
			})
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(out, func(a, b issuers.Found) int { return strings.Compare(a.Name, b.Name) })
	return slices.CompactFunc(out, func(a, b issuers.Found) bool { return a.Name == b.Name }), nil
}
