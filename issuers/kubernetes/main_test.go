package kubernetes_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/kubernetes"
	"github.com/mayfly-broker/mayfly/issuers/kubernetes/kubernetestest"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

// shared is the server of all tests that do not stop it.
var shared *kubernetestest.Server

func TestMain(m *testing.M) {
	os.Exit(func() int {
		s, err := kubernetestest.Run(context.Background())
		if err == nil {
			err = furnish(context.Background(), s)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "kubernetes tests:", err)
			return 1
		}
		shared = s
		code := m.Run()
		if err := s.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "kubernetes tests:", err)
			return 1
		}
		return code
	}())
}

// furnish puts what tests use on a server: the page's rights for the broker, and
// something to read.
func furnish(ctx context.Context, s *kubernetestest.Server) error {
	objects, err := leastPrivilege()
	if err != nil {
		return err
	}
	for _, ns := range []string{"shop", "web", "vault"} {
		err = errors.Join(err, s.Namespace(ctx, ns))
	}
	for _, o := range objects {
		err = errors.Join(err, s.Admin(ctx, http.MethodPost, o.path, o.body, nil))
	}
	for _, ns := range []string{"shop", "web", "vault"} {
		for _, name := range []string{"settings", "other"} {
			body := map[string]any{"metadata": map[string]any{"name": name}, "data": map[string]any{"a": "b"}}
			err = errors.Join(err, s.Admin(ctx, http.MethodPost, "/api/v1/namespaces/"+ns+"/configmaps", body, nil))
		}
	}
	return errors.Join(err, s.ServiceAccount(ctx, "shop", "deployer"), s.Bind(ctx, "shop", "edit", "shop", "deployer"))
}

// fixture is a server and what is needed to open it as a target.
type fixture struct {
	t       testing.TB
	server  *kubernetestest.Server
	spec    map[string]any
	secrets map[string]secret.Text
	log     *slog.Logger
}

func newFixture(t testing.TB, s *kubernetestest.Server) *fixture {
	t.Helper()
	secrets, err := kubernetes.Kind{}.MakeSecrets(nil)
	if err != nil {
		t.Fatal(err)
	}
	token, err := s.TokenOf(t.Context(), "mayfly", "mayfly")
	if err != nil {
		t.Fatal(err)
	}
	secrets[kubernetes.SecretToken] = secret.New(token)
	return &fixture{
		t: t, server: s, secrets: secrets, log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		spec: map[string]any{
			"address": s.Address(), "tls": map[string]any{"ca": s.CAPEM}, "namespaces": []string{"shop", "web"},
			"service_accounts": []string{"shop/deployer"}, "settle": "0s",
		},
	}
}

// with is the fixture with other members of the spec.
func (f *fixture) with(change map[string]any) *fixture {
	g := *f
	g.spec = maps.Clone(f.spec)
	for k, v := range change {
		if v == nil {
			delete(g.spec, k)
		} else {
			g.spec[k] = v
		}
	}
	return &g
}

func (f *fixture) target(term uint64) issuers.Target {
	f.t.Helper()
	raw, err := json.Marshal(f.spec)
	if err != nil {
		f.t.Fatal(err)
	}
	return issuers.Target{Name: "prod", Spec: raw, Secrets: f.secrets, Term: term, Log: f.log}
}

func (f *fixture) open(term uint64) *kubernetes.Issuer {
	f.t.Helper()
	i, err := kubernetes.Kind{}.Open(f.target(term))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = i.Close() })
	return i.(*kubernetes.Issuer)
}

// rules is a scope of one detail of verbs; words are apart by spaces.
func rules(verbs, resources string, locations ...string) scope.Scope {
	return scope.Scope{{Type: "kubernetes", Actions: strings.Fields(verbs), Datatypes: strings.Fields(resources), Locations: locations}}
}

// named is a scope of ClusterRoles.
func named(roles string, locations ...string) scope.Scope {
	return scope.Scope{{Type: "kubernetes", Actions: []string{"clusterrole"}, Privileges: strings.Fields(roles), Locations: locations}}
}

// tokenFor is a scope of an existing account's token.
func tokenFor(locations ...string) scope.Scope {
	return scope.Scope{{Type: "kubernetes", Actions: []string{"token"}, Locations: locations}}
}

func lease(s scope.Scope) issuers.Lease { return issuertest.NewLease(kubernetes.Kind{}, s) }

func (f *fixture) mint(is issuers.Issuer, l issuers.Lease) issuers.Credential {
	f.t.Helper()
	c, err := is.Mint(f.t.Context(), l)
	if err != nil {
		f.t.Fatalf("Mint: %v", err)
	}
	return c
}

func (f *fixture) withdraw(is issuers.Issuer, leases ...issuers.Lease) []issuers.Outcome {
	f.t.Helper()
	out := is.Withdraw(f.t.Context(), leases)
	for i, o := range out {
		if o.Err != nil {
			f.t.Fatalf("Withdraw %s: %v", leases[i].Name, o.Err)
		}
	}
	return out
}

// try sends a request with a credential and returns the status of the answer.
func (f *fixture) try(c issuers.Credential, method, path string, body any) int {
	f.t.Helper()
	return f.tryAs(c.Secret["token"].Reveal(), method, path, body)
}

func (f *fixture) tryAs(token, method, path string, body any) int {
	f.t.Helper()
	err := f.server.As(f.t.Context(), token, method, path, body, nil)
	if err == nil {
		return 200
	}
	var r *kubernetestest.Refusal
	if !errors.As(err, &r) {
		f.t.Fatalf("%s %s: %v", method, path, err)
	}
	return r.Status
}

// admin sends a request as the administrator, or fails the test.
func (f *fixture) admin(method, path string, body, into any) {
	f.t.Helper()
	if err := f.server.Admin(f.t.Context(), method, path, body, into); err != nil {
		f.t.Fatalf("%s %s: %v", method, path, err)
	}
}

// objects are the paths of everything on the server that bears a lease's label.
func objects(ctx context.Context, s *kubernetestest.Server, l issuers.Lease) ([]string, error) {
	var out []string
	for _, at := range []string{
		"/api/v1/secrets", "/api/v1/serviceaccounts", "/apis/rbac.authorization.k8s.io/v1/roles", "/apis/rbac.authorization.k8s.io/v1/rolebindings",
		"/apis/rbac.authorization.k8s.io/v1/clusterroles", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
	} {
		var list struct {
			Items []struct {
				Metadata struct {
					Name, Namespace string
				}
			}
		}
		if err := s.Admin(ctx, http.MethodGet, at+"?labelSelector=mayfly-broker.github.io/lease%3D"+l.ID, nil, &list); err != nil {
			return nil, err
		}
		for _, i := range list.Items {
			out = append(out, at+" "+i.Metadata.Namespace+"/"+i.Metadata.Name)
		}
	}
	return out, nil
}

func (f *fixture) objects(l issuers.Lease) []string {
	f.t.Helper()
	out, err := objects(f.t.Context(), f.server, l)
	if err != nil {
		f.t.Fatal(err)
	}
	return out
}

// eventually polls until ok, and fails after a minute.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(time.Minute)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("did not happen within a minute: %s", what)
		}
	}
}

func wantKind(t testing.TB, err error, kind issuers.ErrorKind) {
	t.Helper()
	if err == nil || issuers.KindOf(err) != kind {
		t.Fatalf("error %v; want one of kind %s", err, kind)
	}
}
