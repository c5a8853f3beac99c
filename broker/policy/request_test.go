package policy_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker/policy"
)

// full is a request in which everything is set.
func full() policy.Request {
	r := ann("sre", "dba")
	p, o, c := &r.Principal, &r.Resource, &r.Context
	p.Kind, p.Name = "agent", "coder"
	p.Owner, p.Model, p.Version, p.Provenance, p.Stage = "human:ann", "m1", "3", "ci", "production"
	p.Instance, p.Zone, p.Labels = "run-7", "dmz", map[string]string{"team": "billing"}
	o.Owner, o.Involved = "human:bo", []string{"human:kim"}
	o.Parents = []policy.Ref{{Kind: "Zone", Name: "europe"}}
	c.Zone, c.Emergency, c.Device = "office", true, map[string]string{"compliant": "true"}
	c.Session.AgeSeconds = 30
	c.Scope = policy.Scope{
		Types: []string{"database"}, Identifiers: []string{"orders"}, Locations: []string{"l"}, Actions: []string{"select"},
		Datatypes: []string{"d"}, Privileges: []string{"p"}, Tables: []string{"public.orders"}, Columns: []string{"id"},
		Rows: []string{`public.orders.id = "7"`},
	}
	return r
}

// Each condition reads one fact; it holds for the full request and not for the bare one.
func TestEveryFactReachesPolicies(t *testing.T) {
	bare := policy.Request{
		Principal: policy.Principal{Kind: "human", Name: "x"}, Action: policy.ActionRequest,
		Resource: policy.Resource{Kind: "Role", Name: "y"}, Context: policy.Context{Now: noon.Add(24 * time.Hour)},
	}
	for _, condition := range []string{
		`principal == Agent::"coder"`, `principal is Agent`, `principal.name == "agent:coder"`, `principal.owner == "human:ann"`,
		`principal.model == "m1"`, `principal.version == "3"`, `principal.provenance == "ci"`, `principal.stage == "production"`,
		`principal.instance == "run-7"`, `principal.zone == "dmz"`, `principal in Group::"dba"`, `principal in Zone::"dmz"`,
		`principal is Agent in Group::"sre"`, `principal in [Group::"none", Group::"sre"]`,
		`principal.hasTag("team") && principal.getTag("team") == "billing"`,
		`resource == Role::"orders/readwrite"`, `resource.name == "orders/readwrite"`, `resource.target == "orders"`, `resource.zone == "eu"`,
		`resource.type == "postgres"`, `resource.owner == "human:bo"`, `resource.involved.contains("human:kim")`,
		`resource in Target::"orders"`, `resource in Zone::"eu"`, `resource in Zone::"europe"`,
		`resource.hasTag("classification") && resource.getTag("classification") == "pii"`,
		`context.session.bound`, `context.session.binding == "dpop"`, `context.session.attested_key`, `context.session.method == "github"`,
		`context.session.age_seconds == 30`,
		`context.session.attestation.hasTag("repository_id") && context.session.attestation.getTag("repository_id") like "8*"`,
		`context.network has ip && context.network.ip.isInRange(ip("10.0.0.0/8"))`, `context.zone == "office"`,
		`context.now < datetime("2026-03-04")`, `context.purpose like "ticket:*"`,
		`context.task.id == "t1"`, `context.task.name == "deploy"`, `context.task.owner == "human:ann"`, `context.task.depth == 1`,
		`context.ttl_seconds == 600`, `context.risk == 10`, `context.chain.contains("agent:coder")`, `context.emergency`,
		`context.device.hasTag("compliant") && context.device.getTag("compliant") == "true"`,
		`context.scope.types.contains("database")`, `context.scope.identifiers == ["orders"]`, `context.scope.locations.contains("l")`,
		`context.scope.actions.containsAny(["delete", "select"])`, `context.scope.datatypes.contains("d")`, `context.scope.privileges.contains("p")`,
		`context.scope.tables.containsAll(["public.orders"])`, `context.scope.columns.contains("id")`, `context.scope.rows.contains("public.orders.id = \"7\"")`,
	} {
		t.Run(condition, func(t *testing.T) {
			s := compile(t, `@id("p") permit (principal, action == Action::"request", resource) when { `+condition+` };`)
			expect(t, s.Decide(full()), policy.CodePermit, "p")
			d := s.Decide(bare)
			expect(t, d, policy.CodeNoPermit)
			if len(d.Nearly) != 1 || d.Nearly[0].Missing == "" {
				t.Errorf("nearly %+v", d.Nearly)
			}
		})
	}
}

