package raftstore

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"
)

// Beacons are fixed-size frames, one question and one answer at a time on a
// connection of their own. Integers are big-endian; the first byte is the
// version. Peers are authenticated; sizes are fixed all the same, so that
// nothing read decides how much is read.

const (
	frameVersion  = 1
	beaconSize    = 1 + 5*8
	answerSize    = 1 + 4*8 + 1 + 1 + MaxDigest
	flagDiskLow   = 1 << 0
	flagDiskFloor = 1 << 1
)

// beacon is what a leader tells a follower.
type beacon struct {
	term  uint64
	seq   uint64    // the round that this frame asks to confirm
	index uint64    // committed when the newest confirmed round began
	asOf  uint64    // number of an answer that the leader had before that round began; 0: index means nothing
	clock time.Time // the leader's wall clock
}

func (b *beacon) encode() []byte {
	out := append(make([]byte, 0, beaconSize), frameVersion)
	for _, n := range [...]uint64{b.term, b.seq, b.index, b.asOf, uint64(b.clock.UnixNano())} {
		out = binary.BigEndian.AppendUint64(out, n)
	}
	return out
}

func readBeacon(r io.Reader) (b beacon, err error) {
	var raw [beaconSize]byte
	if _, err := io.ReadFull(r, raw[:]); err != nil {
		return b, err
	}
	if raw[0] != frameVersion {
		return b, fmt.Errorf("%w: beacon version %d", ErrCorrupt, raw[0])
	}
	n := numbers(raw[1:])
	return beacon{term: n(0), seq: n(1), index: n(2), asOf: n(3), clock: time.Unix(0, int64(n(4)))}, nil
}

// answer is what a follower answers.
type answer struct {
	term    uint64 // the follower's
	seq     uint64 // of the beacon answered
	applied uint64
	clock   time.Time
	flags   byte
	digest  []byte
}

func (a *answer) encode() []byte {
	out := append(make([]byte, 0, answerSize), frameVersion)
	for _, n := range [...]uint64{a.term, a.seq, a.applied, uint64(a.clock.UnixNano())} {
		out = binary.BigEndian.AppendUint64(out, n)
	}
	digest := a.digest[:min(len(a.digest), MaxDigest)]
	out = append(out, a.flags, byte(len(digest)))
	return append(out, digest...)[:answerSize]
}

func readAnswer(r io.Reader) (a answer, err error) {
	var raw [answerSize]byte
	if _, err := io.ReadFull(r, raw[:]); err != nil {
		return a, err
	}
	size := int(raw[34])
	if raw[0] != frameVersion || size > MaxDigest {
		return a, fmt.Errorf("%w: beacon answer", ErrCorrupt)
	}
	n := numbers(raw[1:])
	a = answer{term: n(0), seq: n(1), applied: n(2), clock: time.Unix(0, int64(n(3))), flags: raw[33]}
	a.digest = append(a.digest, raw[35:35+size]...)
	return a, nil
}

func numbers(raw []byte) func(i int) uint64 {
	return func(i int) uint64 { return binary.BigEndian.Uint64(raw[8*i:]) }
}
