package broker

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/policy"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/scope"
)

// defaultApprovalTTL is how long a grant waits where policy says nothing.
const defaultApprovalTTL = 24 * time.Hour

// needsOf joins the role's floor with what policy asks for: per group the larger.
func needsOf(floor []ledger.Approval, more []policy.Quorum) []cosign.Need {
	var out []cosign.Need
	add := func(n cosign.Need) {
		at, found := slices.BinarySearchFunc(out, n.Group, func(have cosign.Need, group string) int { return strings.Compare(have.Group, group) })
		switch {
		case !found:
			out = slices.Insert(out, at, n)
		case n.Count > out[at].Count:
			out[at] = n
		}
	}
	for _, a := range floor {
		add(cosign.Need{Group: a.Group, Count: a.Count, By: "role"})
	}
	for _, q := range more {
		add(cosign.Need{Group: q.Group, Count: q.Count, By: "policy:" + q.Policy})
	}
	return out
}

// asks reports whether the permit needs somebody's signature, or the request
// is an emergency, whose record is reviewed.
func (a access) asks(f footing, r ruling) bool {
	o := r.Decision.Obligations
	return a.grant == nil && (a.Emergency || len(f.role.Approvals) > 0 || len(o.Approvals) > 0 || o.StepUp != "")
}

// common begins a document.
func (e *Engine) common(q ledger.Query, c Caller, domain string, r ruling) (cosign.Common, error) {
	genesis, _ := q.Genesis()
	nonce := make([]byte, 32)
	if _, err := io.ReadFull(e.cfg.Random, nonce); err != nil {
		return cosign.Common{}, err
	}
	id, err := e.newID(ledger.PrefixGrant)
	if err != nil {
		return cosign.Common{}, err
	}
	s := c.Session
	var p ledger.PrincipalSpec
	q.Spec(ledger.KindPrincipal, s.Principal, &p)
	who := cosign.Requester{
		Principal: s.Principal, Instance: s.Instance, Owner: p.Owner, Method: s.Method, Binding: s.Binding,
		Key: s.Thumbprint, AttestedKey: s.AttestedKey, Facts: s.Facts,
	}
	if p.Agent != nil {
		who.Model, who.Version = p.Agent.Model, p.Agent.Version
	}
	out := cosign.Common{
		Type: domain, Cluster: genesis.Cluster, Incarnation: genesis.Incarnation, GrantID: id,
		Nonce: base64.RawURLEncoding.EncodeToString(nonce), RequestedMS: e.now().UnixMilli(), Requester: who, Decision: r.ID,
	}
	for _, reason := range r.Decision.Policies {
		o, _ := q.Object(ledger.KindPolicy, reason.Source)
		out.Policies = append(out.Policies, cosign.Policy{ID: reason.ID, Object: reason.Source, Version: o.Version, Hash: reason.Hash})
	}
	return out, nil
}

// ask composes the request for a grant that waits, or for an emergency.
func (e *Engine) ask(q ledger.Query, c Caller, a access, f footing, r ruling) (ledger.RequestGrant, error) {
	cmd := ledger.RequestGrant{PolicyEpoch: q.PolicyEpoch()}
	common, err := e.common(q, c, cosign.DomainGrant, r)
	if err != nil {
		return cmd, err
	}
	o := r.Decision.Obligations
	now := e.now()
	b := bound(now, a.ttl, f, r.Decision)
	d := &cosign.GrantDocument{
		Common: common, Role: a.Role, RoleVersion: f.roleObj.Version, Target: f.target.object.Name, TargetVersion: f.target.object.Version,
		WholeRole: a.scope == nil, Purpose: r.Request.Context.Purpose, MaxLeases: 1,
		TTLS: int64(b.expires.Sub(now) / time.Second), TotalS: int64(b.notAfter.Sub(now) / time.Second),
		StepUp: o.StepUp, Emergency: a.Emergency, Reason: a.Reason,
	}
	d.Requester.Chain = f.chain
	if d.Scope, err = json.Marshal(f.scope); err != nil {
		return cmd, err
	}
	wait := defaultApprovalTTL
	if o.ApprovalTTL > 0 {
		wait = o.ApprovalTTL
	}
	collect := now.Add(min(wait, ledger.MaxApprovalMS*time.Millisecond))
	if a.Emergency {
		if role := f.role.Emergency; role != nil {
			d.TotalS = min(d.TotalS, int64(time.Duration(role.MaxTTL)/time.Second))
		}
		d.TTLS, d.StepUp = min(d.TTLS, d.TotalS), ""
		collect = now.Add(min(time.Minute, time.Duration(d.TotalS)*time.Second))
		d.EndsByMS = now.Add(time.Duration(d.TotalS) * time.Second).UnixMilli()
	} else {
		d.Needs = needsOf(f.role.Approvals, o.Approvals)
		d.EndsByMS = collect.Add(time.Duration(d.TotalS) * time.Second).UnixMilli()
	}
	if f.task != nil {
		d.Task = cosign.Task{ID: f.task.ID, Name: f.task.Name, Parent: f.task.Parent, DeadlineMS: f.task.DeadlineMS}
		d.EndsByMS = min(d.EndsByMS, f.task.DeadlineMS)
	} else {
		id, err := e.newID(ledger.PrefixTask)
		if err != nil {
			return cmd, err
		}
		cmd.ImplicitTask = &ledger.Task{ID: id, Purpose: a.Purpose, Principal: c.Session.Principal, Instance: c.Session.Instance,
			Role: a.Role, Implicit: true, DeadlineMS: d.EndsByMS}
		d.Task = cosign.Task{ID: id, DeadlineMS: d.EndsByMS}
	}
	d.CollectBeforeMS = min(collect.UnixMilli(), d.EndsByMS)
	cmd.Access = d
	return cmd, nil
}