func TestTimeOfDayCanBeAsked(t *testing.T) {
	s := compile(t, `@id("p") permit (principal, action, resource) when { context.now.toTime() >= duration("8h") && context.now.toTime() < duration("18h") };`)
	expect(t, s.Decide(ann()), policy.CodePermit, "p")
	late := ann()
	late.Context.Now = noon.Add(7 * time.Hour)
	expect(t, s.Decide(late), policy.CodeNoPermit)
}

// A range written for IPv4 must also hold for the IPv6 form of such an address, which is what a
// dual-stack listener reports.
func TestAddressesAreWhatTheyMean(t *testing.T) {
	s := compile(t,
		`@id("all") permit (principal, action, resource);`,
		`@id("block") forbid (principal, action, resource) when { context.network has ip && context.network.ip.isInRange(ip("10.0.0.0/8")) };`)
	for address, code := range map[string]string{
		"10.9.8.7": policy.CodeForbidden, "::ffff:10.9.8.7": policy.CodeForbidden, "::ffff:10.9.8.7%eth0": policy.CodeForbidden,
		"11.0.0.1": policy.CodePermit, "fe80::1%eth0": policy.CodePermit, "": policy.CodePermit,
	} {
		r := ann()
		r.Context.Network.IP = netip.Addr{}
		if address != "" {
			r.Context.Network.IP = netip.MustParseAddr(address)
		}
		if d := s.Decide(r); d.Code != code {
			t.Errorf("%q: %s %v, want %s", address, d.Code, d.Errors, code)
		}
	}
}

// Whatever a name holds, it is one entity's id: it never becomes another, nor a piece of policy.
func TestNamesCannotBreakOut(t *testing.T) {
	s := compile(t,
		`@id("admin") permit (principal == Human::"admin", action, resource);`,
		`@id("group") permit (principal in Group::"sre", action, resource);`,
		`@id("quoted") permit (principal == Human::"a\"b\\c' // x", action, resource);`)
	for _, name := range []string{
		`admin", action, resource); //`, `admin"`, `"admin`, `\"admin`, `admin\u{0}`, `Human::"admin"`, `admin' OR '1'='1`, `human:admin`, `Admin`, `admin*`, `*`,
	} {
		r := ann(name, `sre" `, `Group::"sre"`)
		r.Principal.Name = name
		d := s.Decide(r)
		expect(t, d, policy.CodeNoPermit)
		if text := policy.Explain(d, r); strings.Count(text, "\n") != 6 {
			t.Errorf("explanation has other lines than it should:\n%s", text)
		}
	}
	r := ann()
	r.Principal.Name = `a"b\c' // x`
	expect(t, s.Decide(r), policy.CodePermit, "quoted")

	for _, name := range []string{"admin\x00", "admin\n", "\u202eadmin", "ad\u200bmin", "admin\u00a0", "admin\xff", "admin\u2028", "admin\U000E0041", ""} {
		for field, set := range map[string]func(*policy.Request){
			"principal": func(r *policy.Request) { r.Principal.Name = name },
			"resource":  func(r *policy.Request) { r.Resource.Name = name },
			"group":     func(r *policy.Request) { r.Principal.Groups = []string{name} },
			"parent":    func(r *policy.Request) { r.Resource.Parents = []policy.Ref{{Kind: "Zone", Name: name}} },
		} {
			r := ann("sre")
			set(&r)
			d := s.Decide(r)
			expect(t, d, policy.CodeInvalidRequest)
			if text := policy.Explain(d, r); strings.Count(text, "\n") != 3 || strings.ContainsAny(text, "\x00\u202e\u200b\u00a0\u2028\U000E0041") {
				t.Errorf("%s %q: explanation lets it through:\n%s", field, name, text)
			}
		}
	}
}

