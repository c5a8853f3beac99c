package postgres

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/singleflight"

	"github.com/mayfly-broker/mayfly/issuers"
)

// makeTimeout bounds the making of one pooled role, over all its databases. It
// goes on when the mint that began it gives up: the next one needs it too.
const makeTimeout = 30 * time.Second

// attempts bounds the retries of a statement that lost against another one.
const attempts = 8

// pooledRoles keeps the no-login roles that hold the grants of one distinct
// scope each (HAZARDS 15). One is made once per target, under an advisory lock
// that makers and sweepers share, since two GRANTs on one table at a time end in
// "tuple concurrently updated". Its ready mark is written last.
type pooledRoles struct {
	server *server
	most   int
	log    *slog.Logger
	// the two comments of this target's pooled roles
	making, standing string

	flight singleflight.Group
	makers sync.WaitGroup
	mu     sync.Mutex
	closed bool
	ready  map[string]*shape // by role name: known to stand on the target
}

func newPooledRoles(s *server, sp spec, log *slog.Logger) *pooledRoles {
	return &pooledRoles{server: s, most: sp.MaxPooledScopes, log: log, making: scopeMaking(sp.Database), standing: scopeReady(sp.Database), ready: map[string]*shape{}}
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
func (p *pooledRoles) ensure(ctx context.Context, name string, c compiled) (*shape, error) {
	p.mu.Lock()
	known := p.ready[name]
	if known != nil || p.closed {
		closed := p.closed
		p.mu.Unlock()
		if closed {
			return nil, &issuers.Error{Kind: issuers.Unreachable, Detail: "the issuer is closed"}
		}
		return known, nil
	}
	p.makers.Add(1)
	p.mu.Unlock()
	done := p.flight.DoChan(name, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), makeTimeout)
		defer cancel()
		return p.make(ctx, name, c)
	})
	// the maker is waited for by whoever shares it, even when the caller leaves
	result := make(chan singleflight.Result, 1)
	go func() {
		defer p.makers.Done()
		result <- <-done
	}()
	select {
	case r := <-result:
		made, _ := r.Val.(*shape)
		return made, r.Err
	case <-ctx.Done():
		// nothing of this lease was asked of the target yet
		return nil, &issuers.Error{Kind: issuers.Unreachable, Detail: "the scope's pooled role is still being made", Err: ctx.Err()}
	}
}

// make makes or completes a pooled role.
func (p *pooledRoles) make(ctx context.Context, name string, c compiled) (made *shape, err error) {
	err = p.locked(ctx, func(conn *pgx.Conn) error {
		stands, err := p.begin(ctx, conn, name)
		if err == nil && stands {
			made, stands, err = p.describe(ctx, conn, name, c)
		}
		if err != nil || stands {
			return err
		}
		if err := p.grantAll(ctx, conn, name, c); err != nil {
			return err
		}
		if made, stands, err = p.describe(ctx, conn, name, c); err != nil || !stands {
			return errors.Join(err, errors.New("the table of its leases' values is not there"))
		}
		return comment(ctx, conn, name, p.standing)
	})
	if err != nil {
		e := *sentError("make the scope's pooled role", err)
		if e.Kind == issuers.Unknown || e.Kind == issuers.TooLate {
			// whatever became of the pooled role: the lease's account was not asked for
			e.Kind = issuers.Unreachable
		}
		return nil, &e
	}
	p.mu.Lock()
	p.ready[name] = made
	p.mu.Unlock()
	return made, nil
}

// locked runs f while holding the lock of makers and sweepers.
func (p *pooledRoles) locked(ctx context.Context, f func(*pgx.Conn) error) error {
	conn, _, err := acquire(ctx, p.server.end)
	if err != nil {
		return err
	}
	defer conn.Release()
	if _, err := conn.Exec(ctx, "SELECT pg_advisory_lock($1)", poolKey()); err != nil {
		return err
	}
	err = f(conn.Conn())
	unlock, cancel := context.WithTimeout(context.WithoutCancel(ctx), connectTimeout)
	defer cancel()
	if _, e := conn.Exec(unlock, "SELECT pg_advisory_unlock($1)", poolKey()); e != nil {
		// a closed session holds no lock
		return errors.Join(err, conn.Conn().Close(unlock))
	}
	return err
}

