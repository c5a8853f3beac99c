package mysql

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/mayfly-broker/mayfly/issuers"
)

// makeTimeout bounds the making of one pooled role. It goes on when the mint that
// began it gives up: the next one needs it too.
const makeTimeout = 30 * time.Second

// pooledRoles keeps the roles that hold the grants of one distinct scope each
// (HAZARDS 15). One is made once per target, under a named lock that makers and
// sweepers share. Joining takes no lock: a mint commits its lease's row, which
// names the role, before it looks whether the role is ready, and a sweeper
// commits that the role is not ready before it looks for such rows. One of them
// sees the other.
type pooledRoles struct {
	server *server
	spec   spec
	log    *slog.Logger

	flight singleflight.Group
	makers sync.WaitGroup
	mu     sync.Mutex
	closed bool
	ready  map[string]bool // by role name: known to stand on the target
}

func (p *pooledRoles) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.makers.Wait()
}

func (p *pooledRoles) forget(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.ready, name)
}

// ensure returns when the pooled role stands with all its grants.
func (p *pooledRoles) ensure(ctx context.Context, name string, c compiled) error {
	p.mu.Lock()
	known, closed := p.ready[name], p.closed
	if known || closed {
		p.mu.Unlock()
		if closed {
			return &issuers.Error{Kind: issuers.Unreachable, Detail: "the issuer is closed"}
		}
		return nil
	}
	p.makers.Add(1)
	p.mu.Unlock()
	done := p.flight.DoChan(name, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), makeTimeout)
		defer cancel()
		return nil, p.make(ctx, name, c)
	})
	// the maker is waited for by whoever shares it, even when the caller leaves
	result := make(chan error, 1)
	go func() {
		defer p.makers.Done()
		result <- (<-done).Err
	}()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		// nothing of this lease was asked of the target yet
		return &issuers.Error{Kind: issuers.Unreachable, Detail: "the scope's pooled role is still being made", Err: ctx.Err()}
	}
}

// make makes or completes a pooled role.
func (p *pooledRoles) make(ctx context.Context, name string, c compiled) error {
	err := p.locked(ctx, func(conn *conn) error {
		stands, err := p.begin(ctx, conn, name)
		if err != nil || stands {
			return err
		}
		statements, err := grantStatements(ctx, conn, c, conn.role(name))
		if err != nil {
			return err
		}
		for _, s := range statements {
			if err := retry(ctx, func() error { return conn.run(ctx, s) }); err != nil {
				return fmt.Errorf("%s: %w", s, err)
			}
		}
		_, err = conn.ExecContext(ctx, "UPDATE "+schemaName+".scopes SET state = ? WHERE name = ?", scopeReady, name)
		return err
	})
	if err != nil {
		e := *sentError("make the scope's pooled role", err)
		if e.Kind == issuers.Unknown || e.Kind == issuers.TooLate {
			// whatever became of the pooled role: the lease's account was not asked for
			e.Kind = issuers.Unreachable
		}
		return &e
	}
	p.mu.Lock()
	p.ready[name] = true
	p.mu.Unlock()
	return nil
}

// locked runs f while holding the lock of makers and sweepers.
func (p *pooledRoles) locked(ctx context.Context, f func(*conn) error) error {
	conn, err := p.server.acquire(ctx, p.server.end)
	if err != nil {
		return err
	}
	defer conn.release() // and the lock with it
	var got int
	if err := conn.QueryRowContext(ctx, "SELECT COALESCE(GET_LOCK(?, 10), 0)", poolLock).Scan(&got); err != nil {
		return err
	}
	if got != 1 {
		return &issuers.Error{Kind: issuers.Unreachable, Detail: "another maker of pooled roles holds the lock for more than ten seconds"}
	}
	return f(conn)
}

// roleStands says whether the server has an account or role of that name.
func (c *conn) roleStands(ctx context.Context, name string) (bool, error) {
	var n int
	err := c.QueryRowContext(ctx, "SELECT COUNT(*) FROM "+c.accounts()+" WHERE User = ?", name).Scan(&n)
	return n > 0, err
}

// begin makes the role without grants, unless it stands already. Its row comes
// first; a role without a row is somebody else's.
func (p *pooledRoles) begin(ctx context.Context, conn *conn, name string) (stands bool, err error) {
	state, err := conn.list(ctx, "SELECT state FROM "+schemaName+".scopes WHERE name = ?", name)
	if err != nil {
		return false, err
	}
	exists, err := conn.roleStands(ctx, name)
	if err != nil {
		return false, err
	}
	switch {
	case len(state) == 0 && exists:
		return false, &issuers.Error{Kind: issuers.Foreign, Detail: "the role " + name + " exists without the broker's mark"}
	case len(state) == 1 && state[0] == scopeReady && exists:
		return true, nil
	case len(state) == 0:
		if err := p.room(ctx, conn); err != nil {
			return false, err
		}
	}
	_, err = conn.ExecContext(ctx, "INSERT INTO "+schemaName+".scopes (name, owner, state, made) VALUES (?, ?, ?, UTC_TIMESTAMP(6)) "+
		"ON DUPLICATE KEY UPDATE state = VALUES(state)", name, p.spec.Database, scopeMaking)
	if err != nil || exists {
		return false, err
	}
	return false, conn.run(ctx, "CREATE ROLE "+conn.role(name))
}

// room keeps the number of pooled roles under the target's cap.
func (p *pooledRoles) room(ctx context.Context, conn *conn) error {
	count := func() (n int, err error) {
		err = conn.QueryRowContext(ctx, "SELECT COUNT(*) FROM "+schemaName+".scopes WHERE owner = ?", p.spec.Database).Scan(&n)
		return n, err
	}
	n, err := count()
	if err != nil || n < p.spec.MaxPooledScopes {
		return err
	}
	if err := p.sweepUnused(ctx, conn); err != nil {
		p.log.WarnContext(ctx, "pooled roles not swept", "error", err) // the count decides
	}
	if n, err = count(); err != nil || n < p.spec.MaxPooledScopes {
		return err
	}
	return refused("%d distinct scopes are in use, the target's max_pooled_scopes; end leases, raise it, or ask for fewer different scopes", n)
}

// grantStatements returns the GRANTs for an account or role. A routine's kind is
// the server's to say.
func grantStatements(ctx context.Context, conn *conn, c compiled, to string) ([]string, error) {
	var out []string
	for _, g := range c.grants {
		if !g.Routine {
			out = append(out, g.sql(to, "", conn.literalDatabases))
			continue
		}
		kinds, err := conn.list(ctx, "SELECT DISTINCT routine_type FROM information_schema.routines WHERE routine_schema = ? AND routine_name = ? ORDER BY 1", g.Database, g.Name)
		if err != nil {
			return nil, err
		}
		if len(kinds) == 0 {
			return nil, &issuers.Error{Kind: issuers.BadScope, Detail: "the database has no routine " + ident(g.Database, g.Name) + " that the admin account can see"}
		}
		for _, k := range kinds {
			if k == "PROCEDURE" || k == "FUNCTION" {
				out = append(out, g.sql(to, k, conn.literalDatabases))
			}
		}
	}
	return out, nil
}
