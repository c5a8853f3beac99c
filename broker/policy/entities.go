package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	cedar "github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
)

// facts is a request in Cedar's terms. It answers for the four entities that
// there are.
type facts struct {
	request             cedar.Request
	principal, resource cedar.Entity
	session, device     cedar.Entity
	principalKeys       []types.EntityUID // what index entries may name, sorted, each once
	resourceKeys        []types.EntityUID
}

var (
	sessionClaims = types.EntityUID{Type: claimsType, ID: "session"}
	deviceClaims  = types.EntityUID{Type: claimsType, ID: "device"}
)

// Get implements cedar.EntityGetter.
func (f *facts) Get(uid types.EntityUID) (types.Entity, bool) {
	switch uid {
	case f.principal.UID:
		return f.principal, true
	case f.resource.UID:
		return f.resource, true
	case sessionClaims:
		return f.session, true
	case deviceClaims:
		return f.device, true
	}
	return types.Entity{}, false
}

// facts checks r and turns its names into Cedar values; facts.fill adds the rest.
// code is "" when all is well.
func (v *vocabulary) facts(r *Request) (f *facts, code, problem string) {
	action := types.EntityUID{Type: actionType, ID: types.String(r.Action)}
	if !slices.Contains(v.actions, r.Action) {
		return nil, CodeUnknownAction, fmt.Sprintf("unknown action %s; there are %s", visible(clip(r.Action)), strings.Join(v.actions, ", "))
	}
	kind, ok := principalTypes[r.Principal.Kind]
	if !ok {
		return nil, CodeInvalidRequest, fmt.Sprintf("principal.kind %s is not one of agent, human, node, workload", visible(clip(r.Principal.Kind)))
	}
	resourceKind := types.EntityType(r.Resource.Kind)
	if !v.appliesTo(action, kind, resourceKind) {
		return nil, CodeInvalidRequest, fmt.Sprintf("action %s cannot be done to a resource of kind %s", r.Action, visible(clip(r.Resource.Kind)))
	}
	if problem := r.check(); problem != "" {
		return nil, CodeInvalidRequest, problem
	}
	principal := types.EntityUID{Type: kind, ID: types.String(r.Principal.Name)}
	resource := types.EntityUID{Type: resourceKind, ID: types.String(r.Resource.Name)}
	parents, problem := v.resourceParents(resource, &r.Resource)
	if problem != "" {
		return nil, CodeInvalidRequest, problem
	}
	groups := principalParents(&r.Principal)
	f = &facts{
		request:       cedar.Request{Principal: principal, Action: action, Resource: resource},
		principal:     cedar.Entity{UID: principal, Parents: cedar.NewEntityUIDSet(groups...)},
		resource:      cedar.Entity{UID: resource, Parents: cedar.NewEntityUIDSet(parents...)},
		session:       cedar.Entity{UID: sessionClaims},
		device:        cedar.Entity{UID: deviceClaims},
		principalKeys: keys(principal, groups),
		resourceKeys:  keys(resource, parents),
	}
	return f, "", ""
}

// keys returns all that a head may name and yet match uid with these parents.
func keys(uid types.EntityUID, parents []types.EntityUID) []types.EntityUID {
	out := make([]types.EntityUID, 0, len(parents)+3)
	out = append(out, anything, types.EntityUID{Type: uid.Type}, uid)
	out = append(out, parents...)
	slices.SortFunc(out, compareUID)
	return slices.Compact(out)
}

func compareUID(a, b types.EntityUID) int {
	return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.ID, b.ID))
}

func principalParents(p *Principal) []types.EntityUID {
	parents := make([]types.EntityUID, 0, len(p.Groups)+1)
	for _, g := range p.Groups {
		parents = append(parents, types.EntityUID{Type: groupType, ID: types.String(g)})
	}
	if p.Zone != "" {
		parents = append(parents, types.EntityUID{Type: zoneType, ID: types.String(p.Zone)})
	}
	return parents
}

