package pgtest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"github.com/mayfly-broker/mayfly/e2e/servertest"
)

// How PostgreSQL is told to end: with its sessions, and without even a checkpoint.
// By either signal it takes its own processes along.
const (
	fast      = syscall.SIGINT
	immediate = syscall.SIGQUIT
)

// findServer returns the directory of the newest installed server's programs.
func findServer() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil {
		return "", err
	}
	version := func(path string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
		return n
	}
	if len(found) > 0 {
		return filepath.Dir(slices.MaxFunc(found, func(a, b string) int { return version(a) - version(b) })), nil
	}
	path, err := servertest.Find("postgresql-15", "postgres")
	return filepath.Dir(path), err
}

// prepareDir makes dir, owned by the account. A directory that the account
// cannot reach is refused here, where the reason can still be told.
func prepareDir(dir string, as servertest.Account) (string, error) {
	if dir == "" {
		return as.Dir("pgtest-")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		return "", errors.Join(err, fmt.Errorf("%s is not empty", dir))
	}
	for up := filepath.Dir(dir); os.Getuid() == 0 && up != "/"; up = filepath.Dir(up) {
		info, err := os.Stat(up)
		if err != nil {
			return "", err
		}
		if info.Mode().Perm()&0o001 == 0 {
			return "", fmt.Errorf("the server runs as %s, who cannot pass %s; leave the directory empty to get one under %s", as.Name(), up, os.TempDir())
		}
	}
	return dir, as.Own(dir)
}
