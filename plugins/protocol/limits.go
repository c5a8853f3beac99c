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

	// MaxRevoked is how many leases a revocation list is made from: a line of some
	// 70 bytes for each. A target that has more withdrawn in a month publishes none.
	MaxRevoked = 100_000
)

// Bounds in values, as they stand in JSON.
const (
	fewValues         = 4 << 10   // a Minted has at most 80 fields, Findings 64 of 5
	examinationValues = 128 << 10 // scopes are many short words
	withdrawnValues   = 8 << 10   // 256 outcomes of up to 20
	listedValues      = 800_000   // 100,000 lines of 7 and more
)
