package brokertest

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

// Kind is the kind of target that a System is: type "memory", spec
// {"system": NAME}. Each node of a cluster has a Kind of its own, over the same
// systems.
type Kind struct {
	Systems map[string]*System
	// Clock is the clock of the node that uses the kind; time.Now where nil.
	Clock func() time.Time
	// Wire, where set, stands before the systems' own: it knows the node.
	Wire func(ctx context.Context, c Call, act func() error) error
	// Longest bounds every lease; 0 does not.
	Longest time.Duration
	// ExpiresOnly takes nothing back: credentials live until their leases' first end.
	ExpiresOnly bool
}

// Name implements [issuers.Kind].
func (k *Kind) Name() string { return "memory" }

// Revocable implements [issuers.Kind].
func (k *Kind) Revocable() bool { return !k.ExpiresOnly }

// MaxTTL implements [issuers.Bounder].
func (k *Kind) MaxTTL(json.RawMessage) time.Duration { return k.Longest }

// CheckSpec implements [issuers.Kind].
func (k *Kind) CheckSpec(spec json.RawMessage) error {
	name, err := specOf(spec)
	if err == nil && k.Systems[name] == nil {
		err = fmt.Errorf("there is no system %q", name)
	}
	return err
}

// CheckScope implements [issuers.Kind]: details of type memory, actions read
// and write.
func (k *Kind) CheckScope(_ json.RawMessage, s scope.Scope) error {
	for _, d := range s {
		if d.Type != "memory" || slices.ContainsFunc(d.Actions, func(a string) bool { return a != "read" && a != "write" }) {
			return fmt.Errorf("type is memory; actions are read and write")
		}
	}
	return nil
}

// CredentialName implements [issuers.Kind]: one account for all generations.
func (k *Kind) CredentialName(leaseID string, _ uint64) string { return "mf-" + leaseID }

// Open implements [issuers.Kind].
func (k *Kind) Open(t issuers.Target) (issuers.Issuer, error) {
	name, err := specOf(t.Spec)
	if err != nil {
		return nil, err
	}
	sys := k.Systems[name]
	if sys == nil {
		return nil, fmt.Errorf("there is no system %q", name)
	}
	return &issuer{kind: k, sys: sys, term: t.Term}, nil
}

func (k *Kind) now() time.Time {
	if k.Clock != nil {
		return k.Clock()
	}
	return time.Now()
}

// issuer is one node's connection to a System.
type issuer struct {
	kind *Kind
	sys  *System
	term uint64

	mu       sync.Mutex
	measured time.Time     // monotonic; zero: never
	offset   time.Duration // the system's clock less the node's, as measured then
}

func (i *issuer) carry(ctx context.Context, verb string, leases []issuers.Lease, act func() error) error {
	c := Call{Verb: verb, System: i.sys.Name, Term: i.term, Leases: leases}
	if i.kind.Wire == nil {
		return i.sys.carry(ctx, c, act)
	}
	return i.kind.Wire(ctx, c, func() error { return i.sys.carry(ctx, c, act) })
}

// clockAge is how long a measured clock offset is believed, as in the real issuers.
const clockAge = time.Minute

// there translates an instant of the node's clock to the system's, as the real
// issuers do.
func (i *issuer) there(t time.Time) time.Time {
	i.mu.Lock()
	defer i.mu.Unlock()
	if now := time.Now(); i.measured.IsZero() || now.Sub(i.measured) > clockAge {
		i.measured, i.offset = now, i.sys.now().Sub(i.kind.now())
	}
	return t.Add(i.offset)
}

// until is when the account itself expires: the lease's end by either clock,
// whichever is earlier (HAZARDS 13).
func (i *issuer) until(l issuers.Lease) time.Time {
	if by := i.there(l.NotAfter); by.Before(l.NotAfter) {
		return by
	}
	return l.NotAfter
}

// Mint implements [issuers.Issuer].
func (i *issuer) Mint(ctx context.Context, l issuers.Lease) (issuers.Credential, error) {
	var password string
	deadline := l.MintDeadline
	if l.NotAfter.Before(deadline) {
		deadline = l.NotAfter
	}
	deadline = i.there(deadline)
	err := i.carry(ctx, "mint", []issuers.Lease{l}, func() (err error) {
		password, err = i.sys.mint(l, deadline, i.until(l))
		return err
	})
	if err != nil {
		return issuers.Credential{}, err
	}
	return issuers.Credential{
		Public: map[string]string{"username": l.Name, "host": i.sys.Name},
		Secret: map[string]secret.Text{"password": secret.New(password)},
		Env:    map[string]string{"MEMORYUSER": "username"},
	}, nil
}

// Withdraw implements [issuers.Issuer].
func (i *issuer) Withdraw(ctx context.Context, leases []issuers.Lease) []issuers.Outcome {
	out := make([]issuers.Outcome, len(leases))
	err := i.carry(ctx, "withdraw", leases, func() error {
		for n, l := range leases {
			if i.kind.ExpiresOnly {
				out[n].Receipt = issuers.Receipt{Proof: issuers.ProofExpiresOnly, Detail: "nothing to ask"}
				continue
			}
			out[n] = i.sys.withdraw(l)
		}
		return nil
	})
	if err != nil {
		failed := make([]issuers.Outcome, len(leases))
		for n := range failed {
			failed[n].Err = err
		}
		return failed
	}
	return out
}

// Extend implements [issuers.Extender].
func (i *issuer) Extend(ctx context.Context, l issuers.Lease) error {
	until := i.until(l)
	return i.carry(ctx, "extend", []issuers.Lease{l}, func() error { return i.sys.extend(l, until) })
}

// Fence implements [issuers.Fencer].
func (i *issuer) Fence(ctx context.Context) error {
	return i.carry(ctx, "fence", nil, func() error {
		if i.sys.Fenced != nil && !i.sys.Bugs.FencesNothing {
			i.sys.Fenced(i.term)
		}
		return nil
	})
}

// List implements [issuers.Lister].
func (i *issuer) List(ctx context.Context) (found []issuers.Found, err error) {
	err = i.carry(ctx, "list", nil, func() error { found = i.sys.list(); return nil })
	return found, err
}

// Close implements [issuers.Issuer].
func (i *issuer) Close() error { return nil }
