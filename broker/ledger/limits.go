package ledger

import "time"

// Bounds on what the ledger holds. Each stands here with its reason; whatever
// exceeds one is refused with the number in the text.
const (
	MaxCommandBytes = 1 << 20 // one Raft entry must not stall replication
	MaxSpecBytes    = 64 << 10
	MaxObjectsPut   = 256    // objects in one apply: one command, one entry
	MaxObjects      = 20_000 // per kind; policies are compiled on every change
	MaxPlugins      = 32     // each is a process on every node
	MaxNameBytes    = 128
	MaxMembers      = 10_000 // members of a group: one record
	MaxPurposeBytes = 512    // people read it
	MaxReasonBytes  = 1024
	MaxKeys         = 16  // keys of one principal: devices, not a fleet
	MaxSessions     = 256 // live sessions of one principal and instance
	MaxTaskDepth    = 8   // ancestors re-checked by every open_lease
	MaxTaskTree     = 512 // descendants that one end_task visits
	MaxOpenTasks    = 5_000
	MaxEndBatch     = 512  // leases that one end_leases or record_withdrawals touches
	MaxSweepBatch   = 1024 // records that one sweep forgets
	MaxFacts        = 64   // attestation facts kept with a session
	MaxSecretBytes  = 64 << 10

	MaxApprovalMS    = 7 * 24 * 60 * 60 * 1000 // that a grant may wait: a long weekend
	MaxWaiting       = 32                      // unfinished grants of one principal: approvers read them
	MaxNeeds         = 16                      // quorums, and policies, of one grant
	MaxApprovers     = 64                      // signatures that one grant may need, all quorums together
	MaxSignatures    = 128                     // that one grant may bear, those that no longer count included
	MaxGrantLeases   = 64                      // leases on one grant
	MaxDocumentBytes = 512 << 10               // what is signed; half a command
	// MaxTurning is how many secrets of one target are being replaced at a time: a
	// target that fails in the midst leaves that many in doubt, and no more.
	MaxTurning   = 4
	MaxKeyFields = 8                             // sealed fields that one step of a key's rotation changes
	minGrace     = Duration(10 * time.Second)    // clients need time to ask again
	maxGrace     = Duration(31 * 24 * time.Hour) // beyond, the old secret is a standing one
	// CoolingMS is how long a denial stands before the same may be asked again.
	CoolingMS = 5 * 60 * 1000
	// ReviewMS is how long an emergency grant may stay unreviewed before it is overdue.
	ReviewMS           = 24 * 60 * 60 * 1000
	MaxWebhooks        = 64 // the leader follows each by itself
	MaxSinkGroups      = 64
	MaxSinkURLBytes    = 2048
	MinSinkSecretBytes = 16 // what signs must not be guessed

	// DefaultPerPrincipal is the cap on live leases of one principal on one
	// role where the role states none: far above any healthy service, far
	// below a crash loop's 84,000 accounts (PEERS, thread hashicorp/vault#5475).
	DefaultPerPrincipal = 500
	// DefaultMintsPerMinute is the rate cap where the role states none.
	DefaultMintsPerMinute = 600

	// IdempotencyMS is how long a key answers with its first outcome: longer
	// than any client retries, shorter than a log anyone reads.
	IdempotencyMS = 24 * 60 * 60 * 1000
)
