package mysql

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// Times of a mint.
const (
	// defaultDeadline stands in for a lease without one.
	defaultDeadline = 30 * time.Second
	// answerGrace is how long past the deadline an answer is waited for: the
	// target's refusal is worth more than our own timeout.
	answerGrace = time.Second
	undoTimeout = 5 * time.Second
)

// account is one lease's account, ready to be written.
type account struct {
	lease     issuers.Lease
	term      uint64
	hosts     []string // where it is made
	drop      []string // where an earlier mint may have made it, beside hosts
	grants    compiled
	scopeRole string // "" where the account holds its grants itself
	password  secret.Text
	verifier  verifier
	deadline  time.Time // by our clock
}

// errNotReady says that the pooled role was being swept when the account was to
// join it.
var errNotReady = errors.New("mysql: the pooled role is not ready")

// Mint implements [issuers.Issuer]. In the common case it is two messages to the
// server on one connection: one that commits the lease's row, one that makes the
// account.
func (is *Issuer) Mint(ctx context.Context, lease issuers.Lease) (issuers.Credential, error) {
	a, err := is.prepare(lease)
	if err != nil {
		return issuers.Credential{}, err
	}
	ctx, cancel := context.WithDeadline(ctx, a.deadline.Add(answerGrace))
	defer cancel()
	for n := 0; ; n++ {
		err = is.once(ctx, a)
		if err == nil {
			return is.credential(a), nil
		}
		if !transient(err) && !errors.Is(err, errNotReady) || n == attempts-1 || pause(ctx, n) != nil {
			break
		}
	}
	if errors.Is(err, errNotReady) { // nothing of it is left on the target
		err = &issuers.Error{Kind: issuers.Unreachable, Detail: "the scope's pooled role is being removed and made again", Err: err}
	}
	return issuers.Credential{}, sentError("mint "+lease.Name, err)
}

func (is *Issuer) prepare(lease issuers.Lease) (*account, error) {
	if err := checkLease(lease); err != nil {
		return nil, err
	}
	grants, err := compile(is.spec, lease.Scope)
	if err != nil {
		return nil, &issuers.Error{Kind: issuers.Refused, Detail: "the scope is not one for this target", Err: err}
	}
	a := &account{lease: lease, term: is.term, hosts: is.spec.Hosts, grants: grants, deadline: lease.MintDeadline, password: newPassword()}
	if a.deadline.IsZero() {
		a.deadline = time.Now().Add(defaultDeadline)
	}
	if lease.NotAfter.Before(a.deadline) {
		a.deadline = lease.NotAfter
	}
	if !time.Now().Before(a.deadline) {
		return nil, &issuers.Error{Kind: issuers.TooLate, Detail: "the mint deadline has passed"}
	}
	return a, nil
}

// once tries to mint on one connection.
func (is *Issuer) once(ctx context.Context, a *account) error {
	conn, err := is.server.acquire(ctx, is.server.mint)
	if err != nil {
		return err
	}
	defer conn.release()
	if a.verifier, err = newVerifier(conn.dialect, is.spec.Auth, a.password); err != nil {
		return refused("%v", err)
	}
	a.scopeRole = ""
	if !a.grants.definer && (is.spec.Grants == grantsPooled || is.spec.Grants == grantsAuto && conn.defaultRoles) {
		a.scopeRole = a.grants.roleName(is.spec, a.lease.Role, a.lease.RoleVersion)
		if err := is.pooled.ensure(ctx, a.scopeRole, a.grants); err != nil {
			return err
		}
	}
	replaces := false
	switch err := a.reserve(ctx, conn); codeOf(err) {
	case codeGuard, codeDuplicateEntry:
		if err := a.takeOver(ctx, conn); err != nil {
			return err
		}
		replaces = true
	default:
		if err != nil {
			return err
		}
	}
	if err := is.write(ctx, conn, a, replaces); err != nil {
		return is.undo(ctx, conn, a, err)
	}
	return nil
}

// guard is a condition that must hold, or the message ends there. A subquery of
// two rows is the one error that both servers raise on a condition in plain SQL;
// its number is read as "no" (a DO would swallow it, hence SET).
func guard(condition string) string {
	return "SET @mayfly = IF(" + condition + ", 1, (SELECT 1 UNION SELECT 2))"
}

// inTime holds before the deadline, by the target's clock.
func (a *account) inTime(d dialect) string {
	return d.inTime(a.deadline)
}

