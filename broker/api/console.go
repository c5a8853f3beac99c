package api

import (
	"net"
	"net/http"
	"time"

	"github.com/mayfly-broker/mayfly/broker/api/console"
)

// maxConsoleForm is what the console's largest form may hold, a policy's draft
// with its cases.
const maxConsoleForm = 512 << 10

// addConsole mounts the pages for people. They take a cookie, and nothing else
// here does: what the cookie opens, the API's own routes refuse (law 7).
func (f *surface) addConsole() error {
	s := f.server
	pages, err := console.New(console.Config{
		Engine: s.consoleEngine, Node: s.node, ExternalURLs: s.cfg.ExternalURLs, Leader: s.consoleAtLeader, Clock: s.clock, Logger: s.log,
	})
	if err != nil {
		return err
	}
	for _, pattern := range pages.Patterns() {
		f.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { s.serveConsole(pages, w, r) })
	}
	return nil
}

// consoleEngine returns the engine as the console needs it.
func (s *Server) consoleEngine() (console.Engine, error) { return s.cfg.Engine() }

// serveConsole accounts for a page like for any other call, and slows down who
// guesses tokens in its forms.
func (s *Server) serveConsole(pages *console.Console, w http.ResponseWriter, r *http.Request) {
	c := callOf(r.Context())
	c.route = &route{method: r.Method, path: "/console", access: needNothing, place: anywhere, stream: true}
	if err := s.pace(c, r); err != nil {
		s.fail(w, r, err)
		return
	}
	if r.Method == http.MethodPost && !c.forwarded && s.throttle.failures.spent(c.address) {
		s.fail(w, r, tooFast(time.Second))
		return
	}
	if c.forwarded {
		r.RemoteAddr = net.JoinHostPort(c.address, "0") // the browser's, not the other node's
	}
	pages.ServeHTTP(w, r)
	if rec, ok := w.(*recorder); ok && rec.status == http.StatusUnauthorized && !c.forwarded && !c.elsewhere {
		s.metrics.refused("console")
		_, _ = s.throttle.failures.take(c.address)
	}
}

// consoleAtLeader passes a page's request on to the leader, where there is
// another node that leads.
func (s *Server) consoleAtLeader(w http.ResponseWriter, r *http.Request) bool {
	c := callOf(r.Context())
	if c.forwarded || s.node.IsLeader() {
		return false
	}
	if r.Method == http.MethodGet {
		// A cookie that only the leader may know. Guesses cost.
		if s.throttle.failures.spent(c.address) {
			return false
		}
		_, _ = s.throttle.failures.take(c.address)
	}
	body, err := readLimited(w, r, maxConsoleForm)
	if err != nil {
		s.fail(w, r, err)
		return true
	}
	c.body, c.elsewhere = body, true
	s.forward(w, r)
	return true
}
