package seal

import (
	"bytes"
	"crypto/subtle"
	"maps"
	"slices"
)

func sortedNumbers(keys map[uint32]*barrierKey) []uint32 { return slices.Sorted(maps.Keys(keys)) }

// Absorb takes in another document of the same cluster and root: the one that
// came with a rotation, or with a snapshot sealed under a key that this node
// missed while it was offline (HAZARDS 22). Afterwards the keyring opens what
// either opened, and whatever else differs (secrets, incarnation, shares) is as
// in the document with the higher revision. It reports whether anything changed,
// in which case the keyring should be stored again.
//
// Errors: ErrSealed; ErrWrongRoot (sealed under another root); ErrCorrupt;
// ErrConflict (another cluster, or the same key number or revision with different
// content: the two have forked, and nothing is changed).
func (k *Keyring) Absorb(w *Wrapped) (changed bool, err error) { return k.AbsorbStored(w, nil) }

// AbsorbStored is Absorb with the result stored first: what is sealed under a key
// that no disk holds yet would never open again after a crash. If store fails,
// nothing is changed.
func (k *Keyring) AbsorbStored(w *Wrapped, store func(*Wrapped) error) (changed bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	mine, err := k.given()
	switch {
	case err != nil:
		return false, err
	case w.header.ClusterID != mine.clusterID:
		return false, as(ErrConflict, nil, "The keyring of cluster %s cannot be taken into cluster %s.", w.header.ClusterID, mine.clusterID)
	case subtle.ConstantTimeCompare(w.header.Check, mine.wrapping.check) != 1:
		return false, as(ErrWrongRoot, nil, "The other keyring is sealed under another root key: unseal this node again with the present shares.")
	}
	theirs, err := w.open(mine.wrapping)
	if err != nil {
		return false, err
	}
	merged, err := merge(mine, theirs)
	if err != nil {
		return false, err
	}
	if merged == mine {
		return false, nil
	}
	if err := k.storeThenUse(merged, store); err != nil {
		return false, err
	}
	return true, nil
}

// storeThenUse makes next the keyring's content once it is stored. The caller
// holds mu.
func (k *Keyring) storeThenUse(next *ring, store func(*Wrapped) error) error {
	if store != nil {
		w, err := next.wrap()
		if err == nil {
			err = store(w)
		}
		if err != nil {
			return err
		}
	}
	k.ring.Store(next)
	return nil
}

// merge returns the union of two rings of one cluster and root; mine itself when
// theirs adds nothing.
func merge(mine, theirs *ring) (*ring, error) {
	newer, older := mine, theirs
	if theirs.revision > mine.revision {
		newer, older = theirs, mine
	}
	if theirs.revision == mine.revision {
		return mine, sameContent(mine, theirs)
	}
	merged := *newer
	merged.keys = maps.Clone(newer.keys)
	grown := newer == theirs
	for n, b := range older.keys {
		switch have := merged.keys[n]; {
		case have == nil && n > newer.newest.number:
			return nil, as(ErrConflict, nil, "Barrier key %d is unknown to the newer of the two keyrings: they have forked.", n)
		case have == nil:
			// Retired in the newer one. What brought us the older one may still
			// need it; the owner retires it again.
			merged.keys[n] = b
			grown = grown || older == theirs
		case subtle.ConstantTimeCompare(have.key[:], b.key[:]) != 1:
			return nil, as(ErrConflict, nil, "Barrier key %d differs between the two keyrings: they have forked.", n)
		case b == mine.keys[n]:
			merged.keys[n] = b // keep the ciphers that were derived already
		}
	}
	if len(merged.keys) > MaxKeys {
		return nil, as(ErrParameters, nil, "A keyring holds at most %d barrier keys; retire old ones first.", MaxKeys)
	}
	if !grown {
		return mine, nil
	}
	merged.newest = merged.keys[newer.newest.number]
	if newer == mine {
		merged.revision++ // not the content that this revision had
	}
	return &merged, nil
}

// sameContent refuses two different contents under one revision.
func sameContent(mine, theirs *ring) error {
	a, err := mine.encode()
	if err != nil {
		return err
	}
	defer clear(a)
	b, err := theirs.encode()
	if err != nil {
		return err
	}
	defer clear(b)
	if !bytes.Equal(a, b) || mine.wrapping.method != theirs.wrapping.method || mine.incarnation != theirs.incarnation {
		return as(ErrConflict, nil, "Two keyrings of revision %d differ: they have forked.", mine.revision)
	}
	return nil
}
