package broker

import (
	"context"
	"slices"
	"time"

	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/policy"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/scope"
)

// GrantFilter narrows a list of grants.
type GrantFilter struct {
	Mine bool // asked for by the caller, or by what the caller owns
	// Pending: waiting for somebody. Overdue: emergencies whose review is late.
	Pending, Overdue bool
	State, Principal string
	Limit            int
	After            string
}

// mayReadGrants reports whether the caller sees grants that are not its own.
func (e *Engine) mayReadGrants(q ledger.Query, c Caller) bool {
	return e.mayRead(q, c, policy.Resource{Kind: "Cluster", Name: "cluster"})
}

// sees: the requester, its person, whoever could sign or has signed, and who may
// read the cluster.
func (e *Engine) sees(q ledger.Query, c Caller, g ledger.Cosigned) bool {
	me := c.Session.Principal
	if g.Principal == me || q.Person(g.Principal) == me || e.mayReadGrants(q, c) {
		return true
	}
	if slices.ContainsFunc(g.Signed, func(s ledger.Signed) bool { return s.Principal == me }) {
		return true
	}
	return q.Asked(e.now().UnixMilli(), g, me)
}

// visible returns a grant that the caller may see, its state as of now.
func (e *Engine) visible(c Caller, id string) (g ledger.Cosigned, err error) {
	err = e.view(func(q ledger.Query) error {
		var ok bool
		if g, ok = q.Cosigned(id); !ok || !e.sees(q, c, g) {
			return grantNotFound(id)
		}
		return nil
	})
	return g, err
}

// Grants lists grants, oldest first: those that need signatures and those that
// needed none, which stand inside their leases.
func (e *Engine) Grants(_ context.Context, c Caller, f GrantFilter) ([]wire.Grant, error) {
	out := []wire.Grant{}
	limit := pageSize(f.Limit)
	err := e.view(func(q ledger.Query) error {
		take := func(g ledger.Cosigned) bool {
			if e.sees(q, c, g) {
				if w := e.wireGrant(q, c, g); f.takes(q, w, c) {
					out = append(out, w)
				}
			}
			return len(out) < limit
		}
		if f.Pending || f.Overdue { // few, however many there ever were
			unsettled(q, f.After, take)
			return nil
		}
		q.CosignedGrants(f.After, take)
		all := e.mayReadGrants(q, c)
		q.Leases(leaseAfter(f.After), func(l ledger.Lease) bool {
			if _, own := q.Cosigned(l.Grant.ID); !own && (all || l.Grant.Principal == c.Session.Principal) {
				if w := plainGrant(q, l); f.takes(q, w, c) {
					out = append(out, w)
				}
			}
			return len(out) < 2*limit
		})
		return nil
	})
	slices.SortStableFunc(out, func(a, b wire.Grant) int {
		switch { // ids begin with their time
		case a.ID < b.ID:
			return -1
		case a.ID > b.ID:
			return 1
		}
		return 0
	})
	return out[:min(len(out), limit)], err
}

// unsettled calls fn for grants with id > after that wait for approval or review,
// in order of age.
func unsettled(q ledger.Query, after string, fn func(ledger.Cosigned) bool) {
	ids := slices.Concat(q.Unfinished(maxNotices), q.Unreviewed(maxNotices))
	slices.Sort(ids)
	for _, id := range slices.Compact(ids) {
		if id <= after {
			continue
		}
		if g, ok := q.Cosigned(id); ok && !fn(g) {
			return
		}
	}
}

// leaseAfter is the lease id that a plain grant's id belongs to.
func leaseAfter(grant string) string {
	if grant == "" {
		return ""
	}
	return ledger.PrefixLease + ledger.BareID(grant)
}

