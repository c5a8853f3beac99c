package harness

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/mayfly-broker/mayfly/issuers/postgres/pgtest"
)

// Postgres is a PostgreSQL as a [Server].
type Postgres struct{ *pgtest.Server }

func startPostgres(ctx context.Context) (Server, error) {
	s, err := pgtest.Run(ctx, "", pgtest.Setting("synchronous_commit", "on"))
	if err != nil {
		return nil, err
	}
	return Postgres{s}, nil
}

// Add makes a database of the target's name.
func (p Postgres) Add(t testing.TB, admin CLI, dir, target string) string {
	t.Helper()
	Database(t, p.Server, admin, dir, target)
	return target + "/readonly"
}

// Name is the account's.
func (p Postgres) Name(credential map[string]string) string { return credential["username"] }

// Login reads a table.
func (p Postgres) Login(ctx context.Context, credential map[string]string) error {
	conn, err := pgx.Connect(ctx, credential["url"])
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, "SELECT name FROM people")
	return errors.Join(err, conn.Close(ctx))
}

// Ours lists login roles, and the sessions that are theirs.
func (p Postgres) Ours(ctx context.Context) ([]string, error) {
	conn, err := pgx.Connect(ctx, p.URL(pgtest.AdminUser, p.Password, "postgres"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	rows, err := conn.Query(ctx, `SELECT 'role ' || rolname FROM pg_roles WHERE starts_with(rolname, 'mayfly_') AND NOT starts_with(rolname, 'mayfly_scope_')
		UNION ALL SELECT 'session of ' || usename FROM pg_stat_activity WHERE starts_with(usename, 'mayfly_') ORDER BY 1`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// Account makes a login role.
func (p Postgres) Account(t testing.TB, target, username, password string) {
	t.Helper()
	p.Exec(t, target, fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD '%s'; GRANT SELECT ON people TO %[1]s", username, password))
}

// Enters logs in.
func (p Postgres) Enters(ctx context.Context, credential map[string]string) (bool, error) {
	conn, err := pgx.Connect(ctx, cmp.Or(credential["url"], p.URL(credential["username"], credential["password"], "postgres")))
	if pe := new(pgconn.PgError); errors.As(err, &pe) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, conn.Close(ctx)
}

// Admin is the superuser.
func (p Postgres) Admin() (username, password string) { return pgtest.AdminUser, p.Password }
