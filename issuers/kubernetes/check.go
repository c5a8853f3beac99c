package kubernetes

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// need is what the broker must be allowed on one resource in one place.
type need struct {
	namespace string // empty: the whole cluster
	group     string
	resource  string
	verbs     []string
	name      string // of the one object; empty for all
	warning   string // why it can be done without
}

// needs are all rights that the spec asks for.
func (s spec) needs() []need {
	makes := []string{"create", "get", "list", "delete"}
	out := []need{{namespace: s.Namespace, resource: configMaps.plural, verbs: []string{"create", "get", "update"}}}
	for _, ns := range s.accountNamespaces() {
		out = append(out, need{namespace: ns, resource: secrets.plural, verbs: makes})
	}
	for _, a := range s.ServiceAccounts {
		ns, name, _ := strings.Cut(a, "/")
		out = append(out, need{namespace: ns, resource: "serviceaccounts/token", verbs: []string{"create"}, name: name})
	}
	if !s.grants() {
		return out
	}
	out = append(out, need{namespace: s.Namespace, resource: secrets.plural, verbs: makes}, need{namespace: s.Namespace, resource: serviceAccounts.plural, verbs: makes},
		need{namespace: s.Namespace, resource: "serviceaccounts/token", verbs: []string{"create"}})
	for _, t := range templates {
		out = append(out, need{group: rbacGroup, resource: clusterRoles.plural, verbs: []string{"get"}, name: t.clusterRole,
			warning: "without it, a scope that names a ClusterRole which is not there gives nothing, and nobody is told"})
	}
	pairs := []resource{roles, roleBindings}
	if s.wholeCluster() {
		pairs = append(pairs, clusterRoles, clusterRoleBindings)
	}
	for _, ns := range s.grantNamespaces() {
		for _, r := range pairs {
			out = append(out, need{namespace: ns, group: r.group, resource: r.plural, verbs: makes})
		}
	}
	return out
}

// grantNamespaces are the namespaces to look into; one empty name for the whole
// cluster.
func (s spec) grantNamespaces() []string {
	if s.wholeCluster() {
		return []string{""}
	}
	return s.Namespaces
}

// examination collects findings about one login.
type examination struct {
	is       *Issuer
	who      string // the broker's own name, for the commands
	findings []issuers.Finding
}

// Check implements [issuers.Checker]. It asks the API server for each right, tries
// with a dry run whether the roles that target add proposes can be granted, and
// makes and deletes an account of its own to see that a token ends with its anchor.
func (is *Issuer) Check(ctx context.Context) ([]issuers.Finding, error) {
	x := &examination{is: is}
	if err := x.connect(ctx); err != nil {
		return nil, lookError("connect to the API server", err)
	}
	complete, err := x.rights(ctx)
	if err != nil {
		return nil, lookError("ask for the broker's rights", err)
	}
	if err := x.granting(ctx); err != nil {
		return nil, lookError("try to grant roles", err)
	}
	x.warnings()
	if !complete {
		return x.findings, nil
	}
	return x.findings, x.revocation(ctx)
}

func (x *examination) add(name string, ok, warning bool, detail, fix string) {
	if ok {
		fix = ""
	}
	x.findings = append(x.findings, issuers.Finding{Name: name, OK: ok, Warning: warning && !ok, Detail: detail, Fix: fix})
}

func (x *examination) connect(ctx context.Context) error {
	var version struct {
		Git string `json:"gitVersion"`
	}
	if err := x.is.end.do(ctx, call{method: http.MethodGet, path: "/version"}, &version); err != nil && !isStatus(err, http.StatusForbidden) {
		return err
	}
	user, groups, err := x.is.end.whoami(ctx, secret.Text{})
	if err != nil && !isStatus(err, http.StatusNotFound) && !isStatus(err, http.StatusForbidden) {
		return err
	}
	x.who = user
	x.add("connect", true, false, plain("as "+or(user, "a name that this API server does not tell (before 1.28)")+" to "+x.is.spec.server.Host+", "+or(version.Git, "version unknown")), "")
	if slices.Contains(groups, "system:masters") {
		x.add("superuser", false, true, "the broker is in system:masters: no rule binds it, and nobody can take that away from its certificate; give it an account of its own", "")
	}
	return nil
}

