package clienttest

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/scope"
)

type session struct {
	Type, ID, Principal, Method string
	ExpiresAt                   time.Time
	key                         string // jkt or x5t#S256
}

// state is what the cluster remembers.
type state struct {
	sessions   map[string]session // by token
	keys       map[string]string  // principal by thumbprint
	evidence   map[string]string  // principal by "method token"
	enrolments map[string]string  // principal by token
	spent      map[string]string  // thumbprint by token
	tasks      []*wire.Task
	leases     []*wire.Lease
	objects    map[string]wire.Object
	answers    map[string]wire.AccessAnswer // by principal and idempotency key
	grants     []*grant
	approvers  []wire.Key
}

func newState() *state {
	return &state{sessions: map[string]session{}, keys: map[string]string{}, evidence: map[string]string{}, enrolments: map[string]string{},
		spent: map[string]string{}, objects: map[string]wire.Object{}, answers: map[string]wire.AccessAnswer{}}
}

// work is the cluster's inside. The lock is held.
func (c *Cluster) work(r *http.Request, k *Call) (int, any) {
	parts := strings.Split(strings.TrimPrefix(r.URL.EscapedPath(), base+"/"), "/")
	for i := range parts {
		if p, err := url.PathUnescape(parts[i]); err == nil {
			parts[i] = p
		}
	}
	switch k.Method + " " + parts[0] {
	case "POST logout":
		for token, s := range c.state.sessions {
			if s.Principal == k.Principal {
				delete(c.state.sessions, token)
			}
		}
		return 204, nil
	case "GET whoami":
		return 200, wire.Whoami{Principal: k.Principal, Binding: "dpop", Method: "key", AttestedKey: true, Cluster: "test", ExpiresAt: time.Now().Add(c.SessionTTL)}
	case "POST tasks":
		return c.tasks(parts, k)
	case "POST requests":
		return c.request(k)
	case "GET leases", "POST leases":
		return c.lease(parts, k)
	case "GET grants", "POST grants":
		return c.grants(r, parts, k)
	case "GET keys", "POST keys":
		return c.approvalKeys(parts, k)
	case "POST objects":
		return c.apply(k)
	case "GET objects":
		return c.object(parts)
	case "GET sys":
		return 200, wire.Status{Node: "n1", Initialised: true, Role: "leader", Leader: "n1", Fresh: true, Version: "test"}
	default:
		return 404, problem(404, "not_found", "no_such_path", "There is nothing here.")
	}
}

func (c *Cluster) task(idOrName string) *wire.Task {
	for _, t := range c.state.tasks {
		if t.ID == idOrName || t.Name == idOrName && t.State == "open" {
			return t
		}
	}
	return nil
}

func (c *Cluster) tasks(parts []string, k *Call) (int, any) {
	now := time.Now().UTC()
	if len(parts) == 1 {
		var in wire.StartTaskRequest
		if json.Unmarshal(k.Body, &in) != nil || in.Name == "" || in.Purpose == "" {
			return 400, problem(400, "invalid", "purpose_missing", "A task needs a name and a purpose.")
		}
		t := &wire.Task{ID: "t_" + word(), Name: in.Name, Purpose: in.Purpose, Principal: k.Principal, State: "open", StartedAt: now, Deadline: now.Add(time.Hour), DueAt: now.Add(time.Hour)}
		c.state.tasks = append(c.state.tasks, t)
		return 200, *t
	}
	t := c.task(parts[1])
	if t == nil {
		return 404, problem(404, "not_found", "task_not_found", "There is no such task.")
	}
	if parts[2] == "heartbeat" {
		if t.State == "ended" {
			return 409, problem(409, "conflict", "task_ended", "The task has ended.")
		}
		return 200, *t
	}
	return 200, c.endTask(t, "done")
}

func (c *Cluster) endTask(t *wire.Task, reason string) wire.EndTaskAnswer {
	now := time.Now().UTC()
	a := wire.EndTaskAnswer{Ended: []string{}, Withdrawn: true}
	if t.State == "open" {
		t.State, t.EndedAt, t.EndReason = "ended", &now, reason
	}
	for _, l := range c.state.leases {
		if l.TaskID == t.ID && l.State == "open" {
			l.State, l.EndedAt, l.EndReason = "ended", &now, reason
			a.Leases++
		}
	}
	a.Task = *t
	return a
}

