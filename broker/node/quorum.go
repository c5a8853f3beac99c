package node

import (
	"context"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/seal"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/secret"
)

// Unseal takes one share and, with the last one needed, opens the node.
func (n *Node) Unseal(ctx context.Context, in wire.UnsealRequest) (wire.Status, error) {
	if err := n.unseal(ctx, in); err != nil {
		return wire.Status{}, err
	}
	return n.Status(), nil
}

func (n *Node) unseal(ctx context.Context, in wire.UnsealRequest) error {
	defer n.begin()()
	unsealer := n.condition.unsealer
	switch {
	case n.condition.state == uninitialised:
		_, err := n.current()
		return err
	case n.condition.state == running:
		return nil
	case unsealer == nil:
		return fault.New(fault.Conflict, "seal_is_local", "This node is sealed by a key file and unseals when it is restarted with it.")
	case in.Reset:
		unsealer.Reset()
		return nil
	}
	k, _, err := unsealer.Add(secret.New(in.Share))
	if err != nil || k == nil {
		return err
	}
	n.log.Info("unsealed by shares")
	return n.open(ctx, k, false)
}

// Seal closes the node until shares open it again.
func (n *Node) Seal(ctx context.Context, c broker.Caller) error {
	r, err := n.current()
	if err != nil {
		return err
	}
	command, err := r.engine.DecideCluster(ctx, c, "seal")
	if err != nil {
		return err
	}
	if err := r.record(ctx, command); err != nil {
		return err
	}
	n.log.Warn("sealing", "by", c.Session.Principal)
	return n.Close()
}

// prove checks a quorum of shares against this node's keyring.
func (n *Node) prove(texts []string) ([]seal.Share, *seal.Wrapped, error) {
	if err := n.throttle(); err != nil {
		return nil, nil, err
	}
	now := n.published.Load()
	if now.wrapped == nil {
		_, err := n.current()
		return nil, nil, err
	}
	if len(texts) > 255 {
		return nil, nil, fault.New(fault.Invalid, "too_many_shares", "At most 255 shares.")
	}
	var secrets []secret.Text
	for _, t := range texts {
		secrets = append(secrets, secret.New(t))
	}
	shares, err := seal.ParseShares(secrets)
	if err != nil {
		return nil, nil, err
	}
	w := now.wrapped
	if now.keyring != nil { // the newest document, not the one read at start
		if fresh, err := now.keyring.Rewrap(); err == nil {
			w = fresh
		}
	}
	return shares, w, w.ProveShares(shares)
}

// Recover makes an enrolment token for an administrator who lost every key. A
// quorum of unseal shares stands in for a session.
func (n *Node) Recover(ctx context.Context, in wire.RecoverRequest) (wire.EnrolAnswer, error) {
	e, err := n.Engine()
	if err != nil {
		return wire.EnrolAnswer{}, err
	}
	if err := checkAdmins([]string{in.Principal}); err != nil {
		return wire.EnrolAnswer{}, err
	}
	if _, _, err := n.prove(in.Shares); err != nil {
		return wire.EnrolAnswer{}, err
	}
	n.log.Warn("an administrator is being recovered by a quorum of unseal shares", "principal", in.Principal)
	return e.EnrolByQuorum(ctx, in.Principal, "recover")
}

// Rekey reshares the same root key: new shares, and the old ones open nothing
// any more: on this node at once, on those in contact within keyringEvery, and on one
// that is down or sealed only when it next hears one that knows of it.
func (n *Node) Rekey(_ context.Context, in wire.RekeyRequest) ([]string, error) {
	if _, err := n.current(); err != nil {
		return nil, err
	}
	if !n.IsLeader() {
		return nil, &fault.Error{Kind: fault.Unavailable, Code: "no_leader", Detail: "Rekey on the leader; mayfly operator status names it."}
	}
	shares, w, err := n.prove(in.Shares)
	if err != nil {
		return nil, err
	}
	fresh, next, err := seal.Rekey(w, shares, seal.Params{Shares: in.Count, Threshold: in.Threshold})
	if err != nil {
		return nil, err
	}
	defer n.begin()()
	if n.condition.keyring == nil {
		_, err := n.current()
		return nil, err
	}
	if _, err := n.condition.keyring.AbsorbStored(fresh, n.keep); err != nil {
		return nil, err
	}
	var out []string
	for _, s := range next {
		out = append(out, s.Text().Reveal())
	}
	n.log.Warn("the root key was reshared", "shares", in.Count, "threshold", in.Threshold)
	return out, nil
}
