package seal

import (
	"errors"
	"testing"
	"time"
)

// A share that reads well but is false: nothing opens, the collected shares are
// forgotten, and the right ones work afterwards.
func TestForgedShareIsCaughtAndForgotten(t *testing.T) {
	k, err := New("c-test", time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	w, shares, err := InitShamir(k, Params{Shares: 3, Threshold: 2})
	if err != nil {
		t.Fatal(err)
	}
	forged := shares[1]
	forged.value[3] ^= 4
	if err := w.ProveShares([]Share{shares[0], shares[1], forged}); !errors.Is(err, ErrShare) {
		t.Fatalf("one number with two contents: %v", err)
	}
	u, err := NewUnsealer(w, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := u.Add(forged.Text()); err != nil {
		t.Fatal(err)
	}
	got, p, err := u.Add(shares[0].Text())
	if !errors.Is(err, ErrShare) || got != nil || p.Have != 0 {
		t.Fatalf("a forged share: %v %+v %v", got, p, err)
	}
	if _, _, err := u.Add(shares[0].Text()); err != nil {
		t.Fatal(err)
	}
	if got, _, err = u.Add(shares[1].Text()); err != nil || got == nil {
		t.Fatalf("the right shares: %v", err)
	}
	// A number outside the field is refused when read.
	for i := range forged.value {
		forged.value[i] = 0xff
	}
	if _, err := ParseShare(forged.Text()); !errors.Is(err, ErrShare) {
		t.Fatalf("a non-canonical scalar: %v", err)
	}
}

// What Go lets us overwrite is overwritten.
func TestCloseAndDestroyOverwriteKeys(t *testing.T) {
	k, err := New("c-test", time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	root := newRootKey([]byte("0123456789abcdef0123456789abcdef"))
	if _, err := k.Wrap(root, Method{Type: MethodLocal}); err != nil {
		t.Fatal(err)
	}
	r := k.ring.Load()
	b := r.newest
	k.Seal(nil, nil)
	k.Close()
	root.Destroy()
	var zero [keyBytes]byte
	if b.key != zero || r.wrapping.key != zero || *root.key != zero || b.ciphers.Load() != nil {
		t.Fatal("a key is left in memory")
	}
	if root.usable() {
		t.Fatal("a destroyed root is usable")
	}
}

// A key that was retired between being looked up and being used is all zeroes by
// then: nothing may be sealed under it.
func TestRetiredKeyIsNeverDerivedFrom(t *testing.T) {
	k, err := New("c-test", time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	stale := k.ring.Load().newest
	if _, err := k.Rotate(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if err := k.Retire(1); err != nil {
		t.Fatal(err)
	}
	if _, err := k.cipher(stale, PurposeLog); !errors.Is(err, ErrUnknownKey) {
		t.Fatalf("a cipher from a retired key: %v", err)
	}
	k.Close()
	if _, err := k.cipher(stale, PurposeLog); !errors.Is(err, ErrSealed) {
		t.Fatalf("a cipher from a closed keyring: %v", err)
	}
}
