package kubernetes

import (
	"context"
	"net/http"
	"strings"

	"github.com/mayfly-broker/mayfly/secret"
)

// right is one question to the API server (authorization.k8s.io/v1,
// ResourceAttributes). The zero value asks for nothing.
type right struct {
	Namespace   string `json:"namespace,omitempty"`
	Verb        string `json:"verb,omitempty"`
	Group       string `json:"group,omitempty"`
	Resource    string `json:"resource,omitempty"`
	Subresource string `json:"subresource,omitempty"`
	Name        string `json:"name,omitempty"`
}

// rightOf takes a resource as rules have it, with its subresource.
func rightOf(group, res, verb string) right {
	name, sub, _ := strings.Cut(res, "/")
	return right{Verb: verb, Group: group, Resource: name, Subresource: sub}
}

// allowed asks whether the bearer of a token, the broker itself without one, has
// a right. The zero right is had by whoever is accepted at all.
func (c *client) allowed(ctx context.Context, as secret.Text, r right) (bool, error) {
	type review struct {
		Attributes right `json:"resourceAttributes"`
	}
	if r == (right{}) {
		r = right{Verb: "get", Resource: "pods"}
		_, err := c.ask(ctx, as, review{r})
		return err == nil, err
	}
	return c.ask(ctx, as, review{r})
}

func (c *client) ask(ctx context.Context, as secret.Text, question any) (bool, error) {
	body := struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Spec       any    `json:"spec"`
	}{"authorization.k8s.io/v1", "SelfSubjectAccessReview", question}
	var out struct {
		Status struct {
			Allowed bool `json:"allowed"`
		} `json:"status"`
	}
	err := c.do(ctx, call{method: http.MethodPost, path: "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body: body, as: as}, &out)
	return err == nil && out.Status.Allowed, err
}

// whoami is the name under which the API server knows the bearer of a token, the
// broker itself without one.
func (c *client) whoami(ctx context.Context, as secret.Text) (user string, groups []string, err error) {
	body := map[string]string{"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
	var out struct {
		Status struct {
			User struct {
				Username string   `json:"username"`
				Groups   []string `json:"groups"`
			} `json:"userInfo"`
		} `json:"status"`
	}
	err = c.do(ctx, call{method: http.MethodPost, path: "/apis/authentication.k8s.io/v1/selfsubjectreviews", body: body, as: as}, &out)
	return out.Status.User.Username, out.Status.User.Groups, err
}
