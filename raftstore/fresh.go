package raftstore

import (
	"crypto/tls"
	"sync"
	"time"
)

// freshness knows how recent the state is: the newest moment of which it is
// certain that everything committed by then is applied here.
type freshness struct {
	s  *Store
	mu sync.Mutex
	// asOf is that moment; marks are later ones whose index is not applied yet.
	asOf  time.Time
	marks []mark
}

type mark struct {
	index uint64
	asOf  time.Time
}

const maxMarks = 32

func newFreshness(s *Store) *freshness { return &freshness{s: s} }

// accept takes in that by asOf nothing beyond index was committed.
func (f *freshness) accept(index uint64, asOf time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.settle()
	apart := f.s.cfg.Timing.FreshFor / 20
	if n := len(f.marks); n > 0 && asOf.Sub(f.marks[n-1].asOf) < apart || n == maxMarks {
		return // there are enough to wait for
	}
	f.marks = append(f.marks, mark{index, asOf})
	f.settle()
}

// settle moves asOf over the marks that have been applied.
func (f *freshness) settle() {
	applied := f.s.parts.state.applied.get()
	n := 0
	for n < len(f.marks) && f.marks[n].index <= applied {
		if f.marks[n].asOf.After(f.asOf) {
			f.asOf = f.marks[n].asOf
		}
		n++
	}
	f.marks = append(f.marks[:0], f.marks[n:]...)
}

func (f *freshness) check(limit time.Duration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.settle()
	if f.asOf.IsZero() || age(f.asOf) > limit {
		return ErrStale
	}
	return nil
}

// Fresh returns nil when this node has applied everything that was committed
// [Timing].FreshFor ago (500 ms by default), confirmed by a quorum; otherwise
// [ErrStale], as on a node that is cut off, whose disk or Apply is stuck, or
// that belongs to no cluster. It costs no round trip.
func (s *Store) Fresh() error {
	if s.failure.Load() != nil {
		return ErrStale
	}
	return s.fresh.check(s.cfg.Timing.FreshFor)
}

// beaconIdle is how long a leader may say nothing before its line is dropped.
const beaconIdle = 10 * time.Second

// answerBeacons serves a leader's beacon line.
//
// An answer is numbered by its order on the line. The leader returns the number
// of an answer that it held before it looked at its commit index, so the index
// is at least as recent as the moment when this node sent that answer: an age
// measured by one clock, this node's, however long a frame was on the way.
func (s *Store) answerBeacons(conn *tls.Conn) {
	defer func() { _ = conn.Close() }()
	state := conn.ConnectionState()
	leader := peerID(&state)
	var sent [16]time.Time // when the latest answers were sent, by number
	for number := uint64(1); ; number++ {
		if err := conn.SetReadDeadline(time.Now().Add(beaconIdle)); err != nil {
			return
		}
		b, err := readBeacon(conn)
		if err != nil {
			return // the leader dials again
		}
		s.beacons.clocks.note(leader, b.clock.Sub(s.cfg.Clock()))
		if b.asOf > 0 && b.asOf < number && number-b.asOf < uint64(len(sent)) {
			s.fresh.accept(b.index, sent[b.asOf%uint64(len(sent))])
		}
		sent[number%uint64(len(sent))] = time.Now()
		a := answer{
			term: s.raft.CurrentTerm(), seq: b.seq, applied: s.parts.state.applied.get(),
			clock: s.cfg.Clock(), flags: s.disk.flags(),
		}
		if s.cfg.Hooks.Digest != nil {
			a.digest = s.cfg.Hooks.Digest()
		}
		if err := conn.SetWriteDeadline(time.Now().Add(beaconIdle)); err != nil {
			return
		}
		if _, err := conn.Write(a.encode()); err != nil {
			return
		}
	}
}
