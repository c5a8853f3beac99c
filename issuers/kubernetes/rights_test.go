package kubernetes_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
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

const (
	core = "/api/v1/namespaces/"
	rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/"
)

// attempt is one request and whether it is within the scope.
type attempt struct {
	method, path string
	body         any
	ok           bool
}

func (f *fixture) attempts(c issuers.Credential, list []attempt) {
	f.t.Helper()
	for _, a := range list {
		status := f.try(c, a.method, a.path, a.body)
		if a.ok != (status == 200) || !a.ok && status != http.StatusForbidden {
			f.t.Errorf("%s %s is answered %d; within the scope: %t", a.method, a.path, status, a.ok)
		}
	}
}

func newMap(name string) map[string]any {
	return map[string]any{"metadata": map[string]any{"name": name}}
}

func TestLaw3KubernetesAccountDoesNoMoreThanItsScope(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	l := lease(scope.Scope{
		{Type: "kubernetes", Actions: []string{"get", "list", "create", "delete"}, Datatypes: []string{"configmaps"}, Locations: []string{"shop/*"}},
		{Type: "kubernetes", Actions: []string{"get"}, Datatypes: []string{"configmaps", "deployments.apps/scale"}, Locations: []string{"web/settings"}},
	})
	c := f.mint(is, l)
	grab := map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
	f.attempts(c, []attempt{
		{"GET", core + "shop/configmaps/settings", nil, true}, {"GET", core + "shop/configmaps", nil, true},
		{"POST", core + "shop/configmaps", newMap(l.Name), true}, {"DELETE", core + "shop/configmaps/" + l.Name, nil, true},
		{"GET", core + "web/configmaps/settings", nil, true},
		{"GET", core + "web/configmaps/other", nil, false}, {"GET", core + "web/configmaps", nil, false}, {"POST", core + "web/configmaps", newMap("x"), false},
		{"PATCH", core + "shop/configmaps/settings", newMap("settings"), false}, {"GET", core + "shop/configmaps?watch=1", nil, false},
		{"DELETE", core + "shop/configmaps", nil, false}, {"GET", core + "shop/pods", nil, false}, {"GET", "/api/v1/configmaps", nil, false},
		{"GET", core + "vault/configmaps/settings", nil, false}, {"GET", "/apis/apps/v1/namespaces/web/deployments/settings", nil, false},
		// nothing that outlives it or makes it greater
		{"GET", core + "shop/secrets", nil, false}, {"GET", core + "mayfly/secrets", nil, false}, {"POST", core + "shop/secrets", newMap("x"), false},
		{"POST", core + "mayfly/serviceaccounts/" + l.Name + "/token", map[string]any{}, false}, {"POST", core + "shop/serviceaccounts/deployer/token", map[string]any{}, false},
		{"POST", core + "mayfly/serviceaccounts/mayfly/token", map[string]any{}, false}, {"GET", core + "mayfly/serviceaccounts/" + l.Name, nil, false},
		{"POST", rbac + "shop/rolebindings", map[string]any{"metadata": map[string]any{"name": "x"}, "roleRef": grab}, false},
		{"PATCH", rbac + "shop/roles/" + l.Name, map[string]any{"rules": []any{}}, false}, {"POST", core + "shop/pods", newMap("x"), false},
		{"PATCH", core + "mayfly/secrets/" + l.Name, map[string]any{"metadata": map[string]any{"finalizers": []string{"example.com/stay"}}}, false},
		{"GET", "/api/v1/nodes", nil, false}, {"GET", "/api/v1/nodes/x/proxy/", nil, false}, {"POST", core + "shop/pods/x/exec", nil, false},
	})
	f.withdraw(is, l)
}

