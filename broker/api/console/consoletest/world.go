package consoletest

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/scope"
)

// World is what the engine knows.
type World struct {
	Grants    []wire.Grant
	Before    map[string]string // grant → the one before it
	Tasks     []wire.Task
	Leases    []wire.Lease
	Objects   []wire.Object
	Findings  []wire.Finding
	Decisions map[string]wire.Decision
	Entries   []wire.AuditEntry
	Keys      map[string][]wire.Key
	GroupsOf  map[string][]string
	Status    wire.Status
	Peers     []wire.Peer
	Rotations []wire.Rotation
	Plugins   []wire.NodePlugin
	Size      uint64
}

// Ids of what the tests look for.
const (
	GrantWrite     = "grt_01k8qv2m4x7zj3f5b9n6c1d0ae"
	GrantWritePast = "grt_01k8kd9t2h6rr8w0y4e3s5m7vb"
	GrantChange    = "grt_01k8qtz6p9c2x4b7n1m5k8j3hg"
	GrantEmergency = "grt_01k8pw5e7r9t1y3u5i7o9p2a4s"
	GrantMine      = "grt_01k8qs1d3f5g7h9j2k4l6z8x0c"
	GrantDeploy    = "grt_01k8qva1s2d3f4g5h6j7k8l9qw"
	TaskRoot       = "tsk_01k8qn4b6v8c0x2z4a6s8d1f3g"
	LeaseOpen      = "lse_01k8qp7y9u1i3o5p7a9s2d4f6g"
	LeaseEnded     = "lse_01k8hh3j5k7l9z1x3c5v7b9n2m"
	DecisionPermit = "dec_01k8qv2m3w5e7r9t1y3u5i7o9p"
	DecisionDeny   = "dec_01k8qr8f0g2h4j6k8l1z3x5c7v"
)

func ptr[T any](v T) *T { return &v }

// raw is v as JSON; the fixtures hold nothing that has none.
func raw(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		return json.RawMessage(`"` + err.Error() + `"`)
	}
	return b
}

// sealed gives a grant its document and the document's hash.
func sealed(g wire.Grant, domain string, doc any) wire.Grant {
	g.Domain, g.Document = domain, raw(doc)
	g.Hash = cosign.Sum(domain, g.Document).String()
	return g
}

var (
	wide   = scope.Scope{{Type: "database", Identifier: "orders", Actions: []string{"delete", "insert", "select", "update"}, Tables: []scope.Table{{Name: "public.*"}}}}
	narrow = scope.Scope{{Type: "database", Identifier: "orders", Actions: []string{"select", "update"}, Tables: []scope.Table{{Name: "public.invoices", Columns: []string{"id", "state", "total"}}, {Name: "public.orders"}}}}
	read   = scope.Scope{{Type: "database", Identifier: "orders", Actions: []string{"select"}, Tables: []scope.Table{{Name: "public.*"}}}}
	deploy = scope.Scope{{Type: "jwt", Actions: []string{"deploy", "read"}, Locations: []string{"https://deploy.example/eu"}}}
)

func common(id string, asked time.Time, who cosign.Requester, decision string, needs ...cosign.Need) cosign.Common {
	return cosign.Common{Type: cosign.DomainGrant, Cluster: "clu_shop", Incarnation: 1, GrantID: id, Nonce: "q7dM0uYw0oJqzv2n9ZrH3cXk1tVb5sEaLfGmPiOuKyA",
		RequestedMS: asked.UnixMilli(), CollectBeforeMS: asked.Add(time.Hour).UnixMilli(), Requester: who, Decision: decision, Needs: needs,
		Policies: []cosign.Policy{{ID: "orders-agents", Object: "access", Version: 812, Hash: "5f0c"}}}
}

