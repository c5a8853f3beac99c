package seal_test

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/mayfly-broker/mayfly/broker/seal"
	"github.com/mayfly-broker/mayfly/secret"
)

func birth() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }

func newKeyring(t testing.TB) *seal.Keyring {
	t.Helper()
	k, err := seal.New("c-test", birth())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

// Hazard 21: a disk attacker moves one sealed value onto another's key.
func TestHazard21SealedValueMovedToAnotherKeyIsRefused(t *testing.T) {
	k := newKeyring(t)
	sealed := k.Seal([]byte("leases/a"), []byte("root password"))
	if got, err := k.Open([]byte("leases/a"), sealed); err != nil || string(got) != "root password" {
		t.Fatalf("open in its place: %q, %v", got, err)
	}
	for _, place := range []string{"leases/b", "leases/", "leases/a\x00", "", "lease/sa"} {
		_, err := k.Open([]byte(place), sealed)
		wantErr(t, err, seal.ErrCorrupt)
	}
	for _, purpose := range []string{seal.PurposeLog, seal.PurposeSnapshot} {
		_, err := k.For(purpose).Open([]byte("leases/a"), sealed)
		wantErr(t, err, seal.ErrCorrupt)
	}
	_, err := newKeyring(t).Open([]byte("leases/a"), sealed)
	wantErr(t, err, seal.ErrCorrupt)
}

// Hazard 21: random nonces must not run out. 192 random bits, never twice.
func TestHazard21NoncesAreLongAndNeverRepeat(t *testing.T) {
	k := newKeyring(t)
	seen := map[string]bool{}
	for range 10_000 {
		s := k.Seal([]byte("p"), []byte("same"))
		if len(s) != len("same")+seal.Overhead || seal.Overhead != 5+24+16 {
			t.Fatalf("a sealed value of 4 bytes has %d", len(s))
		}
		nonce := string(s[5:29])
		if seen[nonce] {
			t.Fatal("a nonce repeated")
		}
		seen[nonce] = true
	}
}

// Law 6: whatever is altered, shortened or lengthened does not open, and never panics.
func TestLaw6EveryAlteredByteIsRefused(t *testing.T) {
	k := newKeyring(t)
	place := []byte("state/7")
	sealed := k.Seal(place, []byte("hunter2"))
	if bytes.Contains(sealed, []byte("hunter2")) {
		t.Fatal("the plaintext shows")
	}
	for i := range sealed {
		for bit := range 8 {
			bad := bytes.Clone(sealed)
			bad[i] ^= 1 << bit
			if _, err := k.Open(place, bad); !errors.Is(err, seal.ErrCorrupt) && !errors.Is(err, seal.ErrUnknownKey) {
				t.Fatalf("byte %d bit %d altered: %v", i, bit, err)
			}
		}
		if _, err := k.Open(place, sealed[:i]); !errors.Is(err, seal.ErrCorrupt) {
			t.Fatalf("cut to %d bytes: %v", i, err)
		}
	}
	_, err := k.Open(place, append(bytes.Clone(sealed), 0))
	wantErr(t, err, seal.ErrCorrupt)
	_, err = k.Open(place, nil)
	wantErr(t, err, seal.ErrCorrupt)
}

func TestSealOpenRoundTrip(t *testing.T) {
	k := newKeyring(t)
	rapid.Check(t, func(t *rapid.T) {
		place := rapid.SliceOf(rapid.Byte()).Draw(t, "place")
		plain := rapid.SliceOf(rapid.Byte()).Draw(t, "plain")
		s := k.For(rapid.SampledFrom([]string{seal.PurposeState, seal.PurposeLog}).Draw(t, "purpose"))
		got, err := s.Open(place, s.Seal(place, plain))
		if err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("got %x, %v", got, err)
		}
	})
}

