package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mayfly-broker/mayfly/issuers"
)

// Times of a mint.
const (
	// defaultDeadline stands in for a lease without one.
	defaultDeadline = 30 * time.Second
	// answerGrace is how long past the deadline an answer is waited for: the
	// target's refusal is worth more than our own timeout.
	answerGrace = time.Second
)

// account is one lease's account, ready to be written.
type account struct {
	lease     issuers.Lease
	mark      mark
	grants    compiled
	scopeRole string
	pair                // the zero pair for login by certificate
	deadline  time.Time // by our clock
}

// Mint implements [issuers.Issuer]. In the common case it is one message to the
// server, which is one transaction there.
func (is *Issuer) Mint(ctx context.Context, lease issuers.Lease) (issuers.Credential, error) {
	is.stock.enter()
	defer is.stock.leave()
	a, err := is.prepare(lease)
	if err != nil {
		return issuers.Credential{}, err
	}
	ctx, cancel := context.WithDeadline(ctx, a.deadline.Add(answerGrace))
	defer cancel()
	if err := is.write(ctx, a); err != nil {
		return issuers.Credential{}, sentError("mint "+lease.Name, err)
	}
	if err := is.writeSides(ctx, a); err != nil {
		return issuers.Credential{}, err
	}
	if err := is.grantDirectly(ctx, a); err != nil {
		return issuers.Credential{}, err
	}
	return is.credential(a), nil
}

func (is *Issuer) prepare(lease issuers.Lease) (*account, error) {
	if err := checkLease(lease); err != nil {
		return nil, err
	}
	grants, err := compile(is.spec, lease.Scope)
	if err != nil {
		return nil, &issuers.Error{Kind: issuers.Refused, Detail: "the scope is not one for this target", Err: err}
	}
	a := &account{
		lease: lease, grants: grants, scopeRole: grants.roleName(is.spec.Database, lease.Role, lease.RoleVersion),
		mark:     mark{lease.ID, lease.Generation, is.term},
		deadline: lease.MintDeadline,
	}
	if a.deadline.IsZero() {
		a.deadline = time.Now().Add(defaultDeadline)
	}
	if lease.NotAfter.Before(a.deadline) {
		a.deadline = lease.NotAfter
	}
	if !time.Now().Before(a.deadline) {
		return nil, &issuers.Error{Kind: issuers.TooLate, Detail: "the mint deadline has passed"}
	}
	if is.spec.Login == loginPassword {
		if a.pair, err = is.stock.take(); err != nil {
			return nil, refused("make a SCRAM verifier: %v", err)
		}
	}
	return a, nil
}

// write creates the account, or replaces the secret of the one that an earlier
// generation made.
func (is *Issuer) write(ctx context.Context, a *account) error {
	for n := 0; ; n++ {
		made, err := is.pooled.ensure(ctx, a.scopeRole, a.grants)
		if err == nil {
			err = made.checkValues(a.grants)
		}
		if err != nil {
			return err
		}
		ready, err := is.create(ctx, a)
		if code := codeOf(err); code == codeDuplicateObject || code == codeUniqueViolation {
			ready, err = is.replace(ctx, a)
		}
		switch {
		case err == nil && ready:
			return nil
		case err == nil:
			// somebody swept the pooled role and is remaking it: the account has
			// joined it already, and gets its grants with it
			is.pooled.forget(a.scopeRole)
			_, err := is.pooled.ensure(ctx, a.scopeRole, a.grants)
			return is.orUndo(ctx, a, err)
		case codeOf(err) == codeUndefinedObject, a.hasValues() && noTable(err):
			is.pooled.forget(a.scopeRole)
		case !transient(err) && !errors.Is(err, errAbsent):
			return a.valueError(err)
		}
		if n == attempts-1 || pause(ctx, n) != nil {
			return err
		}
	}
}

// guard is a condition that must hold, or the transaction ends. Division by zero
// is the one error that plain SQL can raise on a condition, without a function
// installed on the target; its SQLSTATE is read as "too late".
//
// The first guard also takes the locks of a mint. The lease's lock is held until
// the commit is visible: who ends the lease takes it too, and so never looks
// while a mint is half done (HAZARDS 8). The scope's lock is shared with other
// joiners and keeps sweepers away (HAZARDS 15).
func (is *Issuer) guards(c *pgx.Conn, a *account) (first, last string, err error) {
	check, err := inTimeSQL(c, a.deadline.Add(factsOf(c).offset))
	if err != nil {
		return "", "", err
	}
	first = fmt.Sprintf("SELECT %s, pg_advisory_xact_lock(%d), pg_advisory_xact_lock_shared(%d), %s",
		limitSQL(a.deadline), leaseKey(a.lease.ID), scopeKey(a.scopeRole), check)
	role, err := literal(c, ident(a.scopeRole))
	if err != nil {
		return "", "", err
	}
	ready, err := literal(c, is.pooled.standing)
	if err != nil {
		return "", "", err
	}
	last = "SELECT " + check + ", EXISTS (SELECT FROM pg_shdescription WHERE classoid = 'pg_authid'::regclass AND objoid = " + role +
		"::regrole AND description = " + ready + ")"
	return first, last, nil
}

