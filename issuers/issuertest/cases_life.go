package issuertest

import (
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
)

func testMintUseWithdraw(t *testing.T, s *suite) {
	l := s.lease(t)
	c := s.mint(t, l)
	s.mustWork(t, c, "after the mint")
	s.withdraw(t, l)
	s.mustBeGone(t, "after the withdrawal", l)
	if s.revocable() {
		s.mustBeRefused(t, c, "after the withdrawal")
	}
}

func testNarrowerScope(t *testing.T, s *suite) {
	l := s.lease(t)
	l.Scope = s.Narrower
	s.mustWork(t, s.mint(t, l), "minted with the narrower scope")
}

// testMintTwice: a retry of the same generation, then the next generation: one
// account, and only the newest secret opens it. What has no account (a token)
// gives every generation a name of its own, and each of them works.
func testMintTwice(t *testing.T, s *suite) {
	first := s.lease(t)
	old := s.mint(t, first)
	again := s.mint(t, first)
	s.mustWork(t, again, "minted a second time")

	next := Regenerate(s.Kind, first)
	newest := s.mint(t, next)
	s.mustWork(t, newest, "minted as generation 2")
	if s.revocable() {
		s.mustBeRefused(t, old, "after a re-mint, the first secret")
		s.mustBeRefused(t, again, "after a re-mint, the second secret")
	} else if first.Name == next.Name {
		t.Errorf("hazard 9: generations 1 and 2 are both called %s, and neither can be revoked", first.Name)
	}
	if lister, ok := s.issuer.inner.(issuers.Lister); ok {
		if n := len(s.listed(t, lister, first.ID)); n != 1 {
			t.Errorf("after three mints of one lease the target lists %d credentials; want 1", n)
		}
	}
	s.withdraw(t, next)
	s.mustBeGone(t, "after the withdrawal", first, next)
}

func testLowerGeneration(t *testing.T, s *suite) {
	l := s.lease(t)
	newer := Regenerate(s.Kind, Regenerate(s.Kind, l))
	c := s.mint(t, newer)
	if !s.RefusesOlder {
		// The target has no memory: a late generation 1 gets a credential, under
		// its own name, and takes nothing from generation 3.
		late := s.mint(t, l)
		s.mustWork(t, c, "after a late mint of generation 1")
		if newer.Name == l.Name {
			t.Error("the target cannot refuse a lower generation, and its credential bears the same name")
		}
		s.mustWork(t, late, "of generation 1")
		return
	}
	for _, issuer := range []*recorder{s.issuer, s.open(t, 2)} {
		if err := s.mintError(t, issuer, l, "of generation 1 after 3"); err.Kind != issuers.Superseded {
			t.Errorf("Mint of generation 1 after 3: %v; want kind superseded", err)
		}
	}
	s.mustWork(t, c, "after a refused lower generation")
}

func testWithdrawTwice(t *testing.T, s *suite) {
	l := s.lease(t)
	s.mint(t, l)
	s.withdraw(t, l)
	s.withdraw(t, l)
	twice := s.issuer.Withdraw(s.ctx, []issuers.Lease{l, l})
	s.checkEnded(t, []issuers.Lease{l, l}, twice)
	s.mustBeGone(t, "after withdrawing it four times", l)
}

func testWithdrawNeverMinted(t *testing.T, s *suite) {
	for _, o := range s.withdraw(t, s.leases(t, 3)...) {
		if o.Receipt.SessionsEnded != 0 || o.Receipt.OwnedDropped != 0 {
			t.Errorf("a lease that was never minted had something to end: %+v", o.Receipt)
		}
	}
}

func testWithdrawNothing(t *testing.T, s *suite) {
	if out := s.issuer.Withdraw(s.ctx, nil); len(out) != 0 {
		t.Errorf("Withdraw of no leases gave %d outcomes", len(out))
	}
}

// testMixedBatch ends live, ended, re-minted and never minted leases in one call,
// and leaves a neighbour alone.
func testMixedBatch(t *testing.T, s *suite) {
	batch := s.leases(t, 30)
	creds := make([]*issuers.Credential, len(batch))
	for i := range batch {
		if i%3 == 2 {
			continue // never minted
		}
		batch[i].MintDeadline = soon() // those before it have taken their time
		c := s.mint(t, batch[i])
		creds[i] = &c
		if i%5 == 0 {
			batch[i] = Regenerate(s.Kind, batch[i])
			c = s.mint(t, batch[i])
			creds[i] = &c
		}
		if i%7 == 0 {
			s.withdraw(t, batch[i]) // ended already
		}
	}
	neighbour := s.lease(t)
	stays := s.mint(t, neighbour)
	s.withdraw(t, batch...)
	s.mustBeGone(t, "after the batch", batch...)
	for _, c := range creds {
		if c != nil && s.revocable() {
			s.mustBeRefused(t, *c, "after the batch")
		}
	}
	s.mustWork(t, stays, "not being in the batch")
}

