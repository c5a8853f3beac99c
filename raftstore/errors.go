package raftstore

import "errors"

// What callers act on. Compare with [errors.Is].
var (
	// ErrNotLeader: nothing was proposed; ask the leader ([Store.Leader]).
	ErrNotLeader = errors.New("raftstore: this node is not the leader")
	// ErrNoLeader: no leader is known at the moment; retry.
	ErrNoLeader = errors.New("raftstore: no leader is known")
	// ErrIndeterminate: the command may or may not commit. Retry only what is idempotent.
	ErrIndeterminate = errors.New("raftstore: the outcome of the command is unknown")
	// ErrDiskLow: too little space for this kind of command; nothing was proposed.
	ErrDiskLow = errors.New("raftstore: disk space is low")
	// ErrTooLarge: the command is above [MaxCommandSize]; nothing was proposed.
	ErrTooLarge = errors.New("raftstore: command too large")
	// ErrClosed: the store was closed; nothing was proposed.
	ErrClosed = errors.New("raftstore: closed")
	// ErrStopped: the store stopped itself ([Store.Err] says why); nothing was proposed.
	ErrStopped = errors.New("raftstore: stopped after a failure")
	// ErrStale: this node does not know that its state is recent enough to answer from.
	ErrStale = errors.New("raftstore: state may be stale")
	// ErrSealBroken: a sealed value does not open in its place: damaged, moved, or under another key.
	ErrSealBroken = errors.New("raftstore: sealed value does not open in its place")
	// ErrCorrupt: stored or received bytes are not what this package writes.
	ErrCorrupt = errors.New("raftstore: malformed data")
	// ErrLocked: another process has the data directory open.
	ErrLocked = errors.New("raftstore: the data directory is in use")
	// ErrMisuse: a bucket, key or value outside the limits, or a write where only reading is allowed.
	ErrMisuse = errors.New("raftstore: misuse of a transaction")
)
