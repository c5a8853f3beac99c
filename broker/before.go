package broker

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/scope"
)

// Bounds on a look back: an approver waits for it.
const (
	previousDays    = 30
	previousRecords = 20_000
	previousTime    = 200 * time.Millisecond
	// previousDetails bounds the union of scopes.
	previousDetails = 4 * scope.MaxDetails
)

// PreviousAccess says what a grant's requester had before on its role and
// target, looking back from the request. Whoever sees the grant may know.
func (e *Engine) PreviousAccess(_ context.Context, c Caller, grantID string) (wire.PreviousAccess, error) {
	var out wire.PreviousAccess
	err := e.view(func(q ledger.Query) error {
		b, err := e.lookBack(q, c, grantID)
		if err != nil {
			return err
		}
		b.look(q)
		out = b.told()
		return nil
	})
	return out, err
}

// lookBack prepares a look back from a grant that the caller may see.
func (e *Engine) lookBack(q ledger.Query, c Caller, id string) (*back, error) {
	b := &back{now: e.now, until: e.now().Add(previousTime), actions: map[string]bool{}}
	if g, ok := q.Cosigned(id); ok {
		if !e.sees(q, c, g) {
			return nil, grantNotFound(id)
		}
		if g.Kind == ledger.GrantChange {
			return nil, fault.New(fault.Invalid, "grant_is_change", "Grant %s is a change of configuration; a look back is for access only.", id)
		}
		d, err := g.Access()
		if err != nil {
			return nil, err
		}
		if b.asked, err = scope.Parse(d.Scope); err != nil {
			return nil, err
		}
		b.from = at(g.RequestedMS)
		b.out = wire.PreviousAccess{GrantID: id, Principal: g.Principal, Role: g.Role, Target: d.Target}
		return b, nil
	}
	l, ok := q.Lease(ledger.PrefixLease + ledger.BareID(id))
	if !ok || l.Grant.ID != id || l.Grant.Principal != c.Session.Principal && !e.mayReadGrants(q, c) {
		return nil, grantNotFound(id)
	}
	b.asked, b.from = l.Grant.Scope, at(l.OpenedMS)
	b.out = wire.PreviousAccess{GrantID: id, Principal: l.Grant.Principal, Role: l.Grant.Role, Target: l.Target}
	return b, nil
}

// back is one look back.
type back struct {
	now     func() time.Time
	until   time.Time // give up then
	records int
	asked   scope.Scope
	from    time.Time // of the request
	actions map[string]bool
	out     wire.PreviousAccess
}

// more counts a record, and reports whether there may be another.
func (b *back) more() bool {
	b.records++
	return b.records <= previousRecords && (b.records%128 != 0 || b.now().Before(b.until))
}

// look walks the leases before the request in slices, the newest first, each as
// long as all before it: what is nearest counts most if time runs out.
func (b *back) look(q ledger.Query) {
	floor := b.from.Add(-previousDays * 24 * time.Hour)
	end := b.from
	for length := time.Hour; end.After(floor); length *= 2 {
		begin := b.from.Add(-length)
		if begin.Before(floor) {
			begin = floor
		}
		if !q.LeasesBetween(b.out.Principal, ledger.FirstID(ledger.PrefixLease, begin), ledger.FirstID(ledger.PrefixLease, end), b.more, b.lease) {
			b.out.Cut = true
			break
		}
		end = begin
	}
	b.out.Since = end
	switch {
	case b.out.Count > 0:
		b.out.Seen = wire.SeenRecently
	case b.out.Cut:
		b.out.Seen = wire.SeenUnknown
	default:
		b.out.Seen = b.everBefore(q, end)
	}
}

// everBefore looks for a lease on the role before the days that were counted.
func (b *back) everBefore(q ledger.Query, end time.Time) string {
	found := false
	look := func() bool { return !found && b.more() }
	whole := q.LeasesBetween(b.out.Principal, "", ledger.FirstID(ledger.PrefixLease, end), look, func(l ledger.Lease) {
		found = found || b.counts(l) && l.Grant.Role == b.out.Role
	})
	switch {
	case found:
		return wire.SeenEarlier
	case whole:
		return wire.SeenNever
	}
	return wire.SeenUnknown
}

