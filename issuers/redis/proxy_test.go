package redis_test

import (
	"bytes"
	"net"
	"sync"
	"testing"
)

// cutter stands between an issuer and its server. From the first message on that
// holds a word it takes the client's bytes and forwards nothing, and neither side
// notices: not even when the client goes away. Once released it delivers all,
// and tells when the server has answered.
type cutter struct {
	listener  net.Listener
	server    string
	word      []byte
	held      chan struct{} // closed when the word was seen
	free      chan struct{} // closed by release
	delivered chan struct{} // closed when the server has answered what was held
	once      sync.Once
	mu        sync.Mutex
	conns     []net.Conn
	wg        sync.WaitGroup
}

func newCutter(t testing.TB, server, word string) *cutter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &cutter{listener: l, server: server, word: []byte(word), held: make(chan struct{}), free: make(chan struct{}), delivered: make(chan struct{})}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		_ = l.Close()
		p.release()
		p.mu.Lock()
		for _, c := range p.conns {
			_ = c.Close()
		}
		p.mu.Unlock()
		p.wg.Wait()
	})
	return p
}

func (p *cutter) address() string { return p.listener.Addr().String() }
func (p *cutter) release()        { p.once.Do(func() { close(p.free) }) }
func (p *cutter) waitHeld(t testing.TB) {
	t.Helper()
	wait(t, p.held, "the word was never sent")
}

func (p *cutter) waitDelivered(t testing.TB) {
	t.Helper()
	wait(t, p.delivered, "the server never answered")
}

func wait(t testing.TB, ch <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-ch:
	case <-t.Context().Done():
		t.Fatal(what)
	}
}

func (p *cutter) accept() {
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
		p.wg.Go(func() { p.pass(client, server) })
	}
}

// pass forwards both ways; answers to what was held go nowhere.
func (p *cutter) pass(client, server net.Conn) {
	var holding sync.WaitGroup
	holding.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			n, err := client.Read(buf)
			if err != nil {
				return
			}
			if bytes.Contains(bytes.ToUpper(buf[:n]), p.word) && p.hold(server, buf[:n]) {
				return
			}
			if _, err := server.Write(buf[:n]); err != nil {
				return
			}
		}
	})
	answers := make([]byte, 64<<10)
	for {
		n, err := server.Read(answers)
		if err != nil {
			break
		}
		select {
		case <-p.held:
			p.mu.Lock()
			select {
			case <-p.free:
				if bytes.Contains(answers[:n], []byte("QUEUED")) {
					close(p.delivered)
				}
			default:
			}
			p.mu.Unlock()
		default:
		}
		if _, err := client.Write(answers[:n]); err != nil {
			continue // the client is gone; the server goes on
		}
	}
	_ = client.Close()
	holding.Wait()
}

// hold keeps the first message with the word until release, and delivers it.
func (p *cutter) hold(server net.Conn, message []byte) bool {
	select {
	case <-p.held:
		return false
	default:
	}
	close(p.held)
	<-p.free
	_, _ = server.Write(message)
	return true
}
