package raftstore

import (
	"fmt"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
)

// raft believes that everything since the newest snapshot has yet to be applied
// and reads all of it when it starts: twice, and once more to hand it to the
// FSM. A state file that is reused (H23) has most of it already. So, while raft
// starts, the file stands in for a snapshot that ends where the file does. Such
// a snapshot carries the cluster's members; the state therefore holds them too.

const membersKey = "members" // index of the entry that made them 8, and raft's encoding of them

// members are the cluster's configuration and the index of the entry that made it.
type members struct {
	index uint64
	conf  raft.Configuration
}

func writeMembers(b *bbolt.Tx, sealer Sealer, index uint64, encoded []byte) error {
	return putMeta(b, sealer, membersKey, append(bigEndian(index), encoded...))
}

// readMembers returns what the state says of the members; ok is false when it says nothing.
func readMembers(b *bbolt.Tx, sealer Sealer) (m members, ok bool, err error) {
	raw, err := getMeta(b, sealer, membersKey)
	if err != nil || raw == nil {
		return members{}, false, err
	}
	if len(raw) <= 8 {
		return members{}, false, fmt.Errorf("%w: state's members", ErrCorrupt)
	}
	return members{index: number(raw), conf: raft.DecodeConfiguration(raw[8:])}, true, nil
}

// standIn describes the state as a snapshot, or returns nil when that would not
// do. A follower that is sent the real snapshot, which ends at snap, goes on from
// there; raft must know that entry's term then, and looks for it in the log
// because it takes another snapshot for its last (setPreviousLog in raft's replication.go).
// A state that names no members was written by a build that kept none there: raft
// finds them in the log, the long way.
func (s *state) standIn(snap position, log *sealedLog) (*raft.SnapshotMeta, error) {
	if s.pos.index == 0 || s.pos.index < snap.index {
		return nil, nil
	}
	if snap.index > 0 && log.termAt(snap.index) != snap.term {
		return nil, nil
	}
	var m members
	var known bool
	err := s.db.View(func(b *bbolt.Tx) (err error) { m, known, err = readMembers(b, s.sealer); return err })
	if err != nil || !known {
		return nil, err
	}
	return &raft.SnapshotMeta{
		Version: raft.SnapshotVersionMax, ID: "state-file", Index: s.pos.index, Term: s.pos.term,
		Configuration: m.conf, ConfigurationIndex: m.index,
	}, nil
}