func TestRotationKeepsOldValuesReadable(t *testing.T) {
	k := newKeyring(t)
	old := k.Seal([]byte("p"), []byte("old"))
	n, err := k.Rotate(birth().Add(time.Hour))
	if err != nil || n != 2 {
		t.Fatalf("rotate: %d, %v", n, err)
	}
	now := k.Seal([]byte("p"), []byte("new"))
	for sealed, want := range map[string]uint32{string(old): 1, string(now): 2} {
		if got, err := seal.KeyNumber([]byte(sealed)); err != nil || got != want {
			t.Fatalf("key number %d, %v; want %d", got, err, want)
		}
		if _, err := k.Open([]byte("p"), []byte(sealed)); err != nil {
			t.Fatal(err)
		}
	}
	wantErr(t, k.Retire(2), seal.ErrParameters)
	wantErr(t, k.Retire(9), seal.ErrUnknownKey)
	if err := k.Retire(1); err != nil {
		t.Fatal(err)
	}
	_, err = k.Open([]byte("p"), old)
	wantErr(t, err, seal.ErrUnknownKey)
	if keys := k.Keys(); len(keys) != 1 || keys[0].Number != 2 || !keys[0].Newest {
		t.Fatalf("keys: %+v", keys)
	}
}

func TestSubkeysDifferByPurposeAndKey(t *testing.T) {
	k := newKeyring(t)
	seen := map[[32]byte]string{}
	note := func(what string, s seal.Subkey, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if before, ok := seen[s.Key]; ok || s.Key == [32]byte{} {
			t.Fatalf("%s has the key of %q", what, before)
		}
		seen[s.Key] = what
	}
	nonce, err := k.Subkey(seal.PurposeNonce)
	note("nonce 1", nonce, err)
	other, err := k.Subkey("cursor")
	note("cursor 1", other, err)
	if _, err := k.Rotate(birth()); err != nil {
		t.Fatal(err)
	}
	rotated, err := k.Subkey(seal.PurposeNonce)
	note("nonce 2", rotated, err)
	again, err := k.SubkeyOf(nonce.Number, seal.PurposeNonce)
	if err != nil || again != nonce {
		t.Fatalf("the older key's subkey cannot be had again: %v", err)
	}
	_, err = k.SubkeyOf(77, seal.PurposeNonce)
	wantErr(t, err, seal.ErrUnknownKey)
}

// "Sealed nodes answer clearly": nothing works, everything says why.
func TestClosedKeyringAnswersSealed(t *testing.T) {
	k := newKeyring(t)
	w, _, err := seal.InitShamir(k, seal.Params{Shares: 1, Threshold: 1})
	if err != nil {
		t.Fatal(err)
	}
	sealed := k.Seal([]byte("p"), []byte("x"))
	k.Close()
	k.Close()
	for name, k := range map[string]*seal.Keyring{"closed": k, "zero": {}} {
		t.Run(name, func(t *testing.T) {
			if got := k.Seal([]byte("p"), []byte("x")); got != nil {
				t.Fatal("a sealed keyring sealed something")
			}
			_, err := k.Open([]byte("p"), sealed)
			wantErr(t, err, seal.ErrSealed)
			_, err = k.Subkey("nonce")
			wantErr(t, err, seal.ErrSealed)
			_, err = k.SubkeyOf(1, "nonce")
			wantErr(t, err, seal.ErrSealed)
			_, err = k.Rotate(birth())
			wantErr(t, err, seal.ErrSealed)
			wantErr(t, k.Retire(1), seal.ErrSealed)
			wantErr(t, k.SetSecret("a", secret.New("b")), seal.ErrSealed)
			_, err = k.Secret("a")
			wantErr(t, err, seal.ErrSealed)
			_, err = k.Rewrap()
			wantErr(t, err, seal.ErrSealed)
			_, err = k.Absorb(w)
			wantErr(t, err, seal.ErrSealed)
			if k.ClusterID() != "" || k.Incarnation() != 0 || k.Revision() != 0 || k.Keys() != nil {
				t.Fatal("a sealed keyring still tells of its content")
			}
		})
	}
	var none seal.Sealer
	if none.Seal(nil, nil) != nil {
		t.Fatal("the zero sealer sealed something")
	}
	_, err = none.Open(nil, sealed)
	wantErr(t, err, seal.ErrSealed)
}

