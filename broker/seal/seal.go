// Package seal is the barrier between Mayfly and its disk: a keyring, and
// everything at rest sealed whole and bound to its place.
//
// A [Keyring] exists only on a node that is unsealed. It holds numbered 256-bit
// barrier keys (the newest seals, the older ones open) and the few named secrets
// that a cluster carries with it. At rest it exists only as a [Wrapped] document,
// sealed under a root key that comes from Shamir shares or from a local key file.
// That document is the file keyring.json, the greeting a joining node receives,
// and the first thing in a snapshot.
//
// The package must know nothing of what it seals, of raft, of HTTP, or of who is
// allowed to unseal: it does arithmetic and files.
//
// What it cannot do. Rolling one node's disk back to an earlier state leaves
// every value sealed, in its place and valid: that cannot be seen from one disk.
// Go's garbage collector may have copied key bytes before they are overwritten,
// and the ciphers keep private copies that cannot be reached: zeroising here
// shortens the life of keys in memory, it does not end it. Whoever can read a
// running process's memory, its core dump or its swap has the keys.
package seal

import (
	"github.com/mayfly-broker/mayfly/broker/fault"
)

// The errors of this package. Compare with [errors.Is]: what is returned has the
// same kind and code, with a detail that fits the case.
var (
	// ErrSealed: there is no keyring in memory, or it was closed.
	ErrSealed = fault.New(fault.Unavailable, "sealed",
		"This node is sealed: it cannot read its own data until it is unsealed. Run `mayfly operator unseal`.")
	// ErrCorrupt: sealed bytes or a keyring document were damaged, cut short,
	// altered, or moved from the place they were sealed for.
	ErrCorrupt = fault.New(fault.Internal, "seal_corrupt",
		"Sealed data does not open: it is damaged, was altered, or was moved from its place.")
	// ErrUnknownKey: sealed under a barrier key that this keyring does not hold.
	ErrUnknownKey = fault.New(fault.Internal, "seal_unknown_key",
		"Sealed under a barrier key that this node's keyring does not hold.")
	// ErrWrongRoot: the root key is not this keyring's.
	ErrWrongRoot = fault.New(fault.Denied, "wrong_root_key",
		"That root key does not open this keyring.")
	// ErrConflict: two keyrings claim the same number for different keys, or
	// belong to different clusters.
	ErrConflict = fault.New(fault.Conflict, "keyring_conflict",
		"The two keyrings do not belong together.")
	// ErrShare: a share is mistyped, of another set, or the shares do not make
	// the root key.
	ErrShare = fault.New(fault.Invalid, "bad_share",
		"A share is not right.")
	// ErrMethod: the operation needs another seal method than this keyring has.
	ErrMethod = fault.New(fault.Invalid, "seal_method",
		"This keyring is sealed by another method.")
	// ErrParameters: an argument is outside its documented range.
	ErrParameters = fault.New(fault.Invalid, "seal_parameters",
		"A parameter is outside its range.")
)

// as returns an error that errors.Is finds equal to sentinel, with its own
// detail and, for logs, a cause (which may be nil).
func as(sentinel *fault.Error, cause error, detail string, args ...any) error {
	e := fault.New(sentinel.Kind, sentinel.Code, detail, args...)
	e.Err = cause
	return e
}

// Limits, each with its reason.
const (
	// MaxShares: an index is one byte and 0 is the secret itself.
	MaxShares = 255
	// MaxDocument bounds a keyring document: 1 MiB is far above the largest
	// that the limits below allow, and small enough to read before trusting it.
	MaxDocument = 1 << 20
	// MaxKeys bounds the barrier keys of one keyring: at a rotation a day, two
	// and a half years without retiring one.
	MaxKeys = 1024
	// MaxSecrets and MaxSecretBytes bound the named secrets: a CA key, a
	// signing key, not data.
	MaxSecrets     = 64
	MaxSecretBytes = 8 << 10
	// maxName bounds cluster ids and secret names.
	maxName = 64
	// maxShareText bounds what is parsed as a share: 75 characters, doubled for
	// spaces and dashes.
	maxShareText = 256
)

// validName reports whether s is 1 to 64 characters of [a-z0-9._-]: it then
// fits a file name, a log field and a signed note's key name alike.
func validName(s string) bool {
	if s == "" || len(s) > maxName {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return true
}
