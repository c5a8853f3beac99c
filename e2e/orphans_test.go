package e2e_test

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/e2e/harness"
	"github.com/mayfly-broker/mayfly/issuers/postgres/pgtest"
)

// randomInstant waits for a random moment, which is what a crash takes.
func randomInstant(most time.Duration) {
	<-time.After(time.Duration(rand.Int64N(int64(most))))
}

// Law 1: a crash at any instant leaves nothing on a target that the ledger
// cannot name. Law 2: nothing outlives its lease.
func TestOrphansSingleNode(t *testing.T) {
	pg := pgtest.Start(t)
	dev := harness.StartDev(t)
	dir := t.TempDir()
	harness.Database(t, pg, dev.Operator, dir, "orders")
	dev.Operator.ApplyPolicy(t, dir, "churn", churnPolicy)
	crowd := startChurn(t, dev.Operator.EnrolClients(t, dir, "workload:churn", churners, 5*time.Second), "orders/readonly")

	var restarts []time.Duration
	for i := range *kills {
		crowd.progress(t, 10)
		randomInstant(300 * time.Millisecond)
		dev.Kill(t)
		if i%3 == 2 { // a crash while it is starting, too
			dev.Launch(t)
			randomInstant(400 * time.Millisecond)
			dev.Kill(t)
		}
		restarts = append(restarts, dev.Start(t))
	}
	crowd.progress(t, 10)
	crowd.stop()
	if len(restarts) > 0 {
		slices.Sort(restarts)
		t.Logf("%d kills; restart to ready: median %s, worst %s", *kills, restarts[len(restarts)/2], restarts[len(restarts)-1])
	}
	crowd.account(t, dev.Operator, pg)
}