// reserve takes the lease's lock and commits the lease's row, if neither a row
// nor an account of the name stands. Nothing is done if it fails.
//
// The lock is held until the connection is given back or dies. Who ends the lease
// takes it too, and so never looks while a mint is half done (HAZARDS 8).
func (a *account) reserve(ctx context.Context, c *conn) error {
	left := time.Until(a.deadline)
	return c.run(ctx,
		c.limitSQL(left),
		guard("GET_LOCK("+quote(leaseLock(a.lease.ID))+", "+c.lockSeconds(left)+") = 1"),
		guard(a.inTime(c.dialect)+" AND NOT EXISTS (SELECT 1 FROM "+c.accounts()+" WHERE User = "+quote(a.lease.Name)+" AND Host IN ("+quoteAll(a.hosts)+"))"),
		fmt.Sprintf("INSERT INTO %s.leases (name, lease, generation, term, state, hosts, scope, definer, deadline, expires, made) VALUES (%s, %s, %d, %d, %s, %s, %s, %t, %s, %s, UTC_TIMESTAMP(6))",
			schemaName, quote(a.lease.Name), quote(a.lease.ID), a.lease.Generation, a.term, quote(stateOpen), quote(strings.Join(a.hosts, ",")), quote(a.scopeRole),
			a.grants.definer, quote(serverTime(a.deadline.Add(c.offset))), quote(serverTime(a.lease.NotAfter))))
}

// serverTime formats an instant for a DATETIME(6) in UTC.
func serverTime(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05.000000") }

// write makes the account. A guard stands before what is made, and one after
// everything that can wait.
func (is *Issuer) write(ctx context.Context, c *conn, a *account, replaces bool) error {
	before := a.inTime(c.dialect)
	if a.scopeRole != "" {
		before += " AND EXISTS (SELECT 1 FROM " + schemaName + ".scopes WHERE name = " + quote(a.scopeRole) + " AND state = " + quote(scopeReady) + ")"
	}
	statements := []string{guard(before)}
	if replaces {
		statements = append(statements, "DROP USER IF EXISTS "+at(a.lease.Name, union(a.hosts, a.drop)))
	}
	attribute := fmt.Sprintf(`{"mayfly": {"lease": "%s", "generation": %d, "term": %d}}`, a.lease.ID, a.lease.Generation, a.term)
	statements = append(statements, c.createUser(a.lease.Name, a.hosts, a.verifier, is.spec, attribute))
	if a.scopeRole != "" {
		statements = append(statements, c.joinRole(a.scopeRole, a.lease.Name, a.hosts)...)
	} else {
		grants, err := grantStatements(ctx, c, a.grants, at(a.lease.Name, a.hosts))
		if err != nil {
			return err
		}
		statements = append(statements, grants...)
	}
	return c.run(ctx, append(statements, guard(a.inTime(c.dialect)))...)
}

// undo removes what a failed mint has made, under the lock that the connection
// still holds. The error's kind is kept only if nothing is left; else the broker
// must withdraw.
func (is *Issuer) undo(ctx context.Context, c *conn, a *account, err error) error {
	if !saidNo(err) && codeOf(err) != 0 || codeOf(err) == 0 && !isOurs(err) {
		return &issuers.Error{Kind: issuers.Unknown, Detail: "mint " + a.lease.Name, Err: err}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	var early bool
	e := c.run(ctx, c.sessionSQL(), "DROP USER IF EXISTS "+at(a.lease.Name, union(a.hosts, a.drop)))
	if e == nil {
		_, e = c.ExecContext(ctx, "DELETE FROM "+schemaName+".leases WHERE name = ? AND state = ?", a.lease.Name, stateOpen)
	}
	if e == nil && a.scopeRole != "" {
		// a guard that failed before the deadline failed because of the role
		e = c.QueryRowContext(ctx, "SELECT "+a.inTime(c.dialect)).Scan(&early)
	}
	if e != nil {
		return &issuers.Error{Kind: issuers.Unknown, Detail: "mint " + a.lease.Name + " failed, and what it made could not be removed", Err: errors.Join(err, e)}
	}
	if code := codeOf(err); code == codeInvalidRole || code == codeUnknownRole || code == codeGuard && early {
		is.pooled.forget(a.scopeRole)
		return errNotReady
	}
	return err
}

func isOurs(err error) bool {
	var mine *issuers.Error
	return errors.As(err, &mine)
}
