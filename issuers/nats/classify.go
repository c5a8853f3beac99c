package nats

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
)

// serverError is what a server said by -ERR, or in an answer of its own.
type serverError struct{ text string }

func (e *serverError) Error() string { return "the server says: " + e.text }

// errNobody: nobody on the server's side listens to a request.
var errNobody = errors.New("no server answers such a request")

// beforeError classifies a failure before anything of a credential was sent:
// nothing was done.
func beforeError(what string, err error) *issuers.Error {
	var mine *issuers.Error
	if errors.As(err, &mine) {
		return mine
	}
	var said *serverError
	if errors.As(err, &said) && !passing(said.text) {
		return &issuers.Error{Kind: issuers.Refused, Detail: what, Err: err}
	}
	return &issuers.Error{Kind: issuers.Unreachable, Detail: what, Err: err}
}

// passing says whether a server may answer otherwise in a moment, by the same
// keys.
func passing(text string) bool {
	for _, s := range []string{"maximum connections", "stale connection", "server shutdown", "authentication timeout", "slow consumer", "account connections"} {
		if strings.Contains(strings.ToLower(text), s) {
			return true
		}
	}
	return false
}

// sentError classifies a failure after a change was sent.
func sentError(what string, err error) *issuers.Error {
	var mine *issuers.Error
	if errors.As(err, &mine) {
		return mine
	}
	return &issuers.Error{Kind: issuers.Unknown, Detail: what, Err: err}
}

func refused(format string, args ...any) *issuers.Error {
	return &issuers.Error{Kind: issuers.Refused, Detail: fmt.Sprintf(format, args...)}
}

func tooLate(what string) *issuers.Error {
	return &issuers.Error{Kind: issuers.TooLate, Detail: what + "; nothing was signed"}
}

// pause waits before the n-th retry, from 0: about 2 ms, doubled up to 128 ms.
func pause(ctx context.Context, n int) error {
	d := 2 * time.Millisecond << min(n, 6)
	t := time.NewTimer(d/2 + rand.N(d))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
