package api

import (
	"context"
	"net/http"

	"github.com/mayfly-broker/mayfly/client/wire"
)

// rekeyAnswer is shown once.
type rekeyAnswer struct {
	Shares []string `json:"shares"`
}

// addSystem registers what concerns nodes rather than the cluster's content.
// What key shares authorise has no session, because it is needed when nobody
// can log in; it is slow to try, and each share is checked by the seal.
func (f *surface) addSystem() {
	node := f.server.node
	add(f, route{method: http.MethodGet, path: "/sys/status", id: "status", tag: "system", access: needNothing, place: hereOnly, summary: "Describe this node's state"},
		func(context.Context, *call, *none) (wire.Status, error) { return node.Status(), nil })
	add(f, route{method: http.MethodPost, path: "/sys/init", id: "init", tag: "system", access: needShares, place: hereOnly, timeout: longCall, summary: "Initialise a cluster on this empty node"},
		func(ctx context.Context, _ *call, in *body[wire.InitRequest]) (wire.InitAnswer, error) {
			return node.Init(ctx, in.Body)
		})
	add(f, route{method: http.MethodPost, path: "/sys/unseal", id: "unseal", tag: "system", access: needShares, place: hereOnly, timeout: longCall, summary: "Give this node one key share"},
		func(ctx context.Context, _ *call, in *body[wire.UnsealRequest]) (wire.Status, error) {
			return node.Unseal(ctx, in.Body)
		})
	add(f, route{method: http.MethodPost, path: "/sys/recover", id: "recover", tag: "system", access: needShares, summary: "Make an enrolment token with a quorum of key shares"},
		func(ctx context.Context, _ *call, in *body[wire.RecoverRequest]) (wire.EnrolAnswer, error) {
			return node.Recover(ctx, in.Body)
		})
	add(f, route{method: http.MethodPost, path: "/sys/rekey", id: "rekey", tag: "system", access: needShares, summary: "Share the root key anew"},
		func(ctx context.Context, _ *call, in *body[wire.RekeyRequest]) (rekeyAnswer, error) {
			shares, err := list(node.Rekey(ctx, in.Body))
			return rekeyAnswer{shares}, err
		})
	addQuiet(f, route{method: http.MethodPost, path: "/sys/seal", id: "seal", tag: "system", place: hereOnly, summary: "Seal this node"},
		func(ctx context.Context, c *call, _ *none) error { return node.Seal(ctx, c.caller) })
	f.addCluster()
}

func (f *surface) addCluster() {
	node := f.server.node
	add(f, route{method: http.MethodPost, path: "/sys/join-token", id: "join-token", tag: "system", summary: "Make a one-time token by which a node joins"},
		func(ctx context.Context, c *call, _ *none) (wire.JoinTokenAnswer, error) {
			return node.JoinToken(ctx, c.caller)
		})
	add(f, route{method: http.MethodGet, path: "/sys/peers", id: "list-peers", tag: "system", place: anywhere, summary: "List the cluster's nodes"},
		func(ctx context.Context, c *call, _ *none) ([]wire.Peer, error) {
			return list(node.Peers(ctx, c.caller))
		})
	add(f, route{method: http.MethodGet, path: "/sys/plugins", id: "node-plugins", tag: "system", place: hereOnly, summary: "Say how plugins do on this node"},
		func(ctx context.Context, c *call, _ *none) ([]wire.NodePlugin, error) {
			return list(c.broker.NodePlugins(ctx, c.caller))
		})
	addQuiet(f, route{method: http.MethodPost, path: "/sys/remove-peer", id: "remove-peer", tag: "system", summary: "Remove a node from the cluster"},
		func(ctx context.Context, c *call, in *body[wire.RemovePeerRequest]) error {
			return node.RemovePeer(ctx, c.caller, in.Body.ID)
		})
	addQuiet(f, route{method: http.MethodPost, path: "/sys/step-down", id: "step-down", tag: "system", summary: "Hand leadership to another node"},
		func(ctx context.Context, c *call, _ *none) error { return node.StepDown(ctx, c.caller) })
}
