package console

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// Person is a principal in a list.
type Person struct {
	Name, Owner, Model string
	Leases             int
}

type principalsBody struct {
	Kinds []string
	By    map[string][]Person
	Full  bool
}

func (s *Console) listPrincipals(x *exchange) error {
	ctx := x.r.Context()
	objects, err := x.engine.Objects(ctx, x.caller, ledger.KindPrincipal)
	if err != nil {
		return err
	}
	live, err := x.engine.Leases(ctx, x.caller, broker.LeaseFilter{State: "open", Limit: maxTree})
	if err != nil {
		return err
	}
	b := principalsBody{By: map[string][]Person{}, Kinds: []string{"human", "agent", "workload", "node"}}
	for i, o := range objects {
		if i == maxTree {
			b.Full = true
			break
		}
		var spec ledger.PrincipalSpec
		_ = json.Unmarshal(o.Spec, &spec) // what is not readable is shown without
		p := Person{Name: o.Name, Owner: spec.Owner}
		if spec.Agent != nil {
			p.Model = strings.TrimSpace(spec.Agent.Model + " " + spec.Agent.Version)
		}
		for _, l := range live {
			if l.Principal == o.Name {
				p.Leases++
			}
		}
		kind, _, _ := strings.Cut(o.Name, ":")
		b.By[kind] = append(b.By[kind], p)
	}
	return x.show("principals", page{Title: "Principals", Nav: "principals", Body: b})
}

// Membership is a group that somebody is in.
type Membership struct {
	Group string
	Until *time.Time
}

type principalBody struct {
	Name   string
	Spec   ledger.PrincipalSpec
	Object wire.Object
	Groups []Membership
	Keys   []wire.Key
	Leases []wire.Lease
	Grants []wire.Grant
	Owns   []string
	Mine   bool
	// Hidden names the parts that the caller may not read.
	Hidden []string
}

func (s *Console) showPrincipal(x *exchange) error {
	ctx, name := x.r.Context(), x.r.PathValue("name")
	o, err := x.engine.Object(ctx, x.caller, ledger.KindPrincipal, name)
	if err != nil {
		return err
	}
	b := principalBody{Name: name, Object: o, Mine: name == x.me.Principal}
	_ = json.Unmarshal(o.Spec, &b.Spec)
	hide := func(what string, err error) error {
		if k := fault.KindOf(err); err != nil && k != fault.Denied && k != fault.NotFound {
			return err
		}
		if err != nil {
			b.Hidden = append(b.Hidden, what)
		}
		return nil
	}
	groups, err := x.engine.Objects(ctx, x.caller, ledger.KindGroup)
	if err := hide("groups", err); err != nil {
		return err
	}
	b.Groups = memberships(groups, name)
	b.Keys, err = x.engine.Keys(ctx, x.caller, name)
	if err := hide("keys", err); err != nil {
		return err
	}
	b.Leases, err = x.engine.Leases(ctx, x.caller, broker.LeaseFilter{State: "open", Principal: name, Limit: perPage})
	if err := hide("leases", err); err != nil {
		return err
	}
	b.Grants, err = x.engine.Grants(ctx, x.caller, broker.GrantFilter{Principal: name, Limit: 10})
	if err := hide("grants", err); err != nil {
		return err
	}
	if others, err := x.engine.Objects(ctx, x.caller, ledger.KindPrincipal); err == nil {
		for _, o := range others {
			var spec ledger.PrincipalSpec
			if json.Unmarshal(o.Spec, &spec) == nil && spec.Owner == name {
				b.Owns = append(b.Owns, o.Name)
			}
		}
	}
	return x.show("principal", page{Title: name, Nav: "principals", Body: b})
}

// memberships lists the groups that name somebody.
func memberships(groups []wire.Object, name string) (out []Membership) {
	for _, o := range groups {
		var g ledger.GroupSpec
		if json.Unmarshal(o.Spec, &g) != nil {
			continue
		}
		for _, m := range g.Members {
			if m.Name == name {
				out = append(out, Membership{Group: o.Name, Until: m.Until})
			}
		}
	}
	return out
}

// Place is a target in a list.
type Place struct {
	Name, Type, Zone, Address string
	Labels                    []Fact
	Roles, Leases             int
}

type targetsBody struct {
	Targets []Place
	Plugins []wire.NodePlugin
}

