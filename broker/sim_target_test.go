package broker_test

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/broker/brokertest"
	"github.com/mayfly-broker/mayfly/issuers"
)

// simTarget is a system with the statements that are on it.
type simTarget struct {
	w       *world
	sys     *brokertest.System
	down    bool
	pending []*statement
	stuck   []string
}

// statement is one statement that has reached its target: it acts, or is ended
// with its connection, whatever became of the client that sent it.
type statement struct {
	call   brokertest.Call
	act    func() error
	notYet time.Time // it waits for a lock until then
	done   bool
	err    error
}

func (w *world) addTarget(name string, bugs brokertest.Bugs) {
	t := &simTarget{w: w, sys: brokertest.NewSystem(name)}
	t.sys.Bugs = bugs
	t.sys.Changed = w.accountChanged
	t.sys.Fenced = t.fenced
	w.targets[name], w.names = t, append(w.names, name)
}

func unreachable(detail string) error {
	return &issuers.Error{Kind: issuers.Unreachable, Detail: detail}
}

func unknown(detail string) error { return &issuers.Error{Kind: issuers.Unknown, Detail: detail} }

// fenced ends the connections of older terms with what they are doing.
func (t *simTarget) fenced(term uint64) {
	t.pending = slices.DeleteFunc(t.pending, func(s *statement) bool {
		if s.call.Term >= term {
			return false
		}
		s.done, s.err = true, unknown("the connection was terminated")
		t.w.tracef("%s ends a %s of term %d", t.sys.Name, s.call.Verb, s.call.Term)
		return true
	})
}

// free lets stuck accounts be ended, and locks go.
func (t *simTarget) free() {
	for _, name := range t.stuck {
		t.sys.Stick(name, false)
	}
	for _, s := range t.pending {
		s.notYet = time.Time{}
	}
}

// wire carries one statement of a process to its target.
func (p *proc) wire(ctx context.Context, c brokertest.Call, act func() error) error {
	var names []string
	for _, l := range c.Leases {
		names = append(names, l.ID)
	}
	o := &op{p: p, ctx: ctx, stage: "send", key: p.n.id + " " + c.Verb + " " + c.System + " " + strings.Join(names, ","), stmt: &statement{call: c, act: act}}
	p.n.w.gate(o)
	return o.stmt.err
}

// send brings a statement to its target, or not.
func (w *world) send(o *op) {
	t := w.targets[o.stmt.call.System]
	if t.down || w.chance(w.prof.unreachable) || o.ctx.Err() != nil {
		w.tracef("not sent: %s", o.key)
		o.stmt.err = unreachable("no connection")
		w.release(o)
		return
	}
	if w.chance(w.prof.slow) {
		o.stmt.notYet = time.Now().Add(time.Duration(w.rng.IntN(25_000)) * time.Millisecond)
	}
	o.stage = "wait"
	t.pending = append(t.pending, o.stmt)
	w.tracef("sent: %s, waits %s", o.key, max(0, time.Until(o.stmt.notYet)))
}

// hear gives the client of a statement its answer, or tells it nothing.
func (w *world) hear(o *op) {
	if !o.stmt.done || w.chance(w.prof.unsent) {
		// The client hears nothing more; the statement may still act.
		lost := *o.stmt
		t := w.targets[lost.call.System]
		if i := slices.Index(t.pending, o.stmt); i >= 0 {
			t.pending[i] = &lost
		}
		o.stmt = &statement{call: lost.call, err: unknown("the connection broke")}
	}
	w.tracef("heard: %s: %v", o.key, o.stmt.err)
	w.release(o)
}

// runStatement lets one statement act on its target.
func (w *world) runStatement() bool {
	type place struct {
		t *simTarget
		s *statement
	}
	var able []place
	for _, name := range w.names {
		t := w.targets[name]
		for _, s := range t.pending {
			if !time.Now().Before(s.notYet) {
				able = append(able, place{t, s})
			}
		}
	}
	if len(able) == 0 {
		return false
	}
	x := able[w.rng.IntN(len(able))]
	x.t.pending = slices.DeleteFunc(x.t.pending, func(s *statement) bool { return s == x.s })
	x.s.err = x.s.act()
	x.s.done = true
	w.tracef("%s did %s of term %d: %v", x.t.sys.Name, x.s.call.Verb, x.s.call.Term, x.s.err)
	return true
}
