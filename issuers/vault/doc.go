// Package vault is where an existing Vault or OpenBao server will become a kind
// of target, so that a team can put Mayfly in front of it and migrate later.
//
// Nothing is here yet and no registry lists it. The client library that it will
// speak through is pinned already, so that the module's dependencies are
// reviewed once: see require.go.
package vault
