package identity

import (
	"crypto/sha256"
	"sync"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
)

// defaultReplayEntries: about 50 bytes each, so some 50 MiB when full, and
// room for 8,000 proofs a second over the whole window.
const defaultReplayEntries = 1 << 20

// replayBucket is the grain at which entries are dropped together.
const replayBucket = 10 * time.Second

// replayCache remembers the proofs that were accepted until they are too old
// to be accepted again. It never forgets early: when it is full it refuses, and
// when the clock steps back it refuses what it may have dropped.
type replayCache struct {
	capacity int

	mu      sync.Mutex
	entries int
	buckets map[int64]map[proofKey]struct{} // by expiry
	floor   int64                           // every bucket below this has been dropped
}

// proofKey is half a SHA-256 of thumbprint and jti: short, and of one size
// whatever the client chose.
type proofKey [16]byte

func newReplayCache(capacity int) *replayCache {
	if capacity <= 0 {
		capacity = defaultReplayEntries
	}
	return &replayCache{capacity: capacity, buckets: map[int64]map[proofKey]struct{}{}}
}

// claim records that key jkt used jti in a proof that no verifier accepts
// after expires. The second time it fails with [CodeProofReplayed]; when full,
// with [CodeReplayFull] (kind rate_limited).
func (c *replayCache) claim(jkt, jti string, expires, now time.Time) *fault.Error {
	sum := sha256.Sum256([]byte(jkt + "\x00" + jti))
	key := proofKey(sum[:16])
	grain := int64(replayBucket / time.Second)
	bucket := expires.Unix()/grain + 1 // wholly past when dropped

	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop(now.Unix() / grain)
	if bucket < c.floor {
		return unauthenticated(CodeProofInvalid, "The proof is older than what this node remembers; sign a new one.")
	}
	// A client may sign two proofs with one jti and different iat, so look in
	// every bucket: there are as many as the window has grains.
	for _, seen := range c.buckets {
		if _, dup := seen[key]; dup {
			return unauthenticated(CodeProofReplayed, "The proof was used before; every request needs its own.")
		}
	}
	if c.entries >= c.capacity {
		e := fault.New(fault.RateLimited, CodeReplayFull, "Too many proofs in a short time; try again soon.")
		e.RetryAfter = replayBucket
		return e
	}
	if c.buckets[bucket] == nil {
		c.buckets[bucket] = map[proofKey]struct{}{}
	}
	c.buckets[bucket][key] = struct{}{}
	c.entries++
	return nil
}

// drop forgets the buckets below current, whose proofs have all expired.
func (c *replayCache) drop(current int64) {
	if current <= c.floor {
		return
	}
	for bucket, seen := range c.buckets {
		if bucket < current {
			c.entries -= len(seen)
			delete(c.buckets, bucket)
		}
	}
	c.floor = current
}
