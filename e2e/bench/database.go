package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/issuers/postgres/pgtest"
)

// database is a private PostgreSQL that waits for its disk, and the bare
// client whose speed is the limit.
type database struct {
	*pgtest.Server
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
	d := &database{s}
	for _, name := range []string{pgDefault, pgFast, pgCert} {
		if err := d.Do(ctx, "postgres", "CREATE DATABASE "+name); err != nil {
			return nil, errors.Join(err, d.Close())
		}
		if err := d.Do(ctx, name, "CREATE TABLE things (id int, name text)"); err != nil {
			return nil, errors.Join(err, d.Close())
		}
	}
	b.progress("   PostgreSQL at %s, fsync on", filepath.Base(d.Address()))
	return d, d.Do(ctx, "postgres", "CREATE ROLE pooled NOLOGIN")
}

// addDatabases writes the targets and a role on each.
func (c *cluster) addDatabases(ctx context.Context, d *database) error {
	extra := map[string]map[string]any{pgDefault: {}, pgFast: {"scram_iterations": 64}, pgCert: {"login": "certificate"}}
	var in wire.ApplyRequest
	for name, more := range extra {
		spec := map[string]any{"type": "postgres", "address": d.Address(), "database": name, "tls": map[string]string{"mode": "disable"}, "admin": map[string]string{"username": pgtest.AdminUser}}
		for k, v := range more {
			spec[k] = v
		}
		target, err := object("Target", name, spec)
		if err != nil {
			return err
		}
		target.Secrets = map[string]string{"admin_password": d.Password}
		role, err := object("Role", name+"/read", map[string]any{
			"scope": []any{map[string]any{"type": "database", "identifier": name, "actions": []string{"select"}, "tables": []any{map[string]string{"name": "public.*"}}}},
			"ttl":   map[string]string{"default": far, "max": far}, "caps": caps,
		})
		if err != nil {
			return err
		}
		in.Objects = append(in.Objects, target, role)
	}
	_, err := c.admin.Apply(ctx, in)
	return err
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

// count counts accounts whose name matches.
func (d *database) count(ctx context.Context, conn *pgx.Conn, pattern string) (n int, err error) {
	err = conn.QueryRow(ctx, "SELECT count(*) FROM pg_roles WHERE rolname ~ $1", pattern).Scan(&n)
	return n, err
}

func (d *database) connect(ctx context.Context) (*pgx.Conn, error) {
	return pgx.Connect(ctx, d.URL(pgtest.AdminUser, d.Password, "postgres"))
}
