package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// Sweep implements [issuers.Sweeper]: pooled roles that no account joins are
// removed, and the grants of those this process uses are applied again, so that
// a wildcard also covers tables made since. What a pooled role owns (it can own
// something only by an attack, HAZARDS 10) is dropped.
func (is *Issuer) Sweep(ctx context.Context) error {
	p := is.pooled
	err := p.locked(ctx, func(conn *pgx.Conn) error {
		return errors.Join(p.sweepUnused(ctx, conn), p.refresh(ctx, conn), p.sweepValues(ctx, conn))
	})
	if err != nil {
		return sentError("sweep pooled roles", err)
	}
	return nil
}

// unused lists pooled roles without members. The admin account does not count:
// from version 16 on a role's creator is made its member.
const unused = `SELECT r.rolname FROM pg_roles r
	WHERE starts_with(r.rolname, $1) AND NOT r.rolcanlogin AND shobj_description(r.oid, 'pg_authid') IN ($2, $3)
	AND NOT EXISTS (SELECT FROM pg_auth_members m WHERE m.roleid = r.oid AND m.member <> (SELECT oid FROM pg_roles WHERE rolname = current_user))
	ORDER BY 1`

// sweepUnused removes what no account joins. The caller holds the pool's lock.
func (p *pooledRoles) sweepUnused(ctx context.Context, conn *pgx.Conn) error {
	names, err := list(ctx, conn, unused, scopePrefix, p.standing, p.making)
	if err != nil {
		return err
	}
	var failed error
	for _, name := range names { // one that cannot be removed does not keep the others
		if err := p.remove(ctx, conn, name); err != nil {
			failed = errors.Join(failed, fmt.Errorf("remove %s: %w", name, err))
		}
	}
	return failed
}

// remove drops one pooled role under the lock that joiners share. Somebody who
// is joining it right now wins: the role is then in use.
func (p *pooledRoles) remove(ctx context.Context, conn *pgx.Conn, name string) error {
	var alone bool
	if err := conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1)", scopeKey(name)).Scan(&alone); err != nil || !alone {
		return err
	}
	defer func() {
		// a failure closes the session, and the lock with it
		_, _ = conn.Exec(context.WithoutCancel(ctx), "SELECT pg_advisory_unlock($1)", scopeKey(name))
	}()
	names, err := list(ctx, conn, unused, scopePrefix, p.standing, p.making)
	if err != nil {
		return err
	}
	if !slices.Contains(names, name) {
		return nil
	}
	p.forget(name)
	// not ready from here on, so that a half-removed role is completed or
	// removed, never joined
	if err := comment(ctx, conn, name, p.making); err != nil {
		return err
	}
	if err := p.removeViews(ctx, conn, name); err != nil {
		return err
	}
	if err := p.dropOwned(ctx, conn, name); err != nil {
		return err
	}
	return retry(ctx, func() error {
		_, err := run(ctx, conn, "DROP ROLE IF EXISTS "+ident(name))
		return err
	})
}

// dependents lists the databases in which a role owns or was granted something;
// what is shared by all databases is dealt with in the main one.
const dependents = `SELECT DISTINCT coalesce(d.datname, current_database())::text FROM pg_shdepend s LEFT JOIN pg_database d ON d.oid = s.dbid
	WHERE s.refclassid = 'pg_authid'::regclass AND s.refobjid = (SELECT oid FROM pg_roles WHERE rolname = $1)`

func (p *pooledRoles) dropOwned(ctx context.Context, main *pgx.Conn, name string) error {
	databases, err := list(ctx, main, dependents, name)
	if err != nil {
		return err
	}
	for _, d := range databases {
		err := p.in(ctx, main, d, func(conn *pgx.Conn) error {
			_, err := run(ctx, conn, dropOwnedSQL(factsOf(conn), name))
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// refresh applies the grants of every pooled role known to this process again.
func (p *pooledRoles) refresh(ctx context.Context, conn *pgx.Conn) error {
	p.mu.Lock()
	known := make(map[string]compiled, len(p.ready))
	for name, s := range p.ready {
		known[name] = s.compiled
	}
	p.mu.Unlock()
	for name, c := range known {
		stands, err := list(ctx, conn, "SELECT rolname FROM pg_roles WHERE rolname = $1", name)
		if err != nil {
			return err
		}
		if len(stands) == 0 {
			p.forget(name)
			continue
		}
		if err := p.clean(ctx, conn, name); err != nil {
			return err
		}
		failed := p.grantAll(ctx, conn, name, c)
		if failed != nil {
			p.log.WarnContext(ctx, "pooled role not refreshed", "role", name, "error", failed)
		} else if err := p.remember(ctx, conn, name, c); err != nil {
			return err
		}
		if err := p.vouch(ctx, conn, name, c, failed == nil); err != nil {
			return err
		}
	}
	return nil
}

// remember describes a pooled role anew: a column under its views may have another
// type now.
func (p *pooledRoles) remember(ctx context.Context, conn *pgx.Conn, name string, c compiled) error {
	made, stands, err := p.describe(ctx, conn, name, c)
	if err != nil || !stands {
		p.forget(name)
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ready[name] = made
	return nil
}

// vouch takes the ready mark from a scope whose row filters no longer hold, so
// that no account joins it, and gives it back when they do.
func (p *pooledRoles) vouch(ctx context.Context, conn *pgx.Conn, name string, c compiled, holds bool) error {
	if !slices.ContainsFunc(c.pooled, func(g databaseGrants) bool { return len(g.Views) > 0 }) {
		return nil
	}
	if holds {
		return comment(ctx, conn, name, p.standing)
	}
	return comment(ctx, conn, name, p.making)
}

// clean drops what a pooled role owns, grants and all; the caller applies the
// grants anew. Live accounts are without them for that moment, which an attack
// is worth.
func (p *pooledRoles) clean(ctx context.Context, conn *pgx.Conn, name string) error {
	var owns int
	err := conn.QueryRow(ctx, `SELECT count(*) FROM pg_shdepend WHERE refclassid = 'pg_authid'::regclass AND deptype = 'o'
		AND refobjid = (SELECT oid FROM pg_roles WHERE rolname = $1)`, name).Scan(&owns)
	if err != nil || owns == 0 {
		return err
	}
	p.log.WarnContext(ctx, "a pooled role owned objects, which are dropped", "role", name, "objects", owns)
	return p.dropOwned(ctx, conn, name)
}
