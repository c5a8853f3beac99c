package kubernetes

import (
	"context"
	"slices"
	"strings"

	"github.com/mayfly-broker/mayfly/issuers"
)

// collection is where objects of ours may stand.
type collection struct {
	res       resource
	namespace string // empty: the cluster's own, or all namespaces
}

// collections are all that the spec lets leases have objects in.
func (s spec) collections() []collection {
	var out []collection
	for _, ns := range s.accountNamespaces() {
		out = append(out, collection{secrets, ns})
	}
	if !s.grants() {
		return out
	}
	out = append(out, collection{secrets, s.Namespace}, collection{serviceAccounts, s.Namespace})
	if s.wholeCluster() {
		return append(out, collection{clusterRoles, ""}, collection{clusterRoleBindings, ""}, collection{roles, ""}, collection{roleBindings, ""})
	}
	for _, ns := range s.Namespaces {
		out = append(out, collection{roles, ns}, collection{roleBindings, ns})
	}
	return out
}

// List implements [issuers.Lister]. Anything of a lease counts, also a binding that
// is left without its account. What bears our label and not this target's mark
// belongs to somebody else.
func (is *Issuer) List(ctx context.Context) ([]issuers.Found, error) {
	found := map[string]issuers.Found{}
	for _, c := range is.spec.collections() {
		err := is.end.list(ctx, c.res, c.namespace, is.marks.selector()+","+labelLease, func(m metadata) {
			at := ref{c.res, m.Namespace, m.Name}
			k, ours := is.marks.read(at, m)
			if !ours || k.lease == "" {
				return
			}
			if f, seen := found[k.lease]; !seen || k.generation > f.Generation {
				found[k.lease] = issuers.Found{Name: namePrefix + k.lease, LeaseID: k.lease, Generation: k.generation}
			}
		})
		if err != nil {
			return nil, lookError("list the "+c.res.plural+" of the target's", err)
		}
	}
	var out []issuers.Found
	for _, f := range found {
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b issuers.Found) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}
