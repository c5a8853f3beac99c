package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
)

const (
	smallLive    = 1000
	startBudget  = time.Second
	memoryBudget = 256 << 20
	trials       = 5
	// fillTime bounds how long leases are opened before the large restart.
	fillTime = 6 * time.Minute
)

// measureRestart kills the only node and measures until it issues again, with
// few live leases and with many.
func measureRestart(ctx context.Context, b *bench, _ section) (err error) {
	p, err := open(ctx, b, 1, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	live := 0
	for _, want := range []int{smallLive, max(b.live, smallLive+1)} {
		opened, err := p.fill(ctx, b, want-live)
		if err != nil {
			return err
		}
		live += opened
		if err := p.restart(ctx, b, live); err != nil {
			return err
		}
	}
	return nil
}

// fill opens n leases, or as many as there is time for.
func (p *place) fill(ctx context.Context, b *bench, n int) (int, error) {
	limit := fillTime
	if b.live > 200_000 {
		limit = time.Hour // asked for
	}
	began := time.Now()
	var opened atomic.Int64
	do := p.crowd.request(jwtRole, p.crowd.mtls)
	err := each(ctx, n, most, func(ctx context.Context, i int) error {
		if time.Since(began) > limit {
			return nil
		}
		opened.Add(1)
		return do(ctx, i%most)
	})
	b.progress("   opened %d leases in %s", opened.Load(), short(time.Since(began)))
	return int(opened.Load()), err
}

func (p *place) restart(ctx context.Context, b *bench, live int) error {
	n := p.nodes[0]
	full, _, err := n.proc.resident()
	if err != nil {
		return err
	}
	cl, err := p.at(0, "", n.url)
	if err != nil {
		return err
	}
	defer cl.Close()
	var took []time.Duration
	for range trials {
		if err := n.proc.kill(); err != nil {
			return err
		}
		began := time.Now()
		if err := p.start(n); err != nil {
			return err
		}
		if err := poll(ctx, readyTimeout, p.oneToken(cl)); err != nil {
			return fmt.Errorf("%w\n%s", err, n.proc.tail())
		}
		took = append(took, time.Since(began))
	}
	anonymous, file, err := n.proc.resident()
	if err != nil {
		return err
	}
	m := median(took)
	b.add(row{what: fmt.Sprintf("restart after kill -9 to first credential, %d live leases", live), got: short(m), detail: "median of " + list(took), budget: "< " + short(startBudget), met: met(m < startBudget)})
	r := row{what: fmt.Sprintf("resident memory, %d live leases", live), got: mib(anonymous), detail: fmt.Sprintf("after a restart, beyond %s of mapped files; %s after opening them", mib(file), mib(full))}
	if live > smallLive+1 {
		r.budget, r.met = "< 256 MiB at 1000000", met(max(anonymous, full) < memoryBudget)
	}
	b.add(r)
	return nil
}

// oneToken asks once for a credential that touches the ledger alone.
func (p *place) oneToken(cl *client.Client) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := cl.Request(ctx, wire.AccessRequest{Role: jwtRole, Task: p.crowd.tasks[0]})
		return err
	}
}

func list(took []time.Duration) string {
	out := ""
	for i, d := range took {
		if i > 0 {
			out += ", "
		}
		out += short(d)
	}
	return out
}
