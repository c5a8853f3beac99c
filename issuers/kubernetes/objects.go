package kubernetes

import (
	"net/url"
	"slices"
	"time"
)

// resource is a kind of object and where the API has it.
type resource struct{ group, plural, kind string }

// The kinds of object that are made.
var (
	secrets             = resource{"", "secrets", "Secret"}
	serviceAccounts     = resource{"", "serviceaccounts", "ServiceAccount"}
	configMaps          = resource{"", "configmaps", "ConfigMap"}
	roles               = resource{rbacGroup, "roles", "Role"}
	roleBindings        = resource{rbacGroup, "rolebindings", "RoleBinding"}
	clusterRoles        = resource{rbacGroup, "clusterroles", "ClusterRole"}
	clusterRoleBindings = resource{rbacGroup, "clusterrolebindings", "ClusterRoleBinding"}
)

const rbacGroup = "rbac.authorization.k8s.io"

func (r resource) version() string {
	if r.group == "" {
		return "v1"
	}
	return r.group + "/v1"
}

// in is the path of the resource's collection; in all namespaces, or of the
// cluster itself, where namespace is empty.
func (r resource) in(namespace string) string {
	path := "/api/v1"
	if r.group != "" {
		path = "/apis/" + r.group + "/v1"
	}
	if namespace != "" {
		path += "/namespaces/" + url.PathEscape(namespace)
	}
	return path + "/" + r.plural
}

// ref is one object's place.
type ref struct {
	res             resource
	namespace, name string
}

func (r ref) path() string { return r.res.in(r.namespace) + "/" + url.PathEscape(r.name) }

// String names the object in messages: secret shop/mayfly-….
func (r ref) String() string {
	at := r.name
	if r.namespace != "" {
		at = r.namespace + "/" + at
	}
	return r.res.kind + " " + at
}

// metadata is what is read and written of an object's metadata.
type metadata struct {
	Name              string            `json:"name,omitempty"`
	Namespace         string            `json:"namespace,omitempty"`
	UID               string            `json:"uid,omitempty"`
	ResourceVersion   string            `json:"resourceVersion,omitempty"`
	Labels            map[string]string `json:"labels,omitempty"`
	Annotations       map[string]string `json:"annotations,omitempty"`
	CreationTimestamp *time.Time        `json:"creationTimestamp,omitempty"`
	DeletionTimestamp *time.Time        `json:"deletionTimestamp,omitempty"`
	Finalizers        []string          `json:"finalizers,omitempty"`
}

// object is any object that is made; only the members of its kind are set.
type object struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   metadata          `json:"metadata"`
	Type       string            `json:"type,omitempty"`                         // Secret
	Automount  *bool             `json:"automountServiceAccountToken,omitempty"` // ServiceAccount
	Data       map[string]string `json:"data,omitempty"`                         // ConfigMap
	Rules      []rule            `json:"rules,omitempty"`                        // roles
	Subjects   []subject         `json:"subjects,omitempty"`                     // bindings
	RoleRef    *roleRef          `json:"roleRef,omitempty"`
}

type subject struct {
	Kind      string `json:"kind"`
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
}

type roleRef struct {
	APIGroup string `json:"apiGroup"`
	Kind     string `json:"kind"`
	Name     string `json:"name"`
}

// making is an object to be made, without its metadata.
type making struct {
	ref ref
	obj object
}

// places are all objects of a lease besides its anchor, in the order in which
// they are made: the account, then rules, then what ties the two together.
func (p plan) places(s spec, lease string) []making {
	if p.account != "" {
		return nil
	}
	no := false
	out := []making{{ref{serviceAccounts, s.Namespace, lease}, object{Automount: &no}}}
	for _, g := range p.grants {
		role, binding := roles, roleBindings
		if g.namespace == "" {
			role, binding = clusterRoles, clusterRoleBindings
		}
		to := []subject{{"ServiceAccount", lease, s.Namespace}}
		if len(g.rules) > 0 {
			out = append(out, making{ref{role, g.namespace, lease}, object{Rules: g.rules}},
				making{ref{binding, g.namespace, lease}, object{Subjects: to, RoleRef: &roleRef{rbacGroup, role.kind, lease}}})
		}
		for _, name := range g.clusterRoles {
			out = append(out, making{ref{binding, g.namespace, lease + bindingJoin + name}, object{Subjects: to, RoleRef: &roleRef{rbacGroup, clusterRoles.kind, name}}})
		}
	}
	return out
}

// anchor is the Secret that a lease's token is bound to. It must stand in the
// account's own namespace.
func (p plan) anchor(s spec, lease string) ref {
	if p.account != "" {
		return ref{secrets, p.namespace, lease}
	}
	return ref{secrets, s.Namespace, lease}
}

// holder is the account that the token is of.
func (p plan) holder(s spec, lease string) ref {
	if p.account != "" {
		return ref{serviceAccounts, p.namespace, p.account}
	}
	return ref{serviceAccounts, s.Namespace, lease}
}

// ending are all objects of a lease in the order in which they are deleted: what
// gives rights first, for that takes effect within a watch's delay; the anchor
// last, so that a mint under way finds it until everything else is gone.
func (p plan) ending(s spec, lease string) []ref {
	var out []ref
	for _, m := range p.places(s, lease) {
		out = append(out, m.ref)
	}
	slices.Reverse(out)
	return append(out, p.anchor(s, lease))
}
