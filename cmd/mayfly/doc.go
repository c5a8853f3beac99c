// Command mayfly is the one binary: the server, and the commands by which
// operators, approvers and workloads use it.
//
// Everything a person or a script types is here; what it does goes through the
// client package and over HTTPS, as anybody else's call does. The commands must
// know nothing of the broker's inside, except for the offline verification of
// an audit export.
package main
