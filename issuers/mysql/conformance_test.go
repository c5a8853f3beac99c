package mysql_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/mysql"
	"github.com/mayfly-broker/mayfly/issuers/mysql/mysqltest"
	"github.com/mayfly-broker/mayfly/scope"
)

// Pooled roles, as the superuser.
func TestConformance(t *testing.T) {
	conform(t, newFixture(t, mysqltest.Start(t)), nil) // the suite wants a server to itself
}

// The admin account that docs/issuers/mysql.md recommends, over TLS, with
// Ed25519, and scopes whose accounts define views: every grant is the account's
// own.
func TestConformanceWithLeastPrivilege(t *testing.T) {
	f := newFixture(t, mysqltest.Start(t, mysqltest.TLS()))
	f.leastPrivilege()
	f.spec["auth"], f.spec["hosts"] = "ed25519", []string{"127.0.0.1", "10.%"}
	conform(t, f, []string{"create_view"})
}

func conform(t *testing.T, f *fixture, also []string) {
	t.Helper()
	h := issuertest.Harness{
		Kind:     mysql.Kind{},
		Target:   f.target(1),
		Scope:    f.scope(append([]string{"select"}, also...), scope.Table{Name: "*"}),
		Narrower: f.scope([]string{"select"}, scope.Table{Name: "orders"}),
		Invalid:  f.invalid(),
		Accepted: f.accepted(),
		Hostile:  hostileScopes(t, f),
		Intact: func(ctx context.Context) error {
			n, err := f.number(ctx, "SELECT (SELECT COUNT(*) FROM orders) + (SELECT COUNT(*) FROM mysql.global_priv WHERE User = 'admin')")
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
			_, err = conn.ExecContext(ctx, "SELECT COUNT(*) FROM orders")
			return errors.Join(err, conn.Close())
		},
		Gone:         f.gone,
		Hold:         func(ctx context.Context, c issuers.Credential) (issuertest.Session, error) { return f.connect(ctx, c) },
		RefusesOlder: true,
		Unreachable:  f.with("address", "127.0.0.1:1").target(1).Spec,
		Rotation:     f.rotation(),
	}
	if also != nil {
		h.Stick = f.stick
	}
	issuertest.Run(t, h)
}

// stick makes a view of the account's own, and holds it in another session.
func (f *fixture) stick(ctx context.Context, l issuers.Lease, c issuers.Credential) (func() error, error) {
	conn, err := f.connect(ctx, c)
	if err != nil {
		return nil, err
	}
	_, err = conn.ExecContext(ctx, "CREATE VIEW stuck_"+l.ID+" AS SELECT id FROM orders")
	if err := errors.Join(err, conn.Close()); err != nil {
		return nil, err
	}
	db, err := f.server.Open(mysqltest.AdminUser, f.server.Password, f.database)
	if err != nil {
		return nil, err
	}
	_, err = db.ExecContext(ctx, "SELECT 1") // the pool has one connection, which stays
	db.SetMaxOpenConns(1)
	if err == nil {
		_, err = db.ExecContext(ctx, "LOCK TABLES stuck_"+l.ID+" READ")
	}
	return db.Close, err
}

// hostileScopes name tables, columns and routines that exist under hostile names,
// so that the compiler must quote them to grant anything.
func hostileScopes(t *testing.T, f *fixture) []scope.Scope {
	t.Helper()
	var out []scope.Scope
	for i, name := range []string{"a`; DROP TABLE orders; -- x", `a'; DROP TABLE orders; -- x`, `a"; DROP USER admin; -- x`, "x) TO PUBLIC; -- x", "PUBLIC", `a\'b\`, "a_b%", "`"} {
		q := "`" + strings.ReplaceAll(name, "`", "``") + "`"
		f.server.Exec(t, fmt.Sprintf("USE %[3]s; CREATE TABLE %[1]s (%[1]s INT, other INT); CREATE FUNCTION %[1]s() RETURNS INT DETERMINISTIC RETURN %[2]d", q, i, f.database))
		out = append(out,
			f.scope([]string{"select", "insert"}, scope.Table{Name: name, Columns: []string{name}}),
			f.scope([]string{"select", "delete"}, scope.Table{Name: name}),
			f.scope([]string{"execute"}, scope.Table{Name: name}),
			scope.Scope{{Type: "database", Identifier: name, Actions: []string{"select"}}})
	}
	return out
}

func (f *fixture) invalid() []scope.Scope {
	f.t.Helper()
	one := func(d scope.Detail) scope.Scope {
		d.Type = "database"
		return scope.Scope{d}
	}
	return []scope.Scope{
		one(scope.Detail{Identifier: "another", Actions: []string{"select"}}),
		one(scope.Detail{Identifier: f.database, Actions: []string{"delete"}, Tables: []scope.Table{{Name: f.database + ".orders", Columns: []string{"id"}}}}),
		one(scope.Detail{Identifier: f.database, Actions: []string{"select"}, Tables: []scope.Table{{Name: "mysql.user"}}}),
		one(scope.Detail{Identifier: f.database, Actions: []string{"select"}, Tables: []scope.Table{{Name: "mayfly.leases"}}}),
		one(scope.Detail{Identifier: "mysql", Actions: []string{"select"}}),
		one(scope.Detail{Identifier: f.database, Actions: []string{"select"}, Tables: []scope.Table{{Name: f.database + ".*", Columns: []string{"id"}}}}),
		one(scope.Detail{Identifier: f.database, Actions: []string{"event"}, Tables: []scope.Table{{Name: f.database + ".orders"}}}),
		one(scope.Detail{Identifier: f.database, Actions: []string{"select"}, Tables: []scope.Table{{Name: "*.orders"}}}),
		one(scope.Detail{Identifier: f.database, Actions: []string{"select"}, Locations: []string{"here"}}),
		one(scope.Detail{Identifier: f.database, Actions: []string{"super"}}),
	}
}

func (f *fixture) accepted() []scope.Scope {
	f.t.Helper()
	return []scope.Scope{
		f.scope([]string{"select", "insert", "update", "delete", "execute"}, scope.Table{Name: "*"}),
		f.scope([]string{"select", "update"}, scope.Table{Name: "staff", Columns: []string{"id", "name"}}),
		f.scope([]string{"execute"}, scope.Table{Name: "seven"}, scope.Table{Name: "nothing"}),
		{{Type: "database", Actions: []string{"select"}}},
		{{Type: "database", Identifier: f.database[:4] + "*", Actions: []string{"select"}}},
	}
}
