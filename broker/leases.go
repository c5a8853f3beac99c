package broker

import (
	"context"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/policy"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/issuers"
)

// Lease returns one lease of the caller's, or any that policy lets be read.
func (e *Engine) Lease(_ context.Context, c Caller, id string) (wire.Lease, error) {
	var out wire.Lease
	err := e.view(func(q ledger.Query) error {
		l, ok := q.Lease(id)
		if !ok || l.Grant.Principal != c.Session.Principal && !e.mayRead(q, c, e.leaseResource(q, l)) {
			return leaseNotFound(id)
		}
		out = wireLease(l)
		return nil
	})
	return out, err
}

func leaseNotFound(id string) error {
	return fault.New(fault.NotFound, "lease_not_found", "Lease %s does not exist or is not yours. List leases with: mayfly lease list", id)
}

func (e *Engine) leaseResource(q ledger.Query, l ledger.Lease) policy.Resource {
	// Without a ground nothing is permitted either: see decide.
	r, _ := e.resourceOf(q, ledger.KindRole, l.Grant.Role)
	r.Kind, r.Name, r.Owner, r.Target = "Lease", l.ID, l.Grant.Principal, l.Target
	return r
}

// LeaseFilter narrows a list of leases.
type LeaseFilter struct {
	State     string
	Target    string
	Principal string
	Task      string
	Limit     int
	After     string
}

func (f LeaseFilter) takes(l ledger.Lease) bool {
	return (f.State == "" || l.State == f.State) && (f.Target == "" || l.Target == f.Target) &&
		(f.Principal == "" || l.Grant.Principal == f.Principal) && (f.Task == "" || l.Grant.TaskID == f.Task)
}

// Leases lists leases: the caller's own, or all where policy lets the caller
// read the cluster.
func (e *Engine) Leases(_ context.Context, c Caller, f LeaseFilter) ([]wire.Lease, error) {
	out := []wire.Lease{}
	limit := pageSize(f.Limit)
	err := e.view(func(q ledger.Query) error {
		all := e.mayRead(q, c, policy.Resource{Kind: "Cluster", Name: "cluster"})
		q.Leases(f.After, func(l ledger.Lease) bool {
			if f.takes(l) && (all || l.Grant.Principal == c.Session.Principal) {
				out = append(out, wireLease(l))
			}
			return len(out) < limit
		})
		return nil
	})
	return out, err
}

// Renew extends a lease within its hard end: the ledger first, then the target,
// then the answer (HAZARDS 13). Policy decides again.
func (e *Engine) Renew(ctx context.Context, c Caller, id string, in wire.RenewRequest) (wire.Lease, error) {
	asked, err := parseTTL(in.TTL)
	if err != nil {
		return wire.Lease{}, err
	}
	for range staleRetries {
		out, again, err := e.renew(ctx, c, id, asked)
		if !again {
			return out, err
		}
	}
	return wire.Lease{}, fault.New(fault.Unavailable, "busy", "Policies or objects kept changing while the renewal was decided. Retry.")
}

func (e *Engine) renew(ctx context.Context, c Caller, id string, asked time.Duration) (out wire.Lease, again bool, err error) {
	var (
		l    ledger.Lease
		r    ruling
		t    *target
		role ledger.RoleSpec
		cmd  = ledger.ExtendLease{ID: id}
		no   *declined
	)
	err = e.viewing(ctx, func(q ledger.Query) (err error) {
		var ok bool
		if l, ok = q.Lease(id); !ok || l.Grant.Principal != c.Session.Principal {
			return leaseNotFound(id)
		}
		if l.State != ledger.LeaseOpen {
			return fault.New(fault.Conflict, ledger.CodeLeaseEnded, "Lease %s has ended (%s). Request a new credential.", id, l.End.Reason)
		}
		q.Spec(ledger.KindRole, l.Grant.Role, &role)
		cmd.ExpiresMS = renewedEnd(e.now(), l, role, asked)
		cmd.Read.PolicyEpoch = q.PolicyEpoch()
		// Asked of the role, as the request was: a permit for "request" and "renew"
		// on one role means both.
		res, err := e.resourceOf(q, ledger.KindRole, l.Grant.Role)
		if err != nil {
			return err
		}
		ask := question{action: policy.ActionRenew, resource: res, context: policy.Context{
			Purpose: l.Grant.Purpose, Scope: flatten(l.Grant.Scope), Chain: l.Grant.Chain, TTLSeconds: (cmd.ExpiresMS - e.now().UnixMilli()) / 1000,
		}}
		if r, err = e.decide(q, c, ask); err != nil {
			return err
		}
		if no = declineRenewal(q, c, r, l); no == nil {
			t, err = e.targets.acquire(q, l.Target)
		}
		return err
	})
	if err != nil {
		return out, false, err
	}
	if no != nil {
		return out, false, e.recordDenial(ctx, c, no.ruling, no.err)
	}
	defer e.targets.release(t)
	ext, ok := t.issuer.(issuers.Extender)
	if _, given := ledger.AccountOf(l); !ok || given {
		return out, false, fault.New(fault.Conflict, "not_renewable", "Credentials of target %s cannot be extended. Request a new one.", l.Target)
	}
	if cmd.ExpiresMS > l.ExpiresMS {
		h := e.header(c)
		h.DecisionID, h.Decision = r.ID, r.encode()
		res, err := e.commit(ctx, h, &cmd)
		if res.Code == ledger.CodeStale {
			return out, true, nil
		}
		if err != nil {
			return out, false, err
		}
	}
	// The ledger says until when: a repeated idempotency key changes nothing.
	// The target is told even when the ledger knows already, since the call that
	// extended the ledger may have failed to reach it.
	if err := e.view(func(q ledger.Query) error { l, _ = q.Lease(id); return nil }); err != nil {
		return out, false, err
	}
	if err := ext.Extend(ctx, issuerLease(l, role)); err != nil {
		return out, false, upstream(l.Target, err)
	}
	return wireLease(l), false, nil
}

