package vault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/hashicorp/vault/api"

	"github.com/mayfly-broker/mayfly/issuers"
)

// failure is a call that did not go well. It quotes neither what was sent nor,
// beyond the first line of an error, what came back.
type failure struct {
	path   string
	status int    // of Vault's answer; 0 without one
	text   string // its first error, one line
	sent   bool   // whether any of the request left
	err    error  // without an answer
}

func newFailure(o op, own *request, err error) *failure {
	path, _, _ := strings.Cut(o.path, "?")
	f := &failure{path: plain(path, 200), sent: own.sent.Load()}
	var answer *api.ResponseError
	switch {
	case errors.As(err, &answer):
		f.status = answer.StatusCode
		if len(answer.Errors) > 0 && !answer.RawError {
			f.text = plain(strings.TrimSpace(answer.Errors[0]), 200)
		}
	case errors.Is(err, errRedirect):
		f.status, f.text = http.StatusTemporaryRedirect, errRedirect.Error()
	case errors.Is(err, context.DeadlineExceeded):
		f.err = context.DeadlineExceeded // the library's text quotes the whole URL
	case errors.Is(err, context.Canceled):
		f.err = context.Canceled
	default:
		f.err = errors.New(plain(rootCause(err).Error(), 200))
	}
	return f
}

// rootCause takes off what quotes the URL, which holds a secret's parameters.
func rootCause(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}

// Error implements error.
func (f *failure) Error() string {
	switch {
	case f.status != 0 && f.text != "":
		return fmt.Sprintf("%s: status %d: %s", f.path, f.status, f.text)
	case f.status != 0:
		return fmt.Sprintf("%s: status %d", f.path, f.status)
	}
	return f.path + ": " + f.err.Error()
}

// Unwrap returns the cause where there was no answer.
func (f *failure) Unwrap() error { return f.err }

// notNow are the answers of a server that did nothing and may do it later: sealed
// or not initialised (503), a standby that does not forward (307, 472, 473), behind
// a replica's state (412), or asked too often (429).
var notNow = []int{http.StatusServiceUnavailable, http.StatusTemporaryRedirect, 472, 473, http.StatusPreconditionFailed, http.StatusTooManyRequests}

// nothingDone says that Vault surely did nothing, and another server or another
// time may do better.
func (f *failure) nothingDone() bool {
	return f.status == 0 && !f.sent || slices.Contains(notNow, f.status)
}

// statusOf is the status of Vault's answer, or 0.
func statusOf(err error) int {
	var f *failure
	if errors.As(err, &f) {
		return f.status
	}
	return 0
}

// lookError classifies the failure of a call that changes nothing, or that changes
// nothing that outlives it.
func lookError(what string, err error) *issuers.Error {
	e := changeError(what, err)
	if e.Kind == issuers.Unknown {
		e.Kind = issuers.Unreachable
	}
	return e
}

// changeError classifies the failure of a call that may have changed something.
func changeError(what string, err error) *issuers.Error {
	var mine *issuers.Error
	if errors.As(err, &mine) {
		return mine
	}
	e := &issuers.Error{Kind: issuers.Unknown, Detail: what, Err: err}
	var f *failure
	switch {
	case !errors.As(err, &f):
	case f.nothingDone():
		e.Kind = issuers.Unreachable
		if f.status == http.StatusServiceUnavailable {
			e.Detail = what + ": Vault is sealed, or not ready"
		}
	case f.status == http.StatusForbidden:
		e.Kind, e.Detail = issuers.Refused, what+": Vault refuses the broker's token, or it lacks a right; see the target's check"
	case f.status >= 400 && f.status < 500:
		e.Kind = issuers.Refused
	}
	return e
}

func refused(format string, args ...any) *issuers.Error {
	return &issuers.Error{Kind: issuers.Refused, Detail: fmt.Sprintf(format, args...)}
}

func badScope(err error, format string, args ...any) *issuers.Error {
	return &issuers.Error{Kind: issuers.BadScope, Detail: fmt.Sprintf(format, args...), Err: err}
}

func tooLate() *issuers.Error {
	return &issuers.Error{Kind: issuers.TooLate, Detail: "the mint deadline has passed"}
}

func superseded() *issuers.Error {
	return &issuers.Error{Kind: issuers.Superseded, Detail: "a newer generation of the lease, or a newer leader, has been there"}
}
