// Package servertest runs real servers as private processes for tests: each on
// its own ports and in its own directory, as an ordinary user, and gone when the
// test or its whole process is.
//
// It knows how a process lives and nothing of any kind of server: those are in
// issuers/<kind>/<kind>test, which build on it.
package servertest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
)

// Ports are taken from below the range that the kernel gives to outgoing
// connections (32768 upwards), so that none of those ever stands on a port
// between its choice and the server's own listen, nor while a server restarts.
const (
	firstPort = 20000
	lastPort  = 32000
)

// held keeps each port that this process chose: a listener on 127.0.0.2, where no
// server listens, tells other test processes that it is taken.
var held struct {
	sync.Mutex
	next      int
	listeners []net.Listener
}

// Port chooses a TCP port on 127.0.0.1 that nobody listens on. It stays this
// process's own until it ends: no test process that asks here gets it, and a
// server that stops finds it free when it starts again.
func Port() (int, error) {
	held.Lock()
	defer held.Unlock()
	if held.next == 0 {
		held.next = firstPort + os.Getpid()*97%(lastPort-firstPort)
	}
	for range lastPort - firstPort {
		port := held.next
		if held.next++; held.next >= lastPort {
			held.next = firstPort
		}
		hold, err := net.Listen("tcp", net.JoinHostPort("127.0.0.2", strconv.Itoa(port)))
		if err != nil {
			continue
		}
		probe, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			_ = hold.Close()
			continue
		}
		held.listeners = append(held.listeners, hold)
		return port, probe.Close()
	}
	return 0, fmt.Errorf("no port from %d to %d is free on 127.0.0.1", firstPort, lastPort)
}

// Address is 127.0.0.1 with a [Port].
func Address() (string, error) {
	port, err := Port()
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), err
}

// Built returns the path of a server that `make setup` builds from its own module
// in e2e/servers.
func Built(name string) (string, error) {
	_, here, _, ok := runtime.Caller(0)
	if !ok {
		return "", errors.New("this binary does not say where its source stands")
	}
	path := filepath.Join(filepath.Dir(here), "..", "..", ".cache", "servers", name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("the test server %s is not built: make setup builds it from e2e/servers/%s", name, name)
	}
	return path, nil
}

// Account is the user that a server runs as. The zero value is the caller's own.
type Account struct {
	name     string
	change   bool
	uid, gid int
	groups   []uint32
}

// Name is the user's name; empty for the zero value.
func (a Account) Name() string { return a.name }

// In is the account as a member of the named groups besides its own, of those
// that exist. An ordinary caller's account stays as it is.
func (a Account) In(groups ...string) Account {
	if !a.change {
		return a
	}
	a.groups = nil
	for _, name := range groups {
		g, err := user.LookupGroup(name)
		if err != nil {
			continue
		}
		if gid, err := strconv.ParseUint(g.Gid, 10, 32); err == nil {
			a.groups = append(a.groups, uint32(gid))
		}
	}
	return a
}

// Choose returns the first of the named users that exists, "nobody" after them,
// when the caller is root; otherwise the caller. No server runs as root: some
// refuse to, and none should.
func Choose(names ...string) (Account, error) {
	if os.Getuid() != 0 {
		u, err := user.Current()
		if err != nil {
			return Account{}, nil // it runs as well without its name
		}
		return Account{name: u.Username}, nil
	}
	names = append(names, "nobody")
	for _, name := range names {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.Atoi(u.Uid)
		gid, err2 := strconv.Atoi(u.Gid)
		if err1 == nil && err2 == nil && uid != 0 {
			return Account{name: name, change: true, uid: uid, gid: gid}, nil
		}
	}
	return Account{}, fmt.Errorf("there is none of the users %v to run a server as", names)
}

// Own gives a file or directory to the account.
func (a Account) Own(path string) error {
	if !a.change {
		return nil
	}
	return os.Chown(path, a.uid, a.gid)
}

// WriteFile writes a file that the account alone may read.
func (a Account) WriteFile(path string, content []byte) error {
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return err
	}
	return a.Own(path)
}

// Dir makes a new directory of the account's own below the system's temporary
// one. A test's own directory would not do: it lies below one that only root may
// pass. The caller removes it.
func (a Account) Dir(prefix string) (string, error) {
	dir, err := os.MkdirTemp("", prefix)
	if err != nil {
		return "", err
	}
	return dir, a.Own(dir)
}
