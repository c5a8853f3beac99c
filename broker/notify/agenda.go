package notify

import (
	"cmp"
	"slices"
	"time"
)

// timer is a message that is due by time, where its grant still is what it was.
type timer struct {
	due   time.Time
	kind  string
	grant string
}

func (t timer) compare(o timer) int {
	return cmp.Or(t.due.Compare(o.due), cmp.Compare(t.grant, o.grant), cmp.Compare(t.kind, o.kind))
}

// timers returns what a grant has yet to remind of after an instant. Of reviews
// that are overdue for days, only the last day's is left at now.
func timers(v View, after, now time.Time) []timer {
	var out []timer
	if v.State == stateWaiting && v.CollectBefore.After(v.RequestedAt) {
		half := v.RequestedAt.Add(v.CollectBefore.Sub(v.RequestedAt) / 2).UTC().Truncate(time.Millisecond)
		out = append(out, timer{half, GrantReminder, v.ID})
	}
	if v.Review != nil && !v.Review.Done && !v.Review.Due.IsZero() {
		due := v.Review.Due.UTC().Truncate(time.Millisecond)
		if late := max(now.Sub(due), after.Sub(due)+time.Millisecond); late > 0 {
			due = due.Add(late / overdueEvery * overdueEvery)
		}
		if !due.After(after) {
			due = due.Add(overdueEvery)
		}
		out = append(out, timer{due, ReviewOverdue, v.ID})
	}
	return slices.DeleteFunc(out, func(t timer) bool { return !t.due.After(after) })
}

// agenda holds timers in order, at most limit of them. Where there are more, the
// earliest are kept; partial says that others were left out, which must be read
// again once these are done. The zero value but for limit is empty.
type agenda struct {
	limit   int
	list    []timer // sorted where !loose
	loose   bool
	partial bool
	horizon time.Time // where partial: nothing later is kept
}

// add takes timers; those it has already are not taken twice.
func (a *agenda) add(ts ...timer) {
	for _, t := range ts {
		if a.partial && t.due.After(a.horizon) {
			continue
		}
		a.list, a.loose = append(a.list, t), true
		if len(a.list) >= 2*a.limit {
			a.settle()
		}
	}
}

func (a *agenda) settle() {
	if a.loose {
		slices.SortFunc(a.list, timer.compare)
		a.list, a.loose = slices.CompactFunc(a.list, func(x, y timer) bool { return x.compare(y) == 0 }), false
	}
	if len(a.list) <= a.limit {
		return
	}
	horizon := a.list[a.limit-1].due
	cut := a.limit
	for cut < len(a.list) && a.list[cut].due.Equal(horizon) {
		cut++ // a cursor is an instant: what is due at one stays together
	}
	if cut < len(a.list) {
		clear(a.list[cut:])
		a.list, a.partial, a.horizon = a.list[:cut], true, horizon
	}
}

// next returns the earliest timer; false where there is none.
func (a *agenda) next() (timer, bool) {
	a.settle()
	if len(a.list) == 0 {
		return timer{}, false
	}
	return a.list[0], true
}

// drop takes the earliest timer away.
func (a *agenda) drop() {
	a.settle()
	if len(a.list) > 0 {
		a.list = a.list[1:]
	}
}

// exhausted says that what was left out must be read now.
func (a *agenda) exhausted() bool { return a.partial && len(a.list) == 0 }
