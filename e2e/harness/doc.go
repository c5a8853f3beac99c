// Package harness runs the real mayfly binary for tests: single nodes, clusters
// of three, and their command line, all on loopback, all ended by the test that
// started them.
//
// It knows the public contract (commands, files, environment, JSON) and the Go
// client; it must not know the broker's insides.
package harness
