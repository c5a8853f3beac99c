package kubernetes_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/kubernetes"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

// Accounts made for the lease, with the page's own rights for the broker.
func TestConformance(t *testing.T) {
	f := newFixture(t, shared)
	h := f.harness()
	h.Stick = func(ctx context.Context, l issuers.Lease, _ issuers.Credential) (func() error, error) {
		return f.hold(ctx, "/api/v1/namespaces/mayfly/serviceaccounts/"+l.Name)
	}
	issuertest.Run(t, h)
}

// The same with every lease a token of an account that exists, for a broker that
// logs in by certificate.
func TestConformanceOfExistingAccounts(t *testing.T) {
	f := newFixture(t, shared)
	const user = "mayfly-by-certificate"
	cert, key, err := shared.ClientCertificate(user)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range []struct{ namespace, kind, role string }{
		{"mayfly", "Role", "mayfly"}, {"shop", "Role", "mayfly-tokens"}, {"shop", "ClusterRole", "mayfly-grants"}, {"web", "ClusterRole", "mayfly-grants"},
		{"", "ClusterRole", "mayfly-names"},
	} {
		at := "/apis/rbac.authorization.k8s.io/v1/namespaces/" + b.namespace + "/rolebindings"
		if b.namespace == "" {
			at = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
		}
		f.admin(http.MethodPost, at, map[string]any{
			"metadata": map[string]any{"name": user + "-" + b.role}, "subjects": []any{map[string]any{"kind": "User", "name": user}},
			"roleRef": map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": b.kind, "name": b.role},
		}, nil)
	}
	f = f.with(map[string]any{"client_certificate": cert})
	f.secrets[kubernetes.SecretClientKey] = secret.New(key)
	delete(f.secrets, kubernetes.SecretToken)
	h := f.harness()
	forget := h.Prepare
	h.Prepare = func(t *testing.T, l *issuers.Lease) {
		forget(t, l)
		l.Scope = tokenFor("shop/deployer")
	}
	issuertest.Run(t, h)
}

func (f *fixture) harness() issuertest.Harness {
	f.t.Helper()
	return issuertest.Harness{
		Kind:     kubernetes.Kind{},
		Target:   f.target(1),
		Scope:    rules("get list create", "configmaps", "shop/*"),
		Narrower: rules("get", "configmaps", "shop/settings"),
		Accepted: accepted(),
		Invalid:  invalid(),
		Hostile:  hostile(),
		// terms begin anew with each case here; real ones only grow
		Prepare: func(t *testing.T, _ *issuers.Lease) { f.forgetFence(t) },
		Intact: func(ctx context.Context) error {
			for _, path := range []string{"/api/v1/namespaces/shop/configmaps/settings", "/api/v1/namespaces/shop/serviceaccounts/deployer", "/api/v1/namespaces/mayfly/serviceaccounts/mayfly"} {
				if err := f.server.Admin(ctx, http.MethodGet, path, nil, nil); err != nil {
					return err
				}
			}
			return nil
		},
		Use: func(ctx context.Context, c issuers.Credential) error {
			return f.server.As(ctx, c.Secret["token"].Reveal(), http.MethodGet, "/api/v1/namespaces/shop/configmaps/settings", nil, nil)
		},
		Gone: func(ctx context.Context, l issuers.Lease) error {
			left, err := objects(ctx, f.server, l)
			if err == nil && len(left) > 0 {
				err = fmt.Errorf("left of the lease: %s", strings.Join(left, ", "))
			}
			return err
		},
		RefusesOlder: true,
		Unreachable:  f.with(map[string]any{"address": "127.0.0.1:1"}).target(1).Spec,
		Grace:        20 * time.Second,
	}
}

// forgetFence deletes every target's fence.
func (f *fixture) forgetFence(t testing.TB) {
	t.Helper()
	if err := f.server.Admin(context.Background(), http.MethodDelete, "/api/v1/namespaces/mayfly/configmaps?labelSelector=app.kubernetes.io/managed-by%3Dmayfly", nil, nil); err != nil {
		t.Fatal(err)
	}
}