// Day is an afternoon at a shop that sells things, as of now.
func Day(now time.Time) World {
	w := World{
		Before:   map[string]string{GrantWrite: GrantWritePast},
		GroupsOf: map[string][]string{Me: {"administrators", "dba"}, "human:bo": {"dba"}, "human:ann": {"sre"}},
		Size:     48213,
		Status:   wire.Status{Node: "eu-1", Cluster: "shop", Initialised: true, Role: "leader", Leader: "eu-1", Fresh: true, Version: "v0.9.0"},
		Peers:    []wire.Peer{{ID: "eu-1", Addr: "10.0.1.11:8701", Voter: true, Leader: true}, {ID: "eu-2", Addr: "10.0.1.12:8701", Voter: true}, {ID: "eu-3", Addr: "10.0.1.13:8701", Voter: true}},
	}
	w.addGrants(now)
	w.addWork(now)
	w.addObjects(now)
	w.addTurns(now)
	w.addRecord(now)
	return w
}

func (w *World) addGrants(now time.Time) {
	bot := cosign.Requester{Principal: "agent:billing-bot", Instance: "pod-7f9c4", Owner: "human:ann", Model: "opus-5", Version: "2026-10", Chain: []string{"workload:nightly"},
		Method: "k8s-eu", Binding: "dpop", Key: "aXj3", AttestedKey: true, Facts: map[string]string{"namespace": "billing", "service_account": "billing-bot", "image": "registry.example/billing@sha256:1f0e…"}}
	need := []wire.Need{{Group: "dba", Required: 2, Have: 1, Eligible: 4, By: "role"}}
	asked := now.Add(-7 * time.Minute)
	task := cosign.Task{ID: TaskRoot, Name: "month-end", DeadlineMS: now.Add(3 * time.Hour).UnixMilli()}
	const purpose = "Correct the VAT of 214 invoices of October that were booked before the rate changed (FIN-2291)"
	doc := func(id string, at time.Time, s scope.Scope, ttl int64, purpose string) cosign.GrantDocument {
		return cosign.GrantDocument{Common: common(id, at, bot, DecisionPermit, cosign.Need{Group: "dba", Count: 2, By: "role"}), Role: "orders/readwrite", RoleVersion: 790, Target: "orders", TargetVersion: 611,
			Scope: raw(s), Task: task, Purpose: purpose, TTLS: ttl, TotalS: 4 * ttl, EndsByMS: at.Add(3 * time.Hour).UnixMilli(), MaxLeases: 2}
	}
	write := sealed(wire.Grant{ID: GrantWrite, Kind: wire.GrantAccess, State: wire.GrantWaiting, Principal: "agent:billing-bot", Role: "orders/readwrite", Target: "orders", Scope: wide, TaskID: TaskRoot,
		Purpose: purpose, DecisionID: DecisionPermit, RequestedAt: asked, CollectBefore: ptr(asked.Add(time.Hour)), MaxLeases: 2, Needs: need, MayApprove: true, Version: 3,
		Approvals: []wire.Approval{{Principal: "human:bo", Kind: "ssh", At: now.Add(-2 * time.Minute), Counts: true}}}, cosign.DomainGrant, doc(GrantWrite, asked, wide, 1800, purpose))
	old := now.Add(-9 * 24 * time.Hour)
	past := sealed(wire.Grant{ID: GrantWritePast, Kind: wire.GrantAccess, State: wire.GrantEnded, Principal: "agent:billing-bot", Role: "orders/readwrite", Target: "orders", Scope: narrow, TaskID: TaskRoot,
		Purpose: "Mark paid invoices as paid (FIN-2240)", DecisionID: DecisionPermit, RequestedAt: old, EndedAt: ptr(old.Add(40 * time.Minute)), Leases: []string{LeaseEnded},
		Approvals: []wire.Approval{{Principal: "human:bo", Kind: "ssh", At: old, Counts: true}, {Principal: Me, Kind: "passkey", At: old, Counts: true}},
		Needs:     []wire.Need{{Group: "dba", Required: 2, Have: 2, Eligible: 4}}}, cosign.DomainGrant, doc(GrantWritePast, old, narrow, 900, "Mark paid invoices as paid (FIN-2240)"))
	w.Grants = append(w.Grants, write, w.change(now), w.deployment(now), w.emergency(now), w.mine(now), past)
}

