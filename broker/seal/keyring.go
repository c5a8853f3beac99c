package seal

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/secret"
)

// Purposes for [Keyring.For] and [Keyring.Subkey]. Each gives a key of its own,
// so that a value sealed for one purpose never opens for another.
const (
	PurposeState    = "state"    // values of the state store; what Seal and Open use
	PurposeLog      = "log"      // raft log entries
	PurposeSnapshot = "snapshot" // snapshot files
	PurposeNonce    = "nonce"    // HMAC of freshness nonces handed to clients
)

const keyBytes = 32

// A Keyring is the set of barrier keys of one unsealed node. Make one with [New],
// or get one by unwrapping. It is safe for concurrent use; Seal and Open take no
// lock once a purpose's key has been derived. The zero value is sealed: it opens
// nothing and seals nothing.
type Keyring struct {
	// ring is immutable once stored; nil means sealed.
	ring atomic.Pointer[ring]
	// mu is held for writing by whatever replaces ring or overwrites key bytes,
	// and for reading by whatever reads key bytes.
	mu sync.RWMutex
	// scratch holds *[]byte for associated data.
	scratch sync.Pool
}

// ring is one version of a keyring's content.
type ring struct {
	clusterID   string
	incarnation uint64
	revision    uint64 // counts changes; the higher of two documents is the newer
	keys        map[uint32]*barrierKey
	newest      *barrierKey
	secrets     map[string][]byte
	wrapping    *wrapping // nil until wrapped for the first time
}

// barrierKey is one numbered key and the ciphers derived from it.
type barrierKey struct {
	number  uint32
	created time.Time
	key     [keyBytes]byte
	// ciphers by purpose, copied on write: purposes are few and come once.
	ciphers atomic.Pointer[map[string]cipher.AEAD]
}

// New makes the keyring of a new cluster with one barrier key. clusterID is 1 to
// 64 characters of [a-z0-9._-]; now is recorded as the key's birth. Errors:
// ErrParameters.
func New(clusterID string, now time.Time) (*Keyring, error) {
	if !validName(clusterID) {
		return nil, as(ErrParameters, nil, "A cluster id is 1 to %d characters of a-z, 0-9, dot, dash and underscore.", maxName)
	}
	key := newBarrierKey(1, now)
	k := &Keyring{}
	k.ring.Store(&ring{
		clusterID:   clusterID,
		incarnation: 1,
		revision:    1,
		keys:        map[uint32]*barrierKey{1: key},
		newest:      key,
		secrets:     map[string][]byte{},
	})
	return k, nil
}

func newBarrierKey(number uint32, now time.Time) *barrierKey {
	b := &barrierKey{number: number, created: now.UTC().Truncate(time.Second)}
	_, _ = rand.Read(b.key[:]) // never fails: crypto/rand ends the process instead
	return b
}

// derive returns the 32-byte key of a purpose. The caller holds Keyring.mu.
func (b *barrierKey) derive(purpose string) ([]byte, error) {
	return hkdf.Key(sha256.New, b.key[:], nil, "mayfly/barrier/v1/"+purpose, keyBytes)
}

// ClusterID returns the cluster's id, "" when sealed.
func (k *Keyring) ClusterID() string {
	if r := k.ring.Load(); r != nil {
		return r.clusterID
	}
	return ""
}

// Incarnation returns the cluster's incarnation, which starts at 1 and grows with
// every restore; 0 when sealed.
func (k *Keyring) Incarnation() uint64 {
	if r := k.ring.Load(); r != nil {
		return r.incarnation
	}
	return 0
}

// Revision counts the changes of the keyring since it was made; 0 when sealed.
// Of two documents of one cluster, the one with the higher revision is newer.
func (k *Keyring) Revision() uint64 {
	if r := k.ring.Load(); r != nil {
		return r.revision
	}
	return 0
}

// KeyInfo says which barrier keys there are, without the keys.
type KeyInfo struct {
	Number  uint32
	Created time.Time
	Newest  bool
}

