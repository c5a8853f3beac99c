package api

import (
	"context"
	"net/http"
	"time"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// huma does not look into embedded types that are not exported, so the inputs
// repeat their few common fields.

type idInput struct {
	ID string `path:"id" maxLength:"128"`
}

type tasksInput struct {
	Limit     int    `query:"limit" minimum:"1" maximum:"1000" default:"100"`
	After     string `query:"after" maxLength:"128" doc:"Id of the last record already seen"`
	State     string `query:"state" maxLength:"32"`
	Principal string `query:"principal" maxLength:"128"`
}

type endTaskInput struct {
	ID   string `path:"id" maxLength:"128"`
	Wait string `query:"wait" maxLength:"16" doc:"Wait so long for the targets to confirm; at most 60s"`
}

type leasesInput struct {
	Limit     int    `query:"limit" minimum:"1" maximum:"1000" default:"100"`
	After     string `query:"after" maxLength:"128" doc:"Id of the last record already seen"`
	State     string `query:"state" maxLength:"32"`
	Target    string `query:"target" maxLength:"128"`
	Principal string `query:"principal" maxLength:"128"`
	Task      string `query:"task" maxLength:"128"`
}

type renewInput struct {
	ID   string `path:"id" maxLength:"128"`
	Body *wire.RenewRequest
}

type revokeInput struct {
	ID   string `path:"id" maxLength:"128"`
	Body *wire.RevokeRequest
}

func (f *surface) addTasks() {
	add(f, route{method: http.MethodPost, path: "/tasks", id: "start-task", tag: "work", summary: "Open a task"},
		func(ctx context.Context, c *call, in *body[wire.StartTaskRequest]) (wire.Task, error) {
			return c.broker.StartTask(ctx, c.caller, in.Body)
		})
	add(f, route{method: http.MethodGet, path: "/tasks", id: "list-tasks", tag: "work", place: anywhere, summary: "List tasks"},
		func(ctx context.Context, c *call, in *tasksInput) ([]wire.Task, error) {
			return list(c.broker.Tasks(ctx, c.caller, broker.TaskFilter{State: in.State, Principal: in.Principal, Limit: in.Limit, After: in.After}))
		})
	add(f, route{method: http.MethodGet, path: "/tasks/{id}", id: "get-task", tag: "work", place: anywhere, summary: "Show a task"},
		func(ctx context.Context, c *call, in *idInput) (wire.Task, error) {
			return c.broker.Task(ctx, c.caller, in.ID)
		})
	add(f, route{method: http.MethodPost, path: "/tasks/{id}/heartbeat", id: "heartbeat-task", tag: "work", summary: "Keep a task from lapsing"},
		func(ctx context.Context, c *call, in *idInput) (wire.Task, error) {
			return c.broker.HeartbeatTask(ctx, c.caller, in.ID)
		})
	add(f, route{method: http.MethodPost, path: "/tasks/{id}/end", id: "end-task", tag: "work", timeout: longCall, summary: "End a task and withdraw everything issued in it"},
		func(ctx context.Context, c *call, in *endTaskInput) (wire.EndTaskAnswer, error) {
			wait, err := patience(in.Wait)
			if err != nil {
				return wire.EndTaskAnswer{}, err
			}
			return c.broker.EndTask(ctx, c.caller, in.ID, wait)
		})
}

// patience reads how long the caller will wait.
func patience(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 || d > maxWait {
		return 0, invalid(CodeParameter, "wait is a duration from 0s to %s, such as 10s.", maxWait)
	}
	return d, nil
}

func (f *surface) addLeases() {
	addWaiting(f, route{method: http.MethodPost, path: "/requests", id: "request", tag: "work", timeout: longCall, summary: "Ask for a credential"}, accessWaits,
		func(ctx context.Context, c *call, in *body[wire.AccessRequest]) (wire.AccessAnswer, error) {
			return c.broker.Request(ctx, c.caller, in.Body)
		})
	add(f, route{method: http.MethodGet, path: "/leases", id: "list-leases", tag: "work", place: anywhere, summary: "List leases"},
		func(ctx context.Context, c *call, in *leasesInput) ([]wire.Lease, error) {
			return list(c.broker.Leases(ctx, c.caller, broker.LeaseFilter{State: in.State, Target: in.Target, Principal: in.Principal, Task: in.Task, Limit: in.Limit, After: in.After}))
		})
	add(f, route{method: http.MethodGet, path: "/leases/{id}", id: "get-lease", tag: "work", place: anywhere, summary: "Show a lease"},
		func(ctx context.Context, c *call, in *idInput) (wire.Lease, error) {
			return c.broker.Lease(ctx, c.caller, in.ID)
		})
	add(f, route{method: http.MethodPost, path: "/leases/{id}/renew", id: "renew-lease", tag: "work", timeout: longCall, summary: "Extend a lease"},
		func(ctx context.Context, c *call, in *renewInput) (wire.Lease, error) {
			return c.broker.Renew(ctx, c.caller, in.ID, value(in.Body))
		})
	add(f, route{method: http.MethodPost, path: "/leases/{id}/revoke", id: "revoke-lease", tag: "work", timeout: longCall, summary: "End a lease"},
		func(ctx context.Context, c *call, in *revokeInput) (wire.Lease, error) {
			return c.broker.Revoke(ctx, c.caller, in.ID, value(in.Body))
		})
}
