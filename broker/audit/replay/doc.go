// Package replay verifies an export of the audit log and executes the ledger in
// it again, from the genesis record on, by the code that every replica runs: an
// auditor sees, years later and with no broker at hand, that each co-signature
// was there, by whom, over which document, and that each recorded outcome is the
// one that the rules give. A thief of the key that signs checkpoints can write
// another history with it, and not other people's signatures.
//
// It knows the ledger and the log. It must know nothing of policies (what Cedar
// said stands in the record; the floor in the ledger does not rest on it), of
// the engine, of targets, of the replicated store or of the network.
package replay