func (w *World) change(now time.Time) wire.Grant {
	asked := now.Add(-31 * time.Minute)
	ann := cosign.Requester{Principal: "human:ann", Method: "key", Binding: "dpop", AttestedKey: true}
	c := common(GrantChange, asked, ann, "dec_01k8qtz6p8", cosign.Need{Group: "administrators", Count: 2, By: "genesis"})
	c.Type, c.CollectBeforeMS = cosign.DomainChange, asked.Add(24*time.Hour).UnixMilli()
	text := accessPolicy[:len(accessPolicy)-1] + "\n// Analysts read the shop's orders in office hours.\n@id(\"orders-analysts\") @max_ttl(\"1h\")\npermit (principal in Group::\"analysts\", action == Action::\"request\",\n        resource == Role::\"orders/readonly\");\n"
	doc := cosign.ChangeDocument{Common: c, Reason: "The new analysts start on Monday and read what finance reads", Objects: []cosign.ObjectChange{
		{Kind: "Policy", Name: "access", Version: 812, Spec: raw(map[string]string{"text": text})},
		{Kind: "Group", Name: "analysts", Spec: raw(map[string]any{"members": []map[string]string{{"name": "human:lee"}, {"name": "human:noor"}}})}}}
	return sealed(wire.Grant{ID: GrantChange, Kind: wire.GrantChange, State: wire.GrantWaiting, Principal: "human:ann", Reason: doc.Reason, DecisionID: "dec_01k8qtz6p8", RequestedAt: asked,
		CollectBefore: ptr(asked.Add(24 * time.Hour)), Needs: []wire.Need{{Group: "administrators", Required: 2, Have: 0, Eligible: 3, By: "genesis"}}, MayApprove: true, Version: 1}, cosign.DomainChange, doc)
}

func (w *World) deployment(now time.Time) wire.Grant {
	asked := now.Add(-52 * time.Minute)
	run := cosign.Requester{Principal: "workload:deploy", Instance: "run-9917", Owner: "human:ann", Method: "github", Binding: "dpop", AttestedKey: true,
		Facts: map[string]string{"repository": "shop/storefront", "environment": "production", "ref": "refs/tags/v88"}}
	c := common(GrantDeploy, asked, run, "dec_01k8qva1s1", cosign.Need{Group: "release-managers", Count: 1, By: "policy:release"}, cosign.Need{Group: "dba", Count: 1, By: "policy:schema"})
	doc := cosign.GrantDocument{Common: c, Role: "deploy/production", Target: "deploy", Scope: raw(deploy), Task: cosign.Task{ID: "tsk_deploy", Name: "release v88", DeadlineMS: now.Add(time.Hour).UnixMilli()},
		Purpose: "Deploy v88 with migration 0113", TTLS: 900, TotalS: 900, EndsByMS: now.Add(time.Hour).UnixMilli(), MaxLeases: 1}
	return sealed(wire.Grant{ID: GrantDeploy, Kind: wire.GrantAccess, State: wire.GrantWaiting, Principal: "workload:deploy", Role: "deploy/production", Target: "deploy", Scope: deploy, Purpose: doc.Purpose, DecisionID: "dec_01k8qva1s1",
		RequestedAt: asked, CollectBefore: ptr(asked.Add(time.Hour)), MayApprove: true, Version: 2,
		Needs: []wire.Need{{Group: "release-managers", Required: 1, Have: 1, Eligible: 2}, {Group: "dba", Required: 1, Have: 0, Eligible: 4}}}, cosign.DomainGrant, doc)
}

