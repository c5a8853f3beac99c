package vault

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// right is one thing that the broker's own policy must allow.
type right struct {
	name    string
	path    string
	caps    []string
	warning bool
	why     string // what does not work without it
}

func (is *Issuer) rights() []right {
	return []right{
		{name: "make tokens", path: "auth/token/create/" + is.spec.TokenRole, caps: []string{"update", "sudo"}, why: "sudo here lets the broker choose the id of a lease's token, and nothing else"},
		{name: "look at tokens", path: "auth/token/lookup", caps: []string{"update"}},
		{name: "prolong tokens", path: "auth/token/renew", caps: []string{"update"}},
		{name: "revoke tokens", path: "auth/token/revoke", caps: []string{"update"}},
		{name: "look at leases", path: "sys/leases/lookup", caps: []string{"update"}},
		{name: "read the token role", path: "auth/token/roles/" + is.spec.TokenRole, caps: []string{"read"}, warning: true, why: "without it the role cannot be checked"},
		{name: "check the leases' policy", path: "sys/capabilities", caps: []string{"update"}, warning: true, why: "without it the paths cannot be checked"},
		{name: "list tokens", path: "auth/token/accessors", caps: []string{"list", "sudo"}, warning: true, why: "without it reconcile cannot look for what is left over"},
		{name: "look at listed tokens", path: "auth/token/lookup-accessor", caps: []string{"update"}, warning: true, why: "without it reconcile cannot look for what is left over"},
	}
}

// leaseRights are those on the leases of one path.
func leaseRights(path string) []right {
	return []right{
		{name: "prolong leases of " + path, path: "sys/leases/renew/" + path + "/x", caps: []string{"update"}},
		{name: "revoke leases of " + path, path: "sys/leases/revoke/" + path + "/x", caps: []string{"update"}},
	}
}

func (r right) hcl(path string) string {
	quoted := make([]string, len(r.caps))
	for i, c := range r.caps {
		quoted[i] = `"` + c + `"`
	}
	return fmt.Sprintf("path %q { capabilities = [%s] }", path, strings.Join(quoted, ", "))
}

// Check implements [issuers.Checker]. It makes a token of the role and revokes it:
// nothing else shows that a lease could.
func (is *Issuer) Check(ctx context.Context) ([]issuers.Finding, error) {
	c := &examination{is: is}
	ctx = upkeep(ctx)
	serving, err := c.health(ctx)
	if err != nil {
		return nil, err
	}
	if !serving {
		return c.findings, nil
	}
	own, err := is.own.get(ctx, secret.Text{})
	if err != nil {
		if issuers.KindOf(err) != issuers.Refused {
			return nil, err
		}
		c.add("login", false, false, err.Error(), "")
		return c.findings, nil
	}
	for _, step := range []func(context.Context, secret.Text) error{c.login, c.rights, c.role, c.probe} {
		if err := step(ctx, own); err != nil {
			return nil, lookError("check the target", err)
		}
	}
	return c.findings, nil
}

// examination collects findings.
type examination struct {
	is       *Issuer
	findings []issuers.Finding
	cannot   bool // the broker lacks a right that minting needs
}

func (c *examination) add(name string, ok, warning bool, detail, fix string) {
	if ok {
		fix = ""
	}
	c.findings = append(c.findings, issuers.Finding{Name: name, OK: ok, Warning: warning && !ok, Detail: detail, Fix: fix})
}

// health asks what the server is, which needs no login.
func (c *examination) health(ctx context.Context) (bool, error) {
	codes := url.Values{}
	for _, state := range []string{"standbycode", "sealedcode", "uninitcode", "drsecondarycode", "performancestandbycode"} {
		codes.Set(state, "200") // or the answer is told by its status alone
	}
	for i, host := range c.is.fleet.hosts {
		at := c.is.spec.seeds[i]
		own := &request{}
		hctx, cancel := context.WithTimeout(context.WithValue(ctx, requestKey{}, own), callTimeout)
		resp, err := host.ReadRawWithDataWithContext(hctx, "sys/health", codes)
		if err != nil {
			cancel()
			e := lookError("ask "+at+" how it is", newFailure(op{path: "sys/health"}, own, err))
			if len(c.is.fleet.hosts) == 1 {
				return false, e
			}
			c.add("connect "+at, false, true, e.Error(), "")
			continue
		}
		var h struct {
			Initialized bool   `json:"initialized"`
			Sealed      bool   `json:"sealed"`
			Standby     bool   `json:"standby"`
			Version     string `json:"version"`
		}
		err = resp.DecodeJSON(&h)
		_ = resp.Body.Close()
		cancel()
		switch {
		case err != nil:
			c.add("connect "+at, false, false, "its answer is not one of Vault's", "")
		case !h.Initialized || h.Sealed:
			c.add("connect "+at, false, len(c.is.fleet.hosts) > 1, "the server is sealed, or not initialised: "+plain(h.Version, 40), "vault operator unseal")
		default:
			role := "active"
			if h.Standby {
				role = "standby"
			}
			c.add("connect "+at, true, false, "version "+plain(h.Version, 40)+", "+role, "")
		}
	}
	if slices.ContainsFunc(c.findings, func(f issuers.Finding) bool { return f.OK }) {
		return true, nil
	}
	c.findings[0].Warning = false
	return false, nil
}