// wait commits a request for a grant and answers as it stands: waiting, or, for
// an emergency, with its credential.
func (e *Engine) wait(ctx context.Context, c Caller, p plan, a access) (answer wire.AccessAnswer, again bool, err error) {
	h := e.header(c)
	// The key belongs to the lease that comes of it. Who asks again meanwhile is
	// led to the same grant by what is asked; see asked.
	h.Idem = nil
	h.DecisionID, h.Decision = p.ruling.ID, p.ruling.encode()
	res, err := e.commit(ctx, h, p.ask)
	switch {
	case res.Code == ledger.CodeStale:
		return answer, true, nil
	case err != nil:
		return answer, false, err
	}
	e.changed.tell()
	if a.Emergency {
		e.log.Warn("an emergency grant was taken", "principal", c.Session.Principal, "role", a.Role, "grant", res.ID)
		answer, err = e.CollectGrant(ctx, c, res.ID, wire.CollectRequest{CSR: a.CSR, PublicKey: a.PublicKey})
		return answer, false, err
	}
	answer, err = e.waiting(res.ID)
	return answer, false, err
}

// waiting is the answer of a grant that is not collected yet.
func (e *Engine) waiting(id string) (answer wire.AccessAnswer, err error) {
	err = e.view(func(q ledger.Query) error {
		g, ok := q.Cosigned(id)
		d, derr := g.Access()
		if !ok || derr != nil {
			return grantNotFound(id)
		}
		s, _ := scope.Parse(d.Scope)
		answer = wire.AccessAnswer{
			Status: "waiting", Role: g.Role, TaskID: g.TaskID, GrantID: g.ID, DecisionID: d.Decision, Scope: s, Replaced: []string{},
			Waiting: e.wireWaiting(q, g),
		}
		return nil
	})
	return answer, err
}

func (e *Engine) wireWaiting(q ledger.Query, g ledger.Cosigned) wire.Waiting {
	return wire.Waiting{Hash: g.Hash, CollectBefore: atOrNil(g.CollectBeforeMS), URL: e.grantURL(g.ID), Needs: e.wireNeeds(q, g), StepUp: g.StepUp}
}

func (e *Engine) wireNeeds(q ledger.Query, g ledger.Cosigned) []wire.Need {
	have, eligible, _ := q.Quorum(e.now().UnixMilli(), g)
	return joinNeeds(g.Needs, have, eligible)
}

func joinNeeds(needs []cosign.Need, have, eligible []int) []wire.Need {
	out := make([]wire.Need, 0, len(needs))
	for i, n := range needs {
		out = append(out, wire.Need{Group: n.Group, Required: n.Count, Have: have[i], Eligible: eligible[i], By: n.By})
	}
	return out
}

// grantURL is a grant's page, under a name if the cluster has one: there alone
// can a passkey sign it.
func (e *Engine) grantURL(id string) string {
	return strings.TrimSuffix(e.passkeys.page(e.cfg.Issuer), "/") + "/grants/" + id
}

func grantNotFound(id string) *fault.Error {
	return fault.New(fault.NotFound, "grant_not_found", "Grant %s does not exist, or is not yours to see. List grants with: mayfly grant list", id)
}

