package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/raftstore"
)

// What the tests look at and nobody else may.

// PendingFile stands while an initialisation is unfinished.
const PendingFile = pendingFile

// Steady has a node bear with a silence of almost two seconds before there is another
// leader, where it would bear with a quarter of one: on a busy machine, a test that
// writes by the leader that it made keeps it.
func (c *Config) Steady() {
	c.timing = raftstore.Timing{Heartbeat: 2 * time.Second, Election: 2 * time.Second, LeaderLease: 1800 * time.Millisecond}
}

// Digest is this replica's Merkle root as the beacons carry it; nil while the
// node is not running.
func (n *Node) Digest() []byte {
	r, err := n.current()
	if err != nil {
		return nil
	}
	return r.digest()
}

// Compare does what the leader does with a follower's digest.
func (n *Node) Compare(nodeID string, digest []byte) error {
	r, err := n.current()
	if err != nil {
		return err
	}
	n.compareOnce(r, nodeID, digest)
	return nil
}

// Diverged reports whether a replica's root was seen to differ.
func (n *Node) Diverged() bool {
	r, err := n.current()
	return err == nil && r.diverged.Load()
}

// KeyringFile is where the wrapped keyring is stored.
func (n *Node) KeyringFile() string { return n.path(keyringFile) }

// GiveOut gives out a barrier key as a leader can that was taken over.
func (n *Node) GiveOut(ctx context.Context, turn, number uint64, key []byte) error {
	r, err := n.current()
	if err != nil {
		return err
	}
	h := ledger.Header{AtMS: time.Now().UnixMilli(), Node: n.cfg.ID, Term: r.store.Term()}
	cmd := ledger.TurnCluster{Subject: ledger.SubjectBarrier, ID: ledger.PrefixRotation + "00000000000000000000000000", Reason: ledger.RotateDemanded, Turn: turn, Number: number}
	raw, err := ledger.Encode(h, &cmd, ledger.Secret{Name: ledger.BarrierSecret(number), Salt: make([]byte, 16), Value: key})
	if err != nil {
		return err
	}
	res, err := r.log.Propose(ctx, raw, false)
	if err == nil && !res.OK() {
		return errors.New(res.Detail)
	}
	return err
}

// Certificate is what the node shows to whoever joins.
func (n *Node) Certificate(t *testing.T) []byte {
	t.Helper()
	ca, err := authority(n.published.Load().keyring)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca.Certificate)
	conn, err := tls.Dial("tcp", n.cfg.ClusterAdvertise, &tls.Config{RootCAs: pool, ServerName: "node.mayfly.internal", NextProtos: []string{"mayfly-join/1"}, MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	return conn.ConnectionState().PeerCertificates[0].Raw
}
