package broker

import (
	"context"
	"errors"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/issuers"
)

// slot is a turn to mint on a target: one of a bounded number, which the target's
// breaker has let through. It is taken before the lease is committed, so that the
// mint deadline does not run while waiting, and so that a target that is away costs
// the log nothing: while the breaker tries whether it is back, one lease is opened
// and no other (HAZARDS 17).
type slot struct {
	target *target
	tell   func(error) // the breaker; nil once it was told
}

// errNotTried tells the breaker that a turn says nothing of the target.
var errNotTried = errors.New("broker: the target was not asked")

// slot waits for a turn.
func (e *Engine) slot(ctx context.Context, t *target) (*slot, error) {
	if t.breaker.State() == gobreaker.StateOpen {
		return nil, upstream(t.name, errAway)
	}
	wait, cancel := context.WithTimeout(ctx, e.cfg.Timing.Slot)
	defer cancel()
	if err := t.mints.Acquire(wait, 1); err != nil {
		return nil, &fault.Error{Kind: fault.Unavailable, Code: "target_unavailable", RetryAfter: time.Second, Err: err,
			Detail: "Target " + t.name + " is busy: too many mints are waiting for it. Retry."}
	}
	tell, err := t.breaker.Allow()
	if err != nil { // another turn tries whether it is back
		t.mints.Release(1)
		return nil, upstream(t.name, errAway)
	}
	return &slot{target: t, tell: tell}, nil
}

var errAway = &issuers.Error{Kind: issuers.Unreachable, Detail: "the last attempts failed to connect"}

// free gives the turn back.
func (s *slot) free() {
	s.told(errNotTried)
	s.target.mints.Release(1)
}

func (s *slot) told(err error) {
	if s.tell != nil {
		s.tell(err)
		s.tell = nil
	}
}

// mint asks the target, once, and tells the breaker what came of it.
func (s *slot) mint(ctx context.Context, l issuers.Lease) (issuers.Credential, error) {
	cred, err := s.target.issuer.Mint(ctx, l)
	s.told(err)
	return cred, err
}

// mintOnce is a mint within a turn that was taken on the target as it was opened
// before.
func (t *target) mintOnce(ctx context.Context, l issuers.Lease) (issuers.Credential, error) {
	tell, err := t.breaker.Allow()
	if err != nil {
		return issuers.Credential{}, errAway
	}
	cred, err := t.issuer.Mint(ctx, l)
	tell(err)
	return cred, err
}