func (w *World) emergency(now time.Time) wire.Grant {
	asked := now.Add(-26 * time.Hour)
	bo := cosign.Requester{Principal: "human:bo", Method: "key", Binding: "dpop", AttestedKey: true}
	doc := cosign.GrantDocument{Common: common(GrantEmergency, asked, bo, "dec_01k8pw5e7q"), Role: "orders/owner", Target: "orders",
		Scope: raw(scope.Scope{{Type: "database", Identifier: "orders", Actions: []string{"all"}}}), Task: cosign.Task{ID: "tsk_night", DeadlineMS: asked.Add(time.Hour).UnixMilli()},
		Purpose: "Checkout is down", TTLS: 1800, TotalS: 1800, EndsByMS: asked.Add(30 * time.Minute).UnixMilli(), MaxLeases: 1, Emergency: true, Reason: "A lock on orders blocks every checkout; nobody of dba answers"}
	return sealed(wire.Grant{ID: GrantEmergency, Kind: wire.GrantEmergency, State: wire.GrantEnded, Principal: "human:bo", Role: "orders/owner", Target: "orders", Purpose: doc.Purpose, Reason: doc.Reason,
		DecisionID: "dec_01k8pw5e7q", RequestedAt: asked, EndedAt: ptr(asked.Add(30 * time.Minute)), MayApprove: true,
		Review: &wire.Review{Due: now.Add(-2 * time.Hour), Overdue: true, Needs: []wire.Need{{Group: "administrators", Required: 1, Have: 0, Eligible: 3}}, Verdicts: []wire.Verdict{}}}, cosign.DomainGrant, doc)
}

func (w *World) mine(now time.Time) wire.Grant {
	asked := now.Add(-3 * time.Minute)
	kim := cosign.Requester{Principal: Me, Method: "key", Binding: "dpop", AttestedKey: true}
	doc := cosign.GrantDocument{Common: common(GrantMine, asked, kim, "dec_01k8qs1d3e", cosign.Need{Group: "dba", Count: 2, By: "role"}), Role: "orders/readwrite", Target: "orders", Scope: raw(narrow), WholeRole: true,
		Task: cosign.Task{ID: "tsk_index", Name: "rebuild-index", DeadlineMS: now.Add(time.Hour).UnixMilli()}, Purpose: "Rebuild the index that slows the order search", TTLS: 1800, TotalS: 3600, EndsByMS: now.Add(time.Hour).UnixMilli(), MaxLeases: 1}
	return sealed(wire.Grant{ID: GrantMine, Kind: wire.GrantAccess, State: wire.GrantWaiting, Principal: Me, Role: "orders/readwrite", Target: "orders", Scope: narrow, Purpose: doc.Purpose, DecisionID: "dec_01k8qs1d3e",
		RequestedAt: asked, CollectBefore: ptr(asked.Add(time.Hour)), Needs: []wire.Need{{Group: "dba", Required: 2, Have: 0, Eligible: 3}}, WhyNot: "You asked for it yourself; somebody else has to sign."}, cosign.DomainGrant, doc)
}

