package e2e_test

import (
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/e2e/harness"
)

// fleet is a target of every kind, and a crowd that uses each.
type fleet []*churn

// startFleet adds the targets and starts the crowds. retry is how long their
// clients try each call.
func startFleet(t *testing.T, admin harness.CLI, dir string, retry time.Duration) fleet {
	t.Helper()
	kinds := harness.Kinds()
	servers := harness.StartKinds(t, kinds)
	admin.ApplyPolicy(t, dir, "churn", churnPolicy)
	var f fleet
	for _, k := range kinds {
		role := servers[k.Name].Add(t, admin, dir, k.Name+"1")
		clients := admin.EnrolClients(t, dir, "workload:"+k.Name, churners, retry)
		f = append(f, startChurn(t, clients, servers[k.Name], role))
	}
	return f
}

// progress waits until n more credentials of each kind have been received.
func (f fleet) progress(t *testing.T, n int) {
	t.Helper()
	for _, c := range f {
		c.progress(t, n)
	}
}

// account stops the crowds and checks the laws on every target.
func (f fleet) account(t *testing.T, admin harness.CLI) {
	t.Helper()
	for _, c := range f {
		c.cancel() // all at once
	}
	for _, c := range f {
		c.stop()
	}
	account(t, admin, f...)
}
