package broker

import (
	"context"
	"encoding/json"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/issuers"
)

// leadership is what the leader's background work shares with requests.
type leadership struct {
	wake  chan struct{}
	since atomic.Int64 // ms when this node began to lead
}

// broadcast lets many wait for the next change.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{}
}

// next returns a channel that closes at the next change.
func (b *broadcast) next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

// tell wakes all who wait.
func (b *broadcast) tell() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}

// wake asks the leader's loop to look at once.
func (e *Engine) wake() {
	select {
	case e.lead.wake <- struct{}{}:
	default: // it is going to look anyway
	}
}

const (
	tick       = time.Second      // the longest sleep between looks at the indexes
	sweepEvery = 10 * time.Second // forgetting is not urgent
	tidyEvery  = 10 * time.Minute // pooled things on targets
)

// Lead does the leader's background work until ctx ends: it ends what is due
// and withdraws what has ended. It reads only the heads of indexes, so a new
// leader begins at once however much lives (DESIGN, section 3).
func (e *Engine) Lead(ctx context.Context) {
	e.lead.since.Store(e.now().UnixMilli())
	e.targets.closeAll() // connections of an earlier term
	w, r := newWithdrawer(e), newRotator(e)
	defer w.wait()
	defer r.wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	nextSweep, nextTidy := e.now(), e.now().Add(tidyEvery)
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-e.lead.wake:
		}
		if ctx.Err() != nil { // select chooses at random among what is ready
			return
		}
		select {
		case <-e.lead.wake: // one look serves the timer and the call
		default:
		}
		sleep, err := e.endDue(ctx)
		if err != nil && ctx.Err() == nil {
			e.log.Warn("cannot end what is due; trying again", "error", err)
		}
		w.start(ctx)
		r.start(ctx, &sleep)
		if now := e.now(); now.After(nextSweep) {
			e.sweep(ctx)
			nextSweep = now.Add(sweepEvery)
		}
		if now := e.now(); now.After(nextTidy) {
			w.tidy(ctx)
			nextTidy = now.Add(tidyEvery)
		}
		timer.Reset(sleep)
	}
}

// endDue ends tasks and leases whose time is up, and drains ended tasks and
// contained principals, targets and zones. It returns how long nothing is due.
func (e *Engine) endDue(ctx context.Context) (time.Duration, error) {
	now := e.now().UnixMilli()
	sleep := tick
	if err := e.endDueTasks(ctx, now, &sleep); err != nil {
		return tick, err
	}
	if err := e.endDueGrants(ctx, now, &sleep); err != nil {
		return tick, err
	}
	for {
		ids, next := e.dueLeases(now)
		if len(ids) == 0 {
			shorten(&sleep, now, next)
			break
		}
		res, err := e.commit(ctx, e.header(Caller{}), &ledger.EndLeases{IDs: ids, Reason: ledger.EndExpired})
		if err != nil {
			return tick, err
		}
		if len(res.Also) == 0 {
			break // our clock has stepped back since the look: what is due is not due yet
		}
	}
	var ended []string
	if err := e.view(func(q ledger.Query) error { ended = q.EndingTasks(ledger.MaxEndBatch); return nil }); err != nil {
		return tick, err
	}
	if _, err := e.drainTasks(ctx, ended); err != nil {
		return tick, err
	}
	return max(sleep, 5*time.Millisecond), e.drainContained(ctx)
}

func shorten(sleep *time.Duration, now, next int64) {
	if next > 0 {
		*sleep = min(*sleep, time.Duration(max(next-now, 1))*time.Millisecond)
	}
}

func (e *Engine) dueLeases(now int64) (ids []string, next int64) {
	if err := e.view(func(q ledger.Query) error { ids, next = q.DueLeases(now, ledger.MaxEndBatch); return nil }); err != nil {
		e.log.Error("cannot read the expiry index", "error", err)
	}
	return ids, next
}

