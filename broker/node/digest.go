package node

import (
	"bytes"
	"encoding/binary"

	"github.com/mayfly-broker/mayfly/broker/ledger"
)

// digestOnce and compareOnce wait for the run to be whole: the store calls
// them from its first beacon on.
func (r *run) digestOnce() []byte {
	if !r.ready.Load() {
		return nil
	}
	return r.digest()
}

func (n *Node) compareOnce(r *run, nodeID string, digest []byte) {
	if r.ready.Load() {
		n.compareDigest(r, nodeID, digest)
	}
}

// digest is this replica's Merkle root: size (8 bytes) and hash. Replicas that
// applied the same commands to the same result have the same (HAZARDS 2).
func (r *run) digest() []byte {
	var out []byte
	err := r.log.View(func(rd ledger.Reader) error {
		q := ledger.NewQuery(rd)
		out = rootAt(q, q.Size())
		return q.Err()
	})
	if err != nil {
		return nil
	}
	return out
}

func rootAt(q ledger.Query, size uint64) []byte {
	root, err := q.Root(size)
	if err != nil {
		return nil
	}
	return append(binary.BigEndian.AppendUint64(nil, size), root[:]...)
}

// compareDigest compares a follower's root with the leader's at the same size.
// The leader cannot know which of the two is wrong; it says so as loudly as it
// can and leaves the decision to a person.
func (n *Node) compareDigest(r *run, nodeID string, digest []byte) {
	if len(digest) != 8+32 {
		return
	}
	size := binary.BigEndian.Uint64(digest)
	err := r.log.View(func(rd ledger.Reader) error {
		q := ledger.NewQuery(rd)
		if size == 0 || size > q.Size() {
			return nil
		}
		if mine := rootAt(q, size); mine != nil && !bytes.Equal(mine, digest) && !r.diverged.Swap(true) {
			n.log.Error("a replica has another Merkle root: stop that node, and restore it from this cluster's log; see docs/operations.md", "node", nodeID, "ledger_size", size)
		}
		return q.Err()
	})
	if err != nil {
		n.log.Warn("replica roots not compared", "error", err)
	}
}
