package rabbitmq_test

import (
	"bytes"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// cutter stands between an issuer and its server. It keeps the first request that
// begins with a word, and neither side notices: not even when the client goes
// away. Once released it delivers the request, and tells what the server answered.
type cutter struct {
	listener net.Listener
	server   string
	word     []byte
	held     chan struct{} // closed when the request was seen
	free     chan struct{} // closed by release
	answer   chan string   // the status line of what was held
	once     sync.Once
	mu       sync.Mutex
	conns    []net.Conn
	wg       sync.WaitGroup
}

func newCutter(t testing.TB, server, word string) *cutter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &cutter{listener: l, server: server, word: []byte(word), held: make(chan struct{}), free: make(chan struct{}), answer: make(chan string, 1)}
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
	select {
	case <-p.held:
	case <-time.After(time.Minute):
		t.Fatalf("no request begins with %s", p.word)
	}
}

// deliver lets the request go and returns the server's status.
func (p *cutter) deliver(t testing.TB) string {
	t.Helper()
	p.release()
	select {
	case line := <-p.answer:
		return line
	case <-time.After(time.Minute):
		t.Fatal("the server does not answer what was held")
		return ""
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

func (p *cutter) pass(client, server net.Conn) {
	mine := make(chan struct{}) // closed when this connection's request is delivered
	p.wg.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			n, err := client.Read(buf)
			if err != nil {
				return
			}
			if bytes.HasPrefix(buf[:n], p.word) && p.hold() {
				close(mine)
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
		case <-mine:
			line, _, _ := strings.Cut(string(answers[:n]), "\r\n")
			select {
			case p.answer <- line:
			default:
			}
		default:
		}
		if _, err := client.Write(answers[:n]); err != nil {
			continue // the client is gone; the server goes on
		}
	}
	_ = client.Close()
}

// hold waits for release; false if another request was held before.
func (p *cutter) hold() bool {
	p.mu.Lock()
	select {
	case <-p.held:
		p.mu.Unlock()
		return false
	default:
	}
	close(p.held)
	p.mu.Unlock()
	<-p.free
	return true
}

// recorder passes everything on and keeps what the client said.
type recorder struct {
	listener net.Listener
	mu       sync.Mutex
	said     bytes.Buffer
}

func newRecorder(t testing.TB, server string) *recorder {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &recorder{listener: l}
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = l.Close() })
	wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("tcp", server)
			if err != nil {
				_ = client.Close()
				continue
			}
			go func() { _, _ = io.Copy(client, to); _ = client.Close() }()
			go func() { _, _ = io.Copy(to, io.TeeReader(client, p)); _ = to.Close() }()
		}
	})
	return p
}

func (p *recorder) address() string { return p.listener.Addr().String() }

func (p *recorder) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.said.Write(b)
}

func (p *recorder) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.said.String()
}
