package postgres

import (
	"context"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/mayfly-broker/mayfly/issuers"
)

// ownedSQL finds, from any database, where accounts own something or were
// granted something directly. What all databases share is dealt with in the main
// one.
const ownedSQL = `SELECT s.refobjid, CASE WHEN s.dbid = 0 THEN current_database() ELSE d.datname END::text,
	count(*) FILTER (WHERE s.deptype = 'o'), coalesce(bool_and(d.datallowconn), true)
	FROM pg_shdepend s LEFT JOIN pg_database d ON d.oid = s.dbid
	WHERE s.refclassid = 'pg_authid'::regclass AND s.refobjid = ANY($1::oid[])
	GROUP BY 1, 2 ORDER BY 2`

// dropOwned drops what the accounts own, or reassigns it where their role says
// so, in every database concerned and no other.
func (b *withdrawal) dropOwned(ctx context.Context, items []*ending) {
	byDatabase := map[string][]*ending{}
	b.each(ctx, items, func(ctx context.Context, items []*ending) error {
		return b.findOwned(ctx, items, byDatabase)
	})
	order := make([]string, 0, len(byDatabase))
	for d := range byDatabase {
		order = append(order, d)
	}
	slices.Sort(order)
	for _, d := range order {
		b.dropOwnedIn(ctx, d, present(byDatabase[d]))
	}
}

func (b *withdrawal) findOwned(ctx context.Context, items []*ending, byDatabase map[string][]*ending) error {
	rows, err := b.conn.Query(ctx, ownedSQL, oids(items))
	if err != nil {
		return err
	}
	var oid uint32
	var database string
	var owns int
	var open bool
	_, err = pgx.ForEachRow(rows, []any{&oid, &database, &owns, &open}, func() error {
		for _, e := range items {
			if e.oid != oid {
				continue
			}
			if !open {
				e.fail(issuers.Poison, "database "+database+" allows no connections, and "+e.lease.Name+" owns objects in it", nil)
				continue
			}
			e.owned += owns
			byDatabase[database] = append(byDatabase[database], e)
		}
		return nil
	})
	return err
}

func (b *withdrawal) dropOwnedIn(ctx context.Context, database string, items []*ending) {
	if len(items) == 0 {
		return
	}
	conn := b.conn
	if database != b.is.server.main {
		pool, err := b.is.server.database(database)
		if err == nil {
			side, _, e := acquire(ctx, pool)
			if err = e; err == nil {
				defer side.Release()
				conn = side.Conn()
			}
		}
		if err != nil {
			for _, e := range items {
				e.fail(issuers.KindOf(err), "connect to database "+database, err)
			}
			return
		}
	}
	for _, e := range items {
		if e.lease.RoleSpec.OwnedOnEnd == ownedReassign {
			if err := retry(ctx, func() error { return reassign(ctx, conn, e.lease) }); err != nil {
				e.settle(err)
			}
		}
	}
	b.each(ctx, present(items), func(ctx context.Context, items []*ending) error {
		_, err := run(ctx, conn, dropOwnedSQL(factsOf(conn), names(items)...))
		return err
	})
}

// dropOwnedSQL drops what roles own in the connection's database and takes away
// what they were granted there. It never cascades to what others own. An admin
// that is no superuser must be a member of a role to do that; the membership
// ends with the role.
func dropOwnedSQL(f *facts, roles ...string) string {
	quoted := make([]string, len(roles))
	for i, r := range roles {
		quoted[i] = ident(r)
	}
	all := strings.Join(quoted, ", ")
	sql := "DROP OWNED BY " + all
	if !f.superuser {
		sql = "GRANT " + all + " TO CURRENT_USER; " + sql
	}
	return sql
}
