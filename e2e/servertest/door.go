package servertest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
)

// Door is what stands before a server: it relays TCP, and can be shut, hang and open
// again at its address as if the server had died, hung and come back, also where it
// lives in the test's own process and plays a cloud. What the server has taken in
// goes on there, and is known when the door opens again. A door that hangs takes
// bytes and passes none on, and the server notices nothing: a client that died
// without a word, or a message on a slow road.
type Door struct {
	// Address is where clients connect: HOST:PORT.
	Address string

	behind   string
	hang     sync.RWMutex // held for reading while bytes pass, for writing while it hangs
	mu       sync.Mutex
	hanging  bool
	word     string       // a message that holds it makes the door hang
	listener net.Listener // nil while it is shut
	conns    map[*net.TCPConn]bool
	wg       sync.WaitGroup
}

// DoorFor is [NewDoor] for one test.
func DoorFor(t testing.TB, behind string) *Door {
	t.Helper()
	d, err := NewDoor(behind)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// NewDoor opens a door before the server at an address.
func NewDoor(behind string) (*Door, error) {
	at, err := Address()
	if err != nil {
		return nil, err
	}
	d := &Door{Address: at, behind: behind, conns: map[*net.TCPConn]bool{}}
	return d, d.StartAgain(context.Background())
}

// StartAgain opens the door where it was.
func (d *Door) StartAgain(ctx context.Context) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", d.Address)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.listener = l
	d.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if conn, ok := c.(*net.TCPConn); ok {
				d.wg.Go(func() { d.relay(l, conn) })
			}
		}
	})
	return nil
}

// keep remembers a connection for as long as the listener that took it is the door's.
func (d *Door) keep(l net.Listener, c *net.TCPConn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.listener == l {
		d.conns[c] = true
	}
	return d.listener == l
}

func (d *Door) relay(l net.Listener, front *net.TCPConn) {
	defer func() { _ = front.Close() }()
	c, err := net.Dial("tcp", d.behind)
	if err != nil {
		return
	}
	defer func() { _ = c.Close() }()
	back, ok := c.(*net.TCPConn)
	if !ok || !d.keep(l, front) || !d.keep(l, back) {
		return
	}
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.conns, front)
		delete(d.conns, back)
	}()
	var ways sync.WaitGroup
	ways.Go(func() { d.pass(back, front) })
	ways.Go(func() { d.pass(front, back) })
	ways.Wait()
}

// pass relays one way to its end. Bytes wait while the door hangs.
func (d *Door) pass(to, from *net.TCPConn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		d.look(buf[:n])
		d.hang.RLock()
		if n > 0 {
			if _, werr := to.Write(buf[:n]); werr != nil {
				err = werr
			}
		}
		d.hang.RUnlock()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				_ = from.Close()
			}
			_ = to.CloseWrite() // it may be closed already
			return
		}
	}
}

// Kill shuts the door without warning: connections are reset, further ones refused.
func (d *Door) Kill() error { return d.shut(true) }

// Stop shuts the door in order: connections are closed, further ones refused.
func (d *Door) Stop() error { return d.shut(false) }

func (d *Door) shut(reset bool) error {
	d.mu.Lock()
	l, conns := d.listener, d.conns
	d.listener, d.conns = nil, map[*net.TCPConn]bool{}
	d.mu.Unlock()
	if l == nil {
		return nil
	}
	err := l.Close()
	for c := range conns {
		if reset {
			_ = c.SetLinger(0)
		}
		_ = c.Close()
	}
	return err
}

// look has the door hang before a message with the word in it.
func (d *Door) look(message []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.word != "" && bytes.Contains(message, []byte(d.word)) {
		d.word = ""
		d.hold(true)
	}
}

// HoldAt has the door hang from the next message on that has a word in it.
func (d *Door) HoldAt(word string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.word = word
}

// Hold has the door hang, or ends that: connections are made, and nothing comes
// through them.
func (d *Door) Hold(yes bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hold(yes)
}

// hold waits for bytes that are passing. The caller holds d.mu.
func (d *Door) hold(yes bool) {
	switch {
	case yes && !d.hanging:
		d.hang.Lock()
	case !yes && d.hanging:
		d.hang.Unlock()
	}
	d.hanging = yes
}

// Held says whether the door hangs.
func (d *Door) Held() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.hanging
}

// Signal is [Door.Hold] by the signals that have that effect on a process: SIGSTOP
// and SIGCONT.
func (d *Door) Signal(sig syscall.Signal) error {
	if sig != syscall.SIGSTOP && sig != syscall.SIGCONT {
		return errors.New("a door takes SIGSTOP and SIGCONT alone")
	}
	d.Hold(sig == syscall.SIGSTOP)
	return nil
}

// Close shuts the door for good, and waits until nothing of it runs.
func (d *Door) Close() error {
	err := d.shut(true)
	d.Hold(false)
	d.wg.Wait()
	return err
}