// rights asks for each right on its own, several at a time. complete is false if
// one is missing that cannot be done without.
func (x *examination) rights(ctx context.Context) (complete bool, err error) {
	all := x.is.spec.needs()
	missing := make([][]string, len(all))
	var group errgroup.Group
	group.SetLimit(endConnections - 1)
	for i, n := range all {
		group.Go(func() error {
			for _, v := range n.verbs {
				r := rightOf(n.group, n.resource, v)
				r.Namespace, r.Name = n.namespace, n.name
				ok, err := x.is.end.allowed(ctx, secret.Text{}, r)
				if err != nil {
					return err
				}
				if !ok {
					missing[i] = append(missing[i], v)
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return false, err
	}
	complete = true
	for i, n := range all {
		name, detail := n.title(), "granted: "+strings.Join(n.verbs, ", ")
		if len(missing[i]) > 0 {
			detail = "missing: " + strings.Join(missing[i], ", ")
			if n.warning != "" {
				detail += "; " + n.warning
			}
			complete = complete && n.warning != ""
		}
		x.add(name, len(missing[i]) == 0, n.warning != "", detail, x.fix(n, missing[i]))
	}
	return complete, nil
}

func (n need) title() string {
	out := n.resource
	if n.name != "" {
		out += " " + n.name
	}
	if n.namespace == "" {
		return out + " in the cluster"
	}
	return out + " in " + n.namespace
}

// granting says what the broker can give. RBAC lets nobody give what they do not
// have, unless they may bind a role, or escalate.
func (x *examination) granting(ctx context.Context) error {
	if !x.is.spec.grants() {
		return nil
	}
	for _, ns := range x.is.spec.grantNamespaces() {
		for _, t := range templates {
			ok, why, err := x.tryBinding(ctx, ns, t.clusterRole)
			if err != nil {
				return err
			}
			detail := "a dry run made a binding to it"
			if !ok {
				detail = why
			}
			n := need{namespace: ns, group: rbacGroup, resource: clusterRoles.plural, name: t.clusterRole}
			x.add("grant "+t.clusterRole+inPlace(ns), ok, true, detail, x.fix(n, []string{"bind"}))
		}
		if err := x.ownRules(ctx, ns); err != nil {
			return err
		}
	}
	return nil
}

func inPlace(namespace string) string {
	if namespace == "" {
		return " in the cluster"
	}
	return " in " + namespace
}

// ownRules: a scope that names verbs and resources becomes a role of the lease's
// own. Whether that can be made depends on the scope, which is not known here.
func (x *examination) ownRules(ctx context.Context, ns string) error {
	res, ok := roles, true
	if ns == "" {
		res = clusterRoles
	}
	for _, v := range []string{"escalate", "bind"} {
		r := rightOf(res.group, res.plural, v)
		r.Namespace = ns
		has, err := x.is.end.allowed(ctx, secret.Text{}, r)
		if err != nil {
			return err
		}
		ok = ok && has
	}
	detail := "any rules: the broker may escalate and bind " + res.plural
	if !ok {
		detail = "only verbs and resources that the broker itself has there can be granted by name; a role that asks for more is refused when it is minted, and the error says what is missing. " +
			"Give the broker these rights themselves, or the right to give any"
	}
	n := need{namespace: ns, group: rbacGroup, resource: res.plural}
	x.add("grant rules"+inPlace(ns), ok, true, detail, x.fix(n, []string{"escalate", "bind"}))
	return nil
}

// tryBinding makes a binding with dryRun=All: admission and the check against
// escalation run, and nothing is kept.
func (x *examination) tryBinding(ctx context.Context, ns, role string) (ok bool, why string, err error) {
	res := roleBindings
	if ns == "" {
		res = clusterRoleBindings
	}
	at := ref{res, ns, probePrefix + role}
	obj := object{
		APIVersion: res.version(), Kind: res.kind, Metadata: metadata{Name: at.name, Namespace: ns},
		Subjects: []subject{{"ServiceAccount", at.name, x.is.spec.Namespace}}, RoleRef: &roleRef{rbacGroup, clusterRoles.kind, role},
	}
	err = x.is.end.do(ctx, call{method: http.MethodPost, path: res.in(ns), query: map[string][]string{"dryRun": {"All"}}, body: obj}, nil)
	f, status := said(err)
	switch {
	case err == nil, status == http.StatusConflict:
		return true, "", nil
	case status == http.StatusForbidden, status == http.StatusNotFound:
		return false, or(f.message, f.Error()), nil
	}
	return false, "", err
}

// warnings are about what the spec itself makes possible.
func (x *examination) warnings() {
	if x.is.spec.wholeCluster() {
		x.add("whole cluster", false, true, `namespaces is "*": scopes may name any namespace and the cluster itself, and who has the broker's token can take the cluster`, "")
	}
	if slices.Contains(x.is.spec.Namespaces, "kube-system") {
		x.add("kube-system", false, true, "scopes may name kube-system: who may make pods, or read secrets, there can take the cluster", "")
	}
	if x.is.spec.grants() {
		x.add("edit", false, true, "the ClusterRole edit reads secrets, runs pods as any service account of the namespace, and asks for their tokens: what a lease makes so outlives it. Prefer scopes that name resources", "")
	}
	if len(x.is.spec.Audiences) > 0 {
		x.add("audiences", false, true, fmt.Sprintf("tokens for other audiences cannot be revoked where they are verified offline; their lives are capped at max_ttl, %s", x.is.spec.maxTTL), "")
	}
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// fix is what an administrator runs to give a missing right.
func (x *examination) fix(n need, verbs []string) string {
	if len(verbs) == 0 {
		return ""
	}
	res := n.resource
	if n.group != "" {
		res += "." + n.group
	}
	at, kind, binding, flag := "", "clusterrole", "clusterrolebinding", "--clusterrole="
	if n.namespace != "" {
		at, kind, binding, flag = " -n "+n.namespace, "role", "rolebinding", "--role="
	}
	name := strings.Join(append([]string{x.account(), strings.ReplaceAll(n.resource, "/", "-")}, verbs...), "-")
	only := ""
	if n.name != "" {
		name, only = name+"-"+n.name, " --resource-name="+n.name
	}
	return fmt.Sprintf("kubectl%s create %s %s --verb=%s --resource=%s%s && kubectl%s create %s %s %s%s %s",
		at, kind, name, strings.Join(verbs, ","), res, only, at, binding, name, flag, name, x.subject())
}

// account is a name for what is made for the broker: two on one cluster do not
// meet there.
func (x *examination) account() string {
	parts := strings.Split(x.who, ":")
	if name := parts[len(parts)-1]; len(parts) == 4 && isAccount(name) {
		return name
	}
	return "mayfly"
}

// subject is the broker as kubectl create rolebinding takes it.
func (x *examination) subject() string {
	if rest, ok := strings.CutPrefix(x.who, "system:serviceaccount:"); ok {
		return "--serviceaccount=" + rest
	}
	return "--user='" + strings.ReplaceAll(plain(or(x.who, "THE BROKER'S NAME")), "'", `'\''`) + "'"
}
