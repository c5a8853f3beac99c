package seal

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"slices"

	"github.com/cloudflare/circl/group"
	"github.com/cloudflare/circl/secretsharing"

	"github.com/mayfly-broker/mayfly/broker/fault"
)

// What is shared is a random scalar of ristretto255 (252 bits), whose arithmetic
// in circl runs in constant time, which that of its NIST curves does not. The
// root key is HKDF of the scalar, so sharing the same scalar anew under other
// parameters leaves the root key, and with it every document, as it was.
func field() group.Group { return group.Ristretto255 }

// Params says how a root key is shared: Threshold of Shares bring it back. Both
// are 1 to 255 and Threshold is at most Shares.
type Params struct{ Shares, Threshold int }

func (p Params) validate() error {
	if p.Shares < 1 || p.Shares > MaxShares || p.Threshold < 1 || p.Threshold > p.Shares {
		return as(ErrParameters, nil, "There are 1 to %d shares, and the threshold is 1 to their number; got %d of %d.", MaxShares, p.Threshold, p.Shares)
	}
	return nil
}

func (s Share) scalar() (group.Scalar, error) {
	v := field().NewScalar()
	if err := v.UnmarshalBinary(s.value[:]); err != nil {
		return nil, as(ErrShare, err, "Share %d of set %s is not a share this program made.", s.index, s.set)
	}
	return v, nil
}

// InitShamir wraps a keyring under a fresh root key and shares that key. The
// shares exist nowhere else: hand each to its holder and forget them. Errors:
// ErrParameters, ErrSealed.
func InitShamir(k *Keyring, p Params) (*Wrapped, []Share, error) {
	if err := p.validate(); err != nil {
		return nil, nil, err
	}
	scalar := field().RandomNonZeroScalar(rand.Reader)
	defer scalar.SetUint64(0)
	root, err := rootOf(scalar)
	if err != nil {
		return nil, nil, err
	}
	defer root.Destroy()
	method, shares, err := split(scalar, p)
	if err != nil {
		return nil, nil, err
	}
	w, err := k.Wrap(root, method)
	if err != nil {
		return nil, nil, err
	}
	return w, shares, nil
}

// Rekey shares the same root key anew, given a threshold of the old shares. It
// returns the document with the new set's id, which refuses the old set from then
// on; store it and let every node Absorb it. Old shares remain arithmetic: with a
// threshold of them and a copy of an *old* document, that document still opens.
// Have the old shares destroyed; against stolen ones, change the root
// ([InitShamir] on the unsealed keyring) and rotate. Errors: those of ProveShares
// and ErrParameters.
func Rekey(w *Wrapped, old []Share, p Params) (*Wrapped, []Share, error) {
	if err := p.validate(); err != nil {
		return nil, nil, err
	}
	scalar, root, err := w.combine(old)
	if err != nil {
		return nil, nil, err
	}
	defer scalar.SetUint64(0)
	defer root.Destroy()
	k, err := w.Unwrap(root)
	if err != nil {
		return nil, nil, err
	}
	defer k.Close()
	method, shares, err := split(scalar, p)
	if err != nil {
		return nil, nil, err
	}
	again, err := k.Wrap(root, method)
	if err != nil {
		return nil, nil, err
	}
	return again, shares, nil
}

// ProveShares says whether shares hold a quorum of this document's root key,
// without opening it: nil if they do. Errors: ErrShare (too few, another set, the
// same number twice with different content, or not fitting together), ErrMethod
// (the keyring has no shares).
func (w *Wrapped) ProveShares(shares []Share) error {
	scalar, root, err := w.combine(shares)
	if err != nil {
		return err
	}
	scalar.SetUint64(0)
	root.Destroy()
	return nil
}

// UnsealShares opens the document with a threshold of shares. Errors: those of
// ProveShares, ErrCorrupt.
func (w *Wrapped) UnsealShares(shares []Share) (*Keyring, error) {
	scalar, root, err := w.combine(shares)
	if err != nil {
		return nil, err
	}
	scalar.SetUint64(0)
	defer root.Destroy()
	return w.Unwrap(root)
}

