package policy

import "time"

// Bounds on everything that grows, together, each with its reason.
const (
	// MaxDocumentBytes bounds one source: far beyond what people write, small
	// enough to hold in a replicated command.
	MaxDocumentBytes = 1 << 20
	// MaxTotalBytes bounds all sources of one set.
	MaxTotalBytes = 8 << 20
	// MaxSources and MaxPolicies bound the time to compile.
	MaxSources  = 10_000
	MaxPolicies = 20_000
	// MaxPolicyBytes bounds one policy and with it the depth of the parser's
	// recursion, which nothing else does.
	MaxPolicyBytes = 16 << 10
	// MaxNesting bounds brackets of every sort inside each other.
	MaxNesting = 32
	// MaxNodes bounds the expressions of one policy: evaluation is linear in it,
	// type checking is not.
	MaxNodes = 512
	// MaxGuards bounds `has` and `hasTag` in one policy: the type checker keeps
	// what they guard in lists, and its time grows with the cube of their length
	// (measured: 100 guards 2.6 s, 16 below 20 ms).
	MaxGuards = 16
	// MaxPatterns bounds `like` in one policy, MaxPatternBytes and
	// MaxPatternWildcards each pattern: matching takes up to the product of
	// pattern and text.
	MaxPatterns         = 16
	MaxPatternBytes     = 256
	MaxPatternWildcards = 8
	// MaxEntityIDBytes bounds an entity's id, in a policy as in a request.
	MaxEntityIDBytes = 512
	// MaxDescriptionBytes bounds @description, which is copied into decisions.
	MaxDescriptionBytes = 256
	// MaxProblems bounds what Compile reports at once.
	MaxProblems = 64

	// MaxStringBytes bounds each text of a request; MaxPurposeBytes the purpose.
	MaxStringBytes  = 1 << 10
	MaxPurposeBytes = 4 << 10
	// MaxGroups, MaxParents, MaxLabels, MaxChain and MaxScopeEntries bound what
	// is turned into Cedar values for each decision.
	MaxGroups       = 1024
	MaxParents      = 64
	MaxLabels       = 128
	MaxChain        = 32
	MaxScopeEntries = 4096

	// MaxNearly bounds the near misses recorded with a denial, MaxErrors its
	// errors, MaxReasonText each text in them: a decision is a log entry.
	MaxNearly     = 8
	MaxErrors     = 16
	MaxReasonText = 240

	// MaxApprovalCount is more people than one group can gather.
	MaxApprovalCount = 32
	// MaxAnnotationTTL bounds @max_ttl and @approval_ttl.
	MaxAnnotationTTL = 366 * 24 * time.Hour

	// MaxCases and MaxCasesBytes bound a `policy test` file.
	MaxCases      = 10_000
	MaxCasesBytes = 4 << 20
)
