package raftstore

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// clocks remembers how far the other nodes' wall clocks are from this one's.
type clocks struct {
	mu  sync.Mutex
	off map[string]clockReading
}

type clockReading struct {
	offset time.Duration // theirs minus ours
	at     time.Time
}

// clockMemory is how long a reading counts: it outlives an election, so that a
// new leader knows the old one's clock too.
const clockMemory = time.Minute

func (c *clocks) note(nodeID string, offset time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.off == nil {
		c.off = map[string]clockReading{}
	}
	c.off[nodeID] = clockReading{offset, time.Now()}
}

// median returns the median offset of the voters whose clock is known, self
// (offset 0) among them, and the known ones. Of two middle values it takes the
// one nearer to this node's clock: between two clocks nobody can say which is
// wrong, and both giving way would leave no leader.
func (c *clocks) median(self string, voters []string) (time.Duration, map[string]time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	known := map[string]time.Duration{}
	for _, id := range voters {
		if id == self {
			known[id] = 0
		} else if r, ok := c.off[id]; ok && time.Since(r.at) < clockMemory {
			known[id] = r.offset
		}
	}
	offsets := make([]time.Duration, 0, len(known))
	for _, o := range known {
		offsets = append(offsets, o)
	}
	if len(offsets) == 0 {
		return 0, known
	}
	slices.Sort(offsets)
	low, high := offsets[(len(offsets)-1)/2], offsets[len(offsets)/2]
	if cmp.Compare(low.Abs(), high.Abs()) <= 0 {
		return low, known
	}
	return high, known
}

// age returns how long ago then was, by the monotonic clock or the wall clock,
// whichever says longer: the monotonic one stands still in a suspended machine.
func age(then time.Time) time.Duration {
	now := time.Now()
	return max(now.Sub(then), now.Round(0).Sub(then.Round(0)))
}
