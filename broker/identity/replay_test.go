package identity

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
)

func TestReplayCacheRemembersUntilExpiry(t *testing.T) {
	c := newReplayCache(10)
	expires := noon.Add(time.Minute)
	if err := c.claim("k", "j", expires, noon); err != nil {
		t.Fatal(err)
	}
	for _, after := range []time.Duration{0, time.Second, time.Minute} {
		// The same jti with another iat is the same proof.
		err := c.claim("k", "j", expires.Add(after), noon.Add(after))
		wantCode(t, after.String(), err, CodeProofReplayed)
	}
	wantNil(t, "another key", c.claim("k2", "j", expires, noon))
	wantNil(t, "another jti", c.claim("k", "j2", expires, noon))
	// Key and jti cannot run together.
	wantNil(t, "kj+''", c.claim("kj", "", expires, noon))
	late := noon.Add(time.Minute + 2*replayBucket)
	wantNil(t, "after expiry", c.claim("k", "j", late.Add(time.Minute), late))
	if c.entries != 1 || len(c.buckets) != 1 {
		t.Errorf("%d entries in %d buckets stay behind", c.entries, len(c.buckets))
	}
}

// It refuses rather than forgets: a stranger who fills it cannot make room for
// a replay.
func TestFullReplayCacheRefuses(t *testing.T) {
	c := newReplayCache(100)
	expires := noon.Add(time.Minute)
	for i := range 100 {
		wantNil(t, "filling", c.claim("k", fmt.Sprint(i), expires, noon))
	}
	err := c.claim("k", "one more", expires, noon)
	if err == nil || err.Kind != fault.RateLimited || err.Code != CodeReplayFull || err.RetryAfter <= 0 {
		t.Fatalf("full: %v", err)
	}
	wantCode(t, "a replay while full", c.claim("k", "7", expires, noon), CodeProofReplayed)
	later := noon.Add(2 * time.Minute)
	wantNil(t, "later there is room", c.claim("k", "one more", later.Add(time.Minute), later))
}

// A clock that leaps ahead drops entries; when it is set back, what they stood
// for must not be good again.
func TestReplayCacheSurvivesAClockThatStepsBack(t *testing.T) {
	c := newReplayCache(10)
	expires := noon.Add(time.Minute)
	wantNil(t, "first", c.claim("k", "j", expires, noon))
	leap := noon.Add(time.Hour)
	wantNil(t, "during the leap", c.claim("k", "other", leap.Add(time.Minute), leap))
	wantCode(t, "replay after the clock was set back", c.claim("k", "j", expires, noon), CodeProofInvalid)
}

func TestOneOfManyConcurrentReplaysWins(t *testing.T) {
	c := newReplayCache(1000)
	var won atomic.Int64
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for j := range 10 {
				if c.claim("k", fmt.Sprint(j), noon.Add(time.Minute), noon) == nil {
					won.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if won.Load() != 10 {
		t.Fatalf("%d claims of 10 proofs won", won.Load())
	}
}

func wantNil(t *testing.T, what string, err *fault.Error) {
	t.Helper()
	if err != nil {
		t.Errorf("%s: %v", what, err)
	}
}