func (w *World) addWork(now time.Time) {
	task := func(id, name, who, parent, purpose string, ago, left time.Duration) wire.Task {
		return wire.Task{ID: id, Name: name, Principal: who, Parent: parent, Purpose: purpose, State: "open", StartedAt: now.Add(-ago), Deadline: now.Add(left), DueAt: now.Add(left), StartedBy: who}
	}
	lease := func(id, role, target, who, task, user string, ago, left time.Duration) wire.Lease {
		return wire.Lease{ID: id, State: "open", Role: role, Target: target, Principal: who, TaskID: task, DecisionID: DecisionPermit, Username: user, Scope: read, Purpose: "Copy the orders of the day",
			OpenedAt: now.Add(-ago), ExpiresAt: now.Add(left), NotAfter: now.Add(left + time.Hour), BoundedBy: "role"}
	}
	w.Tasks = []wire.Task{
		task("tsk_index", "rebuild-index", Me, "", "Rebuild the index that slows the order search", 3*time.Minute, time.Hour),
		task(TaskRoot, "month-end", "workload:nightly", "", "Close October: reconcile invoices, export to finance", 50*time.Minute, 3*time.Hour),
		task("tsk_01k8qn5c", "vat-correction", "agent:billing-bot", TaskRoot, "Correct the VAT of 214 invoices (FIN-2291)", 21*time.Minute, 95*time.Minute),
		task("tsk_01k8qn5d", "read-invoices", "agent:reader-3", "tsk_01k8qn5c", "Read the invoices in question and list their rates", 12*time.Minute, 9*time.Minute),
		task("tsk_01k8qn5e", "export", "agent:exporter", TaskRoot, "Write the export for finance", 9*time.Minute, 51*time.Minute),
	}
	implicit := task("tsk_01k8qp9a", "", "workload:storefront", "", "Serve the shop", 2*time.Hour, 6*time.Hour)
	implicit.Implicit = true
	ended := task("tsk_01k8hh0a", "month-end", "workload:nightly", "", "Close September", 31*24*time.Hour, -30*24*time.Hour)
	ended.State, ended.EndedAt, ended.EndReason = "ended", ptr(now.Add(-30*24*time.Hour)), "task_ended"
	w.Tasks = append(w.Tasks, implicit, ended)
	w.Leases = []wire.Lease{
		lease(LeaseOpen, "orders/readonly", "orders", "workload:nightly", TaskRoot, "mf_nightly_7ykq2zj4n6v8b0c3x5", 18*time.Minute, 42*time.Minute),
		lease("lse_2", "orders/readonly", "orders", "agent:reader-3", "tsk_01k8qn5d", "mf_reader_3hj5k7l9z1x3c5v7b9", 12*time.Minute, 3*time.Minute),
		lease("lse_3", "finance-api/write", "finance-api", "agent:exporter", "tsk_01k8qn5e", "urn:mayfly:lse_3", 4*time.Minute, 11*time.Minute),
		lease("lse_4", "orders/app", "orders", "workload:storefront", "tsk_01k8qp9a", "mf_storefront_9s2d4f6g8h1j3", 40*time.Minute, 20*time.Minute),
	}
	gone := lease(LeaseEnded, "orders/readwrite", "orders", "agent:billing-bot", TaskRoot, "mf_billing_5v7b9n2m4q6w8e", 9*24*time.Hour, -9*24*time.Hour+30*time.Minute)
	gone.State, gone.EndReason, gone.EndedBy, gone.EndedAt = "ended", "task_ended", "agent:billing-bot", ptr(now.Add(-9*24*time.Hour+22*time.Minute))
	gone.Receipt = raw(map[string]any{"role_exists": false, "sessions_ended": 1, "checked_at": now.Add(-9*24*time.Hour + 22*time.Minute).UTC()})
	stuck := lease("lse_6", "legacy/readonly", "legacy", "workload:reports", TaskRoot, "mf_reports_1x3c5v7b", 3*time.Hour, -time.Hour)
	stuck.State, stuck.Problem, stuck.EndingAt = "ending", "The target does not answer: dial tcp 10.0.4.7:5432: i/o timeout", ptr(now.Add(-time.Hour))
	w.Leases = append(w.Leases, gone, stuck)
	w.Keys = map[string][]wire.Key{
		Me:                  {{Thumbprint: "r8Wc0qPp2ns4C4J9Z5nT6qg3mS1tq0H1nQxkF8m2b3o", Principal: Me, Use: "session", AddedAt: now.Add(-120 * 24 * time.Hour)}, {Thumbprint: "S5Hh4v1cN0e7y3mXz8Kq2Lw9Jf6Gd1Ab0Rt5Uy4Io7P", Principal: Me, Use: "approve", Kind: "ssh", AddedAt: now.Add(-80 * 24 * time.Hour), AddedBy: Me}},
		"agent:billing-bot": {{Thumbprint: "q1W2e3R4t5Y6u7I8o9P0a1S2d3F4g5H6j7K8l9Z0x1C", Principal: "agent:billing-bot", Use: "session", AddedAt: now.Add(-20 * 24 * time.Hour), AddedBy: "human:ann"}},
	}
}

