package notify

import (
	"context"
	"crypto/x509"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"
)

// Options are a [Teller]'s; the zero value has defaults.
type Options struct {
	// Roots are the authorities that webhooks' certificates are checked against;
	// nil are the system's.
	Roots *x509.CertPool
	// Now is the clock; time.Now if nil.
	Now func() time.Time
	// Logger takes failures, recoveries and what was given up; none if nil.
	Logger *slog.Logger
}

// Status is how a webhook fares.
type Status struct {
	Sink string
	// Delivered, Failed and GivenUp count messages that were taken, attempts that
	// failed, and messages that were given up, since the process began.
	Delivered, Failed, GivenUp uint64
	// Lag is the age of the message that is being tried; 0 when there is none.
	Lag time.Duration
	// Failures counts the failures in a row, and Problem is the last one; none
	// after a success.
	Failures int
	Problem  string
}

// A Teller tells webhooks of what happens in the ledger, while this node leads.
// Make one with [New]; it is safe for concurrent use.
type Teller struct {
	source Source
	post   poster
	now    func() time.Time
	log    *slog.Logger
	woken  chan struct{}

	mu     sync.Mutex
	counts map[string]*counts
}

// New makes a Teller. Nothing happens before [Teller.Run].
func New(source Source, o Options) *Teller {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Teller{source: source, post: newWeb(o.Roots, o.Now), now: o.Now, log: o.Logger, woken: make(chan struct{}, 1), counts: map[string]*counts{}}
}

// Wake says that the ledger has grown. It never blocks and may be called from
// anywhere, as often as you like, while Run runs or not.
func (t *Teller) Wake() {
	select {
	case t.woken <- struct{}{}:
	default: // the mark is there already
	}
}

// Status reports on every webhook that this node has told something or tries to,
// by name.
func (t *Teller) Status() []Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]Status, 0, len(t.counts))
	for _, name := range slices.Sorted(maps.Keys(t.counts)) {
		out = append(out, t.counts[name].status(t.now()))
	}
	return out
}

// Run tells until ctx is done; it returns when nothing runs any more. Call it each
// time this node begins to lead, with the last call over.
func (t *Teller) Run(ctx context.Context) {
	r := &reign{t: t, window: &window{source: t.source}, followers: map[string]*follower{}, moved: make(chan struct{}, 1)}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { r.record(ctx) })
	defer r.end()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for r.configure(ctx); ; {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
			r.configure(ctx)
		case <-t.woken:
			r.wake()
			pause(ctx, wakeEvery)
		}
	}
}

// pause waits; false once ctx is done.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// reign is one time of leadership. Only Run uses it, but for record.
type reign struct {
	t      *Teller
	window *window
	moved  chan struct{}

	mu        sync.Mutex
	followers map[string]*follower
}

// list returns the followers in order of their names.
func (r *reign) list() (out []*follower) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(r.followers)) {
		out = append(out, r.followers[name])
	}
	return out
}

func (r *reign) wake() {
	for _, f := range r.list() {
		select {
		case f.wake <- struct{}{}:
		default:
		}
	}
}

// end stops every follower and waits for them.
func (r *reign) end() {
	for _, f := range r.list() {
		f.cancel()
	}
	for _, f := range r.list() {
		<-f.done
	}
}

// configure starts, stops and starts anew what has changed.
func (r *reign) configure(ctx context.Context) {
	sinks, err := r.t.source.Sinks(ctx)
	if err != nil {
		return // and looks again soon
	}
	want := map[string]Sink{}
	for _, s := range sinks {
		want[s.Name] = s
	}
	for _, f := range r.list() {
		if s, ok := want[f.sink.Name]; ok && s.Version == f.sink.Version {
			delete(want, f.sink.Name)
			continue
		}
		f.cancel()
		<-f.done // one message at a time, and in order
		_, stays := want[f.sink.Name]
		r.mu.Lock()
		delete(r.followers, f.sink.Name)
		r.mu.Unlock()
		if stays {
			r.start(ctx, want[f.sink.Name], f.at())
			delete(want, f.sink.Name)
		} else {
			r.t.forget(f.sink.Name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		r.start(ctx, want[name], Cursor{})
	}
}

// start follows for a webhook, from a cursor or what is recorded, whichever is further.
func (r *reign) start(ctx context.Context, s Sink, from Cursor) {
	ctx, cancel := context.WithCancel(ctx)
	f := &follower{
		sink: s, source: r.t.source, window: r.window, post: r.t.post, now: r.t.now, log: r.t.log.With("sink", s.Name),
		count: r.t.counter(s.Name), moved: r.note, cursor: from,
		wake: make(chan struct{}, 1), cancel: cancel, done: make(chan struct{}),
	}
	r.mu.Lock()
	r.followers[s.Name] = f
	r.mu.Unlock()
	go f.run(ctx)
}

// note asks for cursors to be recorded.
func (r *reign) note() {
	select {
	case r.moved <- struct{}{}:
	default:
	}
}

// record keeps cursors, at once when something was told and then not again for a
// while.
func (r *reign) record(ctx context.Context) {
	for failures := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-r.moved:
		}
		if err := r.recordNow(ctx); err != nil {
			failures++
			if ctx.Err() == nil && failures%10 == 1 {
				r.t.log.Warn("cannot record what webhooks were told; trying again", "error", err)
			}
			r.note()
		} else {
			failures = 0
		}
		if !pause(ctx, recordEvery) {
			return
		}
	}
}

func (r *reign) recordNow(ctx context.Context) error {
	var ds []Delivery
	list, must := r.list(), false
	for _, f := range list {
		d, moved, urgent := f.unrecorded()
		if moved {
			ds = append(ds, d) // what is not urgent rides along
		}
		must = must || urgent
	}
	if !must || len(ds) == 0 {
		return nil
	}
	if err := r.t.source.Record(ctx, ds); err != nil {
		return err
	}
	for _, f := range list {
		for _, d := range ds {
			if d.Sink == f.sink.Name {
				f.recorded(d.Cursor)
			}
		}
	}
	return nil
}

// counts is a [Status] that outlives followers: counters only grow.
type counts struct {
	mu    sync.Mutex
	s     Status
	since time.Time // of the message that is being tried
}

func (c *counts) add(fn func(*Status)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fn(&c.s)
}

func (c *counts) waits(since time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.since = since
}

func (c *counts) idle() { c.waits(time.Time{}) }

func (c *counts) status(now time.Time) Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.s
	if !c.since.IsZero() {
		s.Lag = max(0, now.Sub(c.since))
	}
	return s
}

func (t *Teller) counter(name string) *counts {
	t.mu.Lock()
	defer t.mu.Unlock()
	c, ok := t.counts[name]
	if !ok {
		c = &counts{s: Status{Sink: name}}
		t.counts[name] = c
	}
	return c
}

func (t *Teller) forget(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.counts, name)
}
