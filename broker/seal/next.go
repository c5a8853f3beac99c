package seal

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"maps"
	"math"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/mayfly-broker/mayfly/broker/fault"
)

// nextKeyBytes is the length of what NextKey gives.
const nextKeyBytes = 4 + 8 + chacha20poly1305.NonceSizeX + keyBytes + chacha20poly1305.Overhead

// NextKey makes the barrier key after the newest and after the number last, sealed
// under the root key like a keyring document, for every node to [Keyring.Learn]. The keyring itself does not
// know it afterwards: whoever makes it learns it as all others do, so that no node
// has a key that the others might never hear of. Errors: ErrSealed, ErrMethod
// (never wrapped), ErrParameters (too many keys).
func (k *Keyring) NextKey(now time.Time, last uint32) (number uint32, sealed []byte, err error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	r, err := k.given()
	switch {
	case err != nil:
		return 0, nil, err
	case len(r.keys) >= MaxKeys || last == math.MaxUint32:
		return 0, nil, as(ErrParameters, nil, "A keyring holds at most %d barrier keys; retire old ones first.", MaxKeys)
	}
	b := newBarrierKey(max(r.newest.number, last)+1, now)
	defer clear(b.key[:])
	c, err := chacha20poly1305.NewX(r.wrapping.key[:])
	if err != nil {
		return 0, nil, fault.Wrap(err, fault.Internal, "", "A cipher could not be made.")
	}
	head := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(nil, b.number), uint64(b.created.Unix()))
	nonce := make([]byte, chacha20poly1305.NonceSizeX)
	_, _ = rand.Read(nonce) // never fails: crypto/rand ends the process instead
	sealed = append(append(make([]byte, 0, nextKeyBytes), head...), nonce...)
	return b.number, c.Seal(sealed, nonce, b.key[:], nextPlace(r.clusterID, head)), nil
}

// nextPlace binds a key on its way to its cluster, number and birth.
func nextPlace(clusterID string, head []byte) []byte {
	return append(append([]byte("mayfly/barrier-key/v1\x00"), head...), clusterID...)
}

// Learn takes in a key that NextKey made on some node of the cluster, and seals by
// the highest that it knows. store keeps the new document before anything is sealed
// under the key; if it fails, nothing is changed. Learning a key again changes
// nothing. Errors: ErrSealed; ErrMethod; ErrCorrupt (no such key, or another root's
// or cluster's); ErrConflict (this number is another key here: the two have forked);
// ErrParameters (too many keys); store's.
func (k *Keyring) Learn(sealed []byte, store func(*Wrapped) error) (changed bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	mine, err := k.given()
	if err != nil {
		return false, err
	}
	b, err := mine.openNext(sealed)
	if err != nil {
		return false, err
	}
	if have := mine.keys[b.number]; have != nil {
		same := subtle.ConstantTimeCompare(have.key[:], b.key[:]) == 1
		clear(b.key[:])
		if !same {
			return false, as(ErrConflict, nil, "Barrier key %d is another one here: the two have forked.", b.number)
		}
		return false, nil
	}
	if len(mine.keys) >= MaxKeys {
		return false, as(ErrParameters, nil, "A keyring holds at most %d barrier keys; retire old ones first.", MaxKeys)
	}
	next := *mine
	next.keys = maps.Clone(mine.keys)
	next.keys[b.number] = b
	next.revision++
	if b.number > mine.newest.number {
		next.newest = b
	}
	if err := k.storeThenUse(&next, store); err != nil {
		return false, err
	}
	return true, nil
}

func (r *ring) openNext(sealed []byte) (*barrierKey, error) {
	const head = 4 + 8
	if len(sealed) != nextKeyBytes {
		return nil, as(ErrCorrupt, nil, "A barrier key on its way has %d bytes; this has %d.", nextKeyBytes, len(sealed))
	}
	c, err := chacha20poly1305.NewX(r.wrapping.key[:])
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "", "A cipher could not be made.")
	}
	rest := sealed[head:]
	plain, err := c.Open(nil, rest[:chacha20poly1305.NonceSizeX], rest[chacha20poly1305.NonceSizeX:], nextPlace(r.clusterID, sealed[:head]))
	if err != nil {
		return nil, as(ErrCorrupt, nil, "A barrier key on its way does not open: it was altered, or is under another root key.")
	}
	defer clear(plain)
	return &barrierKey{
		number: binary.BigEndian.Uint32(sealed), created: time.Unix(int64(binary.BigEndian.Uint64(sealed[4:])), 0).UTC(), key: [keyBytes]byte(plain),
	}, nil
}
