package node

import (
	"context"
	"time"

	"github.com/mayfly-broker/mayfly/broker/audit"
	"github.com/mayfly-broker/mayfly/broker/ledger"
)

// sinksEvery is how often a changed list of sinks is noticed.
const sinksEvery = time.Second

// followSinks runs the files among the configured sinks, each with its own
// cursor, and starts them anew when the list changes. Webhooks are the leader's
// ([telling]).
func (n *Node) followSinks(ctx context.Context, r *run) {
	var (
		stop  = func() {}
		seen  uint64
		first = true
		live  *audit.Runner
	)
	defer func() { stop() }()
	t := time.NewTicker(sinksEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.grown:
			if live != nil {
				live.Wake()
			}
			continue
		case <-t.C:
		}
		epoch, specs, err := r.engine.Sinks()
		if err != nil || epoch == seen && !first {
			continue
		}
		g, _, begun, err := r.engine.Begun()
		if err != nil || !begun {
			continue
		}
		stop()
		seen, first = epoch, false
		live, stop = n.startSinks(ctx, r, specs, audit.Origin(g.Cluster, uint64(g.Incarnation)))
	}
}

// startSinks starts a runner; stop ends it and waits.
func (n *Node) startSinks(ctx context.Context, r *run, specs map[string]ledger.SinkSpec, origin string) (*audit.Runner, func()) {
	var sinks []audit.NamedSink
	for name, s := range specs {
		if s.Type != ledger.SinkFile {
			continue
		}
		sinks = append(sinks, audit.NamedSink{Name: name, Sink: audit.NewFileSink(audit.FileConfig{Path: s.Path, Origin: origin, Log: n.log})})
	}
	if len(sinks) == 0 {
		return nil, func() {}
	}
	runner := audit.NewRunner(r.engine.History(), sinks, audit.RunnerOptions{Log: n.log})
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := runner.Run(ctx); err != nil {
			n.log.Warn("a sink did not close cleanly", "error", err)
		}
	}()
	return runner, func() { cancel(); <-done }
}