func (f GrantFilter) takes(q ledger.Query, g wire.Grant, c Caller) bool {
	me := c.Session.Principal
	switch {
	case f.Mine && g.Principal != me && q.Person(g.Principal) != me:
		return false
	case f.Pending && g.State != wire.GrantWaiting && (g.Review == nil || g.Review.Done):
		return false
	case f.Overdue && (g.Review == nil || !g.Review.Overdue):
		return false
	case f.State != "" && g.State != f.State, f.Principal != "" && g.Principal != f.Principal:
		return false
	}
	return true
}

// Grant returns one grant.
func (e *Engine) Grant(_ context.Context, c Caller, id string) (wire.Grant, error) {
	var out wire.Grant
	err := e.view(func(q ledger.Query) error {
		if g, ok := q.Cosigned(id); ok && e.sees(q, c, g) {
			out = e.wireGrant(q, c, g)
			return nil
		}
		l, ok := q.Lease(ledger.PrefixLease + ledger.BareID(id))
		if !ok || l.Grant.ID != id || l.Grant.Principal != c.Session.Principal && !e.mayReadGrants(q, c) {
			return grantNotFound(id)
		}
		out = plainGrant(q, l)
		return nil
	})
	return out, err
}

// AwaitGrant returns the grant once its version is another than the given one,
// or when wait is over.
func (e *Engine) AwaitGrant(ctx context.Context, c Caller, id string, version uint64, wait time.Duration) (wire.Grant, error) {
	over := time.NewTimer(wait)
	defer over.Stop()
	look := time.NewTicker(time.Second) // a follower hears of changes by looking
	defer look.Stop()
	for {
		changed := e.changed.next()
		g, err := e.Grant(ctx, c, id)
		if err != nil || wait == 0 || g.Version != version {
			return g, err
		}
		select {
		case <-over.C:
			return g, nil
		case <-ctx.Done():
			return g, nil
		case <-changed:
		case <-look.C:
			if err := e.cfg.Log.Fresh(); err != nil {
				return g, err
			}
		}
	}
}

// plainGrant is a grant that stands inside its lease.
func plainGrant(q ledger.Query, l ledger.Lease) wire.Grant {
	g := l.Grant
	state := wire.GrantOpen
	if l.State == ledger.LeaseEnded {
		state = wire.GrantEnded
	}
	out := wire.Grant{
		ID: g.ID, Kind: wire.GrantAccess, State: state, Principal: g.Principal, Role: g.Role, Target: l.Target, Scope: g.Scope,
		TaskID: g.TaskID, Purpose: g.Purpose, DecisionID: g.DecisionID, RequestedAt: at(l.OpenedMS), EndsBy: atOrNil(l.NotAfterMS),
		MaxLeases: 1, Leases: []string{l.ID}, GrantWay: wire.GrantWay{Opens: opens(q, g.Role, l.Target, g.Scope)},
	}
	if e := l.End; e != nil {
		out.EndedAt, out.EndedBy, out.EndReason = atOrNil(e.SinceMS), e.By, e.Reason
	}
	return out
}

