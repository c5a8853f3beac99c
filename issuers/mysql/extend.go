package mysql

import (
	"context"

	"github.com/mayfly-broker/mayfly/issuers"
)

// Extend implements [issuers.Extender]. These servers know no end of an account
// finer than days, so that the end that moves is the row's: what is there for
// people, and for a broker that lost its ledger. It looks and writes under the
// lease's lock, so that it cannot meet a withdrawal half-way, and never creates.
func (is *Issuer) Extend(ctx context.Context, lease issuers.Lease) error {
	if err := checkLease(lease); err != nil {
		return err
	}
	conn, err := is.server.acquire(ctx, is.server.mint)
	if err != nil {
		return err
	}
	defer conn.release()
	var locked int
	if err := conn.QueryRowContext(ctx, "SELECT COALESCE(GET_LOCK(?, 10), 0)", leaseLock(lease.ID)).Scan(&locked); err != nil {
		return sentError("extend "+lease.Name, err)
	}
	if locked != 1 {
		return &issuers.Error{Kind: issuers.Unreachable, Detail: "a mint or withdrawal of this lease has held it for ten seconds"}
	}
	r, ok, err := conn.row(ctx, lease.Name)
	if err != nil {
		return sentError("extend "+lease.Name, err)
	}
	stands, err := conn.roleStands(ctx, lease.Name)
	if err != nil {
		return sentError("extend "+lease.Name, err)
	}
	if !stands || ok && r.lease == lease.ID && r.state == stateEnding {
		return &issuers.Error{Kind: issuers.Gone, Detail: "there is no account " + lease.Name + ", or it is being ended"}
	}
	if err := r.mayReplace(ok, &account{lease: lease, term: is.term}); err != nil {
		return err
	}
	if _, err := conn.ExecContext(ctx, "UPDATE "+schemaName+".leases SET expires = GREATEST(expires, ?) WHERE name = ?", serverTime(lease.NotAfter), lease.Name); err != nil {
		return sentError("extend "+lease.Name, err)
	}
	return nil
}

// List implements [issuers.Lister]. A row without an account is listed too: its
// mint died half-way, or its withdrawal did.
func (is *Issuer) List(ctx context.Context) ([]issuers.Found, error) {
	conn, err := is.server.acquire(ctx, is.server.end)
	if err != nil {
		return nil, err
	}
	defer conn.release()
	rows, err := conn.QueryContext(ctx, "SELECT name, lease, generation FROM "+schemaName+".leases ORDER BY name")
	if err != nil {
		return nil, sentError("list accounts", err)
	}
	defer func() { _ = rows.Close() }()
	var out []issuers.Found
	for rows.Next() {
		var f issuers.Found
		if err := rows.Scan(&f.Name, &f.LeaseID, &f.Generation); err != nil {
			return nil, sentError("list accounts", err)
		}
		out = append(out, f)
	}
	if err := rows.Err(); err != nil {
		return nil, sentError("list accounts", err)
	}
	return out, nil
}
