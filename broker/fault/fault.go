// Package fault is the broker's one error type and the one table that says what
// each kind of error means to the outside: an HTTP status and an exit code.
//
// Every room of the broker returns *fault.Error for what a caller can act on.
// Anything else that reaches the API is an internal error, and its text stays
// inside. The package must know nothing of any other room.
package fault

import (
	"errors"
	"fmt"
	"net/http"
	"time"
)

// Kind classifies an error by what the caller can do about it. The zero value
// is [Internal]: what nobody classified is our own fault.
type Kind string

// The kinds. The comment says what the caller can do.
const (
	Internal         Kind = ""                  // report it
	Invalid          Kind = "invalid"           // correct the request
	Unauthenticated  Kind = "unauthenticated"   // log in again
	Denied           Kind = "denied"            // ask for less, or have the policy changed
	ApprovalRequired Kind = "approval_required" // wait for approvers
	NotFound         Kind = "not_found"         // name something that exists
	Conflict         Kind = "conflict"          // read again, then retry
	RateLimited      Kind = "rate_limited"      // wait RetryAfter
	Unavailable      Kind = "unavailable"       // retry on another node
	Upstream         Kind = "upstream"          // the target failed; retry later
	Indeterminate    Kind = "indeterminate"     // outcome unknown; retry with the same idempotency key
)

// Exit codes of the CLI (CONTRACT, "Exit codes").
const (
	ExitDone            = 0
	ExitFailed          = 1
	ExitUsage           = 2
	ExitDenied          = 3
	ExitWaiting         = 4
	ExitUnavailable     = 5
	ExitUnauthenticated = 6
)

// outcome is what a kind means outside the process.
type outcome struct{ status, exit int }

var outcomes = map[Kind]outcome{
	Internal:         {http.StatusInternalServerError, ExitFailed},
	Invalid:          {http.StatusBadRequest, ExitUsage},
	Unauthenticated:  {http.StatusUnauthorized, ExitUnauthenticated},
	Denied:           {http.StatusForbidden, ExitDenied},
	ApprovalRequired: {http.StatusForbidden, ExitDenied},
	NotFound:         {http.StatusNotFound, ExitFailed},
	Conflict:         {http.StatusConflict, ExitFailed},
	RateLimited:      {http.StatusTooManyRequests, ExitUnavailable},
	Unavailable:      {http.StatusServiceUnavailable, ExitUnavailable},
	Upstream:         {http.StatusBadGateway, ExitUnavailable},
	Indeterminate:    {http.StatusServiceUnavailable, ExitUnavailable},
}

// Status returns the HTTP status for k; an unknown kind is a 500.
func (k Kind) Status() int {
	if o, ok := outcomes[k]; ok {
		return o.status
	}
	return http.StatusInternalServerError
}

// Exit returns the CLI's exit code for k.
func (k Kind) Exit() int {
	if o, ok := outcomes[k]; ok {
		return o.exit
	}
	return ExitFailed
}

// Error is an error that a caller can act on. Treat it as immutable.
type Error struct {
	Kind Kind
	// Code is stable and machine-readable, finer than Kind: "scope_exceeds_role",
	// "sealed", "no_leader". Empty means string(Kind).
	Code string
	// Detail is one or two sentences for a person: what was wrong, what is
	// allowed, what to do next. It never holds a secret.
	Detail string
	// DecisionID names the recorded decision, where policy decided.
	DecisionID string
	// RetryAfter says when trying again may help; 0 means not stated.
	RetryAfter time.Duration
	// Err is the cause, for logs only: it is never sent to a caller.
	Err error
}

// New returns an Error of kind k. detail is formatted as by [fmt.Sprintf].
func New(k Kind, code, detail string, args ...any) *Error {
	if len(args) > 0 {
		detail = fmt.Sprintf(detail, args...)
	}
	return &Error{Kind: k, Code: code, Detail: detail}
}

// Wrap is New with a cause.
func Wrap(err error, k Kind, code, detail string, args ...any) *Error {
	e := New(k, code, detail, args...)
	e.Err = err
	return e
}

// Error implements error, for logs: it includes the cause.
func (e *Error) Error() string {
	s := e.StableCode() + ": " + e.Detail
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// StableCode returns Code, or the kind where Code is empty.
func (e *Error) StableCode() string {
	switch {
	case e.Code != "":
		return e.Code
	case e.Kind == Internal:
		return "internal"
	default:
		return string(e.Kind)
	}
}

// Is reports whether target is an *Error of the same kind and, where target
// has a code, the same code: errors.Is(err, &fault.Error{Kind: fault.Denied}).
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Kind == e.Kind && (t.Code == "" || t.Code == e.StableCode())
}

// KindOf returns the kind of the first *Error in err's chain; Internal if none.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}

// As returns the first *Error in err's chain. An error nobody classified comes
// back as Internal, with its text in Err only.
func As(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return &Error{Kind: Internal, Detail: "The broker failed on its own account; the cause is in its log.", Err: err}
}
