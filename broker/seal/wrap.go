package seal

import (
	"bytes"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/secret"
)

// The seal methods. Each is one case in [Method.validate] and one way of getting
// a [RootKey]; a further one (a TPM, a KMS) adds its name, its own fields in
// Method, and its own way.
const (
	MethodShamir = "shamir" // the root key is shared among operators
	MethodLocal  = "local"  // the root key is in a file on this machine
)

const (
	documentVersion = 1
	checkBytes      = 16
)

// A RootKey opens one keyring document. It is the caller's to destroy as soon as
// it has served. The zero value opens nothing.
type RootKey struct{ key *[keyBytes]byte }

// newRootKey takes over 32 bytes of high entropy and overwrites them.
func newRootKey(b []byte) RootKey {
	r := RootKey{new([keyBytes]byte)}
	copy(r.key[:], b)
	clear(b)
	return r
}

// Destroy overwrites the key. All copies of a RootKey share it.
func (r RootKey) Destroy() {
	if r.key != nil {
		clear(r.key[:])
	}
}

// Format implements [fmt.Formatter]: a root key never prints.
func (RootKey) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(secret.Redacted)) }

// usable is false for the zero value and after Destroy: an all-zero key would
// otherwise "wrap" with a key that everybody knows.
func (r RootKey) usable() bool {
	return r.key != nil && subtle.ConstantTimeCompare(r.key[:], make([]byte, keyBytes)) == 0
}

// derive returns the wrapping key and the check value of a cluster. They are
// independent outputs of HKDF, so the check value, which stands in the clear,
// says nothing of the wrapping key.
func (r RootKey) derive(clusterID string) (*wrapping, []byte, error) {
	if !r.usable() {
		return nil, nil, as(ErrWrongRoot, nil, "There is no root key.")
	}
	prk, err := hkdf.Extract(sha256.New, r.key[:], []byte(clusterID))
	if err != nil {
		return nil, nil, fault.Wrap(err, fault.Internal, "", "A key could not be derived.")
	}
	defer clear(prk)
	key, err := hkdf.Expand(sha256.New, prk, "mayfly/keyring/wrap/v1", keyBytes)
	if err != nil {
		return nil, nil, fault.Wrap(err, fault.Internal, "", "A key could not be derived.")
	}
	defer clear(key)
	check, err := hkdf.Expand(sha256.New, prk, "mayfly/keyring/check/v1", checkBytes)
	if err != nil {
		return nil, nil, fault.Wrap(err, fault.Internal, "", "A key could not be derived.")
	}
	return &wrapping{key: [keyBytes]byte(key), check: check}, check, nil
}

// wrapping is what an unsealed node keeps of the root key: enough to store the
// keyring again after a change and to read a newer document of the same root
// (HAZARDS 22), not enough to make shares: those need the shared scalar itself.
type wrapping struct {
	key    [keyBytes]byte
	check  []byte
	method Method
}

// Method says how the root key is kept. It stands in the clear.
type Method struct {
	Type string `json:"type"`
	// SetID names the set of shares; "" for local.
	SetID string `json:"set_id,omitempty"`
	// Shares and Threshold are 1 to 255, Threshold at most Shares; 0 for local.
	Shares    int `json:"shares,omitempty"`
	Threshold int `json:"threshold,omitempty"`
}

func (m Method) validate() error {
	switch m.Type {
	case MethodShamir:
		if _, err := decodeSetID(m.SetID); err != nil {
			return err
		}
		return Params{Shares: m.Shares, Threshold: m.Threshold}.validate()
	case MethodLocal:
		if m != (Method{Type: MethodLocal}) {
			return as(ErrCorrupt, nil, "A keyring under a local key has no shares.")
		}
		return nil
	default:
		return as(ErrMethod, nil, "This keyring is sealed by method %q, which this version does not know.", clip(m.Type))
	}
}

// Header is the part of a keyring document that stands in the clear. Its fields
// other than Check are bound to the sealed part: altering one makes it ErrCorrupt.
type Header struct {
	Version     int    `json:"version"`
	ClusterID   string `json:"cluster_id"`
	Incarnation uint64 `json:"incarnation"`
	Method      Method `json:"seal"`
	// Check recognises the root key, so that a wrong one is named as such. It is
	// 16 bytes of HKDF over the root key and lets nobody test guesses: the root
	// key has more than 250 bits.
	Check []byte `json:"check"`
}

