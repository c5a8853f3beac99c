package api

import (
	"context"
	"net/http"

	"github.com/mayfly-broker/mayfly/client/wire"
)

// none is the input of operations that take nothing.
type none struct{}

// body is the input of operations whose body is needed.
type body[T any] struct{ Body T }

// byPrincipal selects a principal, the caller where there is none.
type byPrincipal struct {
	Principal string `query:"principal" maxLength:"128" doc:"kind:name; the caller where left out"`
}

type enrolInput struct {
	Name string `path:"name" maxLength:"128" doc:"kind:name"`
	Body *wire.EnrolRequest
}

type removeKeyInput struct {
	Principal  string `query:"principal" maxLength:"128" doc:"kind:name; the caller where left out"`
	Thumbprint string `path:"thumbprint" maxLength:"128" doc:"RFC 7638"`
}

// list makes an empty list of no list, so that clients always get an array.
func list[T any](in []T, err error) ([]T, error) {
	if err == nil && in == nil {
		in = []T{}
	}
	return in, err
}

// value returns what p points to, or the zero value.
func value[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

func (f *surface) addSessions() {
	add(f, route{method: http.MethodPost, path: "/login", id: "login", tag: "sessions", access: needKey, summary: "Open a session bound to the client's key"},
		func(ctx context.Context, c *call, in *body[wire.LoginRequest]) (wire.LoginAnswer, error) {
			c.login.LoginRequest = in.Body
			return c.broker.Login(ctx, c.login)
		})
	addQuiet(f, route{method: http.MethodPost, path: "/logout", id: "logout", tag: "sessions", summary: "End the session"},
		func(ctx context.Context, c *call, _ *none) error { return c.broker.Logout(ctx, c.caller) })
	add(f, route{method: http.MethodGet, path: "/whoami", id: "whoami", tag: "sessions", place: anywhere, summary: "Describe the session"},
		func(ctx context.Context, c *call, _ *none) (wire.Whoami, error) {
			return c.broker.Whoami(ctx, c.caller)
		})
	add(f, route{method: http.MethodGet, path: "/keys", id: "list-keys", tag: "sessions", place: anywhere, summary: "List registered keys"},
		func(ctx context.Context, c *call, in *byPrincipal) ([]wire.Key, error) {
			return list(c.broker.Keys(ctx, c.caller, in.Principal))
		})
	addWaiting(f, route{method: http.MethodPost, path: "/keys", id: "add-key", tag: "sessions", summary: "Register a key"},
		func(k wire.Key) bool { return k.GrantID != "" },
		func(ctx context.Context, c *call, in *body[wire.AddKeyRequest]) (wire.Key, error) {
			return c.broker.AddKey(ctx, c.caller, in.Body)
		})
	addQuiet(f, route{method: http.MethodDelete, path: "/keys/{thumbprint}", id: "remove-key", tag: "sessions", summary: "Remove a key and end its sessions"},
		func(ctx context.Context, c *call, in *removeKeyInput) error {
			return c.broker.RemoveKey(ctx, c.caller, in.Principal, in.Thumbprint)
		})
	add(f, route{method: http.MethodPost, path: "/principals/{name}/enrolment", id: "enrol", tag: "sessions", summary: "Make a one-time enrolment token"},
		func(ctx context.Context, c *call, in *enrolInput) (wire.EnrolAnswer, error) {
			return c.broker.Enrol(ctx, c.caller, in.Name, value(in.Body))
		})
}
