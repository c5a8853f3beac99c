package seal_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker/seal"
	"github.com/mayfly-broker/mayfly/secret"
)

func initLocal(t testing.TB) (*seal.Keyring, *seal.Wrapped, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "local.key")
	k := newKeyring(t)
	w, err := seal.InitLocal(k, path)
	if err != nil {
		t.Fatal(err)
	}
	return k, w, path
}

func marshal(t testing.TB, w *seal.Wrapped) []byte {
	t.Helper()
	b, err := w.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDocumentSurvivesTheDisk(t *testing.T) {
	k, w, key := initLocal(t)
	sealed := k.Seal([]byte("p"), []byte("x"))
	dir := t.TempDir()
	path := filepath.Join(dir, seal.FileName)
	for range 2 { // the second replaces the first
		if err := w.WriteFile(path); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Fatalf("temporary files are left: %v", left)
	}
	again, err := seal.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	k2, err := again.UnsealLocal(key)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := k2.Open([]byte("p"), sealed); err != nil || string(got) != "x" {
		t.Fatalf("open after restart: %q, %v", got, err)
	}
	if k2.ClusterID() != "c-test" || k2.Incarnation() != 1 {
		t.Fatalf("identity: %s %d", k2.ClusterID(), k2.Incarnation())
	}
	_, err = seal.ReadFile(filepath.Join(dir, "none"))
	wantErr(t, err, fs.ErrNotExist)
}

func TestFailedWriteLeavesTheOldDocument(t *testing.T) {
	_, w, _ := initLocal(t)
	dir := filepath.Join(t.TempDir(), "taken")
	// The destination is a directory: the rename fails after everything was written.
	if err := os.MkdirAll(filepath.Join(dir, seal.FileName, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := w.WriteFile(filepath.Join(dir, seal.FileName)); err == nil {
		t.Fatal("a failed write is not reported")
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Fatalf("temporary files are left: %v", left)
	}
}

// The clear header holds what CONTRACT and DESIGN need and nothing else.
func TestHeaderHoldsNothingElse(t *testing.T) {
	_, w, _ := initLocal(t)
	var doc map[string]json.RawMessage
	if err := json.Unmarshal(marshal(t, w), &doc); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"version", "cluster_id", "incarnation", "seal", "check", "sealed"} {
		delete(doc, name)
	}
	if len(doc) != 0 {
		t.Fatalf("the document shows more: %v", doc)
	}
}

func TestCutShortDocumentIsRefused(t *testing.T) {
	_, w, _ := initLocal(t)
	doc := marshal(t, w)
	for n := range doc {
		if _, err := seal.Parse(doc[:n]); !errors.Is(err, seal.ErrCorrupt) && !errors.Is(err, seal.ErrMethod) {
			t.Fatalf("cut to %d of %d bytes: %v", n, len(doc), err)
		}
	}
	_, err := seal.Parse(append(bytes.Clone(doc), ' '))
	wantErr(t, err, seal.ErrCorrupt)
	_, err = seal.Parse(make([]byte, seal.MaxDocument+1))
	wantErr(t, err, seal.ErrCorrupt)
}

func TestEveryAlteredByteOfTheDocumentIsRefused(t *testing.T) {
	k := newKeyring(t)
	w, shares, err := seal.InitShamir(k, seal.Params{Shares: 1, Threshold: 1})
	if err != nil {
		t.Fatal(err)
	}
	doc := marshal(t, w)
	for i := range doc {
		bad := bytes.Clone(doc)
		bad[i] ^= 1
		w, err := seal.Parse(bad)
		if err != nil {
			continue
		}
		if _, err := w.UnsealShares(shares); err == nil {
			t.Fatalf("byte %d altered (%q) and nobody noticed", i, bad[max(0, i-10):i+1])
		}
	}
}

func TestWrongRootIsNamedAsSuch(t *testing.T) {
	_, w, _ := initLocal(t)
	_, _, otherKey := initLocal(t)
	_, err := w.UnsealLocal(otherKey)
	wantErr(t, err, seal.ErrWrongRoot)
}

func TestAlteredCheckValueIsNotAWrongRoot(t *testing.T) {
	_, w, key := initLocal(t)
	other, _, _ := initLocal(t)
	otherDoc, err := other.Rewrap()
	if err != nil {
		t.Fatal(err)
	}
	swapped := swapField(t, marshal(t, w), marshal(t, otherDoc), "check")
	_, err = swapped.UnsealLocal(key)
	wantErr(t, err, seal.ErrCorrupt)
}

// swapField takes one clear field from another document.
func swapField(t testing.TB, doc, from []byte, name string) *seal.Wrapped {
	t.Helper()
	var a, b map[string]json.RawMessage
	if json.Unmarshal(doc, &a) != nil || json.Unmarshal(from, &b) != nil {
		t.Fatal("not JSON")
	}
	out := bytes.Replace(doc, a[name], b[name], 1)
	if bytes.Equal(out, doc) {
		t.Fatalf("field %s is the same in both", name)
	}
	w, err := seal.Parse(out)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestHeaderIsBoundToTheContent(t *testing.T) {
	_, w, key := initLocal(t)
	doc := marshal(t, w)
	for _, change := range []struct{ old, new string }{
		{`"cluster_id": "c-test"`, `"cluster_id": "c-prod"`},
		{`"incarnation": 1`, `"incarnation": 2`},
	} {
		bad, err := seal.Parse(bytes.Replace(doc, []byte(change.old), []byte(change.new), 1))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := bad.UnsealLocal(key); !errors.Is(err, seal.ErrCorrupt) && !errors.Is(err, seal.ErrWrongRoot) {
			t.Fatalf("%s: %v", change.new, err)
		}
	}
	for _, bad := range []string{`"type": "tpm"`, `"type": "local", "shares": 3`} {
		if _, err := seal.Parse(bytes.Replace(doc, []byte(`"type": "local"`), []byte(bad), 1)); err == nil {
			t.Fatalf("%s was accepted", bad)
		}
	}
	_, err := seal.Parse(bytes.Replace(doc, []byte(`"version": 1`), []byte(`"version": 2`), 1))
	wantErr(t, err, seal.ErrMethod)
}

// Hazard 22: a follower that slept through a rotation gets a snapshot under a key
// it lacks. The keyring at the snapshot's head brings it.
func TestHazard22FollowerLearnsARotationFromTheSnapshotsKeyring(t *testing.T) {
	leader, w, key := initLocal(t)
	follower, err := w.UnsealLocal(key)
	if err != nil {
		t.Fatal(err)
	}
	before := follower.Seal([]byte("p"), []byte("before"))
	for range 3 {
		if _, err := leader.Rotate(birth().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	if err := leader.SetSecret("cluster-ca", secret.New("renewed")); err != nil {
		t.Fatal(err)
	}
	snapshot := leader.For(seal.PurposeSnapshot).Seal([]byte("snap"), []byte("content"))
	_, err = follower.For(seal.PurposeSnapshot).Open([]byte("snap"), snapshot)
	wantErr(t, err, seal.ErrUnknownKey)

	head, err := leader.Rewrap()
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := seal.Parse(marshal(t, head))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, false} {
		if changed, err := follower.Absorb(parsed); err != nil || changed != want {
			t.Fatalf("absorb %d: %v, %v", i, changed, err)
		}
	}
	if got, err := follower.For(seal.PurposeSnapshot).Open([]byte("snap"), snapshot); err != nil || string(got) != "content" {
		t.Fatalf("%q, %v", got, err)
	}
	if got, err := follower.Open([]byte("p"), before); err != nil || string(got) != "before" {
		t.Fatalf("%q, %v", got, err)
	}
	if ca, err := follower.Secret("cluster-ca"); err != nil || ca.Reveal() != "renewed" {
		t.Fatalf("secret: %v", err)
	}
	if n, _ := seal.KeyNumber(follower.Seal(nil, nil)); n != 4 {
		t.Fatalf("the follower seals under key %d", n)
	}
}

func TestAbsorbOfAnOlderDocumentBringsOnlyKeys(t *testing.T) {
	k, first, _ := initLocal(t)
	old := k.Seal([]byte("p"), []byte("x"))
	if _, err := k.Rotate(birth()); err != nil {
		t.Fatal(err)
	}
	if err := k.Retire(1); err != nil {
		t.Fatal(err)
	}
	if err := k.SetSecret("a", secret.New("b")); err != nil {
		t.Fatal(err)
	}
	if changed, err := k.Absorb(first); err != nil || !changed {
		t.Fatalf("%v, %v", changed, err)
	}
	if _, err := k.Open([]byte("p"), old); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Secret("a"); err != nil {
		t.Fatal("an older document rolled the secrets back")
	}
	if n, _ := seal.KeyNumber(k.Seal(nil, nil)); n != 2 {
		t.Fatalf("an older document made key %d seal", n)
	}
}

func TestAbsorbRefusesForksAndStrangers(t *testing.T) {
	mine, w, key := initLocal(t)
	fork, err := w.UnsealLocal(key)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []*seal.Keyring{mine, fork} {
		if _, err := k.Rotate(birth()); err != nil {
			t.Fatal(err)
		}
	}
	absorb := func(k *seal.Keyring, want error) {
		t.Helper()
		doc, err := k.Rewrap()
		if err != nil {
			t.Fatal(err)
		}
		revision := mine.Revision()
		changed, err := mine.Absorb(doc)
		wantErr(t, err, want)
		if changed || mine.Revision() != revision {
			t.Fatal("a refused document changed something")
		}
	}
	absorb(fork, seal.ErrConflict) // same revision
	if err := fork.SetSecret("a", secret.New("b")); err != nil {
		t.Fatal(err)
	}
	absorb(fork, seal.ErrConflict) // higher revision, key 2 differs
	stranger, _, _ := initLocal(t)
	absorb(stranger, seal.ErrWrongRoot)
	elsewhere, err := seal.New("c-other", birth())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := seal.InitShamir(elsewhere, seal.Params{Shares: 1, Threshold: 1}); err != nil {
		t.Fatal(err)
	}
	absorb(elsewhere, seal.ErrConflict)
}

func TestIncarnationOnlyGrows(t *testing.T) {
	k, _, key := initLocal(t)
	wantErr(t, k.SetIncarnation(1), seal.ErrParameters)
	if err := k.SetIncarnation(2); err != nil {
		t.Fatal(err)
	}
	w, err := k.Rewrap()
	if err != nil {
		t.Fatal(err)
	}
	again, err := w.UnsealLocal(key)
	if err != nil || again.Incarnation() != 2 || w.Header().Incarnation != 2 {
		t.Fatalf("incarnation: %v", err)
	}
}

func TestLocalKeyFile(t *testing.T) {
	k, w, path := initLocal(t)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	_, err := seal.InitLocal(k, path)
	wantErr(t, err, fs.ErrExist)
	for _, mode := range []fs.FileMode{0o640, 0o604, 0o660, 0o700} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := w.UnsealLocal(path); err == nil || !strings.Contains(err.Error(), "0600") {
			t.Fatalf("mode %v: %v", mode, err)
		}
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := range good {
		if err := os.WriteFile(path, good[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := w.UnsealLocal(path); err == nil {
			t.Fatalf("a key file cut to %d bytes was accepted", n)
		}
	}
	if _, err := w.UnsealLocal(t.TempDir()); err == nil {
		t.Fatal("a directory was accepted")
	}
	_, err = w.UnsealLocal(filepath.Join(t.TempDir(), "none"))
	wantErr(t, err, fs.ErrNotExist)
	wantErr(t, w.ProveShares(nil), seal.ErrMethod)
	_, err = seal.NewUnsealer(w, nil)
	wantErr(t, err, seal.ErrMethod)
}

func TestDestroyedRootWrapsNothing(t *testing.T) {
	k := newKeyring(t)
	_, err := k.Wrap(seal.RootKey{}, seal.Method{Type: seal.MethodLocal})
	wantErr(t, err, seal.ErrWrongRoot)
	_, err = k.Rewrap()
	wantErr(t, err, seal.ErrMethod)
}

func FuzzParseKeyring(f *testing.F) {
	_, w, key := initLocal(f)
	good := marshal(f, w)
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add([]byte(`{"version":1}`))
	f.Add([]byte("null"))
	f.Add(bytes.Replace(good, []byte("local"), []byte("shamir"), 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		w, err := seal.Parse(b)
		if err != nil {
			return
		}
		if again := marshal(t, w); !bytes.Equal(again, b) {
			t.Fatalf("two spellings of one document:\n%s\n%s", b, again)
		}
		if _, err := w.UnsealLocal(key); err == nil && !bytes.Equal(b, good) {
			t.Fatal("an altered document opened")
		}
	})
}
