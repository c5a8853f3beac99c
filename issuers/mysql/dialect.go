package mysql

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Oldest servers with account locks, roles and default roles.
const (
	oldestMariaDB = 100402
	oldestMySQL   = 80022 // performance_schema.processlist
)

// dialect is what is known of a server: how it is spoken to, and its clock.
type dialect struct {
	mysql   bool // MySQL; else MariaDB
	version int  // 101119 for 10.11.19
	text    string
	// literalDatabases: partial_revokes is on, and a database's name in GRANT is
	// no pattern.
	literalDatabases bool
	// defaultRoles: the admin account may set the default role of another, without
	// which an account has nothing from the roles it joins.
	defaultRoles bool
	// offset is the target's clock minus ours, at least: the round trip's
	// uncertainty is taken off, so that a deadline is early, never late.
	offset   time.Duration
	measured time.Time
}

var versionPattern = regexp.MustCompile(`^(?:5\.5\.5-)?([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})`)

// parseVersion reads what VERSION() says. MariaDB names itself in it; a server
// that does not is taken for MySQL.
func parseVersion(text string) (dialect, error) {
	m := versionPattern.FindStringSubmatch(text)
	if m == nil {
		return dialect{}, fmt.Errorf("the server's version %.40q cannot be read", text)
	}
	n := 0
	for _, part := range m[1:] {
		v, err := strconv.Atoi(part)
		if err != nil {
			return dialect{}, err
		}
		n = n*100 + v
	}
	return dialect{mysql: !strings.Contains(text, "MariaDB"), version: n, text: text}, nil
}

// supported says whether the server has all that is used here, and what it needs.
func (d dialect) supported() (bool, string) {
	if d.mysql {
		return d.version >= oldestMySQL, "MySQL 8.0.22 or later is needed"
	}
	return d.version >= oldestMariaDB, "MariaDB 10.4.2 or later is needed"
}

// accounts is the table whose key is (Host, User): MariaDB's mysql.user is a view
// that reads JSON of every account.
func (d dialect) accounts() string {
	if d.mysql {
		return "mysql.user"
	}
	return "mysql.global_priv"
}

func (d dialect) processlist() string {
	if d.mysql {
		return "performance_schema.processlist"
	}
	return "information_schema.processlist"
}

// sessionSQL sets what a connection of ours relies on. An idle one is ended by
// the server before long, since a client that died without a word would else hold
// its locks for eight hours.
func (d dialect) sessionSQL() string {
	s := "SET SESSION sql_mode = 'STRICT_ALL_TABLES', time_zone = '+00:00', autocommit = 1, lock_wait_timeout = 10, innodb_lock_wait_timeout = 10, " +
		"wait_timeout = " + strconv.Itoa(int(serverIdle/time.Second))
	if !d.mysql {
		s += ", max_statement_time = 30"
	}
	return s + "; SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED"
}

// limitSQL makes waiting end with the deadline. MySQL has whole seconds alone,
// and no limit on a statement's time; the guards and the lease's lock stand
// behind it.
func (d dialect) limitSQL(left time.Duration) string {
	seconds := max(int(left/time.Second), 1)
	s := fmt.Sprintf("SET SESSION lock_wait_timeout = %d, innodb_lock_wait_timeout = %d", seconds, seconds)
	if !d.mysql {
		s += fmt.Sprintf(", max_statement_time = %.3f", max(left.Seconds(), 0.001))
	}
	return s
}

// lockSeconds is GET_LOCK's timeout; MySQL rounds it.
func (d dialect) lockSeconds(left time.Duration) string {
	if d.mysql {
		return strconv.Itoa(max(int(left/time.Second), 1))
	}
	return fmt.Sprintf("%.3f", max(left.Seconds(), 0.001))
}

// createUser makes accounts for every host, with a password that only we know in
// the clear.
func (d dialect) createUser(name string, hosts []string, v verifier, s spec, attribute string) string {
	require := ""
	switch s.Require {
	case requireSSL:
		require = " REQUIRE SSL"
	case requireX509:
		require = " REQUIRE X509"
	}
	if d.mysql {
		return "CREATE USER " + atWith(name, hosts, " IDENTIFIED WITH "+v.plugin+" AS "+quote(v.text)) + require + " ATTRIBUTE " + quote(attribute)
	}
	return "CREATE USER " + atWith(name, hosts, " IDENTIFIED VIA "+v.plugin+" USING "+quote(v.text)) + require
}

// joinRole makes accounts members of a role that is theirs from the start of a
// session.
func (d dialect) joinRole(role, name string, hosts []string) []string {
	out := []string{"GRANT " + d.role(role) + " TO " + at(name, hosts)}
	if d.mysql {
		return append(out, "SET DEFAULT ROLE "+d.role(role)+" TO "+at(name, hosts))
	}
	for _, h := range hosts {
		out = append(out, "SET DEFAULT ROLE "+d.role(role)+" FOR "+at(name, []string{h}))
	}
	return out
}

// role writes a role's name: MySQL's have a host, MariaDB's have none.
func (d dialect) role(name string) string {
	if d.mysql {
		return quote(name) + "@'%'"
	}
	return ident(name)
}
