package raftstore

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// leadership turns raft's wins and losses into times of leadership. One begins
// with a barrier, a confirmed round of beacons and a look at the voters'
// clocks; then the registered work starts. It ends by cancelling that work and
// waiting for it.
type leadership struct {
	s *Store

	mu      sync.Mutex
	work    []func(context.Context)
	ready   bool          // leading, caught up, clock in order, and the work is running
	active  bool          // a reign has begun and its work has not ended
	changed chan struct{} // closed when one of these, or raft's state as seen here, changes
	paused  bool          // a restore is under way
	wake    chan struct{} // asks run to look again
}

func newLeadership(s *Store) *leadership {
	return &leadership{s: s, changed: make(chan struct{}), wake: make(chan struct{}, 1)}
}

type leadTermKey struct{}

// LeadTerm returns the term in which the work that was given ctx began; it
// stays the same when the node has long been deposed, where [Store.Term] moves
// on. ok is false when ctx is not one that [Store.Lead] handed out.
func LeadTerm(ctx context.Context) (term uint64, ok bool) {
	term, ok = ctx.Value(leadTermKey{}).(uint64)
	return term, ok
}

// Lead registers background work of the leader. fn is started each time this
// node has won leadership and applied everything committed before, and should
// run until its context is cancelled, when leadership is lost or the store
// closes. The next time of leadership does not begin before fn has returned.
func (s *Store) Lead(fn func(ctx context.Context)) {
	l := s.lead
	l.mu.Lock()
	l.work = append(l.work, fn)
	l.mu.Unlock()
	l.again() // a reign that is running starts over, with fn
}

// again makes run end the present reign and begin anew.
func (l *leadership) again() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// reignRun is a reign as run sees it.
type reignRun struct {
	cancel context.CancelFunc
	done   chan struct{}
}

func (l *leadership) run(ctx context.Context) {
	var current *reignRun
	end := func() {
		if current != nil {
			l.end(current)
			current = nil
		}
	}
	defer end()
	watch := time.NewTicker(l.s.cfg.Timing.Beacon)
	defer watch.Stop()
	var gaveWay time.Time
	for leads := false; ; {
		select {
		case <-ctx.Done():
			return
		case leads = <-l.s.raft.LeaderCh():
			end() // even when true follows true: it was lost in between
			l.announce(false, false)
		case <-l.wake:
			end()
		case <-watch.C:
		}
		if !leads || l.s.raft.State() != raft.Leader {
			end()
			continue
		}
		if target, skewed := l.skewed(); skewed {
			end()
			if time.Since(gaveWay) > l.s.cfg.Timing.Election {
				gaveWay = time.Now()
				l.giveWay(target)
			}
			continue
		}
		if current == nil {
			current = l.begin(ctx) // nil while paused
		}
	}
}

// pause ends the present reign, waits for its work, and begins no other until
// resume is called.
func (l *leadership) pause() (resume func()) {
	l.mu.Lock()
	l.paused = true
	l.mu.Unlock()
	l.again()
	for {
		l.mu.Lock()
		active, changed := l.active, l.changed
		l.mu.Unlock()
		if !active {
			break
		}
		select {
		case <-changed:
			continue
		case <-l.s.done:
		}
		break
	}
	return func() {
		l.mu.Lock()
		l.paused = false
		l.mu.Unlock()
	}
}

// announce sets ready and active and wakes who waits for a change.
func (l *leadership) announce(ready, active bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ready, l.active = ready, active
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *leadership) begin(ctx context.Context) *reignRun {
	l.mu.Lock()
	if l.paused {
		l.mu.Unlock()
		return nil
	}
	l.active = true
	l.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	r := &reignRun{cancel, make(chan struct{})}
	go func() { // waited for by end
		defer close(r.done)
		if err := l.reign(ctx); err != nil && ctx.Err() == nil {
			l.s.log.Warn("leadership did not begin", "error", err)
			l.again()
		}
	}()
	return r
}

func (l *leadership) end(r *reignRun) {
	l.announce(false, true)
	r.cancel()
	slow := time.AfterFunc(5*time.Second, func() {
		l.s.log.Warn("the leader's work is slow to end; leadership cannot begin again before it has")
	})
	defer slow.Stop()
	<-r.done
	l.announce(false, false)
}

// clockWait bounds how long a new leader waits to hear each voter's clock.
const clockWait = 250 * time.Millisecond