// An agent that carries a person's name is not that person.
func TestKindsDoNotMix(t *testing.T) {
	s := compile(t, `@id("p") permit (principal == Human::"ann", action, resource);`)
	for kind, code := range map[string]string{
		"human": policy.CodePermit, "agent": policy.CodeNoPermit, "workload": policy.CodeNoPermit, "node": policy.CodeNoPermit,
		"Human": policy.CodeInvalidRequest, "": policy.CodeInvalidRequest, "group": policy.CodeInvalidRequest, "hu\nman": policy.CodeInvalidRequest,
	} {
		r := ann()
		r.Principal.Kind = kind
		if d := s.Decide(r); d.Code != code || d.Permit != (code == policy.CodePermit) {
			t.Errorf("%q: %s, want %s", kind, d.Code, code)
		}
	}
}

func TestInvalidRequestsAreDeniedAndSaySo(t *testing.T) {
	s := compile(t, `@id("all") permit (principal, action, resource);`)
	many := func(n int) []string {
		out := make([]string, n)
		for i := range out {
			out[i] = fmt.Sprint("g", i)
		}
		return out
	}
	labels := func(n int) map[string]string {
		out := make(map[string]string)
		for _, k := range many(n) {
			out[k] = ""
		}
		return out
	}
	long := strings.Repeat("x", policy.MaxStringBytes+1)
	for name, c := range map[string]struct {
		code, says string
		change     func(*policy.Request)
	}{
		"action":        {policy.CodeUnknownAction, "unknown action delete; there are administer", func(r *policy.Request) { r.Action = "delete" }},
		"action case":   {policy.CodeUnknownAction, "unknown action", func(r *policy.Request) { r.Action = "Request" }},
		"action empty":  {policy.CodeUnknownAction, "unknown action \"\"", func(r *policy.Request) { r.Action = "" }},
		"pair":          {policy.CodeInvalidRequest, "action request cannot be done to a resource of kind Sink", func(r *policy.Request) { r.Resource.Kind = "Sink" }},
		"kind":          {policy.CodeInvalidRequest, "kind Bucket", func(r *policy.Request) { r.Resource.Kind = "Bucket" }},
		"claims":        {policy.CodeInvalidRequest, "kind Claims", func(r *policy.Request) { r.Action, r.Resource.Kind = "read", "Claims" }},
		"no time":       {policy.CodeInvalidRequest, "context.now", func(r *policy.Request) { r.Context.Now = time.Time{} }},
		"far time":      {policy.CodeInvalidRequest, "context.now", func(r *policy.Request) { r.Context.Now = time.Date(300_000, 1, 1, 0, 0, 0, 0, time.UTC) }},
		"parent":        {policy.CodeInvalidRequest, "a Role cannot be in a Group", func(r *policy.Request) { r.Resource.Parents = []policy.Ref{{Kind: "Group", Name: "x"}} }},
		"bare name":     {policy.CodeInvalidRequest, "resource.name of a Principal", func(r *policy.Request) { r.Action, r.Resource.Kind = "contain", "Principal" }},
		"groups":        {policy.CodeInvalidRequest, "principal.groups has 1025", func(r *policy.Request) { r.Principal.Groups = many(policy.MaxGroups + 1) }},
		"chain":         {policy.CodeInvalidRequest, "context.chain has 33", func(r *policy.Request) { r.Context.Chain = many(policy.MaxChain + 1) }},
		"labels":        {policy.CodeInvalidRequest, "principal.labels has 129", func(r *policy.Request) { r.Principal.Labels = labels(policy.MaxLabels + 1) }},
		"claims count":  {policy.CodeInvalidRequest, "attestation has 129", func(r *policy.Request) { r.Context.Session.Attestation = labels(policy.MaxLabels + 1) }},
		"device":        {policy.CodeInvalidRequest, "context.device", func(r *policy.Request) { r.Context.Device = map[string]string{"a": long} }},
		"parents":       {policy.CodeInvalidRequest, "resource.parents has 65", func(r *policy.Request) { r.Resource.Parents = make([]policy.Ref, policy.MaxParents+1) }},
		"scope":         {policy.CodeInvalidRequest, "context.scope has 4097", func(r *policy.Request) { r.Context.Scope.Columns = many(policy.MaxScopeEntries + 1) }},
		"scope text":    {policy.CodeInvalidRequest, "context.scope has a text", func(r *policy.Request) { r.Context.Scope.Tables = []string{long} }},
		"purpose":       {policy.CodeInvalidRequest, "context.purpose", func(r *policy.Request) { r.Context.Purpose = strings.Repeat("x", policy.MaxPurposeBytes+1) }},
		"purpose bytes": {policy.CodeInvalidRequest, "context.purpose", func(r *policy.Request) { r.Context.Purpose = "\xff" }},
		"owner":         {policy.CodeInvalidRequest, "principal has a text", func(r *policy.Request) { r.Principal.Owner = long }},
		"target":        {policy.CodeInvalidRequest, "resource has a text", func(r *policy.Request) { r.Resource.Target = long }},
		"involved":      {policy.CodeInvalidRequest, "resource.involved", func(r *policy.Request) { r.Resource.Involved = many(policy.MaxChain*2 + 1) }},
		"long name":     {policy.CodeInvalidRequest, "principal.name", func(r *policy.Request) { r.Principal.Name = long }},
	} {
		t.Run(name, func(t *testing.T) {
			r := ann("sre")
			expect(t, s.Decide(r), policy.CodePermit, "all")
			c.change(&r)
			d := s.Decide(r)
			expect(t, d, c.code)
			if len(d.Errors) != 1 || !strings.Contains(d.Errors[0], c.says) {
				t.Errorf("says %q, want %q", d.Errors, c.says)
			}
		})
	}
}

