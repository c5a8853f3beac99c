package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
)

const (
	containBudget = 100 * time.Millisecond
	cutOffBudget  = 500 * time.Millisecond
	victim        = most - 1 // the principal that is contained
)

// measureFollowerReads is look-ups on one follower.
func measureFollowerReads(ctx context.Context, b *bench, p *place) error {
	_, followers, err := p.leader(ctx)
	if err != nil {
		return err
	}
	for _, by := range []string{client.BindMTLS, client.BindDPoP} {
		clients := make([]*client.Client, most)
		for i := range clients {
			if clients[i], err = p.at(i, by, followers[0].url); err != nil {
				return err
			}
			defer clients[i].Close()
		}
		// They log in one after the other: a login commits on the leader.
		if err := each(ctx, most, 8, func(ctx context.Context, i int) error { _, err := clients[i].Login(ctx); return err }); err != nil {
			return err
		}
		got, err := p.drive(ctx, most, b.cell, func(ctx context.Context, i int) error { _, err := clients[i].Whoami(ctx); return err })
		if err != nil {
			return err
		}
		r := row{what: "reads (whoami), a follower of three, 64 clients, " + by, got: perSecond(got.rate), detail: got.quantiles(), budget: "≥ 8000 /s", met: met(got.rate >= 8000)}
		if b.limits.echo > 0 {
			r.raw, r.ratio = "HTTPS echo "+perSecond(b.limits.echo), times(got.rate, b.limits.echo)
		}
		b.add(r)
	}
	return nil
}

// probes opens a session of the victim on every node; none of them retries.
func (p *place) probes(ctx context.Context, nodes []*node) (out []*client.Client, err error) {
	for _, n := range nodes {
		cl, err := p.at(victim, "", n.url)
		if err != nil {
			return out, err
		}
		out = append(out, cl)
		if err := poll(ctx, readyTimeout, func(ctx context.Context) error { _, err := cl.Login(ctx); return err }); err != nil {
			return out, err
		}
	}
	return out, nil
}

func closeClients(list []*client.Client) {
	for _, cl := range list {
		cl.Close()
	}
}

// lastAnswers has each probe ask who it is until it is refused, runs act, and
// returns when each had its last good answer. A refusal is one by kind: a node
// that is down says nothing of sessions.
func lastAnswers(ctx context.Context, probes []*client.Client, act func() error, refused func(error) bool) ([]time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	last, errs := make([]time.Time, len(probes)), make([]error, len(probes))
	started := make(chan struct{}, len(probes))
	var wg sync.WaitGroup
	for i, cl := range probes {
		wg.Go(func() {
			for first := true; ; {
				err := within(ctx, 3*time.Second, func(ctx context.Context) error { _, err := cl.Whoami(ctx); return err })
				if err != nil {
					if first {
						started <- struct{}{}
					}
					if !refused(err) {
						errs[i] = err
					}
					return
				}
				last[i] = time.Now()
				if first {
					first = false
					started <- struct{}{}
				}
			}
		})
	}
	for range probes {
		<-started
	}
	err := act()
	if err != nil {
		cancel()
	}
	wg.Wait()
	return last, errors.Join(append(errs, err)...)
}

// within bounds one call.
func within(ctx context.Context, d time.Duration, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return do(ctx)
}

// measureContainment contains a principal and measures until no node in contact
// serves its sessions.
func measureContainment(ctx context.Context, b *bench, p *place) error {
	probes, err := p.probes(ctx, p.nodes)
	defer closeClients(probes)
	if err != nil {
		return err
	}
	var took []time.Duration
	for range trials {
		for _, cl := range probes {
			if _, err := cl.Login(ctx); err != nil {
				return err
			}
		}
		var answered time.Time
		last, err := lastAnswers(ctx, probes, func() error {
			_, err := p.admin.Contain(ctx, wire.ContainRequest{What: p.crowd.names[victim], Reason: "benchmark"})
			answered = time.Now()
			return err
		}, func(err error) bool {
			kind := client.KindOf(err)
			return kind == client.KindUnauthenticated || kind == client.KindDenied
		})
		if err != nil {
			return err
		}
		worst := time.Duration(0)
		for _, at := range last {
			worst = max(worst, at.Sub(answered))
		}
		took = append(took, worst)
		if _, err := p.admin.Release(ctx, wire.ContainRequest{What: p.crowd.names[victim], Reason: "benchmark"}); err != nil {
			return err
		}
	}
	worst := time.Duration(0)
	for _, d := range took {
		worst = max(worst, d)
	}
	b.add(row{what: "containment: last good answer of any of three nodes", got: short(worst), detail: "after the command's answer; worst of " + list(took), budget: "< " + short(containBudget), met: met(worst < containBudget)})
	return nil
}

