package raftstore

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A child process runs one node, so that it can really be killed. It is this
// test binary, told by its environment.

const childEnv = "RAFTSTORE_TEST_CHILD" // the data directory

// runChild opens the node in the directory, commits what it reads from stdin as
// commands, and answers each line. It never closes the store.
func runChild() {
	fail := func(err error) {
		fmt.Println("error", err)
		os.Exit(1)
	}
	caCert, err := os.ReadFile(os.Getenv(childEnv) + "-ca.crt")
	if err != nil {
		fail(err)
	}
	caKey, err := os.ReadFile(os.Getenv(childEnv) + "-ca.key")
	if err != nil {
		fail(err)
	}
	cert, err := x509.ParseCertificate(caCert)
	if err != nil {
		fail(err)
	}
	key, err := x509.ParseECPrivateKey(caKey)
	if err != nil {
		fail(err)
	}
	s, err := Open(Config{
		NodeID: "n1", Dir: os.Getenv(childEnv), Listen: "127.0.0.1:0", Bootstrap: true,
		CA: Authority{cert, key}, Sealer: newTestSealer(&testing.B{}, 1), Logger: slog.New(slog.DiscardHandler),
		Disk: Disk{Reserve: 1 << 20},
	}, &testMachine{})
	if err != nil {
		fail(err)
	}
	for !s.IsLeader() { // the parent's line waits; it has a deadline
		<-time.After(2 * time.Millisecond)
	}
	fmt.Println("open")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		if in.Text() == "limit" { // files cannot grow beyond 256 KiB any more: EFBIG, a real write error
			signal.Ignore(syscall.SIGXFSZ)
			fmt.Println(syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 256 << 10, Max: 256 << 10}))
			continue
		}
		result, err := s.Propose(context.Background(), Proposal{Command: []byte(in.Text())})
		fmt.Println(result, err)
	}
}

type child struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.Writer
	out *bufio.Scanner
}

func startChild(t *testing.T, dir string, ca Authority) *child {
	t.Helper()
	key, ok := ca.Signer.(*ecdsa.PrivateKey)
	if !ok {
		t.Fatal("the CA's key is not ECDSA")
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, raw := range map[string][]byte{"-ca.crt": ca.Certificate.Raw, "-ca.key": der} {
		if err := os.WriteFile(dir+name, raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := &child{t: t, cmd: exec.Command(exe)}
	c.cmd.Env = append(os.Environ(), childEnv+"="+dir)
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.out = bufio.NewScanner(out)
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.kill)
	if line := c.line(); line != "open" {
		t.Fatalf("child: %s", line)
	}
	return c
}

func (c *child) line() string {
	if !c.out.Scan() {
		return "(ended)"
	}
	return c.out.Text()
}

func (c *child) commit(command string) {
	c.t.Helper()
	if _, err := fmt.Fprintln(c.in, command); err != nil {
		c.t.Fatal(err)
	}
	if got := c.line(); !strings.HasSuffix(got, "<nil>") {
		c.t.Fatalf("child: %s: %s", command, got)
	}
}

// kill is kill -9.
func (c *child) kill() {
	if c.cmd.ProcessState == nil {
		_ = c.cmd.Process.Kill()
		_ = c.cmd.Wait()
	}
}
