package raftstore

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"time"
)

// Limits. Each bounds something that a caller, a peer or a stranger can make grow.
const (
	// MaxCommandSize bounds one command, in bytes: raft ships entries whole, between heartbeats.
	MaxCommandSize = 1 << 20
	// MaxValueSize bounds one value, in bytes: a command's worth and some framing.
	MaxValueSize = MaxCommandSize + 64<<10
	// MaxKeySize bounds one key, in bytes; bbolt's own limit is 32 KiB.
	MaxKeySize = 4 << 10
	// MaxBucketName bounds a bucket's name, in bytes.
	MaxBucketName = 64
	// MaxPreamble bounds the snapshot preamble, in bytes: a keyring of a thousand
	// keys, and room.
	MaxPreamble = 256 << 10
	// MaxDigest bounds what [Config].Digest may return, in bytes.
	MaxDigest = 64
	// MaxJoinPayload bounds what a joiner receives, in bytes.
	MaxJoinPayload = 1 << 20

	maxAppendEntries  = 256       // entries per batch: more gains nothing measurable, and delays heartbeats
	maxInFlightBytes  = 64 << 20  // memory that waiting proposals may pin
	proposalOverhead  = 4 << 10   // what a waiting proposal weighs besides its bytes
	maxChunk          = 4 << 20   // one sealed snapshot chunk
	chunkTarget       = 256 << 10 // a chunk is closed when it has grown this far
	maxConns          = 1024      // open connections on the cluster port
	maxHandshakes     = 64        // of them still unauthenticated
	maxJoinConns      = 16        // of them joining, where no client certificate is needed
	maxJoinBody       = 16 << 10
	maxJoinHops       = 3
	snapshotsRetained = 2
	logCacheSlots     = 1024
	logCacheMaxEntry  = 16 << 10 // larger entries are read back from disk: 1024 slots cost 16 MiB at most
)

// Authority is the cluster's certificate authority. Every unsealed node holds
// it, from the sealed keyring, and mints its own certificates in memory.
type Authority struct {
	Certificate *x509.Certificate
	Signer      crypto.Signer
}

// Sealer seals bytes to a place (associated data). Implementations must be safe
// for concurrent use, must not keep or change their arguments, and must return
// fresh memory.
type Sealer interface {
	Seal(place, plaintext []byte) []byte
	// Open returns an error when sealed was not sealed to place by a key it knows.
	Open(place, sealed []byte) ([]byte, error)
}

// Machine turns committed commands into state. It must be pure: no clock, no
// randomness, no I/O; the same commands make the same state on every node.
type Machine interface {
	// Apply applies one committed command within its batch's transaction.
	// result goes to the proposer. An error means that the command cannot be
	// decoded or that the state is corrupt: the store stops the node rather
	// than skip an entry. A refusal is an ordinary result.
	Apply(tx *Tx, command []byte) (result any, err error)
}

// Config says how to run one node. NodeID, Dir, Listen, CA and Sealer are required.
type Config struct {
	// NodeID names the node for ever: letters, digits, '.', '_' and '-', at most 63.
	NodeID string
	// Dir holds everything the node keeps; made with mode 0700 when absent.
	Dir string
	// Listen is the cluster port's address, host:port.
	Listen string
	// Advertise is where peers reach this node, host:port. Empty means the
	// address that Listen came to, which must then not be a wildcard.
	Advertise string
	CA        Authority
	Sealer    Sealer
	// Logger receives all logs; nil means [slog.Default].
	Logger *slog.Logger
	// Bootstrap makes a new cluster of this one node if Dir holds none yet.
	Bootstrap bool
	// Handler serves calls that peers forward to this node; nil answers 404.
	// [PeerID] names the caller.
	Handler http.Handler
	// OnJoin decides about a joiner on the leader and returns what it gets
	// (at most [MaxJoinPayload] bytes). nil, and any error, refuses.
	OnJoin func(ctx context.Context, req JoinRequest) ([]byte, error)
	// OnVoter decides whether an authenticated node may become a voter at addr.
	// nil admits members, and nodes that OnJoin admitted within [JoinWindow].
	OnVoter func(ctx context.Context, nodeID, addr string) error
	Hooks   Hooks
	Timing  Timing
	Disk    Disk
	// Clock is the wall clock compared with the other voters'; nil means [time.Now].
	Clock func() time.Time
}

