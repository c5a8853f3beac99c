package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"
)

// A Sink takes entries to a place outside the ledger. The [Runner] owns it and
// calls it from one goroutine.
type Sink interface {
	// Next is the number of the entry it wants next: all before it are safe in
	// the sink, over restarts.
	Next(ctx context.Context) (int64, error)
	// Deliver takes consecutive entries, from Next on. nil means that they are
	// all safe; after an error Next says how far it came. It gives up when ctx
	// is done, as soon as the operating system lets it.
	Deliver(ctx context.Context, entries []Entry) error
	// Close releases what the sink holds. It may be used again afterwards.
	Close() error
}

// A Checker is a sink that can look after its destination while nothing is
// delivered, so that a deleted file is noticed before the next entry.
type Checker interface {
	Check(ctx context.Context) error
}

// A NamedSink is a sink and what it is called in logs and metrics.
type NamedSink struct {
	Name string
	Sink Sink
}

// RunnerOptions are a runner's settings; zero fields take the default.
type RunnerOptions struct {
	// Idle is how often a sink with nothing to do looks at the ledger and at its
	// destination, woken or not; 5 s.
	Idle time.Duration
	// MinBackoff and MaxBackoff bound the wait after a failure, which doubles; 100
	// ms and 1 min.
	MinBackoff, MaxBackoff time.Duration
	// Log takes failures and recoveries; none if nil.
	Log *slog.Logger
}

// A batch is bounded in entries and, because entries differ so much, in bytes of
// commands: it goes over by at most one entry.
const (
	batchEntries = 256
	batchBytes   = 1 << 20
)

// A Runner lets sinks follow the ledger, each with its own goroutine, cursor and
// backoff. The ledger never waits for it: [Runner.Wake] only leaves a mark, and a
// sink that is slow or broken falls behind alone and loses nothing, because what
// it has not taken is still in the ledger (laws 5 and 8).
type Runner struct {
	feed  Feed
	sinks []*follower
	opts  RunnerOptions
}

// NewRunner makes a runner over sinks whose names differ.
func NewRunner(feed Feed, sinks []NamedSink, opts RunnerOptions) *Runner {
	if opts.Idle <= 0 {
		opts.Idle = 5 * time.Second
	}
	if opts.MinBackoff <= 0 {
		opts.MinBackoff = 100 * time.Millisecond
	}
	if opts.MaxBackoff < opts.MinBackoff {
		opts.MaxBackoff = max(time.Minute, opts.MinBackoff)
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	r := &Runner{feed: feed, opts: opts}
	for _, s := range sinks {
		r.sinks = append(r.sinks, &follower{
			NamedSink: s, feed: feed, wake: make(chan struct{}, 1), log: opts.Log.With("sink", s.Name),
		})
	}
	return r
}

// Run follows the ledger until ctx is done, then waits for every sink's goroutine
// and closes the sinks. Call it once. It returns the errors of closing.
func (r *Runner) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, f := range r.sinks {
		wg.Go(func() { f.run(ctx, r.opts) })
	}
	wg.Wait()
	var errs []error
	for _, f := range r.sinks {
		if err := f.Sink.Close(); err != nil {
			errs = append(errs, fmt.Errorf("audit sink %s: %w", f.Name, err))
		}
	}
	return errors.Join(errs...)
}

// Wake says that the ledger has grown. It never blocks and may be called from
// anywhere, as often as you like.
func (r *Runner) Wake() {
	for _, f := range r.sinks {
		select {
		case f.wake <- struct{}{}:
		default: // the mark is there already
		}
	}
}

// SinkStatus is how a sink fares.
type SinkStatus struct {
	Name string
	// Next is the entry it takes next, Behind how many entries it has yet to take.
	Next, Behind int64
	// Failures counts the failures in a row; 0 when the last attempt succeeded.
	Failures int
	// Error and ErrorTime are the last failure's; kept until the next success.
	Error     string
	ErrorTime time.Time
}

// Status reports on every sink, in the order they were given.
func (r *Runner) Status(ctx context.Context) ([]SinkStatus, error) {
	size, err := r.feed.Size(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]SinkStatus, 0, len(r.sinks))
	for _, f := range r.sinks {
		f.mu.Lock()
		s := f.status
		f.mu.Unlock()
		s.Name, s.Behind = f.Name, max(0, size-s.Next)
		out = append(out, s)
	}
	return out, nil
}

// follower is one sink's goroutine and what is known of it.
type follower struct {
	NamedSink
	feed Feed
	wake chan struct{}
	log  *slog.Logger

	mu     sync.Mutex
	status SinkStatus
}

func (f *follower) run(ctx context.Context, opts RunnerOptions) {
	for ctx.Err() == nil {
		err := f.catchUp(ctx)
		if c, ok := f.Sink.(Checker); ok && err == nil {
			err = c.Check(ctx)
		}
		if ctx.Err() != nil {
			return
		}
		wait, wake := opts.Idle, f.wake
		if failures := f.note(err); failures > 0 {
			wait = backoff(failures, opts.MinBackoff, opts.MaxBackoff)
			wake = nil // a busy ledger must not turn the backoff into a hot loop
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-wake:
		}
		timer.Stop()
	}
}

// backoff doubles from least to most; the last half of it is random, so that
// sinks that failed together do not return together.
func backoff(failures int, least, most time.Duration) time.Duration {
	d := most
	if failures <= 30 && least<<(failures-1) < most && least<<(failures-1) > 0 {
		d = least << (failures - 1)
	}
	return d/2 + rand.N(d/2+1)
}

// note records an attempt's outcome and returns the failures in a row. It logs
// the first failure, the first success after one, and every tenth failure.
func (f *follower) note(err error) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		if f.status.Failures > 0 {
			f.log.Info("audit sink works again", "next_seq", f.status.Next, "failures", f.status.Failures)
		}
		f.status.Failures, f.status.Error, f.status.ErrorTime = 0, "", time.Time{}
		return 0
	}
	f.status.Failures++
	f.status.Error, f.status.ErrorTime = err.Error(), time.Now()
	if f.status.Failures%10 == 1 {
		f.log.Warn("audit sink fails", "next_seq", f.status.Next, "failures", f.status.Failures, "error", err)
	}
	return f.status.Failures
}

// catchUp delivers until the sink has everything.
func (f *follower) catchUp(ctx context.Context) error {
	next, err := f.Sink.Next(ctx)
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		f.mu.Lock()
		f.status.Next = next
		f.mu.Unlock()
		size, err := f.feed.Size(ctx)
		if err != nil {
			return err
		}
		if next > size {
			return fmt.Errorf("the sink wants entry %d, and the ledger ends at %d: it followed another ledger", next, size)
		}
		if next == size {
			return nil
		}
		batch, err := f.read(ctx, next, size)
		if err != nil {
			return err
		}
		if err := f.Sink.Deliver(ctx, batch); err != nil {
			return err
		}
		next += int64(len(batch))
	}
	return ctx.Err()
}

// read takes at least one entry from the ledger, and at most a batch.
func (f *follower) read(ctx context.Context, next, size int64) ([]Entry, error) {
	var batch []Entry
	for n := 0; next < size && len(batch) < batchEntries && n < batchBytes; next++ {
		e, err := f.feed.Entry(ctx, next)
		if err != nil {
			return nil, err
		}
		batch = append(batch, e)
		n += len(e.Command)
	}
	return batch, nil
}