func TestExplain(t *testing.T) {
	s := compile(t, contractPolicy, `
@id("low-risk") @step_up("passkey") @description("For quiet days.")
permit (principal in Group::"sre", action == Action::"request", resource in Target::"orders")
when { context.session.bound && context.risk < 5 && context.purpose != "" } unless { context.emergency };
@id("for-dba") permit (principal is Human in Group::"dba", action, resource in Zone::"eu");
@id("no-night") forbid (principal, action, resource) when { context.now.toTime() < duration("6h") };`)
	expectText := func(r policy.Request, want string) {
		t.Helper()
		d := s.Decide(r)
		want = strings.TrimPrefix(want, "\n") + "  policies: sha256:" + s.Hash() + "\n"
		if got := policy.Explain(d, r); got != want {
			t.Errorf("got\n%swant\n%s", got, want)
		}
	}
	calm := ann("sre")
	calm.Context.Risk = 1
	expectText(calm, `
PERMIT (permit): human:ann request Role orders/readwrite
  permit by dba-write (doc0.cedar:2), which asks for @approvals("2") @approvers("dba") @max_ttl("15m")
  permit by low-risk (doc1.cedar:2), which asks for @step_up("passkey"): For quiet days.
  so: lives at most 15m0s
  so: needs 2 approval(s) from group dba (dba-write)
  so: needs a fresh passkey
`)
	bearer := ann("sre")
	bearer.Context.Session.AttestedKey = false
	expectText(bearer, `
DENY (no_permit): human:ann request Role orders/readwrite
  no policy permits it
  nearly: dba-write (doc0.cedar:2) permits it, but this does not hold: context.session.attested_key
  nearly: low-risk (doc1.cedar:2) permits it, but this does not hold: context.risk < 5
`)
	urgent := calm
	urgent.Context.Emergency = true
	urgent.Context.Session.AttestedKey = false
	expectText(urgent, `
DENY (no_permit): human:ann request Role orders/readwrite
  no policy permits it
  nearly: dba-write (doc0.cedar:2) permits it, but this does not hold: context.session.attested_key
  nearly: low-risk (doc1.cedar:2) permits it, but this does not hold: !(context.emergency)
`)
	expectText(ann(), `
DENY (no_permit): human:ann request Role orders/readwrite
  no policy permits it
  nearly: dba-write (doc0.cedar:2) permits it, but this does not hold: principal in Group::"sre"
  nearly: for-dba (doc1.cedar:5) permits it, but this does not hold: principal is Human in Group::"dba"
  nearly: low-risk (doc1.cedar:2) permits it, but this does not hold: principal in Group::"sre"
`)
	night := calm
	night.Context.Now = noon.Add(-11 * time.Hour)
	expectText(night, `
DENY (forbidden_by_policy): human:ann request Role orders/readwrite
  forbid by no-night (doc1.cedar:6)
`)
}

