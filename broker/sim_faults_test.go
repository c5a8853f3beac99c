package broker_test

import (
	"cmp"
	"slices"
	"time"

	"github.com/mayfly-broker/mayfly/broker/ledger"
)

func cmpKeys(a, b *op) int { return cmp.Compare(a.key, b.key) }

// maxSkew is how far off a leader's clock may be: beyond it the node steps down
// (HAZARDS 24).
const maxSkew = 2 * time.Second

// electable returns the processes that may lead.
func (w *world) electable() []*proc {
	var out []*proc
	for _, n := range w.nodes {
		if n.proc != nil && n.offset.get().Abs() <= maxSkew {
			out = append(out, n.proc)
		}
	}
	return out
}

// fault lets something go wrong, or come right again; false when nothing did.
func (w *world) fault() bool {
	some := w.nodes[w.rng.IntN(len(w.nodes))]
	where := w.targets[w.names[w.rng.IntN(len(w.names))]]
	switch {
	case w.leader == nil && w.rng.IntN(4) == 0:
		able := w.electable()
		if len(able) == 0 {
			return false
		}
		w.elect(able[w.rng.IntN(len(able))])
	case w.leader != nil && w.leader.n.offset.get().Abs() > maxSkew && w.rng.IntN(3) == 0:
		w.tracef("%s gives way: its clock is off", w.leader.n.id)
		w.leader = nil
	case w.leader != nil && w.chance(w.prof.depose):
		if able := w.electable(); len(able) > 0 {
			w.elect(able[w.rng.IntN(len(able))])
		}
	case some.proc != nil && w.chance(w.prof.crash):
		some.crash()
	case some.proc == nil && w.chance(100):
		some.start()
	case some.proc != nil && some.proc.term.Load() != w.term && w.chance(300):
		w.tracef("%s learns of term %d", some.id, w.term)
		some.learn()
	case some.applied < len(w.log) && w.chance(200):
		w.catchUp(some, some.applied+1+w.rng.IntN(len(w.log)-some.applied))
	case w.chance(w.prof.jump):
		w.jump(some)
	case w.chance(w.prof.outage), where.down && w.chance(100):
		where.down = !where.down
		w.tracef("%s down: %v", where.sys.Name, where.down)
	case w.chance(w.prof.stick):
		w.stick(where)
	case w.chance(w.prof.goAway):
		w.goAway()
	case w.chance(w.prof.change):
		w.administer()
	default:
		return false
	}
	return true
}

// jump moves a node's clock: mostly within what a leader may be off, at times
// by far more, and then it soon leads no more.
func (w *world) jump(n *node) {
	if w.rng.IntN(8) == 0 {
		n.offset.set(time.Duration(1-2*w.rng.IntN(2)) * 10 * time.Minute)
	} else {
		n.offset.set(time.Duration(w.rng.IntN(2*w.prof.skewMS+1)-w.prof.skewMS) * time.Millisecond)
	}
	w.tracef("%s's clock is off by %s", n.id, n.offset.get())
}

// stick makes an account poison, or frees all.
func (w *world) stick(t *simTarget) {
	if len(t.stuck) > 0 {
		w.tracef("%s frees %v", t.sys.Name, t.stuck)
		t.free()
		t.stuck = nil
		return
	}
	if all := t.sys.Accounts(); len(all) > 0 {
		name := all[w.rng.IntN(len(all))].Name
		t.sys.Stick(name, true)
		t.stuck = append(t.stuck, name)
		w.tracef("%s sticks %s", t.sys.Name, name)
	}
}

// goAway has one client give up in the middle of its call.
func (w *world) goAway() {
	w.mu.Lock()
	var keys []string
	for k := range w.cancels {
		keys = append(keys, k)
	}
	w.mu.Unlock()
	if len(keys) == 0 {
		return
	}
	slices.Sort(keys)
	k := keys[w.rng.IntN(len(keys))]
	w.tracef("gives up: %s", k)
	w.mu.Lock()
	cancel := w.cancels[k]
	w.mu.Unlock()
	cancel()
}

// query reads the committed state.
func (w *world) query() ledger.Query { return ledger.NewQuery(w.truth) }