// limitSQL ends the transaction's statements, and their waits for locks, with a
// deadline by our clock.
func limitSQL(deadline time.Time) string {
	left := max(time.Until(deadline).Milliseconds(), 1)
	return fmt.Sprintf("set_config('lock_timeout', '%d', true), set_config('statement_timeout', '%d', true)", left, left)
}

// inTimeSQL is a guard: true before an instant of the target's clock.
func inTimeSQL(c *pgx.Conn, deadline time.Time) (string, error) {
	at, err := literal(c, pgTime(deadline))
	return "1/(clock_timestamp() < " + at + "::timestamptz)::int", err
}

// pgTime formats an instant for the server, which keeps microseconds.
func pgTime(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05.000000+00") }

// validUntil is least(the lease's end, the target's now + what is left of the
// lease): early if either clock is wrong, never late (HAZARDS 13).
func validUntil(end time.Time, f *facts) time.Time { return end.Add(min(f.offset, 0)) }

// create sends the one message of the common case. Its last guard stands after
// everything that can wait, so that nothing is committed past the deadline.
func (is *Issuer) create(ctx context.Context, a *account) (ready bool, err error) {
	conn, f, err := acquire(ctx, is.server.mint)
	if err != nil {
		return false, err
	}
	defer conn.Release()
	first, last, err := is.guards(conn.Conn(), a)
	if err != nil {
		return false, err
	}
	attributes, err := a.attributes(conn.Conn(), f)
	if err != nil {
		return false, err
	}
	role, pooled := ident(a.lease.Name), ident(a.scopeRole)
	text, err := literal(conn.Conn(), a.mark.String())
	if err != nil {
		return false, err
	}
	statements := []string{first, "CREATE ROLE " + role + " " + attributes + " IN ROLE " + pooled, "COMMENT ON ROLE " + role + " IS " + text}
	if f.version >= versionSetFalse {
		statements[1] = "CREATE ROLE " + role + " " + attributes + "; " + joinSQL(f, role, pooled)
	}
	values, err := a.rowsSQL(conn.Conn(), is.server.main)
	if err != nil {
		return false, err
	}
	statements = append(append(append(statements, values...), a.pathSQL()...), last)
	results, err := run(ctx, conn.Conn(), strings.Join(statements, "; "))
	if err != nil {
		return false, err
	}
	rows := results[len(results)-1].Rows
	return len(rows) == 1 && string(rows[0][1]) == "t", nil
}

// joinSQL makes an account a member of its pooled role. From version 16 on it
// cannot act as that role, only use its rights (HAZARDS 10).
func joinSQL(f *facts, role, pooled string) string {
	sql := "GRANT " + pooled + " TO " + role
	if f.version >= versionSetFalse {
		sql += " WITH INHERIT TRUE, SET FALSE"
	}
	return sql
}

func (a *account) attributes(c *pgx.Conn, f *facts) (string, error) {
	until, err := literal(c, pgTime(validUntil(a.lease.NotAfter, f)))
	if err != nil {
		return "", err
	}
	password := "NULL"
	if a.verifier != "" {
		if password, err = literal(c, a.verifier); err != nil {
			return "", err
		}
	}
	return "LOGIN PASSWORD " + password + " VALID UNTIL " + until, nil
}

// grantDirectly gives the account what cannot be pooled.
func (is *Issuer) grantDirectly(ctx context.Context, a *account) error {
	for _, g := range a.grants.direct {
		pool, err := is.server.database(g.Database)
		if err == nil {
			err = func() error {
				conn, _, err := acquire(ctx, pool)
				if err != nil {
					return err
				}
				defer conn.Release()
				return retry(ctx, func() error { return g.apply(ctx, conn.Conn(), a.lease.Name) })
			}()
		}
		if err != nil {
			return is.orUndo(ctx, a, err)
		}
	}
	return nil
}

// orUndo removes an account that stands without all its rights. The kind of err
// is kept only if the account is proven gone; else the broker must withdraw it.
func (is *Issuer) orUndo(ctx context.Context, a *account, err error) error {
	if err == nil {
		return nil
	}
	e := *sentError("grant to "+a.lease.Name, err)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), connectTimeout)
	defer cancel()
	if out := is.Withdraw(ctx, []issuers.Lease{a.lease}); out[0].Err != nil {
		e.Kind = issuers.Unknown
	}
	return &e
}