func TestNearMissesAreBounded(t *testing.T) {
	var whens, others strings.Builder
	for i := range 100 {
		fmt.Fprintf(&whens, "@id(\"w%03d\") permit (principal, action, resource) when { context.purpose == \"%s\" };\n", i, strings.Repeat("é", 200))
		fmt.Fprintf(&others, "@id(\"o%03d\") permit (principal == Human::\"h%d\", action, resource);\n", i, i)
	}
	for _, text := range []string{whens.String(), others.String()} {
		d := compile(t, text).Decide(ann())
		if len(d.Nearly) != policy.MaxNearly || !strings.HasSuffix(d.Nearly[0].ID, "000") || !strings.HasSuffix(d.Nearly[7].ID, "007") {
			t.Errorf("nearly %+v", d.Nearly)
		}
		for _, n := range d.Nearly {
			if len(n.Missing) > policy.MaxReasonText || !strings.Contains(n.Missing, "==") {
				t.Errorf("%d bytes: %s", len(n.Missing), n.Missing)
			}
		}
	}
}

// Near misses come from several tables of the index, one of them a map; their order must be that
// of ids all the same, and a head that asks for another kind is not near.
func TestNearMissesAreSortedAndNear(t *testing.T) {
	s := compile(t, `
@id("f") permit (principal in Group::"sre", action, resource == Role::"orders/readwrite") when { context.emergency };
@id("e") permit (principal == Human::"ann", action == Action::"request", resource) when { context.emergency };
@id("d") permit (principal is Human, action, resource in Zone::"eu") when { context.emergency };
@id("c") permit (principal, action, resource in Target::"orders") when { context.emergency };
@id("b") permit (principal is Agent in Group::"sre", action, resource) when { context.emergency };
@id("a") permit (principal, action, resource is Account in Target::"orders") when { context.emergency };`)
	near := func(r policy.Request) string {
		var out string
		for _, n := range s.Decide(r).Nearly {
			out += n.ID
		}
		return out
	}
	for range 20 {
		if got := near(ann("sre")); got != "cdef" {
			t.Fatalf("near are %q, want cdef", got)
		}
	}
	other := compile(t, `
@id("a") permit (principal == Human::"bo", action, resource is Account in Target::"orders");
@id("b") permit (principal == Human::"bo", action, resource is Role in Target::"orders");`)
	if d := other.Decide(ann()); len(d.Nearly) != 1 || d.Nearly[0].ID != "b" {
		t.Errorf("near are %+v, want b", d.Nearly)
	}
}