// login looks at the broker's own token.
func (c *examination) login(ctx context.Context, own secret.Text) error {
	s, err := c.is.fleet.call(ctx, op{method: http.MethodGet, path: "auth/token/lookup-self", token: own})
	if err != nil {
		if statusOf(err) == http.StatusForbidden {
			c.add("login", true, true, "by "+c.is.spec.Auth.Method+"; the token may not look at itself", "")
			return nil
		}
		return err
	}
	ttl := time.Duration(number(s.Data["ttl"])) * time.Second
	renewable, _ := s.Data["renewable"].(bool)
	policies := texts(s.Data["policies"])
	given := c.is.spec.Auth.Method == authToken
	switch {
	case slices.Contains(policies, "root"):
		c.add("login", false, true, "the broker's token is a root token: give it one with the policy of the page", "")
	case given && ttl > 0 && !renewable:
		c.add("login", false, true, fmt.Sprintf("the broker's token cannot be renewed and ends in %s; make a periodic one", ttl), "vault token create -orphan -period=24h -policy=…")
	case given && ttl > 0 && ttl < time.Hour && number(s.Data["period"]) == 0:
		c.add("login", false, true, fmt.Sprintf("the broker's token ends in %s unless it is renewed, and at its max_ttl in any case; make a periodic one", ttl), "vault token create -orphan -period=24h -policy=…")
	case given && ttl > 0 && number(s.Data["period"]) > 0 && number(s.Data["period"]) < 1800:
		c.add("login", false, true, "the period of the broker's token is so short that it may end while nobody uses the target; half an hour or more is needed", "vault token create -orphan -period=24h -policy=…")
	default:
		c.add("login", true, false, "by "+c.is.spec.Auth.Method, "")
	}
	return nil
}

func texts(v any) []string {
	list, _ := v.([]any)
	var out []string
	for _, x := range list {
		if s, ok := x.(string); ok {
			out = append(out, s)
		}
	}
	return out
}

// capabilities asks what a token may do on paths.
func (c *examination) capabilities(ctx context.Context, own, whose secret.Text, paths []string) (map[string][]string, error) {
	o := op{method: http.MethodPut, path: "sys/capabilities-self", token: own, body: map[string]any{"paths": paths}}
	if !whose.IsZero() {
		o.path, o.body["token"] = "sys/capabilities", whose.Reveal()
	}
	s, err := c.is.fleet.call(ctx, o)
	if err != nil || s == nil {
		return nil, err
	}
	out := map[string][]string{}
	for _, p := range paths {
		out[p] = texts(s.Data[p])
	}
	return out, nil
}

// has says whether capabilities contain all that are wanted; root has every one.
func has(got, want []string) bool {
	if slices.Contains(got, "root") {
		return true
	}
	return !slices.ContainsFunc(want, func(w string) bool { return !slices.Contains(got, w) })
}

func (c *examination) rights(ctx context.Context, own secret.Text) error {
	all := c.is.rights()
	prefix := ""
	if c.is.fleet.secrets != "" {
		prefix = c.is.fleet.secrets + "/"
	}
	for _, p := range c.is.spec.Paths {
		for _, r := range leaseRights(strings.TrimRight(strings.SplitN(p, "?", 2)[0], "/*")) {
			r.path = prefix + r.path
			all = append(all, r)
		}
	}
	var paths []string
	for _, r := range all {
		paths = append(paths, r.path)
	}
	got, err := c.capabilities(ctx, own, secret.Text{}, paths)
	if statusOf(err) == http.StatusForbidden {
		c.add("ask for rights", false, true, "the broker's token may not ask what it may do, so that its rights cannot be told", `path "sys/capabilities-self" { capabilities = ["update"] }`)
		return nil
	}
	if err != nil {
		return err
	}
	for _, r := range all {
		ok := has(got[r.path], r.caps)
		detail := "granted"
		if !ok {
			detail = "the broker's policy lacks " + strings.Join(r.caps, " and ") + " on " + r.path
			if r.why != "" {
				detail += "; " + r.why
			}
			c.cannot = c.cannot || !r.warning
		}
		hclPath := r.path
		if suffix, is := strings.CutSuffix(r.path, "/x"); is {
			hclPath = suffix + "/*"
		}
		c.add(r.name, ok, r.warning, detail, r.hcl(hclPath))
	}
	return nil
}