func renewedEnd(now time.Time, l ledger.Lease, role ledger.RoleSpec, asked time.Duration) int64 {
	ttl := asked
	if ttl == 0 {
		ttl = time.Duration(role.TTL.Default)
	}
	return min(now.Add(ttl).UnixMilli(), l.NotAfterMS)
}

// Revoke ends a lease now. Its holder may always; others as policy says. Force
// ends it without the target's word and needs a reason.
func (e *Engine) Revoke(ctx context.Context, c Caller, id string, in wire.RevokeRequest) (wire.Lease, error) {
	if in.Force && in.Reason == "" {
		return wire.Lease{}, fault.New(fault.Invalid, "reason_missing", "Ending a lease without the target's word needs a reason; it stands in the ledger as the receipt.")
	}
	var l ledger.Lease
	var res policy.Resource
	err := e.view(func(q ledger.Query) error {
		var ok bool
		if l, ok = q.Lease(id); !ok {
			return leaseNotFound(id)
		}
		res = e.leaseResource(q, l)
		return nil
	})
	if err != nil {
		return wire.Lease{}, err
	}
	h := e.header(c)
	if in.Force || l.Grant.Principal != c.Session.Principal {
		allow := e.allowTaking
		if in.Force {
			allow = e.allow // the credential may live on: that takes nothing away
		}
		r, err := allow(ctx, c, question{action: policy.ActionRevoke, resource: res, context: policy.Context{Purpose: in.Reason}})
		if err != nil {
			return wire.Lease{}, err
		}
		h.DecisionID, h.Decision = r.ID, r.encode()
	}
	if in.Force {
		_, err = e.commit(ctx, h, &ledger.ForceEnd{IDs: []string{id}, Reason: in.Reason})
	} else {
		_, err = e.commit(ctx, h, &ledger.EndLeases{IDs: []string{id}, Reason: ledger.EndRevoked})
	}
	if err != nil {
		return wire.Lease{}, err
	}
	e.wake()
	e.awaitEnded(ctx, []string{id}, 3*time.Second)
	err = e.view(func(q ledger.Query) error { l, _ = q.Lease(id); return nil })
	return wireLease(l), err
}

// Whohas names who got the credential of a user name, serial or jti.
func (e *Engine) Whohas(ctx context.Context, c Caller, name string) (wire.Whohas, error) {
	if _, err := e.allow(ctx, c, question{action: policy.ActionRead, resource: policy.Resource{Kind: "Cluster", Name: "cluster"}}); err != nil {
		return wire.Whohas{}, err
	}
	var out wire.Whohas
	err := e.view(func(q ledger.Query) error {
		l, ok := q.LeaseNamed(name)
		if !ok {
			if l, ok = q.Lease(name); !ok {
				return e.unknownCredential(q, name)
			}
		}
		out = wire.Whohas{
			LeaseID: l.ID, Principal: l.Grant.Principal, Chain: l.Grant.Chain, TaskID: l.Grant.TaskID, Purpose: l.Grant.Purpose,
			DecisionID: l.Grant.DecisionID, Approvals: approversOf(q, l.Grant.ID), State: l.State, Role: l.Grant.Role, Target: l.Target, Lease: wireLease(l),
		}
		return nil
	})
	return out, err
}

// approversOf names who co-signed a grant.
func approversOf(q ledger.Query, grant string) []string {
	out := []string{}
	g, ok := q.Cosigned(grant)
	if !ok {
		return out
	}
	for _, s := range g.Signed {
		if !s.StepUp {
			out = append(out, s.Principal)
		}
	}
	return out
}
