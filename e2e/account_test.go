package e2e_test

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/e2e/harness"
)

// account checks the laws after the crowds have stopped: nothing is left on any
// target, the ledger names every credential that anybody received, none of them
// opens anything, and the record is whole.
func account(t *testing.T, admin harness.CLI, crowds ...*churn) {
	t.Helper()
	cl := admin.Client(t, 30*time.Second)
	harness.Within(t, 90*time.Second, "every lease ends", func() error {
		for _, c := range crowds {
			if err := c.endOpen(t.Context(), cl); err != nil {
				return err
			}
		}
		return harness.NoneLives(t.Context(), cl, func(l wire.Lease) bool {
			return slices.ContainsFunc(crowds, func(c *churn) bool { return c.stuck(l) })
		})
	})
	for _, c := range crowds {
		// From now on the ledger says that everything is gone: it must be so.
		began := time.Now()
		harness.NothingLeft(t, c.server, c.kind.Late)
		t.Logf("nothing is left on %s after %s", c.target, time.Since(began).Round(time.Millisecond))
		t.Logf("%s: %d credentials received in %d rounds, %d logins; %d rounds met an unavailable broker or target", c.role, len(c.received), c.answers, c.logins, c.tolerant)
		for _, err := range c.wrong {
			t.Errorf("%s: a client was told: %v", c.role, err)
		}
		if len(c.received) == 0 || c.logins == 0 {
			t.Errorf("%s: %d credentials received, %d logins: the test has shown nothing", c.role, len(c.received), c.logins)
		}
		ledger := c.ledger(t, cl)
		c.named(t, cl, ledger)
		c.witnessed(t, ledger)
		c.useless(t, ledger)
	}
	var verified wire.VerifyAnswer
	admin.JSON(t, &verified, "audit", "verify")
	if !verified.OK {
		t.Errorf("audit verify: %v", verified.Problems)
	}
	var drift []wire.Drift
	admin.JSON(t, &drift, "reconcile")
	for _, d := range drift {
		if d.Error != "" || len(d.Unknown)+len(d.Ended)+len(d.Missing) > 0 {
			t.Errorf("reconcile: %+v", d)
		}
	}
}

// stuck says whether nobody can end a lease's credential before its time.
func (c *churn) stuck(l wire.Lease) bool {
	return c.kind.Stuck != nil && l.Target == c.target && c.kind.Stuck(l)
}

// endOpen ends leases that live long and whose clients did not come to end them.
func (c *churn) endOpen(ctx context.Context, cl *client.Client) error {
	if c.kind.EndedEarly == 0 {
		return nil
	}
	open, err := harness.Leases(ctx, cl, client.Filter{Target: c.target, State: "open"})
	for _, l := range open {
		_, one := cl.Revoke(ctx, l.ID, wire.RevokeRequest{Reason: "the test is over"})
		err = errors.Join(err, one)
	}
	return err
}

// ledger is every lease of the target, by its id.
func (c *churn) ledger(t *testing.T, cl *client.Client) map[string]wire.Lease {
	t.Helper()
	list, err := harness.Leases(t.Context(), cl, client.Filter{Target: c.target})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]wire.Lease{}
	for _, l := range list {
		out[l.ID] = l
	}
	return out
}

// named looks every credential up in the ledger.
func (c *churn) named(t *testing.T, cl *client.Client, ledger map[string]wire.Lease) {
	t.Helper()
	for _, r := range c.received {
		l := ledger[r.Lease]
		name := cmp.Or(c.server.Name(r.Credential), l.Username)
		w, err := cl.Whohas(t.Context(), name)
		switch {
		case err != nil:
			t.Errorf("whohas %s, of lease %s: %v", name, r.Lease, err)
		case w.State != "ended" && !c.stuck(w.Lease) || w.LeaseID != r.Lease || w.Lease.Username != name || w.Lease.Target != c.target:
			t.Errorf("whohas %s: state %s, lease %s of %s, user name %s, target %s", name, w.State, w.LeaseID, r.Lease, w.Lease.Username, w.Lease.Target)
		case w.Lease.EndReason == "mint_failed":
			t.Errorf("lease %s was given out, and the ledger says that its mint failed", r.Lease)
		}
	}
}

// witnessed asks a server that remembers what it made. What the process minted that
// leads now, it must have withdrawn.
func (c *churn) witnessed(t *testing.T, ledger map[string]wire.Lease) {
	t.Helper()
	if w, ok := c.server.(harness.Witness); ok {
		var leases []wire.Lease
		for _, l := range ledger {
			leases = append(leases, l)
		}
		var given []harness.Given
		for _, r := range c.received {
			given = append(given, r.Given)
		}
		for _, problem := range w.Contradicts(leases, given) {
			t.Errorf("%s: %s", c.target, problem)
		}
	}
	if c.kind.Stuck == nil {
		return
	}
	stuck := 0
	for _, l := range ledger {
		if c.stuck(l) {
			stuck++
		}
	}
	t.Logf("%s: %d leases wait for their credentials' own end, which nobody can hasten", c.target, stuck)
	for _, r := range c.received[c.since:] {
		// of a later generation an earlier one may have been lost
		if l := ledger[r.Lease]; l.Generation == 1 && c.stuck(l) {
			t.Errorf("%s: the process that minted for %s lives, and does not withdraw it: %s", c.target, r.Lease, l.Problem)
		}
	}
}

// useless tries credentials whose leases have ended: those of the last moments, and
// all where nothing but a try can tell.
func (c *churn) useless(t *testing.T, ledger map[string]wire.Lease) {
	t.Helper()
	few := c.received[max(0, len(c.received)-10):]
	if c.kind.Unlisted {
		few = c.received
	}
	if c.kind.Lasting {
		few = nil
	}
	if c.kind.ExpiresOnly {
		last := slices.MaxFunc(few, func(a, b received) int { return a.end.Compare(b.end) })
		<-time.After(time.Until(last.end))
	}
	for _, r := range few {
		if c.stuck(ledger[r.Lease]) {
			continue // it says itself that it has not ended
		}
		ctx, cancel := context.WithTimeout(t.Context(), loginTimeout)
		if c.server.Login(ctx, r.Credential) == nil {
			t.Errorf("%s: %s still logs in, %s after its end", c.role, r.Lease, time.Since(r.end))
		}
		cancel()
	}
}
