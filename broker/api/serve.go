package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
)

// serve takes one request through its route's checks, in the order that costs
// a stranger's request least, and then to the handler or to the leader.
func (s *Server) serve(rt *route, w http.ResponseWriter, r *http.Request, handle http.HandlerFunc) {
	c := callOf(r.Context())
	c.route = rt
	ctx, cancel := context.WithTimeout(r.Context(), rt.patience())
	defer cancel()
	if !rt.stream {
		r = r.WithContext(ctx)
	}
	if err := s.check(c, w, r); err != nil {
		s.fail(w, r, err)
		return
	}
	if c.elsewhere {
		s.forward(w, r)
		return
	}
	c.mayGoOn = rt.place != hereOnly && !c.forwarded
	c.rewind(r)
	handle(w, r)
	if c.elsewhere {
		c.mute = false
		clearAnswer(w.Header())
		s.forward(w, r)
	}
}

// check does all that must hold before a handler runs. It sets c.elsewhere for
// what the leader must answer.
func (s *Server) check(c *call, w http.ResponseWriter, r *http.Request) error {
	if err := s.pace(c, r); err != nil {
		return err
	}
	if err := checkQuery(r.URL); err != nil {
		return err
	}
	if c.route.access == needSession || c.route.access == needKey || c.route.access == needClient || c.route.place != hereOnly {
		broker, err := s.cfg.Engine()
		if err != nil {
			return err
		}
		c.broker = broker
	}
	if err := s.authenticate(c, r); err != nil {
		return err
	}
	if err := readBody(c, w, r); err != nil {
		return err
	}
	if err := idempotency(c, r); err != nil {
		return err
	}
	return s.place(c)
}

// pace limits what one address may ask without a session.
func (s *Server) pace(c *call, r *http.Request) error {
	var limit *perAddress
	access := c.route.access
	if access == needClient && len(r.Header.Values("Authorization")) > 0 {
		access = needSession
	}
	switch access {
	case needKey, needClient:
		limit = s.throttle.logins
		if !c.forwarded && s.throttle.failures.spent(c.address) {
			limit = s.throttle.failures
		}
	case needShares:
		limit = s.throttle.operator
	case needNothing:
		limit = s.throttle.open
	}
	if limit == nil || c.forwarded { // the follower has counted it
		return nil
	}
	if ok, wait := limit.take(c.address); !ok {
		return tooFast(wait)
	}
	return nil
}

// checkQuery refuses queries that two parsers could read in two ways.
func checkQuery(u *url.URL) error {
	if u.RawQuery == "" {
		return nil
	}
	if len(u.RawQuery) > maxQueryBytes {
		return invalid(CodeParameter, "The query is longer than %d bytes.", maxQueryBytes)
	}
	values, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return invalid(CodeParameter, "The query cannot be read.")
	}
	for name, v := range values {
		if len(v) > 1 {
			return invalid(CodeParameter, "The parameter %s stands in the query twice.", shown(name))
		}
	}
	return nil
}

// readBody reads and checks the request's body, and puts it back for whoever
// decodes or forwards it.
func readBody(c *call, w http.ResponseWriter, r *http.Request) error {
	rt := c.route
	if rt.form {
		return readForm(c, w, r)
	}
	body, err := readLimited(w, r, rt.limit())
	if err != nil {
		return err
	}
	switch {
	case len(body) == 0 && rt.body != nil && !rt.optional:
		return invalid(CodeBodyNeeded, "This call needs a JSON body.")
	case len(body) > 0:
		if err := checkMedia(r.Header); err != nil {
			return err
		}
		want := rt.body
		if want == nil {
			want = &shape{members: map[string]*shape{}}
		}
		if err := scan(body, want); err != nil {
			return err
		}
	}
	c.body = body
	return nil
}

func readLimited(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	if r.ContentLength == 0 || r.Body == nil || r.Body == http.NoBody {
		return nil, nil
	}
	tooLarge := refuse(http.StatusRequestEntityTooLarge, fault.Invalid, CodeTooLarge, "The body is larger than the %d bytes that this call may have.", limit)
	if r.ContentLength > limit {
		tooLarge.header.Set("Connection", "close")
		return nil, tooLarge
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	var over *http.MaxBytesError
	if errors.As(err, &over) {
		tooLarge.header.Set("Connection", "close")
		return nil, tooLarge
	}
	if err != nil {
		late := refuse(http.StatusRequestTimeout, fault.Invalid, CodeBodyRead, "The body did not arrive whole and in time.")
		late.header.Set("Connection", "close")
		return nil, late
	}
	setBodyDeadline(w, time.Time{}) // or it would end the call, too
	return body, nil
}

func checkMedia(h http.Header) error {
	media, params, err := mime.ParseMediaType(h.Get("Content-Type"))
	charset := strings.ToLower(params["charset"])
	if err != nil || media != mediaJSON || len(h.Values("Content-Type")) > 1 || charset != "" && charset != "utf-8" || h.Get("Content-Encoding") != "" {
		return refuse(http.StatusUnsupportedMediaType, fault.Invalid, CodeMediaType, "The body must be %s, in UTF-8 and not compressed.", mediaJSON)
	}
	return nil
}

// idempotency reads the Idempotency-Key of what changes something. Its hash
// covers all that decides what the call does.
func idempotency(c *call, r *http.Request) error {
	keys := r.Header.Values("Idempotency-Key")
	if len(keys) == 0 || !c.route.mutates() {
		return nil
	}
	key := keys[0]
	visible := !strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r >= 0x7f })
	if len(keys) > 1 || key == "" || len(key) > maxIdemKey || !visible {
		return invalid(CodeIdemKey, "An Idempotency-Key is 1 to %d visible ASCII characters, given once.", maxIdemKey)
	}
	h := sha256.New()
	for _, part := range []string{r.Method, r.URL.EscapedPath(), r.URL.RawQuery} {
		_, _ = io.WriteString(h, part+"\n")
	}
	_, _ = h.Write(c.body)
	c.caller.Idem = &ledger.Idem{Key: key, Hash: hex.EncodeToString(h.Sum(nil))}
	return nil
}
