package kubernetes

import (
	"context"
	"net/http"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// token is what TokenRequest answered.
type token struct {
	text    secret.Text
	expires time.Time
}

// tokens asks for the lease's token, once its objects stand and no newer leader
// has been there.
func (is *Issuer) tokens(ctx context.Context, m *minting) (token, error) {
	if err := is.fenced(ctx); err != nil {
		return token{}, err
	}
	if m.replaced || m.plan.account == "" {
		if err := is.ready(ctx, m); err != nil {
			return token{}, err
		}
	}
	return is.request(ctx, is.mint, m, m.lease.NotAfter)
}

// request asks for one token that is bound to the anchor as it was made: if that
// is gone, or another of the same name, the API server refuses. So a request that
// is late has no effect (HAZARDS 8).
func (is *Issuer) request(ctx context.Context, c *client, m *minting, end time.Time) (token, error) {
	if !m.inTime() {
		return token{}, tooLate()
	}
	at := m.plan.holder(is.spec, m.lease.Name)
	t, err := c.tokenRequest(ctx, at, m.anchor, m.plan.audiences, end)
	f, status := said(err)
	switch {
	case status == http.StatusConflict, status == http.StatusNotFound && f.reason == "NotFound" && (f.kind == secrets.plural || m.plan.account == ""):
		return token{}, &issuers.Error{Kind: issuers.TooLate, Detail: "the lease was withdrawn, or minted anew, while it was being minted", Err: err}
	case err != nil:
		return token{}, sentError("ask for a token of "+at.String(), err)
	}
	return t, nil
}

func (c *client) tokenRequest(ctx context.Context, at ref, anchor metadata, audiences []string, end time.Time) (token, error) {
	type bound struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Name       string `json:"name"`
		UID        string `json:"uid"`
	}
	type requestSpec struct {
		Audiences []string `json:"audiences"`
		Seconds   int64    `json:"expirationSeconds"`
		Bound     bound    `json:"boundObjectRef"`
	}
	// rounded down: a token is not to outlive its lease where it can be helped
	life := max(time.Until(end).Truncate(time.Second), minToken)
	body := struct {
		APIVersion string      `json:"apiVersion"`
		Kind       string      `json:"kind"`
		Spec       requestSpec `json:"spec"`
	}{"authentication.k8s.io/v1", "TokenRequest", requestSpec{audiences, int64(life / time.Second), bound{"v1", secrets.kind, anchor.Name, anchor.UID}}}
	var out struct {
		Status struct {
			Token   string    `json:"token"`
			Expires time.Time `json:"expirationTimestamp"`
		} `json:"status"`
	}
	if err := c.do(ctx, call{method: http.MethodPost, path: at.path() + "/token", body: body}, &out); err != nil {
		return token{}, err
	}
	if out.Status.Token == "" {
		return token{}, &issuers.Error{Kind: issuers.Unknown, Detail: "the API server answered without a token"}
	}
	return token{secret.New(out.Status.Token), out.Status.Expires}, nil
}

// ready waits until the API server has noticed what was made: it authenticates and
// authorises from caches that follow by a watch. For that it uses a second token of
// the same making and throws it away. The lease's own is not used, for one that was
// accepted is remembered for ten seconds, also past its end. If it takes too long,
// the lease is given out all the same; the first calls with it may be refused.
func (is *Issuer) ready(ctx context.Context, m *minting) error {
	if len(m.plan.audiences) > 0 {
		return nil // the API server would not take it
	}
	probe, err := is.request(ctx, is.mint, m, time.Time{})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	questions := m.questions()
	for i := 0; ; i++ {
		for len(questions) > 0 {
			ok, err := is.mint.allowed(ctx, probe.text, questions[0])
			if _, status := said(err); status == http.StatusForbidden {
				ok = true // this cluster lets nobody ask
			}
			if !ok {
				break
			}
			questions = questions[1:]
		}
		if len(questions) == 0 {
			return nil
		}
		if pause(ctx, i) != nil {
			is.log.Warn("the API server has not noticed the lease's rights yet; the first calls may be refused", "lease", m.lease.ID)
			return nil
		}
	}
}

// questions are what the lease must be allowed before it is given out: something
// of each of its roles. Where nothing is known of them, being accepted is all that
// is asked.
func (m *minting) questions() []right {
	var out []right
	ask := func(namespace string, rules []rule) {
		for _, r := range rules {
			if len(r.APIGroups) == 0 || len(r.Resources) == 0 || len(r.Verbs) == 0 {
				continue // of URLs
			}
			q := rightOf(r.APIGroups[0], r.Resources[0], r.Verbs[0])
			q.Namespace = namespace
			if len(r.ResourceNames) > 0 {
				q.Name = r.ResourceNames[0]
			}
			out = append(out, q)
			return
		}
	}
	for _, g := range m.plan.grants {
		ask(g.namespace, g.rules)
		for _, name := range g.clusterRoles {
			ask(g.namespace, m.named[name])
		}
	}
	if len(out) == 0 {
		out = []right{{}}
	}
	return out
}
