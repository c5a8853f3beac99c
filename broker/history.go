package broker

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/mayfly-broker/mayfly/broker/audit"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/policy"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// Describe reads an audit summary out of a command's bytes; package replay does
// the same to check that an export's summaries are true.
func Describe(outcome string, command []byte) (audit.Summary, error) {
	_, ms, err := ledger.SplitOutcome(outcome)
	if err != nil {
		return audit.Summary{}, err
	}
	d, err := ledger.DecodePublic(command)
	if err != nil {
		return audit.Summary{}, err
	}
	return audit.Summary{Time: at(ms), Type: d.Type, Actor: d.Header.Actor.Principal, DecisionID: d.Header.DecisionID}, nil
}

// History is the ledger's record of commands as package audit reads it.
type History struct {
	view   func(func(ledger.Query) error) error
	signer note.Signer
}

// History returns the ledger's record; checkpoints are signed by signer.
func (e *Engine) History() *History { return &History{view: e.view, signer: e.cfg.Signer} }

// Size implements [audit.Feed].
func (h *History) Size(context.Context) (n int64, err error) {
	err = h.view(func(q ledger.Query) error { n = int64(q.Size()); return nil })
	return n, err
}

// Entry implements [audit.Feed].
func (h *History) Entry(_ context.Context, seq int64) (audit.Entry, error) {
	var rec ledger.Entry
	err := h.view(func(q ledger.Query) error {
		var ok bool
		if seq < 0 || uint64(seq) >= q.Size() {
			return fault.New(fault.NotFound, "entry_not_found", "The ledger has no entry %d; it has %d.", seq, q.Size())
		}
		if rec, ok = q.Entry(uint64(seq)); !ok {
			return fault.New(fault.NotFound, "entry_not_found", "Entry %d is missing.", seq)
		}
		return nil
	})
	if err != nil {
		return audit.Entry{}, err
	}
	sum, err := Describe(rec.Outcome(), rec.Public)
	return audit.Entry{Seq: seq, Summary: sum, Result: rec.Outcome(), Command: rec.Public}, err
}

// ReadHashes implements [tlog.HashReader].
func (h *History) ReadHashes(indexes []int64) (out []tlog.Hash, err error) {
	err = h.view(func(q ledger.Query) error {
		out, err = q.HashReader().ReadHashes(indexes)
		return err
	})
	return out, err
}

// Checkpoint implements [audit.Source].
func (h *History) Checkpoint(context.Context) (msg []byte, err error) {
	if h.signer == nil {
		return nil, fault.New(fault.Unavailable, "no_checkpoint_key", "This node has no key to sign checkpoints with.")
	}
	var c audit.Checkpoint
	err = h.view(func(q ledger.Query) error {
		g, _ := q.Genesis()
		c.Origin, c.Size = audit.Origin(g.Cluster, uint64(g.Incarnation)), int64(q.Size())
		c.Root, err = q.Root(q.Size())
		return err
	})
	if err != nil {
		return nil, err
	}
	return audit.SignCheckpoint(c, h.signer)
}

// mayAudit lets those read the whole record whom policy lets read the cluster.
func (e *Engine) mayAudit(ctx context.Context, c Caller) error {
	_, err := e.allow(ctx, c, question{action: policy.ActionRead, resource: policy.Resource{Kind: "Cluster", Name: "cluster"}})
	return err
}

// AuditEntries returns up to limit entries from a sequence on.
func (e *Engine) AuditEntries(ctx context.Context, c Caller, from uint64, limit int) (wire.AuditPage, error) {
	page := wire.AuditPage{Entries: []wire.AuditEntry{}}
	if err := e.mayAudit(ctx, c); err != nil {
		return page, err
	}
	h := e.History()
	size, err := h.Size(ctx)
	if err != nil {
		return page, err
	}
	page.Size = uint64(size)
	for seq := int64(from); seq < size && len(page.Entries) < pageSize(limit); seq++ {
		x, err := h.Entry(ctx, seq)
		if err != nil {
			return page, err
		}
		code, _, err := ledger.SplitOutcome(x.Result)
		if err != nil {
			return page, err
		}
		page.Entries = append(page.Entries, wire.AuditEntry{Seq: uint64(seq), At: x.Time, Type: x.Type, Result: code,
			Actor: x.Actor, DecisionID: x.DecisionID, Command: ledger.PublicJSON(x.Command)})
	}
	return page, nil
}

// verifierKeys returns the cluster's checkpoint keys, from the genesis record.
func (e *Engine) verifierKeys() (keys []string, err error) {
	err = e.view(func(q ledger.Query) error {
		g, ok := q.Genesis()
		if !ok {
			return fault.New(fault.Unavailable, "uninitialised", "The cluster is not initialised.")
		}
		keys = []string{g.VerifierKey}
		return nil
	})
	return keys, err
}

// AuditExport writes entries [from, to) as JSON lines that verify with no
// broker; to 0 is the newest.
func (e *Engine) AuditExport(ctx context.Context, c Caller, from, to uint64, w io.Writer) error {
	if err := e.mayAudit(ctx, c); err != nil {
		return err
	}
	keys, err := e.verifierKeys()
	if err != nil {
		return err
	}
	_, err = audit.Export(ctx, w, e.History(), audit.ExportOptions{From: int64(from), To: int64(to), Keys: keys})
	return err
}

// verifyFor is how long one call verifies: a long ledger takes several, each of which
// has its answer long before whoever asks stops waiting.
const verifyFor = 5 * time.Second

