package kubernetes

import (
	"encoding/base64"
	"encoding/json"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// credential returns what the client gets. The variables are those that the
// Kubernetes providers of Terraform and OpenTofu, and Helm, read; kubectl takes a
// file, the field kubeconfig, or an exec plugin.
func (is *Issuer) credential(m *minting, t token) issuers.Credential {
	at := m.plan.holder(is.spec, m.lease.Name)
	namespace := at.namespace
	if len(m.plan.grants) > 0 {
		namespace = m.plan.grants[len(m.plan.grants)-1].namespace
		for _, g := range m.plan.grants {
			if g.namespace != "" {
				namespace = g.namespace
				break
			}
		}
	}
	if namespace == "" {
		namespace = "default"
	}
	if t.expires.Before(m.lease.NotAfter.Add(-2 * time.Second)) {
		is.log.Warn("the API server has cut the token's life short; set max_ttl to what it allows", "lease", m.lease.ID, "expires", t.expires)
	}
	c := issuers.Credential{
		Public: map[string]string{
			"username": "system:serviceaccount:" + at.namespace + ":" + at.name, "server": is.spec.server.String(), "namespace": namespace,
			"expires_at": t.expires.UTC().Format(time.RFC3339),
		},
		Secret: map[string]secret.Text{"token": t.text},
		Env: map[string]string{
			"KUBE_HOST": "server", "KUBE_TOKEN": "token", "HELM_KUBEAPISERVER": "server", "HELM_KUBETOKEN": "token", "HELM_NAMESPACE": "namespace",
		},
	}
	if is.ca != "" {
		c.Public["ca"] = is.ca
		c.Env["KUBE_CLUSTER_CA_CERT_DATA"] = "ca"
	}
	if len(m.plan.audiences) == 0 {
		c.Secret["kubeconfig"] = is.kubeconfig(at.name, namespace, t)
	}
	return c
}

// kubeconfig is a file for kubectl and every client like it, in JSON, which is
// YAML too.
func (is *Issuer) kubeconfig(user, namespace string, t token) secret.Text {
	type named struct {
		Name    string            `json:"name"`
		Cluster map[string]string `json:"cluster,omitempty"`
		User    map[string]string `json:"user,omitempty"`
		Context map[string]string `json:"context,omitempty"`
	}
	cluster := map[string]string{"server": is.spec.server.String()}
	if is.ca != "" {
		cluster["certificate-authority-data"] = base64.StdEncoding.EncodeToString([]byte(is.ca))
	}
	if n := is.spec.TLS.ServerName; n != "" {
		cluster["tls-server-name"] = n
	}
	const name = "mayfly"
	doc, err := json.MarshalIndent(struct {
		APIVersion string  `json:"apiVersion"`
		Kind       string  `json:"kind"`
		Clusters   []named `json:"clusters"`
		Users      []named `json:"users"`
		Contexts   []named `json:"contexts"`
		Current    string  `json:"current-context"`
	}{
		"v1", "Config", []named{{Name: name, Cluster: cluster}}, []named{{Name: user, User: map[string]string{"token": t.text.Reveal()}}},
		[]named{{Name: name, Context: map[string]string{"cluster": name, "user": user, "namespace": namespace}}}, name,
	}, "", "  ")
	if err != nil { // it holds only strings
		return secret.Text{}
	}
	return secret.New(string(doc) + "\n")
}
