package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strconv"

	"github.com/mayfly-broker/mayfly/client/wire"
)

// Kinds of errors, as problem documents name them. What the broker does not
// classify, or the client does not know, counts as [KindInternal].
const (
	KindInternal         = "internal"
	KindInvalid          = "invalid"
	KindUnauthenticated  = "unauthenticated"
	KindDenied           = "denied"
	KindApprovalRequired = "approval_required"
	KindNotFound         = "not_found"
	KindConflict         = "conflict"
	KindRateLimited      = "rate_limited"
	KindUnavailable      = "unavailable"
	KindUpstream         = "upstream"
	KindIndeterminate    = "indeterminate"
)

// Codes that the client itself gives or acts on.
const (
	CodeUnreachable   = "unreachable"         // no node answered at all
	CodeNotLeader     = "not_leader"          // 421: Location says who is
	CodeUseNonce      = "use_dpop_nonce"      // 401: sign again with the nonce (RFC 9449 §8)
	CodeProofReplayed = "dpop_proof_replayed" // 401: sign again, the proof came twice
	CodeIndeterminate = "indeterminate"       // sent, but no answer came
	CodeNoEvidence    = "no_evidence"         // nothing here to log in with
	CodeConfiguration = "configuration"       // the client's own settings
	CodeBadAnswer     = "bad_answer"          // what came back is not what the API promises
)

// exits is the contract's table of exit codes.
var exits = map[string]int{
	KindInternal:         1,
	KindInvalid:          2,
	KindUnauthenticated:  6,
	KindDenied:           3,
	KindApprovalRequired: 3,
	KindNotFound:         1,
	KindConflict:         1,
	KindRateLimited:      5,
	KindUnavailable:      5,
	KindUpstream:         5,
	KindIndeterminate:    5,
}

// Error is what a call came to when it failed: the broker's problem document,
// or one the client made of a connection that failed. Treat it as immutable.
type Error struct {
	// Problem holds at least Title, Code and Kind. Its text came over the network:
	// escape it before a terminal sees it.
	Problem wire.Problem
	// Node is the address that answered, or was asked last; empty if none was.
	Node string
	// Err is the cause where the client knows one: a dial error, a time-out.
	Err error
}

// Error implements error.
func (e *Error) Error() string {
	s := e.Problem.Code + ": " + e.Problem.Detail
	if e.Problem.Detail == "" {
		s = e.Problem.Code + ": " + e.Problem.Title
	}
	if e.Node != "" {
		s += " (node " + e.Node + ")"
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// ExitCode returns the exit code that the contract gives to the error's kind.
func (e *Error) ExitCode() int {
	if code, ok := exits[e.Problem.Kind]; ok {
		return code
	}
	return 1
}

// Retryable reports whether the same call may succeed on another node or a
// moment later.
func (e *Error) Retryable() bool {
	return e.Problem.Kind == KindUnavailable || e.Problem.Kind == KindIndeterminate
}

// KindOf returns the kind of the first *Error in err's chain, "" if there is none.
func KindOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Problem.Kind
	}
	return ""
}

// newError makes an error of the client's own.
func newError(kind, code, detail string, args ...any) *Error {
	if len(args) > 0 {
		detail = fmt.Sprintf(detail, args...)
	}
	return &Error{Problem: wire.Problem{Type: "about:blank", Title: titles[kind], Detail: detail, Code: code, Kind: kind}}
}

var titles = map[string]string{
	KindInternal:        "Failed",
	KindInvalid:         "Invalid request",
	KindUnauthenticated: "Not authenticated",
	KindDenied:          "Denied",
	KindConflict:        "Conflict",
	KindUnavailable:     "Unavailable",
	KindIndeterminate:   "Outcome unknown",
}

// problemOf reads an answer that is not a success. body is bounded already.
func problemOf(node string, resp *http.Response, body []byte) *Error {
	e := &Error{Node: node}
	kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err == nil && (kind == "application/problem+json" || kind == "application/json") {
		// A body that is not a problem document leaves the zero value, which is
		// then filled from the status.
		_ = json.Unmarshal(body, &e.Problem)
	}
	p := &e.Problem
	p.Status = resp.StatusCode
	if _, known := exits[p.Kind]; !known {
		p.Kind = kindOfStatus(resp.StatusCode)
	}
	if p.Code == "" {
		p.Code = p.Kind
	}
	if p.Title == "" {
		p.Title = http.StatusText(resp.StatusCode)
	}
	if after, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && p.RetryAfter == 0 && after > 0 {
		p.RetryAfter = after
	}
	return e
}

func kindOfStatus(status int) string {
	switch status {
	case http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity, http.StatusRequestEntityTooLarge:
		return KindInvalid
	case http.StatusUnauthorized:
		return KindUnauthenticated
	case http.StatusForbidden:
		return KindDenied
	case http.StatusNotFound:
		return KindNotFound
	case http.StatusConflict:
		return KindConflict
	case http.StatusTooManyRequests:
		return KindRateLimited
	case http.StatusBadGateway:
		return KindUpstream
	case http.StatusServiceUnavailable, http.StatusGatewayTimeout, http.StatusMisdirectedRequest:
		return KindUnavailable
	default:
		return KindInternal
	}
}
