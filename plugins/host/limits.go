package host

import "time"

// Bounds on what a plugin may take and answer. Whatever passes one of them is an
// error of that plugin's targets alone.
const (
	maxBinary  = 512 << 20 // bytes of a plugin's file: it is held in memory while the plugin runs
	maxStartup = 8 << 10   // bytes of the line by which it says where it listens

	maxFields      = 16       // public or secret fields of one credential
	maxPublicBytes = 64 << 10 // of one field: a certificate chain is the longest
	maxSecretBytes = 32 << 10 // of one field: a private key is the longest
	maxFieldName   = 64
	maxCount       = 1 << 30 // sessions or objects in one receipt
	maxReceipt     = 2 << 10 // bytes of a receipt's or an error's detail
	maxProblem     = 4 << 10 // bytes of what a kind says against a spec or scope
	maxChecks      = 64      // findings of one check
	maxRoles       = 16
	maxFound       = 100_000 // credentials listed on one target
	maxNameBytes   = 256
	maxDocuments   = 16
	maxDocument    = 1 << 20
	maxRevocations = 8 << 20 // documents that name 100,000 credentials

	maxSockets = 16 // files in the directory of its socket that are removed

	// remembered is how many answers about specs and scopes are kept.
	remembered = 4096
	// rememberedLarge is the same of answers of up to 512 KiB, which only operators
	// have given: more than one change may name.
	rememberedLarge = 256
	// maxCalls is how many calls one plugin gets at once. Each may hold an answer
	// of up to 1 MiB, and a busy target has 64 mints and a withdrawal.
	maxCalls = 512
	// spareCalls are for withdrawals and fences alone: mints that hang on some of a
	// plugin's targets keep no lease of another from ending (HAZARDS 17).
	spareCalls = 64
)

// Limits of a plugin's log, each line in bytes.
const (
	maxLine      = 2 << 10
	lineBuffer   = 8 << 10
	linesPerSec  = 50
	linesAtOnce  = 500
	logBytesSec  = 1 << 20 // what it writes beyond waits in its own pipe
	logBytesOnce = 256 << 10
	liesPerMin   = 6 // lines about answers that are none; all are counted
	liesAtOnce   = 10
)

// Times.
const (
	startTimeout = 20 * time.Second // from exec to the handshake
	openTimeout  = 10 * time.Second
	askTimeout   = 5 * time.Second // about a spec or scope: code that asks nobody
	closeTimeout = 5 * time.Second
	endGrace     = 3 * time.Second // between the request to end and SIGKILL
	lastWords    = time.Second     // for what stands in its pipes when it has ended
	drainTime    = callMost        // for calls in flight on a plugin that was replaced
	healthEvery  = 5 * time.Second
	healthWait   = 5 * time.Second
	healthMisses = 3

	backoffFirst = 500 * time.Millisecond
	backoffMost  = time.Minute
	steadyAfter  = time.Minute // a plugin that lived so long starts its backoff anew
	publishEvery = 5 * time.Second
	publishWait  = 2 * time.Second
	revokedWait  = 10 * time.Second // for lists that others wait for too
	callMost     = 75 * time.Second // for any call; whoever calls has set less
)

// Limits are what a plugin's process may use. The zero value has the defaults.
type Limits struct {
	// MemoryMiB bounds the memory that it can write (RLIMIT_DATA): 512.
	MemoryMiB uint64
	// Files bounds its open files and connections (RLIMIT_NOFILE): 256.
	Files uint64
	// Processes bounds the processes and threads of its user (RLIMIT_NPROC): 128.
	// It does not apply where the plugin runs as the node's own user.
	Processes uint64
}

func (l Limits) withDefaults() Limits {
	if l.MemoryMiB == 0 {
		l.MemoryMiB = 512
	}
	if l.Files == 0 {
		l.Files = 256
	}
	if l.Processes == 0 {
		l.Processes = 128
	}
	return l
}
