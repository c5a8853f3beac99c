package protocol

// Bounds in bytes, both ways.
const (
	// MaxMessage is the largest message of all. A batch of withdrawals is 256
	// leases, each with a scope of at most 16 KiB and little besides; a list has a
	// line of some 150 bytes for each credential, so 100,000 of them.
	MaxMessage = 16 << 20

	maxVerdict     = 16 << 10  // a word or a sentence
	maxExamination = 512 << 10 // 16 roles with the largest scopes
	maxSecrets     = 1 << 20   // 16 secrets of 32 KiB, in base64
	maxMinted      = 1 << 20   // 16 secret fields of 32 KiB and as many public ones
	maxWithdrawn   = 1 << 20   // 256 receipts of some 2 KiB and more
	maxFindings    = 256 << 10
	maxPublished   = 2 << 20 // documents of 1 MiB in all, in base64
)