// asked finds an unfinished grant of the caller for the very same request, so
// that a client that asks again goes on where it was instead of beginning anew.
func (e *Engine) asked(q ledger.Query, c Caller, a access, f footing) (ledger.Cosigned, bool) {
	kind := ledger.GrantAccess
	if a.Emergency {
		kind = ledger.GrantEmergency
	}
	want, err := cosign.Canonical(f.scope)
	if err != nil {
		return ledger.Cosigned{}, false
	}
	for _, id := range q.WaitingGrants(c.Session.Principal) {
		g, ok := q.Cosigned(id)
		d, err := g.Access()
		if !ok || err != nil || g.Kind != kind || g.Role != a.Role || len(g.Leases) > 0 || e.stateOf(q, g) != g.State {
			continue
		}
		have, err := cosign.CanonicalJSON(d.Scope)
		t, _ := q.Task(d.Task.ID)
		sameTask := f.task != nil && t.ID == f.task.ID || f.task == nil && t.Implicit && d.Purpose == a.Purpose
		sameTTL := a.ttl == 0 || min(int64(a.ttl/time.Second), d.TotalS) == d.TTLS
		if err == nil && bytes.Equal(have, want) && sameTask && sameTTL && d.Requester.Key == c.Session.Thumbprint && d.Requester.Instance == c.Session.Instance {
			return g, true
		}
	}
	return ledger.Cosigned{}, false
}

// stateOf is a grant's state as of now: the ledger learns of some ends only
// when somebody looks.
func (e *Engine) stateOf(q ledger.Query, g ledger.Cosigned) string {
	now := e.now().UnixMilli()
	switch g.State {
	case ledger.GrantWaiting, ledger.GrantApproved:
		switch {
		case g.CollectBeforeMS <= now:
			return ledger.GrantExpired
		case q.Stands(g) != "":
			return ledger.GrantVoid
		}
	case ledger.GrantOpen:
		if len(g.Leases) < g.MaxLeases && g.EndsByMS > now {
			return g.State
		}
		for _, id := range g.Leases {
			if l, ok := q.Lease(id); ok && l.State != ledger.LeaseEnded {
				return g.State
			}
		}
		return ledger.GrantEnded
	}
	return g.State
}

// CollectGrant picks up what was approved: the credential, or for a change its
// being made. Policy decides again, and every signature is counted again.
func (e *Engine) CollectGrant(ctx context.Context, c Caller, id string, in wire.CollectRequest) (wire.AccessAnswer, error) {
	g, err := e.ownGrant(c, id)
	if err != nil {
		return wire.AccessAnswer{}, err
	}
	if lease, ok, err := e.earlier(c); err != nil || ok {
		if err != nil {
			return wire.AccessAnswer{}, err
		}
		return e.repeat(ctx, c, lease)
	}
	switch g.State {
	case ledger.GrantWaiting:
		if g.Kind == ledger.GrantChange {
			return e.waitingChange(g)
		}
		return e.waiting(id)
	case ledger.GrantApproved, ledger.GrantOpen:
	default:
		return wire.AccessAnswer{}, grantOver(g)
	}
	if g.Kind == ledger.GrantChange {
		if err := e.makeChange(ctx, c, g); err != nil {
			return wire.AccessAnswer{}, err
		}
		return wire.AccessAnswer{Status: "issued", GrantID: g.ID, Scope: scope.Scope{}, Replaced: []string{}}, nil
	}
	d, err := g.Access()
	if err != nil {
		return wire.AccessAnswer{}, err
	}
	a, err := parseAccess(wire.AccessRequest{Role: d.Role, CSR: in.CSR, PublicKey: in.PublicKey})
	if err != nil {
		return wire.AccessAnswer{}, err
	}
	if a.scope, err = scope.Parse(d.Scope); err != nil {
		return wire.AccessAnswer{}, err
	}
	a.grant, a.document, a.Task, a.Purpose = &g, &d, d.Task.ID, d.Purpose
	a.ttl, a.Emergency = time.Duration(d.TTLS)*time.Second, d.Emergency
	return e.request(ctx, c, a)
}

func grantOver(g ledger.Cosigned) *fault.Error {
	why := ""
	if g.End != nil && g.End.Note != "" {
		why = ": " + g.End.Note
	}
	kind := fault.Denied
	if g.State == ledger.GrantEnded || g.State == ledger.GrantOpen {
		kind = fault.Conflict
	}
	return fault.New(kind, ledger.CodeGrantOver, "Grant %s is %s%s. Ask again if it is still needed.", g.ID, g.State, why)
}

