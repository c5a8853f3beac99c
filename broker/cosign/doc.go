// Package cosign is what approvers sign, and the check of what they signed.
//
// A document says everything that is being approved; its canonical form (RFC
// 8785) is hashed under a domain, and the hash is signed by a passkey, an SSH key
// or a JWS key. [Verify] is part of the replicated state machine: it is pure, uses
// the standard library only, and is frozen under a number. A change of any
// verdict it could give is a new verifier with a new number, beside the old one
// (HAZARDS 2).
//
// The package must know nothing of the ledger, of policy or of how a signature
// was collected.
package cosign
