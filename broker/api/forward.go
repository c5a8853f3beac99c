package api

import (
	"errors"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"sync/atomic"

	"github.com/mayfly-broker/mayfly/broker/fault"
)

// What a node that passes a request on says about it. Clients' own headers of
// these names are dropped at the front.
const (
	headerHops    = "Mayfly-Forwarded"
	headerAddress = "Mayfly-Forwarded-Address"
	headerRequest = "Mayfly-Forwarded-Request"
)

var forwardingHeaders = []string{headerHops, headerAddress, headerRequest}

// place decides which node answers. A request travels at most one hop.
func (s *Server) place(c *call) error {
	if c.route.place == atLeader && !s.node.IsLeader() {
		c.elsewhere = true
	}
	if c.elsewhere && c.forwarded {
		return noLeader(nil)
	}
	return nil
}

// askThere answers who is bound to this very TLS connection: it could not be
// proven to the leader, so the client must ask there itself.
func (s *Server) askThere(r *http.Request) error {
	at, err := s.node.LeaderURL(r.Context())
	if err != nil || at == "" {
		return noLeader(err)
	}
	e := refuse(http.StatusMisdirectedRequest, fault.Unavailable, CodeNotLeader, "Only the leader can answer this, and a certificate cannot be forwarded. Ask at Location.")
	e.header.Set("Location", at+r.URL.RequestURI())
	return e
}

func noLeader(cause error) error {
	return fault.Wrap(cause, fault.Unavailable, CodeNoLeader, "There is no leader now, or this node does not know it yet. Retry, here or at another node.")
}

// forward sends the request to the leader and streams its answer back.
func (s *Server) forward(w http.ResponseWriter, r *http.Request) {
	c := callOf(r.Context())
	if c.scheme == schemeMTLS || c.login.X5T != "" {
		s.fail(w, r, s.askThere(r))
		return
	}
	// Whether a connection was had tells "nothing was sent" from "unknown".
	var sent atomic.Bool
	ctx := httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { sent.Store(true) }})
	r = r.WithContext(ctx)
	c.rewind(r)
	proxy := &httputil.ReverseProxy{
		Transport:     s.node.LeaderTransport(),
		FlushInterval: -1,
		ErrorLog:      s.quiet,
		Rewrite: func(p *httputil.ProxyRequest) {
			// Path and Host stay: the proof was made for them. The transport
			// knows where the leader is.
			p.Out.URL.Scheme, p.Out.URL.Host, p.Out.Host = "https", "leader", p.In.Host
			p.Out.URL.RawQuery = p.In.URL.RawQuery
			p.Out.Header.Set(headerHops, "1")
			p.Out.Header.Set(headerAddress, c.address)
			p.Out.Header.Set(headerRequest, c.id)
		},
		ModifyResponse: func(resp *http.Response) error {
			for _, name := range frontHeaders {
				resp.Header.Del(name)
			}
			if resp.StatusCode == http.StatusUnauthorized {
				s.metrics.refused("at_leader")
				_, _ = s.throttle.failures.take(c.address)
			}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			s.fail(w, r, lostLeader(c, err, sent.Load()))
		},
	}
	proxy.ServeHTTP(w, r)
}

// lostLeader says what is known of a request whose answer did not come.
func lostLeader(c *call, err error, sent bool) error {
	var e *fault.Error
	switch {
	case errors.As(err, &e):
		return err
	case sent && c.route.mutates():
		return fault.Wrap(err, fault.Indeterminate, "indeterminate", "The leader was lost while it had the request. Retry with the same Idempotency-Key.")
	default:
		return noLeader(err)
	}
}

// clearAnswer takes back what a muted handler has put into the headers.
func clearAnswer(h http.Header) {
	for _, name := range []string{"Content-Type", "Content-Length", "Retry-After", "Location"} {
		h.Del(name)
	}
}
