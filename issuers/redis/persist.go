package redis

import (
	"context"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"
)

// saveTimeout bounds one write of the users to a node's disk.
const saveTimeout = 20 * time.Second

// saver writes one node's users to its disk. Who asks while a write is under way
// shares the next one: a write that began earlier may have missed its change.
type saver struct {
	busy sync.Mutex // held while a write is under way
	mu   sync.Mutex
	next *write
}

type write struct {
	done chan struct{}
	err  error
}

// save returns once a write that began after the call has ended.
func (s *saver) save(ctx context.Context, do func() error) error {
	s.mu.Lock()
	w, mine := s.next, false
	if w == nil {
		w, mine = &write{done: make(chan struct{})}, true
		s.next = w
	}
	s.mu.Unlock()
	if mine {
		s.busy.Lock()
		s.mu.Lock()
		s.next = nil
		s.mu.Unlock()
		w.err = do()
		s.busy.Unlock()
		close(w.done)
	}
	select {
	case <-w.done:
		return w.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (is *Issuer) saver(addr string) *saver {
	is.mu.Lock()
	defer is.mu.Unlock()
	s, ok := is.savers[addr]
	if !ok {
		s = &saver{}
		is.savers[addr] = s
	}
	return s
}

// pipeliner is a client or one connection of it. Who holds a connection saves on
// that one: waiting for a second could wait for itself.
type pipeliner interface{ Pipeline() goredis.Pipeliner }

// save has a node write its users to disk, where the target says so.
func (is *Issuer) save(ctx context.Context, addr string, c pipeliner) error {
	if is.spec.Persist == persistNone {
		return nil
	}
	return is.saver(addr).save(ctx, func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), saveTimeout)
		defer cancel()
		pipe := c.Pipeline()
		if is.spec.Persist == persistACLFile {
			pipe.Do(ctx, "ACL", "SAVE")
		} else {
			pipe.Do(ctx, "CONFIG", "REWRITE")
		}
		_, err := pipe.Exec(ctx)
		return err
	})
}

// keep makes a new user survive a restart of the masters. Replicas follow when
// the next withdrawal saves there: a user that a restart loses is safe.
func (is *Issuer) keep(ctx context.Context, nodes []node) error {
	if is.spec.Persist == persistNone {
		return nil
	}
	var group errgroup.Group
	for _, n := range nodes {
		if n.replica {
			continue
		}
		group.Go(func() error {
			l, err := is.fleet.to(n.addr)
			if err != nil {
				return err
			}
			if err := is.save(ctx, n.addr, l.mint); err != nil {
				return sentError(n.addr+": write the users to disk (persist: "+is.spec.Persist+")", err)
			}
			return nil
		})
	}
	return group.Wait()
}
