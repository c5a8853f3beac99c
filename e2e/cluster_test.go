package e2e_test

import (
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/e2e/harness"
	"github.com/mayfly-broker/mayfly/issuers/postgres/pgtest"
)

// Laws 1 and 2 with a leader that dies while others take over: what it had
// begun to mint is named by the ledger and withdrawn by its successor.
func TestOrphansThreeNodes(t *testing.T) {
	pg := pgtest.Start(t)
	c := harness.StartCluster(t, harness.ClusterConfig{})
	harness.Database(t, pg, c.Admin, c.Dir, "orders")
	c.Admin.ApplyPolicy(t, c.Dir, "churn", churnPolicy)
	crowd := startChurn(t, c.Admin.EnrolClients(t, c.Dir, "workload:churn", churners, 20*time.Second), "orders/readonly")

	for range *leaderKills {
		crowd.progress(t, 20)
		leader, _ := c.Leader(t)
		randomInstant(300 * time.Millisecond)
		leader.Kill(t)
		crowd.progress(t, 20) // the two that are left go on alone
		leader.Start(t)
	}
	crowd.progress(t, 20)
	crowd.stop()
	crowd.account(t, c.Admin, pg)
}
