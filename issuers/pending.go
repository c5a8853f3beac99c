package issuers

import "context"

// Pending is the error of a Kind whose answer is not at hand: it runs elsewhere,
// and must be asked first. CheckSpec, CheckScope, Roles and MakeSecrets are called
// while the ledger is being read, where nobody may wait for anything; so the
// caller ends its reading, calls Fetch, and begins again. Built-in kinds never
// return it.
type Pending struct {
	// What says what is being asked, for logs and errors.
	What string
	// Fetch gets the answer and keeps it for the next call. Its error is for an
	// answer that could not be got.
	Fetch func(ctx context.Context) error
}

// Error implements error.
func (p *Pending) Error() string { return p.What + " must be asked first" }
