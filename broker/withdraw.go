package broker

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/issuers"
)

// withdrawBatch is how many leases one round trip to a target ends.
const withdrawBatch = 256

// maxPark is the longest pause of a lease that failed alone.
const maxPark = time.Minute

// withdrawer withdraws ended leases, each target in a lane of its own: a dead
// target delays its own leases only (law 8), and mints never stand in the way
// (HAZARDS 17). It lives as long as one leadership.
type withdrawer struct {
	e     *Engine
	wg    sync.WaitGroup
	mu    sync.Mutex
	lanes map[string]*lane
}

// lane is one target's withdrawal state.
type lane struct {
	running bool
	until   time.Time // not before, after a failure of the whole target
	backoff *backoff.ExponentialBackOff
	// parked holds leases that failed alone, with their next try.
	parked map[string]*parked
}

type parked struct {
	until   time.Time
	seen    turned
	tries   int
	problem string
}

// turned is the last turn of an account that was there to be seen when a lease on it
// was looked at; after another one the lease waits no longer. The zero value is
// that of a lease on none.
type turned struct {
	subject string
	seq     uint64
}

func newWithdrawer(e *Engine) *withdrawer {
	return &withdrawer{e: e, lanes: map[string]*lane{}}
}

func newLane() *lane {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = 200*time.Millisecond, 30*time.Second
	b.RandomizationFactor = 0 // one leader asks: there is no herd to spread
	return &lane{backoff: b, parked: map[string]*parked{}}
}

func (w *withdrawer) wait() { w.wg.Wait() }

// start gives each target with due withdrawals a worker, unless it has one or
// is backing off.
func (w *withdrawer) start(ctx context.Context) {
	due := map[string]bool{}
	now := w.e.now()
	err := w.e.view(func(q ledger.Query) error {
		q.Endings("", func(x ledger.Ending) bool {
			if x.NotBeforeMS <= now.UnixMilli() {
				due[x.Target] = true
			}
			return true
		})
		return nil
	})
	if err != nil {
		w.e.log.Error("cannot read what is ending", "error", err)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(due)) { // in order, so that a run can be repeated
		l := w.lanes[name]
		if l == nil {
			l = newLane()
			w.lanes[name] = l
		}
		if l.running || now.Before(l.until) {
			continue
		}
		l.running = true
		w.wg.Go(func() { w.run(ctx, name, l) })
	}
}

// run withdraws batch after batch until the target has nothing due or fails.
func (w *withdrawer) run(ctx context.Context, name string, l *lane) {
	defer func() {
		w.mu.Lock()
		l.running = false
		w.mu.Unlock()
	}()
	for ctx.Err() == nil {
		batch, seen, err := w.batch(name, l)
		if err != nil || len(batch) == 0 {
			if err != nil {
				w.e.log.Error("cannot read what is ending", "target", name, "error", err)
			}
			return
		}
		failed, err := w.e.withdraw(ctx, name, batch)
		if err != nil {
			pause := l.backoff.NextBackOff()
			w.mu.Lock()
			l.until = w.e.now().Add(pause)
			w.mu.Unlock()
			w.e.log.Warn("target cannot be reached to withdraw; trying again", "target", name, "waiting", len(batch), "pause", pause, "error", err)
			return
		}
		l.backoff.Reset()
		w.park(ctx, l, failed, seen)
	}
}

// batch returns the leases on a target that are to be withdrawn now, and for those
// on accounts the last turn of the account by then.
func (w *withdrawer) batch(name string, l *lane) (out []ledger.Lease, seen map[string]turned, err error) {
	seen = map[string]turned{}
	now := w.e.now()
	err = w.e.view(func(q ledger.Query) error {
		q.Endings(name, func(x ledger.Ending) bool {
			p := l.parked[x.LeaseID]
			waits := p != nil && now.Before(p.until) && (p.seen == turned{} || q.Rotated(p.seen.subject) == p.seen.seq)
			if x.NotBeforeMS > now.UnixMilli() || waits {
				return true
			}
			lease, ok := q.Lease(x.LeaseID)
			if !ok {
				return true
			}
			if account, on := ledger.AccountOf(lease); on {
				subject := ledger.RotationSubject(ledger.KindAccount, account)
				seen[lease.ID] = turned{subject, q.Rotated(subject)}
			}
			out = append(out, lease)
			return len(out) < withdrawBatch
		})
		return nil
	})
	return out, seen, err
}