// Who may write roles and bindings gives nothing but what they have.
func TestHazard10KubernetesLeaseCannotRaiseItself(t *testing.T) {
	f := newFixture(t, shared).wide(t)
	is := f.open(1)
	l := lease(rules("get list create update patch", "roles.rbac.authorization.k8s.io rolebindings.rbac.authorization.k8s.io", "shop/*"))
	c := f.mint(is, l)
	own := map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": l.Name}
	me := []any{map[string]any{"kind": "ServiceAccount", "name": "deployer", "namespace": "shop"}}
	all := []any{map[string]any{"apiGroups": []string{"*"}, "resources": []string{"*"}, "verbs": []string{"*"}}}
	f.attempts(c, []attempt{
		{"GET", rbac + "shop/roles", nil, true},
		{"POST", rbac + "shop/roles", map[string]any{"metadata": map[string]any{"name": "x"}, "rules": all}, false},
		{"PATCH", rbac + "shop/roles/" + l.Name, map[string]any{"rules": all}, false},
		{"POST", rbac + "shop/rolebindings", map[string]any{"metadata": map[string]any{"name": "x"}, "roleRef": map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin"}, "subjects": me}, false},
		// what it has it may hand on, and that outlives it: the page says so
		{"POST", rbac + "shop/rolebindings", map[string]any{"metadata": map[string]any{"name": l.Name + "-handed-on"}, "roleRef": own, "subjects": me}, true},
	})
	f.withdraw(is, l)
	f.admin(http.MethodDelete, rbac+"shop/rolebindings/"+l.Name+"-handed-on", nil, nil)
}

// wide is the fixture with a broker that may do everything, on a target that is
// the whole cluster.
func (f *fixture) wide(t testing.TB) *fixture {
	t.Helper()
	if err := f.server.ServiceAccount(t.Context(), "mayfly", "wide"); err != nil {
		t.Fatal(err)
	}
	if err := f.server.Bind(t.Context(), "", "cluster-admin", "mayfly", "wide"); err != nil {
		t.Fatal(err)
	}
	token, err := f.server.TokenOf(t.Context(), "mayfly", "wide")
	if err != nil {
		t.Fatal(err)
	}
	g := f.with(map[string]any{"namespaces": []string{"*"}, "service_accounts": nil})
	g.secrets = map[string]secret.Text{kubernetes.SecretToken: secret.New(token), kubernetes.SecretMark: f.secrets[kubernetes.SecretMark]}
	return g
}

func TestScopesOfTheWholeCluster(t *testing.T) {
	f := newFixture(t, shared).wide(t)
	is := f.open(1)
	l := lease(append(named("view", "*"), rules("get", "namespaces", "/vault")...))
	c := f.mint(is, l)
	f.attempts(c, []attempt{
		{"GET", core + "shop/configmaps", nil, true}, {"GET", "/api/v1/configmaps", nil, true}, {"GET", "/api/v1/namespaces/vault", nil, true},
		{"GET", "/api/v1/secrets", nil, false}, {"DELETE", "/api/v1/namespaces/vault", nil, false}, {"GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles", nil, false},
	})
	found, err := is.List(t.Context())
	if err != nil || len(found) != 1 || found[0].Name != l.Name {
		t.Errorf("List shows %+v, %v", found, err)
	}
	f.withdraw(is, l)
	if left := f.objects(l); len(left) > 0 {
		t.Errorf("left of the lease: %v", left)
	}
	if err := (kubernetes.Kind{}).CheckScope(f.target(1).Spec, named("view", "mayfly/*")); err == nil {
		t.Error("a scope may name the broker's own namespace")
	}
}

// From the moment on that the receipt is written, a token of an existing account
// is refused, though an API server remembered it: TokenReview says so, and so does
// a call. One of an account that was made for the lease has no rights left.
func TestLaw2KubernetesTokenIsRefusedOnceTheReceiptIsWritten(t *testing.T) {
	f := newFixture(t, shared).with(map[string]any{"settle": nil})
	is := f.open(1)
	for name, want := range map[string]struct {
		remembered bool
		status     int
		detail     string
	}{
		"existing": {false, http.StatusUnauthorized, "at least 12s have passed since their deletion"},
		"made":     {true, http.StatusForbidden, "may accept it for 8s more, without rights"},
	} {
		l := forms[name]()
		c := f.mint(is, l)
		// used just before, so that it is remembered
		if ok, user, err := f.server.Review(t.Context(), c.Secret["token"].Reveal()); err != nil || !ok || user != c.Public["username"] {
			t.Fatalf("%s before its end: TokenReview says %t, %q, %v", name, ok, user, err)
		}
		start := time.Now()
		r := f.withdraw(is, l)[0].Receipt
		took := time.Since(start)
		ok, _, err := f.server.Review(t.Context(), c.Secret["token"].Reveal())
		if err != nil || ok && !want.remembered {
			t.Errorf("law 2: %s after its receipt: TokenReview says %t, %v", name, ok, err)
		}
		if status := f.try(c, http.MethodGet, core+"shop/configmaps/settings", nil); status != want.status && status != http.StatusUnauthorized {
			t.Errorf("law 2: %s after its receipt is answered %d", name, status)
		}
		if r.Proof != issuers.ProofAbsent || !strings.Contains(r.Detail, "NotFound") || !strings.Contains(r.Detail, want.detail) {
			t.Errorf("receipt %+v", r)
		}
		t.Logf("%s: the withdrawal took %s: %s", name, took, r.Detail)
	}
}

// How long an API server remembers: the figure that settle rests on. Rights that
// were given by a binding end long before that.
func TestRememberedTokenEndsAfterTenSeconds(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	for name, form := range forms {
		l := form()
		c := f.mint(is, l)
		if ok, _, err := f.server.Review(t.Context(), c.Secret["token"].Reveal()); err != nil || !ok {
			t.Fatal(ok, err)
		}
		used := time.Now()
		last := used // when a question was asked that a server answered from memory
		out := f.withdraw(is, l)
		if r := out[0].Receipt; !strings.Contains(r.Detail, "10s more") {
			t.Errorf("without waiting, the receipt must say that the token may be accepted: %+v", r)
		}
		var rights time.Duration
		eventually(t, "the token is refused", func() bool {
			if rights == 0 && f.try(c, http.MethodGet, core+"shop/configmaps/settings", nil) != 200 {
				rights = time.Since(used)
			}
			asked := time.Now()
			ok, _, err := f.server.Review(t.Context(), c.Secret["token"].Reveal())
			if err == nil && ok {
				last = asked
			}
			return err == nil && !ok
		})
		took := last.Sub(used) // no longer on a machine that is slow to ask again
		t.Logf("%s: rights ended %s, and acceptance no earlier than %s after the token was last used anew", name, rights, took)
		if took > 12*time.Second {
			t.Errorf("an API server remembered a token for %s; settle is 12s", took)
		}
	}
}

// A receipt waits as well for what an earlier withdrawal deleted and did not see
// through.
func TestLaw2KubernetesInterruptedWithdrawalIsWaitedForAgain(t *testing.T) {
	const settle = 5 * time.Second
	f := newFixture(t, shared).with(map[string]any{"settle": settle.String()})
	is := f.open(1)
	opened := time.Now()
	l := lease(tokenFor("shop/deployer"))
	f.mint(is, l)
	eventually(t, "the issuer is older than settle", func() bool { return time.Since(opened) > settle })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	began, first := time.Now(), make(chan issuers.Outcome, 1)
	go func() { first <- is.Withdraw(ctx, []issuers.Lease{l})[0] }()
	eventually(t, "the objects are deleted", func() bool { return len(f.objects(l)) == 0 })
	cancel()
	if out := <-first; out.Err == nil {
		t.Fatalf("a receipt without the wait: %+v", out)
	}
	f.withdraw(is, l)
	if d := time.Since(began); d < settle { // the deletion came after its beginning
		t.Errorf("law 2: the receipt came %s after the first withdrawal began, whose wait was not made up for", d)
	}
}

// What is tried before a lease is given out is a second token: its own would be
// remembered past its end, though nobody had used it.
func TestLaw2KubernetesTokenIsNotUsedBeforeItIsGivenOut(t *testing.T) {
	f, g := newGate(t, newFixture(t, shared), "", "")
	is := f.open(1)
	l := lease(rules("get", "configmaps", "shop/*"))
	c := f.mint(is, l)
	own := f.secrets[kubernetes.SecretToken].Reveal()
	tried := 0
	for i, b := range g.bearers {
		switch {
		case b == c.Secret["token"].Reveal():
			t.Errorf("law 2: the lease's token was used: %s", g.seen[i])
		case b != own:
			tried++
		}
	}
	if tried == 0 || g.requests(http.MethodPost, "/token") != 2 {
		t.Errorf("%d requests with another token, %d tokens: that the rights are noticed was not tried", tried, g.requests(http.MethodPost, "/token"))
	}
	f.withdraw(is, l)
}

func TestCredentialForms(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	l := lease(append(named("view", "web/*"), rules("get", "configmaps", "shop/*")...))
	l.NotAfter = l.NotBefore.Add(45 * time.Minute)
	c := f.mint(is, l)
	end, err := time.Parse(time.RFC3339, c.Public["expires_at"])
	if err != nil || end.After(l.NotAfter) || end.Before(l.NotAfter.Add(-30*time.Second)) {
		t.Errorf("the lease ends at %s, its token at %s (%v)", l.NotAfter, c.Public["expires_at"], err)
	}
	var claims struct {
		Exp        int64 `json:"exp"`
		Kubernetes struct {
			Secret struct{ Name string }
		} `json:"kubernetes.io"`
	}
	body, err := base64.RawURLEncoding.DecodeString(strings.Split(c.Secret["token"].Reveal(), ".")[1])
	if err == nil {
		err = json.Unmarshal(body, &claims)
	}
	if err != nil || claims.Exp > l.NotAfter.Unix() || claims.Kubernetes.Secret.Name != l.Name {
		t.Errorf("claims %+v, %v", claims, err)
	}
	var k struct {
		Clusters []struct {
			Cluster struct {
				Server string
				CA     string `json:"certificate-authority-data"`
			}
		}
		Users []struct {
			User struct{ Token string }
		}
		Contexts []struct {
			Context struct{ Cluster, User, Namespace string }
		}
		Current string `json:"current-context"`
	}
	if err := json.Unmarshal([]byte(c.Secret["kubeconfig"].Reveal()), &k); err != nil {
		t.Fatal(err)
	}
	ca, err := base64.StdEncoding.DecodeString(k.Clusters[0].Cluster.CA)
	if err != nil || string(ca) != f.server.CAPEM || k.Clusters[0].Cluster.Server != "https://"+f.server.Address() || k.Current != "mayfly" {
		t.Errorf("kubeconfig: %+v, %v", k.Clusters, err)
	}
	if k.Users[0].User.Token != c.Secret["token"].Reveal() || k.Contexts[0].Context.Namespace != "shop" || k.Contexts[0].Context.User != l.Name {
		t.Errorf("kubeconfig: contexts %+v", k.Contexts)
	}
	f.withdraw(is, l)
}

// A token for another audience is not the API server's, and is not called revoked.
func TestHazard18KubernetesForeignAudienceExpiresOnly(t *testing.T) {
	f := newFixture(t, shared).with(map[string]any{"audiences": []string{"https://vault.test"}})
	if d := (kubernetes.Kind{}).MaxTTL(f.target(1).Spec); d != time.Hour {
		t.Errorf("the longest lease is %s", d)
	}
	is := f.open(1)
	s := tokenFor("shop/deployer", "audience:https://vault.test")
	_, err := is.Mint(t.Context(), lease(s)) // ends in less than ten minutes
	wantKind(t, err, issuers.Refused)
	l := lease(s)
	l.NotAfter = l.NotBefore.Add(30 * time.Minute)
	c := f.mint(is, l)
	if status := f.try(c, http.MethodGet, core+"shop/configmaps/settings", nil); status != http.StatusUnauthorized {
		t.Errorf("the API server answers another's token with %d", status)
	}
	if _, there := c.Secret["kubeconfig"]; there {
		t.Error("a kubeconfig with a token that the API server does not take")
	}
	r := f.withdraw(is, l)[0].Receipt
	if r.Proof != issuers.ProofExpiresOnly || !strings.Contains(r.Detail, l.NotAfter.UTC().Format(time.RFC3339)) {
		t.Errorf("receipt %+v", r)
	}
	l = issuertest.Regenerate(kubernetes.Kind{}, l)
	l.NotAfter = time.Now().Add(-time.Second) // its end has come
	if r := f.withdraw(is, l)[0].Receipt; r.Proof != issuers.ProofAbsent {
		t.Errorf("receipt %+v", r)
	}
}

// What the cluster does not have is the requester's to hear of, and leaves nothing.
func TestNamesThatTheClusterLacksAreABadScope(t *testing.T) {
	f := newFixture(t, shared).wide(t).with(map[string]any{"service_accounts": []string{"shop/nobody", "nowhere/deployer"}})
	is := f.open(1)
	for _, s := range []scope.Scope{
		named("no-such-role", "shop/*"), rules("get", "configmaps", "nowhere/*"), named("view", "nowhere/*"), tokenFor("shop/nobody"), tokenFor("nowhere/deployer"),
	} {
		l := lease(s)
		_, err := is.Mint(t.Context(), l)
		wantKind(t, err, issuers.BadScope)
		if left := f.objects(l); len(left) > 0 {
			t.Errorf("%s leaves %v", s, left)
		}
	}
	_, err := f.with(map[string]any{"namespace": "not-made-yet"}).open(1).Mint(t.Context(), lease(named("view", "shop/*")))
	wantKind(t, err, issuers.Refused)
	if !strings.Contains(err.Error(), "kubectl create namespace not-made-yet") {
		t.Error(err)
	}
}

// A scope that asks for more than the broker has is refused, says exactly what is
// missing, and leaves nothing.
func TestRightsThatTheBrokerLacksAreRefused(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	for _, x := range []struct {
		s    scope.Scope
		want string
	}{
		{rules("get delete", "configmaps secrets", "web/*"), `{APIGroups:[""], Resources:["secrets"], Verbs:["delete" "get"]}`},
		{named("admin", "shop/*"), "is forbidden"},
	} {
		l := lease(x.s)
		_, err := is.Mint(t.Context(), l)
		wantKind(t, err, issuers.Refused)
		if !strings.Contains(err.Error(), x.want) {
			t.Errorf("%v\nwant %s", err, x.want)
		}
		if left := f.objects(l); len(left) > 0 {
			t.Errorf("%s leaves %v", x.s, left)
		}
	}
}