func TestSecretsTravelInTheKeyring(t *testing.T) {
	k := newKeyring(t)
	if err := k.SetSecret("cluster-ca", secret.New("PEM")); err != nil {
		t.Fatal(err)
	}
	w, shares, err := seal.InitShamir(k, seal.Params{Shares: 1, Threshold: 1})
	if err != nil {
		t.Fatal(err)
	}
	again, err := w.UnsealShares(shares)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := again.Secret("cluster-ca"); err != nil || got.Reveal() != "PEM" {
		t.Fatalf("secret: %v", err)
	}
	if err := again.SetSecret("cluster-ca", secret.Text{}); err != nil {
		t.Fatal(err)
	}
	if _, err := again.Secret("cluster-ca"); err == nil {
		t.Fatal("an empty value did not remove the secret")
	}
	wantErr(t, k.SetSecret("Bad Name", secret.New("x")), seal.ErrParameters)
	wantErr(t, k.SetSecret("big", secret.New(string(make([]byte, seal.MaxSecretBytes+1)))), seal.ErrParameters)
	for i := range seal.MaxSecrets - 1 {
		if err := k.SetSecret(fmt.Sprintf("s%d", i), secret.New("x")); err != nil {
			t.Fatal(err)
		}
	}
	wantErr(t, k.SetSecret("one-too-many", secret.New("x")), seal.ErrParameters)
}

// Readers and writers run while keys rotate, retire and finally close: what was
// sealed always opens, or the answer is a named refusal.
func TestConcurrentUse(t *testing.T) {
	k := newKeyring(t)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			place := []byte{byte(i)}
			s := k.For(fmt.Sprint("purpose", i))
			for {
				sealed := s.Seal(place, place)
				if sealed == nil {
					return // closed
				}
				got, err := s.Open(place, sealed)
				switch {
				case errors.Is(err, seal.ErrSealed), errors.Is(err, seal.ErrUnknownKey):
				case err != nil || !bytes.Equal(got, place):
					t.Errorf("open: %v", err)
					return
				}
			}
		})
	}
	for n := range uint32(50) {
		if _, err := k.Rotate(birth()); err != nil {
			t.Error(err)
		}
		if err := k.Retire(n + 1); err != nil {
			t.Error(err)
		}
		if _, err := k.Subkey("nonce"); err != nil {
			t.Error(err)
		}
	}
	k.Close()
	wg.Wait()
}

// Law 6: nothing of this package prints a key.
func TestLaw6NothingPrintsAKey(t *testing.T) {
	k := newKeyring(t)
	w, shares, err := seal.InitShamir(k, seal.Params{Shares: 2, Threshold: 2})
	if err != nil {
		t.Fatal(err)
	}
	sub, err := k.Subkey("nonce")
	if err != nil {
		t.Fatal(err)
	}
	text := shares[0].Text()
	payload := text.Reveal()[len("mfu1-12345678-001-"):][:52]
	_, mistyped := seal.ParseShare(secret.New(text.Reveal()[:20] + "0" + text.Reveal()[21:]))
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		out := fmt.Sprintf(verb+verb+verb+verb, shares, text, sub, mistyped)
		for _, leak := range []string{payload, payload[10:30], fmt.Sprintf("%x", sub.Key), fmt.Sprint(sub.Key[:4])} {
			if bytes.Contains([]byte(out), []byte(leak)) {
				t.Fatalf("%s shows a secret: %s", verb, out)
			}
		}
	}
	doc, err := w.Marshal()
	if err != nil || bytes.Contains(doc, []byte(payload)) {
		t.Fatalf("the document shows a share: %v", err)
	}
}

func BenchmarkSealOpen(b *testing.B) {
	k := newKeyring(b)
	for _, size := range []int{256, 4096} {
		plain, place := make([]byte, size), []byte("leases/01HZX3V8T2M4Q6R8S0")
		sealed := k.Seal(place, plain)
		b.Run(fmt.Sprintf("seal/%d", size), func(b *testing.B) {
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				k.Seal(place, plain)
			}
		})
		b.Run(fmt.Sprintf("open/%d", size), func(b *testing.B) {
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := k.Open(place, sealed); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
