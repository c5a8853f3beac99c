package e2e_test

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/e2e/harness"
)

// randomInstant waits for a random moment, which is what a crash takes.
func randomInstant(most time.Duration) {
	<-time.After(time.Duration(rand.Int64N(int64(most))))
}

// Law 1: a crash at any instant leaves nothing on a target, of whatever kind, that
// the ledger cannot name. Law 2: nothing outlives its lease.
func TestOrphansSingleNode(t *testing.T) {
	dev := harness.StartDev(t)
	crowds := startFleet(t, dev.Operator, t.TempDir(), 5*time.Second)

	var restarts []time.Duration
	for i := range *kills {
		crowds.progress(t, 5)
		randomInstant(300 * time.Millisecond)
		dev.Kill(t)
		if i%3 == 2 { // a crash while it is starting, too
			dev.Launch(t)
			randomInstant(400 * time.Millisecond)
			dev.Kill(t)
		}
		restarts = append(restarts, dev.Start(t))
		crowds.reborn()
	}
	crowds.progress(t, 5)
	if len(restarts) > 0 {
		slices.Sort(restarts)
		t.Logf("%d kills; restart to ready: median %s, worst %s", *kills, restarts[len(restarts)/2], restarts[len(restarts)-1])
	}
	crowds.account(t, dev.Operator)
}
