package issuertest

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// NewSecret returns a secret as the broker makes them for accounts: 32 characters
// of 0-9, a-z.
func NewSecret() secret.Text { return secret.New(NewLeaseID() + NewLeaseID()[:6]) }

// testReplace: the one secret, at once, again and again; and nothing else.
func testReplace(t *testing.T, s *suite) {
	r := s.rotator(t)
	if r == nil {
		return
	}
	name, first := s.account(t)
	neighbour, theirs := s.account(t)
	session, err := s.Rotation.Hold(s.ctx, name, first)
	if err != nil {
		t.Fatalf("open a session: %v", err)
	}
	t.Cleanup(func() { _ = session.Close() })
	old := []secret.Text{first}
	for range 3 {
		next := NewSecret()
		for range 2 { // as good as once
			if err := r.replace(s.ctx, name, next, soon()); err != nil {
				t.Fatalf("Replace: %v", err)
			}
			s.mustHold(t, r, name, next, old...)
		}
		old = append(old, next)
	}
	if err := session.Alive(s.ctx); err != nil {
		t.Errorf("a session that was open is ended: %v", err)
	}
	s.mustHold(t, r, neighbour, theirs)
}

func testReplaceNeverMakes(t *testing.T, s *suite) {
	r := s.rotator(t)
	if r == nil {
		return
	}
	nobody, next := "nobody_"+NewLeaseID()[:12], NewSecret()
	if err := r.replace(s.ctx, nobody, next, soon()); issuers.KindOf(err) != issuers.Gone {
		t.Errorf("Replace of an account that does not exist: %v; want kind gone", err)
	}
	if s.Rotation.Login(s.ctx, nobody, next) == nil {
		t.Error("Replace made an account")
	}
	if err := r.tryLogin(s.ctx, nobody, next); err == nil {
		t.Error("TryLogin says that an account works which does not exist")
	}
}

func testReplaceForeign(t *testing.T, s *suite) {
	r := s.rotator(t)
	if r == nil {
		return
	}
	l := s.lease(t)
	c := s.mint(t, l)
	if err := r.replace(s.ctx, l.Name, NewSecret(), soon()); issuers.KindOf(err) != issuers.Foreign {
		t.Errorf("Replace of a lease's account: %v; want kind foreign", err)
	}
	s.mustWork(t, c, "after a refused Replace of its account")
}

func testLateReplace(t *testing.T, s *suite) {
	r := s.rotator(t)
	if r == nil {
		return
	}
	name, first := s.account(t)
	late := NewSecret()
	if err := r.replace(s.ctx, name, late, time.Now().Add(-time.Minute)); issuers.KindOf(err) != issuers.TooLate {
		t.Errorf("Replace after its deadline: %v; want kind too_late", err)
	}
	s.mustHold(t, r, name, first, late)
}

// testReplaceCrash cancels Replace at every stage of it, and lets a new leader
// find out what became of it.
func testReplaceCrash(t *testing.T, s *suite) {
	r := s.rotator(t)
	if r == nil {
		return
	}
	name, now := s.account(t)
	if err := r.replace(s.ctx, name, now, soon()); err != nil { // connected
		t.Fatalf("Replace: %v", err)
	}
	start := time.Now()
	if err := r.replace(s.ctx, name, now, soon()); err != nil {
		t.Fatalf("Replace: %v", err)
	}
	took := time.Since(start)
	within := 5 * time.Second
	if _, fences := r.recorder.inner.(issuers.Fencer); !fences {
		within = time.Second // settle waits for it, each time
	}
	const crashes = 10
	for i := range crashes {
		s := s.again(t)
		dying := s.rotator(t)
		if err := dying.replace(s.ctx, name, now, soon()); err != nil {
			t.Fatalf("Replace: %v", err)
		}
		next, deadline := NewSecret(), time.Now().Add(within)
		ctx, cancel := context.WithTimeout(s.ctx, took*time.Duration(i)/(crashes-1))
		err := dying.replace(ctx, name, next, deadline)
		cancel()
		now = s.settle(t, name, now, next, deadline)
		if err == nil && !now.Equal(next) {
			t.Fatal("Replace said that it was done, and the secret before is the one that works")
		}
		_ = dying.close()
	}
}

