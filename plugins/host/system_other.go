//go:build !linux

package host

import (
	"crypto/sha256"
	"errors"
	"os"
	"syscall"
)

// Plugins need what only Linux has: memory that can be sealed and run, a signal
// at the parent's end, limits set from outside. Elsewhere a node has none.

var errLinux = errors.New("plugins run on Linux alone")

type account struct {
	uid, gid uint32
	own      bool
}

func openBinary(string, string, [sha256.Size]byte) (*os.File, error) { return nil, errLinux }
func accountOf(string, bool) (account, error)                        { return account{}, errLinux }
func attributes(account, bool) *syscall.SysProcAttr                  { return nil }
func release(int, func(int) error) error                             { return errLinux }
func tidy(string, uint32) error                                      { return errLinux }
func pledgeThread() error                                            { return errLinux }
func hideMemory() error                                              { return errLinux }
func closeOnExec() error                                             { return errLinux }
func restrict(int, account, Limits) error                            { return errLinux }
func awaitExit(int)                                                  {}
func killGroup(int) error                                            { return errLinux }
func peerOf(syscall.RawConn) (int, uint32, error)                    { return 0, 0, errLinux }
func executable(*os.File) string                                     { return "" }
