package node

import (
	"context"
	"errors"
	"time"

	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/seal"
)

// turnsEvery is how often a node looks whether something of the cluster has turned.
const turnsEvery = time.Second

// turns is what a node has done of the cluster's turns.
type turns struct {
	barrier      uint64 // the newest key that was taken from the ledger
	certificates uint64
}

// followTurns takes this node's part in the cluster's turns: every barrier key that
// was given out, and a certificate of its own after each turn of them.
func (n *Node) followTurns(ctx context.Context, r *run, k *seal.Keyring) {
	t := time.NewTimer(0)
	defer t.Stop()
	var done turns
	first := true
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		was := done.certificates
		err := n.takeTurns(r, k, &done)
		switch {
		case err != nil:
			n.log.Warn("a barrier key that was given out cannot be taken; trying again", "error", err)
			t.Reset(keyringEvery)
			continue
		case !first && done.certificates != was: // the first is as young as this process
			r.store.RenewCertificate()
			n.log.Info("this node has a new certificate")
		}
		first = false
		t.Reset(turnsEvery)
	}
}

// takeTurns reads how often the cluster has turned, and takes new barrier keys.
func (n *Node) takeTurns(r *run, k *seal.Keyring, done *turns) error {
	var keys [][]byte
	var newest uint64
	err := r.log.View(func(tx ledger.Reader) error {
		q := ledger.NewQuery(tx)
		certificates, _ := q.Rotation(ledger.SubjectCertificates)
		barrier, _ := q.Rotation(ledger.SubjectBarrier)
		done.certificates, newest = certificates.Turns, barrier.Number
		if newest > done.barrier {
			q.BarrierKeys(done.barrier, func(sealed []byte) bool { keys = append(keys, sealed); return true })
		}
		return q.Err()
	})
	if err != nil {
		return err
	}
	for _, sealed := range keys {
		changed, err := k.Learn(sealed, n.keep)
		switch {
		case errors.Is(err, seal.ErrCorrupt), errors.Is(err, seal.ErrConflict):
			// Nobody can use it. What comes after it must not wait for it.
			n.log.Error("a barrier key in the ledger is not one of this cluster's", "error", err)
		case err != nil:
			return err
		case changed:
			n.log.Info("this node seals by a new barrier key", "keys", len(k.Keys()))
		}
	}
	done.barrier = max(done.barrier, newest)
	return nil
}
