package mysql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"time"

	driverpkg "github.com/go-sql-driver/mysql"

	"github.com/mayfly-broker/mayfly/issuers"
)

// Error numbers that decide something (MySQL server error reference; MariaDB
// error codes).
const (
	codeHandshakeDenied  = 1045
	codeTooManyConns     = 1040
	codeDatabaseDenied   = 1044
	codeNoSuchDatabase   = 1049
	codeUnknownColumn    = 1054
	codeDuplicateEntry   = 1062
	codeUnknownThread    = 1094
	codeHostBlocked      = 1129
	codeHostDenied       = 1130
	codeTableDenied      = 1142
	codeColumnDenied     = 1143
	codeNoSuchTable      = 1146
	codeLockWait         = 1205
	codeDeadlock         = 1213
	codeGlobalDenied     = 1227
	codeGuard            = 1242 // subquery returns more than one row: how a guard says no; see mint.go
	codeNoSuchRoutine    = 1305
	codeInterrupted      = 1317
	codeProcDenied       = 1370
	codeAccountFailed    = 1396 // CREATE, ALTER or DROP USER failed
	codeAccessDeniedRoot = 1698
	codeConnectionKilled = 1927
	codeInvalidRole      = 1959 // MariaDB
	codeStatementTime    = 1969 // MariaDB: max_statement_time
	codeUnknownRole      = 3523 // MySQL
	codeShutdown         = 1053
	codeQueryTimeout     = 3024 // MySQL: max_execution_time
	codeStillDefiner     = 4006 // MySQL: the account is a definer
	codeReferencedAsUser = 3163
)

func codeOf(err error) int {
	var e *driverpkg.MySQLError
	if errors.As(err, &e) {
		return int(e.Number)
	}
	return 0
}

// saidNo reports whether the server itself refused the statement. What ended the
// connection, or the statement from outside, says nothing about its effect.
func saidNo(err error) bool {
	switch codeOf(err) {
	case 0, codeInterrupted, codeConnectionKilled, codeShutdown:
		return false
	}
	return true
}

// transient reports whether the statement lost against another one and may
// simply be tried again.
func transient(err error) bool { return codeOf(err) == codeDeadlock }

// connectError classifies a failure to get a connection: nothing was asked of the
// target yet.
func connectError(err error) *issuers.Error {
	var mine *issuers.Error
	if errors.As(err, &mine) {
		return mine
	}
	e := &issuers.Error{Kind: issuers.Unreachable, Detail: "cannot connect", Err: err}
	if errors.Is(err, context.DeadlineExceeded) {
		e.Detail = "cannot connect: the server has not answered in time"
	}
	switch codeOf(err) {
	case codeHandshakeDenied, codeAccessDeniedRoot:
		e.Kind, e.Detail = issuers.Refused, "the server refuses the admin account's login"
	case codeHostDenied:
		e.Kind, e.Detail = issuers.Refused, "the server accepts no connections from this host"
	case codeDatabaseDenied, codeTableDenied, codeNoSuchDatabase, codeNoSuchTable:
		e.Kind, e.Detail = issuers.Refused, "the broker's own schema cannot be used: GRANT ALL ON "+schemaName+".* to the admin account"
	case codeTooManyConns:
		e.Detail = "the server has no connection left"
	case codeHostBlocked:
		e.Detail = "the server refuses every connection from this host since too many of them broke off, as they do while it hangs: run FLUSH HOSTS there, and set max_connect_errors higher"
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
	case errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrConnDone): // said by the driver only when nothing was sent
		e.Kind = issuers.Unreachable
	case saidNo(err):
		e.Kind = issuers.Refused
		switch codeOf(err) {
		case codeGuard, codeLockWait, codeStatementTime, codeQueryTimeout:
			e.Kind = issuers.TooLate
		case codeNoSuchTable, codeUnknownColumn, codeNoSuchRoutine, codeNoSuchDatabase:
			e.Kind = issuers.BadScope
			var my *driverpkg.MySQLError
			if errors.As(err, &my) {
				e.Detail = my.Message // it repeats the scope's own names
			}
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

// retry repeats f while its error is transient.
func retry(ctx context.Context, f func() error) error {
	for n := 0; ; n++ {
		err := f()
		if err == nil || !transient(err) || n == attempts-1 {
			return err
		}
		if pause(ctx, n) != nil {
			return err
		}
	}
}

// attempts bounds the retries of a statement that lost against another one.
const attempts = 8
