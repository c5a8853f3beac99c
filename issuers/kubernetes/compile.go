package kubernetes

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/mayfly-broker/mayfly/scope"
)

// scopeType is the type of every detail of a scope for this kind.
const scopeType = "kubernetes"

// The two actions that are not verbs: a detail is of one form alone.
const (
	actionToken       = "token"       // a token of a service account that exists
	actionClusterRole = "clusterrole" // the ClusterRoles in privileges
)

// audiencePrefix marks a location that is an audience.
const audiencePrefix = "audience:"

// verbs are those that a scope can name. There is no way to say "*".
var verbs = []string{
	"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection",
	// each of these makes its holder greater than it looks, so it must stand there to the letter
	"escalate", "bind", "impersonate", "use", "approve", "sign",
}

// nameless verbs concern objects whose name the API server does not know when it
// decides.
var nameless = []string{"create", "deletecollection"}

// resourceWord is deployments.apps/scale: resource, group, subresource.
var resourceWord = regexp.MustCompile(`^([a-z0-9-]{1,63})(?:\.([a-z0-9.-]{1,253}))?(?:/([a-z0-9-]{1,63}))?$`)

// rule is one rule of a Role (rbac.authorization.k8s.io/v1).
type rule struct {
	APIGroups     []string `json:"apiGroups"`
	Resources     []string `json:"resources"`
	ResourceNames []string `json:"resourceNames,omitempty"`
	Verbs         []string `json:"verbs"`
}

// grant is what a lease gets in one namespace; in the whole cluster where
// namespace is empty.
type grant struct {
	namespace    string
	rules        []rule
	clusterRoles []string
}

// plan is a scope as this kind understands it: the token of one account, or
// grants to one that is made for the lease.
type plan struct {
	namespace, account string // of an account that exists; empty with grants
	audiences          []string
	grants             []grant
}

// compile turns a scope into a plan, whatever the target's spec allows: a lease
// must be withdrawn by its scope after the spec has become narrower.
func compile(in scope.Scope) (plan, error) {
	s, err := in.Normalise()
	if err != nil {
		return plan{}, fmt.Errorf("kubernetes: %w", err)
	}
	b := builder{grants: map[string]*grant{}}
	for _, d := range s {
		if err := b.add(d); err != nil {
			return plan{}, fmt.Errorf("kubernetes: scope: %w", err)
		}
	}
	return b.plan(len(s))
}

type builder struct {
	token  *plan
	grants map[string]*grant
}

func (b *builder) add(d scope.Detail) error {
	switch {
	case d.Type != scopeType:
		return fmt.Errorf("type %q; this target knows %s", d.Type, scopeType)
	case d.Identifier != "" || len(d.Tables) > 0:
		return errors.New("identifier and tables mean nothing to Kubernetes; places stand in locations, resources in datatypes")
	case len(d.Locations) == 0:
		return errors.New(`locations are needed: "shop/*" for a namespace, "shop/web" for the objects of that name in it, "*" for the whole cluster`)
	case slices.Contains(d.Actions, actionToken):
		return b.addToken(d)
	case slices.Contains(d.Actions, actionClusterRole):
		return b.addClusterRoles(d)
	}
	return b.addRules(d)
}

func (b *builder) addToken(d scope.Detail) error {
	if len(d.Actions) > 1 || len(d.Datatypes) > 0 || len(d.Privileges) > 0 {
		return errors.New("the action token stands alone, with locations: a token has all rights of its service account")
	}
	p := plan{}
	for _, l := range d.Locations {
		if a, ok := strings.CutPrefix(l, audiencePrefix); ok {
			if err := checkAudience(a); err != nil {
				return fmt.Errorf("locations: audience %w", err)
			}
			p.audiences = append(p.audiences, a)
			continue
		}
		ns, name, ok := strings.Cut(l, "/")
		if !ok || !isNamespace(ns) || !isAccount(name) {
			return fmt.Errorf("locations: with the action token, %q must be namespace/account, as in shop/deployer, or audience:NAME", l)
		}
		if p.account != "" {
			return errors.New("locations: a token is of one service account; ask for one token each")
		}
		p.namespace, p.account = ns, name
	}
	if p.account == "" {
		return errors.New("locations: which service account? as in shop/deployer")
	}
	b.token = &p
	return nil
}

func (b *builder) addClusterRoles(d scope.Detail) error {
	if len(d.Actions) > 1 || len(d.Datatypes) > 0 {
		return errors.New("the action clusterrole stands alone, with privileges and locations: a ClusterRole says itself what it allows")
	}
	if len(d.Privileges) == 0 {
		return errors.New("privileges: which ClusterRoles? as in view")
	}
	for _, p := range d.Privileges {
		if !wordPattern.MatchString(p) || len(p) > maxClusterRole {
			return fmt.Errorf("privileges: %q is no name of a ClusterRole that a scope can hold: up to %d of a-z, 0-9 and _ . : -", p, maxClusterRole)
		}
	}
	for _, l := range d.Locations {
		ns, name, err := place(l)
		if err != nil {
			return err
		}
		if name != "" {
			return fmt.Errorf("locations: %q: a ClusterRole cannot be narrowed to names; want namespace/* or *", l)
		}
		g := b.at(ns)
		g.clusterRoles = append(g.clusterRoles, d.Privileges...)
	}
	return nil
}

