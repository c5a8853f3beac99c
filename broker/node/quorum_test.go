package node_test

import (
	"testing"

	"github.com/mayfly-broker/mayfly/client/wire"
)

func TestRecoverNeedsAQuorumOfShares(t *testing.T) {
	n := start(t, config(t, "n1", t.TempDir()))
	shares := initialise(t, n).Shares
	stranger := initialise(t, start(t, config(t, "n2", t.TempDir()))).Shares
	size := n.Status().Size
	for name, given := range map[string][]string{
		"none": nil, "too few": shares[:1], "one twice": {shares[0], shares[0]}, "another cluster's": stranger[:2], "mixed": {shares[0], stranger[1]},
	} {
		_, err := n.Recover(t.Context(), wire.RecoverRequest{Principal: ann, Shares: given})
		t.Log(name)
		refused(t, err, "bad_share")
	}
	_, err := n.Recover(t.Context(), wire.RecoverRequest{Principal: "workload:ci", Shares: shares[:2]})
	refused(t, err, "admins_malformed")
	if now := n.Status().Size; now != size {
		t.Errorf("%d entries after refusals, %d before: a stranger writes to the log", now, size)
	}
	a, err := n.Recover(t.Context(), wire.RecoverRequest{Principal: ann, Shares: shares[1:]})
	must(t, err)
	if a.Principal != ann || a.Token == "" || n.Status().Size != size+1 {
		t.Fatalf("recovered %q; %d entries, %d before", a.Principal, n.Status().Size, size)
	}
}

func TestRekeyVoidsTheOldShares(t *testing.T) {
	cfg := config(t, "n1", t.TempDir())
	n := start(t, cfg)
	old := initialise(t, n).Shares
	rekey := func(shares []string) ([]string, error) {
		return n.Rekey(t.Context(), wire.RekeyRequest{Shares: shares, Count: 5, Threshold: 3})
	}
	_, err := rekey(old[:1])
	refused(t, err, "bad_share")
	_, err = n.Rekey(t.Context(), wire.RekeyRequest{Shares: old[:2], Count: 1, Threshold: 2})
	refused(t, err, "seal_parameters")
	fresh, err := rekey(old[:2])
	must(t, err)
	if s := n.Status(); len(fresh) != 5 || s.Threshold != 3 || s.Total != 5 {
		t.Fatalf("%d shares; %+v", len(fresh), s)
	}
	_, err = rekey(old[:2])
	refused(t, err, "bad_share")
	_, err = n.Recover(t.Context(), wire.RecoverRequest{Principal: ann, Shares: old[:2]})
	refused(t, err, "bad_share")
	write(t, n, "workload:meanwhile")

	// Sealed in this process, and started from the disk: the old ones open neither.
	must(t, n.Seal(t.Context(), as(ann)))
	_, err = n.Unseal(t.Context(), wire.UnsealRequest{Share: old[0]})
	refused(t, err, "bad_share")
	n = restart(t, n, cfg)
	_, err = n.Unseal(t.Context(), wire.UnsealRequest{Share: old[0]})
	refused(t, err, "bad_share")
	unseal(t, n, fresh[4], fresh[0], fresh[2])
	write(t, n, "workload:after")
}
