package servertest

import (
	"bufio"
	"errors"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// echo answers each line with itself, on an address of its own.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				r := bufio.NewReader(c)
				for {
					line, err := r.ReadString('\n')
					if err != nil {
						return
					}
					_, _ = c.Write([]byte(line))
				}
			}()
		}
	}()
	return l.Addr().String()
}

// ask says a word and waits for the answer.
func ask(c net.Conn, wait time.Duration) error {
	if err := c.SetDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("hello\n")); err != nil {
		return err
	}
	_, err := bufio.NewReader(c).ReadString('\n')
	return err
}

func TestDoorShutsHangsAndOpensAgain(t *testing.T) {
	d, err := NewDoor(echo(t))
	if err != nil {
		t.Fatal(err)
	}
	dial := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", d.Address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	old := dial()
	if err := ask(old, time.Minute); err != nil {
		t.Fatalf("through an open door: %v", err)
	}
	for name, shut := range map[string]func() error{"Kill": d.Kill, "Stop": d.Stop} {
		for range 2 { // shutting twice is no error
			if err := shut(); err != nil {
				t.Fatal(err)
			}
		}
		if err := ask(old, time.Minute); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: a connection lives on: %v", name, err)
		}
		if _, err := net.Dial("tcp", d.Address); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: a shut door answers %v", name, err)
		}
		if err := d.StartAgain(t.Context()); err != nil {
			t.Fatal(err)
		}
		old = dial()
		if err := ask(old, time.Minute); err != nil {
			t.Fatalf("%s: through a door that opened again: %v", name, err)
		}
	}
	if err := d.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := ask(dial(), 200*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("through a door that hangs: %v", err)
	}
	if !d.Held() {
		t.Error("a door that hangs does not say so")
	}
	waiting := make(chan error)
	go func() { waiting <- ask(old, time.Minute) }()
	if err := d.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; err != nil {
		t.Errorf("what waited at a door that hung: %v", err)
	}
	d.HoldAt("good") // in no message
	if err := ask(old, time.Minute); err != nil || d.Held() {
		t.Errorf("a door that waits for a word: held %t, %v", d.Held(), err)
	}
	d.HoldAt("ello")
	if err := ask(dial(), 200*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) || !d.Held() {
		t.Errorf("at its word: held %t, %v", d.Held(), err)
	}
	d.Hold(false)
	if err := ask(dial(), time.Minute); err != nil {
		t.Errorf("after its word: %v", err)
	}
	if err := d.Signal(syscall.SIGHUP); err == nil {
		t.Error("a door takes any signal")
	}
	if err := errors.Join(d.Signal(syscall.SIGSTOP), d.Close()); err != nil {
		t.Errorf("closing a door that hangs: %v", err)
	}
}
