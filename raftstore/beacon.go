package raftstore

import (
	"context"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// beacons is a leader's side of the beacons. Ten times a second, and whenever a
// Barrier asks, it begins a round: it notes the commit index and asks every
// peer for its term. Once a quorum has answered that it knows of no later term,
// the round is confirmed: when it began, this node was the leader, and nothing
// beyond that index was committed (ReadIndex: Raft dissertation §6.4).
//
// raft.VerifyLeader will not do: it counts the answer to a heartbeat that was
// sent before the question.
type beacons struct {
	s      *Store
	clocks clocks

	mu        sync.Mutex
	reign     *reign // nil while not leading
	seq       uint64 // of the newest round
	open      []round
	confirmed round // the newest confirmed one
	waiters   map[uint64]chan struct{}
	lines     map[string]*line

	disksLow, disksFull atomic.Bool // a quorum of voters is
}

type round struct {
	seq   uint64
	began time.Time
	index uint64
}

// reign is one time of leadership.
type reign struct {
	term  uint64
	over  chan struct{} // closed when it ends
	lines sync.WaitGroup
}

func newBeacons(s *Store) *beacons {
	return &beacons{s: s, waiters: map[uint64]chan struct{}{}, lines: map[string]*line{}}
}

// run begins a round at every tick, and keeps one line to each member.
func (b *beacons) run(ctx context.Context) {
	tick := time.NewTicker(b.s.cfg.Timing.Beacon)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		b.mu.Lock()
		if b.reign != nil {
			b.keepLines()
			b.heedDisks()
			if len(b.open) < maxMarks { // else nobody answers, and more rounds would not help
				b.begin()
			}
		}
		b.mu.Unlock()
	}
}

// start begins a reign: from here on rounds are confirmed for term. Everything
// committed before it must be applied already.
func (b *beacons) start(term uint64) *reign {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := &reign{term: term, over: make(chan struct{})}
	b.reign = r
	b.keepLines()
	b.begin()
	return r
}

// finish ends r and waits for its lines.
func (b *beacons) finish(r *reign) {
	close(r.over)
	b.mu.Lock()
	for _, l := range b.lines {
		l.drop()
	}
	b.reign, b.open, b.confirmed = nil, nil, round{}
	b.disksLow.Store(false)
	b.disksFull.Store(false)
	clear(b.waiters)
	clear(b.lines)
	b.mu.Unlock()
	r.lines.Wait()
}

// members returns the configuration in force.
func (s *Store) members() []raft.Server {
	return s.raft.GetConfiguration().Configuration().Servers
}

// keepLines opens lines to new members and drops those of old ones. Under mu.
func (b *beacons) keepLines() {
	current := map[string]bool{}
	for _, m := range b.s.members() {
		id, addr := string(m.ID), string(m.Address)
		if id == b.s.cfg.NodeID {
			continue
		}
		current[id] = true
		if l := b.lines[id]; l != nil {
			if l.addr == addr {
				continue
			}
			l.drop()
		}
		ctx, drop := context.WithCancel(context.Background())
		l := &line{b: b, reign: b.reign, id: id, addr: addr, drop: drop, kick: make(chan struct{}, 1)}
		b.lines[id] = l
		b.reign.lines.Go(func() { l.run(ctx) })
	}
	for id, l := range b.lines {
		if !current[id] {
			l.drop()
			delete(b.lines, id)
		}
	}
}

// begin begins a round. Under mu.
func (b *beacons) begin() round {
	b.seq++
	began := time.Now()
	applied := b.s.parts.state.applied.get()
	r := round{b.seq, began, b.s.parts.log.visible(b.s.raft.CommitIndex(), applied)}
	b.open = append(b.open, r)
	b.kickAll()
	b.tally()
	return r
}

func (b *beacons) kickAll() {
	for _, l := range b.lines {
		select {
		case l.kick <- struct{}{}:
		default:
		}
	}
}

// tally confirms the rounds that a quorum has answered. Under mu.
func (b *beacons) tally() {
	r := b.s.raft
	if r.State() != raft.Leader || r.CurrentTerm() != b.reign.term {
		return
	}
	var acked []uint64
	for _, m := range b.s.members() {
		switch l := b.lines[string(m.ID)]; {
		case m.Suffrage != raft.Voter:
		case string(m.ID) == b.s.cfg.NodeID:
			acked = append(acked, b.seq)
		case l != nil:
			acked = append(acked, l.acked)
		default:
			acked = append(acked, 0)
		}
	}
	if len(acked) == 0 {
		return
	}
	slices.Sort(acked)
	reached := acked[(len(acked)-1)/2] // a majority is at or beyond it
	n := 0
	for n < len(b.open) && b.open[n].seq <= reached {
		b.confirmed = b.open[n]
		if w := b.waiters[b.open[n].seq]; w != nil {
			close(w)
			delete(b.waiters, b.open[n].seq)
		}
		n++
	}
	if n == 0 {
		return
	}
	b.open = append(b.open[:0], b.open[n:]...)
	b.s.fresh.accept(b.confirmed.index, b.confirmed.began)
	b.kickAll() // the followers want to know
}

