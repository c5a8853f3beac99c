// Package house holds the repository's own rules as tests, each with its reason:
// who may import whom, how large things may grow, what the ledger must not do,
// which laws and hazards need a test of their name.
//
// The tests read the sources themselves: a test that asks the go command for
// them is served from the test cache after the sources have changed. The package
// must know nothing of what Mayfly does, only of how its sources are written.
package house