// EndTask ends a task as an operator would, by id or name.
func (c *Cluster) EndTask(idOrName string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.task(idOrName); t != nil {
		c.endTask(t, "revoked")
	}
}

// request mints, except for roles whose second part says what else to do:
// denied, waiting, single.
func (c *Cluster) request(k *Call) (int, any) {
	var in wire.AccessRequest
	if json.Unmarshal(k.Body, &in) != nil || in.Role == "" {
		return 400, problem(400, "invalid", "role_missing", "Name the role.")
	}
	target, suffix, _ := strings.Cut(in.Role, "/")
	now := time.Now().UTC()
	switch suffix {
	case "denied":
		p := problem(403, "denied", "no_permit", "No policy permits "+k.Principal+" to request "+in.Role+".")
		p.DecisionID = "d_denied"
		return 403, p
	case "waiting":
		return c.waiting(c.ask(k.Principal, in.Role, in.Purpose, wire.GrantAccess), in.Role)
	case "single": // an account with one holder at a time
		for _, l := range c.state.leases {
			if l.Role == in.Role && l.State == "open" {
				return 409, problem(409, "conflict", "account_held", l.Principal+" holds it.")
			}
		}
	case "emergency":
		if !in.Emergency {
			return c.waiting(c.ask(k.Principal, in.Role, in.Purpose, wire.GrantAccess), in.Role)
		}
	}
	if old, ok := c.state.answers[k.Principal+" "+k.Idem]; ok && k.Idem != "" {
		return 200, old
	}
	t := c.task(in.Task)
	if in.Task == "" {
		t = &wire.Task{ID: "t_" + word(), Implicit: true, Purpose: in.Purpose, Principal: k.Principal, State: "open", StartedAt: now, Deadline: now.Add(time.Hour), DueAt: now.Add(time.Hour)}
		c.state.tasks = append(c.state.tasks, t)
	}
	if t == nil || t.State != "open" {
		return 404, problem(404, "not_found", "task_not_found", "There is no such task.")
	}
	a := c.mint(in.Role, target, suffix, t, k.Principal)
	if k.Idem != "" {
		c.state.answers[k.Principal+" "+k.Idem] = a
	}
	return 200, a
}

func (c *Cluster) mint(role, target, suffix string, t *wire.Task, principal string) wire.AccessAnswer {
	now := time.Now().UTC()
	id := word()
	user := "mf_" + id[:8]
	l := &wire.Lease{ID: "l_" + id, State: "open", Role: role, Target: target, Principal: principal, TaskID: t.ID, GrantID: "g_" + id, DecisionID: "d_" + id, Purpose: t.Purpose,
		Username: user, Generation: 1, OpenedAt: now, ExpiresAt: now.Add(c.LeaseTTL), NotAfter: now.Add(c.LeaseMax), BoundedBy: "role",
		Scope: scope.Scope{{Type: "database", Identifier: target, Actions: []string{"select"}}}}
	if l.NotAfter.Before(l.ExpiresAt) {
		l.ExpiresAt = l.NotAfter
	}
	c.state.leases = append(c.state.leases, l)
	a := wire.AccessAnswer{Status: "issued", Role: role, TaskID: t.ID, GrantID: l.GrantID, LeaseID: l.ID, DecisionID: l.DecisionID, ExpiresAt: l.ExpiresAt,
		RenewAfter: now.Add(l.ExpiresAt.Sub(now) / 2), NotAfter: l.NotAfter, BoundedBy: l.BoundedBy, Renewable: true, Scope: l.Scope}
	switch suffix {
	case "aws":
		a.Credential = map[string]string{"access_key_id": "AKIA" + id[:8], "secret_access_key": "s'ecret", "session_token": "tok"}
		a.Env = map[string]string{"AWS_ACCESS_KEY_ID": "access_key_id", "AWS_SECRET_ACCESS_KEY": "secret_access_key"}
	case "single":
		a.Renewable = false
		a.Credential = map[string]string{"username": "app", "password": "p " + id, "host": "db.internal"}
		a.Env = map[string]string{"PGPASSWORD": "password"}
	case "token":
		a.Credential = map[string]string{"token": "jwt-" + id}
	default:
		a.Credential = map[string]string{"username": user, "password": "p'w " + id, "host": "db.internal", "port": "5432", "database": target, "url": "postgres://" + user + "@db.internal:5432/" + target}
		a.Env = map[string]string{"PGHOST": "host", "PGPORT": "port", "PGUSER": "username", "PGPASSWORD": "password", "PGDATABASE": "database", "LD_PRELOAD": "host"}
	}
	return a
}

