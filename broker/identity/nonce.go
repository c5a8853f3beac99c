package identity

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"sync"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
)

// nonceBucket is how long one nonce is handed out. A nonce is accepted in its
// own bucket and the next, hence for one to two minutes.
const nonceBucket = time.Minute

// Nonces makes and checks the DPoP nonces of one node's process (RFC 9449 §8).
//
// A nonce is an HMAC over node, process and time bucket, so that a proof
// captured at one node is refused at another, and after a restart at the same
// one (HAZARDS 4). Freshness costs no write and no memory. Safe for concurrent
// use.
type Nonces struct {
	key  [sha256.Size]byte // this process's randomness; never leaves it
	node string

	mu       sync.Mutex
	bucket   int64     // the bucket that current is of
	current  [2]string // this bucket's nonce and the one before's
	computed bool
}

// NewNonces returns the nonces of the node with this id, keyed by fresh
// randomness.
func NewNonces(node string) *Nonces {
	n := &Nonces{node: node}
	_, _ = rand.Read(n.key[:]) // never fails: crypto/rand ends the process instead
	return n
}

// Current returns the nonce to hand out at now, 22 characters.
func (n *Nonces) Current(now time.Time) string { return n.pair(now)[0] }

// Valid reports whether nonce is this process's, of now's bucket or the one
// before.
func (n *Nonces) Valid(nonce string, now time.Time) bool {
	pair := n.pair(now)
	a := subtle.ConstantTimeCompare([]byte(nonce), []byte(pair[0]))
	b := subtle.ConstantTimeCompare([]byte(nonce), []byte(pair[1]))
	return a|b == 1
}

func (n *Nonces) pair(now time.Time) [2]string {
	bucket := now.Unix() / int64(nonceBucket/time.Second)
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.computed || n.bucket != bucket {
		n.current = [2]string{n.at(bucket), n.at(bucket - 1)}
		n.bucket, n.computed = bucket, true
	}
	return n.current
}

func (n *Nonces) at(bucket int64) string {
	mac := hmac.New(sha256.New, n.key[:])
	mac.Write([]byte("mayfly.dpop.nonce.v1\x00"))
	mac.Write(binary.BigEndian.AppendUint64(nil, uint64(len(n.node))))
	mac.Write([]byte(n.node))
	mac.Write(binary.BigEndian.AppendUint64(nil, uint64(bucket)))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil)[:16])
}

// staleNonce travels as the cause of a [CodeProofNonce] error.
type staleNonce struct{ fresh string }

func (staleNonce) Error() string { return "the proof has no nonce of this process" }

// FreshNonce returns the nonce that goes into the DPoP-Nonce header of an
// answer with code [CodeProofNonce]; ok is false for every other error.
func FreshNonce(err error) (nonce string, ok bool) {
	var s staleNonce
	if !errors.As(err, &s) {
		return "", false
	}
	return s.fresh, true
}

func useNonce(fresh string) *fault.Error {
	return fault.Wrap(staleNonce{fresh}, fault.Unauthenticated, CodeProofNonce,
		"Sign the proof again with the nonce in DPoP-Nonce.")
}
