package kubernetes_test

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/kubernetes"
	"github.com/mayfly-broker/mayfly/issuers/kubernetes/kubernetestest"
	"github.com/mayfly-broker/mayfly/secret"
)

func (f *fixture) check() map[string]issuers.Finding {
	f.t.Helper()
	list, err := f.open(1).Check(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	out := map[string]issuers.Finding{}
	for _, x := range list {
		if _, twice := out[x.Name]; twice {
			f.t.Errorf("the finding %q stands twice", x.Name)
		}
		out[x.Name] = x
	}
	return out
}

// The page's rights are enough, and a token is seen refused.
func TestCheckWithThePagesRights(t *testing.T) {
	f := newFixture(t, shared)
	got := f.check()
	warnings := []string{"grant rules in shop", "grant rules in web", "edit"}
	for name, x := range got {
		if x.OK == slices.Contains(warnings, name) || !x.OK && !x.Warning {
			t.Errorf("%+v", x)
		}
	}
	for _, name := range []string{"connect", "revocation", "revocation for shop/deployer", "grant view in shop", "grant edit in web", "serviceaccounts/token deployer in shop"} {
		if !got[name].OK {
			t.Errorf("%s: %+v", name, got[name])
		}
	}
	var left struct{ Items []any }
	for _, at := range []string{"secrets", "serviceaccounts"} {
		f.admin(http.MethodGet, "/api/v1/"+at+"?labelSelector=mayfly-broker.github.io/check", nil, &left)
		if len(left.Items) > 0 {
			t.Errorf("the check left %d %s", len(left.Items), at)
		}
	}
}

// A broker with no right at all is told each of them, and the command that gives it.
func TestCheckNamesEveryMissingRight(t *testing.T) {
	f := newFixture(t, shared)
	if err := shared.ServiceAccount(t.Context(), "mayfly", "poor"); err != nil {
		t.Fatal(err)
	}
	token, err := shared.TokenOf(t.Context(), "mayfly", "poor")
	if err != nil {
		t.Fatal(err)
	}
	f.secrets[kubernetes.SecretToken] = secret.New(token)
	got := f.check()
	for name, want := range map[string]issuers.Finding{
		"configmaps in mayfly": {Detail: "missing: create, get, update", Fix: "kubectl -n mayfly create role poor-configmaps-create-get-update --verb=create,get,update --resource=configmaps && " +
			"kubectl -n mayfly create rolebinding poor-configmaps-create-get-update --role=poor-configmaps-create-get-update --serviceaccount=mayfly:poor"},
		"serviceaccounts/token deployer in shop": {Detail: "missing: create", Fix: "kubectl -n shop create role poor-serviceaccounts-token-create-deployer --verb=create --resource=serviceaccounts/token --resource-name=deployer && " +
			"kubectl -n shop create rolebinding poor-serviceaccounts-token-create-deployer --role=poor-serviceaccounts-token-create-deployer --serviceaccount=mayfly:poor"},
		"rolebindings in web": {Detail: "missing: create, get, list, delete", Fix: "kubectl -n web create role poor-rolebindings-create-get-list-delete --verb=create,get,list,delete " +
			"--resource=rolebindings.rbac.authorization.k8s.io && kubectl -n web create rolebinding poor-rolebindings-create-get-list-delete --role=poor-rolebindings-create-get-list-delete --serviceaccount=mayfly:poor"},
	} {
		x := got[name]
		if x.OK || x.Warning || x.Detail != want.Detail || x.Fix != want.Fix {
			t.Errorf("%s:\n got %+v\nwant %+v", name, x, want)
		}
	}
	if x := got["grant view in shop"]; x.OK || !strings.Contains(x.Fix, "--verb=bind --resource=clusterroles.rbac.authorization.k8s.io --resource-name=view") {
		t.Errorf("%+v", x)
	}
	if _, tried := got["revocation"]; tried {
		t.Error("without rights, the check makes accounts")
	}
}

// What answers for the API server and goes on accepting a token is found out.
func TestCheckSeesATokenThatDoesNotEnd(t *testing.T) {
	f, g := newGate(t, newFixture(t, shared), "", "")
	g.accepts.Store(true)
	got := f.with(map[string]any{"namespaces": nil}).check()
	if x := got["revocation for shop/deployer"]; x.OK || x.Warning || !strings.Contains(x.Detail, "could not be ended") {
		t.Errorf("%+v", x)
	}
}

// A cluster that cuts lives short is believed, and the credential says so.
func TestTokenThatIsCutShortSaysSo(t *testing.T) {
	s := kubernetestest.Start(t, kubernetestest.Flag("--service-account-max-token-expiration=1h"))
	if err := furnish(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	f := newFixture(t, s)
	is := f.open(1)
	l := lease(tokenFor("shop/deployer"))
	l.NotAfter = l.NotBefore.Add(8 * time.Hour)
	end, err := time.Parse(time.RFC3339, f.mint(is, l).Public["expires_at"])
	if err != nil || end.After(l.NotBefore.Add(2*time.Hour)) {
		t.Errorf("the credential says it ends at %s, %v", end, err)
	}
	f.withdraw(is, l)
}

// A check that was killed left something; the next one clears it away, if it is
// old and ours.
func TestCheckLeavesYoungProbesAlone(t *testing.T) {
	f := newFixture(t, shared)
	f.admin(http.MethodPost, core+"mayfly/secrets", map[string]any{"metadata": map[string]any{
		"name": "mayfly-check-theirs", "labels": map[string]string{"mayfly-broker.github.io/check": "mayfly", "mayfly-broker.github.io/target": f.targetID(f.open(1))},
	}}, nil)
	f.check()
	f.admin(http.MethodDelete, core+"mayfly/secrets/mayfly-check-theirs", nil, nil)
}

func TestWrongTokenIsRefused(t *testing.T) {
	f := newFixture(t, shared)
	f.secrets[kubernetes.SecretToken] = secret.New("not.a.token")
	is := f.open(1)
	for _, s := range []func() error{
		func() error { _, err := is.Mint(t.Context(), lease(tokenFor("shop/deployer"))); return err },
		func() error {
			return is.Withdraw(t.Context(), []issuers.Lease{lease(tokenFor("shop/deployer"))})[0].Err
		},
		func() error { return is.Fence(context.Background()) },
		func() error { _, err := is.Check(t.Context()); return err },
		func() error { _, err := is.List(t.Context()); return err },
	} {
		wantKind(t, s(), issuers.Refused)
	}
}
