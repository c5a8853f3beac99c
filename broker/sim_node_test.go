package broker_test

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/brokertest"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/ledger/ledgertest"
	"github.com/mayfly-broker/mayfly/issuers"
)

// node is one machine: what survives a crash of its process.
type node struct {
	w       *world
	id      string
	mu      sync.Mutex // the state is read by goroutines that time has woken together
	mem     *ledgertest.Mem
	applied int
	offset  skew // its clock less the true one
	boots   int
	proc    *proc
}

// proc is one process on a node: an engine and the log as it sees it. It
// implements broker.Log.
type proc struct {
	n      *node
	engine *broker.Engine
	ctx    context.Context
	cancel context.CancelFunc
	dead   atomic.Bool
	term   atomic.Uint64 // the newest it knows of

	leadEnd  context.CancelFunc
	leadDone chan struct{}
}

func (n *node) now() time.Time { return time.Now().Add(n.offset.get()) }

// skew is a length of time that the scheduler sets and every goroutine reads.
type skew struct{ ns atomic.Int64 }

func (s *skew) get() time.Duration  { return time.Duration(s.ns.Load()) }
func (s *skew) set(d time.Duration) { s.ns.Store(int64(d)) }

// start boots the node's process.
func (n *node) start() {
	n.boots++
	p := &proc{n: n}
	p.term.Store(n.w.term)
	p.ctx, p.cancel = context.WithCancel(context.Background())
	systems := map[string]*brokertest.System{}
	for name, t := range n.w.targets {
		systems[name] = t.sys
	}
	seed := sha256.Sum256(binary.BigEndian.AppendUint64(fmt.Appendf(nil, "%s/%d/", n.id, n.boots), n.w.seed))
	var err error
	p.engine, err = broker.New(broker.Config{
		Log: p, Node: n.id, Issuer: "https://mayfly.example", Clock: n.now, Random: randomReader{rand.NewChaCha8(seed)},
		Kinds: []issuers.Kind{&brokertest.Kind{Systems: systems, Clock: n.now, Wire: p.wire}},
	})
	if err != nil {
		panic(err)
	}
	n.proc = p
	n.w.tracef("%s starts", n.id)
}

type randomReader struct{ *rand.ChaCha8 }

var _ io.Reader = randomReader{}

// crash ends the node's process in the middle of whatever it does. What it has
// sent stays sent.
func (n *node) crash() {
	p := n.proc
	if p == nil {
		return
	}
	n.w.tracef("%s crashes", n.id)
	w := n.w
	w.mu.Lock()
	var mine []*op
	for _, o := range w.parked {
		if o.p == p {
			mine = append(mine, o)
		}
	}
	w.mu.Unlock()
	w.orphan(p, mine)
	if w.leader == p {
		w.leader = nil
	}
	p.dead.Store(true)
	n.proc = nil
	for _, o := range mine {
		w.release(o)
	}
	p.cancel()
}

// elect makes p the leader of a new term. The one before goes on for a while.
func (w *world) elect(p *proc) {
	if old := w.leader; old != nil {
		w.mu.Lock()
		var mine []*op
		for _, o := range w.parked {
			if o.p == old {
				mine = append(mine, o)
			}
		}
		w.mu.Unlock()
		w.orphan(old, mine)
	}
	w.term++
	w.leader = p
	w.catchUp(p.n, len(w.log))
	p.n.learn()
	w.tracef("%s leads in term %d", p.n.id, w.term)
}

// orphan decides what becomes of a leader's proposals when it leads no more:
// some had reached a majority and stand before the next leader's first.
func (w *world) orphan(p *proc, ops []*op) {
	slices.SortStableFunc(ops, func(a, b *op) int { return cmpKeys(a, b) })
	for _, o := range ops {
		if o.propose == nil || o.stage != "send" || w.leader != p || o.propose.term != w.term {
			continue
		}
		if w.chance(300) {
			w.tracef("orphan committed: %s", o.key)
			w.commit(o.propose.command)
			o.propose.err = errIndeterminate()
			o.stage = "reply"
		}
	}
}

