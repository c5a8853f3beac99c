package console

import (
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// Bounds on one page of the audit explorer.
const (
	auditRows = 40
	// auditScan is how many entries a narrow filter looks through before it
	// asks whether to go on.
	auditScan  = 4000
	auditBatch = 500
)

// AuditRow is one command of the ledger, in words.
type AuditRow struct {
	wire.AuditEntry
	Told string
	// Why is the recorded decision in sentences.
	Why string
	OK  bool
}

type auditBody struct {
	Rows                []AuditRow
	Size                uint64
	Actor, Type, Result string
	Types               []string
	// Older is where the next page begins: the entries below it. More says
	// that there is one, Scanned how many were looked at.
	Older   uint64
	More    bool
	Scanned int
}

// told says in words what a type of command does.
var told = map[string]string{
	"genesis": "founded the cluster", "change_objects": "changed the configuration", "add_key": "registered a key", "remove_key": "removed a key",
	"issue_enrolment": "made an enrolment token", "open_session": "signed in", "end_session": "signed out", "freeze": "contained", "release": "released",
	"issue_join_token": "made a token for a new node", "admit_node": "let a node join", "start_task": "started a task", "heartbeat_task": "kept a task alive",
	"end_task": "ended a task", "open_lease": "was given a credential", "remint_lease": "was given the credential anew", "extend_lease": "renewed a lease",
	"end_leases": "ended leases", "record_withdrawals": "withdrew credentials", "force_end": "ended a lease by force", "record_decision": "was refused",
	"sweep": "tidied up", "open_grant": "asked for a grant", "request_grant": "asked for a grant", "approve_grant": "approved a grant", "deny_grant": "denied a grant",
	"cancel_grant": "cancelled a grant", "revoke_grant": "revoked a grant", "review_grant": "reviewed a grant", "end_grant": "ended a grant",
}

func tell(kind string) string {
	if t, ok := told[kind]; ok {
		return t
	}
	return strings.ReplaceAll(kind, "_", " ")
}

func (s *Console) auditExplorer(x *exchange) error {
	b := auditBody{Actor: strings.TrimSpace(x.query("actor")), Type: x.query("type"), Result: x.query("result")}
	for t := range told {
		b.Types = append(b.Types, t)
	}
	slices.Sort(b.Types)
	below, err := strconv.ParseUint(x.query("below"), 10, 64)
	if err != nil {
		below = 0
	}
	if err := b.fill(x, below); err != nil {
		return err
	}
	return x.show("audit", page{Title: "Audit", Nav: "audit", Body: b})
}

// fill collects the newest entries below a sequence (0: the end) that pass the
// filter.
func (b *auditBody) fill(x *exchange, below uint64) error {
	ctx := x.r.Context()
	head, err := x.engine.AuditEntries(ctx, x.caller, 0, 1)
	if err != nil {
		return err
	}
	b.Size = head.Size
	if below == 0 || below > b.Size {
		below = b.Size
	}
	for below > 0 && len(b.Rows) < auditRows && b.Scanned < auditScan {
		n := min(below, auditBatch)
		got, err := x.engine.AuditEntries(ctx, x.caller, below-n, int(n))
		if err != nil {
			return err
		}
		if len(got.Entries) == 0 {
			break
		}
		for _, e := range slices.Backward(got.Entries) {
			b.Scanned++
			below = e.Seq
			if b.takes(e) {
				b.Rows = append(b.Rows, row(ctx, x, e))
			}
			if len(b.Rows) == auditRows {
				break
			}
		}
	}
	b.Older, b.More = below, below > 0
	return nil
}

func (b *auditBody) takes(e wire.AuditEntry) bool {
	return (b.Actor == "" || strings.Contains(e.Actor, b.Actor)) && (b.Type == "" || e.Type == b.Type) &&
		(b.Result == "" || (b.Result == "ok") == (e.Result == ledger.CodeOK))
}

func row(ctx context.Context, x *exchange, e wire.AuditEntry) AuditRow {
	r := AuditRow{AuditEntry: e, Told: tell(e.Type), OK: e.Result == ledger.CodeOK}
	if e.DecisionID != "" {
		if d, err := x.engine.Decision(ctx, x.caller, e.DecisionID); err == nil {
			r.Why = strings.TrimSpace(d.Text)
		}
	}
	return r
}

// PolicyView is one policy document.
type PolicyView struct {
	Object wire.Object
	Code   []CodeLine
}

type policiesBody struct {
	Policies []PolicyView
	// Draft, Name and Cases are what the form held, Answer what it gave.
	Name, Draft, Cases string
	Answer             *wire.PolicyTestAnswer
	Replay             *wire.PolicyReplayAnswer
}

// exampleCases show what a case looks like.
const exampleCases = `[
  {
    "name": "an agent of ann's may read orders",
    "request": {
      "principal": {"kind": "agent", "name": "billing-bot", "owner": "human:ann"},
      "action": "request",
      "resource": {"kind": "Role", "name": "orders/readonly", "target": "orders"}
    },
    "want": {"permit": true}
  }
]`

func (s *Console) listPolicies(x *exchange) error {
	return s.policiesPage(x, policiesBody{Cases: exampleCases}, nil)
}

func (s *Console) policiesPage(x *exchange, b policiesBody, problem *fault.Error) error {
	objects, err := x.engine.Objects(x.r.Context(), x.caller, ledger.KindPolicy)
	if err != nil {
		return err
	}
	for _, o := range objects {
		b.Policies = append(b.Policies, PolicyView{Object: o, Code: colour(readable(o.Kind, o.Spec))})
	}
	status := 200
	if problem != nil {
		status = problem.Kind.Status()
	}
	s.render(x.w, x.r, x.visitor, status, "policies", page{Title: "Policies", Nav: "policies", Body: b, Problem: problem})
	return nil
}

func (s *Console) testPolicies(x *exchange) error {
	b := policiesBody{Name: strings.TrimSpace(x.form("name")), Draft: x.form("draft"), Cases: x.form("cases")}
	drafts, err := b.drafts()
	if err != nil {
		return err
	}
	if x.form("do") == "replay" {
		return s.replayPolicies(x, b, drafts)
	}
	in := wire.PolicyTestRequest{Cases: json.RawMessage(b.Cases), Policies: drafts}
	if !json.Valid(in.Cases) {
		return s.policiesPage(x, b, fault.New(fault.Invalid, "cases", "The cases are not JSON. They are an array of cases, as in the example."))
	}
	answer, err := x.engine.TestPolicies(x.r.Context(), x.caller, in)
	if e := fault.As(err); e != nil {
		if e.Kind == fault.Internal {
			return err
		}
		return s.policiesPage(x, b, e)
	}
	b.Answer = &answer
	return s.policiesPage(x, b, nil)
}

// drafts are the policies to try in place of those of the same name.
func (b policiesBody) drafts() ([]wire.Object, error) {
	if strings.TrimSpace(b.Draft) == "" {
		return nil, nil
	}
	name := b.Name
	if name == "" {
		name = "draft"
	}
	spec, err := json.Marshal(ledger.PolicySpec{Text: b.Draft})
	return []wire.Object{{Kind: ledger.KindPolicy, Name: name, Spec: spec}}, err
}

// replayed bounds how much of the past a page decides again; the command does more.
const replayed = 10_000

// replayPolicies decides the newest recorded requests again, under the draft.
func (s *Console) replayPolicies(x *exchange, b policiesBody, drafts []wire.Object) error {
	answer, err := x.engine.ReplayPolicies(x.r.Context(), x.caller, wire.PolicyReplayRequest{Policies: drafts, Last: replayed})
	if e := fault.As(err); e != nil {
		if e.Kind == fault.Internal {
			return err
		}
		return s.policiesPage(x, b, e)
	}
	b.Replay = &answer
	return s.policiesPage(x, b, nil)
}

// explain leads from a pasted id to its page.
func (s *Console) explain(x *exchange) error {
	id := strings.TrimSpace(x.query("id"))
	if id == "" {
		return x.see("/policies")
	}
	return x.see("/decisions/" + escapePath(id))
}

type decisionBody struct {
	Decision wire.Decision
	Permit   bool
	Lines    []string
	Raw      string
}

func (s *Console) showDecision(x *exchange) error {
	d, err := x.engine.Decision(x.r.Context(), x.caller, x.r.PathValue("id"))
	if err != nil {
		return err
	}
	b := decisionBody{Decision: d, Lines: splitLines(strings.TrimSpace(d.Text)), Raw: indent(d.Decision)}
	b.Permit = len(b.Lines) > 0 && strings.HasPrefix(b.Lines[0], "PERMIT")
	return x.show("decision", page{Title: "Decision", Nav: "audit", Body: b})
}
