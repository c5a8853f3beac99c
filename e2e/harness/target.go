package harness

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/issuers/postgres/pgtest"
)

// Database makes a database with a table of people and one of notes, and adds
// it as the target of the same name.
func Database(t testing.TB, pg *pgtest.Server, admin CLI, dir, name string) {
	t.Helper()
	Tables(t, pg, name)
	AddTarget(t, pg, admin, dir, name, name)
}

// Tables makes that database and adds no target.
func Tables(t testing.TB, pg *pgtest.Server, name string) {
	t.Helper()
	pg.Exec(t, "postgres", "CREATE DATABASE "+name)
	pg.Exec(t, name, `REVOKE CREATE ON SCHEMA public FROM PUBLIC;
		CREATE TABLE people (id int PRIMARY KEY, name text NOT NULL, email text, salary int);
		INSERT INTO people VALUES (1, 'Ada', 'ada@example.org', 100), (2, 'Bo', 'bo@example.org', 90);
		CREATE TABLE notes (id int, body text)`)
}

// AddTarget adds a target for a database that exists.
func AddTarget(t testing.TB, pg *pgtest.Server, admin CLI, dir, database, name string) {
	t.Helper()
	admin.Must(t, TargetArgs(t, pg, dir, database, name)...)
}

// TargetArgs is the command that adds a target for a database that exists.
func TargetArgs(t testing.TB, pg *pgtest.Server, dir, database, name string) []string {
	t.Helper()
	file := filepath.Join(dir, "pw-"+name)
	if err := os.WriteFile(file, []byte(pg.Password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"target", "add", "postgres", pg.Address(), "--name", name, "--username", pgtest.AdminUser, "--database", database, "--password-file", file}
}

// AllEnded waits until the ledger knows of no lease that is open or ending.
func AllEnded(t testing.TB, cl *client.Client, d time.Duration) {
	t.Helper()
	Within(t, d, "every lease ends", func() error { return NoneLives(t.Context(), cl, nil) })
}

// NoneLives says which leases are open or ending, but for those that may be; nil is
// none.
func NoneLives(ctx context.Context, cl *client.Client, may func(wire.Lease) bool) error {
	for _, state := range []string{"open", "ending"} {
		list, err := Leases(ctx, cl, client.Filter{State: state})
		if err != nil {
			return err
		}
		if may != nil {
			list = slices.DeleteFunc(list, may)
		}
		if len(list) > 0 {
			return fmt.Errorf("%d leases are %s, as %s of %s on %s, expires %s: %s", len(list), state, list[0].Username, list[0].Principal, list[0].Target, list[0].ExpiresAt, list[0].Problem)
		}
	}
	return nil
}

// Leases reads all leases that a filter lets through, page by page.
func Leases(ctx context.Context, cl *client.Client, f client.Filter) (all []wire.Lease, err error) {
	for f.Limit = 1000; ; {
		page, err := cl.Leases(ctx, f)
		if err != nil {
			return nil, err
		}
		all = append(all, page...)
		if len(page) < f.Limit {
			return all, nil
		}
		f.After = page[len(page)-1].ID
	}
}

// Login connects with a minted credential's url.
func Login(t testing.TB, url string) (*pgx.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn, nil
}
