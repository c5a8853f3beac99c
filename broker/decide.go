package broker

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/policy"
	"github.com/mayfly-broker/mayfly/scope"
)

// Caller is who calls: already authenticated, its key proven for this request.
type Caller struct {
	Session ledger.Session
	Address string
	Idem    *ledger.Idem
}

// ground is what decisions rest on, compiled once per policy epoch.
type ground struct {
	epoch    uint64
	policies string // versions of the policies, to compile only when they change
	set      *policy.Set
	members  memberships
	zones    []zoneNet
	docs     documents
}

type zoneNet struct {
	zone   string
	prefix netip.Prefix
}

// decider keeps the newest ground.
type decider struct {
	mu   sync.Mutex
	last *ground
}

// at returns the ground of the state that q reads.
func (d *decider) at(q ledger.Query) (*ground, error) {
	epoch := q.PolicyEpoch()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.last != nil && d.last.epoch == epoch {
		return d.last, nil
	}
	objects := q.Objects(ledger.KindPolicy)
	var versions strings.Builder
	for _, o := range objects {
		fmt.Fprintf(&versions, "%s@%d\n", o.Name, o.Version)
	}
	g := &ground{epoch: epoch, policies: versions.String(), members: membersOf(q.Objects(ledger.KindGroup)), zones: zoneNets(q.Objects(ledger.KindZone))}
	if d.last != nil && d.last.policies == g.policies {
		g.set = d.last.set
	} else {
		set, err := policy.Compile(policySources(objects))
		if err != nil {
			// The set was checked before it was committed: only another build's
			// Cedar can refuse it. Deny everything rather than guess.
			return nil, fault.Wrap(err, fault.Internal, "policies_unreadable", "The stored policies do not compile in this build.")
		}
		g.set = set
	}
	d.last = g
	return g, nil
}

func policySources(objects []ledger.Object) []policy.Source {
	var out []policy.Source
	for _, o := range objects {
		var p ledger.PolicySpec
		if json.Unmarshal(o.Spec, &p) == nil {
			out = append(out, policy.Source{Name: o.Name, Text: p.Text})
		}
	}
	return out
}

func zoneNets(objects []ledger.Object) []zoneNet {
	var out []zoneNet
	for _, o := range objects {
		var z ledger.ZoneSpec
		if json.Unmarshal(o.Spec, &z) != nil {
			continue
		}
		for _, n := range z.Networks {
			if p, err := netip.ParsePrefix(n); err == nil {
				out = append(out, zoneNet{zone: o.Name, prefix: p})
			}
		}
	}
	slices.SortStableFunc(out, func(a, b zoneNet) int { return cmp.Compare(b.prefix.Bits(), a.prefix.Bits()) })
	return out
}

// memberships is who is in which groups, by principal, read out of the groups'
// documents once: a group may have ten thousand members, and every decision
// asks.
type memberships map[string][]membership

type membership struct {
	group string
	until *time.Time // nil: for ever
}

// membersOf reads groups, which come sorted by name.
func membersOf(groups []ledger.Object) memberships {
	out := memberships{}
	for _, o := range groups {
		var g ledger.GroupSpec
		if json.Unmarshal(o.Spec, &g) != nil {
			continue
		}
		for _, m := range g.Members {
			out[m.Name] = append(out[m.Name], membership{group: o.Name, until: m.Until})
		}
	}
	return out
}

// groups returns the groups that principal is in at an instant, sorted, each
// once.
func (m memberships) groups(principal string, now time.Time) []string {
	var out []string
	for _, in := range m[principal] {
		if (in.until == nil || in.until.After(now)) && !slices.Contains(out, in.group) {
			out = append(out, in.group)
		}
	}
	return out
}

// question is one thing to be decided.
type question struct {
	action   string
	resource policy.Resource
	context  policy.Context
}

// ruling is a decision with the request it answers: what is recorded.
type ruling struct {
	ID       string          `json:"-"`
	Decision policy.Decision `json:"decision"`
	Request  policy.Request  `json:"request"`
}

func (r ruling) encode() json.RawMessage {
	b, err := json.Marshal(r)
	if err != nil { // plain structs of strings and numbers
		return json.RawMessage(`{}`)
	}
	return b
}