// confirm runs a round and returns its index once it is confirmed.
func (b *beacons) confirm(ctx context.Context) (uint64, error) {
	b.mu.Lock()
	reign := b.reign
	if reign == nil {
		b.mu.Unlock()
		return 0, ErrNotLeader
	}
	r := b.begin()
	if b.confirmed.seq >= r.seq {
		b.mu.Unlock()
		return r.index, nil
	}
	done := make(chan struct{})
	b.waiters[r.seq] = done
	b.mu.Unlock()
	select {
	case <-done:
		return r.index, nil
	case <-reign.over:
		return 0, ErrNotLeader
	case <-ctx.Done():
		b.mu.Lock()
		delete(b.waiters, r.seq)
		b.mu.Unlock()
		return 0, ctx.Err()
	}
}

// line is the leader's connection to one peer: one question at a time.
type line struct {
	b     *beacons
	reign *reign
	id    string
	addr  string
	drop  context.CancelFunc
	kick  chan struct{} // something is new

	// Under b.mu:
	acked   uint64    // newest round that the peer confirmed
	tried   bool      // it has answered or failed to, at least once
	applied uint64    // its applied index
	flags   byte      // its disk
	heard   time.Time // of its last answer
}

func (l *line) run(ctx context.Context) {
	const minWait, maxWait = 20 * time.Millisecond, 500 * time.Millisecond
	wait := minWait
	for ctx.Err() == nil {
		began := time.Now()
		if conn, err := l.b.s.net.id.dial(ctx, l.addr, l.id, protoBeacon); err == nil {
			l.talk(ctx, conn)
		}
		l.b.mu.Lock()
		l.tried = true
		l.b.mu.Unlock()
		if time.Since(began) > maxWait {
			wait = minWait
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
			wait = min(2*wait, maxWait)
		}
	}
}

// talk asks and listens until the connection fails or the line is dropped.
func (l *line) talk(ctx context.Context, conn net.Conn) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer func() { _ = conn.Close() }()
	var got [4]time.Time // when the latest answers arrived, by number
	var number, asked, told uint64
	for {
		b, fresh := l.next(got[:], number, asked, told)
		if !fresh {
			select {
			case <-l.kick:
				continue
			case <-ctx.Done():
				return
			}
		}
		sent := time.Now()
		b.beacon.clock = l.b.s.cfg.Clock()
		if conn.SetDeadline(sent.Add(l.b.s.cfg.Timing.FreshFor)) != nil {
			return
		}
		if _, err := conn.Write(b.beacon.encode()); err != nil {
			return
		}
		a, err := readAnswer(conn)
		if err != nil || a.seq != b.beacon.seq {
			return
		}
		asked, told = b.beacon.seq, b.told
		number++
		got[number%uint64(len(got))] = time.Now()
		l.heed(a, b.beacon.clock, sent)
	}
}

type outgoing struct {
	beacon beacon
	told   uint64 // the confirmed round that it tells of
}

// next makes the next beacon, if there is something that the peer was not asked
// or told. got holds the arrival times of the answers up to number.
func (l *line) next(got []time.Time, number, asked, told uint64) (outgoing, bool) {
	b := l.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.reign != l.reign || b.seq == asked && b.confirmed.seq == told {
		return outgoing{}, false
	}
	o := outgoing{beacon{term: l.reign.term, seq: b.seq, index: b.confirmed.index}, b.confirmed.seq}
	if b.confirmed.seq == 0 {
		return o, true
	}
	for n := number; n > 0 && number-n < uint64(len(got)); n-- {
		if got[n%uint64(len(got))].Before(b.confirmed.began) {
			o.beacon.asOf = n
			break
		}
	}
	return o, true
}

// heed takes in an answer to the beacon sent at sent, when our clock showed clock.
func (l *line) heed(a answer, clock, sent time.Time) {
	b := l.b
	trip := time.Since(sent)
	b.clocks.note(l.id, a.clock.Sub(clock.Add(trip/2)))
	if hook := b.s.cfg.Hooks.OnDigest; hook != nil && len(a.digest) > 0 {
		hook(l.id, a.digest)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	l.tried, l.applied, l.flags, l.heard = true, a.applied, a.flags, time.Now()
	if a.term > l.reign.term || b.reign != l.reign || b.lines[l.id] != l {
		return // there is a later leader; or this reign, or this line, is over
	}
	l.acked = max(l.acked, a.seq)
	b.tally()
}

// heedDisks works out whether a quorum of voters has room for proposals. Voters
// that have not said are taken to have. Under mu.
func (b *beacons) heedDisks() {
	voters, low, floor := 0, 0, 0
	for _, m := range b.s.members() {
		if m.Suffrage != raft.Voter {
			continue
		}
		voters++
		if l := b.lines[string(m.ID)]; l != nil {
			low += int(l.flags & flagDiskLow)
			floor += int(l.flags & flagDiskFloor / flagDiskFloor)
		}
	}
	b.disksLow.Store(voters > 0 && voters-low < voters/2+1)
	b.disksFull.Store(voters > 0 && voters-floor < voters/2+1)
}

// diskAllows reports whether a quorum of voters has room for a proposal.
func (b *beacons) diskAllows(urgent bool) bool {
	if urgent {
		return !b.disksFull.Load()
	}
	return !b.disksLow.Load()
}

// allTried reports whether every line has answered, or failed to, in this reign.
func (b *beacons) allTried() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.lines {
		if !l.tried {
			return false
		}
	}
	return true
}
