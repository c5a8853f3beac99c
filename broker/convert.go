package broker

import (
	"time"

	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/issuers"
)

func at(ms int64) time.Time { return time.UnixMilli(ms).UTC() }

// atOrNil is at for instants that may not have come.
func atOrNil(ms int64) *time.Time {
	if ms == 0 {
		return nil
	}
	t := at(ms)
	return &t
}

// issuerLease is a lease as its issuer gets it.
func issuerLease(l ledger.Lease, role ledger.RoleSpec) issuers.Lease {
	g := l.Grant
	return issuers.Lease{
		ID: ledger.BareID(l.ID), Name: l.Name, Generation: l.Generation,
		Role: g.Role, RoleVersion: g.RoleVersion,
		RoleSpec: issuers.RoleSpec{OwnedOnEnd: role.OnEnd.Owned, ReassignTo: role.OnEnd.ReassignTo},
		Scope:    g.Scope, Principal: g.Principal, Chain: g.Chain, TaskID: g.TaskID, Purpose: g.Purpose,
		NotBefore: at(l.OpenedMS), NotAfter: at(l.ExpiresMS), MintDeadline: at(l.MintDeadlineMS),
		CSR: l.CSR, PublicKey: l.PublicKey,
	}
}

// accessAnswer is what the requester gets; the only place where a credential's
// secrets leave their wrapper.
func accessAnswer(l ledger.Lease, cred issuers.Credential, renewable bool, now time.Time) wire.AccessAnswer {
	g := l.Grant
	a := wire.AccessAnswer{
		Status: "issued", Role: g.Role, TaskID: g.TaskID, GrantID: g.ID, LeaseID: l.ID, DecisionID: g.DecisionID,
		ExpiresAt: at(l.ExpiresMS), NotAfter: at(l.NotAfterMS), BoundedBy: g.BoundedBy,
		Renewable: renewable && l.ExpiresMS < l.NotAfterMS,
		Scope:     g.Scope, Replaced: []string{}, Credential: map[string]string{}, Env: cred.Env,
	}
	a.RenewAfter = at(now.UnixMilli() + max(0, l.ExpiresMS-now.UnixMilli())/2)
	for k, v := range cred.Public {
		a.Credential[k] = v
	}
	for k, v := range cred.Secret {
		a.Credential[k] = v.Reveal()
	}
	return a
}

func wireLease(l ledger.Lease) wire.Lease {
	g := l.Grant
	w := wire.Lease{
		ID: l.ID, State: l.State, Role: g.Role, Target: l.Target, Principal: g.Principal, Instance: g.Instance, Chain: g.Chain,
		TaskID: g.TaskID, GrantID: g.ID, DecisionID: g.DecisionID, Purpose: g.Purpose, Scope: g.Scope,
		Username: l.Name, Generation: l.Generation,
		OpenedAt: at(l.OpenedMS), ExpiresAt: at(l.ExpiresMS), NotAfter: at(l.NotAfterMS), BoundedBy: g.BoundedBy,
	}
	if e := l.End; e != nil {
		w.EndReason, w.EndedBy, w.Problem, w.Receipt = e.Reason, e.By, e.Problem, e.Receipt
		w.EndingAt, w.EndedAt = atOrNil(e.SinceMS), atOrNil(e.EndedMS)
	}
	return w
}

func wireTask(t ledger.Task) wire.Task {
	return wire.Task{
		ID: t.ID, Name: t.Name, Purpose: t.Purpose, Principal: t.Principal, StartedBy: t.StartedBy, Parent: t.Parent,
		Implicit: t.Implicit, Scope: t.Scope, State: t.State, StartedAt: at(t.StartedMS), Deadline: at(t.DeadlineMS),
		DueAt: at(t.DueMS()), EndedAt: atOrNil(t.EndedMS), EndReason: t.EndReason,
	}
}
