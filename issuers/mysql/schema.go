package mysql

import (
	"fmt"
	"strings"
)

// States of a lease's row. That an account was made is not written: it would cost
// one more wait for the disk, and decide nothing.
const (
	stateOpen   = "open"
	stateEnding = "ending" // nothing may be minted under it any more
)

// States of a pooled role's row.
const (
	scopeMaking   = "making"
	scopeReady    = "ready"
	scopeSweeping = "sweeping"
)

// schemaSQL makes the broker's own tables. A lease's row is written before its
// account and removed after it: neither server lets an account carry a mark that
// is written with it in one transaction (MariaDB has no comment on users at all).
var schemaSQL = strings.Join([]string{
	"CREATE DATABASE IF NOT EXISTS " + schemaName,
	"CREATE TABLE IF NOT EXISTS " + schemaName + ".leases (name VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY, " +
		"lease CHAR(26) CHARACTER SET ascii COLLATE ascii_bin NOT NULL, generation BIGINT UNSIGNED NOT NULL, term BIGINT UNSIGNED NOT NULL, " +
		"state VARCHAR(8) CHARACTER SET ascii COLLATE ascii_bin NOT NULL, hosts VARCHAR(600) CHARACTER SET ascii COLLATE ascii_bin NOT NULL, " +
		"scope VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL, definer BOOLEAN NOT NULL, deadline DATETIME(6) NOT NULL, expires DATETIME(6) NOT NULL, " +
		"made DATETIME(6) NOT NULL, KEY by_scope (scope)) ENGINE=InnoDB",
	"CREATE TABLE IF NOT EXISTS " + schemaName + ".scopes (name VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY, " +
		"owner VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL, state VARCHAR(8) CHARACTER SET ascii COLLATE ascii_bin NOT NULL, " +
		"made DATETIME(6) NOT NULL) ENGINE=InnoDB",
	"CREATE TABLE IF NOT EXISTS " + schemaName + ".connections (id BIGINT UNSIGNED NOT NULL PRIMARY KEY, " +
		"admin VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL, term BIGINT UNSIGNED NOT NULL, address VARCHAR(261) NOT NULL, " +
		"opened DATETIME(6) NOT NULL) ENGINE=InnoDB",
}, ";\n")

// registerSQL notes a connection's term. The address is written too, since
// connection ids begin anew when the server does.
func registerSQL(d dialect, admin string, term uint64) string {
	return fmt.Sprintf("REPLACE INTO %s.connections (id, admin, term, address, opened) SELECT id, %s, %d, COALESCE(host, ''), UTC_TIMESTAMP(6) FROM %s WHERE id = CONNECTION_ID()",
		schemaName, quote(admin), term, d.processlist())
}