// Keys lists the barrier keys by number; nil when sealed.
func (k *Keyring) Keys() []KeyInfo {
	r := k.ring.Load()
	if r == nil {
		return nil
	}
	var out []KeyInfo
	for _, n := range sortedNumbers(r.keys) {
		b := r.keys[n]
		out = append(out, KeyInfo{Number: n, Created: b.created, Newest: b == r.newest})
	}
	return out
}

// Newest is the number of the key that seals; 0 when sealed.
func (k *Keyring) Newest() uint32 {
	if r := k.ring.Load(); r != nil {
		return r.newest.number
	}
	return 0
}

// update replaces the ring by a changed copy with the next revision. change may
// alter the copy's fields and maps, never what the old ring points to.
func (k *Keyring) update(change func(*ring) error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	old := k.ring.Load()
	if old == nil {
		return ErrSealed
	}
	next := *old
	next.keys = maps.Clone(old.keys)
	next.secrets = maps.Clone(old.secrets)
	next.revision++
	if err := change(&next); err != nil {
		return err
	}
	k.ring.Store(&next)
	return nil
}

// Rotate adds a barrier key, which seals from now on, and returns its number.
// The keyring must be wrapped and stored again before anything sealed under the
// new key is. Errors: ErrSealed, ErrParameters (too many keys).
func (k *Keyring) Rotate(now time.Time) (number uint32, err error) {
	err = k.update(func(r *ring) error {
		if len(r.keys) >= MaxKeys {
			return as(ErrParameters, nil, "A keyring holds at most %d barrier keys; retire old ones first.", MaxKeys)
		}
		number = r.newest.number + 1
		r.newest = newBarrierKey(number, now)
		r.keys[number] = r.newest
		return nil
	})
	return number, err
}

// Retire forgets an old barrier key. The caller vouches that no log, state or
// snapshot names it any more ([KeyNumber]). Errors: ErrSealed, ErrUnknownKey,
// ErrParameters (the newest key cannot retire).
func (k *Keyring) Retire(number uint32) error {
	return k.update(func(r *ring) error {
		b, ok := r.keys[number]
		if !ok {
			return as(ErrUnknownKey, nil, "There is no barrier key %d.", number)
		}
		if b == r.newest {
			return as(ErrParameters, nil, "Barrier key %d is the newest: it cannot retire before the next rotation.", number)
		}
		delete(r.keys, number)
		clear(b.key[:])
		b.ciphers.Store(nil)
		return nil
	})
}

// SetSecret stores a named secret that travels with the keyring, such as the
// cluster CA's key; an empty value removes it. name is 1 to 64 characters of
// [a-z0-9._-], the value at most 8 KiB. Errors: ErrSealed, ErrParameters.
func (k *Keyring) SetSecret(name string, value secret.Text) error {
	if !validName(name) || len(value.Reveal()) > MaxSecretBytes {
		return as(ErrParameters, nil, "A keyring secret has a name of at most %d characters and a value of at most %d bytes.", maxName, MaxSecretBytes)
	}
	return k.update(func(r *ring) error {
		if value.IsZero() {
			delete(r.secrets, name)
			return nil
		}
		r.secrets[name] = []byte(value.Reveal())
		if len(r.secrets) > MaxSecrets {
			return as(ErrParameters, nil, "A keyring holds at most %d secrets.", MaxSecrets)
		}
		return nil
	})
}

// Secret returns a named secret. Errors: ErrSealed; a [fault.NotFound] when the
// keyring does not carry it.
func (k *Keyring) Secret(name string) (secret.Text, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	r := k.ring.Load()
	if r == nil {
		return secret.Text{}, ErrSealed
	}
	value, ok := r.secrets[name]
	if !ok {
		return secret.Text{}, fault.New(fault.NotFound, "", "The keyring carries no secret named %q.", name)
	}
	return secret.New(string(value)), nil
}

