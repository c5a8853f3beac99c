package consoletest

import (
	"context"
	"slices"
	"strings"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// Whoami implements console.Engine.
func (e *Engine) Whoami(_ context.Context, c broker.Caller) (wire.Whoami, error) {
	s := c.Session
	return wire.Whoami{Principal: s.Principal, Groups: e.World.GroupsOf[s.Principal], SessionID: s.ID, Binding: s.Binding, Method: s.Method,
		ExpiresAt: e.Clock().Add(52 * 60e9), Cluster: e.World.Status.Cluster}, nil
}

// Keys implements console.Engine.
func (e *Engine) Keys(_ context.Context, c broker.Caller, principal string) ([]wire.Key, error) {
	if principal == "" {
		principal = c.Session.Principal
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.World.Keys[principal]), nil
}

// RemoveKey implements console.Engine.
func (e *Engine) RemoveKey(_ context.Context, c broker.Caller, principal, thumbprint string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if principal != c.Session.Principal {
		return fault.New(fault.Denied, "denied", "That is not your key.")
	}
	e.keys = slices.DeleteFunc(e.keys, func(k broker.RegisteredKey) bool { return k.Thumbprint == thumbprint })
	return nil
}

// Objects implements console.Engine.
func (e *Engine) Objects(_ context.Context, _ broker.Caller, kind string) (out []wire.Object, err error) {
	for _, o := range e.World.Objects {
		if o.Kind == kind {
			out = append(out, o)
		}
	}
	return out, nil
}

// Object implements console.Engine.
func (e *Engine) Object(_ context.Context, _ broker.Caller, kind, name string) (wire.Object, error) {
	for _, o := range e.World.Objects {
		if o.Kind == kind && o.Name == name {
			return o, nil
		}
	}
	return wire.Object{}, missing(kind, name)
}

// Rotations implements console.Engine.
func (e *Engine) Rotations(context.Context, broker.Caller) ([]wire.Rotation, error) {
	return e.World.Rotations, nil
}

// NodePlugins implements console.Engine.
func (e *Engine) NodePlugins(context.Context, broker.Caller) ([]wire.NodePlugin, error) {
	return e.World.Plugins, nil
}

// CheckTarget implements console.Engine.
func (e *Engine) CheckTarget(_ context.Context, _ broker.Caller, name string) (wire.TargetReport, error) {
	return wire.TargetReport{Target: name, Findings: e.World.Findings}, nil
}

// Tasks implements console.Engine.
func (e *Engine) Tasks(_ context.Context, _ broker.Caller, f broker.TaskFilter) (out []wire.Task, err error) {
	for _, t := range e.World.Tasks {
		if f.State == "" || t.State == f.State {
			out = append(out, t)
		}
	}
	return out, nil
}

// Task implements console.Engine.
func (e *Engine) Task(_ context.Context, _ broker.Caller, id string) (wire.Task, error) {
	for _, t := range e.World.Tasks {
		if t.ID == id {
			for _, kid := range e.World.Tasks {
				if kid.Parent == id {
					t.Children = append(t.Children, kid.ID)
				}
			}
			return t, nil
		}
	}
	return wire.Task{}, missing("task", id)
}

// Leases implements console.Engine.
func (e *Engine) Leases(_ context.Context, _ broker.Caller, f broker.LeaseFilter) (out []wire.Lease, err error) {
	for _, l := range e.World.Leases {
		if (f.State == "" || l.State == f.State) && (f.Target == "" || l.Target == f.Target) && (f.Principal == "" || l.Principal == f.Principal) && (f.Task == "" || l.TaskID == f.Task) {
			out = append(out, l)
		}
	}
	return out, nil
}

// Lease implements console.Engine.
func (e *Engine) Lease(_ context.Context, _ broker.Caller, id string) (wire.Lease, error) {
	for _, l := range e.World.Leases {
		if l.ID == id {
			return l, nil
		}
	}
	return wire.Lease{}, missing("lease", id)
}

// Grants implements console.Engine.
func (e *Engine) Grants(_ context.Context, c broker.Caller, f broker.GrantFilter) (out []wire.Grant, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, g := range e.World.Grants {
		switch {
		case f.Pending && g.State != wire.GrantWaiting && (g.Review == nil || g.Review.Done),
			f.Mine && g.Principal != c.Session.Principal,
			f.Overdue && (g.Review == nil || !g.Review.Overdue),
			f.State != "" && g.State != f.State,
			f.Principal != "" && g.Principal != f.Principal:
			continue
		}
		out = append(out, g)
	}
	return out, nil
}

// Grant implements console.Engine.
func (e *Engine) Grant(_ context.Context, _ broker.Caller, id string) (wire.Grant, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, g := range e.World.Grants {
		if g.ID == id {
			g.Needs, g.Approvals = slices.Clone(g.Needs), slices.Clone(g.Approvals)
			return g, nil
		}
	}
	return wire.Grant{}, missing("grant", id)
}

// Previous implements console.Engine.
func (e *Engine) Previous(ctx context.Context, c broker.Caller, id string) (wire.Grant, error) {
	if before, ok := e.World.Before[id]; ok {
		return e.Grant(ctx, c, before)
	}
	return wire.Grant{}, missing("grant before", id)
}

// Decision implements console.Engine.
func (e *Engine) Decision(_ context.Context, _ broker.Caller, id string) (wire.Decision, error) {
	if d, ok := e.World.Decisions[id]; ok {
		return d, nil
	}
	return wire.Decision{}, missing("decision", id)
}

// TestPolicies implements console.Engine: the first case passes, others fail.
func (e *Engine) TestPolicies(_ context.Context, _ broker.Caller, in wire.PolicyTestRequest) (wire.PolicyTestAnswer, error) {
	if strings.Contains(string(in.Cases), "not a case") {
		return wire.PolicyTestAnswer{}, fault.New(fault.Invalid, "invalid_cases", "The test cases cannot be read: unknown field.")
	}
	return wire.PolicyTestAnswer{Passed: 1, Failed: 1, Results: []wire.CaseResult{{Name: "an agent may read orders", OK: true},
		{Name: "nobody writes at night", Detail: "permit: want false, got true. It was permitted by orders-agents (access:4)."}}}, nil
}

// ReplayPolicies implements console.Engine.
func (e *Engine) ReplayPolicies(_ context.Context, _ broker.Caller, in wire.PolicyReplayRequest) (wire.PolicyReplayAnswer, error) {
	if len(in.Policies) == 0 {
		return wire.PolicyReplayAnswer{Entries: 4211, Decisions: 980, Same: 980, Groups: []wire.PolicyReplayGroup{}}, nil
	}
	return wire.PolicyReplayAnswer{Entries: 4211, Decisions: 980, Same: 973, PermitToDeny: 7, Groups: []wire.PolicyReplayGroup{{
		Change: wire.ChangePermitToDeny, Principal: "agent:billing-bot", Action: "request", Resource: "Role/orders/readwrite", Count: 7,
		DecisionID: "dec_06h04375p291xqvfwzfmfe7c2g", Before: "permitted by orders-agents", After: "no policy permits it",
	}}}, nil
}

// AuditEntries implements console.Engine.
func (e *Engine) AuditEntries(_ context.Context, _ broker.Caller, from uint64, limit int) (wire.AuditPage, error) {
	p := wire.AuditPage{Size: uint64(len(e.World.Entries))}
	for i := from; i < p.Size && len(p.Entries) < limit; i++ {
		p.Entries = append(p.Entries, e.World.Entries[i])
	}
	return p, nil
}

// Status implements console.Node.
func (e *Engine) Status() wire.Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.World.Status
	s.Size = e.World.Size
	return s
}

// Peers implements console.Node.
func (e *Engine) Peers(context.Context, broker.Caller) ([]wire.Peer, error) {
	return e.World.Peers, nil
}

// Grow makes the ledger larger, as any command would.
func (e *Engine) Grow(change func(w *World)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change(&e.World)
	e.World.Size++
}
