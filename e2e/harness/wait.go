package harness

import (
	"testing"
	"time"
)

// look is how often a condition is looked at: often enough not to slow a test
// down, seldom enough to leave the processor to what is being tested.
const look = 50 * time.Millisecond

// Within waits until check returns nil, at most for d. On failure the test ends
// with what check said last.
func Within(t testing.TB, d time.Duration, what string, check func() error) {
	t.Helper()
	if err := Poll(d, check); err != nil {
		t.Fatalf("%s: not within %s: %v", what, d, err)
	}
}

// Poll is [Within] for goroutines other than the test's own: it returns what
// check said last, nil once it was content.
func Poll(d time.Duration, check func() error) error {
	deadline := time.NewTimer(d)
	defer deadline.Stop()
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-deadline.C:
			return err
		case <-tick.C:
		}
	}
}
