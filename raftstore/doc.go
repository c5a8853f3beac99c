// Package raftstore is a replicated, crash-safe, ordered key-value store: a
// raft log of commands, and the state they make, on every node of a cluster.
//
// The owner gives a [Machine] that turns committed commands into state; the
// store decides who leads, makes commands durable with one fsync per batch,
// applies them in one transaction per batch, ships snapshots, forwards calls
// to the leader, and knows when what it holds is too old to answer from.
// Everything on disk but the keys is sealed and bound to its place.
//
// The package must know nothing of credentials, leases or policies, nor of
// what a command means; it imports nothing of broker. DESIGN.md beside it says
// why things are as they are.
package raftstore
