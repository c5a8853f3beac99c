package api

import (
	"context"
	"net/http"

	"github.com/mayfly-broker/mayfly/client/wire"
)

type kindInput struct {
	Kind string `path:"kind" maxLength:"64"`
}

type objectInput struct {
	Kind string `path:"kind" maxLength:"64"`
	Name string `path:"name" maxLength:"256" doc:"May hold slashes and colons"`
}

type nameInput struct {
	Name string `path:"name" maxLength:"128"`
}

func (f *surface) addConfiguration() {
	add(f, route{method: http.MethodGet, path: "/objects/{kind}", id: "list-objects", tag: "configuration", place: anywhere, summary: "List the objects of a kind"},
		func(ctx context.Context, c *call, in *kindInput) ([]wire.Object, error) {
			return list(c.broker.Objects(ctx, c.caller, in.Kind))
		})
	add(f, route{method: http.MethodGet, path: "/objects/{kind}/{name}", rest: true, id: "get-object", tag: "configuration", place: anywhere, summary: "Get one object"},
		func(ctx context.Context, c *call, in *objectInput) (wire.Object, error) {
			return c.broker.Object(ctx, c.caller, in.Kind, in.Name)
		})
	addWaiting(f, route{method: http.MethodPost, path: "/objects", id: "apply", tag: "configuration", maxBody: largeBody, summary: "Write objects, all or none"},
		func(a wire.ApplyAnswer) bool { return a.GrantID != "" },
		func(ctx context.Context, c *call, in *body[wire.ApplyRequest]) (wire.ApplyAnswer, error) {
			return c.broker.Apply(ctx, c.caller, in.Body)
		})
	add(f, route{method: http.MethodPost, path: "/targets/{name}/check", id: "check-target", tag: "configuration", timeout: longCall, summary: "Check the broker's rights on a target"},
		func(ctx context.Context, c *call, in *nameInput) (wire.TargetReport, error) {
			return c.broker.CheckTarget(ctx, c.caller, in.Name)
		})
	add(f, route{method: http.MethodPost, path: "/target-preview", id: "preview-target", tag: "configuration", timeout: longCall, maxBody: largeBody, summary: "Check a target that is not written yet"},
		func(ctx context.Context, c *call, in *body[wire.TargetPreview]) (wire.TargetReport, error) {
			return c.broker.PreviewTarget(ctx, c.caller, in.Body)
		})
}
