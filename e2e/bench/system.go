package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
)

const openSessions = 50

// system is a server on which credentials are minted, of any kind, and the bare
// client that does the same statements beside the broker: its speed is the limit.
type system struct {
	title string
	// role is what the load mints, quick what is minted to be withdrawn.
	role, quick string
	// bare makes accounts on connections of its own; made says by what.
	bare func(ctx context.Context, clients int, d time.Duration) (outcome, error)
	made string
	// drops makes n accounts and drops them, as many at once as is usual; dropped
	// says how. It returns the dropped per second.
	drops   func(ctx context.Context, n int) (float64, error)
	dropped string
	// count counts the broker's accounts; look is how often that may be asked
	// without slowing the server down.
	count func(ctx context.Context) (int, error)
	look  time.Duration
	// login opens a session with a credential.
	login func(ctx context.Context, credential map[string]string) (session, error)
	// many is how many leases are withdrawn at once.
	many int
	// What the design asks for; 0 for nothing: the share of the bare client's rate at
	// 16 clients, and withdrawals per second.
	share, ending float64
}

// session is one login.
type session struct {
	use   func(ctx context.Context) error
	close func(ctx context.Context)
}

// measureIdle is one client alone: how long one credential takes.
func (y *system) measureIdle(ctx context.Context, b *bench, p *place) error {
	raw, err := y.bare(ctx, 1, b.cell)
	if err != nil {
		return err
	}
	got, err := p.drive(ctx, 1, b.cell, p.crowd.request(y.role, p.crowd.dpop))
	if err != nil {
		return err
	}
	budget := 3*(b.limits.fsync+raw.p50) + 2*time.Millisecond
	b.add(row{
		what: y.title + ", " + p.nodesText() + ", 1 client: time of one", got: short(got.p99) + " p99", detail: got.quantiles() + ", " + perSecond(got.rate),
		raw:   fmt.Sprintf("bare %s, p50 %s, p99 %s, fsync %s", perSecond(raw.rate), short(raw.p50), short(raw.p99), short(b.limits.fsync)),
		ratio: times(got.rate, raw.rate), budget: "p99 < " + short(budget), met: met(got.p99 < budget),
	})
	return nil
}

// measureLoad is the main job under load, beside a bare client.
func (y *system) measureLoad(ctx context.Context, b *bench, p *place) error {
	for _, clients := range []int{16, most} {
		raw, err := y.bare(ctx, clients, b.cell)
		if err != nil {
			return err
		}
		got, err := p.drive(ctx, clients, b.cell, p.crowd.request(y.role, p.crowd.dpop))
		if err != nil {
			return err
		}
		r := row{what: fmt.Sprintf("%s credentials, %s, %d clients", y.title, p.nodesText(), clients), got: perSecond(got.rate), detail: got.quantiles(),
			raw: "bare " + y.made + " " + perSecond(raw.rate), ratio: times(got.rate, raw.rate)}
		if clients == 16 && y.share > 0 {
			r.budget, r.met = fmt.Sprintf("≥ %.2f ×", y.share), met(got.rate >= y.share*raw.rate)
		}
		b.add(r)
	}
	return nil
}

// minted is a credential that the bench got.
type minted struct {
	lease      string
	credential map[string]string
}

// mintTask mints n accounts in one new task of the first principal.
func (y *system) mintTask(ctx context.Context, p *place, name string, n int) (task string, out []minted, err error) {
	cl := p.crowd.mtls[0]
	t, err := cl.StartTask(ctx, wire.StartTaskRequest{Name: name, Purpose: "benchmark", TTL: far})
	if err != nil {
		return "", nil, err
	}
	out = make([]minted, n)
	return t.ID, out, each(ctx, n, 16, func(ctx context.Context, i int) error {
		a, err := cl.Request(ctx, wire.AccessRequest{Role: y.quick, Task: t.ID})
		out[i] = minted{a.LeaseID, a.Credential}
		return err
	})
}

