package kubernetestest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// Refusal is an answer that is no success.
type Refusal struct {
	Status int
	Text   string
}

// Error implements error.
func (r *Refusal) Error() string { return fmt.Sprintf("%d: %s", r.Status, r.Text) }

// Admin sends a request as a member of system:masters. body and into may be nil; a
// body that is text is sent as it is.
func (s *Server) Admin(ctx context.Context, method, path string, body, into any) error {
	return s.As(ctx, s.Token, method, path, body, into)
}

// As sends a request with a bearer token. The error is a *[Refusal] where the
// server answered.
func (s *Server) As(ctx context.Context, token, method, path string, body, into any) error {
	var content io.Reader
	kind := "application/json"
	switch b := body.(type) {
	case nil:
	case string:
		content = bytes.NewReader([]byte(b))
	default:
		text, err := json.Marshal(b)
		if err != nil {
			return err
		}
		content = bytes.NewReader(text)
	}
	if method == http.MethodPatch {
		kind = "application/merge-patch+json"
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://"+s.Address()+path, content)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", kind)
	answer, err := s.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = answer.Body.Close() }()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if answer.StatusCode/100 != 2 {
		return &Refusal{answer.StatusCode, string(text)}
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(text, into)
}

// Namespace makes a namespace, unless it is there.
func (s *Server) Namespace(ctx context.Context, name string) error {
	return s.make(ctx, "/api/v1/namespaces", map[string]any{"metadata": map[string]any{"name": name}})
}

// ServiceAccount makes a service account, unless it is there.
func (s *Server) ServiceAccount(ctx context.Context, namespace, name string) error {
	return s.make(ctx, "/api/v1/namespaces/"+namespace+"/serviceaccounts", map[string]any{"metadata": map[string]any{"name": name}})
}

// Bind makes a service account hold a ClusterRole in a namespace; in the whole
// cluster where that is empty.
func (s *Server) Bind(ctx context.Context, namespace, role, accountNamespace, account string) error {
	path := "/apis/rbac.authorization.k8s.io/v1/namespaces/" + namespace + "/rolebindings"
	if namespace == "" {
		path = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
	}
	return s.make(ctx, path, map[string]any{
		"metadata": map[string]any{"name": accountNamespace + "-" + account + "-" + role},
		"roleRef":  map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
		"subjects": []any{map[string]any{"kind": "ServiceAccount", "name": account, "namespace": accountNamespace}},
	})
}

func (s *Server) make(ctx context.Context, path string, obj any) error {
	err := s.Admin(ctx, http.MethodPost, path, obj, nil)
	if r, ok := err.(*Refusal); ok && r.Status == http.StatusConflict {
		return nil
	}
	return err
}

// TokenOf asks for an hour's token of a service account.
func (s *Server) TokenOf(ctx context.Context, namespace, account string) (string, error) {
	var out struct {
		Status struct {
			Token string `json:"token"`
		} `json:"status"`
	}
	body := map[string]any{"spec": map[string]any{"expirationSeconds": 3600}}
	err := s.Admin(ctx, http.MethodPost, "/api/v1/namespaces/"+namespace+"/serviceaccounts/"+account+"/token", body, &out)
	return out.Status.Token, err
}

// Review asks the API server what it thinks of a token (TokenReview).
func (s *Server) Review(ctx context.Context, token string) (authenticated bool, user string, err error) {
	var out struct {
		Status struct {
			Authenticated bool `json:"authenticated"`
			User          struct {
				Username string `json:"username"`
			} `json:"user"`
		} `json:"status"`
	}
	body := map[string]any{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": map[string]any{"token": token}}
	err = s.Admin(ctx, http.MethodPost, "/apis/authentication.k8s.io/v1/tokenreviews", body, &out)
	return out.Status.Authenticated, out.Status.User.Username, err
}

// aggregate gives view, edit and admin the rules that a controller would.
func (s *Server) aggregate(ctx context.Context) error {
	const roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles"
	for _, into := range []string{"view", "edit", "admin"} {
		var parts struct {
			Items []struct {
				Rules []any `json:"rules"`
			} `json:"items"`
		}
		// edit and admin hold what the one before holds, by labels of their own
		if err := s.Admin(ctx, http.MethodGet, roles+"?labelSelector="+url.QueryEscape("rbac.authorization.k8s.io/aggregate-to-"+into+"=true"), nil, &parts); err != nil {
			return err
		}
		rules := []any{}
		for _, p := range parts.Items {
			rules = append(rules, p.Rules...)
		}
		if err := s.Admin(ctx, http.MethodPatch, roles+"/"+into, map[string]any{"rules": rules}, nil); err != nil {
			return err
		}
	}
	return nil
}

// ClientCertificate issues a certificate that the server takes as a user in groups.
func (s *Server) ClientCertificate(user string, groups ...string) (certPEM, keyPEM string, err error) {
	return s.authority.issue(user, groups)
}
