package vault

import (
	"context"
	"sync"
)

// locks keep mints of one lease apart within this process; between processes the
// token's id and its mark do.
type locks struct {
	mu   sync.Mutex
	held map[string]*lock
}

type lock struct {
	ch    chan struct{}
	users int
}

func newLocks() *locks { return &locks{held: map[string]*lock{}} }

// take waits for the lock of a lease, at most until ctx ends.
func (l *locks) take(ctx context.Context, id string) (release func(), err error) {
	l.mu.Lock()
	k, ok := l.held[id]
	if !ok {
		k = &lock{ch: make(chan struct{}, 1)}
		l.held[id] = k
	}
	k.users++
	l.mu.Unlock()
	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.users--; k.users == 0 {
			delete(l.held, id)
		}
	}
	select {
	case k.ch <- struct{}{}:
		return func() { <-k.ch; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
