package seal

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/mayfly-broker/mayfly/broker/fault"
)

// FileName is what the keyring document is called in a data directory.
const FileName = "keyring.json"

const privateMode fs.FileMode = 0o600

// WriteFile stores the document at path, mode 0600, so that a crash at any
// instant leaves either the old document or the new one: a temporary file in the
// same directory, fsync, rename, fsync of the directory.
func (w *Wrapped) WriteFile(path string) error {
	b, err := w.Marshal()
	if err != nil {
		return err
	}
	if err := replaceFile(path, b); err != nil {
		return fault.Wrap(err, fault.Internal, "", "The keyring could not be stored.")
	}
	return nil
}

// ReadFile reads a document that WriteFile stored. Errors: one for which
// errors.Is(err, fs.ErrNotExist) when there is none yet (the node is not
// initialised); those of [Parse].
func ReadFile(path string) (*Wrapped, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Wrap(err, fault.NotFound, "not_initialised", "There is no keyring here: this node is not initialised.")
	}
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "", "The keyring could not be read.")
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxDocument+1))
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "", "The keyring could not be read.")
	}
	return Parse(b)
}

// replaceFile atomically replaces path.
func replaceFile(path string, b []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // 0600, says its documentation
	if err != nil {
		return err
	}
	err = writeAndClose(f, b)
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(dir)
}

// createFile writes a new file with mode 0600; fs.ErrExist if there is one.
func createFile(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, privateMode)
	if err != nil {
		return err
	}
	if err := writeAndClose(f, b); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return syncDir(filepath.Dir(path))
}

func writeAndClose(f *os.File, b []byte) error {
	_, err := f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
