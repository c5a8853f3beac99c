package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/mayfly-broker/mayfly/issuers"
)

// SQLSTATEs that decide something (PostgreSQL documentation, appendix A).
const (
	codeGrantedNothing   = "01007" // warning: privilege not granted
	codeDivisionByZero   = "22012" // how a guard says no; see mint.go
	codeUniqueViolation  = "23505"
	codeSerialisation    = "40001"
	codeDeadlock         = "40P01"
	codePrivilege        = "42501"
	codeUndefinedColumn  = "42703"
	codeUndefinedObject  = "42704"
	codeUndefinedTable   = "42P01"
	codeInvalidSchema    = "3F000"
	codeDuplicateObject  = "42710"
	codeObjectInUse      = "55006"
	codeLockNotAvailable = "55P03"
	codeDependentObjects = "2BP01"
	codeQueryCancelled   = "57014"
	codeInternal         = "XX000" // "tuple concurrently updated" and "… deleted" are filed here
)

func codeOf(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

// saidNo reports whether the server itself refused the statement, and so rolled
// its transaction back. A FATAL says no such thing: it may follow a commit.
func saidNo(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.SeverityUnlocalized == "ERROR"
}

// transient reports whether the statement lost against another one and may
// simply be tried again.
func transient(err error) bool {
	switch codeOf(err) {
	case codeSerialisation, codeDeadlock, codeInternal, codeUniqueViolation:
		return saidNo(err)
	}
	return false
}

// noTable reports whether the statement named a table, a column or a schema that
// is not there.
func noTable(err error) bool {
	switch codeOf(err) {
	case codeUndefinedTable, codeUndefinedColumn, codeInvalidSchema:
		return true
	}
	return false
}

// connectError classifies a failure to get a connection: nothing was asked of
// the target yet.
func connectError(err error) *issuers.Error {
	e := &issuers.Error{Kind: issuers.Unreachable, Detail: "cannot connect", Err: err}
	switch code := codeOf(err); {
	case code == "":
	case code[:2] == "28":
		e.Kind, e.Detail = issuers.Refused, "the server refuses the admin account's login"
	case code == "3D000":
		e.Kind, e.Detail = issuers.Refused, "the server has no such database"
	case code == codePrivilege:
		e.Kind, e.Detail = issuers.Refused, "the admin account may not connect to the database"
	}
	return e
}

// sentError classifies the failure of a statement.
func sentError(what string, err error) *issuers.Error {
	var mine *issuers.Error
	if errors.As(err, &mine) {
		return mine
	}
	e := &issuers.Error{Kind: issuers.Unknown, Detail: what, Err: err}
	switch {
	case pgconn.SafeToRetry(err):
		e.Kind = issuers.Unreachable
	case saidNo(err):
		switch code := codeOf(err); {
		case code == codeDivisionByZero || code == codeLockNotAvailable || code == codeQueryCancelled:
			// both timeouts of a mint end at its deadline
			e.Kind = issuers.TooLate
		case noTable(err):
			e.Kind = issuers.BadScope
			var pg *pgconn.PgError
			if errors.As(err, &pg) {
				e.Detail = pg.Message // it repeats the scope's own names
			}
		default:
			e.Kind = issuers.Refused
		}
	}
	return e
}

func refused(format string, args ...any) *issuers.Error {
	return &issuers.Error{Kind: issuers.Refused, Detail: fmt.Sprintf(format, args...)}
}

// pause waits before the n-th retry, from 0: 5 ms, doubled up to 80 ms.
func pause(ctx context.Context, n int) error {
	t := time.NewTimer(5 * time.Millisecond << min(n, 4))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
