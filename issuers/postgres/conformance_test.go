package postgres_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/postgres"
	"github.com/mayfly-broker/mayfly/issuers/postgres/pgtest"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

// session adapts a connection to the suite.
type session struct{ *pgx.Conn }

func (s session) Alive(ctx context.Context) error { return s.Ping(ctx) }
func (s session) Close() error                    { return s.Conn.Close(context.Background()) }

func TestConformance(t *testing.T) {
	conform(t, newFixture(t, pgtest.Start(t))) // the suite wants a server to itself
}

// The same with the admin account that docs/issuers/postgres.md recommends, over
// TLS.
func TestConformanceWithLeastPrivilege(t *testing.T) {
	f := newFixture(t, pgtest.Start(t, pgtest.TLS()))
	f.spec["tls"] = map[string]any{"mode": "verify-full", "ca": f.server.CAPEM}
	hostileScopes(t, f) // made before the rights are given
	f.leastPrivilege()
	conform(t, f)
}

// leastPrivilege makes an admin account as the documentation says.
func (f *fixture) leastPrivilege() {
	f.t.Helper()
	raw, err := os.ReadFile("../../docs/issuers/postgres.md")
	if err != nil {
		f.t.Fatal(err)
	}
	_, sql, ok := strings.Cut(string(raw), "```sql least-privilege\n")
	sql, _, end := strings.Cut(sql, "```")
	if !ok || !end {
		f.t.Fatal("docs/issuers/postgres.md has no block of SQL called least-privilege")
	}
	f.server.Exec(f.t, f.database, sql+"; ALTER ROLE mayfly PASSWORD 'mayfly-admin-password'")
	// the same for every other schema: the statements that name one
	_, perSchema, _ := strings.Cut(sql, "GRANT pg_signal_backend TO mayfly;")
	rows, err := f.server.Admin(f.t, f.database).Query(f.t.Context(), "SELECT quote_ident(nspname) FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema|public)'")
	if err != nil {
		f.t.Fatal(err)
	}
	schemas, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		f.t.Fatal(err)
	}
	for _, schema := range schemas {
		f.server.Exec(f.t, f.database, strings.ReplaceAll(perSchema, "SCHEMA public", "SCHEMA "+schema))
	}
	f.spec["admin"] = map[string]any{"username": "mayfly"}
	f.secrets = map[string]secret.Text{postgres.SecretPassword: secret.New("mayfly-admin-password")}
}

func conform(t *testing.T, f *fixture) {
	t.Helper()
	server := f.server
	admin := server.Admin(t, f.database)
	prepared := func(ctx context.Context, sql string) error {
		return server.Do(ctx, f.database, sql)
	}
	issuertest.Run(t, issuertest.Harness{
		Kind:     postgres.Kind{},
		Target:   f.target(1),
		Scope:    f.readonly(),
		Narrower: f.scope([]string{"select"}, scope.Table{Name: "public.orders"}),
		Invalid:  f.invalid(),
		Accepted: f.accepted(),
		Hostile:  hostileScopes(t, f),
		Intact: func(ctx context.Context) error {
			var n int
			err := admin.QueryRow(ctx, "SELECT (SELECT count(*) FROM orders) + (SELECT count(*) FROM pg_roles WHERE rolname = 'admin')").Scan(&n)
			if err == nil && n != 3 {
				err = fmt.Errorf("orders or admin are not what they were: %d", n)
			}
			return err
		},
		Use: func(ctx context.Context, c issuers.Credential) error {
			conn, err := f.connect(ctx, c)
			if err != nil {
				return err
			}
			_, err = conn.Exec(ctx, "SELECT count(*) FROM orders")
			return errors.Join(err, conn.Close(ctx))
		},
		Gone: func(ctx context.Context, l issuers.Lease) error {
			var n int
			err := admin.QueryRow(ctx, `SELECT (SELECT count(*) FROM pg_roles WHERE rolname = $1) + (SELECT count(*) FROM pg_stat_activity WHERE usename = $1)
				+ (SELECT count(*) FROM pg_prepared_xacts WHERE owner = $1)`, l.Name).Scan(&n)
			if err == nil && n != 0 {
				err = fmt.Errorf("%d entries of %s in the catalogue", n, l.Name)
			}
			return err
		},
		Hold: func(ctx context.Context, c issuers.Credential) (issuertest.Session, error) {
			conn, err := f.connect(ctx, c)
			return session{conn}, err
		},
		Stick: func(ctx context.Context, l issuers.Lease, c issuers.Credential) (func() error, error) {
			conn, err := f.connect(ctx, c)
			if err != nil {
				return nil, err
			}
			_, err = conn.Exec(ctx, "BEGIN; SELECT 1 FROM orders; PREPARE TRANSACTION '"+l.ID+"'")
			var freed bool
			return func() error {
				if freed {
					return nil
				}
				freed = true
				return prepared(context.Background(), "ROLLBACK PREPARED '"+l.ID+"'")
			}, errors.Join(err, conn.Close(ctx))
		},
		Expires: func(c issuers.Credential) (time.Time, error) {
			var until time.Time
			err := admin.QueryRow(t.Context(), "SELECT rolvaliduntil FROM pg_roles WHERE rolname = $1", c.Public["username"]).Scan(&until)
			return until, err
		},
		RefusesOlder: true,
		Unreachable:  unreachable(t, f),
		Rotation:     f.rotation(),
	})
}

