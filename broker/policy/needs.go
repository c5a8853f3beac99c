package policy

import (
	"net/netip"

	cedar "github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
)

// needs says which facts some policies look at. Making Cedar values of a whole
// request takes several times as long as evaluating the few policies that apply
// to it, so that only what they can read is made.
//
// Bit i is contextFields[i]; the two above are attributes and tags of principal
// and resource. What they are in is always there.
type needs uint32

const (
	needPrincipal  needs = 1 << 30
	needResource   needs = 1 << 31
	needEverything needs = 1<<32 - 1
)

// contextField is one attribute of the context.
type contextField struct {
	name  types.String
	value func(*Context) types.Value
}

// contextFields are the attributes of the schema's Context, at most 30.
var contextFields = [...]contextField{
	{"session", func(c *Context) types.Value { return sessionRecord(&c.Session) }},
	{"network", func(c *Context) types.Value { return networkRecord(c.Network) }},
	{"zone", func(c *Context) types.Value { return types.String(c.Zone) }},
	{"now", func(c *Context) types.Value { return types.NewDatetime(c.Now) }},
	{"purpose", func(c *Context) types.Value { return types.String(c.Purpose) }},
	{"task", func(c *Context) types.Value { return taskRecord(&c.Task) }},
	{"ttl_seconds", func(c *Context) types.Value { return types.Long(c.TTLSeconds) }},
	{"scope", func(c *Context) types.Value { return scopeRecord(&c.Scope) }},
	{"risk", func(c *Context) types.Value { return types.Long(c.Risk) }},
	{"chain", func(c *Context) types.Value { return set(c.Chain) }},
	{"emergency", func(c *Context) types.Value { return types.Boolean(c.Emergency) }},
	{"device", func(*Context) types.Value { return deviceClaims }},
}

// needsOf reads off a policy's conditions what they can look at. What it cannot
// tell for sure, it takes for everything.
func needsOf(p *ast.Policy) needs {
	var n needs
	for _, c := range p.Conditions {
		ast.Inspect(ast.NewNode(c.Body), n.node)
	}
	return n
}

// node is given to ast.Inspect.
func (n *needs) node(node ast.IsNode) bool {
	switch at := node.(type) {
	case ast.NodeTypeAccess:
		return n.read(at.Arg, string(at.Value))
	case ast.NodeTypeHas:
		return n.read(at.Arg, string(at.Value))
	case ast.NodeTypeGetTag:
		return n.tag(at.BinaryNode)
	case ast.NodeTypeHasTag:
		return n.tag(at.BinaryNode)
	case ast.NodeTypeVariable:
		if at.Name == "context" { // as a whole
			*n = needEverything
		}
	}
	return true
}

// read notes that attribute name of subject is looked at, and reports whether
// there is more to see in subject.
func (n *needs) read(subject ast.IsNode, name string) bool {
	root, path, ok := pathOf(subject)
	if !ok {
		*n = needEverything
		return true
	}
	n.note(root, append(path, name)[0])
	return false
}

func (n *needs) tag(at ast.BinaryNode) bool {
	if n.read(at.Left, "") {
		return true
	}
	ast.Inspect(ast.NewNode(at.Right), n.node) // a tag's name may be an expression
	return false
}

func (n *needs) note(root, field string) {
	switch root {
	case "principal":
		*n |= needPrincipal
		return
	case "resource":
		*n |= needResource
		return
	case "context":
		for i := range contextFields {
			if string(contextFields[i].name) == field {
				*n |= 1 << i
				return
			}
		}
	}
	*n = needEverything
}

// fill makes what is needed of r, which f was made of.
func (f *facts) fill(r *Request, n needs) {
	if n&needPrincipal != 0 {
		f.principal.Attributes, f.principal.Tags = principalRecord(&r.Principal), tags(r.Principal.Labels)
	}
	if n&needResource != 0 {
		f.resource.Attributes, f.resource.Tags = resourceRecord(&r.Resource), tags(r.Resource.Labels)
	}
	record := make(cedar.RecordMap)
	for i := range contextFields {
		if n&(1<<i) != 0 {
			record[contextFields[i].name] = contextFields[i].value(&r.Context)
		}
	}
	if _, ok := record["session"]; ok {
		f.session.Tags = tags(r.Context.Session.Attestation)
	}
	if _, ok := record["device"]; ok {
		f.device.Tags = tags(r.Context.Device)
	}
	f.request.Context = cedar.NewRecord(record)
}

func sessionRecord(s *Session) cedar.Record {
	return cedar.NewRecord(cedar.RecordMap{
		"bound":        types.Boolean(s.Bound),
		"binding":      types.String(s.Binding),
		"attested_key": types.Boolean(s.AttestedKey),
		"method":       types.String(s.Method),
		"age_seconds":  types.Long(s.AgeSeconds),
		"attestation":  sessionClaims,
	})
}

func networkRecord(n Network) cedar.Record {
	if !n.IP.IsValid() {
		return cedar.Record{}
	}
	// 4-in-6 addresses would slip past ranges written for IPv4.
	ip := n.IP.Unmap().WithZone("")
	return cedar.NewRecord(cedar.RecordMap{"ip": types.IPAddr(netip.PrefixFrom(ip, ip.BitLen()))})
}

func taskRecord(t *Task) cedar.Record {
	return cedar.NewRecord(cedar.RecordMap{
		"id":    types.String(t.ID),
		"name":  types.String(t.Name),
		"owner": types.String(t.Owner),
		"depth": types.Long(t.Depth),
	})
}

func scopeRecord(s *Scope) cedar.Record {
	return cedar.NewRecord(cedar.RecordMap{
		"types":       set(s.Types),
		"identifiers": set(s.Identifiers),
		"locations":   set(s.Locations),
		"actions":     set(s.Actions),
		"datatypes":   set(s.Datatypes),
		"privileges":  set(s.Privileges),
		"tables":      set(s.Tables),
		"columns":     set(s.Columns),
		"rows":        set(s.Rows),
	})
}

func principalRecord(p *Principal) cedar.Record {
	return cedar.NewRecord(cedar.RecordMap{
		"name":       types.String(p.Kind + ":" + p.Name),
		"owner":      types.String(p.Owner),
		"model":      types.String(p.Model),
		"version":    types.String(p.Version),
		"provenance": types.String(p.Provenance),
		"stage":      types.String(p.Stage),
		"instance":   types.String(p.Instance),
		"zone":       types.String(p.Zone),
	})
}

func resourceRecord(r *Resource) cedar.Record {
	return cedar.NewRecord(cedar.RecordMap{
		"name":     types.String(r.Name),
		"target":   types.String(r.Target),
		"zone":     types.String(r.Zone),
		"type":     types.String(r.Type),
		"owner":    types.String(r.Owner),
		"involved": set(r.Involved),
	})
}

func set(list []string) cedar.Set {
	values := make([]types.Value, len(list))
	for i, s := range list {
		values[i] = types.String(s)
	}
	return cedar.NewSet(values...)
}

func tags(m map[string]string) cedar.Record {
	if len(m) == 0 {
		return cedar.Record{}
	}
	record := make(cedar.RecordMap, len(m))
	for k, v := range m {
		record[types.String(k)] = types.String(v)
	}
	return cedar.NewRecord(record)
}
