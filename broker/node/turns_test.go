package node_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/node"
	"github.com/mayfly-broker/mayfly/broker/seal"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/raftstore"
	"github.com/mayfly-broker/mayfly/secret"
)

// turn has the cluster turn something of its own.
func turn(t *testing.T, leader *node.Node, name string) wire.Rotation {
	t.Helper()
	e, err := leader.Engine()
	must(t, err)
	r, err := e.Rotate(t.Context(), as(ann), wire.RotateRequest{Kind: "cluster", Name: name})
	must(t, err)
	if r.Problem != "" || r.State != ledger.RotationIdle {
		t.Fatalf("%+v", r)
	}
	return r
}

func sealsBy(t *testing.T, number uint32, nodes ...*node.Node) {
	t.Helper()
	for _, n := range nodes {
		eventually(t, n.Status().Node+" seals by the new key", func() bool { return n.Status().Barrier == number })
	}
}

// A node seals by no key that its disk does not hold, and comes to have every key,
// whether it was there, could not write, or was away.
func TestHazard22EveryNodeTakesTheBarrierKey(t *testing.T) {
	t.Parallel()
	nodes, shares := three(t)
	write(t, nodes[0], "workload:before")
	sealsBy(t, 1, nodes...)
	stuck := nodes[1].KeyringFile()
	must(t, os.Rename(stuck, stuck+".aside"))
	must(t, os.MkdirAll(filepath.Join(stuck, "in the way"), 0o700))
	must(t, nodes[2].Close())
	if r := turn(t, nodes[0], ledger.ClusterBarrier); r.Turns != 1 || r.Reason != ledger.RotateDemanded || r.DoneAt == nil {
		t.Fatalf("%+v", r)
	}
	sealsBy(t, 2, nodes[0])
	write(t, nodes[0], "workload:between")
	sameRoot(t, nodes[:2]...)
	if got := nodes[1].Status().Barrier; got != 1 {
		t.Fatalf("seals by key %d, which its disk does not hold", got)
	}
	// It ends before it could store the key: the ledger has it still.
	must(t, nodes[1].Close())
	must(t, os.RemoveAll(stuck))
	must(t, os.Rename(stuck+".aside", stuck))
	unseal(t, nodes[1], shares[0], shares[1])
	unseal(t, nodes[2], shares[0], shares[1]) // reads of the turn in the log
	sealsBy(t, 2, nodes...)
	turn(t, nodes[0], ledger.ClusterBarrier)
	sealsBy(t, 3, nodes...)
	write(t, nodes[0], "workload:after")
	sameRoot(t, nodes...)
	for _, n := range nodes { // all that was sealed by any key opens again
		must(t, n.Close())
	}
	for _, n := range nodes {
		must(t, n.Start(t.Context()))
		for _, s := range shares[:2] {
			_, err := n.Unseal(t.Context(), wire.UnsealRequest{Share: s})
			must(t, err)
		}
	}
	for _, n := range nodes {
		ready(t, n)
	}
	sealsBy(t, 3, nodes...)
	sameRoot(t, nodes...)
}

// A leader that gives out what is no key does not stop the nodes from taking the next.
func TestHazard22WhatIsNoBarrierKeyIsPassedOver(t *testing.T) {
	t.Parallel()
	n := start(t, config(t, "n1", t.TempDir()))
	initialise(t, n)
	must(t, n.GiveOut(t.Context(), 1, 2, []byte("not a key")))
	turn(t, n, ledger.ClusterBarrier)
	sealsBy(t, 3, n)
	write(t, n, "workload:one")
}

func TestCertificatesTurn(t *testing.T) {
	t.Parallel()
	nodes, _ := three(t)
	var before [][]byte
	for _, n := range nodes {
		before = append(before, n.Certificate(t))
	}
	turn(t, nodes[0], ledger.ClusterCertificates)
	for i, n := range nodes {
		eventually(t, n.Status().Node+" has a new certificate", func() bool { return string(n.Certificate(t)) != string(before[i]) })
	}
	write(t, nodes[0], "workload:one")
	sameRoot(t, nodes...)
}

// The cluster's turns stand among what rotates, and on a schedule where an object says so.
func TestTheClustersTurnsAreListedAndScheduled(t *testing.T) {
	t.Parallel()
	n := start(t, config(t, "n1", t.TempDir()))
	initialise(t, n)
	e, err := n.Engine()
	must(t, err)
	list := func() map[string]wire.Rotation {
		t.Helper()
		all, err := e.Rotations(t.Context(), as(ann))
		must(t, err)
		out := map[string]wire.Rotation{}
		for _, r := range all {
			out[r.Kind+"/"+r.Name] = r
		}
		return out
	}
	if all := list(); len(all) != 2 || all[ledger.SubjectBarrier].State != ledger.RotationIdle || all[ledger.SubjectCertificates].Turns != 0 {
		t.Fatalf("%+v", all)
	}
	object := func(cron string) wire.Object {
		return wire.Object{Kind: "Cluster", Name: ledger.ClusterBarrier, Spec: []byte(`{"rotation":{"cron":"` + cron + `"}}`)}
	}
	refused(t, tryWrite(t.Context(), n, object("0 4 * * *")), "invalid_spec") // too often: old keys stay
	refused(t, tryWrite(t.Context(), n, object("sometimes")), "invalid_spec")
	must(t, tryWrite(t.Context(), n, object("0 4 * * 0")))
	eventually(t, "the next turn is reckoned", func() bool { return list()[ledger.SubjectBarrier].DueAt != nil })
	turn(t, n, ledger.ClusterBarrier)
	if r := list()[ledger.SubjectBarrier]; r.Turns != 1 || r.DueAt == nil || r.DueAt.Weekday() != time.Sunday || r.DueAt.Hour() != 4 {
		t.Errorf("%+v", r)
	}
	for _, in := range []wire.RotateRequest{{Kind: "cluster", Name: "cluster"}, {Kind: "cluster", Name: "barrier", Now: true}, {Kind: "zone", Name: "eu"}} {
		_, err := e.Rotate(t.Context(), as(ann), in)
		if err == nil {
			t.Errorf("%+v: taken", in)
		}
	}
	_, err = e.Rotate(t.Context(), as("human:mallory"), wire.RotateRequest{Kind: "cluster", Name: "barrier"})
	refused(t, err, "denied")
}

// The keyring stands at the head of every snapshot, and no number of turns makes it
// too long for that.
func TestAFullKeyringFitsTheHeadOfASnapshot(t *testing.T) {
	k, err := seal.New("mayfly-0123456789abcdef", time.Unix(1, 0))
	must(t, err)
	for range ledger.MaxBarrierKeys {
		_, err := k.Rotate(time.Now())
		must(t, err)
	}
	for i := range 4 {
		must(t, k.SetSecret(string(rune('a'+i)), secret.New(string(make([]byte, seal.MaxSecretBytes)))))
	}
	w, err := seal.InitLocal(k, filepath.Join(t.TempDir(), "key"))
	must(t, err)
	doc, err := w.Marshal()
	must(t, err)
	if len(doc) > raftstore.MaxPreamble {
		t.Errorf("%d bytes; at most %d are allowed", len(doc), raftstore.MaxPreamble)
	}
}