const accessPolicy = `// Who may ask for what in the shop.
@id("orders-agents") @approvals("2") @approvers("dba") @max_ttl("30m")
permit (principal in Group::"agents", action == Action::"request",
        resource == Role::"orders/readwrite")
when { context.session.bound && context.session.attested_key };

@id("no-writes-at-night")
forbid (principal, action == Action::"request", resource == Role::"orders/owner")
unless { principal is Human };
`

func (w *World) addObjects(now time.Time) {
	add := func(kind, name string, spec any) {
		w.Objects = append(w.Objects, wire.Object{Kind: kind, Name: name, Version: 812, Spec: raw(spec), ChangedAt: ptr(now.Add(-3 * 24 * time.Hour)), ChangedBy: "human:ann"})
	}
	for _, h := range []string{"ann", "bo", "kim", "lee", "noor"} {
		add("Principal", "human:"+h, map[string]any{"labels": map[string]string{"team": "shop"}})
	}
	agent := func(name, model string) {
		add("Principal", name, map[string]any{"owner": "human:ann", "zone": "eu", "agent": map[string]string{"model": model, "version": "2026-10", "provenance": "sha256:77aa…", "stage": "operation"}})
	}
	agent("agent:billing-bot", "opus-5")
	agent("agent:reader-3", "haiku-5")
	agent("agent:exporter", "opus-5")
	for _, n := range []string{"nightly", "deploy", "storefront", "reports"} {
		add("Principal", "workload:"+n, map[string]any{"owner": "human:ann"})
	}
	add("Group", "dba", map[string]any{"members": []map[string]any{{"name": "human:bo"}, {"name": Me, "until": now.Add(60 * 24 * time.Hour).UTC()}}})
	add("Group", "agents", map[string]any{"members": []map[string]any{{"name": "agent:billing-bot"}, {"name": "agent:reader-3"}}})
	add("Target", "orders", map[string]any{"type": "postgres", "zone": "eu", "address": "orders.db.internal:5432", "labels": map[string]string{"classification": "pii"}})
	add("Target", "legacy", map[string]any{"type": "postgres", "zone": "us", "address": "10.0.4.7:5432"})
	add("Target", "finance-api", map[string]any{"type": "jwt", "labels": map[string]string{"classification": "internal"}})
	add("Target", "deploy", map[string]any{"type": "jwt", "zone": "eu"})
	role := func(name string, s scope.Scope, approvals ...map[string]any) {
		add("Role", name, map[string]any{"scope": s, "ttl": map[string]string{"default": "30m", "max": "4h"}, "approvals": approvals})
	}
	role("orders/readonly", read)
	role("orders/readwrite", wide, map[string]any{"group": "dba", "count": 2})
	role("orders/app", narrow)
	role("finance-api/write", deploy)
	add("Policy", "access", map[string]string{"text": accessPolicy})
	w.Findings = []wire.Finding{{Name: "reached", OK: true, Detail: "PostgreSQL 16.4, 3 ms away"}, {Name: "may create roles", OK: true},
		{Name: "public may create", Warning: true, Detail: "PUBLIC may create in schema public: a credential could leave something behind.", Fix: "REVOKE CREATE ON SCHEMA public FROM PUBLIC;"},
		{Name: "clock", Detail: "The target's clock is 41 s behind."}}
}