// ownGrant returns a grant of the caller, its state as of now.
func (e *Engine) ownGrant(c Caller, id string) (g ledger.Cosigned, err error) {
	err = e.view(func(q ledger.Query) error {
		var ok bool
		if g, ok = q.Cosigned(id); !ok || g.Principal != c.Session.Principal {
			return grantNotFound(id)
		}
		g.State = e.stateOf(q, g)
		return nil
	})
	return g, err
}

// onGrant fits a lease to the grant that it is opened on.
func (a access) onGrant(l *ledger.Lease, now time.Time) {
	if a.grant == nil {
		return
	}
	g, d := a.grant, a.document
	l.Grant.ID, l.Grant.TaskID, l.Grant.Purpose = g.ID, g.TaskID, d.Purpose
	total := now.Add(time.Duration(d.TotalS) * time.Second).UnixMilli()
	if limit := min(g.EndsByMS, total); l.NotAfterMS > limit {
		l.NotAfterMS, l.Grant.BoundedBy = limit, "grant"
	}
	l.ExpiresMS = min(l.ExpiresMS, now.Add(time.Duration(d.TTLS)*time.Second).UnixMilli(), l.NotAfterMS)
}

// checkAgain refuses a grant whose approvals no longer are what policy asks for.
func (a access) checkAgain(f footing, r ruling) *fault.Error {
	if a.grant == nil || a.Emergency {
		return nil
	}
	for _, n := range needsOf(f.role.Approvals, r.Decision.Obligations.Approvals) {
		if !slices.ContainsFunc(a.grant.Needs, func(have cosign.Need) bool { return have.Group == n.Group && have.Count >= n.Count }) {
			return fault.New(fault.Denied, ledger.CodeGrantVoid, "Grant %s was approved for less than is asked now: %d of %s (%s). Ask again.", a.grant.ID, n.Count, n.Group, n.By)
		}
	}
	if o := r.Decision.Obligations.StepUp; o != "" && a.grant.StepUp != o {
		return fault.New(fault.Denied, ledger.CodeGrantVoid, "Grant %s was approved without the %s that is asked for now. Ask again.", a.grant.ID, o)
	}
	return nil
}

// signature takes a signature over from the wire. Verifiers are numbered; this
// build proposes the newest that every node knows.
func signature(s wire.Signature) cosign.Signature {
	return cosign.Signature{
		Verifier: cosign.Verifier1, Kind: s.Kind, Key: s.Key, AuthenticatorData: s.AuthenticatorData, ClientDataJSON: s.ClientDataJSON,
		Assertion: s.Assertion, SSHSIG: s.SSHSIG, JWS: s.JWS,
	}
}

// ApproveGrant adds the caller's co-signature over exactly the document with
// the hash that the caller saw.
func (e *Engine) ApproveGrant(ctx context.Context, c Caller, id string, in wire.ApproveRequest) (wire.Grant, error) {
	g, err := e.visible(c, id)
	if err != nil {
		return wire.Grant{}, err
	}
	if !strings.EqualFold(in.Hash, g.Hash) {
		return wire.Grant{}, fault.New(fault.Conflict, "hash_mismatch", "Grant %s has another hash than the one that was approved. Look at it again.", id)
	}
	h := e.header(c)
	own := g.StepUp != "" && e.isPerson(c, g.Principal)
	if !own { // a step-up is the requester's own word, not an approval
		r, err := e.oversee(ctx, c, policy.ActionApprove, g, false)
		if err != nil {
			return wire.Grant{}, err
		}
		h.DecisionID, h.Decision = r.ID, r.encode()
	}
	if _, err := e.commit(ctx, h, &ledger.ApproveGrant{GrantID: id, Signature: signature(in.Signature)}); err != nil {
		return wire.Grant{}, err
	}
	e.changed.tell()
	if g.Kind == ledger.GrantChange {
		if err := e.makeApproved(ctx, c, id); err != nil {
			return wire.Grant{}, err
		}
	}
	return e.Grant(ctx, c, id)
}

func (e *Engine) isPerson(c Caller, of string) (same bool) {
	_ = e.view(func(q ledger.Query) error { // what cannot be read is not the same
		same = q.Person(of) == c.Session.Principal
		return nil
	})
	return same
}

