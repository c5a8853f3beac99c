// Package e2e tests the built binary from outside: nodes and clusters that are
// killed, databases that hang, input that lies. Its tests know the public
// contract alone and look for the truth where it counts, in the catalogues of
// the targets.
//
// The orphan tests, and those of targets that go away, go through every kind in
// [harness.Kinds] at once. Their long versions take flags:
//
//	go test ./e2e -run 'Orphans|Outage' -kills 50 -leaderkills 20
package e2e
