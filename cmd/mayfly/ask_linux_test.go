package main

import (
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/crypto/ssh"

	"github.com/mayfly-broker/mayfly/client/approve"
	"github.com/mayfly-broker/mayfly/client/clienttest"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// terminalPair opens a pseudo-terminal: the person's side and the program's.
func terminalPair(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = person.Close() })
	control := func(request uintptr, value *uint32) {
		if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, person.Fd(), request, uintptr(unsafe.Pointer(value))); e != 0 {
			t.Fatal(e)
		}
	}
	var number, unlock uint32
	control(syscall.TIOCSPTLCK, &unlock)
	control(syscall.TIOCGPTN, &number)
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = program.Close() })
	return person, program
}

// atTerminal runs a command line at which a person types, as ann.
func atTerminal(t *testing.T, c *clienttest.Cluster, dir, typed string, argv ...string) (code int, out string) {
	t.Helper()
	person, program := terminalPair(t)
	if _, err := person.WriteString(typed); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"MAYFLY_ADDR": c.Addr(), "MAYFLY_CACERT": c.CAFile, "MAYFLY_HOME": dir, "TERM": "dumb"}
	var b strings.Builder
	s := &shell{in: program, out: &b, err: program, releaseSignals: func() {}, lookup: func(k string) (string, bool) { v, ok := env[k]; return v, ok }}
	for k, v := range env { // flags read the real environment
		t.Setenv(k, v)
	}
	return s.run(t.Context(), append([]string{"mayfly"}, argv...)), b.String()
}

func TestAPersonIsAskedBeforeAnythingIsSigned(t *testing.T) {
	c := clienttest.New(t, 1)
	dir := filepath.Join(t.TempDir(), "home")
	home(t, c, dir)
	if _, _, err := approve.OpenOrGenerate(filepath.Join(dir, approveKeyName), "", nil); err != nil {
		t.Fatal(err)
	}
	id := c.Ask("agent:coder", "orders/readwrite", "ticket 4711", wire.GrantAccess, nil)
	signed := func() int { return len(c.Calls("POST", "/api/v1/grants")) }
	for _, typed := range []string{"no\n", "\n", "y\n"} {
		code, out := atTerminal(t, c, dir, typed, "grant", "approve", id)
		if code != exitFailed || signed() != 0 || !strings.Contains(out, "ticket 4711") {
			t.Fatalf("%q: exit code %d, %d signatures\n%s", typed, code, signed(), out)
		}
	}
	code, out := atTerminal(t, c, dir, "yes\n", "grant", "approve", id)
	if code != exitDone || signed() != 1 || strings.Index(out, "ticket 4711") > strings.Index(out, "signed with") {
		t.Fatalf("exit code %d, %d signatures\n%s", code, signed(), out)
	}
}

func TestThePassphraseIsAskedForAtTheTerminal(t *testing.T) {
	c := clienttest.New(t, 1)
	dir := filepath.Join(t.TempDir(), "home")
	home(t, c, dir)
	path := filepath.Join(dir, approveKeyName)
	s, _, err := approve.OpenOrGenerate(path, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	lock(t, path, "correct horse")
	id := c.Ask("agent:coder", "orders/readwrite", "p", wire.GrantAccess, nil)
	code, out := atTerminal(t, c, dir, "yes\ncorrect horse\n", "grant", "approve", id)
	if code != exitDone || !strings.Contains(out, s.Key().Fingerprint) || strings.Contains(out, "horse") {
		t.Fatalf("exit code %d\n%s", code, out)
	}
}

// lock puts a passphrase on a key file.
func lock(t *testing.T, path, passphrase string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := ssh.ParseRawPrivateKey(data)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKeyWithPassphrase(raw, "", []byte(passphrase))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
}