// begin makes the role without grants, unless it stands already.
func (p *pooledRoles) begin(ctx context.Context, conn *pgx.Conn, name string) (stands bool, err error) {
	var login bool
	var mark string
	err = conn.QueryRow(ctx, `SELECT rolcanlogin, coalesce(shobj_description(oid, 'pg_authid'), '') FROM pg_roles WHERE rolname = $1`, name).Scan(&login, &mark)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
	case err != nil:
		return false, err
	case login || mark != p.standing && mark != p.making:
		return false, &issuers.Error{Kind: issuers.Foreign, Detail: "the role " + name + " exists without the broker's mark"}
	default:
		return mark == p.standing, nil
	}
	if err := p.room(ctx, conn); err != nil {
		return false, err
	}
	text, err := literal(conn, p.making)
	if err != nil {
		return false, err
	}
	_, err = run(ctx, conn, "CREATE ROLE "+ident(name)+" NOLOGIN NOINHERIT; COMMENT ON ROLE "+ident(name)+" IS "+text)
	return false, err
}

// room keeps the number of pooled roles under the target's cap.
func (p *pooledRoles) room(ctx context.Context, conn *pgx.Conn) error {
	const count = "SELECT count(*) FROM pg_roles WHERE starts_with(rolname, $1) AND NOT rolcanlogin AND shobj_description(oid, 'pg_authid') IN ($2, $3)"
	var n int
	if err := conn.QueryRow(ctx, count, scopePrefix, p.standing, p.making).Scan(&n); err != nil || n < p.most {
		return err
	}
	if err := p.sweepUnused(ctx, conn); err != nil {
		p.log.WarnContext(ctx, "pooled roles not swept", "error", err) // the count decides
	}
	if err := conn.QueryRow(ctx, count, scopePrefix, p.standing, p.making).Scan(&n); err != nil || n < p.most {
		return err
	}
	return refused("%d distinct scopes are in use, the target's max_pooled_scopes; end leases, raise it, or ask for fewer different scopes", n)
}

// grantAll applies a scope's grants in every database it names.
func (p *pooledRoles) grantAll(ctx context.Context, main *pgx.Conn, name string, c compiled) error {
	for _, g := range c.pooled {
		if err := p.in(ctx, main, g.Database, func(conn *pgx.Conn) error { return g.apply(ctx, conn, name) }); err != nil {
			return err
		}
	}
	return p.makeViews(ctx, main, name, c)
}

// in runs f on a connection to a database, again while it loses against other
// changes of the same catalogue rows.
func (p *pooledRoles) in(ctx context.Context, main *pgx.Conn, database string, f func(*pgx.Conn) error) error {
	conn := main
	if database != p.server.main {
		pool, err := p.server.database(database)
		if err != nil {
			return err
		}
		side, _, err := acquire(ctx, pool)
		if err != nil {
			return err
		}
		defer side.Release()
		conn = side.Conn()
	}
	return retry(ctx, func() error { return f(conn) })
}

// retry repeats f while its error is transient.
func retry(ctx context.Context, f func() error) error {
	for n := 0; ; n++ {
		err := f()
		if err == nil || !transient(err) || n == attempts-1 {
			return err
		}
		if pause(ctx, n) != nil {
			return err
		}
	}
}

func comment(ctx context.Context, conn *pgx.Conn, role, text string) error {
	quoted, err := literal(conn, text)
	if err != nil {
		return err
	}
	_, err = run(ctx, conn, "COMMENT ON ROLE "+ident(role)+" IS "+quoted)
	return err
}