// AuditVerify recomputes the live ledger's tree and checks the checkpoint. Where the
// answer has Next, the rest is yet to be checked from there, and nothing is ok so far.
func (e *Engine) AuditVerify(ctx context.Context, c Caller, from uint64) (wire.VerifyAnswer, error) {
	var out wire.VerifyAnswer
	if err := e.mayAudit(ctx, c); err != nil {
		return out, err
	}
	keys, err := e.verifierKeys()
	if err != nil {
		return out, err
	}
	if !e.rereading.CompareAndSwap(false, true) {
		return out, errRereading()
	}
	defer e.rereading.Store(false)
	h, began := e.History(), time.Now()
	rep, err := audit.VerifyLive(ctx, h, audit.Part{From: int64(from), Enough: func() bool { return time.Since(began) >= verifyFor }},
		audit.Options{Trusted: keys, Describe: Describe})
	var defect *audit.Defect
	if errors.As(err, &defect) {
		out.Problems = []string{defect.Error()}
		return out, nil
	}
	if err != nil {
		return out, err
	}
	if rep.Next > 0 {
		out.Size, out.Root, out.Next = uint64(rep.Checkpoint.Size), rep.Checkpoint.Root.String(), uint64(rep.Next)
		return out, nil
	}
	msg, err := h.Checkpoint(ctx)
	if err != nil {
		return out, err
	}
	out.OK, out.Size, out.Root, out.Checkpoint = true, uint64(rep.Checkpoint.Size), rep.Checkpoint.Root.String(), string(msg)
	return out, nil
}

// Decision returns a recorded decision. A requester may read what was decided
// about itself; others as policy says.
func (e *Engine) Decision(ctx context.Context, c Caller, id string) (wire.Decision, error) {
	var (
		rec   ledger.Entry
		seq   uint64
		found bool
	)
	err := e.view(func(q ledger.Query) error {
		if seq, found = q.DecisionSeq(id); found {
			rec, found = q.Entry(seq)
		}
		return nil
	})
	if err != nil {
		return wire.Decision{}, err
	}
	if !found {
		return wire.Decision{}, fault.New(fault.NotFound, "decision_not_found", "There is no decision %s.", id)
	}
	d, err := ledger.DecodePublic(rec.Public)
	if err != nil {
		return wire.Decision{}, err
	}
	if d.Header.Actor.Principal != c.Session.Principal {
		if err := e.mayAudit(ctx, c); err != nil {
			return wire.Decision{}, err
		}
	}
	out := wire.Decision{ID: id, Seq: seq, At: at(rec.TimeMS), Actor: d.Header.Actor.Principal, Command: d.Type, Decision: d.Header.Decision}
	var r ruling
	if json.Unmarshal(d.Header.Decision, &r) == nil {
		out.Waived = e.waived(d, r)
		out.Text = policy.ExplainWaived(r.Decision, r.Request, out.Waived)
	}
	if rec.Result != ledger.CodeOK {
		out.Text += "\nThe ledger then refused the command: " + rec.Result + "."
	}
	if rd, ok := d.Body.(*ledger.RecordDecision); ok && r.Decision.Permit {
		out.Text += "\nPolicy permits it, but the request was refused: " + rd.Code + "."
	}
	return out, nil
}

// waived says why something was done without what its permit asks to wait for, by
// the command that the decision led to; empty where nothing was waived.
func (e *Engine) waived(d ledger.Decoded, r ruling) string {
	if !r.Decision.Permit || r.owed(nil).none() {
		return ""
	}
	const emergency = "it is an emergency, which is reviewed afterwards"
	switch body := d.Body.(type) {
	case *ledger.Freeze, *ledger.EndLeases, *ledger.EndTask, *ledger.EndGrant, *ledger.RemoveKey:
		return "it only takes power away, and that never waits"
	case *ledger.RequestGrant, *ledger.OpenLease:
		if r.Request.Context.Emergency {
			return emergency
		}
	case *ledger.ExtendLease:
		kind := ""
		err := e.view(func(q ledger.Query) error {
			l, _ := q.Lease(body.ID)
			g, _ := q.Cosigned(l.Grant.ID)
			kind = g.Kind
			return nil
		})
		if err == nil && kind == ledger.GrantEmergency {
			return emergency
		}
	}
	return ""
}

// TestPolicies runs cases against the live policies, with given documents in
// place of those of the same name.
func (e *Engine) TestPolicies(ctx context.Context, c Caller, in wire.PolicyTestRequest) (wire.PolicyTestAnswer, error) {
	out := wire.PolicyTestAnswer{Results: []wire.CaseResult{}}
	if _, err := e.allow(ctx, c, question{action: policy.ActionRead, resource: policy.Resource{Kind: ledger.KindPolicy, Name: "any"}}); err != nil {
		return out, err
	}
	cases, err := policy.DecodeCases(casesDocument(in.Cases))
	if err != nil {
		return out, err
	}
	var sources []policy.Source
	err = e.view(func(q ledger.Query) error { sources = policySources(q.Objects(ledger.KindPolicy)); return nil })
	if err != nil {
		return out, err
	}
	if sources, err = drafted(sources, in.Policies, nil); err != nil {
		return out, err
	}
	set, err := policy.Compile(sources)
	if err != nil {
		return out, err
	}
	for _, r := range policy.RunCases(set, cases) {
		res := wire.CaseResult{Name: r.Name, OK: r.Passed, Detail: strings.Join(r.Differences, " ")}
		if r.Passed {
			out.Passed++
		} else {
			out.Failed++
		}
		out.Results = append(out.Results, res)
	}
	return out, nil
}

// casesDocument wraps a bare array of cases as the document that policy reads.
func casesDocument(raw json.RawMessage) []byte {
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) == nil {
		return rawMessage(map[string]any{"cases": list})
	}
	return raw
}
