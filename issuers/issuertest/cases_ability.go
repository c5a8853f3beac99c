package issuertest

import (
	"slices"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
)

// testHigherTerm: a new leader ends what the old one minted, after fencing it.
func testHigherTerm(t *testing.T, s *suite) {
	l, kept := s.lease(t), s.lease(t)
	c := s.mint(t, l)
	keptCred := s.mint(t, kept)
	successor := s.open(t, 2)
	if fencer, ok := successor.inner.(issuers.Fencer); ok {
		for range 2 { // fencing is idempotent
			if err := fencer.Fence(s.ctx); err != nil {
				t.Fatalf("Fence: %v", err)
			}
		}
	}
	next := Regenerate(s.Kind, l)
	s.withdrawAtEnd(t, next)
	newest, err := successor.Mint(s.ctx, next)
	if err != nil {
		t.Fatalf("the successor's re-mint: %v", err)
	}
	s.mustWork(t, newest, "re-minted by the successor")
	s.checkEnded(t, []issuers.Lease{next}, successor.Withdraw(s.ctx, []issuers.Lease{next}))
	s.mustBeGone(t, "withdrawn by the successor", l, next)
	if s.revocable() {
		s.mustBeRefused(t, c, "withdrawn by the successor")
		s.mustBeRefused(t, newest, "withdrawn by the successor")
	}
	s.mustWork(t, keptCred, "minted by the predecessor and not withdrawn")
}

// listed returns what the target lists of those lease ids.
func (s *suite) listed(t *testing.T, lister issuers.Lister, ids ...string) []issuers.Found {
	t.Helper()
	all, err := lister.List(s.ctx)
	if err != nil {
		t.Fatalf("List: %v", err)
	}
	return slices.DeleteFunc(all, func(f issuers.Found) bool { return !slices.Contains(ids, f.LeaseID) })
}

func testLister(t *testing.T, s *suite) {
	lister, ok := s.issuer.inner.(issuers.Lister)
	if !ok {
		return
	}
	before, err := lister.List(s.ctx)
	if err != nil {
		t.Fatalf("List: %v", err)
	}
	leases := s.leases(t, 4)
	for i := range leases {
		s.mint(t, leases[i])
	}
	leases[1] = Regenerate(s.Kind, leases[1])
	s.mint(t, leases[1])
	s.withdraw(t, leases[3])
	after, err := lister.List(s.ctx)
	if err != nil {
		t.Fatalf("List: %v", err)
	}
	if len(after) != len(before)+3 {
		t.Errorf("three live leases more, and List grew from %d to %d", len(before), len(after))
	}
	for i, l := range leases[:3] {
		found := slices.DeleteFunc(slices.Clone(after), func(f issuers.Found) bool { return f.LeaseID != l.ID })
		want := issuers.Found{Name: l.Name, LeaseID: l.ID, Generation: l.Generation}
		if len(found) != 1 || found[0] != want {
			t.Errorf("List shows %+v for lease %d; want exactly %+v", found, i, want)
		}
	}
	if found := s.listed(t, lister, leases[3].ID); len(found) != 0 {
		t.Errorf("List still shows the withdrawn lease: %+v", found)
	}
}

func testExtend(t *testing.T, s *suite) {
	extender, ok := s.issuer.inner.(issuers.Extender)
	if !ok {
		return
	}
	l := s.lease(t)
	c := s.mint(t, l)
	longer, shorter := l, l
	longer.NotAfter = l.NotAfter.Add(time.Hour)
	shorter.NotAfter = time.Now().Add(-time.Hour)
	for _, step := range []issuers.Lease{longer, shorter, longer} {
		if err := extender.Extend(s.ctx, step); err != nil {
			t.Fatalf("Extend to %s: %v", step.NotAfter, err)
		}
		s.mustWork(t, c, "extended (an earlier end never moves it backwards)")
	}
	s.withdraw(t, l)
	never := s.lease(t)
	for _, gone := range []issuers.Lease{longer, never} {
		if err := extender.Extend(s.ctx, gone); issuers.KindOf(err) != issuers.Gone {
			t.Errorf("Extend of a credential that is gone: %v; want kind gone", err)
		}
		s.mustBeGone(t, "after an Extend that came too late", gone)
	}
}

