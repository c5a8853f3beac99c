package mysql

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/mayfly-broker/mayfly/issuers"
)

// Names on the target. MySQL refuses, and MariaDB before 10.6 cuts off, what is
// longer than its limit (HAZARDS 16); the smallest limit is MySQL's, 32.
const (
	accountPrefix = "mayfly"
	scopePrefix   = "mayfly_s_"
	maxUserName   = 32
	// schemaName is the broker's own schema: leases, pooled roles, connections.
	schemaName = "mayfly"
)

var accountPattern = regexp.MustCompile(`^mayfly[0-9a-z]{26}$`)

// checkLease refuses a lease whose name is not the one that this package
// derives: everything after this check may put the name into SQL.
func checkLease(l issuers.Lease) error {
	if !accountPattern.MatchString(l.Name) || l.Name != (Kind{}).CredentialName(l.ID, l.Generation) {
		return &issuers.Error{Kind: issuers.Refused, Detail: fmt.Sprintf("lease %q: the name %q is not mayfly and 26 characters of 0-9, a-z", l.ID, l.Name)}
	}
	return nil
}

// Named locks (GET_LOCK) belong to the whole server and have at most 64
// characters. They end with the connection that holds them.
func leaseLock(leaseID string) string { return "mayfly.lease." + leaseID }

const poolLock = "mayfly.pool"

// ident quotes an identifier; parts are joined with dots.
func ident(parts ...string) string {
	quoted := make([]string, len(parts))
	for i, p := range parts {
		quoted[i] = "`" + strings.ReplaceAll(p, "`", "``") + "`"
	}
	return strings.Join(quoted, ".")
}

// databaseLevel quotes a database for GRANT … ON db.*, the one place where a
// server reads _ and % in a name as a pattern: unescaped, a grant on a_b is one
// on axb too. Escaping is by backslash, which therefore is escaped as well. With
// partial_revokes on, MySQL takes the name literally there, and backslashes too.
func databaseLevel(name string, literal bool) string {
	if !literal {
		name = strings.NewReplacer(`\`, `\\`, `_`, `\_`, `%`, `\%`).Replace(name)
	}
	return ident(name) + ".*"
}

// quote writes a string literal. Sessions here have neither NO_BACKSLASH_ESCAPES
// nor ANSI_QUOTES, and speak utf8mb4.
func quote(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`, "\x00", `\0`, "\n", `\n`, "\r", `\r`, "\x1a", `\Z`).Replace(s) + "'"
}

// quoteAll joins string literals with commas.
func quoteAll(list []string) string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = quote(s)
	}
	return strings.Join(out, ", ")
}

// at writes an account for every host: 'name'@'host', ….
func at(name string, hosts []string) string {
	return atWith(name, hosts, "")
}

// atWith writes an account for every host, each followed by a clause.
func atWith(name string, hosts []string, clause string) string {
	out := make([]string, len(hosts))
	for i, h := range hosts {
		out[i] = quote(name) + "@" + quote(h) + clause
	}
	return strings.Join(out, ", ")
}