func (e *Engine) endDueTasks(ctx context.Context, now int64, sleep *time.Duration) error {
	var due []ledger.Task
	since := e.lead.since.Load()
	err := e.view(func(q ledger.Query) error {
		ids, next := q.DueTasks(now, dueTaskScan)
		shorten(sleep, now, next)
		for _, id := range ids {
			t, ok := q.Task(id)
			if !ok || t.DeadlineMS > now && now < since+t.LapseMS {
				continue // the lapse clock stood still while nobody led
			}
			if due = append(due, t); len(due) == dueTaskBatch {
				*sleep = 0 // there may be more
				break
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, t := range due {
		reason := ledger.EndDeadline
		if t.DeadlineMS > now {
			reason = ledger.EndLapsed
		}
		res, err := e.commit(ctx, e.header(Caller{}), &ledger.EndTask{ID: t.ID, Reason: reason})
		if err != nil && res.Code != ledger.CodeStale { // stale: a heartbeat came first
			return err
		}
	}
	return nil
}

// A round ends dueTaskBatch tasks and looks through dueTaskScan: after a failover
// many may be overdue for a heartbeat that nobody could take, and those must not
// hide one whose deadline has passed.
const (
	dueTaskBatch = 64
	dueTaskScan  = 1 << 16
)

// drainTasks sets the open leases of ended tasks to end, and returns them.
func (e *Engine) drainTasks(ctx context.Context, tasks []string) ([]string, error) {
	var all []string
	for _, id := range tasks {
		for {
			var ids []string
			if err := e.view(func(q ledger.Query) error { ids = q.LeasesOfTask(id, ledger.MaxEndBatch); return nil }); err != nil {
				return all, err
			}
			if len(ids) == 0 {
				break
			}
			if _, err := e.commit(ctx, e.header(Caller{}), &ledger.EndLeases{IDs: ids, Reason: ledger.EndDone}); err != nil {
				return all, err
			}
			all = append(all, ids...)
		}
	}
	if len(all) > 0 {
		e.wake()
	}
	return all, nil
}

// drainContained ends the open leases of whatever is contained.
func (e *Engine) drainContained(ctx context.Context) error {
	for {
		var ids []string
		err := e.view(func(q ledger.Query) error { ids = e.containedLeases(q, q.Frozen(), ledger.MaxEndBatch); return nil })
		if err != nil || len(ids) == 0 {
			return err
		}
		if _, err := e.commit(ctx, e.header(Caller{}), &ledger.EndLeases{IDs: ids, Reason: ledger.EndContained}); err != nil {
			return err
		}
	}
}

// containedLeases returns open leases that a containment covers.
func (e *Engine) containedLeases(q ledger.Query, frozen []ledger.FreezeRecord, limit int) []string {
	var ids []string
	onTarget := func(target string) {
		for _, id := range q.LeasesOn(target, 1<<20) {
			if l, ok := q.Lease(id); ok && l.State == ledger.LeaseOpen && len(ids) < limit {
				ids = append(ids, id)
			}
		}
	}
	for _, f := range frozen {
		switch f.Kind {
		case ledger.KindPrincipal:
			ids = append(ids, q.LeasesOf(f.Name, limit)...)
		case ledger.KindTarget:
			onTarget(f.Name)
		case ledger.KindZone:
			for _, o := range q.Objects(ledger.KindTarget) {
				if t, _, err := ledger.SplitTarget(o.Spec); err == nil && t.Zone == f.Name {
					onTarget(o.Name)
				}
			}
		}
		if len(ids) >= limit {
			return ids[:limit]
		}
	}
	return ids
}

// sweep forgets what is past its time, a bounded step at a time.
func (e *Engine) sweep(ctx context.Context) {
	for ctx.Err() == nil {
		more := false
		if err := e.view(func(q ledger.Query) error { more = q.DueSweep(e.now().UnixMilli()); return nil }); err != nil || !more {
			return
		}
		res, err := e.commit(ctx, e.header(Caller{}), &ledger.Sweep{Max: ledger.MaxSweepBatch})
		if err != nil {
			e.log.Warn("sweep failed; trying again later", "error", err)
			return
		}
		if string(res.Value) == "0" { // as in endDue
			return
		}
	}
}

// receiptJSON encodes a receipt for the ledger.
func receiptJSON(r issuers.Receipt) json.RawMessage { return rawMessage(r) }
