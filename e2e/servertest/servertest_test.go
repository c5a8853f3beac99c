package servertest

import (
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestPortsAreDistinctFreeAndStayOurs(t *testing.T) {
	seen := map[int]bool{}
	for range 50 {
		port, err := Port()
		if err != nil {
			t.Fatal(err)
		}
		if seen[port] || port < firstPort || port >= lastPort {
			t.Fatalf("port %d: given before, or out of range", port)
		}
		seen[port] = true
		at := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		for range 2 { // a server that stops comes back to the same port
			l, err := net.Listen("tcp", at)
			if err != nil {
				t.Fatalf("the port is not free: %v", err)
			}
			_ = l.Close()
		}
		if l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.2", strconv.Itoa(port))); err == nil {
			_ = l.Close()
			t.Fatalf("another process could take port %d", port)
		}
	}
}

func TestServerStopsWithWhatItStarted(t *testing.T) {
	account, err := Choose()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := account.Dir("servertest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	// Its child would outlive it.
	fifo := filepath.Join(dir, "alive")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := account.Own(fifo); err != nil {
		t.Fatal(err)
	}
	t.Setenv("MAYFLY_SECRET", "of the caller")
	p, err := Start(Command{Path: sh, Args: []string{"-c", `env; sleep 1000 >alive & wait`}, Dir: dir, Env: []string{"OWN=1"}, Account: account})
	if err != nil {
		t.Fatal(err)
	}
	alive, err := os.Open(fifo) // once the child has it open, too
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = alive.Close() }()
	if p.Ended() {
		t.Fatal("it ended by itself: " + p.Output())
	}
	for range 2 {
		if err := p.Stop(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	if err := alive.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(alive); err != nil {
		t.Errorf("the child lives on and holds the pipe: %v", err)
	}
	if out := p.Output(); !strings.Contains(out, "OWN=1") || strings.Contains(out, "MAYFLY_SECRET") {
		t.Errorf("its environment: %s", out)
	}
}

// A program that ended well did so, also where somebody still holds its output: on
// a machine that stands still for a second, that is whoever reads it.
func TestProgramThatEndedWellDidSo(t *testing.T) {
	out, err := Command{Path: "/bin/sh", Args: []string{"-c", "echo done; sleep 5 & exit 0"}, Dir: t.TempDir()}.Run(t.Context())
	if err != nil || out != "done" {
		t.Errorf("%q, %v", out, err)
	}
	if _, err := (Command{Path: "/bin/sh", Args: []string{"-c", "exit 3"}, Dir: t.TempDir()}).Run(t.Context()); err == nil {
		t.Error("a program that failed did not")
	}
}

func TestUnbuiltServerSaysHowToGetIt(t *testing.T) {
	if _, err := Built("no-such-server"); err == nil || !strings.Contains(err.Error(), "make setup") {
		t.Fatal(err)
	}
}
