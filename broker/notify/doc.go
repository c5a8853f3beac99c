// Package notify tells people of grants: that one waits for them, what became
// of it, that emergency access was taken or was not reviewed, that something was
// contained. It sends signed messages to webhooks.
//
// A [Teller] works on the leader alone. Each webhook follows the ledger with a
// goroutine, a cursor and a backoff of its own, so that one that is slow or dead
// falls behind alone, delays neither the ledger nor another, and loses nothing:
// what it was not told of is still in the ledger. Messages of one webhook go out
// in order, at least once, each under an id that stays the same however often
// and by whichever leader it is sent.
//
// A message never holds a secret, a scope's literals or anything that approves:
// it holds a link to the console, where approving takes a key.
//
// The package must know nothing of the HTTP API, of how the ledger is replicated
// or of policy; it learns all it knows through [Source].
package notify