// belongs says whether s can be a share of this document.
func (w *Wrapped) belongs(s Share) error {
	m := w.header.Method
	switch {
	case m.Type != MethodShamir:
		return as(ErrMethod, nil, "This keyring is sealed by method %s: it has no shares.", m.Type)
	case s.set != m.SetID:
		return as(ErrShare, nil, "Share %d is of set %s; this cluster's shares are of set %s. An earlier set is void since the last rekey.", s.index, s.set, m.SetID)
	case s.index < 1 || s.index > m.Shares:
		return as(ErrShare, nil, "Share %d cannot be: set %s has %d shares.", s.index, m.SetID, m.Shares)
	}
	return nil
}

// combine brings the shared scalar and the root key back and checks them against
// the document. The caller overwrites both.
func (w *Wrapped) combine(shares []Share) (group.Scalar, RootKey, error) {
	distinct, err := w.distinct(shares)
	if err != nil {
		return nil, RootKey{}, err
	}
	need := w.header.Method.Threshold
	if len(distinct) < need {
		return nil, RootKey{}, as(ErrShare, nil, "%d different shares are needed; %d given.", need, len(distinct))
	}
	points := make([]secretsharing.Share, 0, len(distinct))
	for _, s := range distinct {
		v, err := s.scalar()
		if err != nil {
			return nil, RootKey{}, err
		}
		defer v.SetUint64(0)
		points = append(points, secretsharing.Share{ID: field().NewScalar().SetUint64(uint64(s.index)), Value: v})
	}
	scalar, err := secretsharing.Recover(uint(need-1), points)
	if err != nil {
		return nil, RootKey{}, as(ErrShare, err, "The shares do not fit together.")
	}
	root, err := rootOf(scalar)
	if err == nil {
		err = w.Check(root)
	}
	if err != nil {
		scalar.SetUint64(0)
		root.Destroy()
		return nil, RootKey{}, as(ErrShare, err, "The shares read well, but together they do not make this keyring's root key: at least one of them is false.")
	}
	return scalar, root, nil
}

// distinct drops repeated shares and refuses foreign and contradicting ones.
func (w *Wrapped) distinct(shares []Share) ([]Share, error) {
	if len(shares) == 0 {
		if m := w.header.Method.Type; m != MethodShamir {
			return nil, as(ErrMethod, nil, "This keyring is sealed by method %s: it has no shares.", m)
		}
	}
	var out []Share
	for _, s := range shares {
		if err := w.belongs(s); err != nil {
			return nil, err
		}
		i := slices.IndexFunc(out, func(o Share) bool { return o.index == s.index })
		if i < 0 {
			out = append(out, s)
		} else if !out[i].equal(s) {
			return nil, as(ErrShare, nil, "Share %d was given twice with different content.", s.index)
		}
	}
	return out, nil
}

func (s Share) equal(o Share) bool {
	return s.set == o.set && s.index == o.index && subtle.ConstantTimeCompare(s.value[:], o.value[:]) == 1
}

// split shares scalar as a new set.
func split(scalar group.Scalar, p Params) (Method, []Share, error) {
	m := Method{Type: MethodShamir, SetID: newSetID(), Shares: p.Shares, Threshold: p.Threshold}
	shares := make([]Share, 0, p.Shares)
	for _, point := range secretsharing.New(rand.Reader, uint(p.Threshold-1), scalar).Share(uint(p.Shares)) {
		value, err := point.Value.MarshalBinary()
		if err != nil {
			return Method{}, nil, fault.Wrap(err, fault.Internal, "", "A share could not be encoded.")
		}
		shares = append(shares, Share{set: m.SetID, index: len(shares) + 1, value: [scalarBytes]byte(value)})
		clear(value)
	}
	return m, shares, nil
}

// rootOf derives the root key from the shared scalar.
func rootOf(scalar group.Scalar) (RootKey, error) {
	b, err := scalar.MarshalBinary()
	if err != nil {
		return RootKey{}, fault.Wrap(err, fault.Internal, "", "The shared key could not be encoded.")
	}
	defer clear(b)
	key, err := hkdf.Key(sha256.New, b, nil, "mayfly/root/v1", keyBytes)
	if err != nil {
		return RootKey{}, fault.Wrap(err, fault.Internal, "", "A key could not be derived.")
	}
	return newRootKey(key), nil
}
