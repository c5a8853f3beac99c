package raftstore

import (
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// intake is the door to raft: it bounds what waits behind it, and can be closed
// and emptied before raft is shut down, because raft never answers what it
// still queues then.
type intake struct {
	room    *semaphore.Weighted // bytes
	waiting sync.WaitGroup

	mu   sync.RWMutex // held for writing only to close
	shut bool
}

func newIntake() intake { return intake{room: semaphore.NewWeighted(maxInFlightBytes)} }

// run starts a call of raft's, unless the intake is closed. Nothing else waits
// for call to end, so it must hand its answer over without blocking.
func (i *intake) run(call func()) error {
	i.mu.RLock()
	defer i.mu.RUnlock()
	if i.shut {
		return ErrClosed
	}
	i.waiting.Go(call)
	return nil
}

func (i *intake) close() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.shut = true
}

// drain waits for the calls under way, and reports whether all ended in time.
func (i *intake) drain(limit time.Duration) bool {
	drained := make(chan struct{})
	go func() {
		i.waiting.Wait()
		close(drained)
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-drained:
		return true
	case <-timer.C:
		return false
	}
}
