package seal_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/seal"
	"github.com/mayfly-broker/mayfly/secret"
)

func initShamir(t testing.TB, shares, threshold int) (*seal.Keyring, *seal.Wrapped, []seal.Share) {
	t.Helper()
	k := newKeyring(t)
	w, s, err := seal.InitShamir(k, seal.Params{Shares: shares, Threshold: threshold})
	if err != nil {
		t.Fatal(err)
	}
	return k, w, s
}

func TestSharesUnseal(t *testing.T) {
	for _, p := range []seal.Params{{1, 1}, {3, 1}, {5, 3}, {7, 7}, {255, 2}, {255, 255}} {
		t.Run(fmt.Sprintf("%d of %d", p.Threshold, p.Shares), func(t *testing.T) {
			k, w, shares := initShamir(t, p.Shares, p.Threshold)
			if len(shares) != p.Shares {
				t.Fatalf("%d shares", len(shares))
			}
			sealed := k.Seal([]byte("p"), []byte("x"))
			last := shares[len(shares)-p.Threshold:]
			k2, err := w.UnsealShares(last)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := k2.Open([]byte("p"), sealed); err != nil {
				t.Fatal(err)
			}
			if err := w.ProveShares(last); err != nil {
				t.Fatal(err)
			}
			_, err = w.UnsealShares(last[1:])
			wantErr(t, err, seal.ErrShare)
			wantErr(t, w.ProveShares(last[1:]), seal.ErrShare)
		})
	}
}

// Every three of five, and no two, bring the key back.
func TestEveryQuorumUnseals(t *testing.T) {
	_, w, s := initShamir(t, 5, 3)
	for i := range 5 {
		for j := i + 1; j < 5; j++ {
			wantErr(t, w.ProveShares([]seal.Share{s[i], s[j], s[i], s[j]}), seal.ErrShare)
			for l := j + 1; l < 5; l++ {
				if err := w.ProveShares([]seal.Share{s[l], s[i], s[j]}); err != nil {
					t.Fatalf("%d %d %d: %v", i, j, l, err)
				}
			}
		}
	}
}

func TestParametersAreChecked(t *testing.T) {
	for _, p := range []seal.Params{{0, 0}, {1, 0}, {1, 2}, {256, 1}, {-1, -1}, {5, 6}} {
		_, _, err := seal.InitShamir(newKeyring(t), p)
		wantErr(t, err, seal.ErrParameters)
	}
	for _, id := range []string{"", "Upper", "with space", "a+b", "a/b", strings.Repeat("x", 65)} {
		_, err := seal.New(id, birth())
		wantErr(t, err, seal.ErrParameters)
	}
}

func TestShareTextForgivesTheHand(t *testing.T) {
	_, w, shares := initShamir(t, 3, 2)
	plain := shares[1].Text().Reveal()
	if !strings.HasPrefix(plain, "mfu1-"+w.Header().Method.SetID+"-002-") {
		t.Fatalf("share text %.20s", plain)
	}
	var spaced strings.Builder
	for i, c := range plain {
		if i%5 == 0 {
			spaced.WriteString(" -\n")
		}
		spaced.WriteRune(c)
	}
	for _, typed := range []string{
		plain, strings.ToUpper(plain), " " + plain + "\r\n", strings.ReplaceAll(plain, "-", ""),
		strings.ReplaceAll(plain, "-", " "), spaced.String(),
		strings.NewReplacer("0", "O", "1", "l").Replace(plain), strings.NewReplacer("0", "o", "1", "I").Replace(plain),
	} {
		s, err := seal.ParseShare(secret.New(typed))
		if err != nil || s.Index() != 2 || s.Text() != shares[1].Text() {
			t.Fatalf("%q: %v", typed, err)
		}
	}
}

func TestMistypedShareIsNamed(t *testing.T) {
	_, _, shares := initShamir(t, 3, 2)
	plain := shares[1].Text().Reveal()
	for i := range plain {
		for _, c := range "0123456789abcdefghjkmnpqrstvwxyz" {
			if byte(c) == plain[i] || plain[i] == '-' {
				continue
			}
			typed := plain[:i] + string(c) + plain[i+1:]
			_, err := seal.ParseShare(secret.New(typed))
			wantErr(t, err, seal.ErrShare)
			if i > len("mfu1-12345678-002-") && !strings.Contains(err.Error(), "Share 2 of set") {
				t.Fatalf("the share is not named: %v", err)
			}
		}
	}
	// Neighbours swapped, a character dropped, one doubled, nonsense.
	for i := range len(plain) - 1 {
		if plain[i] != plain[i+1] && plain[i] != '-' && plain[i+1] != '-' {
			_, err := seal.ParseShare(secret.New(plain[:i] + plain[i+1:i+2] + plain[i:i+1] + plain[i+2:]))
			wantErr(t, err, seal.ErrShare)
		}
	}
	for _, bad := range []string{"", "mfu1", plain[1:], plain[:len(plain)-1], plain + "0", "mfu2" + plain[4:], plain + "ü", strings.Repeat("0", 1000)} {
		_, err := seal.ParseShare(secret.New(bad))
		wantErr(t, err, seal.ErrShare)
	}
	_, err := seal.ParseShares([]secret.Text{shares[0].Text(), secret.New(plain[:len(plain)-1] + "!")})
	if err == nil || !strings.Contains(err.Error(), "place 2 of 2") {
		t.Fatalf("the place is not named: %v", err)
	}
}

