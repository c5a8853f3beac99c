package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
)

const (
	accounts     = "^mayfly_[0-9a-z]{26}$"
	openSessions = 50
)

// minted is a credential that the bench got.
type minted struct{ lease, url string }

// mintTask mints n accounts in one new task of the first principal.
func (p *place) mintTask(ctx context.Context, name string, n int) (task string, out []minted, err error) {
	cl := p.crowd.mtls[0]
	t, err := cl.StartTask(ctx, wire.StartTaskRequest{Name: name, Purpose: "benchmark", TTL: far})
	if err != nil {
		return "", nil, err
	}
	out = make([]minted, n)
	return t.ID, out, each(ctx, n, 16, func(ctx context.Context, i int) error {
		a, err := cl.Request(ctx, wire.AccessRequest{Role: pgFast + "/read", Task: t.ID})
		out[i] = minted{a.LeaseID, a.Credential["url"]}
		return err
	})
}

// measureWithdrawal ends many leases at once, sessions and all, then as many
// one by one as time allows, beside plain DROP ROLE.
func measureWithdrawal(ctx context.Context, b *bench, p *place) error {
	conn, err := p.db.connect(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	raw, err := p.bareDrops(ctx, conn, 2000)
	if err != nil {
		return err
	}
	n := 10_000
	if b.quick {
		n /= 5
	}
	task, list, err := p.mintTask(ctx, "many", n)
	if err != nil {
		return err
	}
	sessions, err := openSome(ctx, list)
	defer closeAll(ctx, sessions)
	if err != nil {
		return err
	}
	took, err := p.endTask(ctx, conn, task, n, sessions)
	if err != nil {
		return err
	}
	rate := float64(n) / took.Seconds()
	b.add(row{what: fmt.Sprintf("withdrawing %d PostgreSQL leases: one task end", n), got: perSecond(rate), detail: fmt.Sprintf("%s until all are gone, %d open sessions ended", short(took), len(sessions)),
		raw: "bare DROP ROLE, 50 a transaction " + perSecond(raw), ratio: times(rate, raw), budget: "≥ 2000 /s", met: met(rate >= 2000)})
	return p.measureRevokes(ctx, b, conn, raw, n/10)
}

// endTask ends a task and measures until PostgreSQL lists none of its accounts.
func (p *place) endTask(ctx context.Context, conn *pgx.Conn, task string, n int, sessions []*pgx.Conn) (time.Duration, error) {
	before, err := p.db.count(ctx, conn, accounts)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if _, err := p.crowd.mtls[0].EndTask(ctx, task, 0); err != nil {
		return 0, err
	}
	err = poll(ctx, 2*time.Minute, func(ctx context.Context) error {
		left, err := p.db.count(ctx, conn, accounts)
		if err == nil && left > before-n {
			err = fmt.Errorf("%d accounts are left over", left-(before-n))
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	took := time.Since(began)
	for _, s := range sessions {
		if _, err := s.Exec(ctx, "SELECT 1"); err == nil {
			return 0, errors.New("a session outlived its lease")
		}
	}
	return took, p.confirmed(ctx, task)
}

// confirmed waits until the ledger has every receipt too.
func (p *place) confirmed(ctx context.Context, task string) error {
	return poll(ctx, time.Minute, func(ctx context.Context) error {
		for _, state := range []string{"open", "ending"} {
			left, err := p.admin.Leases(ctx, client.Filter{Task: task, State: state, Limit: 1})
			if err != nil {
				return err
			}
			if len(left) > 0 {
				return errors.New("leases of an ended task are " + state)
			}
		}
		return nil
	})
}

// measureRevokes ends leases one call each.
func (p *place) measureRevokes(ctx context.Context, b *bench, conn *pgx.Conn, raw float64, n int) error {
	_, list, err := p.mintTask(ctx, "few", n)
	if err != nil {
		return err
	}
	before, err := p.db.count(ctx, conn, accounts)
	if err != nil {
		return err
	}
	began := time.Now()
	err = each(ctx, n, 16, func(ctx context.Context, i int) error {
		_, err := p.crowd.mtls[0].Revoke(ctx, list[i].lease, wire.RevokeRequest{Reason: "benchmark"})
		return err
	})
	if err != nil {
		return err
	}
	err = poll(ctx, time.Minute, func(ctx context.Context) error {
		left, err := p.db.count(ctx, conn, accounts)
		if err == nil && left > before-n {
			err = fmt.Errorf("%d accounts are left over", left-(before-n))
		}
		return err
	})
	if err != nil {
		return err
	}
	rate := float64(n) / time.Since(began).Seconds()
	b.add(row{what: fmt.Sprintf("withdrawing %d PostgreSQL leases: one revoke each, 16 clients", n), got: perSecond(rate), detail: "until all are gone",
		raw: "bare DROP ROLE, 50 a transaction " + perSecond(raw), ratio: times(rate, raw)})
	return nil
}

// bareDrops makes n roles and drops them, 50 in a transaction.
func (p *place) bareDrops(ctx context.Context, conn *pgx.Conn, n int) (float64, error) {
	const batch = 50
	make := fmt.Sprintf("DO $$ BEGIN FOR i IN 1..%d LOOP EXECUTE 'CREATE ROLE drop_' || i || ' LOGIN IN ROLE pooled'; END LOOP; END $$", n)
	if _, err := conn.Exec(ctx, make); err != nil {
		return 0, err
	}
	began := time.Now()
	for from := 1; from <= n; from += batch {
		drop := fmt.Sprintf("DO $$ BEGIN FOR i IN %d..%d LOOP EXECUTE 'DROP ROLE drop_' || i; END LOOP; END $$", from, from+batch-1)
		if _, err := conn.Exec(ctx, drop); err != nil {
			return 0, err
		}
	}
	return float64(n) / time.Since(began).Seconds(), nil
}

// openSome opens sessions with some of the credentials.
func openSome(ctx context.Context, list []minted) (out []*pgx.Conn, err error) {
	for i := 0; i < len(list) && len(out) < openSessions; i += max(1, len(list)/openSessions) {
		s, err := pgx.Connect(ctx, list[i].url)
		if err != nil {
			return out, err
		}
		out = append(out, s)
	}
	return out, nil
}

func closeAll(ctx context.Context, sessions []*pgx.Conn) {
	for _, s := range sessions {
		_ = s.Close(context.WithoutCancel(ctx)) // the server has ended it already
	}
}
