package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/mayfly-broker/mayfly/issuers"
)

// ownedReassign is the value of a role's on_end.owned that keeps tables.
const ownedReassign = "reassign"

// ownerSQL: a new owner must be unable to log in and to do anything else, or an
// ended account would have widened it (HAZARDS 11).
const ownerSQL = `SELECT NOT (rolcanlogin OR rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls)
	AND NOT EXISTS (SELECT FROM pg_auth_members WHERE member = r.oid) FROM pg_roles r WHERE rolname = $1`

// keptSQL lists the account's plain tables and free-standing sequences, each
// with what forbids keeping it. Whatever would later run as the table's owner
// (an index's expressions, run by VACUUM), or make others run what the account
// wrote (triggers, rules, policies, defaults and checks that call functions),
// forbids it. Sequences of serial columns follow their tables.
const keptSQL = `SELECT n.nspname::text, c.relname::text, c.relkind = 'S',
	concat_ws(', ',
		CASE WHEN EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal) THEN 'a trigger' END,
		CASE WHEN EXISTS (SELECT FROM pg_rewrite w WHERE w.ev_class = c.oid) THEN 'a rule' END,
		CASE WHEN c.relrowsecurity OR EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid) THEN 'a policy' END,
		CASE WHEN EXISTS (SELECT FROM pg_inherits h WHERE h.inhrelid = c.oid OR h.inhparent = c.oid) THEN 'inheritance' END,
		CASE WHEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND (i.indexprs IS NOT NULL OR i.indpred IS NOT NULL)) THEN 'an index on an expression' END,
		CASE WHEN EXISTS (SELECT FROM pg_depend d WHERE d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass, 'pg_type'::regclass) AND (
			d.classid = 'pg_class'::regclass AND d.objid = c.oid
			OR d.classid = 'pg_attrdef'::regclass AND d.objid IN (SELECT oid FROM pg_attrdef WHERE adrelid = c.oid)
			OR d.classid = 'pg_constraint'::regclass AND d.objid IN (SELECT oid FROM pg_constraint WHERE conrelid = c.oid)))
			THEN 'a function or type of somebody''s own' END)
	FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
	WHERE c.relowner = (SELECT oid FROM pg_roles WHERE rolname = $1) AND c.relkind IN ('r', 'S') AND c.relpersistence <> 't'
	AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND c.relkind = 'S' AND d.deptype IN ('a', 'i'))
	ORDER BY 1, 2`

// kept is one table or sequence of an ended account.
type kept struct {
	schema, name string
	sequence     bool
	forbids      string
}

// reassign gives the account's plain tables and sequences in the connection's
// database to the owner that its role names, without the grants the account made
// on them. A table that may not be kept is not dropped in silence: the lease is
// parked. Everything else the account owns is left to be dropped.
func reassign(ctx context.Context, conn *pgx.Conn, lease issuers.Lease) error {
	objects, err := keptObjects(ctx, conn, lease.Name)
	if err != nil || len(objects) == 0 {
		return err
	}
	owner := lease.RoleSpec.ReassignTo
	var fit bool
	err = conn.QueryRow(ctx, ownerSQL, owner).Scan(&fit)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && !fit {
		return parked(lease, fmt.Sprintf("its tables cannot go to %q, which must be a role without login, attributes and memberships", owner))
	}
	if err != nil {
		return err
	}
	for _, o := range objects {
		if o.forbids != "" {
			return parked(lease, fmt.Sprintf("%s cannot be reassigned, since it has %s; drop that or the table", ident(o.schema, o.name), o.forbids))
		}
	}
	err = pgx.BeginFunc(ctx, conn, func(pgx.Tx) error {
		if f := factsOf(conn); !f.superuser {
			if _, err := run(ctx, conn, "GRANT "+ident(lease.Name)+" TO CURRENT_USER"); err != nil {
				return err
			}
		}
		for _, o := range objects {
			if err := o.give(ctx, conn, lease.Name, owner); err != nil {
				return err
			}
		}
		return nil
	})
	if code := codeOf(err); code == codePrivilege {
		return parked(lease, fmt.Sprintf("the admin account may not give its tables to %q: GRANT %s TO the admin account, and GRANT CREATE ON the schema TO %[2]s", owner, ident(owner)))
	}
	return err
}

func parked(lease issuers.Lease, why string) error {
	return &issuers.Error{Kind: issuers.Poison, Detail: lease.Name + " can no longer log in, but " + why}
}

func keptObjects(ctx context.Context, conn *pgx.Conn, account string) ([]kept, error) {
	rows, err := conn.Query(ctx, keptSQL, account)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(r pgx.CollectableRow) (kept, error) {
		var k kept
		err := r.Scan(&k.schema, &k.name, &k.sequence, &k.forbids)
		return k, err
	})
}

const granteesSQL = `SELECT DISTINCT CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(g.rolname) END
	FROM (SELECT relacl AS acl FROM pg_class WHERE oid = $1::regclass
		UNION ALL SELECT attacl FROM pg_attribute WHERE attrelid = $1::regclass) AS all_acls, aclexplode(acl) a
	LEFT JOIN pg_roles g ON g.oid = a.grantee WHERE a.grantee <> $2::regrole`

// give changes one object's owner. Grants are taken back first, by the account
// that made them, while it is still the owner.
func (k kept) give(ctx context.Context, conn *pgx.Conn, account, owner string) error {
	what, kind := ident(k.schema, k.name), "TABLE "
	if k.sequence {
		kind = "SEQUENCE "
	}
	grantees, err := list(ctx, conn, granteesSQL, what, ident(account))
	if err != nil {
		return err
	}
	for _, g := range grantees {
		if _, err := run(ctx, conn, "REVOKE ALL ON "+kind+what+" FROM "+g+" CASCADE"); err != nil {
			return err
		}
	}
	_, err = run(ctx, conn, "ALTER "+kind+what+" OWNER TO "+ident(owner))
	return err
}