func (w *World) addTurns(now time.Time) {
	in := func(d time.Duration) *time.Time { return ptr(now.Add(d)) }
	const day = 24 * time.Hour
	w.Rotations = []wire.Rotation{
		{Kind: "Account", Name: "legacy-reports", Target: "legacy", Username: "reports", State: "turning", ID: "rot_1", Reason: "schedule", Turns: 11, BegunAt: in(-time.Hour), DoneAt: in(-31 * day), NextAt: in(4 * time.Minute),
			Tries: 9, Problem: "legacy cannot be reached: dial tcp 10.0.4.7:5432: i/o timeout"},
		{Kind: "Account", Name: "billing", Target: "orders", Username: "billing_b", State: "grace", ID: "rot_2", Reason: "demand", Turns: 42, BegunAt: in(-20 * time.Minute), DoneAt: in(-20 * time.Minute), DueAt: in(4 * day), NextAt: in(40 * time.Minute)},
		{Kind: "Account", Name: "storefront", Target: "orders", Username: "storefront", State: "idle", ID: "rot_3", Reason: "use", Turns: 7, BegunAt: in(-3 * time.Hour), DoneAt: in(-3 * time.Hour)},
		{Kind: "Cluster", Name: "certificates", State: "idle", Turns: 3, Reason: "demand", DoneAt: in(-8 * day)},
		{Kind: "Cluster", Name: "barrier", State: "idle", Turns: 5, Reason: "schedule", DoneAt: in(-17 * day), DueAt: in(9 * day), NextAt: in(9 * day)},
		{Kind: "Target", Name: "finance-api", Target: "finance-api", State: "publishing", ID: "rot_4", Reason: "schedule", Turns: 2, BegunAt: in(-5 * time.Minute), DoneAt: in(-30 * day), NextAt: in(55 * time.Minute)},
		{Kind: "Target", Name: "orders", Target: "orders", State: "idle", Reason: "override", Turns: 1, DoneAt: in(-2 * day), DueAt: in(12 * day), NextAt: in(12 * day)},
	}
	w.Plugins = []wire.NodePlugin{
		{Node: "eu-1", Name: "htpasswd", Running: true, SHA256: "5f0c9e2a77aa1f0e", Registered: "5f0c9e2a77aa1f0e", Since: in(-6 * day)},
		{Node: "eu-1", Name: "mainframe", Problem: "the file’s SHA-256 is not the registered one", Registered: "1f0e5f0c9e2a77aa", Failures: 3},
	}
}

func (w *World) addRecord(now time.Time) {
	w.Decisions = map[string]wire.Decision{
		DecisionPermit: {ID: DecisionPermit, Seq: 48197, At: now.Add(-7 * time.Minute), Actor: "agent:billing-bot", Command: "open_grant", Decision: raw(map[string]any{"permit": true, "policies": []string{"orders-agents"}}),
			Text: "PERMIT (permit): agent:billing-bot request Role orders/readwrite\n  permit by orders-agents (access:2), which asks for @approvals(\"2\") @approvers(\"dba\") @max_ttl(\"30m\")\n  so: lives at most 30m0s\n  so: needs 2 approval(s) from group dba (orders-agents)\n  policies: sha256:5f0c9e2a\n"},
		DecisionDeny: {ID: DecisionDeny, Seq: 48190, At: now.Add(-19 * time.Minute), Actor: "agent:reader-3", Command: "record_decision", Decision: raw(map[string]any{"permit": false}),
			Text: "DENY (no_permit): agent:reader-3 request Role orders/readwrite\n  no policy permits it\n  nearly: orders-agents (access:2) permits it, but this does not hold: context.session.attested_key\n  policies: sha256:5f0c9e2a\n"},
	}
	steps := []wire.AuditEntry{
		{Type: "heartbeat_task", Actor: "workload:nightly"}, {Type: "open_lease", Actor: "workload:storefront", DecisionID: DecisionPermit}, {Type: "record_withdrawals"},
		{Type: "record_decision", Actor: "agent:reader-3", DecisionID: DecisionDeny}, {Type: "start_task", Actor: "agent:billing-bot"}, {Type: "extend_lease", Actor: "agent:exporter"},
		{Type: "open_session", Actor: "human:bo"}, {Type: "open_lease", Actor: "agent:exporter", Result: "cap_instance"}, {Type: "approve_grant", Actor: "human:bo"}, {Type: "end_leases"},
	}
	const entries = 240
	for i := range entries {
		e := steps[i%len(steps)]
		e.Seq, e.At = uint64(i), now.Add(-time.Duration(entries-i)*47*time.Second)
		if e.Result == "" {
			e.Result = "ok"
		}
		e.Command = raw(map[string]string{"type": e.Type, "n": fmt.Sprint(i)})
		w.Entries = append(w.Entries, e)
	}
}
