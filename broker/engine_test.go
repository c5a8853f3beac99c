package broker_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/brokertest"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/issuers"
)

// rig is one engine over a log and two targets in memory.
type rig struct {
	t       testing.TB
	log     *brokertest.Log
	kind    *brokertest.Kind
	t1, t2  *brokertest.System
	engine  *broker.Engine
	logged  *bytes.Buffer
	endLead func()
	wired   atomic.Pointer[wireFunc]
	asked   atomic.Pointer[beforeFunc]
	told    atomic.Pointer[afterFunc]
}

// wireFunc, beforeFunc and afterFunc stand between the engine and the world; tests change
// them while the leader runs.
type (
	wireFunc   = func(context.Context, brokertest.Call, func() error) error
	beforeFunc = func(ledger.Decoded) error
	afterFunc  = func(ledger.Decoded, ledger.Result) error
)

// wire has statements carried by f; nil carries them at once.
func (r *rig) wire(f wireFunc) { r.wired.Store(&f) }

// before has f asked before a command is committed; nil asks nobody.
func (r *rig) before(f beforeFunc) { r.asked.Store(&f) }

// after has f told of what was committed; nil tells nobody.
func (r *rig) after(f afterFunc) { r.told.Store(&f) }

// newRig returns a rig after genesis with the objects of the simulation.
func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{t: t, log: &brokertest.Log{}, t1: brokertest.NewSystem("t1"), t2: brokertest.NewSystem("t2"), logged: &bytes.Buffer{}}
	r.kind = &brokertest.Kind{Systems: map[string]*brokertest.System{"t1": r.t1, "t2": r.t2}}
	r.kind.Wire = func(ctx context.Context, c brokertest.Call, act func() error) error {
		if f := r.wired.Load(); f != nil && *f != nil {
			return (*f)(ctx, c, act)
		}
		return act()
	}
	r.log.Before = func(d ledger.Decoded) error {
		if f := r.asked.Load(); f != nil && *f != nil {
			return (*f)(d)
		}
		return nil
	}
	r.log.After = func(d ledger.Decoded, res ledger.Result) error {
		if f := r.told.Load(); f != nil && *f != nil {
			return (*f)(d, res)
		}
		return nil
	}
	var err error
	r.engine, err = broker.New(broker.Config{
		Log: r.log, Node: "n1", Issuer: "https://mayfly.example", Kinds: []issuers.Kind{r.kind}, Hint: broker.Hint{Addresses: []string{"mayfly.example:443"}},
		Logger: slog.New(slog.NewJSONHandler(r.logged, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.engine.Begin(t.Context(), ledger.Genesis{Cluster: "c", Incarnation: 1, Objects: simObjects()}); err != nil {
		t.Fatal(err)
	}
	return r
}

// lead runs the leader's work until the test ends.
func (r *rig) lead() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { r.engine.Lead(ctx); close(done) }()
	r.endLead = func() { cancel(); <-done }
}

// stop ends the leader's work; a bubble waits for every goroutine.
func (r *rig) stop() {
	if r.endLead != nil {
		r.endLead()
	}
}

func (r *rig) request(who broker.Caller, in wire.AccessRequest) (wire.AccessAnswer, error) {
	return r.engine.Request(context.Background(), who, in)
}

func (r *rig) must(who broker.Caller, in wire.AccessRequest) wire.AccessAnswer {
	r.t.Helper()
	a, err := r.request(who, in)
	if err != nil {
		r.t.Fatalf("request %s: %v", in.Role, err)
	}
	return a
}

// fails checks the kind and code of an error.
func (r *rig) fails(err error, kind fault.Kind, code string) {
	r.t.Helper()
	var fe *fault.Error
	if !errors.As(err, &fe) || fe.Kind != kind || code != "" && fe.StableCode() != code {
		r.t.Fatalf("error %v, wanted %s %s", err, kind, code)
	}
}

func (r *rig) lease(id string) (l ledger.Lease) {
	r.log.Query(func(q ledger.Query) { l, _ = q.Lease(id) })
	return l
}

// put writes an object as the operator.
func (r *rig) put(kind, name string, spec json.RawMessage) {
	r.t.Helper()
	if _, err := r.engine.Apply(context.Background(), callerOf(operator, ""), wire.ApplyRequest{Objects: []wire.Object{{Kind: kind, Name: name, Spec: spec}}}); err != nil {
		r.t.Fatal(err)
	}
}

// within waits for something that the leader is to bring about.
func (r *rig) within(d time.Duration, what string, ok func() bool) {
	r.t.Helper()
	for end := time.Now().Add(d); !ok(); {
		if time.Now().After(end) {
			r.t.Fatalf("not within %s: %s", d, what)
		}
		wait(10 * time.Millisecond)
	}
}

// wait lets the bubble's clock run.
func wait(d time.Duration) { <-time.After(d) }

// fail returns a wire on which statements of a verb to a system fail.
func fail(system, verb string, err error) func(context.Context, brokertest.Call, func() error) error {
	return func(_ context.Context, c brokertest.Call, act func() error) error {
		if c.System == system && c.Verb == verb {
			return err
		}
		return act()
	}
}

var (
	appCaller   = callerOf("workload:a", "")
	agentCaller = callerOf("agent:c", "")
)

func withKey(who broker.Caller, key string) broker.Caller {
	who.Idem = &ledger.Idem{Key: key, Hash: "h-" + key}
	return who
}
