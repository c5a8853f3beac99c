// Package client is the Go client of a Mayfly cluster: what the command line
// uses and what a workload imports.
//
// A [Client] finds its nodes, its key and its evidence in a [Config] (usually
// [FromEnvironment]), logs in by itself when a call needs it, keeps the session
// bound to its key, and retries what is safe to retry on the next node. Errors
// that the broker or the connection gave are *[Error].
//
// The package must know nothing of the broker's inside: it speaks the shapes of
// client/wire over HTTPS, and that is all it shares with it.
package client
