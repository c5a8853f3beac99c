package issuertest

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// Rotation is what the suite needs to try an [issuers.Rotator]: accounts of the
// target that are no lease's, and a way in that is not the issuer's.
type Rotation struct {
	// Account makes the account called name, and returns its first secret. It
	// removes the account at the test's end.
	Account func(t *testing.T, name string) secret.Text
	// Login logs in with a secret on the real system. An error says that the
	// secret is refused.
	Login func(ctx context.Context, username string, s secret.Text) error
	// Hold logs in and keeps the session open.
	Hold func(ctx context.Context, username string, s secret.Text) (Session, error)
	// Freeze makes the target hang, and returns what wakes it up again. Nil where
	// the target is several servers that would take each other for dead.
	Freeze func(t *testing.T) (thaw func())
	// Several says that the target is several servers: a crash may leave them with
	// different secrets. TryLogin then says unknown, and another Replace settles it.
	Several bool
	// Names are hostile names that the target can give to an account.
	Names []string
}

// terms are the terms of the rotation cases' issuers. They only grow, as a
// cluster's do: a connection of a later term may make an issuer give up.
var terms atomic.Uint64

func nextTerm() uint64 { return 1000 + terms.Add(1) }

// rotator is an issuer whose answers the transcript keeps.
type rotator struct {
	*recorder
	inner issuers.Rotator
}

// rotator opens the target for rotation; nil where the kind cannot rotate.
func (s *suite) rotator(t *testing.T) *rotator {
	t.Helper()
	return s.rotatorOf(t, s.open(t, nextTerm()))
}

func (s *suite) rotatorOf(t *testing.T, r *recorder) *rotator {
	t.Helper()
	inner, ok := r.inner.(issuers.Rotator)
	if !ok {
		return nil
	}
	if s.Rotation == nil {
		t.Fatal("issuertest: the issuer is a Rotator, and needs Harness.Rotation")
	}
	return &rotator{r, inner}
}

func (r *rotator) replace(ctx context.Context, username string, next secret.Text, deadline time.Time) error {
	r.said.addSecret(next)
	return r.say(r.inner.Replace(ctx, issuers.Replacement{Username: username, Next: next, Deadline: deadline}))
}

func (r *rotator) tryLogin(ctx context.Context, username string, s secret.Text) error {
	return r.say(r.inner.TryLogin(ctx, username, s))
}

func (r *rotator) say(err error) error {
	r.said.sayError(err)
	return err
}

// soon is a deadline that a sound target keeps.
func soon() time.Time { return time.Now().Add(30 * time.Second) }

// account makes an account with a fresh name.
func (s *suite) account(t *testing.T) (name string, first secret.Text) {
	t.Helper()
	name = "app_" + NewLeaseID()[:12]
	first = s.Rotation.Account(t, name)
	s.said.addSecret(first)
	if err := s.Rotation.Login(s.ctx, name, first); err != nil {
		t.Fatalf("the harness's account does not work: %v", err)
	}
	return name, first
}

// mustHold fails the case unless the account is entered by one secret, and by
// none of the others; and unless TryLogin says the same.
func (s *suite) mustHold(t *testing.T, r *rotator, username string, one secret.Text, others ...secret.Text) {
	t.Helper()
	if err := s.Rotation.Login(s.ctx, username, one); err != nil {
		t.Fatalf("the secret of %q does not work: %v", username, err)
	}
	if err := r.tryLogin(s.ctx, username, one); err != nil {
		t.Fatalf("TryLogin of %q with the secret that works: %v", username, err)
	}
	for i, other := range others {
		if s.Rotation.Login(s.ctx, username, other) == nil {
			t.Fatalf("another secret of %q (%d) works, too", username, i)
		}
		if err := r.tryLogin(s.ctx, username, other); issuers.KindOf(err) != issuers.Refused {
			t.Fatalf("TryLogin of %q with another secret (%d): %v; want kind refused", username, i, err)
		}
	}
}

// settle does what a new leader does after a crash: it fences, and asks the target
// which of two secrets it is. It must be exactly one.
func (s *suite) settle(t *testing.T, username string, before, next secret.Text, deadline time.Time) (now secret.Text) {
	t.Helper()
	r := s.rotator(t)
	defer func() { _ = r.close() }()
	fencer, fences := r.recorder.inner.(issuers.Fencer)
	err := eventually(s.ctx, 20*time.Second, func() error {
		if fences {
			return fencer.Fence(s.ctx)
		}
		if !time.Now().After(deadline.Add(2 * time.Second)) {
			return context.DeadlineExceeded
		}
		return nil
	})
	if err != nil {
		t.Fatalf("Fence after a crash: %v", err)
	}
	answers := [2]error{r.tryLogin(s.ctx, username, before), r.tryLogin(s.ctx, username, next)}
	switch {
	case answers[0] == nil && issuers.KindOf(answers[1]) == issuers.Refused && answers[1] != nil:
		now = before
	case answers[1] == nil && issuers.KindOf(answers[0]) == issuers.Refused && answers[0] != nil:
		now = next
	case s.Rotation.Several && answers[0] != nil && answers[1] != nil && issuers.KindOf(answers[0]) == issuers.Unknown && issuers.KindOf(answers[1]) == issuers.Unknown:
		if err := r.replace(s.ctx, username, next, soon()); err != nil {
			t.Fatalf("Replace after a crash that left several secrets: %v", err)
		}
		s.mustHold(t, r, username, next, before)
		now = next
	default:
		t.Fatalf("after a crash TryLogin says of the secret before: %v; of the next: %v; want exactly one, and the other refused", answers[0], answers[1])
	}
	return now
}