func (s *Console) listTargets(x *exchange) error {
	ctx := x.r.Context()
	targets, err := x.engine.Objects(ctx, x.caller, ledger.KindTarget)
	if err != nil {
		return err
	}
	roles, err := x.engine.Objects(ctx, x.caller, ledger.KindRole)
	if err != nil {
		return err
	}
	live, err := x.engine.Leases(ctx, x.caller, broker.LeaseFilter{State: "open", Limit: maxTree})
	if err != nil {
		return err
	}
	var b targetsBody
	for _, o := range targets {
		p := placeOf(o)
		for _, r := range roles {
			if ledger.RoleTarget(r.Name) == o.Name {
				p.Roles++
			}
		}
		for _, l := range live {
			if l.Target == o.Name {
				p.Leases++
			}
		}
		b.Targets = append(b.Targets, p)
	}
	if b.Plugins, err = x.engine.NodePlugins(ctx, x.caller); err != nil {
		return err
	}
	return x.show("targets", page{Title: "Targets", Nav: "targets", Body: b})
}

func placeOf(o wire.Object) Place {
	var spec struct {
		Type    string            `json:"type"`
		Zone    string            `json:"zone"`
		Address string            `json:"address"`
		Labels  map[string]string `json:"labels"`
	}
	_ = json.Unmarshal(o.Spec, &spec)
	p := Place{Name: o.Name, Type: spec.Type, Zone: spec.Zone, Address: spec.Address}
	for k, v := range spec.Labels {
		p.Labels = append(p.Labels, Fact{Name: k, Value: v})
	}
	slices.SortFunc(p.Labels, func(a, b Fact) int { return cmp.Compare(a.Name, b.Name) })
	return p
}

// Privilege is a role as a target's page shows it.
type Privilege struct {
	Name   string
	Spec   ledger.RoleSpec
	Tree   []Branch
	Alarms []Alarm
}

type targetBody struct {
	Place  Place
	Object wire.Object
	Roles  []Privilege
	Leases []wire.Lease
	Report *wire.TargetReport
	// Turns are the rotations of its own secret and of accounts on it.
	Turns []Turn
	// Plugin is how its kind's process does on this node, where it has one.
	Plugin *wire.NodePlugin
}

func (s *Console) showTarget(x *exchange) error { return s.targetPage(x, nil) }

func (s *Console) targetPage(x *exchange, report *wire.TargetReport) error {
	ctx, name := x.r.Context(), x.r.PathValue("name")
	o, err := x.engine.Object(ctx, x.caller, ledger.KindTarget, name)
	if err != nil {
		return err
	}
	b := targetBody{Place: placeOf(o), Object: o, Report: report}
	roles, err := x.engine.Objects(ctx, x.caller, ledger.KindRole)
	if err != nil {
		return err
	}
	for _, r := range roles {
		if ledger.RoleTarget(r.Name) != name {
			continue
		}
		p := Privilege{Name: r.Name}
		_ = json.Unmarshal(r.Spec, &p.Spec)
		p.Tree, p.Alarms = scopeTree(p.Spec.Scope), alarms(p.Spec.Scope)
		b.Roles = append(b.Roles, p)
	}
	if b.Leases, err = x.engine.Leases(ctx, x.caller, broker.LeaseFilter{State: "open", Target: name, Limit: perPage}); err != nil {
		return err
	}
	if b.Turns, _, err = x.turnsFor(name); err != nil {
		return err
	}
	plugins, err := x.engine.NodePlugins(ctx, x.caller)
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(plugins, func(p wire.NodePlugin) bool { return p.Name == b.Place.Type }); i >= 0 {
		b.Plugin = &plugins[i]
	}
	return x.show("target", page{Title: name, Nav: "targets", Body: b})
}

// checkTarget asks the target itself. Its answer is shown at once and kept
// nowhere.
func (s *Console) checkTarget(x *exchange) error {
	report, err := x.engine.CheckTarget(x.r.Context(), x.caller, x.r.PathValue("name"))
	if err != nil {
		return err
	}
	return s.targetPage(x, &report)
}

type clusterBody struct {
	Peers []wire.Peer
	// Closed says why nobody can sign in here now: sealed, no leader …
	Closed *fault.Error
}

// showCluster needs no session: whoever finds a sealed node has none.
func (s *Console) showCluster(x *exchange) error {
	var b clusterBody
	if _, err := s.cfg.Engine(); err != nil {
		b.Closed = fault.As(err)
	}
	if x.signedIn() {
		peers, err := s.cfg.Node.Peers(x.r.Context(), x.caller)
		if err == nil {
			b.Peers = peers
		}
	}
	return x.show("cluster", page{Title: "Cluster", Nav: "cluster", Body: b})
}
