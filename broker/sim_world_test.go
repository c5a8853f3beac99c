package broker_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"github.com/mayfly-broker/mayfly/broker/brokertest"
	"github.com/mayfly-broker/mayfly/broker/ledger/ledgertest"
)

// The simulation runs the engine's own code, several nodes of it, over a log
// and targets that fail in every way they are allowed to. It is cooperative:
// each goroutine of an engine stops at every call that leaves the process, and
// the scheduler below, with one seeded source of chance, says who goes on and
// what the world answers. The clock is the bubble's (testing/synctest): time
// passes only when the scheduler sleeps.

// profile says how often things go wrong in one seed, each per mille of the
// occasions. Every seed draws its own, so that some seeds try one thing hard.
type profile struct {
	lost, replyLost     int // proposals
	unreachable, unsent int // statements: no connection; sent, answer lost
	slow                int // statements that wait on the target before they act
	crash, depose       int
	jump, outage, stick int
	goAway              int // clients
	change              int // roles are changed, things contained
	tempo               int // percent of the steps in which time passes
	skewMS              int // clocks of nodes differ by at most so much from the true one
}

func drawProfile(r *rand.Rand) profile {
	pick := func(levels ...int) int { return levels[r.IntN(len(levels))] }
	return profile{
		lost: pick(0, 20, 200), replyLost: pick(0, 20, 200),
		unreachable: pick(0, 20, 200), unsent: pick(0, 20, 200), slow: pick(0, 100, 500),
		crash: pick(0, 3, 15), depose: pick(0, 5, 25), jump: pick(0, 3, 20),
		outage: pick(0, 3, 10), stick: pick(0, 5), goAway: pick(0, 5, 25), change: pick(0, 10, 30),
		tempo: pick(3, 8, 14), skewMS: pick(0, 500, 2000),
	}
}

// op is a goroutine that waits for the scheduler.
type op struct {
	p     *proc // nil: a client's own
	key   string
	stage string
	wake  chan struct{}
	ctx   context.Context

	propose *proposal
	stmt    *statement
}

// runnable says whether the scheduler may pick the op now.
func (o *op) runnable() bool {
	if o.stmt == nil || o.stage != "wait" {
		return true
	}
	return o.stmt.done || o.ctx.Err() != nil
}

// pass lets true time pass: the run's own, which stands still while anything
// can run.
func pass(d time.Duration) { <-time.After(d) }

// journal is what a run leaves behind.
type journal struct {
	trace []string
	sum   hash.Hash
	keep  bool
	wrong []string
}

// simulated are the parts of the world.
type simulated struct {
	nodes   []*node
	leader  *proc
	term    uint64
	targets map[string]*simTarget
	names   []string // of targets
	log     [][]byte
	truth   *ledgertest.Mem
	clockMS int64
}

// world is one run.
type world struct {
	seed uint64
	rng  *rand.Rand
	prof profile
	calm bool // nothing fails any more

	mu      sync.Mutex // guards parked, clients and answers while goroutines run
	notes   sync.Mutex // guards trace and wrong
	parked  []*op
	clients int
	cancels map[string]context.CancelFunc
	intents []*intent
	got     []delivery
	tasks   []startedTask

	simulated
	journal
	people simHumans

	steps  int
	actors int
}

func newWorld(seed uint64, keep bool, bugs brokertest.Bugs) *world {
	w := &world{
		seed: seed, rng: rand.New(rand.NewPCG(seed, 0x6d6179666c79)), cancels: map[string]context.CancelFunc{},
		simulated: simulated{targets: map[string]*simTarget{}, truth: &ledgertest.Mem{}},
		journal:   journal{sum: sha256.New(), keep: keep},
	}
	w.prof = drawProfile(w.rng)
	for _, name := range []string{"t1", "t2"} {
		w.addTarget(name, bugs)
	}
	for i := range 3 {
		w.nodes = append(w.nodes, &node{w: w, id: fmt.Sprintf("n%d", i+1), mem: &ledgertest.Mem{}})
	}
	w.genesis()
	for _, n := range w.nodes {
		n.start()
	}
	w.elect(w.nodes[0].proc)
	return w
}

// violated records that a law does not hold.
func (w *world) violated(law, format string, args ...any) {
	w.notes.Lock()
	defer w.notes.Unlock()
	w.wrong = append(w.wrong, law+": "+fmt.Sprintf(format, args...))
}

func (w *world) tracef(format string, args ...any) {
	w.notes.Lock()
	defer w.notes.Unlock()
	line := time.Now().UTC().Format("15:04:05.000 ") + fmt.Sprintf(format, args...)
	fmt.Fprintln(w.sum, line)
	if w.keep {
		w.trace = append(w.trace, line)
	}
}

