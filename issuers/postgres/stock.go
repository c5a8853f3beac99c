package postgres

import (
	"sync"
	"sync/atomic"

	"github.com/mayfly-broker/mayfly/secret"
)

// cheapIterations is where making a verifier costs less than the bookkeeping of
// a stock: about 0.15 ms.
const cheapIterations = 256

// pair is a password and what the target stores of it.
type pair struct {
	password secret.Text
	verifier string
}

// stock makes pairs ahead of need, while no mint is under way. A verifier of 4096
// iterations costs 0.5 to 2.5 ms of our CPU, of which a waiting client then sees
// nothing. A pair belongs to nobody until it is taken, and is taken once. Without
// a ready pair, take makes one on the spot.
type stock struct {
	iterations int
	ready      chan pair
	wake       chan struct{}
	stop       chan struct{}
	busy       atomic.Int32
	begin, end sync.Once
	filler     sync.WaitGroup
}

func newStock(iterations, size int) *stock {
	if iterations <= cheapIterations {
		size = 0
	}
	return &stock{iterations: iterations, ready: make(chan pair, size), wake: make(chan struct{}, 1), stop: make(chan struct{})}
}

// take returns a pair that nobody else has.
func (s *stock) take() (pair, error) {
	select {
	case p := <-s.ready:
		return p, nil
	default:
		return s.make()
	}
}

func (s *stock) make() (pair, error) {
	p := pair{password: newPassword()}
	var err error
	p.verifier, err = newVerifier(p.password, s.iterations)
	return p, err
}

// enter and leave stand around a mint. The first leave starts the filler, so
// that a target which is never used costs nothing.
func (s *stock) enter() { s.busy.Add(1) }

func (s *stock) leave() {
	if s.busy.Add(-1) > 0 || cap(s.ready) == 0 {
		return
	}
	s.begin.Do(func() { s.filler.Go(s.fill) })
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *stock) fill() {
	for {
		select {
		case <-s.stop:
			return
		case <-s.wake:
		}
		for s.busy.Load() == 0 && len(s.ready) < cap(s.ready) {
			p, err := s.make()
			if err != nil { // take will meet the same error, and return it
				break
			}
			select {
			case <-s.stop:
				return
			case s.ready <- p: // the filler alone sends, so there is room
			}
		}
	}
}

// close ends the filler and waits for it.
func (s *stock) close() {
	s.begin.Do(func() {}) // a leave after close starts nothing
	s.end.Do(func() { close(s.stop) })
	s.filler.Wait()
}
