// Package plugins is where issuers out of process will live: a host that runs
// them under a uid of their own, an SDK to write them with, and an example.
//
// Nothing is here yet. A target's kind is in process and listed in cmd/mayfly's
// registry; the interface that plugins will serve is the same one, in package
// issuers.
package plugins