// chance is true in permille of the cases, never in calm times.
func (w *world) chance(permille int) bool {
	return !w.calm && permille > 0 && w.rng.IntN(1000) < permille
}

// pick returns a parked op that may go on, chosen by chance; the order in which
// goroutines came to the gate does not matter.
func (w *world) pick() *op {
	w.mu.Lock()
	defer w.mu.Unlock()
	slices.SortStableFunc(w.parked, func(a, b *op) int { return strings.Compare(a.key, b.key) })
	var able []*op
	for _, o := range w.parked {
		if o.runnable() {
			able = append(able, o)
		}
	}
	if len(able) == 0 {
		return nil
	}
	return able[w.rng.IntN(len(able))]
}

// release lets an op's goroutine go on.
func (w *world) release(o *op) {
	w.mu.Lock()
	if i := slices.Index(w.parked, o); i >= 0 {
		w.parked = slices.Delete(w.parked, i, i+1)
	}
	w.mu.Unlock()
	close(o.wake)
}

// run goes through the three parts of a seed: trouble, healing, quiet.
func (w *world) run(steps int) {
	for w.steps = 0; w.steps < steps && len(w.wrong) == 0; w.steps++ {
		synctest.Wait()
		w.checkAlways()
		w.step()
	}
	if len(w.wrong) == 0 {
		w.heal()
		w.quiesce()
	}
	w.stop()
}

// step lets one thing happen.
func (w *world) step() {
	if w.fault() {
		return
	}
	switch n := w.rng.IntN(100); {
	case n < 15 && w.busy() < 8:
		w.client()
	case n < 66:
		if o := w.pick(); o != nil {
			w.advance(o)
			return
		}
		w.sleep()
	case n < 100-w.prof.tempo:
		if !w.runStatement() {
			w.sleep()
		}
	default:
		w.sleep()
	}
}

func (w *world) busy() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.clients
}

// sleep lets true time pass, mostly little.
func (w *world) sleep() {
	var d time.Duration
	switch n := w.rng.IntN(20); {
	case n < 14:
		d = time.Duration(1+w.rng.IntN(200)) * time.Millisecond
	case n < 19:
		d = time.Duration(200+w.rng.IntN(2000)) * time.Millisecond
	default:
		d = time.Duration(2+w.rng.IntN(18)) * time.Second
	}
	w.tracef("time passes: %s", d)
	pass(d)
}

// advance moves one op by one stage.
func (w *world) advance(o *op) {
	switch {
	case o.propose != nil && o.stage == "send":
		w.decide(o)
	case o.stmt != nil && o.stage == "send":
		w.send(o)
	case o.stmt != nil && o.stage == "wait":
		w.hear(o)
	default:
		w.tracef("go on: %s", o.key)
		w.release(o)
	}
}

// heal ends all trouble: clocks agree, targets answer, all nodes run.
func (w *world) heal() {
	w.tracef("healing")
	w.calm = true
	for _, name := range w.names {
		t := w.targets[name]
		t.down = false
		t.free()
	}
	for _, n := range w.nodes {
		n.offset.set(0)
		if n.proc == nil {
			n.start()
		}
	}
	if w.leader == nil {
		w.elect(w.nodes[w.rng.IntN(len(w.nodes))].proc)
	}
	for _, n := range w.nodes {
		n.learn()
	}
}

// settle runs everything that can run, until only time can help.
func (w *world) settle() {
	for {
		synctest.Wait()
		w.checkAlways()
		if len(w.wrong) > 0 {
			return
		}
		if o := w.pick(); o != nil {
			w.advance(o)
		} else if !w.runStatement() {
			return
		}
	}
}

// quiesce lets all leases run out and checks what must then hold.
func (w *world) quiesce() {
	healed := time.Now()
	w.settle()
	for range 30 { // stragglers of the time before
		pass(time.Second)
		w.settle()
	}
	w.askAgain()
	w.giveUpWaiting()
	end := w.lastEnd()
	for len(w.wrong) == 0 && time.Now().Before(end.Add(settleBound)) {
		pass(time.Second + time.Duration(w.rng.IntN(2000))*time.Millisecond)
		w.settle()
		w.checkOverdue(healed)
	}
	w.checkQuiet()
}

// stop ends every goroutine of the run.
func (w *world) stop() {
	for _, n := range w.nodes {
		n.crash()
	}
	for {
		synctest.Wait()
		w.mu.Lock()
		left := slices.Clone(w.parked)
		w.mu.Unlock()
		if len(left) == 0 {
			return
		}
		for _, o := range left {
			w.release(o)
		}
	}
}