func unreachable(t *testing.T, f *fixture) json.RawMessage {
	t.Helper()
	g := *f
	g.spec = map[string]any{}
	for k, v := range f.spec {
		g.spec[k] = v
	}
	g.spec["address"] = "127.0.0.1:1"
	return g.target(1).Spec
}

// hostileScopes name tables, columns and functions that exist under hostile
// names, so that the compiler must quote them to grant anything.
func hostileScopes(t *testing.T, f *fixture) []scope.Scope {
	t.Helper()
	var out []scope.Scope
	for i, name := range []string{`a"; DROP TABLE orders; --`, `a'; DROP TABLE orders; --`, `$$; DROP ROLE admin; $$`, `x) TO PUBLIC; --`, `PUBLIC`, `a\"b`} {
		q := pgx.Identifier{name}.Sanitize()
		f.server.Exec(t, f.database, fmt.Sprintf(`CREATE SCHEMA IF NOT EXISTS %s; CREATE TABLE IF NOT EXISTS %[1]s.%[1]s (%[1]s int, other int);
			CREATE OR REPLACE FUNCTION %[1]s.%[1]s(text) RETURNS int LANGUAGE sql AS 'SELECT %[2]d'`, q, i))
		out = append(out,
			f.scope([]string{"select", "insert"}, scope.Table{Name: name + "." + name, Columns: []string{name}}),
			f.scope([]string{"select", "insert", "usage", "create"}, scope.Table{Name: name + ".*"}),
			f.scope([]string{"execute"}, scope.Table{Name: name + "." + name}))
	}
	return out
}

func (f *fixture) invalid() []scope.Scope {
	f.t.Helper()
	return []scope.Scope{
		{{Type: "database", Identifier: "another", Actions: []string{"select"}}},
		{{Type: "database", Identifier: f.database, Actions: []string{"delete"}, Tables: []scope.Table{{Name: "public.orders", Columns: []string{"id"}}}}},
		{{Type: "database", Identifier: f.database, Actions: []string{"select"}, Tables: []scope.Table{{Name: "pg_catalog.pg_authid"}}}},
		{{Type: "database", Identifier: f.database, Actions: []string{"select"}, Tables: []scope.Table{{Name: "public.*", Columns: []string{"id"}}}}},
		{{Type: "database", Identifier: f.database, Actions: []string{"create"}, Tables: []scope.Table{{Name: "public.orders"}}}},
		{{Type: "database", Identifier: f.database, Actions: []string{"select"}, Locations: []string{"here"}}},
	}
}

func (f *fixture) accepted() []scope.Scope {
	f.t.Helper()
	return []scope.Scope{
		f.scope([]string{"select", "insert", "update", "delete", "truncate", "references", "trigger"}, scope.Table{Name: "public.*"}),
		f.scope([]string{"usage", "execute", "create", "temporary"}, scope.Table{Name: "hr.*"}),
		f.scope([]string{"select", "update"}, scope.Table{Name: "hr.staff", Columns: []string{"id", "name"}}),
		{{Type: "database", Actions: []string{"select"}}},
	}
}
