package broker

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"
	"golang.org/x/sync/semaphore"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// mintsPerTarget bounds concurrent mints on one target, so that one slow target
// takes neither the broker's memory nor another target's turn (law 8).
// Withdrawal has its own lane and never waits behind mints (HAZARDS 17).
const mintsPerTarget = 64

// targets keeps one opened issuer per target, with its breaker and its lanes.
type targets struct {
	e    *Engine
	mu   sync.Mutex
	open map[string]*target
}

// target is one opened target. It is replaced when its document, a secret of it or
// the term changes; the old one closes when its last user is done.
type target struct {
	name    string
	version uint64
	rotated uint64 // ledger.Query.Rotated of its secrets
	term    uint64
	kind    issuers.Kind
	issuer  issuers.Issuer
	mints   *semaphore.Weighted
	breaker *gobreaker.TwoStepCircuitBreaker[issuers.Credential]
	revoked revocations

	mu     sync.Mutex
	users  int
	stale  bool
	fenced bool
}

func newTargets(e *Engine) *targets { return &targets{e: e, open: map[string]*target{}} }

// acquire returns the opened target as the state that q reads has it. The
// caller must release it.
func (t *targets) acquire(q ledger.Query, name string) (*target, error) {
	g, err := t.e.decider.at(q)
	if err != nil {
		return nil, err
	}
	doc := g.target(q, name)
	if doc == nil {
		return nil, fault.New(fault.NotFound, "not_found", "Target %s does not exist.", name)
	}
	o := doc.object
	term, rotated := t.e.cfg.Log.Term(), q.Rotated(ledger.RotationSubject(ledger.KindTarget, name))
	t.mu.Lock()
	defer t.mu.Unlock()
	if cur := t.open[name]; cur != nil {
		if cur.version == o.Version && cur.rotated == rotated && cur.term == term {
			cur.users++ // guarded by t.mu
			return cur, nil
		}
		delete(t.open, name)
		cur.retire()
	}
	secrets := map[string]secret.Text{}
	for _, f := range o.Secrets {
		secrets[f] = secret.New(string(q.Secret(ledger.KindTarget, name, f)))
	}
	fresh, err := t.e.openTarget(o, secrets, term)
	if err != nil {
		return nil, err
	}
	fresh.rotated = rotated
	t.open[name] = fresh
	fresh.users++
	return fresh, nil
}

// openTarget opens a target's issuer; no connection is made yet.
func (e *Engine) openTarget(o ledger.Object, secrets map[string]secret.Text, term uint64) (*target, error) {
	spec, rest, err := ledger.SplitTarget(o.Spec)
	if err != nil {
		return nil, fault.Wrap(err, fault.Invalid, "invalid_target", "Target %s: %v.", o.Name, err)
	}
	kind, err := e.kind(spec.Type)
	if err != nil {
		return nil, err
	}
	iss, err := kind.Open(issuers.Target{
		Name: o.Name, Spec: rest, Secrets: secrets, Version: o.Version, Term: term, Issuer: e.cfg.Issuer, Draft: o.Version == 0,
		Log: e.log.With(slog.String("target", o.Name)),
	})
	if err != nil {
		return nil, fault.Wrap(err, fault.Upstream, "target_unusable", "Target %s cannot be opened: %v", o.Name, err)
	}
	return &target{
		name: o.Name, version: o.Version, term: term, kind: kind, issuer: iss,
		mints: semaphore.NewWeighted(mintsPerTarget), revoked: revocations{turn: semaphore.NewWeighted(1)},
		breaker: gobreaker.NewTwoStepCircuitBreaker[issuers.Credential](gobreaker.Settings{
			Name:    o.Name,
			Timeout: 5 * time.Second, // then one mint tries again
			ReadyToTrip: func(c gobreaker.Counts) bool {
				return c.ConsecutiveFailures >= 5
			},
			// Only a target that cannot be reached trips the breaker: a mint
			// that it refuses says that it is alive (HAZARDS 17).
			IsSuccessful: func(err error) bool {
				return err == nil || issuers.KindOf(err) != issuers.Unreachable
			},
			IsExcluded: func(err error) bool { return errors.Is(err, errNotTried) },
		}),
	}, nil
}

func (t *targets) release(x *target) {
	t.mu.Lock()
	defer t.mu.Unlock()
	x.users--
	if x.stale && x.users == 0 {
		x.close()
	}
}

// retire closes the target once nobody uses it. The caller holds targets.mu.
func (x *target) retire() {
	x.stale = true
	if x.users == 0 {
		x.close()
	}
}

func (x *target) close() {
	// Nothing can be done about a connection that does not close cleanly.
	_ = x.issuer.Close()
}

// closeAll retires every target: on shutdown, and when leadership is lost.
func (t *targets) closeAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, x := range t.open {
		delete(t.open, name)
		x.retire()
	}
}

// fence ends what older terms' leaders may still be doing on the target, once
// per opened target, before anything on it is looked at for the last time
// (HAZARDS 8).
func (x *target) fence(ctx context.Context) error {
	f, ok := x.issuer.(issuers.Fencer)
	if !ok {
		return nil
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.fenced {
		return nil
	}
	if err := f.Fence(ctx); err != nil {
		return err
	}
	x.fenced = true
	return nil
}

// upstream turns a target's failure into an error for the caller.
func upstream(name string, err error) *fault.Error {
	switch issuers.KindOf(err) {
	case issuers.Unreachable:
		return &fault.Error{Kind: fault.Unavailable, Code: "target_unavailable", RetryAfter: 5 * time.Second, Err: err,
			Detail: "Target " + name + " cannot be reached. Nothing was issued; retry, or ask an operator to run: mayfly target check " + name}
	case issuers.Refused:
		return &fault.Error{Kind: fault.Upstream, Code: "target_refused", Err: err,
			Detail: "Target " + name + " refused to mint. Nothing was issued; an operator sees why with: mayfly target check " + name}
	case issuers.BadScope:
		var e *issuers.Error
		detail := "the scope names something that is not there"
		if errors.As(err, &e) {
			detail = e.Detail
		}
		return &fault.Error{Kind: fault.Invalid, Code: "invalid_authorization_details", Err: err,
			Detail: "Target " + name + ": " + detail + ". Nothing was issued; ask for what exists."}
	case issuers.Superseded:
		return &fault.Error{Kind: fault.Conflict, Code: "superseded", Err: err,
			Detail: "A newer request for the same lease has been minted meanwhile. Use its answer, or retry."}
	default:
		return &fault.Error{Kind: fault.Upstream, Code: "target_failed", RetryAfter: 2 * time.Second, Err: err,
			Detail: "Target " + name + " failed while minting. Whatever it made is being withdrawn; retry."}
	}
}