// counts leaves out what gave nothing, and the grant itself.
func (b *back) counts(l ledger.Lease) bool {
	return l.Target == b.out.Target && l.Grant.ID != b.out.GrantID && (l.End == nil || l.End.Reason != ledger.EndMintFailed)
}

// lease takes one earlier lease of the requester's in.
func (b *back) lease(l ledger.Lease) {
	if !b.counts(l) {
		return
	}
	b.out.OnTarget++
	if l.Grant.Role == b.out.Role {
		b.out.Count++
		if opened := at(l.OpenedMS); b.out.Last == nil || opened.After(*b.out.Last) {
			b.out.Last = &opened
		}
	}
	for _, d := range l.Grant.Scope {
		for _, a := range d.Actions {
			b.actions[a] = true
		}
		b.widen(d)
	}
}

// widen adds a detail to the union of what was allowed.
func (b *back) widen(d scope.Detail) {
	if scope.Covers(b.out.Scope, scope.Scope{d}) == nil || len(b.out.Scope) >= previousDetails {
		return
	}
	b.out.Scope = slices.DeleteFunc(b.out.Scope, func(have scope.Detail) bool { return scope.Covers(scope.Scope{d}, scope.Scope{have}) == nil })
	b.out.Scope = append(b.out.Scope, d)
}

// told compares what is asked with what was had, and says it in a sentence.
func (b *back) told() wire.PreviousAccess {
	out := b.out
	out.Days = previousDays
	if out.OnTarget > 0 {
		if part, ok := beyond(out.Scope, b.asked); ok {
			out.Wider, out.By = true, part.String()
		}
		for _, d := range b.asked {
			for _, a := range d.Actions {
				if !b.actions[a] && !slices.Contains(out.NewActions, a) {
					out.NewActions = append(out.NewActions, a)
				}
			}
		}
		slices.Sort(out.NewActions)
	} else {
		out.Wider = true
	}
	out.Text = previousText(out)
	return out
}

// beyond returns the first part of inner, one action on one table, that outer
// does not allow.
func beyond(outer, inner scope.Scope) (scope.Scope, bool) {
	for _, d := range inner {
		tables := d.Tables
		if len(tables) == 0 {
			tables = []scope.Table{{}}
		}
		for _, a := range d.Actions {
			for _, t := range tables {
				part := d
				part.Actions = []string{a}
				if part.Tables = nil; t.Name != "" {
					part.Tables = []scope.Table{t}
				}
				if s := (scope.Scope{part}); scope.Covers(outer, s) != nil {
					return s, true
				}
			}
		}
	}
	return nil, false
}

func previousText(p wire.PreviousAccess) string {
	var b strings.Builder
	times := func(n int) string {
		least := map[bool]string{true: "at least ", false: ""}[p.Cut]
		if n == 1 {
			return least + "once"
		}
		return fmt.Sprintf("%s%d times", least, n)
	}
	switch p.Seen {
	case wire.SeenRecently:
		fmt.Fprintf(&b, "%s in %d days", times(p.Count), p.Days)
	case wire.SeenEarlier:
		fmt.Fprintf(&b, "not in %d days, but before", p.Days)
	case wire.SeenNever:
		b.WriteString("first time on this role")
	case wire.SeenUnknown:
		fmt.Fprintf(&b, "not in %d days", p.Days)
		if p.Cut {
			b.Reset()
			b.WriteString("not lately")
		} else {
			b.WriteString(" (what was before could not all be looked at)")
		}
	}
	if others := p.OnTarget - p.Count; others > 0 {
		fmt.Fprintf(&b, ", %s with other roles of %s", times(others), p.Target)
	}
	switch {
	case p.OnTarget == 0:
	case len(p.NewActions) > 0:
		b.WriteString(", never with " + strings.Join(p.NewActions, ", "))
	case p.Wider:
		b.WriteString(", never as wide as this")
	}
	if p.Cut {
		fmt.Fprintf(&b, " (there are too many leases to look at: all since %s were)", p.Since.Format("2006-01-02 15:04 MST"))
	}
	return b.String()
}
