package raftstore

import (
	"context"
	"sync"
)

// progress is an index that only grows, and that others can wait for.
type progress struct {
	mu    sync.Mutex
	index uint64
	moved chan struct{} // closed when index grows; nil while nobody waits
}

func (p *progress) get() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.index
}

func (p *progress) advance(index uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if index <= p.index {
		return
	}
	p.index = index
	if p.moved != nil {
		close(p.moved)
		p.moved = nil
	}
}

// wait returns when the index has reached target, or with ctx's error, or with
// ErrStopped once stop is closed.
func (p *progress) wait(ctx context.Context, target uint64, stop <-chan struct{}) error {
	for {
		p.mu.Lock()
		if p.index >= target {
			p.mu.Unlock()
			return nil
		}
		if p.moved == nil {
			p.moved = make(chan struct{})
		}
		moved := p.moved
		p.mu.Unlock()
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		case <-stop:
			return ErrStopped
		}
	}
}
