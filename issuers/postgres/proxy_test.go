package postgres_test

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"
)

// proxy stands between an issuer and its server. While it is held, it takes
// bytes from the client and forwards nothing, and the server notices nothing: a
// client that died without a word, or a message on a slow road.
type proxy struct {
	listener net.Listener
	server   string
	mu       sync.Mutex
	open     *sync.Cond
	held     bool
	word     string // what a client's message must hold to be held with all that follow
	conns    []net.Conn
	wg       sync.WaitGroup
}

func newProxy(t testing.TB, server string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, server: server}
	p.open = sync.NewCond(&p.mu)
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		_ = l.Close()
		p.hold(false)
		p.mu.Lock()
		for _, c := range p.conns {
			_ = c.Close()
		}
		p.mu.Unlock()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) address() string { return p.listener.Addr().String() }

func (p *proxy) hold(held bool) {
	p.mu.Lock()
	p.held = held
	p.mu.Unlock()
	p.open.Broadcast()
}

// holdAt holds from the next message on that has a word in it.
func (p *proxy) holdAt(word string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.word = word
}

func (p *proxy) isHeld() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held
}

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.server)
		if err != nil {
			_ = client.Close()
			continue
		}
		p.mu.Lock()
		p.conns = append(p.conns, client, server)
		p.mu.Unlock()
		p.wg.Go(func() { p.forward(server, client) })
		p.wg.Go(func() { p.forward(client, server) })
	}
}

// forward copies until either side ends, and passes an end on only when not held.
func (p *proxy) forward(to, from net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		p.mu.Lock()
		if p.word != "" && bytes.Contains(buf[:n], []byte(p.word)) {
			p.held, p.word = true, ""
		}
		for p.held {
			p.open.Wait()
		}
		p.mu.Unlock()
		if n > 0 {
			if _, e := to.Write(buf[:n]); e != nil {
				err = io.EOF
			}
		}
		if err != nil {
			_ = to.Close()
			_ = from.Close()
			return
		}
	}
}
