package api

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path"
	"runtime/debug"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/mayfly-broker/mayfly/broker/api/console"
	"github.com/mayfly-broker/mayfly/broker/fault"
)

// frontHeaders are set by this node on every answer; the leader's own are
// dropped from what is passed back.
var frontHeaders = []string{"X-Request-Id", "DPoP-Nonce", "X-Content-Type-Options", "Cache-Control", "Strict-Transport-Security",
	"Content-Security-Policy", "Referrer-Policy", "Cross-Origin-Resource-Policy", "Cross-Origin-Opener-Policy", "Permissions-Policy", "X-Frame-Options", "Date", "Alt-Svc"}

// front is what every request meets first.
func (s *Server) front(next http.Handler, forwarded bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := &call{id: rand.Text(), started: s.clock(), address: clientIP(r), forwarded: forwarded}
		rec := &recorder{ResponseWriter: w, c: c}
		r = r.WithContext(withCall(r.Context(), c))
		s.metrics.inFlight.Inc()
		full := s.inFlight.Add(1) > s.cfg.Limits.InFlight
		defer s.finish(r.Context(), rec, r.Method)
		s.standardHeaders(rec.Header(), c)
		if r.ContentLength != 0 {
			setBodyDeadline(rec, time.Now().Add(s.cfg.Limits.BodyWait))
		}
		err := s.admit(c, r)
		if err == nil && full {
			err = fault.New(fault.Unavailable, CodeOverloaded, "This node serves as many requests as it can. Retry, or ask another node.")
		}
		if err != nil {
			s.fail(rec, r, err)
			return
		}
		next.ServeHTTP(rec, r)
	})
}

// setBodyDeadline bounds the reading of a body, also the reading that net/http
// does by itself after a refusal. It is lifted when the body is there.
func setBodyDeadline(w http.ResponseWriter, at time.Time) {
	// A writer without deadlines (a test's) is no reason to refuse.
	_ = http.NewResponseController(w).SetReadDeadline(at)
}

func (s *Server) standardHeaders(h http.Header, c *call) {
	h.Set("X-Request-Id", c.id)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	h.Set("Strict-Transport-Security", "max-age=31536000")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	if c.forwarded {
		return // the node that the client talks to has the nonces
	}
	if broker, err := s.cfg.Engine(); err == nil {
		h.Set("DPoP-Nonce", broker.Verifier().Nonce(c.started))
	}
}

// finish accounts for a request, whatever became of it.
func (s *Server) finish(ctx context.Context, w *recorder, method string) {
	s.inFlight.Add(-1)
	s.metrics.inFlight.Dec()
	c := w.c
	broken := recover()
	if broken != nil && broken != http.ErrAbortHandler && !w.lost {
		s.log.ErrorContext(ctx, "request handler panicked", "request", c.id, "route", c.routeName(), "stack", string(debug.Stack()))
		if w.status == 0 {
			c.mute = false
			r := (&http.Request{Method: method}).WithContext(ctx)
			s.fail(w, r, fault.New(fault.Internal, "", ""))
			broken = nil
		}
	}
	s.account(ctx, w, method)
	if broken != nil {
		panic(http.ErrAbortHandler) // the answer is cut short: the client must notice
	}
}

// account writes the access log, the metrics and the span. None of them sees
// the path as it was sent, the query, a header or a body.
func (s *Server) account(ctx context.Context, w *recorder, method string) {
	c := w.c
	took := s.clock().Sub(c.started)
	s.metrics.observe(c.routeName(), method, w.status, took)
	span := trace.SpanFromContext(ctx)
	span.SetName(knownMethod(method) + " " + c.routeName())
	span.SetAttributes(attribute.String("http.route", c.routeName()), attribute.String("mayfly.code", c.code))
	s.log.LogAttrs(ctx, slog.LevelInfo, "request",
		slog.String("request", c.id), slog.String("method", knownMethod(method)), slog.String("route", c.routeName()),
		slog.Int("status", w.status), slog.String("code", c.code), slog.Int64("bytes", w.bytes), slog.Duration("took", took),
		slog.String("address", c.address), slog.String("principal", c.caller.Session.Principal), slog.Bool("forwarded", c.forwarded))
}

// admit refuses what no route should see.
func (s *Server) admit(c *call, r *http.Request) error {
	count := 0
	for _, v := range r.Header {
		count += len(v)
	}
	if count > maxHeaders {
		return refuse(http.StatusRequestHeaderFieldsTooLarge, fault.Invalid, CodeHeaders, "The request has %d headers; at most %d are allowed.", count, maxHeaders)
	}
	if err := s.origin(r); err != nil {
		return err
	}
	if err := checkPath(r); err != nil {
		return err
	}
	if c.forwarded {
		return readForwarding(c, r.Header)
	}
	for _, name := range forwardingHeaders {
		r.Header.Del(name)
	}
	return nil
}

// checkPath refuses paths that the mux would redirect: a proof is for one URL.
func checkPath(r *http.Request) error {
	p := r.URL.EscapedPath()
	switch {
	case r.URL.IsAbs() || r.URL.Opaque != "" || !strings.HasPrefix(p, "/"):
		return invalid(CodeRequest, "The request line must hold a path.")
	case len(p) > maxPathBytes:
		return refuse(http.StatusRequestURITooLong, fault.Invalid, CodeRequest, "The path is longer than %d bytes.", maxPathBytes)
	case p != "/" && path.Clean(p) != strings.TrimSuffix(p, "/"):
		return fault.New(fault.NotFound, CodeNoRoute, "The path has empty or dot segments.")
	}
	return nil
}

// readForwarding takes over what the other node says. The address is for the
// record and for policy; the proof is checked here again (HAZARDS 4).
func readForwarding(c *call, h http.Header) error {
	if h.Get(headerHops) != "1" || len(h.Values(headerHops)) != 1 {
		return invalid(CodeHops, "A request is passed on once, by the node that the client asked.")
	}
	ip, err := netip.ParseAddr(h.Get(headerAddress))
	if err != nil {
		return invalid(CodeHops, "The node that passed the request on did not say from where it came.")
	}
	c.address = ip.String()
	if id := h.Get(headerRequest); len(id) == 26 && strings.Trim(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") == "" {
		c.id = id
	}
	return nil
}

// origin refuses requests that a browser was made to send from elsewhere, and
// names that were bound to this node's address (DNS rebinding).
func (s *Server) origin(r *http.Request) error {
	if !s.hosts[normalHost(r.Host)] {
		return fault.New(fault.Denied, CodeForeignHost, "The Host header names another server than this one.")
	}
	if r.Header.Get("Sec-Fetch-Site") == "cross-site" && !console.Arrived(r) {
		return fault.New(fault.Denied, CodeForeignOrigin, "Requests from other sites are refused.")
	}
	for _, o := range r.Header.Values("Origin") {
		host, ok := strings.CutPrefix(strings.ToLower(o), "https://")
		if !ok || !s.hosts[normalHost(host)] {
			return fault.New(fault.Denied, CodeForeignOrigin, "Requests from other origins are refused.")
		}
	}
	return nil
}

// normalHost is a host in lower case without the default port.
func normalHost(h string) string {
	return strings.TrimSuffix(strings.ToLower(h), ":443")
}

func clientIP(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}