// associated is the header as bytes, each field with its length.
func (h Header) associated() []byte {
	out := []byte("mayfly/keyring/v1\x00")
	for _, s := range []string{h.ClusterID, h.Method.Type, h.Method.SetID} {
		out = binary.BigEndian.AppendUint32(out, uint32(len(s)))
		out = append(out, s...)
	}
	for _, n := range []uint64{uint64(h.Version), h.Incarnation, uint64(h.Method.Shares), uint64(h.Method.Threshold)} {
		out = binary.BigEndian.AppendUint64(out, n)
	}
	return out
}

// Wrapped is a keyring at rest: a clear header and everything else sealed under
// the root key. It is immutable and safe to share, to store and to send: without
// the root key it gives nothing away. Get one from [Keyring.Wrap] or [Parse].
type Wrapped struct {
	header Header
	sealed []byte
}

// Header returns the clear part. Do not alter its Check.
func (w *Wrapped) Header() Header { return w.header }

// document is a Wrapped as JSON.
type document struct {
	Header
	Sealed []byte `json:"sealed"`
}

// content is what is sealed in a document.
type content struct {
	Revision uint64            `json:"revision"`
	Keys     []contentKey      `json:"keys"`
	Secrets  map[string][]byte `json:"secrets,omitempty"`
}

type contentKey struct {
	Number  uint32 `json:"number"`
	Created int64  `json:"created_unix_s"`
	Key     []byte `json:"key"`
}

// Marshal returns the document's bytes: JSON, one canonical form, ending in a
// newline.
func (w *Wrapped) Marshal() ([]byte, error) {
	b, err := json.MarshalIndent(document{w.header, w.sealed}, "", "  ")
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "", "The keyring could not be encoded.")
	}
	return append(b, '\n'), nil
}

// Parse reads a document of at most 1 MiB. It takes exactly what Marshal gives:
// cut short, with anything added, or in other spelling it is refused, so that two
// readers never see different things in one file. Errors: ErrCorrupt, ErrMethod,
// ErrParameters.
func Parse(b []byte) (*Wrapped, error) {
	if len(b) == 0 || len(b) > MaxDocument {
		return nil, as(ErrCorrupt, nil, "The keyring document is %d bytes long; it has 1 to %d.", len(b), MaxDocument)
	}
	var versioned struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(b, &versioned); err != nil {
		return nil, as(ErrCorrupt, err, "The keyring document is not whole: it was cut short or damaged.")
	}
	if versioned.Version != documentVersion {
		return nil, as(ErrMethod, nil, "The keyring document has version %d; this program reads version %d.", versioned.Version, documentVersion)
	}
	var d document
	if err := json.Unmarshal(b, &d); err != nil {
		return nil, as(ErrCorrupt, err, "The keyring document is damaged.")
	}
	if !validName(d.ClusterID) || d.Incarnation == 0 || len(d.Check) != checkBytes ||
		len(d.Sealed) < chacha20poly1305.NonceSizeX+chacha20poly1305.Overhead {
		return nil, as(ErrCorrupt, nil, "The keyring document lacks a part.")
	}
	if err := d.Method.validate(); err != nil {
		return nil, err
	}
	w := &Wrapped{d.Header, d.Sealed}
	if again, err := w.Marshal(); err != nil || !bytes.Equal(again, b) {
		return nil, as(ErrCorrupt, err, "The keyring document was altered: it is not in the form it was written in.")
	}
	return w, nil
}

// Wrap seals the keyring under root and remembers, for Rewrap and Absorb, a key
// derived from it. Wrapping under another root or method than before is how the
// seal method changes; documents of the old root are then unreadable to a node
// that only knows the new one. Errors: ErrSealed, ErrWrongRoot (a destroyed or
// zero root), ErrParameters.
func (k *Keyring) Wrap(root RootKey, method Method) (*Wrapped, error) {
	if err := method.validate(); err != nil {
		return nil, err
	}
	err := k.update(func(r *ring) error {
		w, _, err := root.derive(r.clusterID)
		if err != nil {
			return err
		}
		w.method = method
		r.wrapping = w
		return nil
	})
	if err != nil {
		return nil, err
	}
	return k.Rewrap()
}

// Rewrap seals the keyring as it is now under the root and method it was last
// wrapped or unwrapped with: after [Keyring.Rotate], [Keyring.SetSecret] and the
// like, and at the head of a snapshot. Errors: ErrSealed, ErrMethod (never wrapped).
func (k *Keyring) Rewrap() (*Wrapped, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	r, err := k.given()
	if err != nil {
		return nil, err
	}
	return r.wrap()
}