// decide answers a question for the caller by the state that q reads.
func (e *Engine) decide(q ledger.Query, c Caller, ask question) (ruling, error) {
	g, err := e.decider.at(q)
	if err != nil {
		return ruling{}, err
	}
	id, err := e.newID(ledger.PrefixDecision)
	if err != nil {
		return ruling{}, err
	}
	r := ruling{ID: id, Request: policy.Request{Action: ask.action, Resource: ask.resource, Context: ask.context}}
	r.Request.Principal = e.principal(q, g, c.Session.Principal, c.Session.Instance)
	e.fillContext(g, c, &r.Request.Context)
	r.Decision = g.set.Decide(r.Request)
	return r, nil
}

func (e *Engine) principal(q ledger.Query, g *ground, name, instance string) policy.Principal {
	kind, rest, _ := strings.Cut(name, ":")
	p := policy.Principal{Kind: kind, Name: rest, Instance: instance, Groups: g.members.groups(name, e.now())}
	spec := g.owner(q, name)
	p.Owner, p.Zone, p.Labels = spec.Owner, spec.Zone, spec.Labels
	if a := spec.Agent; a != nil {
		p.Model, p.Version, p.Provenance, p.Stage = a.Model, a.Version, a.Provenance, a.Stage
	}
	return p
}

func (e *Engine) fillContext(g *ground, c Caller, ctx *policy.Context) {
	s := c.Session
	ctx.Now = e.now()
	ctx.Session = policy.Session{
		Bound:       s.Binding == "dpop" || s.Binding == "mtls",
		Binding:     s.Binding,
		AttestedKey: s.AttestedKey,
		Method:      s.Method,
		AgeSeconds:  max(0, (ctx.Now.UnixMilli()-s.CreatedMS)/1000),
		Attestation: s.Facts,
	}
	ip, err := netip.ParseAddr(c.Address)
	if err != nil {
		return
	}
	ctx.Network.IP = ip.Unmap()
	for _, z := range g.zones {
		if z.prefix.Contains(ctx.Network.IP) {
			ctx.Zone = z.zone
			return
		}
	}
}

// flatten spells a scope out for policies.
func flatten(s scope.Scope) policy.Scope {
	var out policy.Scope
	add := func(dst *[]string, items ...string) {
		for _, it := range items {
			if it != "" && !slices.Contains(*dst, it) {
				*dst = append(*dst, it)
			}
		}
	}
	for _, d := range s {
		add(&out.Types, d.Type)
		add(&out.Identifiers, d.Identifier)
		add(&out.Locations, d.Locations...)
		add(&out.Actions, d.Actions...)
		add(&out.Datatypes, d.Datatypes...)
		add(&out.Privileges, d.Privileges...)
		for _, t := range d.Tables {
			add(&out.Tables, t.Name)
			for _, col := range t.Columns {
				add(&out.Columns, t.Name+"."+col)
			}
			for _, c := range t.Rows {
				add(&out.Rows, t.Name+"."+c.String())
			}
		}
	}
	return out
}

// resource describes an object to policy.
func (g *ground) resource(q ledger.Query, kind, name string) policy.Resource {
	r := policy.Resource{Kind: kind, Name: name}
	target := name
	switch kind {
	case ledger.KindTarget:
	case ledger.KindRole:
		target = ledger.RoleTarget(name)
		r.Target = target
	default:
		return r
	}
	if t := g.target(q, target); t != nil {
		r.Zone, r.Type, r.Labels = t.spec.Zone, t.spec.Type, t.spec.Labels
	}
	if role := g.role(q, name); kind == ledger.KindRole && role != nil && len(role.spec.Labels) > 0 {
		r.Labels = merge(r.Labels, role.spec.Labels)
	}
	return r
}

// resourceOf is [ground.resource] with the newest ground.
func (e *Engine) resourceOf(q ledger.Query, kind, name string) (policy.Resource, error) {
	g, err := e.decider.at(q)
	if err != nil {
		return policy.Resource{}, err
	}
	return g.resource(q, kind, name), nil
}

// merge returns a with b's entries on top.
func merge(a, b map[string]string) map[string]string {
	out := make(map[string]string, len(a)+len(b))
	for k, v := range a {
		out[k] = v
	}
	for k, v := range b {
		out[k] = v
	}
	return out
}

// mayRead reports whether policy lets the caller read a kind of thing, without
// recording a denial: lists then show what is the caller's own.
func (e *Engine) mayRead(q ledger.Query, c Caller, r policy.Resource) bool {
	rule, err := e.decide(q, c, question{action: policy.ActionRead, resource: r})
	return err == nil && rule.Decision.Permit && rule.owed(nil).none()
}