// measureWithdrawal ends many leases at once, sessions and all, then a tenth as
// many one by one, beside a bare client's drops.
func (y *system) measureWithdrawal(ctx context.Context, b *bench, p *place) error {
	raw, err := y.drops(ctx, y.many/5)
	if err != nil {
		return err
	}
	n := y.many
	if b.quick {
		n /= 5
	}
	task, list, err := y.mintTask(ctx, p, y.title+" many", n)
	if err != nil {
		return err
	}
	sessions, err := y.openSome(ctx, list)
	defer func() {
		for _, s := range sessions {
			s.close(context.WithoutCancel(ctx))
		}
	}()
	if err != nil {
		return err
	}
	took, err := y.endTask(ctx, p, task, n, sessions)
	if err != nil {
		return err
	}
	rate := float64(n) / took.Seconds()
	limit := y.dropped + " " + perSecond(raw)
	r := row{what: fmt.Sprintf("withdrawing %d %s leases: one task end", n, y.title), got: perSecond(rate), detail: fmt.Sprintf("%s until all are gone, %d open sessions ended", short(took), len(sessions)),
		raw: limit, ratio: times(rate, raw)}
	if y.ending > 0 {
		r.budget, r.met = fmt.Sprintf("≥ %.0f /s", y.ending), met(rate >= y.ending)
	}
	b.add(r)
	if rate, err = y.revokes(ctx, p, n/10); err != nil {
		return err
	}
	b.add(row{what: fmt.Sprintf("withdrawing %d %s leases: one revoke each, 16 clients", n/10, y.title), got: perSecond(rate), detail: "until all are gone", raw: limit, ratio: times(rate, raw)})
	return nil
}

// gone waits until at most so many of the broker's accounts stand.
func (y *system) gone(ctx context.Context, left int) error {
	return pollEvery(ctx, 2*time.Minute, y.look, func(ctx context.Context) error {
		n, err := y.count(ctx)
		if err == nil && n > left {
			err = fmt.Errorf("%d accounts are left over", n-left)
		}
		return err
	})
}

// endTask ends a task and measures until the server lists none of its accounts.
func (y *system) endTask(ctx context.Context, p *place, task string, n int, sessions []session) (time.Duration, error) {
	before, err := y.count(ctx)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if _, err := p.crowd.mtls[0].EndTask(ctx, task, 0); err != nil {
		return 0, err
	}
	if err := y.gone(ctx, before-n); err != nil {
		return 0, err
	}
	took := time.Since(began)
	for _, s := range sessions {
		if s.use(ctx) == nil {
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

// revokes ends n leases one call each, and returns how many per second.
func (y *system) revokes(ctx context.Context, p *place, n int) (float64, error) {
	_, list, err := y.mintTask(ctx, p, y.title+" few", n)
	if err != nil {
		return 0, err
	}
	before, err := y.count(ctx)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	err = each(ctx, n, 16, func(ctx context.Context, i int) error {
		_, err := p.crowd.mtls[0].Revoke(ctx, list[i].lease, wire.RevokeRequest{Reason: "benchmark"})
		return err
	})
	if err != nil {
		return 0, err
	}
	err = y.gone(ctx, before-n)
	return float64(n) / time.Since(began).Seconds(), err
}

// openSome opens sessions with some of the credentials.
func (y *system) openSome(ctx context.Context, list []minted) (out []session, err error) {
	for i := 0; i < len(list) && len(out) < openSessions; i += max(1, len(list)/openSessions) {
		s, err := y.login(ctx, list[i].credential)
		if err != nil {
			return out, err
		}
		out = append(out, s)
	}
	return out, nil
}

// measureSystem starts a server of a kind for one step, and measures all there is
// to measure of a kind. What the load leaves behind makes some servers slow, so
// withdrawal comes first.
func measureSystem(start func(context.Context, *bench, *cluster) (*system, func() error, error)) func(context.Context, *bench, *place) error {
	return func(ctx context.Context, b *bench, p *place) (err error) {
		y, stop, err := start(ctx, b, p.cluster)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, stop()) }()
		for _, measure := range []func(context.Context, *bench, *place) error{y.measureWithdrawal, y.measureIdle, y.measureLoad} {
			if err := measure(ctx, b, p); err != nil {
				return err
			}
		}
		return nil
	}
}

// addSystem writes a target and its role T/read.
func (c *cluster) addSystem(ctx context.Context, target string, spec map[string]any, password string, detail map[string]any) error {
	t, err := object("Target", target, spec)
	if err != nil {
		return err
	}
	t.Secrets = map[string]string{"admin_password": password}
	role, err := object("Role", target+"/read", map[string]any{"scope": []any{detail}, "ttl": map[string]string{"default": far, "max": far}, "caps": caps})
	if err != nil {
		return err
	}
	_, err = c.admin.Apply(ctx, wire.ApplyRequest{Objects: []wire.Object{t, role}})
	return err
}
