package main

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/issuers/mysql/mysqltest"
)

// mariaDB is a private MariaDB that waits for its disk.
type mariaDB struct {
	*mysqltest.Server
	db *sql.DB
}

// startMariaDB runs one, and writes it as a target.
func startMariaDB(ctx context.Context, b *bench, c *cluster) (_ *system, stop func() error, err error) {
	s, err := mysqltest.Run(ctx, mysqltest.Durable())
	if err != nil {
		return nil, nil, err
	}
	m := &mariaDB{Server: s}
	if m.db, err = s.Open(mysqltest.AdminUser, s.Password, ""); err != nil {
		return nil, nil, errors.Join(err, s.Close())
	}
	m.db.SetMaxIdleConns(most)
	b.progress("   MariaDB at %s, durable", s.Address())
	err = s.Do(ctx, "CREATE DATABASE bench; CREATE TABLE bench.things (id int, name text); CREATE ROLE pooled; GRANT SELECT ON bench.* TO pooled")
	if err == nil {
		err = c.addSystem(ctx, "maria", map[string]any{"type": "mysql", "address": s.Address(), "database": "bench",
			"tls": map[string]string{"mode": "disable"}, "admin": map[string]string{"username": mysqltest.AdminUser},
		}, s.Password, map[string]any{"type": "database", "identifier": "bench", "actions": []string{"select"}, "tables": []any{map[string]string{"name": "bench.*"}}})
	}
	stop = func() error { return errors.Join(m.db.Close(), m.Close()) }
	if err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	return &system{
		title: "MariaDB", role: "maria/read", quick: "maria/read", many: 2000, look: 20 * time.Millisecond,
		bare: m.bare, made: "CREATE USER, GRANT, SET DEFAULT ROLE", drops: m.drops, dropped: "bare DROP USER, 50 a statement",
		count: m.count, login: m.login,
	}, stop, nil
}

// raw is one account as the bare client makes it: the statements of the broker's
// own, in one message.
func raw(name string) string {
	return "CREATE USER " + name + " IDENTIFIED BY '" + rand.Text() + "'; GRANT pooled TO " + name + "; SET DEFAULT ROLE pooled FOR " + name
}

func (m *mariaDB) bare(ctx context.Context, clients int, d time.Duration) (outcome, error) {
	conns := make([]*sql.Conn, clients)
	defer func() {
		for _, c := range conns {
			if c != nil {
				_ = c.Close()
			}
		}
	}()
	for i := range conns {
		var err error
		if conns[i], err = m.db.Conn(ctx); err != nil {
			return outcome{}, err
		}
	}
	return drive(ctx, clients, d, func(ctx context.Context, i int) error {
		_, err := conns[i].ExecContext(ctx, raw("raw"+rand.Text()))
		return err
	})
}

func (m *mariaDB) drops(ctx context.Context, n int) (float64, error) {
	const batch = 50
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("drop%d", i)
		if _, err := m.db.ExecContext(ctx, raw(names[i])); err != nil {
			return 0, err
		}
	}
	began := time.Now()
	for len(names) > 0 {
		some := names[:min(batch, len(names))]
		names = names[len(some):]
		if _, err := m.db.ExecContext(ctx, "DROP USER "+strings.Join(some, ", ")); err != nil {
			return 0, err
		}
	}
	return float64(n) / time.Since(began).Seconds(), nil
}

func (m *mariaDB) count(ctx context.Context) (n int, err error) {
	err = m.db.QueryRowContext(ctx, "SELECT COUNT(*) FROM mysql.global_priv WHERE user REGEXP '^mayfly[0-9a-z]{26}$'").Scan(&n)
	return n, err
}

func (m *mariaDB) login(ctx context.Context, credential map[string]string) (session, error) {
	db, err := m.Open(credential["username"], credential["password"], credential["database"])
	if err != nil {
		return session{}, err
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return session{}, errors.Join(err, db.Close())
	}
	return session{
		use:   conn.PingContext,
		close: func(context.Context) { _, _ = conn.Close(), db.Close() }, // the server has ended it already
	}, nil
}