// learn tells a node the present term: a deposed leader stops its work, a new
// one begins.
func (n *node) learn() {
	p := n.proc
	if p == nil || p.term.Load() == n.w.term && p.leadEnd != nil == (n.w.leader == p) {
		return
	}
	if p.leadEnd != nil {
		p.leadEnd()
		p.leadEnd = nil
	}
	p.term.Store(n.w.term)
	if n.w.leader != p {
		return
	}
	before := p.leadDone
	done := make(chan struct{})
	ctx, end := context.WithCancel(p.ctx)
	p.leadEnd, p.leadDone = end, done
	go func() {
		defer close(done)
		if before != nil {
			<-before
		}
		p.engine.Lead(ctx)
	}()
}

// catchUp applies what is committed to a node's state.
func (w *world) catchUp(n *node, upTo int) (last ledger.Result) {
	n.mu.Lock() // time may just have woken a reader
	defer n.mu.Unlock()
	for ; n.applied < upTo; n.applied++ {
		res, err := ledger.Apply(n.mem, w.log[n.applied])
		if err != nil {
			w.violated("law 1", "node %s stops at entry %d: %v", n.id, n.applied, err)
			return res
		}
		last = res
	}
	return last
}

// commit appends a command to the log.
func (w *world) commit(command []byte) ledger.Result {
	res, err := ledger.Apply(w.truth, command)
	if err != nil {
		w.violated("law 1", "the ledger stops at entry %d: %v", len(w.log), err)
	}
	w.log = append(w.log, command)
	w.committed(command, res)
	return res
}

// proposal is a command on its way.
type proposal struct {
	command []byte
	term    uint64 // in which the node led when it was made; 0: it did not
	res     ledger.Result
	err     error
}

func errIndeterminate() error {
	return &fault.Error{Kind: fault.Indeterminate, Code: "indeterminate", Detail: "The outcome is unknown."}
}

func errNoLeader() error {
	return &fault.Error{Kind: fault.Unavailable, Code: "no_leader", Detail: "This node does not lead."}
}

// decide says what becomes of a proposal.
func (w *world) decide(o *op) {
	pr := o.propose
	o.stage = "reply"
	switch {
	case pr.term == 0:
		pr.err = errNoLeader()
	case w.leader != o.p || pr.term != w.term, w.chance(w.prof.lost):
		pr.err = errIndeterminate()
	default:
		want := w.commit(pr.command)
		pr.res = w.catchUp(o.p.n, len(w.log))
		if !reflect.DeepEqual(want, pr.res) {
			w.violated("replicas", "%s answers %+v, others %+v", o.p.n.id, pr.res, want)
		}
		w.tracef("committed %d: %s: %s %s", len(w.log)-1, o.key, pr.res.Code, pr.res.ID)
		if w.chance(w.prof.replyLost) {
			pr.res, pr.err = ledger.Result{}, errIndeterminate()
		}
	}
	if pr.err != nil {
		w.tracef("proposal fails: %s: %v", o.key, pr.err)
	}
}

// ---- what the engine sees ----

// gate stops the calling goroutine until the scheduler lets it go on. A
// goroutine of a dead process ends here.
func (w *world) gate(o *op) {
	o.wake = make(chan struct{})
	w.mu.Lock()
	if o.p != nil && o.p.dead.Load() {
		w.mu.Unlock()
		runtime.Goexit()
	}
	w.parked = append(w.parked, o)
	w.mu.Unlock()
	<-o.wake
	if o.p != nil && o.p.dead.Load() {
		runtime.Goexit()
	}
}

// Propose implements broker.Log.
func (p *proc) Propose(ctx context.Context, command []byte, _ bool) (ledger.Result, error) {
	d, err := ledger.Decode(command)
	if err != nil {
		return ledger.Result{}, err
	}
	sum := sha256.Sum256(command)
	o := &op{p: p, ctx: ctx, stage: "send", key: p.n.id + " propose " + d.Type + " " + hex.EncodeToString(sum[:6]), propose: &proposal{command: slices.Clone(command)}}
	if p.n.w.leader == p {
		o.propose.term = p.n.w.term
	}
	p.n.w.gate(o)
	return o.propose.res, o.propose.err
}

// View implements broker.Log.
func (p *proc) View(fn func(ledger.Reader) error) error {
	if p.dead.Load() {
		runtime.Goexit()
	}
	p.n.mu.Lock()
	defer p.n.mu.Unlock()
	return fn(p.n.mem)
}

// Fresh implements broker.Log.
func (p *proc) Fresh() error { return nil }

// Term implements broker.Log.
func (p *proc) Term() uint64 { return p.term.Load() }