// SetIncarnation records that the cluster was restored from a snapshot. n must
// be above the present incarnation. Errors: ErrSealed, ErrParameters.
func (k *Keyring) SetIncarnation(n uint64) error {
	return k.update(func(r *ring) error {
		if n <= r.incarnation {
			return as(ErrParameters, nil, "The incarnation only grows: it is %d.", r.incarnation)
		}
		r.incarnation = n
		return nil
	})
}

// A Subkey is a derived 256-bit key and the number of the barrier key it comes
// from, so that a verifier can ask [Keyring.SubkeyOf] for the same one later.
type Subkey struct {
	Number uint32
	Key    [keyBytes]byte
}

// Format implements [fmt.Formatter]: a subkey never prints.
func (Subkey) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(secret.Redacted)) }

// Subkey derives the key of a purpose from the newest barrier key (HKDF-SHA-256,
// RFC 5869). purpose comes from a fixed list in the caller's code, never from
// outside. Errors: ErrSealed.
func (k *Keyring) Subkey(purpose string) (Subkey, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	r := k.ring.Load()
	if r == nil {
		return Subkey{}, ErrSealed
	}
	return subkey(r.newest, purpose)
}

// SubkeyOf is Subkey for a given barrier key. Errors: ErrSealed, ErrUnknownKey.
func (k *Keyring) SubkeyOf(number uint32, purpose string) (Subkey, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	r := k.ring.Load()
	if r == nil {
		return Subkey{}, ErrSealed
	}
	b, ok := r.keys[number]
	if !ok {
		return Subkey{}, as(ErrUnknownKey, nil, "There is no barrier key %d.", number)
	}
	return subkey(b, purpose)
}

func subkey(b *barrierKey, purpose string) (Subkey, error) {
	derived, err := b.derive("sub/" + purpose) // apart from the sealing keys
	if err != nil {
		return Subkey{}, fault.Wrap(err, fault.Internal, "", "A key could not be derived.")
	}
	defer clear(derived)
	return Subkey{Number: b.number, Key: [keyBytes]byte(derived)}, nil
}

// Close seals the node: keys and secrets are overwritten, and every later call
// answers ErrSealed. Stop what writes first: see [Keyring.Seal]. The ciphers'
// private copies of derived keys are dropped, not overwritten: Go gives no way to
// reach them.
func (k *Keyring) Close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	r := k.ring.Swap(nil)
	if r == nil {
		return
	}
	for _, b := range r.keys {
		clear(b.key[:])
		b.ciphers.Store(nil)
	}
	for _, value := range r.secrets {
		clear(value)
	}
	if r.wrapping != nil {
		clear(r.wrapping.key[:])
	}
}

// cipher returns b's AEAD for a purpose, deriving it the first time.
func (k *Keyring) cipher(b *barrierKey, purpose string) (cipher.AEAD, error) {
	if known := b.ciphers.Load(); known != nil {
		if c, ok := (*known)[purpose]; ok {
			return c, nil
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	// A key that was retired or closed meanwhile is all zeroes: never use it.
	if r := k.ring.Load(); r == nil {
		return nil, ErrSealed
	} else if r.keys[b.number] != b {
		return nil, as(ErrUnknownKey, nil, "Barrier key %d has been retired.", b.number)
	}
	known := map[string]cipher.AEAD{}
	if p := b.ciphers.Load(); p != nil {
		maps.Copy(known, *p)
	}
	derived, err := b.derive("seal/" + purpose)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "", "A key could not be derived.")
	}
	defer clear(derived)
	c, err := chacha20poly1305.NewX(derived)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "", "A cipher could not be made.")
	}
	known[purpose] = c
	b.ciphers.Store(&known)
	return c, nil
}

// KeyNumber returns the number of the barrier key that sealed is under, without
// opening it, so that a store can tell which keys are still named. Errors:
// ErrCorrupt.
func KeyNumber(sealed []byte) (uint32, error) {
	if len(sealed) < overhead || sealed[0] != version {
		return 0, as(ErrCorrupt, nil, "Not a sealed value: %d bytes, or an unknown version.", len(sealed))
	}
	return binary.BigEndian.Uint32(sealed[1:]), nil
}
