package broker_test

import (
	"context"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// TestLaw2AnEndedLeaseGivesOutNothing: the lease is revoked, and the secret replaced
// for that, between the commit of the lease and its answer.
func TestLaw2AnEndedLeaseGivesOutNothing(t *testing.T) {
	turnings(t, func(t *testing.T, r *rig, k *turning) {
		r.apply(account(oneName)...)
		r.turns("Account/app", 1)
		var lease string
		r.log.After = func(d ledger.Decoded, res ledger.Result) error {
			if d.Type != "open_lease" {
				return nil
			}
			lease = res.ID
			if _, err := r.engine.Revoke(context.Background(), opCaller, lease, wire.RevokeRequest{Reason: "leaked"}); err != nil {
				t.Error(err)
			}
			r.within(gone, "the lease has ended", r.ended(lease))
			return nil
		}
		a, err := r.request(appCaller, wire.AccessRequest{Role: "t1/app", Purpose: "p"})
		r.log.After = func(ledger.Decoded, ledger.Result) error { return nil }
		if err == nil && k.has("app", a.Credential["password"]) {
			t.Errorf("%s has ended, and gave out a secret that works: %s", lease, r.lease(lease).End.Receipt)
		}
	})
}