func (c *Cluster) lease(parts []string, k *Call) (int, any) {
	if len(parts) == 1 {
		u, err := url.Parse(k.Path)
		if err != nil {
			return 400, problem(400, "invalid", "malformed", "No path.")
		}
		q := u.Query()
		out := []wire.Lease{}
		for _, l := range c.state.leases {
			if (q.Get("state") == "" || q.Get("state") == l.State) && (q.Get("target") == "" || q.Get("target") == l.Target) && l.ID > q.Get("after") {
				out = append(out, *l)
			}
		}
		return 200, out
	}
	for _, l := range c.state.leases {
		if l.ID != parts[1] {
			continue
		}
		now := time.Now().UTC()
		switch {
		case len(parts) == 2:
		case l.State != "open":
			return 409, problem(409, "conflict", "lease_ended", "The lease has ended.")
		case parts[2] == "renew":
			if end := now.Add(c.LeaseTTL); end.After(l.NotAfter) {
				l.ExpiresAt = l.NotAfter
			} else {
				l.ExpiresAt = end
			}
		default:
			l.State, l.EndedAt, l.EndReason = "ended", &now, "revoked"
		}
		return 200, *l
	}
	return 404, problem(404, "not_found", "lease_not_found", "There is no such lease.")
}

func (c *Cluster) apply(k *Call) (int, any) {
	var in wire.ApplyRequest
	if err := json.Unmarshal(k.Body, &in); err != nil {
		return 400, problem(400, "invalid", "malformed", "Not a request.")
	}
	a := wire.ApplyAnswer{DryRun: in.DryRun}
	given := map[string]bool{}
	ofKind := map[string]bool{}
	change := func(kind, name string, after json.RawMessage) {
		old, there := c.state.objects[kind+"/"+name]
		x := wire.Change{Kind: kind, Name: name, Action: "create", Before: old.Spec, After: after, Version: uint64(len(a.Changes) + 1)}
		switch {
		case after == nil:
			x.Action = "delete"
		case there && string(old.Spec) == string(after):
			x.Action = "unchanged"
		case there:
			x.Action = "update"
		}
		a.Changes = append(a.Changes, x)
	}
	for _, o := range in.Objects {
		given[o.Kind+"/"+o.Name], ofKind[o.Kind] = true, true
		change(o.Kind, o.Name, o.Spec)
	}
	for id, o := range c.state.objects {
		if in.Prune && ofKind[o.Kind] && !given[id] {
			change(o.Kind, o.Name, nil)
		}
	}
	for _, ref := range in.Delete {
		if _, ok := c.state.objects[ref.Kind+"/"+ref.Name]; !ok {
			return 404, problem(404, "not_found", "not_found", "There is no "+ref.Kind+" "+ref.Name+".")
		}
		change(ref.Kind, ref.Name, nil)
	}
	if in.DryRun {
		return 200, a
	}
	if c.CoSign && !k.collecting {
		g := c.ask(k.Principal, "", "", wire.GrantChange)
		g.body = k.Body
		a.GrantID, a.Waiting = g.ID, g.Waiting()
		return 202, a
	}
	for _, x := range a.Changes {
		if x.Action == "delete" {
			delete(c.state.objects, x.Kind+"/"+x.Name)
			continue
		}
		c.state.objects[x.Kind+"/"+x.Name] = wire.Object{Kind: x.Kind, Name: x.Name, Version: x.Version, Spec: x.After}
	}
	return 200, a
}

func (c *Cluster) object(parts []string) (int, any) {
	if len(parts) == 2 {
		out := []wire.Object{}
		for _, o := range c.state.objects {
			if o.Kind == parts[1] {
				out = append(out, o)
			}
		}
		return 200, out
	}
	o, ok := c.state.objects[parts[1]+"/"+strings.Join(parts[2:], "/")]
	if !ok {
		return 404, problem(404, "not_found", "not_found", "There is no such object.")
	}
	return 200, o
}