// resourceParents returns all that the resource is in. Target and Zone count
// where the schema allows it; a Ref that it excludes is an error.
func (v *vocabulary) resourceParents(uid types.EntityUID, r *Resource) ([]types.EntityUID, string) {
	parents := make([]types.EntityUID, 0, len(r.Parents)+2)
	add := func(kind types.EntityType, name string) {
		parent := types.EntityUID{Type: kind, ID: types.String(name)}
		if name != "" && parent != uid && v.canBeIn(uid.Type, kind) {
			parents = append(parents, parent)
		}
	}
	add(targetType, r.Target)
	add(zoneType, r.Zone)
	for _, ref := range r.Parents {
		if !v.canBeIn(uid.Type, types.EntityType(ref.Kind)) {
			return nil, fmt.Sprintf("a %s cannot be in a %s", uid.Type, visible(clip(ref.Kind)))
		}
		add(types.EntityType(ref.Kind), ref.Name)
	}
	return parents, ""
}

// check says what is wrong with the sizes and texts of r; "" when nothing is.
func (r *Request) check() string {
	p, o, c := &r.Principal, &r.Resource, &r.Context
	if c.Now.Year() < 1970 || c.Now.Year() > 9999 {
		return "context.now must be the time of the decision"
	}
	var q inspection
	q.name("principal.name", p.Name, MaxEntityIDBytes-len("workload:"))
	q.name("resource.name", o.Name, MaxEntityIDBytes)
	if o.Kind == string(principalType) {
		kind, name, _ := strings.Cut(o.Name, ":")
		if _, ok := principalTypes[kind]; !ok || name == "" {
			q.problem = cmp.Or(q.problem, `resource.name of a Principal is "kind:name"`)
		}
	}
	q.list("principal.groups", p.Groups, MaxGroups, true)
	q.texts("principal", p.Owner, p.Model, p.Version, p.Provenance, p.Stage, p.Instance, p.Zone)
	q.labels("principal.labels", p.Labels)
	q.texts("resource", o.Target, o.Zone, o.Type, o.Owner)
	q.list("resource.involved", o.Involved, MaxChain*2, false)
	q.labels("resource.labels", o.Labels)
	q.count("resource.parents", len(o.Parents), MaxParents)
	for _, ref := range o.Parents {
		q.name("resource.parents", ref.Name, MaxEntityIDBytes)
	}
	q.text("context.purpose", c.Purpose, MaxPurposeBytes)
	q.texts("context", c.Zone, c.Session.Binding, c.Session.Method, c.Task.ID, c.Task.Name, c.Task.Owner)
	q.list("context.chain", c.Chain, MaxChain, false)
	q.labels("context.session.attestation", c.Session.Attestation)
	q.labels("context.device", c.Device)
	s := &c.Scope
	for _, list := range [][]string{s.Types, s.Identifiers, s.Locations, s.Actions, s.Datatypes, s.Privileges, s.Tables, s.Columns, s.Rows} {
		q.list("context.scope", list, MaxScopeEntries, false)
	}
	return q.problem
}

// inspection keeps the first problem it finds.
type inspection struct{ problem string }

func (q *inspection) count(where string, n, most int) bool {
	if n > most && q.problem == "" {
		q.problem = fmt.Sprintf("%s has %d entries; at most %d are allowed", where, n, most)
	}
	return n <= most
}

func (q *inspection) text(where, s string, most int) {
	if q.problem != "" {
		return
	}
	if len(s) > most {
		q.problem = fmt.Sprintf("%s has a text of %d bytes; at most %d are allowed", where, len(s), most)
	} else if !utf8.ValidString(s) {
		q.problem = where + " holds what is not UTF-8 text"
	}
}

func (q *inspection) texts(where string, list ...string) {
	for _, s := range list {
		q.text(where, s, MaxStringBytes)
	}
}

// name is for what becomes an entity's id.
func (q *inspection) name(where, s string, most int) {
	if q.problem != "" {
		return
	}
	if s == "" {
		q.problem = where + " is empty"
	} else if problem := checkText(s, most); problem != "" {
		q.problem = where + " " + problem
	}
}

func (q *inspection) list(where string, list []string, most int, isNames bool) {
	if !q.count(where, len(list), most) {
		return
	}
	for _, s := range list {
		if isNames {
			q.name(where, s, MaxEntityIDBytes)
		} else {
			q.text(where, s, MaxStringBytes)
		}
	}
}

func (q *inspection) labels(where string, m map[string]string) {
	if !q.count(where, len(m), MaxLabels) {
		return
	}
	for k, v := range m {
		q.text(where, k, MaxStringBytes)
		q.text(where, v, MaxStringBytes)
	}
}
