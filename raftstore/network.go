package raftstore

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// network is what the store speaks over the cluster port besides raft itself.
type network struct {
	s       *Store
	id      *identity
	raft    atomic.Pointer[raft.Raft] // raft dials before NewRaft has returned
	forward *http.Server
	join    *http.Server
	leader  *http.Transport
	door    door
	wg      sync.WaitGroup
}

func newNetwork(s *Store, id *identity) *network {
	n := &network{s: s, id: id}
	n.leader = newLeaderTransport(n)
	quiet := slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)
	server := func(h http.Handler, idle time.Duration) *http.Server {
		return &http.Server{
			Handler: withTLS(h), ConnContext: rememberTLS, ErrorLog: quiet, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: idle, MaxHeaderBytes: 64 << 10,
		}
	}
	n.forward = server(n.membersOnly(s.cfg.Handler), 2*time.Minute)
	n.join = server(n.joinHandler(), 5*time.Second)
	return n
}

// httpConn hides that it is a TLS connection: net/http drops one whose protocol
// it does not know by name.
type httpConn struct {
	net.Conn
	state tls.ConnectionState
}

type httpRoute struct{ *route }

// Accept implements [net.Listener].
func (r httpRoute) Accept() (net.Conn, error) {
	c, err := r.accept()
	if err != nil {
		return nil, err
	}
	return &httpConn{c, c.ConnectionState()}, nil
}

type tlsStateKey struct{}

func rememberTLS(ctx context.Context, c net.Conn) context.Context {
	if hc, ok := c.(*httpConn); ok {
		return context.WithValue(ctx, tlsStateKey{}, &hc.state)
	}
	return ctx
}

// withTLS gives requests their connection's TLS state.
func withTLS(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if state, ok := r.Context().Value(tlsStateKey{}).(*tls.ConnectionState); ok {
			r.TLS = state
		}
		h.ServeHTTP(w, r)
	})
}

// nodeAt returns the id of the member at addr, "" when there is none.
func (n *network) nodeAt(addr string) string {
	if r := n.raft.Load(); r != nil {
		for _, m := range r.GetConfiguration().Configuration().Servers {
			if string(m.Address) == addr {
				return string(m.ID)
			}
		}
	}
	return ""
}

// isMember reports whether id belongs to the configuration in force.
func (n *network) isMember(id string) bool {
	if r := n.raft.Load(); r != nil {
		for _, m := range r.GetConfiguration().Configuration().Servers {
			if string(m.ID) == id {
				return true
			}
		}
	}
	return false
}

func (n *network) serve() {
	routes := n.s.parts.port.routes
	n.wg.Go(func() { _ = n.forward.Serve(httpRoute{routes[protoForward]}) }) // ends when the route is closed
	n.wg.Go(func() { _ = n.join.Serve(httpRoute{routes[protoJoin]}) })
	n.wg.Go(func() {
		for {
			conn, err := routes[protoBeacon].accept()
			if err != nil {
				return
			}
			n.wg.Go(func() { n.s.answerBeacons(conn) })
		}
	})
}

// close ends the servers. Calls being served see their context cancelled.
func (n *network) close() {
	_ = n.forward.Close() // closing is all that is wanted
	_ = n.join.Close()
	n.leader.CloseIdleConnections()
	_ = n.s.parts.port.close() // ends the beacon connections; closeParts reports
	n.wg.Wait()
}

// membersOnly answers only calls from members: a removed node still has a certificate.
func (n *network) membersOnly(h http.Handler) http.Handler {
	if h == nil {
		h = http.NotFoundHandler()
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !n.isMember(PeerID(r)) {
			http.Error(w, "not a member of this cluster", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}
