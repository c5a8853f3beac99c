package notify

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"
)

// follower is one webhook's goroutine: it reads the ledger from its cursor on and
// sends one message after the other.
type follower struct {
	sink   Sink
	source Source
	window *window
	post   poster
	now    func() time.Time
	log    *slog.Logger
	count  *counts
	// moved asks for the cursor to be recorded.
	moved func()

	wake   chan struct{}
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	cursor  Cursor
	begun   bool
	saved   Cursor // as recorded
	unsaved bool   // a message was sent since

	// Only run uses these.
	who    identity
	agenda agenda
	inARow int // failures
}

// run follows until ctx is done.
func (f *follower) run(ctx context.Context) {
	defer close(f.done)
	for failures := 0; ctx.Err() == nil; {
		wait, err := f.pass(ctx)
		if err != nil {
			failures++
			wait = backoff(failures)
			if ctx.Err() == nil && failures%10 == 1 {
				f.log.Warn("cannot read the ledger for a webhook; trying again", "error", err)
			}
		} else {
			failures = 0
		}
		f.sleep(ctx, wait, err == nil)
	}
}

// sleep waits, until woken where that is wanted.
func (f *follower) sleep(ctx context.Context, wait time.Duration, wakes bool) {
	wake := f.wake
	if !wakes {
		wake = nil // a busy ledger must not turn a backoff into a hot loop
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	case <-wake:
	}
}

// backoff doubles from least to most; half of it is random, so that webhooks that
// failed together do not come back together.
func backoff(failures int) time.Duration {
	d := maxBackoff
	if failures < 10 {
		d = min(minBackoff<<(failures-1), maxBackoff)
	}
	return d/2 + rand.N(d/2+1)
}

// begin reads where the webhook is, once.
func (f *follower) begin(ctx context.Context) error {
	if f.begun {
		return nil
	}
	cluster, incarnation, err := f.source.Cluster(ctx)
	if err != nil {
		return err
	}
	at, err := f.source.Cursor(ctx, f.sink.Name)
	if err != nil {
		return err
	}
	f.who = identity{cluster, incarnation}
	f.mu.Lock()
	f.saved = at
	f.cursor = f.cursor.beyond(at)
	f.begun, f.unsaved = true, f.cursor != at // what a changed webhook was told before
	f.mu.Unlock()
	f.advance(Cursor{}, false)
	return f.refill(ctx)
}

// refill reads anew what is due by time.
func (f *follower) refill(ctx context.Context) error {
	f.agenda = agenda{limit: maxAgenda}
	if !f.sink.wants(GrantReminder) && !f.sink.wants(ReviewOverdue) {
		return nil
	}
	err := f.source.Pending(ctx, func(v View) bool {
		f.schedule(v)
		return ctx.Err() == nil
	})
	if err != nil {
		f.agenda.partial = true // and empty or not, it is read again
		f.agenda.list = nil
	}
	return err
}

// schedule notes when a grant is to be told of again.
func (f *follower) schedule(v View) {
	for _, t := range timers(v, f.at().Due, f.now()) {
		if f.sink.wants(t.kind) && f.sink.concerns(v.asked()) {
			f.agenda.add(t)
		}
	}
}

func (f *follower) at() Cursor {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cursor
}

// pass tells all there is to tell and returns how long there will be nothing.
// The ledger comes first, so that no reminder precedes what it reminds of.
func (f *follower) pass(ctx context.Context) (time.Duration, error) {
	if err := f.begin(ctx); err != nil {
		return 0, err
	}
	for {
		if err := f.entries(ctx); err != nil {
			return 0, err
		}
		if f.agenda.exhausted() {
			if err := f.refill(ctx); err != nil {
				return 0, err
			}
		}
		t, ok := f.agenda.next()
		if !ok {
			return idleEvery, nil
		}
		if wait := t.due.Sub(f.now()); wait > 0 {
			return min(wait, idleEvery), nil
		}
		if err := f.timed(ctx, t); err != nil {
			return 0, err
		}
	}
}

// entries tells what the ledger holds from the cursor on.
func (f *follower) entries(ctx context.Context) error {
	for from := f.at().Seq; ; {
		told, next, err := f.window.read(ctx, from)
		if err != nil {
			return err
		}
		for _, e := range told {
			sent, err := f.entry(ctx, e)
			if err != nil {
				return err
			}
			f.advance(Cursor{Seq: e.Seq + 1}, sent)
		}
		f.advance(Cursor{Seq: next}, false)
		if next == from {
			return nil
		}
		from = next
	}
}

// entry tells what one entry means, and notes what will be due for its grant.
func (f *follower) entry(ctx context.Context, e Entry) (sent bool, err error) {
	var v View
	if e.Grant != "" {
		var ok bool
		if v, ok, err = f.source.Grant(ctx, e.Grant); err != nil || !ok {
			return false, err
		}
		f.schedule(v)
	}
	ev, ok := f.who.ofEntry(e, v)
	if !ok || !f.sink.wants(ev.Kind) || !f.sink.concerns(v.asked()) {
		return false, nil
	}
	return f.deliver(ctx, ev)
}

// timed tells what is due by time, if it is still so.
func (f *follower) timed(ctx context.Context, t timer) error {
	sent, err := f.deliver(ctx, f.who.ofTimer(t))
	if err != nil {
		return err
	}
	f.agenda.drop()
	if next, ok := f.agenda.next(); !ok || next.due.After(t.due) {
		f.advance(Cursor{Due: t.due}, sent) // all that was due at that instant
	}
	if !sent || t.kind != ReviewOverdue {
		return nil
	}
	v, ok, err := f.source.Grant(ctx, t.grant)
	if err != nil {
		f.agenda.list, f.agenda.partial = nil, true // read anew, not told anew
		return err
	}
	if !ok {
		return nil
	}
	for _, again := range timers(v, t.due, f.now()) {
		if again.kind == ReviewOverdue {
			again.due = later(again.due, t.due, f.now())
			f.agenda.add(again)
		}
	}
	return nil
}

// later is a review's next telling: a day after the last, whole days after it was due.
func later(due, last, now time.Time) time.Time {
	for !due.After(last) || !due.After(now) {
		due = due.Add(overdueEvery)
	}
	return due
}

// advance moves the cursor, never back.
func (f *follower) advance(to Cursor, sent bool) {
	f.mu.Lock()
	f.cursor = f.cursor.beyond(to)
	f.unsaved = f.unsaved || sent
	save := f.urgent()
	f.mu.Unlock()
	if save {
		f.moved()
	}
}

// urgent says whether the cursor must be recorded. The caller holds mu.
func (f *follower) urgent() bool {
	return f.unsaved || f.cursor.Seq >= f.saved.Seq+recordBehind
}

// unrecorded returns the cursor; moved says that it is not recorded, urgent that
// it must be.
func (f *follower) unrecorded() (d Delivery, moved, urgent bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return Delivery{f.sink.Name, f.cursor}, f.begun && f.cursor != f.saved, f.begun && f.urgent()
}

// recorded notes that a cursor is safe.
func (f *follower) recorded(c Cursor) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.saved = c
	f.unsaved = f.unsaved && f.cursor != c
}
