package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/secret"
)

const (
	most    = 64 // clients
	jwtRole = "tok/use"
	// far keeps what the load made alive for the run.
	far = "12h"
)

// caps lets one principal hold what a benchmark needs; the defaults are there
// to stop just that.
var caps = map[string]any{"per_principal": 2_000_000, "mints_per_minute": 10_000_000}

// crowd is many principals, each with a key, a task and a session of its own.
type crowd struct {
	names []string
	dpop  []*client.Client
	mtls  []*client.Client
	tasks []string
}

// enrolCrowd makes n principals and enrols a key for each.
func (c *cluster) enrolCrowd(ctx context.Context, n int) (*crowd, error) {
	k := &crowd{names: make([]string, n), dpop: make([]*client.Client, n), mtls: make([]*client.Client, n), tasks: make([]string, n)}
	var members []map[string]string
	var objects []wire.Object
	for i := range n {
		k.names[i] = fmt.Sprintf("workload:load%d", i)
		members = append(members, map[string]string{"name": k.names[i]})
		o, err := object("Principal", k.names[i], map[string]any{})
		if err != nil {
			return nil, err
		}
		objects = append(objects, o)
	}
	group, err := object("Group", "load", map[string]any{"members": members})
	if err != nil {
		return nil, err
	}
	if _, err := c.admin.Apply(ctx, wire.ApplyRequest{Objects: append(objects, group)}); err != nil {
		return nil, err
	}
	return k, each(ctx, n, 8, func(ctx context.Context, i int) error { return c.enrol(ctx, k, i) })
}

func (c *cluster) enrol(ctx context.Context, k *crowd, i int) error {
	token, err := c.admin.EnrolPrincipal(ctx, k.names[i], wire.EnrolRequest{})
	if err != nil {
		return err
	}
	home := c.path(fmt.Sprintf("load%d", i))
	if _, err := client.Enrol(ctx, client.Config{Home: home, Retry: retry}, secret.New(token.Token)); err != nil {
		return err
	}
	if k.dpop[i], err = client.New(client.Config{Home: home, Addresses: c.urls(), Retry: retry}); err != nil {
		return err
	}
	if k.mtls[i], err = client.New(client.Config{Home: home, Addresses: c.urls(), Retry: retry, Binding: client.BindMTLS}); err != nil {
		return err
	}
	t, err := k.dpop[i].StartTask(ctx, wire.StartTaskRequest{Name: "load", Purpose: "benchmark", TTL: far})
	k.tasks[i] = t.ID
	return err
}

// at is a client of the i-th principal that knows one node only. With no
// retries: a refusal is what it is there to see.
func (c *cluster) at(i int, binding string, urls ...string) (*client.Client, error) {
	return client.New(client.Config{Home: c.path(fmt.Sprintf("load%d", i)), Addresses: urls, Binding: binding})
}

func (k *crowd) close() {
	for _, list := range [][]*client.Client{k.dpop, k.mtls} {
		for _, cl := range list {
			if cl != nil {
				cl.Close()
			}
		}
	}
}

// request asks for one credential of a role in the i-th principal's task.
func (k *crowd) request(role string, clients []*client.Client) func(context.Context, int) error {
	return func(ctx context.Context, i int) error {
		a, err := clients[i].Request(ctx, wire.AccessRequest{Role: role, Task: k.tasks[i]})
		if err == nil && len(a.Credential) == 0 {
			err = errors.New("an answer without a credential")
		}
		return err
	}
}

func object(kind, name string, spec any) (wire.Object, error) {
	raw, err := json.Marshal(spec)
	return wire.Object{Kind: kind, Name: name, Spec: raw}, err
}

// addTokens writes a jwt target, whose leases touch the ledger and nothing else.
func (c *cluster) addTokens(ctx context.Context) error {
	target, err := object("Target", "tok", map[string]any{"type": "jwt", "max_ttl": "24h"})
	if err != nil {
		return err
	}
	role, err := object("Role", jwtRole, map[string]any{
		"scope": []any{map[string]any{"type": "jwt", "locations": []string{"https://api.bench"}, "actions": []string{"use"}}},
		"ttl":   map[string]string{"default": far, "max": far}, "caps": caps,
	})
	if err != nil {
		return err
	}
	_, err = c.admin.Apply(ctx, wire.ApplyRequest{Objects: []wire.Object{target, role}})
	return err
}
