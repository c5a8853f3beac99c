package e2e_test

import (
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/e2e/harness"
)

// Laws 1 and 2 with a leader that dies while others take over: what it had
// begun to mint, of whatever kind, is named by the ledger and withdrawn by its
// successor.
func TestOrphansThreeNodes(t *testing.T) {
	c := harness.StartCluster(t, harness.ClusterConfig{})
	crowds := startFleet(t, c.Admin, c.Dir, 20*time.Second)

	var last *harness.Node
	for range *leaderKills {
		crowds.progress(t, 5)
		leader, _ := c.Leader(t)
		randomInstant(300 * time.Millisecond)
		leader.Kill(t)
		last, _ = c.Leader(t)
		crowds.reborn()
		crowds.progress(t, 5) // the two that are left go on alone
		leader.Start(t)
	}
	crowds.progress(t, 5)
	if leader, _ := c.Leader(t); leader != last { // it changed by itself, too
		crowds.reborn()
	}
	crowds.account(t, c.Admin)
}
