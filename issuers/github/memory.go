package github

import (
	"context"
	"sync"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// maxLeases bounds the memory: 100 mints a second for ten minutes. A token that could
// not be remembered could not be withdrawn, so nothing is minted beyond.
const maxLeases = 60_000

// memory is what one process knows of the tokens that it minted, by lease. It is
// never written anywhere; a restart forgets it.
type memory struct {
	mu     sync.Mutex
	leases map[string]*record
	swept  int // leases after the last sweep
}

// record is one lease's. Whoever holds the turn may read and write the rest.
type record struct {
	turn chan struct{}
	// seen are the generations whose mints began here.
	seen    map[uint64]bool
	highest uint64
	held    []token
	// revoked says that GitHub confirmed at least one revocation.
	revoked bool
	// lost is when the last token ends that GitHub may have made without our having
	// it; zero if there is none.
	lost time.Time
	// ends is when no token of the lease can live any more; guarded by memory.mu.
	ends time.Time
}

// token is a token that lives, as far as is known.
type token struct {
	text       secret.Text
	generation uint64
}

func newMemory() *memory { return &memory{leases: map[string]*record{}} }

// enter returns the lease's record, with its turn taken, made if there is none. Nil
// means that the memory is full.
func (m *memory) enter(ctx context.Context, l issuers.Lease, create bool) (*record, error) {
	r := m.find(l, create)
	if r == nil {
		return nil, nil
	}
	select {
	case r.turn <- struct{}{}:
		return r, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (m *memory) find(l issuers.Lease, create bool) *record {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	if len(m.leases) >= min(2*m.swept+1024, maxLeases) {
		for id, r := range m.leases {
			if now.After(r.ends) {
				delete(m.leases, id)
			}
		}
		m.swept = len(m.leases)
	}
	r := m.leases[l.ID]
	if r == nil {
		if !create || len(m.leases) >= maxLeases {
			return nil
		}
		r = &record{turn: make(chan struct{}, 1), seen: map[uint64]bool{}}
		m.leases[l.ID] = r
	}
	if create {
		// Also a mint that is refused is worth remembering that long: without it, nobody
		// could say that there is no token.
		if ends := lastEnd(l); ends.After(r.ends) {
			r.ends = ends
		}
	}
	return r
}

func (r *record) leave() { <-r.turn }

// whole says whether every mint of the lease began in this process.
func (r *record) whole(generation uint64) bool {
	for g := uint64(1); g <= generation; g++ {
		if !r.seen[g] {
			return false
		}
	}
	return generation > 0
}

// lastEnd is when every token of a lease has ended by itself, at the latest: none is
// made after the mint deadline, by GitHub's clock, of which this leaves a minute.
func lastEnd(l issuers.Lease) time.Time {
	return l.MintDeadline.Add(tokenLife + time.Minute).Truncate(time.Second)
}