// testOutcomeOrder: the one lease of five with a live session is the one whose
// outcome says so.
func testOutcomeOrder(t *testing.T, s *suite) {
	if s.Hold == nil {
		s.withdraw(t, s.leases(t, 5)...) // receipts cannot differ: their number is all there is
		return
	}
	const withSession = 3
	batch := s.leases(t, 5)
	for i, l := range batch {
		c := s.mint(t, l)
		if i == withSession {
			s.hold(t, c)
		}
	}
	for i, o := range s.withdraw(t, batch...) {
		if ended := o.Receipt.SessionsEnded; (ended > 0) != (i == withSession) {
			t.Errorf("outcome %d ended %d sessions; only lease %d had one", i, ended, withSession)
		}
	}
}

func (s *suite) hold(t *testing.T, c issuers.Credential) Session {
	t.Helper()
	session, err := s.Hold(s.ctx, c)
	if err != nil {
		t.Fatalf("open a session: %v", err)
	}
	t.Cleanup(func() { _ = session.Close() }) // the target has ended it, or the case has failed
	if err := session.Alive(s.ctx); err != nil {
		t.Fatalf("the session is dead from the start: %v", err)
	}
	return session
}

func testSessionsEnd(t *testing.T, s *suite) {
	if s.Hold == nil {
		return
	}
	l, other := s.lease(t), s.lease(t)
	c := s.mint(t, l)
	sessions := []Session{s.hold(t, c), s.hold(t, c)}
	survivor := s.hold(t, s.mint(t, other))
	out := s.withdraw(t, l)
	if n := out[0].Receipt.SessionsEnded; n != len(sessions) {
		t.Errorf("the receipt says %d sessions ended; there were %d", n, len(sessions))
	}
	for _, session := range sessions {
		if session.Alive(s.ctx) == nil {
			t.Error("law 2: a session outlives the withdrawal of its credential")
		}
	}
	if err := survivor.Alive(s.ctx); err != nil {
		t.Errorf("the session of another lease was ended: %v", err)
	}
}

func testStuck(t *testing.T, s *suite) {
	if s.Stick == nil {
		return
	}
	const stuck = 1
	batch := s.leases(t, 4)
	creds := make([]issuers.Credential, len(batch))
	for i, l := range batch {
		creds[i] = s.mint(t, l)
	}
	free, err := s.Stick(s.ctx, batch[stuck], creds[stuck])
	if err != nil {
		t.Fatalf("make a credential stick: %v", err)
	}
	t.Cleanup(func() { _ = free() }) // again, if the case fails before the call below
	out := s.issuer.Withdraw(s.ctx, batch)
	if len(out) != len(batch) {
		t.Fatalf("Withdraw of %d leases gave %d outcomes", len(batch), len(out))
	}
	for i, o := range out {
		switch {
		case i == stuck && issuers.KindOf(o.Err) != issuers.Poison:
			t.Errorf("the stuck credential's outcome is %+v; want an error of kind poison", o)
		case i != stuck && o.Err != nil:
			t.Errorf("hazard 12: lease %d was not ended because lease %d sticks: %v", i, stuck, o.Err)
		}
	}
	s.mustBeRefused(t, creds[stuck], "though it cannot be removed")
	if err := free(); err != nil {
		t.Fatalf("free the credential: %v", err)
	}
	s.withdraw(t, batch...)
	s.mustBeGone(t, "once freed", batch...)
}

func testPastDeadline(t *testing.T, s *suite) {
	l := s.lease(t)
	l.MintDeadline = time.Now().Add(-time.Minute)
	s.withdrawAtEnd(t, l)
	if err := s.mintError(t, s.issuer, l, "after its deadline"); err.Kind != issuers.TooLate {
		t.Errorf("Mint after its deadline: %v; want kind too_late", err)
	}
	s.mustBeGone(t, "after a mint that was too late", l)
}

// testEndedLease: a mint that arrives after the lease's end opens nothing, even
// if the mint deadline was set too far.
func testEndedLease(t *testing.T, s *suite) {
	l := s.lease(t)
	l.NotBefore = time.Now().Add(-2 * time.Hour)
	l.NotAfter = time.Now().Add(-time.Hour)
	s.withdrawAtEnd(t, l)
	c, err := s.issuer.Mint(s.ctx, l)
	if err == nil && s.Use(s.ctx, c) == nil {
		t.Error("law 2: a credential works whose lease ended an hour ago")
	}
	s.withdraw(t, l)
	s.mustBeGone(t, "after a mint past the lease's end", l)
}

func testExpiry(t *testing.T, s *suite) {
	if s.Expires == nil {
		return
	}
	for _, ttl := range []time.Duration{90 * time.Second, 10 * time.Minute} {
		l := s.lease(t)
		l.NotAfter = l.NotBefore.Add(ttl)
		end, err := s.Expires(s.mint(t, l))
		if err != nil {
			t.Fatalf("read the credential's expiry: %v", err)
		}
		if end.After(l.NotAfter) || end.Before(l.NotAfter.Add(-30*time.Second)) {
			t.Errorf("the lease ends at %s, its credential at %s", l.NotAfter, end)
		}
	}
}

func testReceipts(t *testing.T, s *suite) {
	l := s.lease(t)
	s.mint(t, l)
	if err := checkReceipt(s.revocable(), s.withdraw(t, l)[0].Receipt); err != nil {
		t.Error(err)
	}
}