func (b *builder) addRules(d scope.Detail) error {
	if len(d.Privileges) > 0 {
		return errors.New("privileges go with the action clusterrole alone")
	}
	if len(d.Datatypes) == 0 {
		return errors.New("datatypes: which resources? as in pods, pods/log, deployments.apps")
	}
	for _, a := range d.Actions {
		if !slices.Contains(verbs, a) {
			return fmt.Errorf("actions: %q; allowed are %s, and, alone, token and clusterrole", a, strings.Join(verbs, ", "))
		}
	}
	groups, err := resources(d.Datatypes)
	if err != nil {
		return err
	}
	names := map[string][]string{} // by namespace; the empty list is all of them
	for _, l := range d.Locations {
		ns, name, err := place(l)
		if err != nil {
			return err
		}
		if name == "" {
			names[ns] = []string{}
			continue
		}
		for _, a := range d.Actions {
			if slices.Contains(nameless, a) {
				return fmt.Errorf("locations: %q: the API server cannot narrow %s to a name; put %s into a detail of its own", l, a, a)
			}
		}
		if list, ok := names[ns]; !ok || len(list) > 0 {
			names[ns] = append(list, name)
		}
	}
	for ns, list := range names {
		g := b.at(ns)
		for _, r := range groups {
			r.ResourceNames, r.Verbs = list, d.Actions
			g.rules = append(g.rules, r)
		}
	}
	return nil
}

// resources sorts words such as deployments.apps/scale by their API group.
func resources(words []string) ([]rule, error) {
	by := map[string][]string{}
	for _, w := range words {
		f := resourceWord.FindStringSubmatch(w)
		if f == nil || f[2] != "" && !domainPattern.MatchString(f[2]) {
			return nil, fmt.Errorf("datatypes: %q must be a resource in the plural, with its group and subresource, as in pods, deployments.apps, deployments.apps/scale", w)
		}
		name := f[1]
		if f[3] != "" {
			name += "/" + f[3]
		}
		by[f[2]] = append(by[f[2]], name)
	}
	var out []rule
	for g, list := range by {
		out = append(out, rule{APIGroups: []string{g}, Resources: list})
	}
	slices.SortFunc(out, func(a, b rule) int { return strings.Compare(a.APIGroups[0], b.APIGroups[0]) })
	return out, nil
}

// place reads "*", "/name", "namespace/*" and "namespace/name". An empty
// namespace is the whole cluster, an empty name all names.
func place(l string) (namespace, name string, err error) {
	if l == "*" {
		return "", "", nil
	}
	namespace, name, ok := strings.Cut(l, "/")
	switch {
	case strings.HasPrefix(l, audiencePrefix):
		return "", "", fmt.Errorf("locations: %q: audiences go with the action token alone", l)
	case !ok || namespace != "" && !isNamespace(namespace):
		return "", "", fmt.Errorf(`locations: %q must be namespace/* or namespace/name, as in shop/* or shop/web; "*" is the whole cluster, "/name" what has that name anywhere`, l)
	case name == "*" && namespace != "":
		return namespace, "", nil
	case name == "*":
		return "", "", fmt.Errorf(`locations: %q: the whole cluster is "*"`, l)
	case name == "" || name == "." || name == ".." || len(name) > maxResourceName || strings.ContainsAny(name, "/%*"):
		return "", "", fmt.Errorf("locations: in %q, %q is no object's name; RBAC knows no patterns of names", l, name)
	}
	return namespace, name, nil
}

func (b *builder) at(namespace string) *grant {
	g, ok := b.grants[namespace]
	if !ok {
		g = &grant{namespace: namespace}
		b.grants[namespace] = g
	}
	return g
}

func (b *builder) plan(details int) (plan, error) {
	if b.token != nil {
		if details > 1 {
			return plan{}, errors.New("kubernetes: scope: a token of a service account is a lease of its own; it cannot stand beside other details")
		}
		return *b.token, nil
	}
	if len(b.grants) > maxScopeNamespaces {
		return plan{}, fmt.Errorf("kubernetes: scope: rights in %d namespaces; at most %d are allowed", len(b.grants), maxScopeNamespaces)
	}
	var p plan
	for _, g := range b.grants {
		slices.Sort(g.clusterRoles)
		g.clusterRoles = slices.Compact(g.clusterRoles)
		p.grants = append(p.grants, *g)
	}
	slices.SortFunc(p.grants, func(a, b grant) int { return strings.Compare(a.namespace, b.namespace) })
	return p, nil
}

// within refuses a plan that goes beyond what the target's spec allows.
func (p plan) within(s spec) error {
	if p.account != "" {
		if at := p.namespace + "/" + p.account; !slices.Contains(s.ServiceAccounts, at) {
			return fmt.Errorf("kubernetes: scope: the target does not give tokens of %s; its service_accounts are %s", at, listOr(s.ServiceAccounts))
		}
		for _, a := range p.audiences {
			if !slices.Contains(s.Audiences, a) {
				return fmt.Errorf("kubernetes: scope: the target does not give tokens for the audience %q; its audiences are %s", a, listOr(s.Audiences))
			}
		}
		return nil
	}
	for _, g := range p.grants {
		switch {
		case g.namespace == s.Namespace:
			return fmt.Errorf("kubernetes: scope: %s is the broker's own namespace; who has rights there could take over other leases", g.namespace)
		case s.wholeCluster() || slices.Contains(s.Namespaces, g.namespace):
		case g.namespace == "":
			return errors.New(`kubernetes: scope: the target gives no rights in the whole cluster; its namespaces would have to be ["*"]`)
		default:
			return fmt.Errorf("kubernetes: scope: the target gives no rights in %s; its namespaces are %s", g.namespace, listOr(s.Namespaces))
		}
	}
	return nil
}

func listOr(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}
