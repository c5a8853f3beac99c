package api

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/identity"
	"github.com/mayfly-broker/mayfly/client/wire"
)

const (
	mediaJSON    = "application/json"
	mediaProblem = "application/problem+json"
)

// problem is a problem document on its way out. It satisfies huma's interfaces
// for errors that know their status, headers and media type.
type problem struct {
	wire.Problem
	header http.Header
}

// Error implements error.
func (p *problem) Error() string { return p.Code }

// GetStatus implements huma.StatusError.
func (p *problem) GetStatus() int { return p.Status }

// GetHeaders implements huma.HeadersError.
func (p *problem) GetHeaders() http.Header { return p.header }

// ContentType implements huma.ContentTypeFilter.
func (p *problem) ContentType(string) string { return mediaProblem }

// problemOf is the one place where an error becomes an answer. An internal
// error's text stays inside: the answer has the request id to find it by.
func problemOf(err error, requestID string) *problem {
	e := fault.As(err)
	p := &problem{header: http.Header{}, Problem: wire.Problem{
		Type: "about:blank", Status: e.Kind.Status(), Detail: e.Detail,
		Code: e.StableCode(), Kind: string(e.Kind), DecisionID: e.DecisionID,
	}}
	var r *refusal
	if errors.As(err, &r) {
		p.Status = r.status
		p.header = r.header.Clone()
	}
	if p.Status == http.StatusInternalServerError {
		p.Code, p.Kind = "internal", "internal"
		p.Detail = "The broker failed on its own account. Its log has the cause under request " + requestID + "."
	}
	p.Title = http.StatusText(p.Status)
	if wait := retryAfter(e); wait > 0 {
		p.RetryAfter = int(math.Ceil(wait.Seconds()))
		p.header.Set("Retry-After", strconv.Itoa(p.RetryAfter))
	}
	if p.Status == http.StatusUnauthorized {
		p.header.Set("WWW-Authenticate", challenge(p.Code))
		if nonce, ok := identity.FreshNonce(err); ok {
			p.header.Set("DPoP-Nonce", nonce)
		}
	}
	return p
}

// retryAfter gives a wait where the engine states none but waiting helps by
// itself: elections and catching up take about a second.
func retryAfter(e *fault.Error) time.Duration {
	switch {
	case e.RetryAfter > 0:
		return e.RetryAfter
	case e.Kind == fault.RateLimited, e.Kind == fault.Indeterminate:
		return time.Second
	case e.Kind == fault.Unavailable && (e.Code == CodeNoLeader || e.Code == "stale" || e.Code == CodeOverloaded):
		return time.Second
	}
	return 0
}

// challenge is the WWW-Authenticate of a 401 (RFC 9449 §7.1 and §9).
func challenge(code string) string {
	const algs = `algs="ES256 EdDSA"`
	var word string
	switch code {
	case CodeNoCredentials: // RFC 6750 §3: no error where there were no credentials
		return "DPoP " + algs
	case identity.CodeProofNonce:
		word = identity.CodeProofNonce
	case identity.CodeProofInvalid, identity.CodeProofReplayed, CodeNoProof:
		word = "invalid_dpop_proof"
	default:
		word = "invalid_token"
	}
	return `DPoP error="` + word + `", ` + algs
}

// classify gives kinds to errors that nobody below us classified: a deadline
// of ours that passed, or a client that left.
func classify(err error, mutating bool) error {
	var e *fault.Error
	if err == nil || errors.As(err, &e) {
		return err
	}
	if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
		return err
	}
	if mutating {
		return fault.Wrap(err, fault.Indeterminate, CodeTimeout, "The outcome is not known. Retry with the same Idempotency-Key.")
	}
	return fault.Wrap(err, fault.Unavailable, CodeTimeout, "The answer took too long. Try again.")
}

// fail answers r with err.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	p := s.report(r.Context(), err)
	if rt := callOf(r.Context()).route; rt != nil && rt.form {
		writeOAuth(w, err, p)
		return
	}
	write(w, p)
}

func write(w http.ResponseWriter, p *problem) {
	h := w.Header()
	for k, v := range p.header {
		h[k] = v
	}
	body, jerr := json.Marshal(p.Problem)
	if jerr != nil { // a struct of strings and integers: cannot happen
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	h.Set("Content-Type", mediaProblem)
	h.Set("Content-Length", strconv.Itoa(len(body)+1))
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(body, '\n'))
}

// report counts an error, limits the rate of refused credentials, logs what is
// our own fault, and turns it into its document.
func (s *Server) report(ctx context.Context, err error) *problem {
	c := callOf(ctx)
	err = classify(err, c.route != nil && c.route.mutates())
	if fault.KindOf(err) == fault.Unauthenticated {
		err = s.countRefusal(c, err)
	}
	p := problemOf(err, c.id)
	c.code = p.Code
	if p.Status == http.StatusInternalServerError {
		s.log.ErrorContext(ctx, "request failed inside", "request", c.id, "route", c.routeName(), "error", err)
	}
	return p
}

// countRefusal counts a refused credential. An address that presents too many
// is answered 429, so that guessing is slow; whoever holds a good credential
// behind the same address does not come here.
func (s *Server) countRefusal(c *call, err error) error {
	code := fault.As(err).StableCode()
	s.metrics.refused(code)
	if code == identity.CodeProofNonce || code == CodeNoCredentials || c.forwarded {
		return err
	}
	if ok, wait := s.throttle.failures.take(c.address); !ok {
		return tooFast(wait)
	}
	return err
}

func tooFast(wait time.Duration) error {
	e := fault.New(fault.RateLimited, CodeRateLimited, "Too many requests from this address. Wait as Retry-After says.")
	e.RetryAfter = wait
	return e
}

// fromHuma turns what huma itself refuses (a parameter's or body's shape) into
// our problem document. Values are never repeated: they may be secrets.
func fromHuma(ctx huma.Context, _ string, v any) (any, error) {
	m, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	callOf(ctx.Context()).code = CodeRequest
	status := humaStatus(m.Status)
	p := wire.Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Code: CodeRequest, Kind: string(fault.Invalid)}
	if status == http.StatusInternalServerError {
		p.Code, p.Kind, p.Detail = "internal", "internal", "The broker failed on its own account."
		return p, nil
	}
	var parts []string
	for _, d := range m.Errors {
		if len(parts) == 5 {
			parts = append(parts, "…")
			break
		}
		parts = append(parts, clip(d.Location)+": "+d.Message)
	}
	p.Detail = "The request was refused. " + strings.Join(parts, "; ") + "."
	if len(parts) == 0 {
		p.Detail = "The request was refused: " + m.Detail + "."
	}
	return p, nil
}

// humaStatus maps huma's own refusals onto the contract's table, where what is
// wrong with a request is a 400.
func humaStatus(status int) int {
	switch status {
	case http.StatusUnprocessableEntity, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType:
		return http.StatusBadRequest
	}
	return status
}

func clip(s string) string {
	if len(s) > shownName {
		return s[:shownName] + "…"
	}
	return s
}

// humaContext has a name of its own, so that it can be embedded beside its
// method Context.
type humaContext huma.Context

// tableContext writes [humaStatus] where huma would write its own.
type tableContext struct{ humaContext }

// SetStatus implements huma.Context.
func (t tableContext) SetStatus(status int) { t.humaContext.SetStatus(humaStatus(status)) }

// Unwrap lets humago find the request.
func (t tableContext) Unwrap() huma.Context { return t.humaContext }
