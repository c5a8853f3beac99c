package harness

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/mayfly-broker/mayfly/issuers/kubernetes/kubernetestest"
)

// kubernetes is an API server as a [Server].
type kubernetes struct{ *kubernetestest.Server }

func startKubernetes(ctx context.Context) (Server, error) {
	s, err := kubernetestest.Run(ctx)
	if err != nil {
		return nil, err
	}
	k := kubernetes{s}
	if err := k.furnish(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return k, nil
}

// furnish gives the broker the page's rights, and leases something to read.
func (k kubernetes) furnish(ctx context.Context) error {
	for _, name := range []string{"shop", "web"} {
		if err := k.Namespace(ctx, name); err != nil {
			return err
		}
	}
	block, err := pageBlock("kubernetes", "yaml", "least-privilege")
	if err != nil {
		return err
	}
	for _, text := range strings.Split(block, "\n---\n") {
		var object struct {
			APIVersion string `yaml:"apiVersion"`
			Kind       string
			Metadata   struct{ Namespace string }
		}
		var body map[string]any
		if err := errors.Join(yaml.Unmarshal([]byte(text), &object), yaml.Unmarshal([]byte(text), &body)); err != nil {
			return err
		}
		path := "/api/" + object.APIVersion
		if strings.Contains(object.APIVersion, "/") {
			path = "/apis/" + object.APIVersion
		}
		if ns := object.Metadata.Namespace; ns != "" {
			path += "/namespaces/" + ns
		}
		if err := k.Admin(ctx, http.MethodPost, path+"/"+strings.ToLower(object.Kind)+"s", body, nil); err != nil {
			return err
		}
	}
	settings := map[string]any{"metadata": map[string]any{"name": "settings"}, "data": map[string]any{"a": "b"}}
	return k.Admin(ctx, http.MethodPost, "/api/v1/namespaces/shop/configmaps", settings, nil)
}

// Add has leases be accounts that are made for them.
func (k kubernetes) Add(t testing.TB, admin CLI, dir, target string) string {
	t.Helper()
	token, err := k.TokenOf(t.Context(), "mayfly", "mayfly")
	ca := filepath.Join(dir, target+"-ca.pem")
	if err = errors.Join(err, os.WriteFile(ca, []byte(k.CAPEM), 0o600)); err != nil {
		t.Fatal(err)
	}
	addTarget(t, admin, dir, token, "kubernetes", "https://"+k.Address(), "--name", target, "--tls-ca-file", ca, "--set", `namespaces=["shop","web"]`)
	return target + "/readonly"
}

// Name is the last word of the account's.
func (k kubernetes) Name(credential map[string]string) string {
	user := credential["username"]
	return user[strings.LastIndexByte(user, ':')+1:]
}

// Login reads a ConfigMap.
func (k kubernetes) Login(ctx context.Context, credential map[string]string) error {
	return k.As(ctx, credential["token"], http.MethodGet, "/api/v1/namespaces/shop/configmaps/settings", nil, nil)
}

// Ours lists what bears the broker's label, wherever it stands.
func (k kubernetes) Ours(ctx context.Context) ([]string, error) {
	const rbac = "/apis/rbac.authorization.k8s.io/v1/"
	var out []string
	for _, at := range []string{"/api/v1/secrets", "/api/v1/serviceaccounts", rbac + "roles", rbac + "rolebindings", rbac + "clusterroles", rbac + "clusterrolebindings"} {
		var list struct {
			Items []struct {
				Metadata struct{ Name, Namespace string }
			}
		}
		if err := k.Admin(ctx, http.MethodGet, at+"?labelSelector=app.kubernetes.io/managed-by=mayfly", nil, &list); err != nil {
			return nil, err
		}
		for _, i := range list.Items {
			out = append(out, at+" "+i.Metadata.Namespace+"/"+i.Metadata.Name)
		}
	}
	return out, nil
}
