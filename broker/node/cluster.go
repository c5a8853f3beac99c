package node

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/identity"
	"github.com/mayfly-broker/mayfly/broker/seal"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/raftstore"
	"github.com/mayfly-broker/mayfly/secret"
)

// joinTokenTTL is how long a join token may be used.
const joinTokenTTL = time.Hour

// JoinToken makes a one-time token by which a node joins the cluster.
func (n *Node) JoinToken(ctx context.Context, c broker.Caller) (wire.JoinTokenAnswer, error) {
	r, err := n.current()
	if err != nil {
		return wire.JoinTokenAnswer{}, err
	}
	if err := r.engine.AuthorizeCluster(ctx, c, "join-token"); err != nil {
		return wire.JoinTokenAnswer{}, err
	}
	k := n.published.Load().keyring
	if k == nil {
		_, err := n.current()
		return wire.JoinTokenAnswer{}, err
	}
	ca, err := authority(k)
	if err != nil {
		return wire.JoinTokenAnswer{}, err
	}
	var addrs []string
	for _, p := range r.store.Peers() {
		addrs = append(addrs, p.Addr)
	}
	tok, err := identity.NewEnrolToken(raftstore.CAHash(ca.Certificate), addrs)
	if err != nil {
		return wire.JoinTokenAnswer{}, err
	}
	sum, end := tok.Hash(), time.Now().Add(joinTokenTTL)
	if err := r.engine.IssueJoinToken(ctx, c, hex.EncodeToString(sum[:]), end); err != nil {
		return wire.JoinTokenAnswer{}, err
	}
	return wire.JoinTokenAnswer{Token: tok.Encode().Reveal(), ExpiresAt: end.UTC(),
		Command: "mayfly server --config FILE   # with  join: {token_file: PATH}  in FILE"}, nil
}

// onJoin spends a joiner's token on the leader and hands it the wrapped
// keyring, which is of no use without shares or the key file.
func (n *Node) onJoin(ctx context.Context, req raftstore.JoinRequest) ([]byte, error) {
	r, err := n.current()
	if err != nil {
		return nil, err
	}
	tok, err := identity.ParseEnrolToken(secret.New(req.Token))
	if err != nil {
		return nil, err
	}
	sum := tok.Hash()
	if err := r.engine.AdmitNode(ctx, hex.EncodeToString(sum[:]), req.NodeID, req.Addr); err != nil {
		return nil, err
	}
	n.log.Info("node admitted", "node", req.NodeID, "address", req.Addr)
	k := n.published.Load().keyring
	if k == nil {
		return nil, errors.New("node: sealed meanwhile")
	}
	return document(k)
}

// joining is what a node remembers until it is a voter.
type joining struct {
	Addrs []string `json:"addrs"`
}

// join spends the configured token and stores the keyring it brings. The
// caller holds life.
func (n *Node) join(ctx context.Context) error {
	tok, err := identity.ParseEnrolToken(secret.New(n.cfg.Join.Token))
	if err != nil {
		return err
	}
	res, err := raftstore.Join(ctx, tok.Addresses, tok.CAHash, raftstore.JoinRequest{Token: tok.Encode().Reveal(), NodeID: n.cfg.ID, Addr: n.cfg.ClusterAdvertise})
	if err != nil {
		return fmt.Errorf("node: joining: %w; a join token works once, make a new one with: mayfly operator join-token", err)
	}
	w, err := seal.Parse(res.Payload)
	if err != nil {
		return err
	}
	addrs, err := json.Marshal(joining{Addrs: append([]string{res.Leader}, tok.Addresses...)})
	if err != nil {
		return err
	}
	if err := os.WriteFile(n.path(joinFile), addrs, 0o600); err != nil {
		return fmt.Errorf("node: %w", err)
	}
	if err := w.WriteFile(n.path(keyringFile)); err != nil {
		return err
	}
	n.condition.wrapped, n.condition.state = w, sealed
	return n.newUnsealer()
}

// finishJoin makes a joined node a voter once it is unsealed; it goes on
// trying in the background until the cluster takes it.
func (n *Node) finishJoin(ctx context.Context, r *run) error {
	b, err := os.ReadFile(n.path(joinFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var j joining
	if err != nil || json.Unmarshal(b, &j) != nil {
		return fmt.Errorf("node: %s does not read", joinFile)
	}
	r.wg.Go(func() {
		for ctx.Err() == nil {
			err := r.store.JoinCluster(ctx, j.Addrs)
			if err == nil {
				if err := os.Remove(n.path(joinFile)); err != nil {
					n.log.Warn("join mark not removed", "error", err)
				}
				n.log.Info("this node is a voter now")
				return
			}
			n.log.Warn("the cluster has not made this node a voter yet; trying again", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	})
	return nil
}

// Peers lists the cluster's nodes.
func (n *Node) Peers(ctx context.Context, c broker.Caller) ([]wire.Peer, error) {
	r, err := n.current()
	if err != nil {
		return nil, err
	}
	if err := r.engine.AuthorizeCluster(ctx, c, "peers"); err != nil {
		return nil, err
	}
	leader, _, _ := r.store.Leader()
	var out []wire.Peer
	for _, p := range r.store.Peers() {
		out = append(out, wire.Peer{ID: p.ID, Addr: p.Addr, Voter: p.Voter, Leader: p.ID == leader})
	}
	return out, nil
}

// RemovePeer takes a node out of the cluster.
func (n *Node) RemovePeer(ctx context.Context, c broker.Caller, id string) error {
	r, err := n.current()
	if err != nil {
		return err
	}
	if err := r.engine.AuthorizeCluster(ctx, c, "remove-peer"); err != nil {
		return err
	}
	known := false
	peers := r.store.Peers()
	for _, p := range peers {
		known = known || p.ID == id
	}
	switch {
	case !known:
		return fault.New(fault.NotFound, "not_found", "There is no node %s in the cluster.", id)
	case len(peers) == 1:
		return fault.New(fault.Conflict, "last_node", "The last node cannot be removed.")
	}
	if err := r.store.RemovePeer(ctx, id); err != nil {
		return storeFault(err)
	}
	return nil
}

// StepDown has another node lead.
func (n *Node) StepDown(ctx context.Context, c broker.Caller) error {
	r, err := n.current()
	if err != nil {
		return err
	}
	if err := r.engine.AuthorizeCluster(ctx, c, "step-down"); err != nil {
		return err
	}
	if err := r.store.StepDown(ctx); err != nil {
		return storeFault(err)
	}
	return nil
}