// wireGrant is a grant with a record, as the caller sees it.
func (e *Engine) wireGrant(q ledger.Query, c Caller, g ledger.Cosigned) wire.Grant {
	now := e.now().UnixMilli()
	out := wire.Grant{
		ID: g.ID, Kind: g.Kind, State: e.stateOf(q, g), Principal: g.Principal, Role: g.Role, TaskID: g.TaskID,
		RequestedAt: at(g.RequestedMS), CollectBefore: atOrNil(g.CollectBeforeMS), EndsBy: atOrNil(g.EndsByMS),
		MaxLeases: g.MaxLeases, Leases: append([]string{}, g.Leases...),
		Domain: g.Domain, Hash: g.Hash, Document: g.Document, StepUp: g.StepUp, Version: g.Version, GrantWay: wire.GrantWay{URL: e.grantURL(g.ID)},
	}
	if g.Kind == ledger.GrantChange {
		d, _ := g.Change()
		out.Reason, out.DecisionID = d.Reason, d.Decision
	} else {
		d, _ := g.Access()
		out.Target, out.Purpose, out.Reason, out.DecisionID = d.Target, d.Purpose, d.Reason, d.Decision
		out.Scope, _ = scope.Parse(d.Scope)
		out.Opens = opens(q, g.Role, d.Target, out.Scope)
	}
	if len(g.Needs) > 0 {
		out.Needs = e.wireNeeds(q, g)
	}
	for _, s := range g.Signed {
		why := q.Counts(s)
		out.Approvals = append(out.Approvals, wire.Approval{
			Principal: s.Principal, Key: s.Signature.Key, Kind: s.Signature.Kind, At: at(s.AtMS), Counts: why == "", Why: why, StepUp: s.StepUp,
		})
	}
	if g.End != nil {
		out.EndedAt, out.EndedBy, out.EndReason = atOrNil(g.End.AtMS), g.End.By, g.End.Note
	} else if out.State == wire.GrantVoid {
		out.EndReason = q.Stands(g)
	}
	out.Review = wireReview(q, g, now)
	switch {
	case out.State == wire.GrantWaiting, out.Review != nil && !out.Review.Done:
		out.WhyNot = q.MaySign(now, g, c.Session.Principal)
		out.MayApprove = out.WhyNot == ""
	default:
		out.WhyNot = "It is " + out.State + "."
	}
	return out
}

func wireReview(q ledger.Query, g ledger.Cosigned, now int64) *wire.Review {
	if g.Review == nil {
		return nil
	}
	have, eligible := q.ReviewQuorum(now, g)
	out := &wire.Review{
		Due: at(g.Review.DueMS), Done: g.Review.DoneMS != 0, Overdue: g.Review.DoneMS == 0 && g.Review.DueMS <= now,
		Needs: joinNeeds(g.Review.Needs, have, eligible), Verdicts: []wire.Verdict{},
	}
	for _, v := range g.Review.Verdicts {
		out.Verdicts = append(out.Verdicts, wire.Verdict{Principal: v.Principal, Verdict: v.Verdict, Note: v.Note, At: at(v.AtMS)})
	}
	return out
}

// Notice is a grant as it is told to those who may have to act on it.
type Notice struct {
	wire.Grant
	ApprovedSeq uint64 // the command that completed its quorum; 0: none yet
}

// Notice returns a grant to be told of; ok is false where there is none with a record.
func (e *Engine) Notice(id string) (out Notice, ok bool, err error) {
	err = e.view(func(q ledger.Query) error {
		var g ledger.Cosigned
		if g, ok = q.Cosigned(id); ok {
			out = Notice{e.wireGrant(q, Caller{}, g), g.ApprovedSeq()}
		}
		return nil
	})
	return out, ok, err
}

// maxNotices bounds what is looked at when a leader begins.
const maxNotices = 10_000

// Unsettled returns the ids of all grants that wait for approval or review.
func (e *Engine) Unsettled() (ids []string, err error) {
	err = e.view(func(q ledger.Query) error {
		ids = append(q.Unfinished(maxNotices), q.Unreviewed(maxNotices)...)
		return nil
	})
	return ids, err
}

// endDueGrants ends grants that nobody approved or collected in time.
func (e *Engine) endDueGrants(ctx context.Context, now int64, sleep *time.Duration) error {
	var due []ledger.Cosigned
	err := e.view(func(q ledger.Query) error {
		ids, next := q.DueGrants(now, 64)
		for _, id := range ids {
			if g, ok := q.Cosigned(id); ok {
				due = append(due, g)
			}
		}
		shorten(sleep, now, next)
		return nil
	})
	if err != nil {
		return err
	}
	for _, g := range due {
		res, err := e.commit(ctx, e.header(Caller{}), &ledger.EndGrant{GrantID: g.ID, State: ledger.GrantExpired})
		switch {
		case err == nil:
			e.changed.tell()
		case res.Code == "":
			return err
		default: // used or ended since the look, or our clock stepped back: leases wait for nobody's grant
			e.log.Debug("a grant that was due has not expired", "grant", g.ID, "code", res.Code)
		}
	}
	return nil
}
