// Package ledger is the replicated truth: what exists, who may ask, what was
// decided, which credentials live, and the Merkle-chained record of every
// command that made it so.
//
// The heart is one pure function, [Apply]: state and command in, new state and
// a [Result] out. It has no clock, no randomness and no I/O of its own; all
// that varies (times, ids, nonces) stands inside the command, put there by the
// proposer. Every replica runs Apply on the same commands and must reach the
// same state, so the code ranges over no map and uses no floats.
//
// A command that breaks a rule is refused: an ordinary Result with a Code, the
// same on every replica, and a leaf of the Merkle log like any other. A command
// that cannot be decoded is an error, and the node stops: an entry is never
// skipped.
//
// The package must know nothing of Raft, HTTP, Cedar or any target.
package ledger
