package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mayfly-broker/mayfly/issuers/postgres/pgtest"
)

// database is a private PostgreSQL that waits for its disk, and the bare
// client whose speed is the limit.
type database struct {
	*pgtest.Server
	admin *pgx.Conn
}

// names of the targets, each with a database of its own on the one server.
const (
	pgDefault = "pg"     // 4,096 iterations
	pgFast    = "pgfast" // 64 iterations
	pgCert    = "pgcert" // login by certificate: no password
)

func startDatabase(ctx context.Context, b *bench) (*database, error) {
	s, err := pgtest.Run(ctx, "", pgtest.Durable(), pgtest.Setting("log_checkpoints", "off"), pgtest.Setting("max_connections", "300"))
	if err != nil {
		return nil, err
	}
	d := &database{Server: s}
	for _, name := range []string{pgDefault, pgFast, pgCert} {
		if err := d.Do(ctx, "postgres", "CREATE DATABASE "+name); err != nil {
			return nil, errors.Join(err, d.Close())
		}
		if err := d.Do(ctx, name, "CREATE TABLE things (id int, name text)"); err != nil {
			return nil, errors.Join(err, d.Close())
		}
	}
	b.progress("   PostgreSQL at %s, fsync on", filepath.Base(d.Address()))
	if d.admin, err = pgx.Connect(ctx, d.URL(pgtest.AdminUser, d.Password, "postgres")); err == nil {
		_, err = d.admin.Exec(ctx, "CREATE ROLE pooled NOLOGIN")
	}
	if err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

func (d *database) close() error {
	if d.admin != nil {
		_ = d.admin.Close(context.Background()) // the server ends now
	}
	return d.Close()
}

// system is PostgreSQL as a kind among others; what is minted to be withdrawn has
// few iterations.
func (d *database) system() *system {
	return &system{
		title: "PostgreSQL", role: pgDefault + "/read", quick: pgFast + "/read", many: 10_000, look: 2 * time.Millisecond, share: 0.9, ending: 2000,
		bare: func(ctx context.Context, clients int, cell time.Duration) (outcome, error) {
			return d.bare(ctx, clients, cell, rawClear)
		},
		made: "CREATE ROLE", drops: d.drops, dropped: "bare DROP ROLE, 50 a transaction", count: d.count, login: d.login,
	}
}

// addDatabases writes the targets and a role on each.
func (c *cluster) addDatabases(ctx context.Context, d *database) error {
	extra := map[string]map[string]any{pgDefault: {}, pgFast: {"scram_iterations": 64}, pgCert: {"login": "certificate"}}
	for name, more := range extra {
		spec := map[string]any{"type": "postgres", "address": d.Address(), "database": name, "tls": map[string]string{"mode": "disable"}, "admin": map[string]string{"username": pgtest.AdminUser}}
		for k, v := range more {
			spec[k] = v
		}
		err := c.addSystem(ctx, name, spec, d.Password, map[string]any{"type": "database", "identifier": name, "actions": []string{"select"}, "tables": []any{map[string]string{"name": "public.*"}}})
		if err != nil {
			return err
		}
	}
	return nil
}

// Ways in which the bare client makes a role.
const (
	rawClear = "PASSWORD 'clear'"
	rawNone  = ""
	// A verifier of 64 iterations, as a broker would make it; PostgreSQL checks
	// it against the empty password, which costs those iterations.
	raw64 = "PASSWORD 'SCRAM-SHA-256$64:c2FsdHNhbHRzYWx0c2FsdA==$q+Tw2p5pj1mGGvT6AVzBcdsFqzPRuTrFAXPgTDXCkPk=:q+Tw2p5pj1mGGvT6AVzBcdsFqzPRuTrFAXPgTDXCkPk='"
)

// bare drives CREATE ROLE … IN ROLE on connections of its own.
func (d *database) bare(ctx context.Context, clients int, cell time.Duration, how string) (outcome, error) {
	conns := make([]*pgx.Conn, clients)
	defer func() {
		for _, c := range conns {
			if c != nil {
				_ = c.Close(context.WithoutCancel(ctx))
			}
		}
	}()
	for i := range conns {
		var err error
		if conns[i], err = pgx.Connect(ctx, d.URL(pgtest.AdminUser, d.Password, pgDefault)); err != nil {
			return outcome{}, err
		}
	}
	until := time.Now().Add(12 * time.Hour).Format(time.RFC3339)
	return drive(ctx, clients, cell, func(ctx context.Context, i int) error {
		password := how
		if how == rawClear {
			password = "PASSWORD '" + rand.Text() + "'"
		}
		sql := fmt.Sprintf("CREATE ROLE raw_%s LOGIN %s VALID UNTIL '%s' IN ROLE pooled", rand.Text(), password, until)
		_, err := conns[i].PgConn().Exec(ctx, sql).ReadAll()
		return err
	})
}

func (d *database) count(ctx context.Context) (n int, err error) {
	err = d.admin.QueryRow(ctx, "SELECT count(*) FROM pg_roles WHERE rolname ~ '^mayfly_[0-9a-z]{26}$'").Scan(&n)
	return n, err
}

// drops makes n roles and drops them, 50 in a transaction.
func (d *database) drops(ctx context.Context, n int) (float64, error) {
	const batch = 50
	make := fmt.Sprintf("DO $$ BEGIN FOR i IN 1..%d LOOP EXECUTE 'CREATE ROLE drop_' || i || ' LOGIN IN ROLE pooled'; END LOOP; END $$", n)
	if _, err := d.admin.Exec(ctx, make); err != nil {
		return 0, err
	}
	began := time.Now()
	for from := 1; from <= n; from += batch {
		drop := fmt.Sprintf("DO $$ BEGIN FOR i IN %d..%d LOOP EXECUTE 'DROP ROLE drop_' || i; END LOOP; END $$", from, from+batch-1)
		if _, err := d.admin.Exec(ctx, drop); err != nil {
			return 0, err
		}
	}
	return float64(n) / time.Since(began).Seconds(), nil
}

func (d *database) login(ctx context.Context, credential map[string]string) (session, error) {
	conn, err := pgx.Connect(ctx, credential["url"])
	if err != nil {
		return session{}, err
	}
	return session{
		use:   conn.Ping,
		close: func(ctx context.Context) { _ = conn.Close(ctx) }, // the server has ended it already
	}, nil
}
