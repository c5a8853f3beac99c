// Package e2e tests the built binary from outside: nodes and clusters that are
// killed, databases that hang, input that lies. Its tests know the public
// contract alone and look for the truth where it counts, in the catalogues of
// the targets.
//
// The orphan tests, and those of targets that go away, have targets of several
// kinds at once: in a quick run two databases and one further kind by chance, from
// -kills 20 on every kind in [harness.Kinds]. Flags choose:
//
//	go test ./e2e -run 'Orphans|Outage' -kills 50 -leaderkills 20
//	go test ./e2e -run 'Orphans|Outage' -kinds nats,vault
package e2e
