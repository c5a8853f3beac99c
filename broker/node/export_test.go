package node

// What the tests look at and nobody else may.

// PendingFile stands while an initialisation is unfinished.
const PendingFile = pendingFile

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
