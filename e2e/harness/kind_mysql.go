package harness

import (
	"context"
	"errors"
	"fmt"
	"testing"

	driver "github.com/go-sql-driver/mysql"

	"github.com/mayfly-broker/mayfly/issuers/mysql/mysqltest"
)

// mariaDB is a MariaDB as a [Server].
type mariaDB struct{ *mysqltest.Server }

func startMySQL(ctx context.Context) (Server, error) {
	// 2 hands each commit to the system, which outlives the process
	s, err := mysqltest.Run(ctx, mysqltest.Flag("--innodb-flush-log-at-trx-commit=2"))
	if err != nil {
		return nil, err
	}
	return mariaDB{s}, nil
}

// Add makes a database of the target's name.
func (m mariaDB) Add(t testing.TB, admin CLI, dir, target string) string {
	t.Helper()
	m.Exec(t, "CREATE DATABASE "+target+"; CREATE TABLE "+target+".people (id int PRIMARY KEY, name text)")
	addTarget(t, admin, dir, m.Password, "mysql", m.Address(), "--name", target, "--username", mysqltest.AdminUser, "--database", target)
	return target + "/readonly"
}

// Name is the account's.
func (m mariaDB) Name(credential map[string]string) string { return credential["username"] }

// Login reads a table.
func (m mariaDB) Login(ctx context.Context, credential map[string]string) error {
	db, err := m.Open(credential["username"], credential["password"], credential["database"])
	if err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, "SELECT name FROM people")
	return errors.Join(err, db.Close())
}

// Ours lists accounts, the sessions that are theirs, and the rows that the broker
// keeps of them.
func (m mariaDB) Ours(ctx context.Context) ([]string, error) {
	db, err := m.Open(mysqltest.AdminUser, m.Password, "")
	if err != nil {
		return nil, err
	}
	defer func() { _ = db.Close() }()
	rows, err := db.QueryContext(ctx, `SELECT CONCAT('account ', user, '@', host) FROM mysql.global_priv WHERE user REGEXP '^mayfly[0-9a-z]{26}$'
		UNION ALL SELECT CONCAT('session of ', user) FROM information_schema.processlist WHERE user REGEXP '^mayfly[0-9a-z]{26}$'
		UNION ALL SELECT CONCAT('row of ', name) FROM mayfly.leases ORDER BY 1`)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var out []string
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			return nil, err
		}
		out = append(out, line)
	}
	return out, rows.Err()
}

// Account makes an account with two entries, as one for two networks has.
func (m mariaDB) Account(t testing.TB, target, username, password string) {
	t.Helper()
	for _, host := range []string{"127.0.0.1", "10.%"} {
		m.Exec(t, fmt.Sprintf("CREATE USER %s@'%s' IDENTIFIED BY '%s'; GRANT SELECT ON %s.* TO %[1]s@'%[2]s'", username, host, password, target))
	}
}

// Enters logs in.
func (m mariaDB) Enters(ctx context.Context, credential map[string]string) (bool, error) {
	db, err := m.Open(credential["username"], credential["password"], credential["database"])
	if err != nil {
		return false, err
	}
	err = db.PingContext(ctx)
	if me := new(driver.MySQLError); errors.As(err, &me) {
		return false, db.Close()
	}
	return err == nil, errors.Join(err, db.Close())
}

// Admin is an account with all rights.
func (m mariaDB) Admin() (username, password string) { return mysqltest.AdminUser, m.Password }