// Hooks leave places for what is decided above this package. All are optional.
type Hooks struct {
	// Preamble returns what a snapshot begins with, in the clear, at most
	// [MaxPreamble] bytes: the keyring, wrapped; and a sealer that seals all that
	// follows by a key in it, however long that takes.
	Preamble func() ([]byte, Sealer, error)
	// OnPreamble sees a received snapshot's preamble before any of the snapshot
	// is opened, so that a node can learn keys that it lacks. An error refuses the snapshot.
	OnPreamble func(preamble []byte) error
	// Digest returns a short description of this node's state (at most
	// [MaxDigest] bytes); the leader's OnDigest gets each follower's, about ten
	// times a second. Both must be quick.
	Digest   func() []byte
	OnDigest func(nodeID string, digest []byte)
}

// Disk says how much free space under Dir is kept back.
type Disk struct {
	// Reserve is the free space, in bytes, below which ordinary commands are
	// refused with [ErrDiskLow]; 0 means 1 GiB.
	Reserve uint64
	// Floor is the free space, in bytes, below which urgent ones are too; 0
	// means a quarter of Reserve.
	Floor uint64
	// Poll is how often free space is looked at; 0 means 1 s.
	Poll time.Duration
}

// Timing tunes the store. Zero values mean the defaults in the comments.
type Timing struct {
	Heartbeat   time.Duration // silence after which a follower stands for election: 300 ms
	Election    time.Duration // and how long an election may take: 300 ms
	LeaderLease time.Duration // silence of a quorum after which a leader gives up: 250 ms
	Commit      time.Duration // idle time after which followers hear of a commit: 5 ms
	Beacon      time.Duration // between beacons: 100 ms
	FreshFor    time.Duration // age of the applied beacon that Fresh accepts: 500 ms
	MaxSkew     time.Duration // off the voters' median clock before a leader gives up: 2 s
	StateSync   time.Duration // between background fsyncs of the state file: 10 s

	SnapshotInterval  time.Duration // how often to see whether a snapshot is due: 30 s
	SnapshotThreshold uint64        // entries since the last one that make it due: 65,536
	TrailingLogs      uint64        // entries kept behind a snapshot, for slow followers: 16,384
}

// JoinWindow is how long a joiner that OnJoin admitted may ask to become a voter.
const JoinWindow = 10 * time.Minute

var nodeIDPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

func orDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// withDefaults fills cfg in and checks it.
func (cfg Config) withDefaults() (Config, error) {
	switch {
	case !nodeIDPattern.MatchString(cfg.NodeID):
		return cfg, fmt.Errorf("raftstore: NodeID %q: letters, digits, '.', '_' and '-' only, at most 63", cfg.NodeID)
	case cfg.Dir == "":
		return cfg, errors.New("raftstore: Dir is required")
	case cfg.Sealer == nil:
		return cfg, errors.New("raftstore: Sealer is required")
	case cfg.CA.Certificate == nil || cfg.CA.Signer == nil:
		return cfg, errors.New("raftstore: CA is required")
	case cfg.Listen == "":
		return cfg, errors.New("raftstore: Listen is required")
	}
	orDefault(&cfg.Logger, slog.Default())
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	orDefault(&cfg.Disk.Reserve, 1<<30)
	orDefault(&cfg.Disk.Floor, cfg.Disk.Reserve/4)
	orDefault(&cfg.Disk.Poll, time.Second)
	t := &cfg.Timing
	orDefault(&t.Heartbeat, 300*time.Millisecond)
	orDefault(&t.Election, 300*time.Millisecond)
	orDefault(&t.LeaderLease, 250*time.Millisecond)
	orDefault(&t.Commit, 5*time.Millisecond)
	orDefault(&t.Beacon, 100*time.Millisecond)
	orDefault(&t.FreshFor, 500*time.Millisecond)
	orDefault(&t.MaxSkew, 2*time.Second)
	orDefault(&t.StateSync, 10*time.Second)
	orDefault(&t.SnapshotInterval, 30*time.Second)
	orDefault(&t.SnapshotThreshold, 65536)
	orDefault(&t.TrailingLogs, 16384)
	return cfg, nil
}
