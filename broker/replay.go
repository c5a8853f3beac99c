package broker

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/policy"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// Bounds on one replay: it runs beside the node's own work.
const (
	replayTime    = 10 * time.Second
	replayEntries = 50_000
	replayDefault = 10_000
	// replayChunk is how many commands one read transaction holds: a long one
	// keeps the store from reusing its pages.
	replayChunk = 256
	// replayKept bounds the groups in memory, replayGroups those in the answer.
	replayKept   = 10_000
	replayGroups = 1_000
)

// ReplayPolicies decides what the ledger's commands were decided by again, with
// drafts among the live policies, and says what would have come out otherwise.
// It commits nothing. A recorded request is taken as it was: its groups, labels
// and context are of then.
func (e *Engine) ReplayPolicies(ctx context.Context, c Caller, in wire.PolicyReplayRequest) (wire.PolicyReplayAnswer, error) {
	out := wire.PolicyReplayAnswer{Groups: []wire.PolicyReplayGroup{}}
	if _, err := e.allow(ctx, c, question{action: policy.ActionRead, resource: policy.Resource{Kind: ledger.KindPolicy, Name: "any"}}); err != nil {
		return out, err
	}
	if err := e.mayAudit(ctx, c); err != nil { // it tells of everybody's requests
		return out, err
	}
	if in.Limit < 0 || in.Limit > replayEntries {
		return out, fault.New(fault.Invalid, "invalid_limit", "limit is %d; 1 to %d commands are looked at in one call.", in.Limit, replayEntries)
	}
	if !e.rereading.CompareAndSwap(false, true) {
		return out, errRereading()
	}
	defer e.rereading.Store(false)

	r := &replay{groups: map[replayKey]*wire.PolicyReplayGroup{}}
	var live []policy.Source
	err := e.view(func(q ledger.Query) error {
		g, err := e.decider.at(q)
		if err != nil {
			return err
		}
		r.today, live = g.set, policySources(q.Objects(ledger.KindPolicy))
		r.out.From, r.out.To = replayRange(q, in)
		return nil
	})
	if err != nil {
		return out, err
	}
	sources, err := drafted(live, in.Policies, in.Delete)
	if err != nil {
		return out, err
	}
	if r.draft, err = policy.Compile(sources); err != nil {
		return out, err
	}
	if err := e.walk(ctx, r, cmp.Or(in.Limit, replayEntries)); err != nil {
		return out, err
	}
	return r.answer(), nil
}

func errRereading() error {
	return &fault.Error{Kind: fault.Unavailable, Code: "busy", RetryAfter: 2 * time.Second,
		Detail: "Another replay or verification runs on this node; one at a time is allowed. Retry, or ask another node."}
}

// drafted is the live policies with drafts in place of those of the same name,
// or beside them, and without those to be deleted.
func drafted(live []policy.Source, drafts []wire.Object, without []string) ([]policy.Source, error) {
	out := slices.Clone(live)
	for _, name := range without {
		i := slices.IndexFunc(out, func(s policy.Source) bool { return s.Name == name })
		if i < 0 {
			return nil, fault.New(fault.Invalid, "policy_not_found", "There is no policy %q to leave out. List them with: mayfly get policy", name)
		}
		out = slices.Delete(out, i, i+1)
	}
	for _, o := range drafts {
		var p ledger.PolicySpec
		if o.Kind != "" && o.Kind != ledger.KindPolicy {
			return nil, fault.New(fault.Invalid, "invalid_spec", "%s %s is no policy; drafts are objects of kind Policy.", o.Kind, o.Name)
		}
		if err := json.Unmarshal(o.Spec, &p); err != nil {
			return nil, fault.New(fault.Invalid, "invalid_spec", "Policy %s: %v", o.Name, err)
		}
		if slices.Contains(without, o.Name) {
			return nil, fault.New(fault.Invalid, "object_twice", "Policy %s is both drafted and deleted. Leave one out.", o.Name)
		}
		if i := slices.IndexFunc(out, func(s policy.Source) bool { return s.Name == o.Name }); i >= 0 {
			out[i].Text = p.Text
		} else {
			out = append(out, policy.Source{Name: o.Name, Text: p.Text})
		}
	}
	return out, nil
}

// replayRange is the commands that are meant: sequences from <= seq < to.
func replayRange(q ledger.Query, in wire.PolicyReplayRequest) (from, to uint64) {
	size := q.Size()
	// Ledger time never decreases.
	notBefore := func(t *time.Time) uint64 {
		return uint64(sort.Search(int(size), func(i int) bool {
			x, ok := q.Entry(uint64(i))
			return ok && x.TimeMS >= t.UnixMilli()
		}))
	}
	if to = size; in.To > 0 {
		to = min(to, in.To)
	}
	if in.Until != nil {
		to = min(to, notBefore(in.Until))
	}
	from = in.From
	if in.Since != nil {
		from = max(from, notBefore(in.Since))
	}
	last := in.Last
	if in.From == 0 && in.Since == nil && last == 0 {
		last = replayDefault
	}
	if last > 0 && last < to {
		from = max(from, to-last)
	}
	return min(from, to), to
}

