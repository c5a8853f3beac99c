package seal_test

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker/seal"
)

func TestALearntKeySealsOnceItIsStored(t *testing.T) {
	a, b := twoNodes(t)
	old := a.Seal([]byte("p"), []byte("x"))
	n, sealed, err := a.NextKey(time.Unix(5, 0), 0)
	if err != nil || n != 2 || number(t, a) != 1 {
		t.Fatalf("key %d, %v; the maker seals under %d", n, err, number(t, a))
	}
	full := errors.New("the disk is full")
	if _, err := a.Learn(sealed, func(*seal.Wrapped) error { return full }); !errors.Is(err, full) || number(t, a) != 1 {
		t.Fatalf("%v; seals under %d, which no disk holds", err, number(t, a))
	}
	for _, k := range []*seal.Keyring{a, b} {
		number(t, k) // derives its cipher, for which it would wait for the store
		var kept *seal.Wrapped
		changed, err := k.Learn(sealed, func(w *seal.Wrapped) error {
			kept = w
			if number(t, k) != 1 {
				t.Error("sealed under a key before it was stored")
			}
			return nil
		})
		if err != nil || !changed || number(t, k) != 2 || kept == nil {
			t.Fatalf("%v %v, seals under %d", changed, err, number(t, k))
		}
		if changed, err := k.Learn(sealed, nil); err != nil || changed {
			t.Errorf("learnt twice: %v %v", changed, err)
		}
	}
	if got, err := b.Open([]byte("p"), a.Seal([]byte("p"), []byte("y"))); err != nil || string(got) != "y" {
		t.Errorf("%q %v", got, err)
	}
	if got, err := b.Open([]byte("p"), old); err != nil || string(got) != "x" {
		t.Errorf("what the old key sealed: %q %v", got, err)
	}
	// The two keyrings are one to those who compare them.
	w, err := a.Rewrap()
	if err != nil {
		t.Fatal(err)
	}
	if changed, err := b.Absorb(w); err != nil || changed {
		t.Errorf("%v %v", changed, err)
	}
}

func TestLearnRefusesWhatIsNotTheNextKey(t *testing.T) {
	a, b := twoNodes(t)
	_, sealed, err := a.NextKey(time.Unix(5, 0), 0)
	if err != nil {
		t.Fatal(err)
	}
	_, rival, err := b.NextKey(time.Unix(5, 0), 0)
	if err != nil {
		t.Fatal(err)
	}
	other, _ := twoNodes(t)
	if _, err := other.Learn(sealed, nil); !errors.Is(err, seal.ErrCorrupt) {
		t.Errorf("another root's: %v", err)
	}
	for i := range sealed {
		bad := bytes.Clone(sealed)
		bad[i] ^= 1
		if _, err := a.Learn(bad, nil); !errors.Is(err, seal.ErrCorrupt) {
			t.Fatalf("byte %d altered: %v", i, err)
		}
	}
	for _, cut := range [][]byte{nil, sealed[:10], append(bytes.Clone(sealed), 0)} {
		if _, err := a.Learn(cut, nil); !errors.Is(err, seal.ErrCorrupt) {
			t.Errorf("%d bytes: %v", len(cut), err)
		}
	}
	if _, err := a.Learn(sealed, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Learn(rival, nil); !errors.Is(err, seal.ErrConflict) {
		t.Errorf("another key of the same number: %v", err)
	}
	// A key that was missed comes after a later one: it opens, and does not seal.
	_, third, err := a.NextKey(time.Unix(6, 0), 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range [][]byte{third, sealed} {
		if _, err := b.Learn(x, nil); err != nil || number(t, b) != 3 {
			t.Fatalf("%v, seals under %d", err, number(t, b))
		}
	}
}

func TestTheNextKeyComesAfterWhatWasGivenOut(t *testing.T) {
	a, _ := twoNodes(t)
	if n, _, err := a.NextKey(time.Unix(5, 0), 7); err != nil || n != 8 {
		t.Errorf("key %d, %v, after 7 were given out", n, err)
	}
	if _, _, err := a.NextKey(time.Unix(5, 0), 1<<32-1); !errors.Is(err, seal.ErrParameters) {
		t.Errorf("after the last number: %v", err)
	}
}

func TestHazard22APinnedSealerKeepsTheKeyOfItsKeyring(t *testing.T) {
	a, b := twoNodes(t)
	w, pinned, err := a.Pinned()
	if err != nil {
		t.Fatal(err)
	}
	_, next, err := a.NextKey(time.Unix(5, 0), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Learn(next, nil); err != nil {
		t.Fatal(err)
	}
	// b has never heard of the next key: the document is all that it needs.
	if _, err := b.Absorb(w); err != nil {
		t.Fatal(err)
	}
	if got, err := b.Open([]byte("p"), pinned.Seal([]byte("p"), []byte("x"))); err != nil || string(got) != "x" {
		t.Errorf("%q %v", got, err)
	}
	if got, err := pinned.Open([]byte("p"), a.Seal([]byte("p"), []byte("y"))); err != nil || string(got) != "y" {
		t.Errorf("a pinned sealer opens what it does not seal by: %q %v", got, err)
	}
	if err := a.Retire(1); err != nil {
		t.Fatal(err)
	}
	if got := pinned.Seal([]byte("p"), []byte("x")); got != nil {
		t.Errorf("sealed by a retired key: %x", got)
	}
	a.Close()
	if _, _, err := a.Pinned(); !errors.Is(err, seal.ErrSealed) || pinned.Seal(nil, nil) != nil {
		t.Errorf("closed: %v", err)
	}
}