// role looks at the token role, where the broker may.
func (c *examination) role(ctx context.Context, own secret.Text) error {
	name := c.is.spec.TokenRole
	fix := fmt.Sprintf("vault write auth/token/roles/%s allowed_policies=%s,%s orphan=true renewable=true token_type=service", name, c.is.spec.TokenPolicy, endedPolicy)
	s, err := c.is.fleet.call(ctx, op{method: http.MethodGet, path: "auth/token/roles/" + name, token: own})
	switch {
	case statusOf(err) == http.StatusForbidden:
		return nil // told above
	case err != nil:
		return err
	case s == nil:
		c.cannot = true
		c.add("token role", false, false, "there is no token role "+name, fix)
		return nil
	}
	var wrong []string
	policies := texts(s.Data["allowed_policies"])
	for _, p := range []string{c.is.spec.TokenPolicy, endedPolicy} {
		if !slices.Contains(policies, p) {
			wrong = append(wrong, "allowed_policies lacks "+p)
		}
	}
	if orphan, _ := s.Data["orphan"].(bool); !orphan {
		wrong = append(wrong, "orphan is not true: leases would end with the broker's own login")
	}
	if renewable, _ := s.Data["renewable"].(bool); !renewable {
		wrong = append(wrong, "renewable is not true")
	}
	if t, _ := s.Data["token_type"].(string); strings.Contains(t, "batch") {
		wrong = append(wrong, "token_type is "+t+": such tokens cannot be revoked")
	}
	for _, k := range []string{"token_num_uses", "token_period", "period"} {
		if number(s.Data[k]) != 0 {
			wrong = append(wrong, k+" is not 0")
		}
	}
	if len(wrong) > 0 {
		c.cannot = true
		c.add("token role", false, false, name+": "+strings.Join(wrong, "; "), fix)
		return nil
	}
	var limits []string
	for _, k := range []string{"token_explicit_max_ttl", "explicit_max_ttl"} {
		if n := number(s.Data[k]); n > 0 {
			limits = append(limits, fmt.Sprintf("leases live %s at most (%s)", time.Duration(n)*time.Second, k))
		}
	}
	c.add("token role", true, false, strings.Join(append([]string{name}, limits...), "; "), "")
	for _, p := range policies {
		if p != c.is.spec.TokenPolicy && p != endedPolicy {
			c.add("token role policies", false, true, "the role also lets the broker make tokens with the policy "+plain(p, 80), fix)
		}
	}
	return nil
}

// probe makes a token as a lease would, and asks what its policy allows.
func (c *examination) probe(ctx context.Context, own secret.Text) error {
	if c.cannot {
		return nil
	}
	const name = "make a lease's token"
	id := secret.New("mayfly_" + strings.ToLower(rand.Text()+rand.Text()))
	l := issuers.Lease{Name: "mayfly-check"}
	err := c.is.create(ctx, id, l, mark{lease: "check", term: c.is.term, mint: "check"}, time.Minute)
	if err != nil {
		if issuers.KindOf(err) == issuers.Unreachable {
			return err
		}
		c.add(name, false, false, err.Error(), "")
		return nil
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		if err := c.is.revoke(end, id); err != nil {
			c.is.log.Warn("the token of a check is not revoked; it ends within a minute", "error", err)
		}
	}()
	c.add(name, true, false, "made, looked at and revoked", "")
	return c.policy(ctx, own, id)
}

// policy asks what the leases' policy allows.
func (c *examination) policy(ctx context.Context, own, child secret.Text) error {
	all := []right{{name: "note what they read", path: journal + "/x", caps: []string{"create", "update", "read", "list"}}}
	prefix := ""
	if c.is.fleet.secrets != "" {
		prefix = c.is.fleet.secrets + "/"
	}
	for _, p := range c.is.spec.Paths {
		p, params, _ := strings.Cut(p, "?")
		if strings.HasSuffix(p, "/*") {
			p = strings.TrimSuffix(p, "*") + "x"
		}
		r := right{name: "read " + p, path: prefix + p, caps: []string{"read"}}
		if params != "" {
			r.name, r.caps = "write "+p, []string{"update"}
		}
		all = append(all, r)
	}
	var paths []string
	for _, r := range all {
		paths = append(paths, r.path)
	}
	got, err := c.capabilities(ctx, own, child, paths)
	if statusOf(err) == http.StatusForbidden {
		return nil // told above
	}
	if err != nil {
		return err
	}
	for _, r := range all {
		ok := has(got[r.path], r.caps)
		// a role may also write where nothing was said of parameters
		ok = ok || r.caps[0] == "read" && has(got[r.path], []string{"update"})
		detail := "granted by " + c.is.spec.TokenPolicy
		if !ok {
			detail = "the policy " + c.is.spec.TokenPolicy + " of leases lacks " + strings.Join(r.caps, " and ") + " on " + r.path
		}
		hclPath := r.path
		if p, is := strings.CutSuffix(r.path, "/x"); is {
			hclPath = p + "/*"
		}
		c.add("leases "+r.name, ok, false, detail, r.hcl(hclPath))
	}
	return nil
}