// testReplaceHang: a target that does not answer has not refused, and once it is
// awake again one of the two secrets holds.
func testReplaceHang(t *testing.T, s *suite) {
	r := s.rotator(t)
	if r == nil || s.Rotation.Freeze == nil {
		return
	}
	name, before := s.account(t)
	if err := r.replace(s.ctx, name, before, soon()); err != nil { // connected
		t.Fatalf("Replace: %v", err)
	}
	thaw := s.Rotation.Freeze(t)
	next, deadline := NewSecret(), time.Now().Add(2*time.Second)
	ctx, cancel := context.WithTimeout(s.ctx, 5*time.Second)
	defer cancel()
	silent := func(what string, err error) {
		if kind := issuers.KindOf(err); err == nil || kind != issuers.Unknown && kind != issuers.Unreachable {
			t.Errorf("%s on a target that hangs: %v; want kind unknown, or unreachable", what, err)
		}
	}
	silent("Replace", r.replace(ctx, name, next, deadline))
	short, stop := context.WithTimeout(s.ctx, 500*time.Millisecond)
	defer stop()
	silent("TryLogin", r.tryLogin(short, name, before))
	thaw()
	now := s.settle(t, name, before, next, deadline)
	last := s.rotator(t)
	if err := last.replace(s.ctx, name, next, soon()); err != nil {
		t.Fatalf("Replace once it is awake: %v", err)
	}
	s.mustHold(t, last, name, next)
	if !now.Equal(next) {
		s.mustHold(t, last, name, next, before)
	}
}

