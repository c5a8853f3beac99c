package mysql

import (
	"context"
	"errors"
	"fmt"
)

// Sweep implements [issuers.Sweeper]: pooled roles that no lease joins are
// removed, and so are the rows of connections that ended.
func (is *Issuer) Sweep(ctx context.Context) error {
	err := is.pooled.locked(ctx, func(conn *conn) error {
		_, err := conn.ExecContext(ctx, "DELETE FROM "+schemaName+".connections WHERE id NOT IN (SELECT id FROM "+conn.processlist()+")")
		return errors.Join(is.pooled.sweepUnused(ctx, conn), err)
	})
	if err != nil {
		return sentError("sweep pooled roles", err)
	}
	return nil
}

// sweepUnused removes what no lease joins. The caller holds the pool's lock.
func (p *pooledRoles) sweepUnused(ctx context.Context, conn *conn) error {
	names, err := conn.list(ctx, "SELECT s.name FROM "+schemaName+".scopes s WHERE s.owner = ? AND NOT EXISTS (SELECT 1 FROM "+schemaName+".leases l WHERE l.scope = s.name) ORDER BY 1", p.spec.Database)
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

// remove drops one pooled role. Somebody who is joining it right now wins: the
// role is then made ready again, grants and all, by whoever needs it next.
func (p *pooledRoles) remove(ctx context.Context, conn *conn, name string) error {
	p.forget(name)
	if _, err := conn.ExecContext(ctx, "UPDATE "+schemaName+".scopes SET state = ? WHERE name = ?", scopeSweeping, name); err != nil {
		return err
	}
	var joined int
	if err := conn.QueryRowContext(ctx, "SELECT COUNT(*) FROM "+schemaName+".leases WHERE scope = ?", name).Scan(&joined); err != nil {
		return err
	}
	if joined > 0 {
		_, err := conn.ExecContext(ctx, "UPDATE "+schemaName+".scopes SET state = ? WHERE name = ?", scopeMaking, name)
		return err
	}
	if err := retry(ctx, func() error { return conn.run(ctx, "DROP ROLE IF EXISTS "+conn.role(name)) }); err != nil {
		return err
	}
	_, err := conn.ExecContext(ctx, "DELETE FROM "+schemaName+".scopes WHERE name = ?", name)
	return err
}
