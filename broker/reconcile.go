package broker

import (
	"context"
	"slices"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/policy"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/issuers"
)

// Reconcile compares what targets hold with what the ledger says. What the
// ledger knows as ended is removed at once; what nobody knows, and what is missing,
// waits for a person who says Heal (HAZARDS 8).
func (e *Engine) Reconcile(ctx context.Context, c Caller, in wire.ReconcileRequest) ([]wire.Drift, error) {
	if err := e.mayAudit(ctx, c); err != nil {
		return nil, err
	}
	var heal func() error
	if in.Heal {
		r, err := e.mayHeal(ctx, c, in)
		if err != nil {
			return nil, err
		}
		heal = func() error { return e.recordHealing(ctx, c, in, r) }
	}
	target := in.Target
	var names []string
	err := e.view(func(q ledger.Query) error {
		for _, o := range q.Objects(ledger.KindTarget) {
			if target == "" || o.Name == target {
				names = append(names, o.Name)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(names) == 0 && target != "" {
		return nil, fault.New(fault.NotFound, "not_found", "Target %s does not exist.", target)
	}
	out := []wire.Drift{}
	for _, n := range names {
		if d, ok := e.reconcileTarget(ctx, n, heal); ok {
			out = append(out, d)
		}
	}
	return out, nil
}

// reconcileTimeout bounds the look at one target.
const reconcileTimeout = 30 * time.Second

// reconcileTarget compares one target; ok is false where the kind cannot list. heal,
// where set, records that the target is being healed, before anything is done.
func (e *Engine) reconcileTarget(ctx context.Context, name string, heal func() error) (d wire.Drift, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, reconcileTimeout)
	defer cancel()
	d = wire.Drift{Target: name, Unknown: []string{}, Ended: []string{}, Missing: []string{}}
	var t *target
	if err := e.viewing(ctx, func(q ledger.Query) (err error) { t, err = e.targets.acquire(q, name); return err }); err != nil {
		d.Error = err.Error()
		return d, true
	}
	defer e.targets.release(t)
	lister, ok := t.issuer.(issuers.Lister)
	if !ok {
		return d, false
	}
	// What is open now and still open after the look must have been there.
	before := e.openNames(name)
	found, err := lister.List(ctx)
	if err != nil {
		d.Error = err.Error()
		return d, true
	}
	if heal != nil {
		// Committed after the look: so this node leads yet, and its state holds every
		// lease whose credential was seen there. To a leader that was deposed before
		// the look, what the next one has minted since would be unknown.
		if err := heal(); err != nil {
			d.Error = err.Error()
			return d, true
		}
	}
	after := e.openNames(name)
	var over []ledger.Lease
	var unknown []issuers.Found
	err = e.view(func(q ledger.Query) error {
		for _, f := range found {
			l, known := q.LeaseNamed(f.Name)
			switch {
			case !known:
				d.Unknown = append(d.Unknown, f.Name)
				unknown = append(unknown, f)
			case l.State == ledger.LeaseEnded:
				d.Ended = append(d.Ended, f.Name)
				over = append(over, l)
			}
		}
		return nil
	})
	if err != nil {
		d.Error = err.Error()
		return d, true
	}
	for cred := range before {
		if after[cred] && !slices.ContainsFunc(found, func(f issuers.Found) bool { return f.Name == cred }) {
			d.Missing = append(d.Missing, cred)
		}
	}
	slices.Sort(d.Missing)
	e.removeEnded(ctx, t, over)
	if heal != nil {
		d.Healed = append(e.removeUnknown(ctx, t, unknown), e.endMissing(ctx, d.Missing)...)
	}
	return d, true
}

// openNames returns the names of the open leases on a target whose mint
// deadline has passed: those must be there.
func (e *Engine) openNames(target string) map[string]bool {
	out := map[string]bool{}
	now := e.now().UnixMilli()
	err := e.view(func(q ledger.Query) error {
		for _, id := range q.LeasesOn(target, 1<<20) {
			if l, ok := q.Lease(id); ok && l.State == ledger.LeaseOpen && l.MintDeadlineMS < now {
				if _, given := ledger.AccountOf(l); given {
					continue // nothing on the target bears its name
				}
				out[l.Name] = true
			}
		}
		return nil
	})
	if err != nil {
		e.log.Error("cannot read a target's leases", "target", target, "error", err)
	}
	return out
}

// removeEnded withdraws again what the ledger knows as ended.
func (e *Engine) removeEnded(ctx context.Context, t *target, over []ledger.Lease) {
	for len(over) > 0 {
		n := min(len(over), withdrawBatch)
		leases := make([]issuers.Lease, n)
		for i, l := range over[:n] {
			leases[i] = issuerLease(l, ledger.RoleSpec{})
		}
		for i, o := range t.issuer.Withdraw(ctx, leases) {
			if o.Err != nil {
				e.log.Warn("ended credential not removed; reconcile again", "target", t.name, "lease", over[i].ID, "error", o.Err)
			}
		}
		over = over[n:]
	}
}

// mayHeal asks policy. One target at a time: whoever heals has looked at it.
func (e *Engine) mayHeal(ctx context.Context, c Caller, in wire.ReconcileRequest) (ruling, error) {
	if in.Target == "" || in.Reason == "" {
		return ruling{}, fault.New(fault.Invalid, "reason_missing", "Healing needs a target and a reason: what nobody knows there is removed, and leases whose credential is missing end. A copy of a cluster would remove what the original minted.")
	}
	var ask question
	err := e.view(func(q ledger.Query) error {
		r, err := e.resourceOf(q, ledger.KindTarget, in.Target)
		ask = question{action: policy.ActionAdminister, resource: r, context: policy.Context{Purpose: in.Reason}}
		return err
	})
	if err != nil {
		return ruling{}, err
	}
	return e.allow(ctx, c, ask)
}

// recordHealing says who has a target healed, and why (law 5).
func (e *Engine) recordHealing(ctx context.Context, c Caller, in wire.ReconcileRequest, r ruling) error {
	h := e.header(c)
	h.DecisionID, h.Decision = r.ID, r.encode()
	_, err := e.commit(ctx, h, &ledger.RecordDecision{Action: policy.ActionAdminister, Resource: ledger.KindTarget + "/" + in.Target, Code: "healed"})
	return err
}

// removeUnknown withdraws what bears our mark and no lease names.
func (e *Engine) removeUnknown(ctx context.Context, t *target, found []issuers.Found) (healed []string) {
	for len(found) > 0 {
		n := min(len(found), withdrawBatch)
		leases := make([]issuers.Lease, n)
		for i, f := range found[:n] {
			leases[i] = issuers.Lease{ID: f.LeaseID, Name: f.Name, Generation: max(f.Generation, 1)}
		}
		for i, o := range t.issuer.Withdraw(ctx, leases) {
			if o.Err != nil {
				e.log.Warn("unknown credential not removed", "target", t.name, "name", found[i].Name, "error", o.Err)
				continue
			}
			healed = append(healed, found[i].Name)
		}
		found = found[n:]
	}
	return healed
}

// endMissing sets leases to end whose credential somebody else has removed.
func (e *Engine) endMissing(ctx context.Context, names []string) (healed []string) {
	for len(names) > 0 {
		n := min(len(names), ledger.MaxEndBatch)
		var ids []string
		err := e.view(func(q ledger.Query) error {
			for _, name := range names[:n] {
				if l, ok := q.LeaseNamed(name); ok {
					ids = append(ids, l.ID)
				}
			}
			return nil
		})
		if err == nil && len(ids) > 0 {
			_, err = e.commit(ctx, e.header(Caller{}), &ledger.EndLeases{IDs: ids, Reason: ledger.EndRevoked})
		}
		if err != nil {
			e.log.Warn("leases without a credential not ended", "error", err)
			return healed
		}
		healed = append(healed, names[:n]...)
		names = names[n:]
	}
	e.wake()
	return healed
}
