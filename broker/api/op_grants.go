package api

import (
	"context"
	"net/http"
	"reflect"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/client/wire"
)

type grantsInput struct {
	Limit     int    `query:"limit" minimum:"1" maximum:"1000" default:"100"`
	After     string `query:"after" maxLength:"128" doc:"Id of the last record already seen"`
	State     string `query:"state" maxLength:"32"`
	Principal string `query:"principal" maxLength:"128"`
	Mine      bool   `query:"mine" doc:"Only what the caller asked for"`
	Pending   bool   `query:"pending" doc:"Only what waits for somebody"`
	Overdue   bool   `query:"overdue" doc:"Only emergencies whose review is late"`
}

type grantInput struct {
	ID      string `path:"id" maxLength:"128"`
	Wait    string `query:"wait" maxLength:"16" doc:"Wait so long for another version; at most 60s"`
	Version string `query:"version" maxLength:"20" pattern:"^[0-9]*$" doc:"The version that the caller knows"`
}

type grantBody[T any] struct {
	ID   string `path:"id" maxLength:"128"`
	Body T
}

type grantOption[T any] struct {
	ID   string `path:"id" maxLength:"128"`
	Body *T
}

// keyDocumentRequest asks what a new key to approve with must sign.
type keyDocumentRequest struct {
	Principal string          `json:"principal,omitempty"`
	Approve   wire.ApproveKey `json:"approve"`
}

// outcomeOf is an answer with its own status: 202 for what waits.
type outcomeOf[O any] struct {
	Status int
	Body   O
}

// addWaiting registers an operation whose outcome may have to wait for people.
func addWaiting[I, O any](f *surface, rt route, waits func(O) bool, do func(ctx context.Context, c *call, in *I) (O, error)) {
	op := f.operation(&rt, reflect.TypeFor[I]())
	op.DefaultStatus = http.StatusOK
	huma.Register(f.api, op, func(ctx context.Context, in *I) (*outcomeOf[O], error) {
		out, err := do(ctx, callOf(ctx), in)
		if err != nil {
			return nil, f.server.outcome(ctx, err)
		}
		status := http.StatusOK
		if waits(out) {
			status = http.StatusAccepted
		}
		return &outcomeOf[O]{status, out}, nil
	})
}

func accessWaits(a wire.AccessAnswer) bool { return a.Status == "waiting" }

func (f *surface) addGrants() {
	add(f, route{method: http.MethodGet, path: "/grants", id: "list-grants", tag: "grants", place: anywhere, summary: "List grants"},
		func(ctx context.Context, c *call, in *grantsInput) ([]wire.Grant, error) {
			return list(c.broker.Grants(ctx, c.caller, broker.GrantFilter{Mine: in.Mine, Pending: in.Pending, Overdue: in.Overdue, State: in.State,
				Principal: in.Principal, Limit: in.Limit, After: in.After}))
		})
	add(f, route{method: http.MethodGet, path: "/grants/{id}", id: "get-grant", tag: "grants", place: anywhere, timeout: longCall, summary: "Show a grant, or wait for it to change"},
		func(ctx context.Context, c *call, in *grantInput) (wire.Grant, error) {
			wait, err := patience(in.Wait)
			if err != nil {
				return wire.Grant{}, err
			}
			version, err := strconv.ParseUint("0"+in.Version, 10, 64)
			if err != nil {
				return wire.Grant{}, invalid(CodeParameter, "version is a number.")
			}
			return c.broker.AwaitGrant(ctx, c.caller, in.ID, version, wait)
		})
	add(f, route{method: http.MethodGet, path: "/grants/{id}/previous", id: "previous-access", tag: "grants", place: anywhere, summary: "Say what a grant's requester had before"},
		func(ctx context.Context, c *call, in *idInput) (wire.PreviousAccess, error) {
			return c.broker.PreviousAccess(ctx, c.caller, in.ID)
		})
	add(f, route{method: http.MethodPost, path: "/grants/{id}/approve", id: "approve-grant", tag: "grants", timeout: longCall, summary: "Co-sign a grant"},
		func(ctx context.Context, c *call, in *grantBody[wire.ApproveRequest]) (wire.Grant, error) {
			return c.broker.ApproveGrant(ctx, c.caller, in.ID, in.Body)
		})
	for _, end := range []struct {
		verb, summary string
		do            func(Broker, context.Context, broker.Caller, string, wire.EndGrantRequest) (wire.Grant, error)
	}{
		{"deny", "Say no to a grant", Broker.DenyGrant},
		{"cancel", "Take a request back", Broker.CancelGrant},
		{"revoke", "Take a grant back, and what was issued on it", Broker.RevokeGrant},
	} {
		add(f, route{method: http.MethodPost, path: "/grants/{id}/" + end.verb, id: end.verb + "-grant", tag: "grants", summary: end.summary},
			func(ctx context.Context, c *call, in *grantOption[wire.EndGrantRequest]) (wire.Grant, error) {
				return end.do(c.broker, ctx, c.caller, in.ID, value(in.Body))
			})
	}
	addWaiting(f, route{method: http.MethodPost, path: "/grants/{id}/collect", id: "collect-grant", tag: "grants", timeout: longCall, summary: "Pick up what was approved"}, accessWaits,
		func(ctx context.Context, c *call, in *grantOption[wire.CollectRequest]) (wire.AccessAnswer, error) {
			return c.broker.CollectGrant(ctx, c.caller, in.ID, value(in.Body))
		})
	add(f, route{method: http.MethodPost, path: "/grants/{id}/review", id: "review-grant", tag: "grants", summary: "Review an emergency"},
		func(ctx context.Context, c *call, in *grantBody[wire.ReviewRequest]) (wire.Grant, error) {
			return c.broker.ReviewGrant(ctx, c.caller, in.ID, in.Body)
		})
	add(f, route{method: http.MethodPost, path: "/keys/document", id: "key-document", tag: "sessions", summary: "What a new key to approve with must sign"},
		func(ctx context.Context, c *call, in *body[keyDocumentRequest]) (wire.KeyDocument, error) {
			return c.broker.KeyDocument(ctx, c.caller, in.Body.Principal, in.Body.Approve)
		})
}
