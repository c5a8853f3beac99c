package broker

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/policy"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// containable reads "agent:x", "target/T" or "zone/Z".
func containable(what string) (kind, name string, err error) {
	if n, ok := strings.CutPrefix(what, "target/"); ok && n != "" {
		return ledger.KindTarget, n, nil
	}
	if n, ok := strings.CutPrefix(what, "zone/"); ok && n != "" {
		return ledger.KindZone, n, nil
	}
	if _, err := ledger.PrincipalKind(what); err != nil {
		return "", "", fault.New(fault.Invalid, "what_malformed", "Name a principal (kind:name), target/NAME or zone/NAME.")
	}
	return ledger.KindPrincipal, what, nil
}

// Contain freezes a principal, target or zone: its sessions are dead, its leases
// are withdrawn, nothing new is issued until it is released.
func (e *Engine) Contain(ctx context.Context, c Caller, in wire.ContainRequest) (wire.ContainAnswer, error) {
	kind, name, err := containable(in.What)
	if err != nil {
		return wire.ContainAnswer{}, err
	}
	r, err := e.allowTaking(ctx, c, question{action: policy.ActionContain, resource: policy.Resource{Kind: kind, Name: name}, context: policy.Context{Purpose: in.Reason}})
	if err != nil {
		return wire.ContainAnswer{}, err
	}
	out := wire.ContainAnswer{What: in.What, DryRun: in.DryRun}
	err = e.view(func(q ledger.Query) error {
		if _, ok := q.Object(kind, name); !ok {
			return fault.New(fault.NotFound, "not_found", "%s %s does not exist.", kind, name)
		}
		out.Leases = len(e.containedLeases(q, []ledger.FreezeRecord{{Kind: kind, Name: name}}, 1<<20))
		if kind == ledger.KindPrincipal {
			out.Sessions = q.SessionCount(name)
		}
		return nil
	})
	if err != nil || in.DryRun {
		return out, err
	}
	h := e.header(c)
	h.DecisionID, h.Decision = r.ID, r.encode()
	_, err = e.commit(ctx, h, &ledger.Freeze{Kind: kind, Name: name, Reason: in.Reason})
	e.wake()
	return out, err
}

// Release ends a containment. What was withdrawn stays withdrawn.
func (e *Engine) Release(ctx context.Context, c Caller, in wire.ContainRequest) (wire.ContainAnswer, error) {
	kind, name, err := containable(in.What)
	if err != nil {
		return wire.ContainAnswer{}, err
	}
	r, err := e.allow(ctx, c, question{action: policy.ActionRelease, resource: policy.Resource{Kind: kind, Name: name}, context: policy.Context{Purpose: in.Reason}})
	if err != nil {
		return wire.ContainAnswer{}, err
	}
	out := wire.ContainAnswer{What: in.What, DryRun: in.DryRun}
	if in.DryRun {
		return out, nil
	}
	h := e.header(c)
	h.DecisionID, h.Decision = r.ID, r.encode()
	_, err = e.commit(ctx, h, &ledger.Release{Kind: kind, Name: name, Reason: in.Reason})
	return out, err
}

// DecideCluster decides whether the caller may do an operation on the cluster
// itself (seal a node, add or remove one) and returns the command that records
// the permit. It must be committed before anything is done (law 5).
func (e *Engine) DecideCluster(ctx context.Context, c Caller, operation string) ([]byte, error) {
	r, err := e.allow(ctx, c, question{action: policy.ActionAdminister, resource: policy.Resource{Kind: "Cluster", Name: "cluster"}, context: policy.Context{Purpose: operation}})
	if err != nil {
		return nil, err
	}
	h := e.header(c)
	h.Idem = nil
	h.DecisionID, h.Decision = r.ID, r.encode()
	return ledger.Encode(h, &ledger.RecordDecision{Action: policy.ActionAdminister, Resource: "Cluster/cluster", Code: operation})
}

// AuthorizeCluster is DecideCluster with the record committed, on the leader.
func (e *Engine) AuthorizeCluster(ctx context.Context, c Caller, operation string) error {
	command, err := e.DecideCluster(ctx, c, operation)
	if err != nil {
		return err
	}
	_, err = e.cfg.Log.Propose(ctx, command, true)
	return err
}

// IssueJoinToken records a one-time token, by its hash, with which a node may
// join until end.
func (e *Engine) IssueJoinToken(ctx context.Context, c Caller, hash string, end time.Time) error {
	_, err := e.commit(ctx, e.header(c), &ledger.IssueJoinToken{TokenHash: hash, ExpiresMS: end.UnixMilli()})
	return err
}

// AdmitNode spends a join token for one node.
func (e *Engine) AdmitNode(ctx context.Context, hash, nodeID, addr string) error {
	_, err := e.commit(ctx, e.header(Caller{}), &ledger.AdmitNode{TokenHash: hash, NodeID: nodeID, Addr: addr})
	return err
}

// Begin writes the genesis record of a new cluster.
func (e *Engine) Begin(ctx context.Context, g ledger.Genesis) error {
	_, err := e.commit(ctx, e.header(Caller{}), &g)
	return err
}

// Begun returns the genesis record and the ledger's size; ok is false before it.
func (e *Engine) Begun() (g ledger.Genesis, size uint64, ok bool, err error) {
	err = e.view(func(q ledger.Query) error {
		size = q.Size()
		g, ok = q.Genesis()
		return nil
	})
	return g, size, ok, err
}

// Sinks returns the sinks that are configured.
func (e *Engine) Sinks() (epoch uint64, sinks map[string]ledger.SinkSpec, err error) {
	sinks = map[string]ledger.SinkSpec{}
	err = e.view(func(q ledger.Query) error {
		epoch = q.PolicyEpoch()
		for _, o := range q.Objects(ledger.KindSink) {
			var s ledger.SinkSpec
			if json.Unmarshal(o.Spec, &s) == nil {
				sinks[o.Name] = s
			}
		}
		return nil
	})
	return epoch, sinks, err
}
