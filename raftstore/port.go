package raftstore

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

const handshakeTimeout = 5 * time.Second

// port is the cluster port: one TCP listener whose TLS connections go, by
// application protocol, to raft, to the HTTP servers, or to the beacon handler.
type port struct {
	ln     net.Listener
	id     *identity
	log    *slog.Logger
	addr   advertised
	routes map[string]*route
	done   chan struct{}
	wg     sync.WaitGroup

	mu    sync.Mutex
	conns map[*portConn]struct{} // all open inbound connections
	young int                    // of them not yet authenticated
	joins int                    // of them joining
}

// advertised is the address that peers are told.
type advertised string

// Network implements [net.Addr].
func (advertised) Network() string { return "tcp" }

// String implements [net.Addr].
func (a advertised) String() string { return string(a) }

func openPort(listen, advertise string, id *identity, log *slog.Logger) (*port, error) {
	ln, err := net.Listen("tcp", listen)
	if err != nil {
		return nil, fmt.Errorf("raftstore: cluster port: %w", err)
	}
	if advertise == "" {
		tcp, ok := ln.Addr().(*net.TCPAddr)
		if !ok || tcp.IP.IsUnspecified() {
			return nil, errors.Join(errors.New("raftstore: Advertise is required when Listen is a wildcard"), ln.Close())
		}
		advertise = tcp.String()
	}
	p := &port{
		ln: ln, id: id, log: log, addr: advertised(advertise), routes: map[string]*route{},
		done: make(chan struct{}), conns: map[*portConn]struct{}{},
	}
	for _, proto := range []string{protoRaft, protoForward, protoBeacon, protoJoin} {
		p.routes[proto] = &route{port: p, conns: make(chan *tls.Conn), closed: make(chan struct{})}
	}
	return p, nil
}

// serve starts accepting.
func (p *port) serve() { p.wg.Go(p.accept) }

func (p *port) accept() {
	for {
		conn, err := p.ln.Accept()
		if err != nil {
			select {
			case <-p.done:
				return
			case <-time.After(50 * time.Millisecond): // out of descriptors, most likely
				p.log.Warn("cluster port cannot accept", "error", err)
				continue
			}
		}
		tracked := &portConn{Conn: conn, port: p}
		if !p.admit(tracked) {
			_ = conn.Close() // over the limits: the caller will retry
			continue
		}
		p.wg.Go(func() { p.route(tracked) })
	}
}

func (p *port) admit(c *portConn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.done:
		return false
	default:
	}
	if len(p.conns) >= maxConns || p.young >= maxHandshakes {
		return false
	}
	p.conns[c] = struct{}{}
	p.young++
	return true
}

// grown ends c's time as an unauthenticated connection; ok says whether it may
// go on as one that speaks proto.
func (p *port) grown(c *portConn, proto string) (ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.young--
	if proto == protoJoin {
		if p.joins >= maxJoinConns {
			return false
		}
		p.joins++
		c.joining = true
	}
	return proto != ""
}

func (p *port) route(c *portConn) {
	conn := tls.Server(c, p.id.serverTLS())
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
	err := conn.HandshakeContext(ctx)
	cancel()
	proto := ""
	if err == nil {
		proto = conn.ConnectionState().NegotiatedProtocol
	}
	if !p.grown(c, proto) {
		p.log.Debug("cluster port refused a connection", "remote", c.RemoteAddr().String(), "error", err)
		_ = c.Close()
		return
	}
	r := p.routes[proto] // serverTLS lets no other protocol through
	select {
	case r.conns <- conn:
	case <-r.closed:
		_ = conn.Close()
	case <-p.done:
		_ = conn.Close()
	}
}

// close stops listening and closes every inbound connection.
func (p *port) close() error {
	p.mu.Lock()
	select {
	case <-p.done:
		p.mu.Unlock()
		return nil
	default:
	}
	close(p.done)
	open := make([]*portConn, 0, len(p.conns))
	for c := range p.conns {
		open = append(open, c)
	}
	p.mu.Unlock()
	err := p.ln.Close()
	for _, c := range open {
		_ = c.Close() // nobody is left to care
	}
	p.wg.Wait()
	return err
}

// portConn is an inbound connection that the port knows of until it is closed.
type portConn struct {
	net.Conn
	port    *port
	once    sync.Once
	joining bool
}

// Close implements [net.Conn].
func (c *portConn) Close() error {
	c.once.Do(func() {
		c.port.mu.Lock()
		delete(c.port.conns, c)
		if c.joining {
			c.port.joins--
		}
		c.port.mu.Unlock()
	})
	return c.Conn.Close()
}

// route is a [net.Listener] for the connections that speak one protocol.
type route struct {
	port   *port
	conns  chan *tls.Conn
	closed chan struct{}
	once   sync.Once
}

// Accept implements [net.Listener].
func (r *route) Accept() (net.Conn, error) {
	c, err := r.accept()
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (r *route) accept() (*tls.Conn, error) {
	select {
	case c := <-r.conns:
		return c, nil
	case <-r.closed:
		return nil, net.ErrClosed
	case <-r.port.done:
		return nil, net.ErrClosed
	}
}

// Close implements [net.Listener].
func (r *route) Close() error {
	r.once.Do(func() { close(r.closed) })
	return nil
}

// Addr implements [net.Listener].
func (r *route) Addr() net.Addr { return r.port.addr }

// dial opens a mutually authenticated connection that speaks proto to addr,
// where the node wantID must answer (any node of the cluster when empty).
func (id *identity) dial(ctx context.Context, addr, wantID, proto string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	d := tls.Dialer{Config: id.clientTLS(proto, wantID)}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("raftstore: dial %s: %w", addr, err)
	}
	return conn, nil
}

// raftStream is raft's view of the cluster port.
type raftStream struct {
	*route
	id     *identity
	nodeAt func(addr string) string // the node id that should answer there, "" when unknown
}

var _ raft.StreamLayer = (*raftStream)(nil)

// Dial implements [raft.StreamLayer].
func (s *raftStream) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return s.id.dial(ctx, string(addr), s.nodeAt(string(addr)), protoRaft)
}
