package raftstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// The state file is written without fsync, so it may be trusted only by whoever
// still shares the page cache that it was written through: the same boot of the
// machine, the same file, and no I/O error since. The passport says where the
// file was made; a file without a passport that matches is rebuilt from
// snapshot and log.

const (
	passportFile = "state.passport"
	failedFile   = "state.failed"
	bootIDFile   = "/proc/sys/kernel/random/boot_id"
)

// passport identifies one state file under one boot of one machine.
type passport struct {
	BootID string `json:"boot_id"`
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
}

// passportOf describes the file at path as it is now. Without a boot id there
// is no passport: the file will be rebuilt at every start.
func passportOf(path string) (passport, error) {
	boot, err := os.ReadFile(bootIDFile)
	if err != nil {
		return passport{}, err
	}
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return passport{}, fmt.Errorf("stat %s: %w", filepath.Base(path), err)
	}
	return passport{BootID: strings.TrimSpace(string(boot)), Device: uint64(st.Dev), Inode: st.Ino}, nil
}

// takePassport reads and removes the passport in dir and says whether the state
// file at path may be reused. It is removed first, so that a file which crashes
// the process while it is opened is not opened a second time.
func takePassport(dir, path string) (reusable bool, reason string) {
	name := filepath.Join(dir, passportFile)
	raw, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, "no passport"
	}
	if err != nil {
		return false, "passport unreadable"
	}
	if err := os.Remove(name); err != nil {
		return false, "passport cannot be taken"
	}
	if _, err := os.Stat(filepath.Join(dir, failedFile)); !errors.Is(err, fs.ErrNotExist) {
		return false, "an I/O error was recorded"
	}
	var have passport
	if err := json.Unmarshal(raw, &have); err != nil {
		return false, "passport malformed"
	}
	now, err := passportOf(path)
	switch {
	case err != nil:
		return false, "state file or boot id unknown"
	case have.BootID == "" || have.BootID != now.BootID:
		return false, "the machine was restarted"
	case have != now:
		return false, "the file was replaced"
	}
	return true, ""
}

// issuePassport writes the passport of the state file at path. It needs no
// fsync: a crash of the machine voids it anyway.
func issuePassport(dir, path string) error {
	p, err := passportOf(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // no boot id on this system: never reuse
	}
	if err != nil {
		return err
	}
	raw, err := json.Marshal(p)
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, passportFile+".tmp")
	if err := os.WriteFile(tmp, raw, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, passportFile))
}

// voidPassport makes sure, as well as a failing disk allows, that the state
// file is not reused: it takes the passport away and leaves a mark.
func voidPassport(dir string) error {
	removed := os.Remove(filepath.Join(dir, passportFile))
	if errors.Is(removed, fs.ErrNotExist) {
		removed = nil
	}
	marked := os.WriteFile(filepath.Join(dir, failedFile), nil, 0o600)
	if removed == nil || marked == nil {
		return nil // either suffices
	}
	return errors.Join(removed, marked)
}
