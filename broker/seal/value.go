package seal

import (
	"crypto/rand"
	"encoding/binary"

	"golang.org/x/crypto/chacha20poly1305"
)

const (
	version   = 1
	headerLen = 1 + 4 // version ‖ key number
	overhead  = headerLen + chacha20poly1305.NonceSizeX + chacha20poly1305.Overhead
	// keepScratch bounds the associated-data buffers that are kept for reuse.
	keepScratch = 4 << 10
)

// Overhead is how many bytes longer a sealed value is than its content.
const Overhead = overhead

// A Sealer seals for one purpose. Get one with [Keyring.For]. It is a small
// value, safe for concurrent use, and follows its keyring's rotations, unless it is
// pinned. The zero value is sealed.
type Sealer struct {
	keyring *Keyring
	purpose string
	pinned  *barrierKey // nil: the newest
}

// For returns the sealer of a purpose. purpose comes from a fixed list in the
// caller's code, never from outside: each costs memory for the keyring's life.
func (k *Keyring) For(purpose string) Sealer { return Sealer{keyring: k, purpose: purpose} }

// Pinned returns the keyring as it is now, wrapped, and a sealer that seals by the
// newest key in it whatever the keyring learns later: what begins with the one and
// goes on with the other opens for whoever has the root key (HAZARDS 22). The sealer
// is for [PurposeState]. Errors: ErrSealed, ErrMethod (never wrapped).
func (k *Keyring) Pinned() (*Wrapped, Sealer, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	r, err := k.given()
	if err != nil {
		return nil, Sealer{}, err
	}
	w, err := r.wrap()
	return w, Sealer{keyring: k, purpose: PurposeState, pinned: r.newest}, err
}

// given returns the present ring, which must have a root key. The caller holds mu.
func (k *Keyring) given() (*ring, error) {
	r := k.ring.Load()
	switch {
	case r == nil:
		return nil, ErrSealed
	case r.wrapping == nil:
		return nil, as(ErrMethod, nil, "This keyring has not been given a root key yet.")
	}
	return r, nil
}

// Seal seals for [PurposeState]; see [Sealer.Seal].
func (k *Keyring) Seal(place, plaintext []byte) []byte {
	return k.For(PurposeState).Seal(place, plaintext)
}

// Open opens for [PurposeState]; see [Sealer.Open].
func (k *Keyring) Open(place, sealed []byte) ([]byte, error) {
	return k.For(PurposeState).Open(place, sealed)
}

// Seal encrypts plaintext under the newest barrier key and binds it to place (a
// bucket and key, or an index and term, in an encoding of the caller's that
// keeps different places different). The result is version ‖ key number ‖ nonce
// ‖ ciphertext ‖ tag, Overhead bytes longer than plaintext, and the caller's.
//
// It returns nil when the keyring is sealed or a pinned key has been retired, and
// only then: a caller that may
// race with [Keyring.Close] must treat nil as ErrSealed and write nothing. (A nil
// that is stored all the same never opens.)
//
// The cipher is XChaCha20-Poly1305 with a random nonce
// (draft-irtf-cfrg-xchacha-03 §2). With AES-GCM's 96-bit nonces, random ones
// start to collide after 2³² values, which a busy cluster writes in about 30
// hours, and one collision gives away the authentication key; counting nonces
// instead needs a counter that survives crashes and restored disks. With 192
// bits, 2⁸⁰ values leave a chance of collision of 2⁻³³: a random nonce is safe
// for the life of a key, on any number of nodes, with nothing to remember.
func (s Sealer) Seal(place, plaintext []byte) []byte {
	if s.keyring == nil {
		return nil
	}
	for {
		r := s.keyring.ring.Load()
		if r == nil {
			return nil
		}
		b := r.newest
		if s.pinned != nil {
			b = s.pinned
		}
		c, err := s.keyring.cipher(b, s.purpose)
		if err != nil {
			// Closed or rotated and retired between the two lines above: the
			// next look sees nil or a newer key.
			if next := s.keyring.ring.Load(); next == nil || next == r || s.pinned != nil {
				return nil
			}
			continue
		}
		out := make([]byte, headerLen+chacha20poly1305.NonceSizeX, overhead+len(plaintext))
		out[0] = version
		binary.BigEndian.PutUint32(out[1:], b.number)
		nonce := out[headerLen:]
		_, _ = rand.Read(nonce) // never fails: crypto/rand ends the process instead
		aad := s.keyring.associated(out[:headerLen], place)
		out = c.Seal(out, nonce, plaintext, *aad)
		s.keyring.release(aad)
		return out
	}
}

// Open decrypts what Seal made for the same place and purpose. Errors: ErrSealed,
// ErrUnknownKey, ErrCorrupt (damaged, altered, or moved from another place).
func (s Sealer) Open(place, sealed []byte) ([]byte, error) {
	if s.keyring == nil {
		return nil, ErrSealed
	}
	r := s.keyring.ring.Load()
	if r == nil {
		return nil, ErrSealed
	}
	number, err := KeyNumber(sealed)
	if err != nil {
		return nil, err
	}
	b, ok := r.keys[number]
	if !ok {
		return nil, as(ErrUnknownKey, nil, "Sealed under barrier key %d, which this node's keyring does not hold.", number)
	}
	c, err := s.keyring.cipher(b, s.purpose)
	if err != nil {
		return nil, err
	}
	nonce := sealed[headerLen : headerLen+chacha20poly1305.NonceSizeX]
	aad := s.keyring.associated(sealed[:headerLen], place)
	out, err := c.Open(make([]byte, 0, len(sealed)-overhead), nonce, sealed[headerLen+len(nonce):], *aad)
	s.keyring.release(aad)
	if err != nil {
		return nil, as(ErrCorrupt, err, "A sealed value of %d bytes under key %d does not open in this place: it is damaged, was altered, or was moved.", len(sealed), number)
	}
	return out, nil
}

// associated returns header ‖ place. The header has a fixed length, so no two
// pairs give the same bytes.
func (k *Keyring) associated(header, place []byte) *[]byte {
	buf, ok := k.scratch.Get().(*[]byte)
	if !ok {
		buf = new([]byte)
	}
	*buf = append(append((*buf)[:0], header...), place...)
	return buf
}

func (k *Keyring) release(buf *[]byte) {
	if cap(*buf) <= keepScratch {
		k.scratch.Put(buf)
	}
}
