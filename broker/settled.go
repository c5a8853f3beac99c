package broker

import (
	"sync"

	"github.com/mayfly-broker/mayfly/broker/ledger"
)

// settled remembers which mints this leader has seen through. A lease that it
// opened itself, in its present term, and every mint of which has returned,
// has nothing in flight at the target: one look proves that it is gone. Every
// other lease that ends early waits for its mint deadline and is looked at a
// second time (law 2, HAZARDS 8).
type settled struct {
	mu sync.Mutex
	by map[string]*minting
}

// minting is what is known of one lease's mints until its deadline.
type minting struct {
	term       uint64
	opened     bool // by this engine, in that term
	inFlight   int
	deadlineMS int64
}

const maxSettled = 1 << 17

// begin notes that a mint is about to be sent.
func (s *settled) begin(l ledger.Lease, term uint64, opened bool, nowMS int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.by == nil {
		s.by = map[string]*minting{}
	}
	m := s.by[l.ID]
	if m == nil {
		s.prune(nowMS)
		m = &minting{term: term, opened: opened}
		s.by[l.ID] = m
	}
	if m.term != term {
		m.opened = false // another leader may have minted between
	}
	m.inFlight++
	m.deadlineMS = max(m.deadlineMS, l.MintDeadlineMS)
}

// end notes that a mint has returned, whatever it came to.
func (s *settled) end(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.by[id]; m != nil {
		m.inFlight--
	}
}

// holds reports whether nothing of the lease can be in flight any more.
func (s *settled) holds(id string, term uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.by[id]
	return m != nil && m.opened && m.term == term && m.inFlight == 0
}

// prune forgets, when there are many, what the mint deadline has settled. The
// caller holds mu.
func (s *settled) prune(nowMS int64) {
	if len(s.by) < maxSettled {
		return
	}
	for id, m := range s.by {
		if m.inFlight == 0 && m.deadlineMS < nowMS {
			delete(s.by, id)
		}
	}
}
