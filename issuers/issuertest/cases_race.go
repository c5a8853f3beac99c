package issuertest

import (
	"context"
	"sync"
	"testing"

	"github.com/mayfly-broker/mayfly/issuers"
)

// minted is the answer of one concurrent Mint.
type minted struct {
	cred issuers.Credential
	err  error
}

// mintAll mints the leases at once.
func (s *suite) mintAll(t *testing.T, leases []issuers.Lease) []minted {
	t.Helper()
	s.withdrawAtEnd(t, leases...)
	out := make([]minted, len(leases))
	var wg sync.WaitGroup
	for i, l := range leases {
		wg.Go(func() { out[i].cred, out[i].err = s.issuer.Mint(s.ctx, l) })
	}
	wg.Wait()
	return out
}

func testConcurrentMints(t *testing.T, s *suite) {
	leases := s.leases(t, 24)
	for i := range leases {
		if i%2 == 1 {
			leases[i].Scope = s.Narrower
		}
	}
	for i, m := range s.mintAll(t, leases) {
		if m.err != nil {
			t.Fatalf("concurrent Mint %s: %v", leases[i].Name, m.err)
		}
		s.mustWork(t, m.cred, "minted beside 23 others")
	}
	var wg sync.WaitGroup
	outcomes := make([][]issuers.Outcome, 4)
	for i := range outcomes { // overlapping batches, as after a change of leader
		wg.Go(func() { outcomes[i] = s.issuer.Withdraw(s.ctx, leases[i*4:i*4+12]) })
	}
	wg.Wait()
	for i, out := range outcomes {
		s.checkEnded(t, leases[i*4:i*4+12], out)
	}
	s.mustBeGone(t, "after overlapping withdrawals", leases...)
}

// testConcurrentGenerations: whatever the order in which re-mints arrive, the
// highest generation's secret is the one that works.
func testConcurrentGenerations(t *testing.T, s *suite) {
	generations := []issuers.Lease{s.lease(t)}
	for range 5 {
		generations = append(generations, Regenerate(s.Kind, generations[len(generations)-1]))
	}
	out := s.mintAll(t, generations)
	last := len(out) - 1
	for i, m := range out {
		switch {
		case m.err == nil:
		case i == last || !s.RefusesOlder || issuers.KindOf(m.err) != issuers.Superseded:
			t.Errorf("concurrent Mint of generation %d of %d: %v", i+1, len(out), m.err)
		}
	}
	if out[last].err != nil {
		t.FailNow()
	}
	s.mustWork(t, out[last].cred, "being the highest generation")
	for i, m := range out[:last] {
		if s.revocable() && m.err == nil && s.Use(s.ctx, m.cred) == nil {
			t.Errorf("hazard 9: generation %d still works beside generation %d", i+1, len(out))
		}
	}
	s.withdraw(t, generations[last])
	s.mustBeGone(t, "after re-mints in disorder", generations...)
}

// testConcurrentMintAndWithdraw: whoever wins, one more withdrawal leaves nothing.
func testConcurrentMintAndWithdraw(t *testing.T, s *suite) {
	leases := s.leases(t, 12)
	s.withdrawAtEnd(t, leases...)
	var wg sync.WaitGroup
	creds := make([]minted, len(leases))
	for i, l := range leases {
		wg.Go(func() { creds[i].cred, creds[i].err = s.issuer.Mint(s.ctx, l) })
		wg.Go(func() { s.issuer.Withdraw(s.ctx, []issuers.Lease{l}) })
	}
	wg.Wait()
	s.withdraw(t, leases...)
	s.mustBeGone(t, "after minting and withdrawing at once", leases...)
	for _, m := range creds {
		if m.err == nil && s.revocable() {
			s.mustBeRefused(t, m.cred, "after minting and withdrawing at once")
		}
	}
}

func testCancelledContext(t *testing.T, s *suite) {
	cancelled, cancel := context.WithCancel(s.ctx)
	cancel()
	l, live := s.lease(t), s.lease(t)
	s.withdrawAtEnd(t, l)
	if _, err := s.issuer.Mint(cancelled, l); err == nil {
		t.Error("Mint with a cancelled context returned a credential")
	}
	s.mint(t, live)
	batch := []issuers.Lease{l, live}
	out := s.issuer.Withdraw(cancelled, batch)
	if len(out) != len(batch) {
		t.Fatalf("Withdraw with a cancelled context gave %d outcomes for %d leases", len(out), len(batch))
	}
	for i, o := range out {
		if o.Err == nil {
			s.checkEnded(t, batch[i:i+1], out[i:i+1])
			s.mustBeGone(t, "with a receipt", batch[i])
		}
	}
	s.withdraw(t, batch...)
	s.mustBeGone(t, "withdrawn again", batch...)
}
