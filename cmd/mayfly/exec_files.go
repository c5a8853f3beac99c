package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// dataLink is the one name whose renaming replaces all files at once.
const dataLink = "..data"

// fileSet is a credential as files in a directory, a file for each field. The
// names are links through [dataLink] into a directory of the present
// generation, so that a reader never sees a user name of one credential beside
// a password of another.
type fileSet struct {
	dir   string
	made  bool // the directory is ours to remove
	names []string
	now   string // the present generation's directory
}

// write replaces the files by a credential's fields, modes 0600 in 0700.
func (f *fileSet) write(fields map[string]string) error {
	if err := f.prepare(); err != nil {
		return err
	}
	next := ".." + randomWord(10)
	if err := os.Mkdir(filepath.Join(f.dir, next), 0o700); err != nil {
		return err
	}
	var names []string
	for _, name := range credentialFields(fields) {
		if name == "" || strings.HasPrefix(name, ".") || strings.ContainsAny(name, "/\x00") {
			return fmt.Errorf("the field %q cannot be a file's name", name)
		}
		if err := os.WriteFile(filepath.Join(f.dir, next, name), []byte(fields[name]), 0o600); err != nil {
			return err
		}
		names = append(names, name)
	}
	if err := f.link(next); err != nil {
		return err
	}
	for _, name := range names {
		if err := f.name(name); err != nil {
			return err
		}
	}
	if f.now != "" {
		_ = os.RemoveAll(filepath.Join(f.dir, f.now)) // unreachable now; remove tries again
	}
	f.now, f.names = next, names
	return nil
}

func (f *fileSet) prepare() error {
	if f.now != "" {
		return nil
	}
	err := os.Mkdir(f.dir, 0o700)
	if err == nil {
		f.made = true
		return nil
	}
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Stat(f.dir)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is no directory", f.dir)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("others may write to %s (mode %04o), and could put their files in place of these", f.dir, info.Mode().Perm())
	}
	return nil
}

// link points the data link at a generation by an atomic rename.
func (f *fileSet) link(generation string) error {
	temporary := filepath.Join(f.dir, "..next")
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(generation, temporary); err != nil {
		return err
	}
	return os.Rename(temporary, filepath.Join(f.dir, dataLink))
}

// name makes a field's own link, and leaves alone what is not ours.
func (f *fileSet) name(name string) error {
	path := filepath.Join(f.dir, name)
	want := filepath.Join(dataLink, name)
	have, err := os.Readlink(path)
	switch {
	case err == nil && have == want:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return os.Symlink(want, path)
	default:
		return fmt.Errorf("%s is there already and is not ours", path)
	}
}

// remove takes away what write made.
func (f *fileSet) remove() {
	for _, name := range f.names {
		path := filepath.Join(f.dir, name)
		if have, err := os.Readlink(path); err == nil && have == filepath.Join(dataLink, name) {
			_ = os.Remove(path)
		}
	}
	_ = os.Remove(filepath.Join(f.dir, dataLink))
	if f.now != "" {
		_ = os.RemoveAll(filepath.Join(f.dir, f.now))
	}
	if f.made {
		_ = os.Remove(f.dir) // stays if somebody put something there
	}
}