// measureCutOff stops two of three nodes and measures how long the follower
// that is left goes on serving sessions that it can no longer know to be good.
func measureCutOff(ctx context.Context, b *bench, p *place) error {
	var took []time.Duration
	said := map[string]int{}
	for range 3 {
		leader, followers, err := p.leader(ctx)
		if err != nil {
			return err
		}
		alone, stopped := followers[0], []*node{leader, followers[1]}
		probes, err := p.probes(ctx, []*node{alone})
		defer closeClients(probes)
		if err != nil {
			return err
		}
		var at time.Time
		last, err := lastAnswers(ctx, probes, func() error {
			at = time.Now()
			return signalAll(stopped, syscall.SIGSTOP)
		}, func(err error) bool {
			// No answer at all serves nobody either, but a clear 503 would be better.
			said[client.KindOf(err)]++
			return true
		})
		if err = errors.Join(err, signalAll(stopped, syscall.SIGCONT)); err != nil {
			return err
		}
		took = append(took, max(0, last[0].Sub(at)))
	}
	worst := time.Duration(0)
	for _, d := range took {
		worst = max(worst, d)
	}
	b.add(row{what: "a follower cut off: last good answer", got: short(worst), detail: fmt.Sprintf("after its peers fell silent; worst of %s; then %s", list(took), kinds(said)), budget: "< " + short(cutOffBudget), met: met(worst < cutOffBudget)})
	_, _, err := p.leader(ctx)
	return err
}

// kinds lists what kinds of refusal there were.
func kinds(said map[string]int) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(said)) {
		out = append(out, fmt.Sprintf("%s (%d)", k, said[k]))
	}
	return strings.Join(out, ", ")
}

func signalAll(nodes []*node, sig syscall.Signal) error {
	var err error
	for _, n := range nodes {
		err = errors.Join(err, n.proc.signal(sig))
	}
	return err
}

// measureFailover kills the leader and measures until the others issue, a token
// and a database account.
func measureFailover(ctx context.Context, b *bench, p *place) error {
	var tokens, databases []time.Duration
	for range trials {
		leader, followers, err := p.leader(ctx)
		if err != nil {
			return err
		}
		token, database, err := p.failover(ctx, leader, followers)
		if err != nil {
			return err
		}
		tokens, databases = append(tokens, token), append(databases, database)
		if err := p.start(leader); err != nil {
			return err
		}
	}
	for _, r := range []struct {
		what string
		took []time.Duration
	}{{"a token", tokens}, {"a PostgreSQL account", databases}} {
		m := median(r.took)
		b.add(row{what: "leader kill -9 to first credential, three nodes: " + r.what, got: short(m), detail: "median of " + list(r.took), budget: "< " + short(startBudget), met: met(m < startBudget)})
	}
	return nil
}

func (p *place) failover(ctx context.Context, leader *node, survivors []*node) (token, database time.Duration, err error) {
	var urls []string
	for _, n := range survivors {
		urls = append(urls, n.url)
	}
	// Each probe has a principal of its own, so that they do not share a home.
	clients := make([]*client.Client, 2)
	for i := range clients {
		if clients[i], err = p.at(i, "", urls...); err != nil {
			return 0, 0, err
		}
		defer clients[i].Close()
		if _, err := clients[i].Whoami(ctx); err != nil {
			return 0, 0, err
		}
	}
	if err := leader.proc.kill(); err != nil {
		return 0, 0, err
	}
	began := time.Now()
	took, errs := make([]time.Duration, 2), make([]error, 2)
	var wg sync.WaitGroup
	for i, role := range []string{jwtRole, pgDefault + "/read"} {
		wg.Go(func() {
			errs[i] = poll(ctx, readyTimeout, func(ctx context.Context) error {
				ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
				defer cancel()
				_, err := clients[i].Request(ctx, wire.AccessRequest{Role: role, Task: p.crowd.tasks[i]})
				return err
			})
			took[i] = time.Since(began)
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return 0, 0, fmt.Errorf("no credential after a failover: %w", err)
	}
	return took[0], took[1], nil
}
