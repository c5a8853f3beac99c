package rabbitmq

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode"

	"github.com/mayfly-broker/mayfly/issuers"
)

// denial is an answer of the server other than the one that was hoped for.
type denial struct {
	status int
	reason string
}

func (d *denial) Error() string { return fmt.Sprintf("the server answers %d: %s", d.status, d.reason) }

// weak says that the login is right and a tag is missing. Nothing but the reason's
// words tells that from a wrong password.
func (d *denial) weak() bool {
	return d.status == http.StatusUnauthorized && (strings.Contains(d.reason, "Not management user") || strings.Contains(d.reason, "Not administrator user"))
}

// said makes an error of an answer. The reason is the server's own, cut short and
// on one line; requests hold no secret that it could repeat but a hash.
func said(r reply) error {
	var body struct {
		Error  string          `json:"error"`
		Reason json.RawMessage `json:"reason"`
	}
	text := http.StatusText(r.status)
	if json.Unmarshal(r.body, &body) == nil && (body.Error != "" || len(body.Reason) > 0) {
		text = body.Error + " " + string(body.Reason)
	}
	text = strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) {
			return ' '
		}
		return c
	}, text)
	if len(text) > 200 {
		text = strings.ToValidUTF8(text[:200], "") + "…"
	}
	return &denial{r.status, strings.TrimSpace(text)}
}

// beforeError classifies a failure of a step that changes nothing.
func beforeError(what string, err error) *issuers.Error {
	var mine *issuers.Error
	if errors.As(err, &mine) {
		return mine
	}
	var d *denial
	e := &issuers.Error{Kind: issuers.Unreachable, Detail: what, Err: err}
	if !errors.As(err, &d) {
		return e
	}
	switch {
	case d.weak():
		e.Kind, e.Detail = issuers.Refused, what+": the broker's own user lacks the tag administrator; see the target's check"
	case d.status == http.StatusUnauthorized:
		e.Kind, e.Detail = issuers.Refused, what+": the server refuses the login of the broker's own user"
	case d.status < 500 && d.status != http.StatusTooManyRequests && d.status != http.StatusRequestTimeout:
		e.Kind = issuers.Refused
	}
	return e
}

// sentError classifies a failure of a step that changes something.
func sentError(what string, err error) *issuers.Error {
	var mine *issuers.Error
	if errors.As(err, &mine) {
		return mine
	}
	var l *lost
	if errors.As(err, &l) && !l.sent {
		return &issuers.Error{Kind: issuers.Unreachable, Detail: what, Err: err}
	}
	if e := beforeError(what, err); e.Kind == issuers.Refused {
		return e
	}
	return &issuers.Error{Kind: issuers.Unknown, Detail: what, Err: err} // a 500 may have acted
}

func refused(format string, args ...any) *issuers.Error {
	return &issuers.Error{Kind: issuers.Refused, Detail: fmt.Sprintf(format, args...)}
}

func tooLate() *issuers.Error {
	return &issuers.Error{Kind: issuers.TooLate, Detail: "the mint deadline has passed"}
}

// pause waits before the n-th retry, from 0: 4 ms, doubled up to 256 ms.
func pause(ctx context.Context, n int) error {
	t := time.NewTimer(4 * time.Millisecond << min(n, 6))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
