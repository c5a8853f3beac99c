package raftstore

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	ctx, cancel := context.WithCancelCause(r.Context())
	out := r.Clone(ctx)
	out.URL.Scheme, out.URL.Host = "https", addr
	watch := t.s.watchLeader(addr, cancel)
	end := func() {
		watch.Stop()
		cancel(nil)
	}
	resp, err := t.s.net.leader.RoundTrip(out)
	if err != nil {
		if errors.Is(context.Cause(ctx), ErrNoLeader) {
			err = fmt.Errorf("%w: %w", ErrNoLeader, err)
		}
		end()
		return nil, err
	}
	resp.Body = &watchedBody{resp.Body, end}
	return resp, nil
}

// PeerTransport is the same to one member, whether or not it leads. To a node that
// is none requests fail.
func (s *Store) PeerTransport(id string) http.RoundTripper { return peerRoundTripper{s, id} }

type peerRoundTripper struct {
	s  *Store
	id string
}

// RoundTrip implements [http.RoundTripper].
func (t peerRoundTripper) RoundTrip(r *http.Request) (*http.Response, error) {
	for _, m := range t.s.members() {
		if string(m.ID) == t.id {
			out := r.Clone(r.Context())
			out.URL.Scheme, out.URL.Host = "https", string(m.Address)
			return t.s.net.leader.RoundTrip(out)
		}
	}
	if r.Body != nil {
		_ = r.Body.Close() // a RoundTripper must
	}
	return nil, fmt.Errorf("%w: %s", errNoMember, t.id)
}

var errNoMember = errors.New("raftstore: no member of the cluster")

// leaderLook is how often a request that waits looks whether the leader it was
// sent to still is one. Most are answered before the first look.
const leaderLook = 100 * time.Millisecond

// watchLeader cancels once addr is the leader's no more: a leader that hangs
// keeps its connections open, and nothing is to be expected of it.
func (s *Store) watchLeader(addr string, cancel context.CancelCauseFunc) *time.Timer {
	var watch *time.Timer
	watch = time.AfterFunc(time.Hour, func() {
		if _, now, ok := s.Leader(); !ok || now != addr {
			cancel(ErrNoLeader)
			return
		}
		watch.Reset(leaderLook)
	})
	watch.Reset(leaderLook)
	return watch
}

// watchedBody ends the watch with the answer.
type watchedBody struct {
	io.ReadCloser
	end func()
}

// Close implements [io.Closer].
func (b *watchedBody) Close() error {
	b.end()
	return b.ReadCloser.Close()
}