func testOtherAbilities(t *testing.T, s *suite) {
	c := s.mint(t, s.lease(t))
	if checker, ok := s.issuer.inner.(issuers.Checker); ok {
		findings, err := checker.Check(s.ctx)
		if err != nil {
			t.Fatalf("Check: %v", err)
		}
		if len(findings) == 0 {
			t.Error("Check reports nothing")
		}
		for _, f := range findings {
			if f.Name == "" || !f.OK && !f.Warning {
				t.Errorf("Check on a target that works: %+v", f)
			}
		}
	}
	if sweeper, ok := s.issuer.inner.(issuers.Sweeper); ok {
		if err := sweeper.Sweep(s.ctx); err != nil {
			t.Fatalf("Sweep: %v", err)
		}
		s.mustWork(t, c, "after a sweep (hazard 15)")
	}
	if publisher, ok := s.issuer.inner.(issuers.Publisher); ok {
		documents, err := publisher.Publish(s.ctx)
		if err != nil || len(documents) == 0 {
			t.Fatalf("Publish gave %d documents and %v", len(documents), err)
		}
		for _, text := range documents {
			_, _ = s.said.Write(text)
		}
	}
	if writer, ok := s.Kind.(issuers.RoleWriter); ok {
		s.checkTemplates(t, writer)
	}
}

// checkTemplates: a role that `target add` offers passes the kind's own checks.
func (s *suite) checkTemplates(t *testing.T, writer issuers.RoleWriter) {
	t.Helper()
	roles, err := writer.Roles(s.Target.Spec)
	if err != nil {
		t.Fatalf("Roles: %v", err)
	}
	for _, r := range roles {
		if r.Suffix == "" || r.DefaultTTL <= 0 || r.MaxTTL < r.DefaultTTL {
			t.Errorf("role template %+v lacks a suffix or sensible TTLs", r)
		}
		if err := s.Kind.CheckScope(s.Target.Spec, r.Scope); err != nil {
			t.Errorf("role template %s: CheckScope refuses its scope: %v", r.Suffix, err)
		}
	}
}

// testUnreachable: Open does not block, and every call says that nothing was done.
func testUnreachable(t *testing.T, s *suite) {
	if s.Unreachable == nil {
		return
	}
	start := time.Now()
	nobody := s.openSpec(t, 1, s.Unreachable)
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("Open of an unreachable target took %s", d)
	}
	l := s.lease(t)
	if err := s.mintError(t, nobody, l, "where nobody answers"); err.Kind != issuers.Unreachable {
		t.Errorf("Mint where nobody answers: %v; want kind unreachable", err)
	}
	out := nobody.Withdraw(s.ctx, []issuers.Lease{l, l})
	if len(out) != 2 {
		t.Fatalf("Withdraw of 2 leases gave %d outcomes", len(out))
	}
	for _, o := range out {
		if issuers.KindOf(o.Err) != issuers.Unreachable {
			t.Errorf("Withdraw where nobody answers: %+v; want an error of kind unreachable", o)
		}
	}
}

// testClosed: a call after Close fails like any other, without a panic.
func testClosed(t *testing.T, s *suite) {
	l, live := s.lease(t), s.lease(t)
	s.mint(t, live)
	s.withdrawAtEnd(t, l)
	if err := s.issuer.close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	s.mintError(t, s.issuer, l, "after Close")
	out := s.issuer.Withdraw(s.ctx, []issuers.Lease{live})
	if len(out) != 1 {
		t.Fatalf("Withdraw after Close gave %d outcomes for 1 lease", len(out))
	}
	if out[0].Err == nil {
		s.checkEnded(t, []issuers.Lease{live}, out)
		s.mustBeGone(t, "with a receipt", live)
	}
	if err := s.issuer.inner.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
}