// hold puts a finalizer on an object, which keeps it from going away.
func (f *fixture) hold(ctx context.Context, path string) (free func() error, err error) {
	set := func(ctx context.Context, list []string) error {
		return f.server.Admin(ctx, http.MethodPatch, path, map[string]any{"metadata": map[string]any{"finalizers": list}}, nil)
	}
	free = func() error {
		err := set(context.WithoutCancel(ctx), nil)
		if err != nil && strings.HasPrefix(err.Error(), "404") {
			return nil // freed before
		}
		return err
	}
	return free, set(ctx, []string{"example.com/hold"})
}

func invalid() []scope.Scope {
	d := func(change func(*scope.Detail)) scope.Scope {
		s := rules("get", "configmaps", "shop/*")
		change(&s[0])
		return s
	}
	return []scope.Scope{
		rules("get", "configmaps"), rules("get", "", "shop/*"), rules("get", "configmaps", "vault/*"), rules("get", "configmaps", "mayfly/*"),
		rules("get", "configmaps", "*"), rules("get", "configmaps", "shop"), rules("get", "configmaps", "shop/"), rules("get", "configmaps", "/*"),
		rules("get", "configmaps", "shop/a/b"), rules("get", "configmaps", "shop/se*"), rules("get", "configmaps", "sh*"), rules("get", "configmaps", "SHOP/*"),
		rules("get", "configmaps", "shop/.."), rules("create", "configmaps", "shop/settings"), rules("deletecollection", "configmaps", "shop/settings"),
		rules("proxy", "configmaps", "shop/*"), rules("get token", "configmaps", "shop/*"), rules("get clusterrole", "configmaps", "shop/*"),
		rules("get", "configmaps", "audience:x"), rules("get", ".apps", "shop/*"), rules("get", "configmaps/", "shop/*"), rules("get", "a/b/c", "shop/*"),
		rules("get", "deployments.-apps", "shop/*"), rules("get", "configmaps:x", "shop/*"),
		named("", "shop/*"), named("view", "shop/settings"), named("view"), named("a/b", "shop/*"), named("view", "vault/*"), named("cluster-admin", "*"),
		tokenFor("shop/other"), tokenFor("shop/*"), tokenFor("shop/deployer", "web/deployer"), tokenFor("shop/deployer", "audience:https://elsewhere.test"),
		tokenFor("audience:https://kubernetes.test"), tokenFor("mayfly/mayfly"), append(tokenFor("shop/deployer"), rules("get", "configmaps", "shop/*")...),
		d(func(x *scope.Detail) { x.Identifier = "prod" }), d(func(x *scope.Detail) { x.Tables = []scope.Table{{Name: "a.b"}} }),
		d(func(x *scope.Detail) { x.Privileges = []string{"cluster-admin"} }),
	}
}

func accepted() []scope.Scope {
	return []scope.Scope{
		named("view", "shop/*", "web/*"),
		append(named("view edit", "shop/*"), rules("get list watch", "pods pods/log configmaps", "web/*")...),
		rules("get", "configmaps", "shop/settings", "shop/other", "web/settings"),
		rules("get list watch", "deployments.apps deployments.apps/scale", "shop/*"),
		tokenFor("shop/deployer"),
	}
}

// hostile are names that try to end a path, begin another, or widen a rule.
func hostile() []scope.Scope {
	var out []scope.Scope
	for _, name := range []string{
		"x/../../secrets", "..", ".", "x%2f..", "x?dryRun=All", "x#y", "x y", `x","y`, `x"}]`, "x\r\nHost: evil", "x\x00y", "\u202ex", "ключ", "*", "x*", "'; DROP", "a..b",
		"system:masters", "system:serviceaccounts", strings.Repeat("x", 250), "X", "{{.}}", "$(id)", "x;y", "x|y", "%s", `\x`,
	} {
		word := func(action, datatype string) scope.Scope {
			return scope.Scope{{Type: "kubernetes", Actions: []string{action}, Datatypes: []string{datatype}, Locations: []string{"shop/*"}}}
		}
		out = append(out, word("get", name), word("get", "configmaps."+name), word(name, "configmaps"), rules("get", "configmaps", "shop/"+name), rules("get", "configmaps", name+"/*"), rules("get", "configmaps", name),
			scope.Scope{{Type: "kubernetes", Actions: []string{"clusterrole"}, Privileges: []string{name}, Locations: []string{name + "/*"}}},
			tokenFor("shop/"+name), tokenFor(name+"/deployer"), tokenFor("shop/deployer", "audience:"+name))
	}
	return out
}
