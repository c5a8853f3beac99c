package client

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/mayfly-broker/mayfly/client/wire"
)

// The calls of a node's own life. A node is one of [Client.Nodes]; "" means
// whichever answers. Those that take shares need no session, and are not sent
// again once they may have arrived.

// Status reads one node's state.
func (c *Client) Status(ctx context.Context, node string) (wire.Status, error) {
	var s wire.Status
	err := c.do(ctx, call{method: http.MethodGet, path: apiBase + "/sys/status", auth: authNone, node: node, out: &s})
	return s, err
}

func (c *Client) sys(ctx context.Context, node, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	return c.do(ctx, call{method: http.MethodPost, path: apiBase + "/sys/" + path, auth: authNone, node: node, body: body, out: out})
}

// Init initialises an empty node. The answer is shown once.
func (c *Client) Init(ctx context.Context, node string, in wire.InitRequest) (wire.InitAnswer, error) {
	var out wire.InitAnswer
	err := c.sys(ctx, node, "init", in, &out)
	return out, err
}

// Unseal gives one share to a node.
func (c *Client) Unseal(ctx context.Context, node string, in wire.UnsealRequest) (wire.Status, error) {
	var out wire.Status
	err := c.sys(ctx, node, "unseal", in, &out)
	return out, err
}

// Recover makes an enrolment token for an administrator out of shares.
func (c *Client) Recover(ctx context.Context, in wire.RecoverRequest) (wire.EnrolAnswer, error) {
	var out wire.EnrolAnswer
	err := c.sys(ctx, "", "recover", in, &out)
	return out, err
}

// Rekey reshares the root key and returns the new shares.
func (c *Client) Rekey(ctx context.Context, in wire.RekeyRequest) ([]string, error) {
	var out struct {
		Shares []string `json:"shares"`
	}
	err := c.sys(ctx, "", "rekey", in, &out)
	return out.Shares, err
}

// Seal seals a node.
func (c *Client) Seal(ctx context.Context, node string) error {
	_, err := send[nothing](ctx, c, call{path: "/sys/seal", node: node}, nil)
	return err
}

// JoinToken makes a one-time token by which a node joins.
func (c *Client) JoinToken(ctx context.Context) (wire.JoinTokenAnswer, error) {
	return post[wire.JoinTokenAnswer](ctx, c, "/sys/join-token", nil)
}

// Peers lists the cluster's nodes.
func (c *Client) Peers(ctx context.Context) ([]wire.Peer, error) {
	return get[[]wire.Peer](ctx, c, "/sys/peers")
}

// NodePlugins says how plugins do on one node.
func (c *Client) NodePlugins(ctx context.Context, node string) ([]wire.NodePlugin, error) {
	return send[[]wire.NodePlugin](ctx, c, call{method: http.MethodGet, path: "/sys/plugins", node: node}, nil)
}

// RemovePeer removes a node from the cluster.
func (c *Client) RemovePeer(ctx context.Context, id string) error {
	_, err := post[nothing](ctx, c, "/sys/remove-peer", wire.RemovePeerRequest{ID: id})
	return err
}

// StepDown has the leader give its place up.
func (c *Client) StepDown(ctx context.Context) error {
	_, err := post[nothing](ctx, c, "/sys/step-down", nil)
	return err
}