func (l *leadership) reign(ctx context.Context) error {
	s := l.s
	term := s.raft.CurrentTerm()
	// The barrier's entry is of this term: once it is applied, so is everything committed before.
	if err := s.raft.Barrier(0).Error(); err != nil {
		return fmt.Errorf("raftstore: barrier: %w", err)
	}
	r := s.beacons.start(term)
	defer s.beacons.finish(r)
	if _, err := s.beacons.confirm(ctx); err != nil {
		return err
	}
	s.awaitClocks(ctx)
	if _, skewed := l.skewed(); skewed {
		<-ctx.Done() // run sees it too, and gives way
		return nil
	}
	l.mu.Lock()
	work := l.work[:len(l.work):len(l.work)]
	l.mu.Unlock()
	s.log.Info("leading", "term", term)
	l.announce(true, true)
	var running sync.WaitGroup
	for _, fn := range work {
		running.Go(func() { fn(context.WithValue(ctx, leadTermKey{}, term)) })
	}
	<-ctx.Done()
	running.Wait()
	s.log.Info("no longer leading", "term", term)
	return nil
}

// awaitClocks waits until each voter has answered a beacon or failed to.
func (s *Store) awaitClocks(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, clockWait)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !s.beacons.allTried() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// skewed reports whether this node's clock is too far off the voters' median,
// and who of them would be a better leader.
func (l *leadership) skewed() (target raft.Server, skewed bool) {
	s := l.s
	var voters []string
	servers := s.members()
	for _, m := range servers {
		if m.Suffrage == raft.Voter {
			voters = append(voters, string(m.ID))
		}
	}
	median, known := s.beacons.clocks.median(s.cfg.NodeID, voters)
	if median.Abs() <= s.cfg.Timing.MaxSkew {
		return target, false
	}
	for _, m := range servers {
		if o, ok := known[string(m.ID)]; ok && (o-median).Abs() <= s.cfg.Timing.MaxSkew && s.beacons.hears(string(m.ID)) {
			return m, true
		}
	}
	return target, true
}

// hears reports whether the peer has answered lately.
func (b *beacons) hears(id string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.lines[id]
	return b.reign == nil || l != nil && time.Since(l.heard) < b.s.cfg.Timing.FreshFor
}

func (l *leadership) giveWay(target raft.Server) {
	s := l.s
	s.log.Error("this node's clock is off the other voters'; it does not lead", "limit", s.cfg.Timing.MaxSkew)
	if target.ID == "" {
		return // nobody to give way to: the cluster waits rather than believe this clock
	}
	if err := s.raft.LeadershipTransferToServer(target.ID, target.Address).Error(); err != nil {
		s.log.Warn("leadership could not be handed over", "to", string(target.ID), "error", err)
	}
}

// awaitReady returns nil on a leader, waiting for one that has won but not
// caught up yet.
func (l *leadership) awaitReady(ctx context.Context) error {
	for {
		l.mu.Lock()
		ready, changed := l.ready, l.changed
		l.mu.Unlock()
		switch {
		case l.s.failure.Load() != nil:
			return ErrStopped
		case l.s.raft.State() == raft.Shutdown:
			return ErrClosed
		case l.s.raft.State() != raft.Leader:
			return ErrNotLeader
		case ready:
			return nil
		}
		if _, skewed := l.skewed(); skewed {
			return ErrNotLeader
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-l.s.failed:
			return ErrStopped
		case <-l.s.done:
			return ErrClosed
		}
	}
}

// IsLeader reports whether this node leads and its background work runs. It may
// have been deposed without knowing yet: see [Store.Barrier].
func (s *Store) IsLeader() bool {
	s.lead.mu.Lock()
	defer s.lead.mu.Unlock()
	return s.lead.ready && s.raft.State() == raft.Leader
}

// Leader returns the leader's id and cluster address as this node knows them.
func (s *Store) Leader() (id, addr string, ok bool) {
	a, i := s.raft.LeaderWithID()
	return string(i), string(a), i != "" && a != ""
}

// Term returns the current term, which grows with every election.
func (s *Store) Term() uint64 { return s.raft.CurrentTerm() }

// Barrier returns when this node, as the leader, has applied everything that
// was committed anywhere before the call: a [Store.View] after it is
// linearizable. It costs one round trip to a quorum, and no disk write.
// Errors: [ErrNotLeader], [ErrStopped], [ErrClosed], ctx's own.
func (s *Store) Barrier(ctx context.Context) error {
	if err := s.lead.awaitReady(ctx); err != nil {
		return err
	}
	index, err := s.beacons.confirm(ctx)
	if err != nil {
		return err
	}
	return s.parts.state.applied.wait(ctx, index, s.failed)
}
