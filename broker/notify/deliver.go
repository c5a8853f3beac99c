package notify

import (
	"context"
	"time"
)

// deliver sends an event until it is taken or given up. sent is false where there
// was nothing to tell after all. An error is the source's, or ctx's.
func (f *follower) deliver(ctx context.Context, ev Event) (sent bool, err error) {
	first := f.now()
	defer f.count.idle()
	for attempt := 1; ; attempt++ {
		if ev.Grant.ID != "" {
			// A message that waited for hours says how things stand now.
			v, ok, err := f.source.Grant(ctx, ev.Grant.ID)
			if err != nil {
				return false, err
			}
			if !ok || !still(ev.Kind, v, f.now()) {
				return false, nil
			}
			ev.Grant = v
		}
		f.count.waits(ev.At)
		body, err := compose(f.who.cluster, ev).encode(f.sink.Format)
		if err != nil {
			f.log.Error("a message cannot be encoded and is left out", "event_id", ev.ID, "event", ev.Kind, "error", err)
			return false, nil
		}
		out := f.post.post(ctx, f.sink, ev.ID, body)
		if ctx.Err() != nil {
			return false, ctx.Err() // whether it was taken is unknown: it is sent again
		}
		if out.problem == "" {
			f.succeeded(ev)
			return true, nil
		}
		f.failed(ev, out)
		if f.hopeless(ev, out, first) {
			f.giveUp(ev, out, attempt)
			return true, nil
		}
		f.sleep(ctx, max(backoff(f.inARow), out.after), false)
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
	}
}

func (f *follower) hopeless(ev Event, out outcome, first time.Time) bool {
	now := f.now()
	return now.Sub(ev.At) >= giveUpAfter || out.refused && now.Sub(first) >= refusedAfter
}

func (f *follower) succeeded(ev Event) {
	if f.inARow > 0 {
		f.log.Info("webhook works again", "event_id", ev.ID, "failures", f.inARow)
	}
	f.inARow = 0
	f.count.add(func(s *Status) { s.Delivered++; s.Failures, s.Problem = 0, "" })
}

// failed logs the first failure and every tenth.
func (f *follower) failed(ev Event, out outcome) {
	f.inARow++
	f.count.add(func(s *Status) { s.Failed++; s.Failures, s.Problem = f.inARow, out.problem })
	if f.inARow%10 == 1 {
		f.log.Warn("webhook fails; trying again", "event_id", ev.ID, "event", ev.Kind, "failures", f.inARow, "problem", out.problem)
	}
}

// giveUp is loud: people were not told of something.
func (f *follower) giveUp(ev Event, out outcome, attempts int) {
	f.count.add(func(s *Status) { s.GivenUp++ })
	f.log.Error("MESSAGE GIVEN UP: a webhook was not told, and will not be", "event_id", ev.ID, "event", ev.Kind, "grant_id", ev.Grant.ID,
		"at", instant(ev.At), "attempts", attempts, "problem", out.problem)
}