// testConcurrentReplaces: whoever wins, one secret holds.
func testConcurrentReplaces(t *testing.T, s *suite) {
	r := s.rotator(t)
	if r == nil {
		return
	}
	name, first := s.account(t)
	next, errs := make([]secret.Text, 6), make([]error, 6)
	var wg sync.WaitGroup
	for i := range next {
		next[i] = NewSecret()
		wg.Go(func() { errs[i] = r.replace(s.ctx, name, next[i], soon()) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			t.Errorf("concurrent Replace: %v", err)
		}
	}
	won := slices.IndexFunc(next, func(n secret.Text) bool { return r.tryLogin(s.ctx, name, n) == nil })
	if won < 0 {
		t.Fatal("none of the secrets holds after concurrent Replaces")
	}
	others := append(slices.Delete(slices.Clone(next), won, won+1), first)
	s.mustHold(t, r, name, next[won], others...)
}

func testReplaceHostile(t *testing.T, s *suite) {
	r := s.rotator(t)
	if r == nil {
		return
	}
	for _, name := range s.Rotation.Names {
		first, next := s.Rotation.Account(t, name), NewSecret()
		if err := r.replace(s.ctx, name, next, soon()); err != nil {
			t.Errorf("Replace of the account %q: %v", name, err)
			continue
		}
		s.mustHold(t, r, name, next, first)
		s.mustBeIntact(t)
	}
	name, now := s.account(t)
	for _, text := range append(HostileStrings(), `a'b"c\d;--$$%s x`+"`", `\`, `'`, `"`) {
		exists := slices.Contains(s.Rotation.Names, text)
		if err := r.replace(s.ctx, text, NewSecret(), soon()); err == nil && !exists {
			t.Errorf("Replace of the account %.60q, which does not exist", text)
		}
		hostile := secret.New(text)
		if err := r.inner.TryLogin(s.ctx, name, hostile); err == nil { // unrecorded: one blank is no secret to look for
			t.Errorf("TryLogin takes %.60q", text)
		}
		err := r.inner.Replace(s.ctx, issuers.Replacement{Username: name, Next: hostile, Deadline: soon()})
		switch {
		case err == nil:
			s.mustHold(t, r, name, hostile, now)
			now = hostile
		case issuers.KindOf(err) == issuers.Refused:
			if err := r.inner.TryLogin(s.ctx, name, now); err != nil {
				t.Fatalf("after a refused Replace by %.60q the secret before: %v", text, err)
			}
		default:
			t.Errorf("Replace by %.60q: %v; want it done, or kind refused", text, err)
		}
		s.mustBeIntact(t)
	}
}

// testReplaceAdmin rotates the broker's own way in, and puts it back.
func testReplaceAdmin(t *testing.T, s *suite) {
	r := s.rotator(t)
	holder, ok := s.Kind.(issuers.AdminHolder)
	if r == nil || !ok {
		return
	}
	username, secretName, err := holder.Admin(s.Target.Spec)
	if err != nil {
		t.Fatalf("Admin: %v", err)
	}
	if secretName == "" {
		return
	}
	old, next := s.Target.Secrets[secretName], NewSecret()
	if username == "" || old.IsZero() {
		t.Fatalf("Admin names the account %q and the secret %q, which the target does not have", username, secretName)
	}
	with := *s
	with.Target.Secrets = map[string]secret.Text{}
	for k, v := range s.Target.Secrets {
		with.Target.Secrets[k] = v
	}
	with.Target.Secrets[secretName] = next
	restore := sync.OnceFunc(func() {
		if err := with.rotator(t).replace(s.ctx, username, old, soon()); err != nil {
			t.Errorf("put the admin's secret back: %v", err)
		}
	})
	defer restore()
	if err := r.replace(s.ctx, username, next, soon()); err != nil {
		t.Fatalf("Replace of the admin account's secret: %v", err)
	}
	fresh := with.rotator(t)
	for _, way := range []*rotator{r, fresh} {
		if err := way.tryLogin(s.ctx, username, next); err != nil {
			t.Errorf("TryLogin of the admin by the next secret: %v", err)
		}
		if err := way.tryLogin(s.ctx, username, old); issuers.KindOf(err) != issuers.Refused {
			t.Errorf("TryLogin of the admin by the secret before: %v; want kind refused", err)
		}
	}
	l := s.lease(t)
	c, err := fresh.Mint(s.ctx, l)
	if err != nil {
		t.Fatalf("Mint by the next secret: %v", err)
	}
	s.mustWork(t, c, "minted after the admin's rotation")
	if err := s.mintError(t, s.open(t, nextTerm()), s.lease(t), "by the admin's secret before"); err.Kind != issuers.Refused {
		t.Errorf("Mint by the admin's secret before: %v; want kind refused", err)
	}
	s.checkEnded(t, []issuers.Lease{l}, fresh.Withdraw(s.ctx, []issuers.Lease{l}))
	restore() // the harness may look by the admin account, too
	s.mustBeGone(t, "withdrawn after the admin's rotation", l)
	s.mustWork(t, s.mint(t, s.lease(t)), "minted after the admin's secret was put back")
}

func testRotateUnreachable(t *testing.T, s *suite) {
	if s.rotator(t) == nil || s.Unreachable == nil {
		return
	}
	nobody := s.rotatorOf(t, s.openSpec(t, nextTerm(), s.Unreachable))
	if err := nobody.replace(s.ctx, "app", NewSecret(), soon()); issuers.KindOf(err) != issuers.Unreachable {
		t.Errorf("Replace where nobody answers: %v; want kind unreachable", err)
	}
	if err := nobody.tryLogin(s.ctx, "app", NewSecret()); issuers.KindOf(err) != issuers.Unreachable {
		t.Errorf("TryLogin where nobody answers: %v; want kind unreachable", err)
	}
}
