package seal_test

import (
	"errors"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker/seal"
)

// two nodes of one cluster.
func twoNodes(t *testing.T) (a, b *seal.Keyring) {
	t.Helper()
	a, err := seal.New("c-test", time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	w, shares, err := seal.InitShamir(a, seal.Params{Shares: 2, Threshold: 2})
	if err != nil {
		t.Fatal(err)
	}
	if b, err = w.UnsealShares(shares); err != nil {
		t.Fatal(err)
	}
	return a, b
}

func number(t *testing.T, k *seal.Keyring) uint32 {
	t.Helper()
	n, err := seal.KeyNumber(k.Seal([]byte("p"), []byte("x")))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestAbsorbedKeysAreStoredFirst(t *testing.T) {
	a, b := twoNodes(t)
	if _, err := a.Rotate(time.Unix(5, 0)); err != nil {
		t.Fatal(err)
	}
	w, err := a.Rewrap()
	if err != nil {
		t.Fatal(err)
	}
	full := errors.New("the disk is full")
	if _, err := b.AbsorbStored(w, func(*seal.Wrapped) error { return full }); !errors.Is(err, full) || number(t, b) != 1 {
		t.Fatalf("%v; seals under %d, which no disk holds", err, number(t, b))
	}
	if changed, err := b.AbsorbStored(w, func(*seal.Wrapped) error { return nil }); err != nil || !changed || number(t, b) != 2 {
		t.Errorf("%v %v", changed, err)
	}
}
