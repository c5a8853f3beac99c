package api

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"time"

	"github.com/mayfly-broker/mayfly/broker"
)

// call is one request on its way through.
type call struct {
	id        string // of the request, in logs and in X-Request-Id
	started   time.Time
	address   string // the client's IP
	forwarded bool   // another node passed it on

	route  *route
	broker Broker
	caller broker.Caller
	login  broker.LoginInput // what was proven, for login only
	scheme string            // DPoP or mTLS, once accepted
	body   []byte
	form   form // of an OAuth call

	// mayGoOn says that the leader may be asked instead; elsewhere that it must.
	mayGoOn, elsewhere bool
	// mute swallows the handler's answer, because the leader's will follow.
	mute bool
	code string // of the problem that was answered
}

type callKey struct{}

func withCall(ctx context.Context, c *call) context.Context {
	return context.WithValue(ctx, callKey{}, c)
}

// callOf returns the request's call; outside of a request an empty one.
func callOf(ctx context.Context) *call {
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		return c
	}
	return &call{}
}

func (c *call) routeName() string {
	if c.route == nil {
		return "none"
	}
	return c.route.path
}

// rewind puts the body that was read and checked back into r.
func (c *call) rewind(r *http.Request) {
	r.ContentLength, r.Body = int64(len(c.body)), http.NoBody
	if len(c.body) > 0 {
		r.Body = io.NopCloser(bytes.NewReader(c.body))
	}
}

// recorder notes what was answered.
type recorder struct {
	http.ResponseWriter
	c      *call
	status int
	bytes  int64
	lost   bool // the client is gone
}

// WriteHeader implements http.ResponseWriter.
func (w *recorder) WriteHeader(status int) {
	if w.c.mute {
		return
	}
	if w.status == 0 || w.status < 200 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements io.Writer.
func (w *recorder) Write(b []byte) (int, error) {
	if w.c.mute {
		return len(b), nil
	}
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(b)
	w.bytes += int64(n)
	w.lost = w.lost || err != nil
	return n, err
}

// Unwrap lets http.ResponseController through.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }
