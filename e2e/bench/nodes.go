package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// place is a cluster with everything that the load needs on it.
type place struct {
	*cluster
	db    *database
	crowd *crowd
}

// open starts nodes, a database and a crowd, and writes the targets.
func open(ctx context.Context, b *bench, nodes int, withDatabase bool) (_ *place, err error) {
	p := &place{}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	if withDatabase {
		if p.db, err = startDatabase(ctx, b); err != nil {
			return nil, err
		}
	}
	if p.cluster, err = startCluster(ctx, b, nodes); err != nil {
		return nil, err
	}
	if err = p.addTokens(ctx); err != nil {
		return nil, err
	}
	if withDatabase {
		if err = p.addDatabases(ctx, p.db); err != nil {
			return nil, err
		}
	}
	p.crowd, err = p.enrolCrowd(ctx, most)
	return p, err
}

func (p *place) close() error {
	if p.crowd != nil {
		p.crowd.close()
	}
	var err error
	if p.cluster != nil {
		err = p.cluster.close()
	}
	if p.db != nil {
		err = errors.Join(err, p.db.close())
	}
	return err
}

// measureNodes runs a section's steps on one cluster of so many nodes.
func measureNodes(nodes int) func(context.Context, *bench, section) error {
	return func(ctx context.Context, b *bench, s section) (err error) {
		p, err := open(ctx, b, nodes, true)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, p.close()) }()
		for _, st := range s.steps {
			if serr := st.run(ctx, b, p); serr != nil {
				b.progress("   %s: %v", st.name, serr)
				err = errors.Join(err, fmt.Errorf("%s: %w", st.name, serr))
			}
			if ctx.Err() != nil {
				return err
			}
		}
		return err
	}
}

// drive is drive, with the CPU time that it cost the nodes and this process.
func (p *place) drive(ctx context.Context, clients int, d time.Duration, do func(context.Context, int) error) (outcome, error) {
	nodes, own := p.spent(), ownCPU()
	o, err := drive(ctx, clients, d, do)
	if o.done > 0 {
		n := time.Duration(o.done + clients) // the first ones are not in done
		o.node, o.client = (p.spent()-nodes)/n, (ownCPU()-own)/n
	}
	return o, err
}

// spent is the CPU time of all nodes so far.
func (p *place) spent() time.Duration {
	var sum time.Duration
	for _, n := range p.nodes {
		sum += n.proc.cpu()
	}
	return sum
}

func (p *place) nodesText() string {
	if len(p.nodes) == 1 {
		return "one node"
	}
	return fmt.Sprintf("%d nodes", len(p.nodes))
}

// Steps on the cluster's own PostgreSQL.
func measureIdle(ctx context.Context, b *bench, p *place) error {
	return p.db.system().measureIdle(ctx, b, p)
}

func measureDatabase(ctx context.Context, b *bench, p *place) error {
	return p.db.system().measureLoad(ctx, b, p)
}

func measureWithdrawal(ctx context.Context, b *bench, p *place) error {
	return p.db.system().measureWithdrawal(ctx, b, p)
}

// measureFast is the same with what makes the target's own share small.
func measureFast(ctx context.Context, b *bench, p *place) error {
	for _, how := range []struct{ target, text, raw string }{
		{pgFast, "scram_iterations 64", raw64}, {pgCert, "certificate login", rawNone},
	} {
		raw, err := p.db.bare(ctx, 16, b.cell, how.raw)
		if err != nil {
			return err
		}
		for _, by := range p.bindings() {
			got, err := p.drive(ctx, 16, b.cell, p.crowd.request(how.target+"/read", by.clients))
			if err != nil {
				return err
			}
			b.add(row{what: fmt.Sprintf("PostgreSQL, %s, %s, 16 clients, %s", how.text, p.nodesText(), by.name), got: perSecond(got.rate), detail: got.quantiles(),
				raw: "bare " + perSecond(raw.rate), ratio: times(got.rate, raw.rate), budget: "≥ 2000 /s", met: met(got.rate >= 2000)})
		}
	}
	return nil
}

// binding is a crowd's clients that prove their key in one way.
type binding struct {
	name    string
	clients []*client.Client
}

func (p *place) bindings() []binding {
	return []binding{{"mTLS", p.crowd.mtls}, {"DPoP", p.crowd.dpop}}
}

// measureLedger is leases that touch no target.
func measureLedger(ctx context.Context, b *bench, p *place) error {
	budget, limit := 3000.0, b.limits.commits1
	if len(p.nodes) > 1 {
		budget, limit = 2100, b.limits.commits3
	}
	var mtls float64
	for _, by := range p.bindings() {
		got, err := p.drive(ctx, most, b.cell, p.crowd.request(jwtRole, by.clients))
		if err != nil {
			return err
		}
		r := row{what: fmt.Sprintf("ledger-only leases, %s, 64 clients, %s", p.nodesText(), by.name), got: perSecond(got.rate), detail: got.quantiles()}
		if limit > 0 {
			r.raw, r.ratio = "bare commits "+perSecond(limit), times(got.rate, limit)
		}
		if by.name == "mTLS" {
			mtls = got.rate
			r.budget, r.met = fmt.Sprintf("≥ %.0f /s", budget), met(got.rate >= budget)
		} else {
			r.budget, r.met = fmt.Sprintf("≥ 0.60 of mTLS (%s)", times(got.rate, mtls)), met(got.rate >= 0.6*mtls)
		}
		b.add(r)
	}
	return nil
}

// measureReads is look-ups that change nothing, on one node.
func measureReads(ctx context.Context, b *bench, p *place) error {
	leases := make([]string, most)
	err := each(ctx, most, 8, func(ctx context.Context, i int) error {
		a, err := p.crowd.dpop[i].Request(ctx, wire.AccessRequest{Role: jwtRole, Task: p.crowd.tasks[i]})
		leases[i] = a.LeaseID
		return err
	})
	if err != nil {
		return err
	}
	for _, by := range p.bindings() {
		whoami := func(ctx context.Context, i int) error { _, err := by.clients[i].Whoami(ctx); return err }
		show := func(ctx context.Context, i int) error { _, err := by.clients[i].Lease(ctx, leases[i]); return err }
		for _, read := range []struct {
			name string
			do   func(context.Context, int) error
		}{{"whoami", whoami}, {"lease show", show}} {
			got, err := p.drive(ctx, most, b.cell, read.do)
			if err != nil {
				return err
			}
			r := row{what: fmt.Sprintf("reads (%s), one node, 64 clients, %s", read.name, by.name), got: perSecond(got.rate), detail: got.quantiles(), budget: "≥ 8000 /s", met: met(got.rate >= 8000)}
			if b.limits.echo > 0 {
				r.raw, r.ratio = "HTTPS echo "+perSecond(b.limits.echo), times(got.rate, b.limits.echo)
			}
			b.add(r)
		}
	}
	return nil
}
