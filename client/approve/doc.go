// Package approve is the approver's side of a co-signature: it checks that a
// document is what its hash says, shows it with what is proven apart from what
// is merely claimed, and signs that same hash with an SSH key, an ssh-agent or a
// JWS key. What was shown is what is signed.
//
// The package must know nothing of the broker's inside, of HTTP or of who is in
// which group: whether a signature counts, the cluster says.
package approve
