package servertest

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
)

// Door is what stands before a server that lives in the test's own process, such as
// one that plays a cloud: it relays TCP, and can be shut, hang and open again at its
// address as if the server had died, hung and come back. What the server has taken
// in goes on there, and is known when the door opens again.
type Door struct {
	// Address is where clients connect: HOST:PORT.
	Address string

	behind   string
	hang     sync.RWMutex // held for reading while bytes pass, for writing while it hangs
	mu       sync.Mutex
	hanging  bool
	listener net.Listener // nil while it is shut
	conns    map[*net.TCPConn]bool
	wg       sync.WaitGroup
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

// Signal takes SIGSTOP, by which the door hangs, and SIGCONT: connections are made,
// and nothing comes through them.
func (d *Door) Signal(sig syscall.Signal) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case sig == syscall.SIGSTOP && !d.hanging:
		d.hanging = true
		d.hang.Lock()
	case sig == syscall.SIGCONT && d.hanging:
		d.hanging = false
		d.hang.Unlock()
	case sig != syscall.SIGSTOP && sig != syscall.SIGCONT:
		return errors.New("a door takes SIGSTOP and SIGCONT alone")
	}
	return nil
}

// Close shuts the door for good, and waits until nothing of it runs.
func (d *Door) Close() error {
	err := errors.Join(d.shut(true), d.Signal(syscall.SIGCONT))
	d.wg.Wait()
	return err
}
