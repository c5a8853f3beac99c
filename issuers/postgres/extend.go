package postgres

import (
	"context"
	"errors"

	"github.com/mayfly-broker/mayfly/issuers"
)

// Extend implements [issuers.Extender]: the target knows the new end before the
// caller answers, and an end never moves backwards (HAZARDS 13). It alters and
// never creates.
func (is *Issuer) Extend(ctx context.Context, lease issuers.Lease) error {
	if err := checkLease(lease); err != nil {
		return err
	}
	if err := retry(ctx, func() error { return is.extend(ctx, lease) }); err != nil {
		return sentError("extend "+lease.Name, err)
	}
	return nil
}

const extendGuardSQL = `SELECT rolvaliduntil IS NULL OR rolvaliduntil >= $2::timestamptz FROM pg_roles WHERE rolname = $1`

// extend looks and writes under the lease's lock, so that it cannot meet a
// withdrawal half-way.
func (is *Issuer) extend(ctx context.Context, lease issuers.Lease) error {
	conn, f, err := acquire(ctx, is.server.mint)
	if err != nil {
		return err
	}
	defer conn.Release()
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	fail := func(err error) error { return errors.Join(err, tx.Rollback(context.WithoutCancel(ctx))) }
	if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", leaseKey(lease.ID)); err != nil {
		return fail(err)
	}
	s, err := look(ctx, conn.Conn(), lease)
	if errors.Is(err, errAbsent) || err == nil && s.ours && !s.login {
		return fail(&issuers.Error{Kind: issuers.Gone, Detail: "there is no account " + lease.Name + ", or it is being ended"})
	}
	if err == nil {
		err = s.mayReplace(&account{lease: lease, mark: mark{lease.ID, lease.Generation, is.term}})
	}
	if err != nil {
		return fail(err)
	}
	end := pgTime(validUntil(lease.NotAfter, f))
	var enough bool
	if err := tx.QueryRow(ctx, extendGuardSQL, lease.Name, end).Scan(&enough); err != nil {
		return fail(err)
	}
	if enough {
		return tx.Rollback(ctx)
	}
	until, err := literal(conn.Conn(), end)
	if err != nil {
		return fail(err)
	}
	if _, err := run(ctx, conn.Conn(), "ALTER ROLE "+ident(lease.Name)+" VALID UNTIL "+until); err != nil {
		return fail(err)
	}
	return tx.Commit(ctx)
}

// List implements [issuers.Lister]. An account that is gone, and left values of its
// filters behind, is listed too.
func (is *Issuer) List(ctx context.Context) ([]issuers.Found, error) {
	conn, _, err := acquire(ctx, is.server.end)
	if err != nil {
		return nil, err
	}
	defer conn.Release()
	rows, err := conn.Query(ctx, `SELECT r.rolname::text, d.description FROM pg_roles r
		JOIN pg_shdescription d ON d.objoid = r.oid AND d.classoid = 'pg_authid'::regclass
		WHERE starts_with(r.rolname, $1) AND starts_with(d.description, $2) ORDER BY 1`, accountPrefix, accountMark)
	if err != nil {
		return nil, sentError("list accounts", err)
	}
	var out []issuers.Found
	for rows.Next() {
		var name, text string
		if err := rows.Scan(&name, &text); err != nil {
			return nil, sentError("list accounts", err)
		}
		m, _ := parseMark(text) // an unreadable mark has an empty lease id
		out = append(out, issuers.Found{Name: name, LeaseID: m.leaseID, Generation: m.generation})
	}
	if err := rows.Err(); err != nil {
		return nil, sentError("list accounts", err)
	}
	gone, err := is.pooled.leftovers(ctx, conn.Conn())
	if err != nil {
		return nil, sentError("list values of accounts that are gone", err)
	}
	return append(out, gone...), nil
}
