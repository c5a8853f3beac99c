package keys_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/mayfly-broker/mayfly/client/keys"
)

type (
	keySigner = crypto.Signer
	keyPublic = crypto.PublicKey
)

// home returns a path for a key in a private directory that does not exist yet.
func home(t *testing.T) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "home", "key.pem")
}

func TestSaveAndLoad(t *testing.T) {
	for _, alg := range []keys.Algorithm{keys.P256, keys.Ed25519} {
		path, k := home(t), generate(t, alg)
		if err := k.Save(path); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]fs.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
			info, err := os.Stat(name)
			if err != nil {
				t.Fatal(err)
			}
			if got := info.Mode().Perm(); got != want {
				t.Errorf("%s: mode %04o, want %04o", name, got, want)
			}
		}
		got, err := keys.Load(path)
		if err != nil {
			t.Fatal(err)
		}
		if got.Thumbprint() != k.Thumbprint() || got.Algorithm() != alg {
			t.Errorf("loaded %v %s, saved %v %s", got, got.Algorithm(), k, alg)
		}
		second := generate(t, alg)
		if err := second.Save(path); err != nil {
			t.Fatal(err)
		}
		if got, err = keys.Load(path); err != nil || got.Thumbprint() != second.Thumbprint() {
			t.Errorf("after a second Save: %v, %v", got, err)
		}
		entries, err := os.ReadDir(filepath.Dir(path))
		if err != nil || len(entries) != 1 {
			t.Errorf("temporary files stay behind: %v %v", entries, err)
		}
	}
}

func TestLooseModesAreRefused(t *testing.T) {
	cases := map[string]struct{ file, dir fs.FileMode }{
		"group reads file":     {0o640, 0o700},
		"others read file":     {0o604, 0o700},
		"group enters dir":     {0o600, 0o710},
		"others write dir":     {0o600, 0o702},
		"everything for all":   {0o666, 0o777},
		"others execute a key": {0o601, 0o700},
	}
	for name, mode := range cases {
		t.Run(name, func(t *testing.T) {
			path, k := home(t), generate(t, "")
			if err := k.Save(path); err != nil {
				t.Fatal(err)
			}
			chmod(t, path, mode.file)
			chmod(t, filepath.Dir(path), mode.dir)
			if _, err := keys.Load(path); !errors.Is(err, keys.ErrMode) {
				t.Errorf("Load: %v, want ErrMode", err)
			}
			if err := k.Save(path); !errors.Is(err, keys.ErrMode) {
				t.Errorf("Save: %v, want ErrMode", err)
			}
		})
	}
}

func TestLinksAndOddFilesAreRefused(t *testing.T) {
	k := generate(t, "")
	real := home(t)
	if err := k.Save(real); err != nil {
		t.Fatal(err)
	}
	linked := filepath.Join(filepath.Dir(real), "link.pem")
	if err := os.Symlink("key.pem", linked); err != nil {
		t.Fatal(err)
	}
	linkedDir := filepath.Join(t.TempDir(), "linked")
	if err := os.Symlink(filepath.Dir(real), linkedDir); err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(filepath.Dir(real), "fifo.pem")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	directory := filepath.Join(filepath.Dir(real), "dir.pem")
	if err := os.Mkdir(directory, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{linked, filepath.Join(linkedDir, "key.pem"), fifo, directory} {
		if _, err := keys.Load(path); !errors.Is(err, keys.ErrNotPlain) {
			t.Errorf("Load(%s): %v, want ErrNotPlain", path, err)
		}
		if err := k.Save(path); !errors.Is(err, keys.ErrNotPlain) {
			t.Errorf("Save(%s): %v, want ErrNotPlain", path, err)
		}
	}
}

func TestWhatIsNoKeyIsRefused(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(rsaKey)
	if err != nil {
		t.Fatal(err)
	}
	good := home(t)
	if err := generate(t, "").Save(good); err != nil {
		t.Fatal(err)
	}
	one, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		data []byte
		want error
	}{
		"empty":     {nil, keys.ErrFormat},
		"text":      {[]byte("not a key"), keys.ErrFormat},
		"truncated": {one[:len(one)/2], keys.ErrFormat},
		"two keys":  {append(append([]byte{}, one...), one...), keys.ErrFormat},
		"huge":      {make([]byte, 1<<20), keys.ErrFormat},
		"garbage":   {pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1, 2, 3}}), keys.ErrFormat},
		"RSA":       {pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), keys.ErrAlgorithm},
	}
	for name, c := range cases {
		path := home(t)
		if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, c.data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := keys.Load(path); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if _, err := keys.Load(home(t)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v, want fs.ErrNotExist", err)
	}
}

func TestLoadOrGenerateGivesEverybodyTheSameKey(t *testing.T) {
	path := home(t)
	const clients = 16
	thumbprints := make([]string, clients)
	errs := make([]error, clients)
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			k, err := keys.LoadOrGenerate(path, keys.Ed25519)
			if errs[i] = err; err == nil {
				thumbprints[i] = k.Thumbprint()
			}
		})
	}
	wg.Wait()
	for i := range clients {
		if errs[i] != nil {
			t.Fatal(errs[i])
		}
		if thumbprints[i] != thumbprints[0] {
			t.Fatalf("client %d has %s, client 0 %s", i, thumbprints[i], thumbprints[0])
		}
	}
	// A key that others can read is not quietly replaced by a new one.
	chmod(t, path, 0o644)
	if _, err := keys.LoadOrGenerate(path, keys.Ed25519); !errors.Is(err, keys.ErrMode) {
		t.Errorf("loose: %v, want ErrMode", err)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("temporary files stay behind: %v %v", entries, err)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n"))
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"))
	f.Add([]byte(""))
	dir := f.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		f.Fatal(err)
	}
	path := filepath.Join(dir, "key.pem")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		k, err := keys.Load(path)
		if (k == nil) == (err == nil) {
			t.Fatalf("key %v, error %v", k, err)
		}
		if err == nil && len(k.Thumbprint()) != 43 {
			t.Fatalf("thumbprint %q", k.Thumbprint())
		}
	})
}

func chmod(t *testing.T, path string, mode fs.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}
