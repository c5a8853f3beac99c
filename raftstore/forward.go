package raftstore

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"
)

// newLeaderTransport makes the pool of connections to other nodes' handlers.
// HTTP/1.1 with kept-alive connections: twice as fast here as HTTP/2.
func newLeaderTransport(n *network) *http.Transport {
	return &http.Transport{
		DialTLSContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			id := n.nodeAt(addr)
			if id == "" {
				return nil, fmt.Errorf("%w: %s belongs to no member", ErrNoLeader, addr)
			}
			return n.id.dial(ctx, addr, id, protoForward)
		},
		MaxIdleConnsPerHost: 64, MaxConnsPerHost: 256, IdleConnTimeout: time.Minute,
		MaxResponseHeaderBytes: 64 << 10, DisableCompression: true,
	}
}

// LeaderTransport returns an HTTP client's transport to the current leader,
// whoever that is when a request is sent: requests go over the cluster port,
// mutually authenticated, to the leader's [Config].Handler, whatever host their
// URL names. Without a known leader they fail with [ErrNoLeader]. Bounds on
// time are the request's context's.
func (s *Store) LeaderTransport() http.RoundTripper { return leaderRoundTripper{s} }

type leaderRoundTripper struct{ s *Store }

// RoundTrip implements [http.RoundTripper].
func (t leaderRoundTripper) RoundTrip(r *http.Request) (*http.Response, error) {
	_, addr, ok := t.s.Leader()
	if !ok {
		if r.Body != nil {
			_ = r.Body.Close() // a RoundTripper must
		}
		return nil, ErrNoLeader
	}
	out := r.Clone(r.Context())
	out.URL.Scheme, out.URL.Host = "https", addr
	return t.s.net.leader.RoundTrip(out)
}
