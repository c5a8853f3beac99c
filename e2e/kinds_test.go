package e2e_test

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/e2e/harness"
)

// fleet is a target of each kind that takes part, and a crowd that uses each.
type fleet []*churn

// long says that this is no quick run.
func long() bool { return *kills >= 20 }

// takePart are the kinds of this run: those that were chosen, all in a long one,
// else the databases of most people and, by chance, one more that the broker
// connects to and one that it does not.
func takePart(t *testing.T) []harness.Kind {
	t.Helper()
	all := harness.Kinds()
	if *chosen != "" {
		var some []harness.Kind
		for name := range strings.SplitSeq(*chosen, ",") {
			i := slices.IndexFunc(all, func(k harness.Kind) bool { return k.Name == name })
			if i < 0 {
				t.Fatalf("-kinds: there is no kind %q", name)
			}
			some = append(some, all[i])
		}
		return some
	}
	if long() {
		return all
	}
	some := all[:2:2]
	for _, apart := range []bool{false, true} {
		var others []harness.Kind
		for _, k := range all[2:] {
			if k.Apart == apart {
				others = append(others, k)
			}
		}
		some = append(some, others[rand.IntN(len(others))])
	}
	t.Logf("by chance: -kinds %s,%s,%s,%s", some[0].Name, some[1].Name, some[2].Name, some[3].Name)
	return some
}

// startFleet adds the targets and starts the crowds. retry is how long their
// clients try each call.
func startFleet(t *testing.T, admin harness.CLI, dir string, retry time.Duration) fleet {
	t.Helper()
	kinds := takePart(t)
	servers := harness.StartKinds(t, kinds)
	admin.ApplyPolicy(t, dir, "churn", churnPolicy)
	var f fleet
	for _, k := range kinds {
		role := servers[k.Name].Add(t, admin, dir, k.Name+"1")
		clients := admin.EnrolClients(t, dir, "workload:"+k.Name, cmp.Or(k.Clients, churners), retry)
		f = append(f, startChurn(t, clients, k, servers[k.Name], role))
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

// reborn notes that a process that mints has just died and another one serves: what
// is received from now on, no death has touched.
func (f fleet) reborn() {
	for _, c := range f {
		c.mu.Lock()
		c.since = len(c.received)
		c.mu.Unlock()
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
