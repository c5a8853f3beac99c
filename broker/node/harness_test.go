package node_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/node"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/jwt"
)

const ann = "human:ann"

// patience is far beyond what anything here takes; only a hang reaches it.
const patience = 60 * time.Second

// eventually polls until ok; a test that waits for ever says for what.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("not within %v: %s", patience, what)
		case <-tick.C:
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// refused wants a fault with a code.
func refused(t *testing.T, err error, code string) {
	t.Helper()
	var f *fault.Error
	if !errors.As(err, &f) || f.Code != code {
		t.Fatalf("%v; wanted a refusal with code %s", err, code)
	}
}

// config is a node's configuration in a directory, sealed by shares.
func config(t *testing.T, id, dir string) node.Config {
	t.Helper()
	addr := freeAddress(t)
	return node.Config{
		ID: id, Dir: filepath.Join(dir, id), ClusterListen: addr, ClusterAdvertise: addr,
		Issuer: "https://mayfly.example", URL: "https://" + id + ".example", Kinds: []issuers.Kind{jwt.Kind{}},
		Hint: broker.Hint{Addresses: []string{"127.0.0.1:1"}}, Version: "test",
		Disk: node.Disk{ReserveMiB: 2, FloorMiB: 1},
	}
}

// freeAddress is a port that was free just now. A node's address must outlive
// its restart, so that it cannot be left to the kernel.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	must(t, l.Close())
	return l.Addr().String()
}

// start makes and starts a node, which the test's end closes.
func start(t *testing.T, cfg node.Config) *node.Node {
	t.Helper()
	n, err := node.New(cfg)
	must(t, err)
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	must(t, n.Start(t.Context()))
	return n
}

// restart closes a node and starts it anew from its directory.
func restart(t *testing.T, n *node.Node, cfg node.Config) *node.Node {
	t.Helper()
	must(t, n.Close())
	return start(t, cfg)
}

// initialise makes a cluster of 3 shares, 2 of which unseal it.
func initialise(t *testing.T, n *node.Node) wire.InitAnswer {
	t.Helper()
	a, err := n.Init(t.Context(), wire.InitRequest{Shares: 3, Threshold: 2, Admins: []string{ann}})
	must(t, err)
	return a
}

// unseal gives shares and waits until the node knows a leader.
func unseal(t *testing.T, n *node.Node, shares ...string) {
	t.Helper()
	for _, s := range shares {
		_, err := n.Unseal(t.Context(), wire.UnsealRequest{Share: s})
		must(t, err)
	}
	ready(t, n)
}

func ready(t *testing.T, n *node.Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	must(t, n.AwaitLeader(ctx))
}

// as is a caller with a session of its own.
func as(principal string) broker.Caller {
	return broker.Caller{Address: "127.0.0.1", Session: ledger.Session{
		ID: "ses_test", Principal: principal, Binding: "mtls", Method: "key", CreatedMS: time.Now().UnixMilli(),
	}}
}

// write commits a principal, and so proves that the node serves.
func write(t *testing.T, n *node.Node, name string) {
	t.Helper()
	must(t, tryWrite(t.Context(), n, wire.Object{Kind: "Principal", Name: name, Spec: []byte(`{}`)}))
}

func tryWrite(ctx context.Context, n *node.Node, o wire.Object) error {
	e, err := n.Engine()
	if err != nil {
		return err
	}
	_, err = e.Apply(ctx, as(ann), wire.ApplyRequest{Objects: []wire.Object{o}})
	return err
}
