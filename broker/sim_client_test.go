package broker_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// intent is one credential that a client wants; it is asked for again, with the
// same key, until an answer has come.
type intent struct {
	id    int
	who   broker.Caller
	in    wire.AccessRequest
	tries int
	busy  bool
	done  bool
	lease string
}

// delivery is a credential that a client has received.
type delivery struct {
	who              broker.Caller
	lease, user, pwd string
	target           string
}

type startedTask struct {
	who broker.Caller
	id  string
}

const operator = "human:op"

var simPrincipals = []string{"workload:a", "workload:b", "agent:c"}

func callerOf(principal, instance string) broker.Caller {
	hash := sha256.Sum256([]byte(principal + "/" + instance))
	return broker.Caller{
		Session: ledger.Session{ID: ledger.SessionID(hash), TokenHash: hex.EncodeToString(hash[:]), Principal: principal, Instance: instance, Binding: "dpop",
			Thumbprint: "jkt-" + principal + "/" + instance, Method: "key"},
		Address: "192.0.2.1",
	}
}

func mustJSON(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

const simScopeRead = `[{"type":"memory","actions":["read"]}]`
const simScopeBoth = `[{"type":"memory","actions":["read","write"]}]`

// simRole writes a role's spec.
func simRole(scope, ttl, longest, caps, approvals string) json.RawMessage {
	s := fmt.Sprintf(`{"scope":%s,"ttl":{"default":%q,"max":%q},"caps":%s`, scope, ttl, longest, caps)
	if approvals != "" {
		s += `,"approvals":` + approvals
	}
	return json.RawMessage(s + "}")
}

const simPolicy = `
@id("everybody") permit (principal, action in [Action::"request", Action::"renew", Action::"delegate"], resource);
@id("short") @max_ttl("60s") permit (principal, action == Action::"request", resource == Role::"t2/ro");
@id("no-agents") forbid (principal is Agent, action == Action::"request", resource == Role::"t1/rw");
@id("operator") permit (principal == Human::"op", action, resource);
`

func simObjects() []ledger.ObjectChange {
	obj := func(kind, name string, spec json.RawMessage) ledger.ObjectChange {
		return ledger.ObjectChange{Kind: kind, Name: name, Spec: spec}
	}
	return []ledger.ObjectChange{
		obj("Zone", "z1", json.RawMessage(`{}`)),
		obj("Principal", operator, json.RawMessage(`{}`)),
		obj("Principal", "workload:a", json.RawMessage(`{}`)),
		obj("Principal", "workload:b", json.RawMessage(`{}`)),
		obj("Principal", "agent:c", json.RawMessage(`{"owner":"human:op"}`)),
		obj("Target", "t1", json.RawMessage(`{"type":"memory","zone":"z1","system":"t1"}`)),
		obj("Target", "t2", json.RawMessage(`{"type":"memory","system":"t2"}`)),
		obj("Role", "t1/ro", simRole(simScopeRead, "40s", "120s", `{"per_principal":6,"per_instance":2}`, "")),
		obj("Role", "t1/rw", simRole(simScopeBoth, "30s", "90s", `{"mints_per_minute":20}`, "")),
		obj("Role", "t2/ro", simRole(simScopeRead, "20s", "100s", `{"per_principal":4}`, "")),
		obj("Role", "t2/priv", simRole(simScopeBoth, "20s", "40s", `{}`, `[{"group":"dba","count":2}]`)),
		obj("Policy", "sim", mustJSON(ledger.PolicySpec{Text: simPolicy})),
	}
}

func (w *world) genesis() {
	raw, err := ledger.Encode(ledger.Header{AtMS: time.Now().UnixMilli()}, &ledger.Genesis{Cluster: "sim", Incarnation: 1, Objects: append(simObjects(), simPeople()...)})
	if err != nil {
		panic(err)
	}
	if res := w.commit(raw); !res.OK() {
		panic(res.Detail)
	}
	w.bringPeople()
}

// spawn runs one client's call to a process.
func (w *world) spawn(p *proc, name string, call func(ctx context.Context)) {
	w.actors++
	key := fmt.Sprintf("%s client %04d %s", p.n.id, w.actors, name)
	w.tracef("calls: %s", key)
	ctx, cancel := context.WithCancel(p.ctx)
	w.mu.Lock()
	w.clients++
	w.cancels[key] = cancel
	w.mu.Unlock()
	go func() {
		defer func() {
			w.mu.Lock()
			w.clients--
			delete(w.cancels, key)
			w.mu.Unlock()
			cancel()
		}()
		w.gate(&op{p: p, ctx: ctx, key: key})
		call(ctx)
	}()
}

// someProc returns whom a client calls: the leader mostly.
func (w *world) someProc() *proc {
	if w.leader != nil && w.rng.IntN(10) > 0 {
		return w.leader
	}
	return w.nodes[w.rng.IntN(len(w.nodes))].proc
}

// client has some client do something.
func (w *world) client() {
	p := w.someProc()
	if p == nil {
		return
	}
	who := callerOf(simPrincipals[w.rng.IntN(len(simPrincipals))], []string{"", "i1", "i2"}[w.rng.IntN(3)])
	switch n := w.rng.IntN(200); {
	case n >= 130:
		w.approver(p)
	case n >= 100:
		w.collect(p)
	case n < 35:
		w.present(who)
		w.want(p, who, w.someTask(who))
	case n < 50:
		w.insist(p)
	case n < 62:
		w.startTask(p, who)
	case n < 80:
		w.renew(p)
	case n < 86:
		w.revoke(p)
	case n < 93:
		w.endTask(p)
	default:
		w.login()
	}
}

// someTask returns an open task of the caller's, or "" half of the time.
func (w *world) someTask(who broker.Caller) string {
	var mine []string
	for _, t := range w.tasks {
		if t.who.Session.Principal == who.Session.Principal {
			mine = append(mine, t.id)
		}
	}
	if len(mine) == 0 || w.rng.IntN(2) == 0 {
		return ""
	}
	return mine[w.rng.IntN(len(mine))]
}

func (w *world) want(p *proc, who broker.Caller, task string) {
	it := &intent{id: len(w.intents), who: who}
	it.in = wire.AccessRequest{Role: []string{"t1/ro", "t1/ro", "t1/rw", "t2/ro", "t2/priv", "t2/priv"}[w.rng.IntN(6)], Task: task}
	if task == "" {
		it.in.Purpose = "simulated work"
	}
	if n := w.rng.IntN(4); n == 0 {
		it.in.TTL = fmt.Sprintf("%ds", 5+w.rng.IntN(130))
	}
	if w.rng.IntN(3) == 0 {
		it.in.Scope = json.RawMessage([]string{simScopeRead, simScopeBoth}[w.rng.IntN(2)])
	}
	if w.rng.IntN(4) > 0 {
		it.who.Idem = &ledger.Idem{Key: fmt.Sprintf("k%d", it.id), Hash: fmt.Sprintf("h%d", it.id)}
	}
	w.mu.Lock()
	w.intents = append(w.intents, it)
	w.mu.Unlock()
	w.ask(p, it)
}

// insist asks again for what was not answered, or was, when the client cannot
// know that its first call has succeeded.
func (w *world) insist(p *proc) {
	var open []*intent
	for _, it := range w.intents {
		if it.who.Idem != nil && it.tries < 6 && (!it.busy || w.rng.IntN(8) == 0) {
			open = append(open, it)
		}
	}
	if len(open) > 0 {
		w.ask(p, open[w.rng.IntN(len(open))])
	}
}

func (w *world) ask(p *proc, it *intent) {
	it.tries++
	it.busy = true
	w.spawn(p, fmt.Sprintf("request %d %s", it.id, it.in.Role), func(ctx context.Context) {
		answer, err := p.engine.Request(ctx, it.who, it.in)
		w.answered(it, answer, err)
	})
}

func (w *world) answered(it *intent, a wire.AccessAnswer, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	it.busy = false
	w.tracef("request %d: %s %s %v", it.id, a.LeaseID, a.Credential["username"], err)
	w.checkError(err)
	if err != nil {
		return
	}
	if a.Status == "waiting" {
		w.people.asked = append(w.people.asked, waitingGrant{who: it.who, id: a.GrantID})
		return
	}
	w.checkAnswer(it, a)
	if l, _ := w.query().Lease(a.LeaseID); l.State == ledger.LeaseOpen {
		it.lease = a.LeaseID
	}
	it.done = true
	w.got = append(w.got, delivery{who: it.who, lease: a.LeaseID, user: a.Credential["username"], pwd: a.Credential["password"], target: ledger.RoleTarget(a.Role)})
}

func (w *world) startTask(p *proc, who broker.Caller) {
	in := wire.StartTaskRequest{Name: fmt.Sprintf("task-%d", w.actors), Purpose: "simulated", TTL: fmt.Sprintf("%ds", 20+w.rng.IntN(200))}
	if w.rng.IntN(3) == 0 {
		in.Lapse = fmt.Sprintf("%ds", 5+w.rng.IntN(30))
	}
	if w.rng.IntN(3) == 0 {
		in.Scope = json.RawMessage([]string{simScopeRead, simScopeBoth}[w.rng.IntN(2)])
	}
	if len(w.tasks) > 0 && w.rng.IntN(2) == 0 {
		parent := w.tasks[w.rng.IntN(len(w.tasks))]
		who = parent.who
		in.Parent = parent.id
		in.For = simPrincipals[w.rng.IntN(len(simPrincipals))]
	}
	if w.rng.IntN(2) == 0 {
		who.Idem = &ledger.Idem{Key: in.Name, Hash: in.Name}
	}
	w.spawn(p, "start task", func(ctx context.Context) {
		t, err := p.engine.StartTask(ctx, who, in)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.tracef("task: %s %v", t.ID, err)
		w.checkError(err)
		if err == nil {
			owner := callerOf(t.Principal, who.Session.Instance)
			w.tasks = append(w.tasks, startedTask{who: owner, id: t.ID})
		}
	})
}

func (w *world) someDelivery() (delivery, bool) {
	if len(w.got) == 0 {
		return delivery{}, false
	}
	return w.got[max(0, len(w.got)-1-w.rng.IntN(8))], true
}

func (w *world) renew(p *proc) {
	d, ok := w.someDelivery()
	if !ok {
		return
	}
	who := d.who
	who.Idem = nil
	if w.rng.IntN(2) == 0 { // a client that retries its renewal
		k := fmt.Sprintf("renew-%s-%d", d.lease, w.rng.IntN(2))
		who.Idem = &ledger.Idem{Key: k, Hash: k}
	}
	w.spawn(p, "renew "+d.lease, func(ctx context.Context) {
		l, err := p.engine.Renew(ctx, who, d.lease, wire.RenewRequest{})
		w.mu.Lock()
		defer w.mu.Unlock()
		w.tracef("renewed: %s until %s %v", d.lease, l.ExpiresAt.Format("15:04:05"), err)
		w.checkError(err)
		if err == nil && p.n.offset.get().Abs() <= maxSkew { // beyond it the target's bound is early, and the node gives way
			w.checkRenewed(l)
		}
	})
}

func (w *world) revoke(p *proc) {
	var open []ledger.Lease // delivered or not
	w.query().Leases("", func(l ledger.Lease) bool {
		if l.State == ledger.LeaseOpen {
			open = append(open, l)
		}
		return true
	})
	if len(open) == 0 {
		return
	}
	l := open[w.rng.IntN(len(open))]
	who := callerOf(l.Grant.Principal, l.Grant.Instance)
	w.spawn(p, "revoke "+l.ID, func(ctx context.Context) {
		_, err := p.engine.Revoke(ctx, who, l.ID, wire.RevokeRequest{Reason: "simulated"})
		w.mu.Lock()
		defer w.mu.Unlock()
		w.checkError(err)
	})
}

func (w *world) endTask(p *proc) {
	if len(w.tasks) == 0 {
		return
	}
	t := w.tasks[w.rng.IntN(len(w.tasks))]
	wait := time.Duration(w.rng.IntN(2)) * 5 * time.Second
	beat := w.rng.IntN(2) == 0
	w.spawn(p, "end or beat task "+t.id, func(ctx context.Context) {
		var err error
		if beat {
			_, err = p.engine.HeartbeatTask(ctx, t.who, t.id)
		} else {
			_, err = p.engine.EndTask(ctx, t.who, t.id, wait)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.checkError(err)
	})
}

// login has a client use a credential that it holds.
func (w *world) login() {
	if d, ok := w.someDelivery(); ok {
		err := w.targets[d.target].sys.Login(d.user, d.pwd)
		w.tracef("login as %s: %v", d.user, err)
	}
}

// administer has the operator change or contain something.
func (w *world) administer() {
	p := w.someProc()
	if p == nil {
		return
	}
	if w.rng.IntN(3) == 0 {
		w.unsettle(p)
		return
	}
	who := callerOf(operator, "")
	if w.rng.IntN(2) == 0 {
		what := []string{"workload:a", "agent:c", "target/t2", "zone/z1", "human:p2"}[w.rng.IntN(5)]
		freeze := w.rng.IntN(3) == 0
		w.spawn(p, fmt.Sprintf("contain %s %v", what, freeze), func(ctx context.Context) {
			var err error
			if in := (wire.ContainRequest{What: what, Reason: "simulated"}); freeze {
				_, err = p.engine.Contain(ctx, who, in)
			} else {
				_, err = p.engine.Release(ctx, who, in)
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			w.checkError(err)
		})
		return
	}
	scope := []string{simScopeRead, simScopeBoth}[w.rng.IntN(2)]
	floor := []string{"", `[{"group":"dba","count":1}]`}[w.rng.IntN(2)]
	obj := wire.Object{Kind: "Role", Name: "t1/rw", Spec: simRole(scope, "30s", "90s", `{"mints_per_minute":20}`, "")}
	if w.rng.IntN(2) == 0 {
		obj = wire.Object{Kind: "Role", Name: "t2/ro", Spec: simRole(simScopeRead, "20s", "100s", `{"per_principal":4}`, floor)}
	}
	w.spawn(p, "apply "+obj.Name, func(ctx context.Context) {
		_, err := p.engine.Apply(ctx, who, wire.ApplyRequest{Objects: []wire.Object{obj}})
		w.mu.Lock()
		defer w.mu.Unlock()
		w.checkError(err)
	})
}

// askAgain: once all is well, whoever still waits for an answer gets one. A lease
// that runs out in the same instant is no answer: the client tries once more.
func (w *world) askAgain() {
	for _, it := range w.intents {
		var got error
		for tries := 0; tries < 2 && it.who.Idem != nil && !it.done && len(w.wrong) == 0; tries++ {
			got = w.askOnce(it)
		}
		switch fault.KindOf(got) {
		case fault.Denied, fault.ApprovalRequired, fault.NotFound, fault.RateLimited, fault.Invalid:
		case fault.Conflict:
			w.checkConflict(it, got)
		default:
			if got != nil {
				w.violated("retry", "request %d fails though all is well: %v", it.id, got)
			}
		}
	}
}

func (w *world) askOnce(it *intent) (got error) {
	p := w.leader
	w.spawn(p, fmt.Sprintf("last request %d", it.id), func(ctx context.Context) {
		a, err := p.engine.Request(ctx, it.who, it.in)
		got = err
		w.answered(it, a, err)
	})
	w.settle()
	return got
}
