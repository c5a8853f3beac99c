package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
)

// failure is a call that did not go well: the server's refusal where status is
// set, else an error on the way.
type failure struct {
	what       call
	sent       bool // something reached the connection
	status     int
	reason     string // of a Status: NotFound, AlreadyExists, Conflict …
	kind       string // of the object that the refusal is about: namespaces, serviceaccounts …
	message    string
	retryAfter time.Duration
	err        error
}

// Error implements error. It holds no body and no header that was sent.
func (f *failure) Error() string {
	out := f.what.method + " " + f.what.path
	switch {
	case f.status != 0 && f.message != "":
		return fmt.Sprintf("%s: %d %s: %s", out, f.status, f.reason, f.message)
	case f.status != 0:
		return fmt.Sprintf("%s: the answer is %d %s", out, f.status, http.StatusText(f.status))
	}
	return fmt.Sprintf("%s: %v", out, f.err)
}

// Unwrap returns the cause.
func (f *failure) Unwrap() error { return f.err }

// said reports whether the server itself answered, and how.
func said(err error) (f *failure, status int) {
	if errors.As(err, &f) {
		return f, f.status
	}
	return nil, 0
}

func isStatus(err error, status int) bool {
	_, got := said(err)
	return got == status
}

// lookError classifies a call that changes nothing.
func lookError(what string, err error) *issuers.Error { return classify(what, err, false) }

// sentError classifies a call that makes, changes or deletes something.
func sentError(what string, err error) *issuers.Error { return classify(what, err, true) }

func classify(what string, err error, changes bool) *issuers.Error {
	var mine *issuers.Error
	if errors.As(err, &mine) {
		return mine
	}
	e := &issuers.Error{Kind: issuers.Unreachable, Detail: what, Err: err}
	f, status := said(err)
	switch {
	case f == nil:
		return e
	case status == 0:
		if f.sent && changes {
			e.Kind = issuers.Unknown
		}
	case status == http.StatusUnauthorized:
		e.Kind, e.Detail = issuers.Refused, "the API server does not accept the broker's own credential"
	case status == http.StatusForbidden:
		e.Kind, e.Detail = issuers.Refused, what+": the broker lacks a right; see the target's check"
	case status == http.StatusNotFound && missing(f):
		e.Kind, e.Detail, e.Err = issuers.BadScope, f.message, nil
	case status == http.StatusTooManyRequests:
		// nothing was done, and there was no time left to wait
	case status >= 500:
		if changes { // an etcd that timed out may have acted
			e.Kind = issuers.Unknown
		}
	default:
		e.Kind = issuers.Refused
	}
	return e
}

// missing: the scope names what the cluster does not have. A path that is not
// there at all (an older API) is something else.
func missing(f *failure) bool {
	return f.reason == "NotFound" && (f.kind == "namespaces" || f.kind == serviceAccounts.plural || f.kind == clusterRoles.plural) && strings.Contains(f.message, "not found")
}

func refused(format string, args ...any) *issuers.Error {
	return &issuers.Error{Kind: issuers.Refused, Detail: fmt.Sprintf(format, args...)}
}

func tooLate() *issuers.Error {
	return &issuers.Error{Kind: issuers.TooLate, Detail: "the mint deadline has passed"}
}

func foreign(at ref) *issuers.Error {
	return &issuers.Error{Kind: issuers.Foreign, Detail: at.String() + " exists without the broker's mark of this lease; it is left alone"}
}

// longestPause is the n of the longest pause.
const longestPause = 6

// pause waits before the n-th retry, from 0: 5 ms, doubled up to 320 ms.
func pause(ctx context.Context, n int) error {
	t := time.NewTimer(5 * time.Millisecond << min(n, longestPause))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