// oversee decides whether the caller may approve, deny, review or revoke a
// grant. Who is in a group that is asked for may, unless a policy forbids it: the
// role, or the policy that permitted the request, names the group for just that.
// Anybody else needs a permit; whether their signature counts is the ledger's to say.
// takes says that what is done only takes power away.
func (e *Engine) oversee(ctx context.Context, c Caller, action string, g ledger.Cosigned, takes bool) (ruling, error) {
	var r ruling
	var asked bool
	err := e.view(func(q ledger.Query) (err error) {
		res := policy.Resource{Kind: "Grant", Name: g.ID, Owner: g.Principal, Involved: q.Involved(g)}
		if g.Role != "" {
			role, err := e.resourceOf(q, ledger.KindRole, g.Role)
			if err != nil {
				return err
			}
			res.Target, res.Zone, res.Type, res.Labels = role.Target, role.Zone, role.Type, role.Labels
			res.Parents = []policy.Ref{{Kind: ledger.KindRole, Name: g.Role}}
		}
		asked = q.Asked(e.now().UnixMilli(), g, c.Session.Principal)
		r, err = e.decide(q, c, question{action: action, resource: res})
		return err
	})
	if err != nil {
		return r, err
	}
	switch {
	case !r.Decision.Permit && !(asked && r.Decision.Code == policy.CodeNoPermit):
		return r, e.deny(ctx, c, r)
	case asked || takes: // no permit is needed, or nothing that is to be agreed to
		return r, nil
	}
	return r, e.checkOwed(ctx, c, r)
}

// DenyGrant is an approver's no; it is final for this request.
func (e *Engine) DenyGrant(ctx context.Context, c Caller, id string, in wire.EndGrantRequest) (wire.Grant, error) {
	return e.endGrant(ctx, c, id, ledger.GrantDenied, policy.ActionApprove, in.Reason)
}

// CancelGrant is the requester's.
func (e *Engine) CancelGrant(ctx context.Context, c Caller, id string, in wire.EndGrantRequest) (wire.Grant, error) {
	return e.endGrant(ctx, c, id, ledger.GrantCancelled, "", in.Reason)
}

// RevokeGrant is an approver's regret: what was issued on the grant is withdrawn.
func (e *Engine) RevokeGrant(ctx context.Context, c Caller, id string, in wire.EndGrantRequest) (wire.Grant, error) {
	return e.endGrant(ctx, c, id, ledger.GrantRevoked, policy.ActionRevoke, in.Reason)
}

func (e *Engine) endGrant(ctx context.Context, c Caller, id, to, action, note string) (wire.Grant, error) {
	g, err := e.visible(c, id)
	if err != nil {
		return wire.Grant{}, err
	}
	h := e.header(c)
	signed := slices.ContainsFunc(g.Signed, func(s ledger.Signed) bool { return s.Principal == c.Session.Principal })
	if action != "" && !(to == ledger.GrantRevoked && signed) { // who approved may always take it back
		r, err := e.oversee(ctx, c, action, g, true)
		if err != nil {
			return wire.Grant{}, err
		}
		h.DecisionID, h.Decision = r.ID, r.encode()
	}
	if to == ledger.GrantDenied {
		if err := e.mayDeny(c, g); err != nil {
			return wire.Grant{}, err
		}
	}
	if _, err := e.commit(ctx, h, &ledger.EndGrant{GrantID: id, State: to, Note: note}); err != nil {
		return wire.Grant{}, err
	}
	e.changed.tell()
	e.wake()
	return e.Grant(ctx, c, id)
}

// mayDeny: who could approve may deny, and who has approved.
func (e *Engine) mayDeny(c Caller, g ledger.Cosigned) error {
	return e.view(func(q ledger.Query) error {
		why := q.MaySign(e.now().UnixMilli(), g, c.Session.Principal)
		signed := slices.ContainsFunc(g.Signed, func(s ledger.Signed) bool { return s.Principal == c.Session.Principal })
		if why != "" && !signed {
			return fault.New(fault.Denied, ledger.CodeNotEligible, "%s To take your own request back: mayfly grant cancel %s", why, g.ID)
		}
		return nil
	})
}

// ReviewGrant records a reviewer's signed word on an emergency.
func (e *Engine) ReviewGrant(ctx context.Context, c Caller, id string, in wire.ReviewRequest) (wire.Grant, error) {
	g, err := e.visible(c, id)
	if err != nil {
		return wire.Grant{}, err
	}
	r, err := e.oversee(ctx, c, policy.ActionReview, g, false)
	if err != nil {
		return wire.Grant{}, err
	}
	h := e.header(c)
	h.DecisionID, h.Decision = r.ID, r.encode()
	cmd := ledger.ReviewGrant{GrantID: id, Verdict: in.Verdict, Note: in.Note, Signature: signature(in.Signature)}
	if _, err := e.commit(ctx, h, &cmd); err != nil {
		return wire.Grant{}, err
	}
	e.changed.tell()
	return e.Grant(ctx, c, id)
}