// walk looks at commands until the range, the limit or the time is over.
func (e *Engine) walk(ctx context.Context, r *replay, limit int) error {
	deadline := e.now().Add(replayTime)
	end := min(r.out.To, r.out.From+uint64(limit))
	at := r.out.From
	for at < end {
		stop := min(at+replayChunk, end)
		var batch []ledger.Entry
		err := e.view(func(q ledger.Query) error {
			for ; at < stop; at++ {
				if x, ok := q.Entry(at); ok {
					batch = append(batch, x)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, x := range batch {
			r.entry(x)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if e.now().After(deadline) {
			break
		}
	}
	if at < r.out.To {
		r.out.Next = at
	}
	return nil
}

// replay is one replay's state.
type replay struct {
	draft, today *policy.Set
	out          wire.PolicyReplayAnswer // what is counted
	groups       map[replayKey]*wire.PolicyReplayGroup
}

type replayKey struct{ change, principal, action, resource string }

// recorded is a decision as a command holds it: see [encodeAll].
type recorded struct {
	ruling
	Further []ruling `json:"further"`
}

// happening is a recorded command as far as a replay asks.
type happening struct {
	decision string
	at       time.Time
	done     bool // it went on to do what was decided about; else it records a refusal
}

func (r *replay) entry(x ledger.Entry) {
	when := at(x.TimeMS)
	if r.out.Entries++; r.out.First == nil {
		r.out.First = &when
	}
	r.out.Last = &when
	id, raw, ok := x.Decision()
	if !ok {
		return
	}
	var rec recorded
	if json.Unmarshal(raw, &rec) != nil || rec.Request.Action == "" {
		r.out.Unreadable++
		return
	}
	h := happening{decision: id, at: when, done: x.Type() != (&ledger.RecordDecision{}).Type()}
	for _, d := range append([]ruling{rec.ruling}, rec.Further...) {
		// What policy permitted and the ledger, a cap or a scope refused: it would
		// be refused again, or was decided anew because the ledger had moved.
		if h.done && x.Result != ledger.CodeOK || !h.done && d.Decision.Permit {
			r.out.Moot++
			continue
		}
		r.again(h, d)
	}
}

// verdict is what came of a decision.
type verdict struct {
	goes        bool
	obligations policy.Obligations
}

// came says what comes of a decision for what happened. Who is asked for an
// approval may give it where no policy says anything (see Engine.oversee): what
// was done without a permit was done so.
func (h happening) came(recorded, d policy.Decision) verdict {
	asked := h.done && !recorded.Permit
	v := verdict{goes: d.Permit || asked && d.Code == policy.CodeNoPermit}
	if v.goes && !asked {
		v.obligations = d.Obligations
	}
	return v
}

func (v verdict) same(w verdict) bool { return v.goes == w.goes && v.obligations.Same(w.obligations) }

// again decides one recorded request by the draft.
func (r *replay) again(h happening, old ruling) {
	r.out.Decisions++
	fresh := r.draft.Decide(old.Request)
	before, after := h.came(old.Decision, old.Decision), h.came(old.Decision, fresh)
	if before.same(after) {
		r.out.Same++
		return
	}
	key := replayKey{principal: old.Request.Principal.Kind + ":" + old.Request.Principal.Name, action: old.Request.Action, resource: replayed(old.Request.Resource)}
	switch {
	case before.goes && !after.goes:
		key.change = wire.ChangePermitToDeny
		r.out.PermitToDeny++
	case after.goes && !before.goes:
		key.change = wire.ChangeDenyToPermit
		r.out.DenyToPermit++
	default:
		key.change = wire.ChangeObligations
		r.out.Obligations++
	}
	g := r.groups[key]
	if g == nil {
		if len(r.groups) >= replayKept {
			r.out.Omitted++
			return
		}
		g = &wire.PolicyReplayGroup{Change: key.change, Principal: key.principal, Action: key.action, Resource: key.resource, First: h.at}
		r.groups[key] = g
	}
	g.Count++
	g.Last, g.DecisionID = h.at, h.decision
	g.Before, g.After = brief(old.Decision, before), brief(fresh, after)
	if old.Decision.PolicyHash != r.today.Hash() && h.came(old.Decision, r.today.Decide(old.Request)).same(after) {
		g.Already++
	}
}

// brief is [policy.Brief], for approvals too that need no permit.
func brief(d policy.Decision, v verdict) string {
	if v.goes && !d.Permit {
		return "no policy forbids it to who is asked"
	}
	return policy.Brief(d)
}

// replayed names a resource so that differences about it fall together: of what
// lives briefly, by where it belongs.
func replayed(res policy.Resource) string {
	switch {
	case res.Kind != "Grant" && res.Kind != "Lease" && res.Kind != "Task" && res.Kind != "Session":
		return res.Kind + "/" + res.Name
	case len(res.Parents) > 0:
		return res.Kind + " of " + res.Parents[0].Kind + "/" + res.Parents[0].Name
	case res.Target != "":
		return res.Kind + " on Target/" + res.Target
	case res.Owner != "":
		return res.Kind + " of " + res.Owner
	}
	return res.Kind
}

// answer sorts what was found: what would stop working first.
func (r *replay) answer() wire.PolicyReplayAnswer {
	out := r.out
	out.PolicyHash, out.Groups = r.draft.Hash(), []wire.PolicyReplayGroup{}
	for _, g := range r.groups {
		out.Groups = append(out.Groups, *g)
	}
	order := []string{wire.ChangePermitToDeny, wire.ChangeDenyToPermit, wire.ChangeObligations}
	slices.SortFunc(out.Groups, func(a, b wire.PolicyReplayGroup) int {
		return cmp.Or(cmp.Compare(slices.Index(order, a.Change), slices.Index(order, b.Change)), cmp.Compare(b.Count, a.Count),
			strings.Compare(a.Principal, b.Principal), strings.Compare(a.Action, b.Action), strings.Compare(a.Resource, b.Resource))
	})
	for len(out.Groups) > replayGroups {
		out.Omitted += out.Groups[len(out.Groups)-1].Count
		out.Groups = out.Groups[:len(out.Groups)-1]
	}
	return out
}
