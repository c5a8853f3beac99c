// Package e2e tests the built binary from outside: nodes and clusters that are
// killed, databases that hang, input that lies. Its tests know the public
// contract alone and look for the truth where it counts, in the catalogues of
// the targets.
//
// The long versions of the orphan tests take flags:
//
//	go test ./e2e -run Orphans -kills 50 -leaderkills 20
package e2e
