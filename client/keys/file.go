package keys

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

const (
	fileMode fs.FileMode = 0o600
	dirMode  fs.FileMode = 0o700
	others   fs.FileMode = 0o077 // any of these bits lets somebody else in

	// maxFile bounds what Load reads: a P-256 key is 241 bytes of PEM.
	maxFile  = 4096
	pemBlock = "PRIVATE KEY"
)

// Save writes the key to path, replacing what was there by an atomic rename:
// after a crash the file is the old key or the new one. The file has mode 0600
// in a directory of mode 0700, which Save creates; one that exists with looser
// permissions is refused ([ErrMode]), as are links and other users' files
// ([ErrNotPlain], [ErrOwner]).
func (k *Key) Save(path string) error {
	return k.store(path, func(dir *os.Root, temporary, name string) error {
		return dir.Rename(temporary, name)
	})
}

// Load reads a key that [Key.Save] wrote. A missing file is [fs.ErrNotExist];
// what others could read or replace is refused as Save refuses it; anything
// that is not a key is [ErrFormat] or [ErrAlgorithm].
func Load(path string) (*Key, error) {
	dir, err := openDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	data, err := readPrivate(dir, filepath.Base(path))
	if err != nil {
		return nil, err
	}
	return decode(data)
}

// LoadOrGenerate returns the key at path; where there is none it makes one.
// Processes that start together all end up with the same key: the first to
// store its own wins, and nobody's key is ever overwritten.
func LoadOrGenerate(path string, alg Algorithm) (*Key, error) {
	key, err := Load(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	fresh, err := Generate(alg)
	if err != nil {
		return nil, err
	}
	err = fresh.store(path, func(dir *os.Root, temporary, name string) error {
		// A link, unlike a rename, fails where the name is taken.
		if err := dir.Link(temporary, name); err != nil {
			return err
		}
		return dir.Remove(temporary)
	})
	switch {
	case err == nil:
		return fresh, nil
	case errors.Is(err, fs.ErrExist):
		return Load(path)
	default:
		return nil, err
	}
}

// store writes the key to a temporary file beside path, durably, and has place
// put it under its name.
func (k *Key) store(path string, place func(dir *os.Root, temporary, name string) error) error {
	der, err := x509.MarshalPKCS8PrivateKey(k.private)
	if err != nil {
		return fmt.Errorf("keys: encode: %w", err)
	}
	parent, name := filepath.Dir(path), filepath.Base(path)
	if err := os.MkdirAll(parent, dirMode); err != nil {
		return fmt.Errorf("keys: %w", err)
	}
	dir, err := openDir(parent)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	// Replacing a link or a device by a key hides that somebody put it there.
	if info, err := dir.Lstat(name); err == nil {
		if err := checkPrivate(info, name, false); err != nil {
			return err
		}
	}
	temporary := "." + name + "." + newID()
	if err := writeNew(dir, temporary, pem.EncodeToMemory(&pem.Block{Type: pemBlock, Bytes: der})); err != nil {
		return err
	}
	if err := place(dir, temporary, name); err != nil {
		_ = dir.Remove(temporary)
		return fmt.Errorf("keys: store: %w", err)
	}
	return syncDir(dir)
}

// writeNew creates name in dir with data, flushed to the disk, or leaves nothing.
func writeNew(dir *os.Root, name string, data []byte) error {
	f, err := dir.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return fmt.Errorf("keys: %w", err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = dir.Remove(name)
		return fmt.Errorf("keys: write: %w", err)
	}
	return nil
}

// syncDir makes the rename itself survive a power cut.
func syncDir(dir *os.Root) error {
	f, err := dir.Open(".")
	if err != nil {
		return fmt.Errorf("keys: %w", err)
	}
	defer func() { _ = f.Close() }()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("keys: sync directory: %w", err)
	}
	return nil
}

// openDir opens a directory that only its owner, us, may enter. All further
// work goes through the handle, so that the directory cannot be swapped
// between the check and the use.
func openDir(path string) (*os.Root, error) {
	before, err := os.Lstat(path)
	if err != nil {
		return nil, fmt.Errorf("keys: %w", err)
	}
	if err := checkPrivate(before, path, true); err != nil {
		return nil, err
	}
	dir, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("keys: %w", err)
	}
	after, err := dir.Stat(".")
	if err != nil || !os.SameFile(before, after) {
		_ = dir.Close()
		return nil, fmt.Errorf("%w: %s changed while it was opened", ErrNotPlain, path)
	}
	return dir, nil
}

// readPrivate reads a small plain file that only we can read.
func readPrivate(dir *os.Root, name string) ([]byte, error) {
	before, err := dir.Lstat(name)
	if err != nil {
		return nil, fmt.Errorf("keys: %w", err)
	}
	if err := checkPrivate(before, name, false); err != nil {
		return nil, err
	}
	f, err := dir.Open(name)
	if err != nil {
		return nil, fmt.Errorf("keys: %w", err)
	}
	defer func() { _ = f.Close() }()
	after, err := f.Stat()
	if err != nil || !os.SameFile(before, after) {
		return nil, fmt.Errorf("%w: %s changed while it was opened", ErrNotPlain, name)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("keys: read: %w", err)
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%w: more than %d bytes", ErrFormat, maxFile)
	}
	return data, nil
}

// checkPrivate refuses links, odd files, loose permissions and other owners.
func checkPrivate(info fs.FileInfo, name string, directory bool) error {
	if info.Mode()&fs.ModeSymlink != 0 || info.IsDir() != directory || (!directory && !info.Mode().IsRegular()) {
		return fmt.Errorf("%w: %s is %s", ErrNotPlain, name, info.Mode().Type())
	}
	if perm := info.Mode().Perm(); perm&others != 0 {
		want := fileMode
		if directory {
			want = dirMode
		}
		return fmt.Errorf("%w: %s has mode %04o; chmod %04o it", ErrMode, name, perm, want)
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && int(stat.Uid) != os.Geteuid() {
		return fmt.Errorf("%w: %s has uid %d", ErrOwner, name, stat.Uid)
	}
	return nil
}

func decode(data []byte) (*Key, error) {
	block, rest := pem.Decode(data)
	if block == nil || block.Type != pemBlock || len(rest) != 0 {
		return nil, fmt.Errorf("%w: want one PEM block %q", ErrFormat, pemBlock)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	switch k := parsed.(type) {
	case *ecdsa.PrivateKey, ed25519.PrivateKey:
		return FromSigner(k.(crypto.Signer))
	default:
		return nil, fmt.Errorf("%w: %T", ErrAlgorithm, parsed)
	}
}