func TestUnsealerCollects(t *testing.T) {
	k, w, shares := initShamir(t, 5, 3)
	_, _, foreign := initShamir(t, 5, 3)
	sealed := k.Seal([]byte("p"), []byte("x"))
	u, err := seal.NewUnsealer(w, nil)
	if err != nil {
		t.Fatal(err)
	}
	add := func(s seal.Share, have int, want error) *seal.Keyring {
		t.Helper()
		k, p, err := u.Add(s.Text())
		wantErr(t, err, want)
		if p.Have != have || p.Need != 3 || p.Total != 5 || p.SetID != shares[0].SetID() {
			t.Fatalf("progress %+v, want %d", p, have)
		}
		return k
	}
	add(shares[4], 1, nil)
	add(shares[4], 1, nil) // again
	add(foreign[0], 1, seal.ErrShare)
	if _, p, err := u.Add(secret.New("mfu1-nonsense")); !errors.Is(err, seal.ErrShare) || p.Have != 1 {
		t.Fatalf("%+v %v", p, err)
	}
	add(shares[0], 2, nil)
	u.Reset()
	if p := u.Progress(); p.Have != 0 {
		t.Fatalf("reset left %+v", p)
	}
	add(shares[4], 1, nil)
	add(shares[0], 2, nil)
	got := add(shares[2], 3, nil)
	if got == nil {
		t.Fatal("three shares do not unseal")
	}
	if _, err := got.Open([]byte("p"), sealed); err != nil {
		t.Fatal(err)
	}
	if p := u.Progress(); p.Have != 0 {
		t.Fatal("shares are kept after unsealing")
	}
}

func TestUnsealerAsksBeforeEachAttempt(t *testing.T) {
	_, w, shares := initShamir(t, 2, 2)
	slow := errors.New("slow down")
	left := 1
	u, err := seal.NewUnsealer(w, func() error {
		if left--; left < 0 {
			return slow
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := u.Add(shares[0].Text()); err != nil {
		t.Fatal(err)
	}
	_, p, err := u.Add(shares[1].Text())
	wantErr(t, err, slow)
	if p.Have != 1 {
		t.Fatalf("progress %+v", p)
	}
}

func TestRekeyVoidsTheOldSet(t *testing.T) {
	k, w, old := initShamir(t, 3, 2)
	sealed := k.Seal([]byte("p"), []byte("x"))
	again, fresh, err := seal.Rekey(w, old[1:], seal.Params{Shares: 4, Threshold: 3})
	if err != nil {
		t.Fatal(err)
	}
	if fresh[0].SetID() == old[0].SetID() || len(fresh) != 4 {
		t.Fatal("the new set is not new")
	}
	for _, mix := range [][]seal.Share{old, {old[0], fresh[1], fresh[2]}, fresh[:2]} {
		_, err := again.UnsealShares(mix)
		wantErr(t, err, seal.ErrShare)
	}
	k2, err := again.UnsealShares(fresh[1:])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k2.Open([]byte("p"), sealed); err != nil {
		t.Fatal(err)
	}
	// A running node learns of it, and stores the new set from then on.
	if changed, err := k.Absorb(again); err != nil || !changed {
		t.Fatalf("absorb: %v, %v", changed, err)
	}
	doc, err := k.Rewrap()
	if err != nil || doc.Header().Method != again.Header().Method {
		t.Fatalf("%+v, %v", doc.Header().Method, err)
	}
	// A document from before the rekey brings no old set back.
	if _, err := k.Absorb(w); err != nil {
		t.Fatal(err)
	}
	if doc, err = k.Rewrap(); err != nil || doc.Header().Method != again.Header().Method {
		t.Fatalf("%+v, %v", doc.Header().Method, err)
	}
	_, _, err = seal.Rekey(w, old[:1], seal.Params{Shares: 4, Threshold: 3})
	wantErr(t, err, seal.ErrShare)
	_, _, err = seal.Rekey(w, old, seal.Params{Shares: 1, Threshold: 3})
	wantErr(t, err, seal.ErrParameters)
}

// A whole new root: what to do when shares were stolen.
func TestNewRootOnTheUnsealedKeyring(t *testing.T) {
	k, _, old := initShamir(t, 2, 2)
	w, fresh, err := seal.InitShamir(k, seal.Params{Shares: 2, Threshold: 2})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.ProveShares(fresh); err != nil {
		t.Fatal(err)
	}
	wantErr(t, w.ProveShares(old), seal.ErrShare)
}

func FuzzParseShare(f *testing.F) {
	_, w, shares := initShamir(f, 3, 2)
	for _, s := range shares {
		f.Add(s.Text().Reveal())
	}
	f.Add("mfu1-00000000-001-" + strings.Repeat("0", 52) + "-0000000")
	f.Add("MFU1 " + strings.Repeat("z", 70))
	f.Add("")
	f.Fuzz(func(t *testing.T, typed string) {
		s, err := seal.ParseShare(secret.New(typed))
		if err != nil {
			if !errors.Is(err, seal.ErrShare) {
				t.Fatalf("unnamed error %v", err)
			}
			return
		}
		again, err := seal.ParseShare(s.Text())
		if err != nil || again != s {
			t.Fatalf("%v does not survive its own text: %v", s, err)
		}
		if err := w.ProveShares([]seal.Share{s, s}); err == nil {
			t.Fatal("one share proves a quorum of two")
		}
	})
}
