package notify

import "time"

// Bounds, each with its reason.
const (
	// attemptTimeout bounds one attempt, from looking the name up to the answer's end.
	attemptTimeout = 10 * time.Second
	// minBackoff and maxBackoff bound the wait after a failure, which doubles.
	minBackoff = time.Second
	maxBackoff = 5 * time.Minute
	// giveUpAfter is how old a message may become in the attempt: a day later
	// nobody can act on it, and what came since is of more use.
	giveUpAfter = 24 * time.Hour
	// refusedAfter is how long a message is tried that the receiver calls wrong
	// itself (400, 413, 422): it would block all behind it for a day otherwise.
	refusedAfter = 10 * time.Minute
	// maxAnswer bounds what is read of an answer; nothing in it is used.
	maxAnswer = 4 << 10
	// maxAnswerHeaders bounds an answer's headers.
	maxAnswerHeaders = 16 << 10

	// recordEvery bounds how often cursors are recorded: each record is a command
	// of the ledger. A leader that dies leaves so much to be told twice.
	recordEvery = 5 * time.Second
	// recordBehind is how far a cursor may run ahead of its record where nothing
	// was to be told, so that a new leader does not read for long.
	recordBehind = 4096
	// readEntries bounds one read of the ledger.
	readEntries = 1024
	// windowEntries bounds the entries that are kept for all webhooks; at least as
	// many as one read may give.
	windowEntries = readEntries

	// lookEvery is how often the list of webhooks is read anew.
	lookEvery = time.Second
	// wakeEvery bounds how often a growing ledger wakes the webhooks.
	wakeEvery = 20 * time.Millisecond
	// idleEvery is how often a webhook looks, woken or not.
	idleEvery = 5 * time.Second

	// maxAgenda bounds the timers of one webhook; beyond, the later ones are read
	// from the ledger when the earlier ones are done.
	maxAgenda = 10_000
	// overdueEvery is the least time between two messages that a review is overdue.
	overdueEvery = 24 * time.Hour

	// Bounds of texts in a message, in bytes: people read it.
	maxText  = 512
	maxName  = 160
	maxWord  = 32 // our own words: kinds and states
	maxURL   = 2048
	maxNeeds = 16
	// hashPrefix is how many hex digits of the document's hash are shown, for
	// comparison with the page: 64 bits.
	hashPrefix = 16
)
