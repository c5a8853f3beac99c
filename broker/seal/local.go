package seal

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/mayfly-broker/mayfly/broker/fault"
)

const (
	localPrefix  = "mayfly-local-key-1 "
	maxLocalFile = 128
)

// InitLocal wraps a keyring under a fresh root key that it writes to keyPath (a
// new file, mode 0600), for `dev` and for unattended start. Whoever can read that
// file and the data directory together can read everything: keep them on
// different disks, or use another method, where that matters. Errors: one for
// which errors.Is(err, fs.ErrExist) when the file is there already; ErrSealed.
func InitLocal(k *Keyring, keyPath string) (*Wrapped, error) {
	key := make([]byte, keyBytes)
	_, _ = rand.Read(key) // never fails: crypto/rand ends the process instead
	line := base64.StdEncoding.AppendEncode([]byte(localPrefix), key)
	line = append(line, '\n')
	defer clear(line)
	root := newRootKey(key)
	defer root.Destroy()
	if err := createFile(keyPath, line); err != nil {
		return nil, fault.Wrap(err, fault.Internal, "local_key", "The local key file could not be made.")
	}
	w, err := k.Wrap(root, Method{Type: MethodLocal})
	if err != nil {
		return nil, errors.Join(err, os.Remove(keyPath))
	}
	return w, nil
}

// UnsealLocal opens the document with the key file that InitLocal wrote. It
// refuses a file that others may read, or that is no plain file. Errors:
// ErrMethod, ErrWrongRoot, ErrCorrupt; a [fault.Error] with code "local_key" when
// the file is missing, unreadable, malformed or too open.
func (w *Wrapped) UnsealLocal(keyPath string) (*Keyring, error) {
	if w.header.Method.Type != MethodLocal {
		return nil, as(ErrMethod, nil, "This keyring is sealed by method %s, not by a local key.", w.header.Method.Type)
	}
	root, err := readLocalKey(keyPath)
	if err != nil {
		return nil, err
	}
	defer root.Destroy()
	return w.Unwrap(root)
}

func readLocalKey(path string) (RootKey, error) {
	refuse := func(err error, why string) (RootKey, error) {
		return RootKey{}, fault.Wrap(err, fault.Internal, "local_key", "%s", why)
	}
	// Looked at before it is opened, so that a pipe does not block us, and again
	// through the open file, so that what was looked at is what is read.
	if info, err := os.Stat(path); err != nil {
		return refuse(err, "The local key file cannot be read.")
	} else if !info.Mode().IsRegular() {
		return refuse(nil, "The local key is not a plain file.")
	}
	f, err := os.Open(path)
	if err != nil {
		return refuse(err, "The local key file cannot be read.")
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return refuse(err, "The local key file cannot be read.")
	}
	if mode := info.Mode(); !mode.IsRegular() || mode.Perm()&^privateMode != 0 {
		return refuse(nil, "The local key file may be read by its owner only: give it mode 0600 (chmod 600). Its mode is "+mode.String()+".")
	}
	b, err := io.ReadAll(io.LimitReader(f, maxLocalFile+1))
	if err != nil {
		return refuse(err, "The local key file cannot be read.")
	}
	defer clear(b)
	line, ok := bytes.CutPrefix(b, []byte(localPrefix))
	line, ended := bytes.CutSuffix(line, []byte("\n"))
	key, err := base64.StdEncoding.Strict().DecodeString(string(line))
	if !ok || !ended || err != nil || len(key) != keyBytes || len(b) > maxLocalFile {
		return refuse(fs.ErrInvalid, "The local key file is not one that this program wrote, or it was cut short.")
	}
	return newRootKey(key), nil
}