func (r *ring) wrap() (*Wrapped, error) {
	h := Header{
		Version: documentVersion, ClusterID: r.clusterID, Incarnation: r.incarnation,
		Method: r.wrapping.method, Check: bytes.Clone(r.wrapping.check),
	}
	plain, err := r.encode()
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	c, err := chacha20poly1305.NewX(r.wrapping.key[:])
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "", "A cipher could not be made.")
	}
	sealed := make([]byte, chacha20poly1305.NonceSizeX, len(plain)+overhead)
	_, _ = rand.Read(sealed) // never fails: crypto/rand ends the process instead
	return &Wrapped{h, c.Seal(sealed, sealed, plain, h.associated())}, nil
}

// encode returns the ring's content as JSON, in one canonical order. It holds
// keys in the clear: the caller overwrites it.
func (r *ring) encode() ([]byte, error) {
	out := content{Revision: r.revision, Secrets: r.secrets}
	for _, n := range sortedNumbers(r.keys) {
		b := r.keys[n]
		out.Keys = append(out.Keys, contentKey{b.number, b.created.Unix(), b.key[:]})
	}
	plain, err := json.Marshal(out)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "", "The keyring could not be encoded.")
	}
	return plain, nil
}

// Unwrap opens the document. The root key remains the caller's to destroy.
// Errors: ErrWrongRoot, ErrCorrupt.
func (w *Wrapped) Unwrap(root RootKey) (*Keyring, error) {
	wrapping, check, err := root.derive(w.header.ClusterID)
	if err != nil {
		return nil, err
	}
	r, err := w.open(wrapping)
	if subtle.ConstantTimeCompare(check, w.header.Check) != 1 {
		if err == nil {
			return nil, as(ErrCorrupt, nil, "The keyring's key check value was altered.")
		}
		return nil, as(ErrWrongRoot, nil, "That root key does not open the keyring of cluster %s: it belongs to another keyring.", w.header.ClusterID)
	}
	if err != nil {
		return nil, err
	}
	k := &Keyring{}
	k.ring.Store(r)
	return k, nil
}

// Check says whether root is this document's, without opening it. Errors: ErrWrongRoot.
func (w *Wrapped) Check(root RootKey) error {
	wrapping, check, err := root.derive(w.header.ClusterID)
	if err != nil {
		return err
	}
	clear(wrapping.key[:])
	if subtle.ConstantTimeCompare(check, w.header.Check) != 1 {
		return as(ErrWrongRoot, nil, "That root key is not the one of cluster %s.", w.header.ClusterID)
	}
	return nil
}

// open decrypts and decodes the sealed part.
func (w *Wrapped) open(with *wrapping) (*ring, error) {
	c, err := chacha20poly1305.NewX(with.key[:])
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "", "A cipher could not be made.")
	}
	nonce := w.sealed[:chacha20poly1305.NonceSizeX]
	plain, err := c.Open(nil, nonce, w.sealed[len(nonce):], w.header.associated())
	if err != nil {
		return nil, as(ErrCorrupt, err, "The root key is right, but the keyring document was altered or damaged.")
	}
	defer clear(plain)
	var in content
	if err := json.Unmarshal(plain, &in); err != nil {
		return nil, as(ErrCorrupt, nil, "The keyring's content cannot be read.")
	}
	if len(in.Keys) == 0 || len(in.Keys) > MaxKeys || in.Revision == 0 || len(in.Secrets) > MaxSecrets {
		return nil, as(ErrCorrupt, nil, "The keyring's content is outside its limits.")
	}
	r := &ring{
		clusterID: w.header.ClusterID, incarnation: w.header.Incarnation, revision: in.Revision,
		keys: make(map[uint32]*barrierKey, len(in.Keys)), secrets: in.Secrets,
		wrapping: &wrapping{key: with.key, check: bytes.Clone(w.header.Check), method: w.header.Method},
	}
	if r.secrets == nil {
		r.secrets = map[string][]byte{}
	}
	for _, key := range in.Keys {
		if len(key.Key) != keyBytes || key.Number == 0 || r.keys[key.Number] != nil {
			return nil, as(ErrCorrupt, nil, "The keyring's content holds a malformed key.")
		}
		b := &barrierKey{number: key.Number, created: time.Unix(key.Created, 0).UTC(), key: [keyBytes]byte(key.Key)}
		clear(key.Key)
		r.keys[b.number] = b
		if r.newest == nil || b.number > r.newest.number {
			r.newest = b
		}
	}
	return r, nil
}