// park remembers leases that failed alone, and records a problem that a person
// must see once it is clear that time alone does not help.
func (w *withdrawer) park(ctx context.Context, l *lane, failed map[string]error, seen map[string]turned) {
	var items []ledger.Withdrawal
	for _, id := range slices.Sorted(maps.Keys(failed)) {
		err := failed[id]
		p := l.parked[id]
		if p == nil {
			p = &parked{}
			l.parked[id] = p
		}
		p.tries++
		p.seen = seen[id]
		p.until = w.e.now().Add(min(time.Duration(p.tries)*time.Second, maxPark))
		problem := err.Error()
		if (issuers.KindOf(err) == issuers.Poison || p.tries >= 5) && p.problem != problem {
			p.problem = problem
			items = append(items, ledger.Withdrawal{LeaseID: id, LookedMS: w.e.now().UnixMilli(), Problem: problem})
		}
	}
	if len(l.parked) > 4*withdrawBatch {
		// What ended since needs no memory; what waits yet is not due all at once.
		maps.DeleteFunc(l.parked, func(_ string, p *parked) bool { return p.until.Before(w.e.now().Add(-maxPark)) })
	}
	for len(items) > 0 {
		n := min(len(items), ledger.MaxEndBatch)
		if _, err := w.e.commit(ctx, w.e.header(Caller{}), &ledger.RecordWithdrawals{Items: items[:n]}); err != nil {
			w.e.log.Warn("problem not recorded; trying again", "error", err)
			return
		}
		items = items[n:]
	}
}

// withdraw ends a batch of leases on their target and records the receipts.
// failed holds those that failed alone; the error is for the whole target.
func (e *Engine) withdraw(ctx context.Context, name string, batch []ledger.Lease) (failed map[string]error, err error) {
	onAccounts, minted := split(batch)
	items, failed := e.letGo(ctx, onAccounts)
	if len(minted) > 0 {
		more, alone, werr := e.withdrawMinted(ctx, name, minted)
		items, err = append(items, more...), werr
		maps.Copy(failed, alone)
	}
	if len(items) > 0 {
		if _, err := e.commit(ctx, e.header(Caller{}), &ledger.RecordWithdrawals{Items: items}); err != nil {
			return failed, err
		}
		e.changed.tell()
	}
	return failed, err
}

// withdrawMinted has the target end the credentials of a batch of leases.
func (e *Engine) withdrawMinted(ctx context.Context, name string, batch []ledger.Lease) (items []ledger.Withdrawal, failed map[string]error, err error) {
	var t *target
	roles := map[string]ledger.RoleSpec{}
	err = e.view(func(q ledger.Query) (err error) {
		for _, l := range batch {
			var r ledger.RoleSpec
			q.Spec(ledger.KindRole, l.Grant.Role, &r) // a deleted role has the defaults
			roles[l.Grant.Role] = r
		}
		t, err = e.targets.acquire(q, name)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	defer e.targets.release(t)
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := t.fence(ctx); err != nil {
		return nil, nil, err
	}
	looked := e.now().UnixMilli()
	term := e.cfg.Log.Term()
	final := make([]bool, len(batch)) // as of before the look
	for i, l := range batch {
		final[i] = term == t.term && e.settled.holds(l.ID, term)
	}
	leases := make([]issuers.Lease, len(batch))
	for i, l := range batch {
		leases[i] = issuerLease(l, roles[l.Grant.Role])
	}
	outcomes := t.issuer.Withdraw(ctx, leases)
	failed = map[string]error{}
	var unreachable error
	for i, o := range outcomes {
		switch {
		case o.Err == nil:
			items = append(items, ledger.Withdrawal{LeaseID: batch[i].ID, LookedMS: looked, Settled: final[i], Receipt: receiptJSON(o.Receipt)})
		case issuers.KindOf(o.Err) == issuers.Unreachable:
			unreachable = o.Err
		default:
			failed[batch[i].ID] = o.Err
		}
	}
	return items, failed, unreachable
}

// tidy sweeps what targets pool between leases, one after the other.
func (w *withdrawer) tidy(ctx context.Context) {
	var names []string
	err := w.e.view(func(q ledger.Query) error {
		for _, o := range q.Objects(ledger.KindTarget) {
			names = append(names, o.Name)
		}
		return nil
	})
	if err != nil {
		return
	}
	w.wg.Go(func() {
		for _, name := range names {
			w.e.tidyTarget(ctx, name)
		}
	})
}

func (e *Engine) tidyTarget(ctx context.Context, name string) {
	var t *target
	err := e.view(func(q ledger.Query) (err error) { t, err = e.targets.acquire(q, name); return err })
	if err != nil {
		return
	}
	defer e.targets.release(t)
	if s, ok := t.issuer.(issuers.Sweeper); ok {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		if err := s.Sweep(ctx); err != nil {
			e.log.Warn("target not tidied; trying again later", "target", name, "error", err)
		}
	}
}
