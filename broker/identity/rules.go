package identity

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// sharedIssuers serve everybody: a valid token of theirs says only that
// somebody on the internet has an account. A host matches with any path.
var sharedIssuers = []string{
	"token.actions.githubusercontent.com", // GitHub Actions, enterprise paths included
	"gitlab.com",
	"accounts.google.com",
	"agent.buildkite.com",
	"app.terraform.io",
	"appleid.apple.com",
	"cognito-identity.amazonaws.com",
	"oidc.vercel.com",
	"oidc.codefresh.io",
	"slack.com",
	"www.linkedin.com",
	"securetoken.google.com",
	"api.login.yahoo.com",
	"id.twitch.tv",
	"www.facebook.com",
	"discord.com",
}

// microsoftShared are the tenants of login.microsoftonline.com that are
// everybody's; the last is the one of personal accounts.
var microsoftShared = []string{"common", "organizations", "consumers", "9188040d-6c67-4c5b-b112-36a304b66dad"}

// sharedIssuer reports whether anybody can get a token of this issuer.
func sharedIssuer(issuer string) bool {
	if !strings.Contains(issuer, "://") {
		issuer = "https://" + issuer // Google has signed with and without
	}
	u, err := url.Parse(issuer)
	if err != nil {
		return false
	}
	host := strings.ToLower(u.Hostname())
	if host == "login.microsoftonline.com" {
		tenant, _, _ := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
		return slices.Contains(microsoftShared, strings.ToLower(tenant))
	}
	return slices.Contains(sharedIssuers, host)
}

// plumbing are the claims that every token of an issuer has, or that its
// bearer chooses: requiring them tells nobody apart.
var plumbing = []string{"iss", "aud", "exp", "nbf", "iat", "jti", "typ", "azp", "auth_time", "nonce", "email_verified"}

// rules reads require and bind, and refuses what would let strangers in.
func (p *specReader) rules(m *Method) {
	if v, there := p.spec["require"]; there {
		m.require = p.conditions("require", v, m.Type)
	}
	telling := slices.ContainsFunc(m.require, func(c condition) bool { return !slices.Contains(plumbing, c.path) })
	if sharedIssuer(m.Issuer) && !telling {
		p.problem("require: missing; %s signs for everybody, so say whose tokens are meant", clip(m.Issuer))
	}
	list, ok := p.spec["bind"].([]any)
	if !ok || len(list) == 0 || len(list) > maxRules {
		p.problem("bind: want a list of 1 to %d rules", maxRules)
		return
	}
	for i, item := range list {
		where := fmt.Sprintf("bind[%d]", i)
		o, ok := item.(object)
		if !ok {
			p.problem("%s: want {when, as, instance}", where)
			continue
		}
		r := p.rule(where, o, m.Type)
		if len(r.when) == 0 && len(m.require) == 0 {
			p.problem("%s: matches every identity of the issuer; say when, or require", where)
		}
		if len(r.as.claims()) > 0 && !telling {
			p.problem("%s.as: a template needs require, or the issuer's users choose their own names", where)
		}
		m.bind = append(m.bind, r)
	}
}

func (p *specReader) rule(where string, o object, t MethodType) rule {
	var r rule
	for _, key := range sortedKeys(o) {
		switch key {
		case "when":
			r.when = p.conditions(where+".when", o[key], t)
		case "as":
			text, ok := o[key].(string)
			if !ok {
				p.problem("%s.as: want a string", where)
				continue
			}
			as, err := parseTemplate(text)
			if err != nil {
				p.problem("%s.as: %v", where, err)
			}
			r.as = as
		case "instance":
			text, ok := o[key].(string)
			if !ok || !validPath(text) {
				p.problem("%s.instance: want a claim's name", where)
			}
			r.instance = text
		default:
			p.problem("%s.%s: unknown key", where, clip(key))
		}
	}
	if _, there := o["as"]; !there {
		p.problem("%s.as: missing", where)
	}
	for _, path := range append(r.as.claims(), r.instance) {
		if path != "" && !knownClaim(t, path) {
			p.problem("%s: a certificate has no %q", where, clip(path))
		}
	}
	return r
}

// knownClaim reports whether evidence of this type can have the claim: a token
// may have any, a certificate only those of certificateClaims.
func knownClaim(t MethodType, path string) bool {
	fields, certificate := certificateFields[t]
	if !certificate {
		return true
	}
	f, ok := fields[path]
	return (ok && f.op == exact) || (t == MethodX509 && path == "serial")
}

func (p *specReader) conditions(where string, v any, t MethodType) []condition {
	o, ok := v.(object)
	if !ok || len(o) > maxCondition {
		p.problem("%s: want up to %d claims with their values", where, maxCondition)
		return nil
	}
	var out []condition
	for _, path := range sortedKeys(o) {
		c := condition{path: path}
		if !validPath(path) {
			p.problem("%s: %q is not a claim's name", where, clip(path))
			continue
		}
		if fields, certificate := certificateFields[t]; certificate {
			f, known := fields[path]
			if !known {
				p.problem("%s: a certificate has no %q", where, clip(path))
				continue
			}
			c.path, c.op = f.from, f.op
		}
		switch want := o[path].(type) {
		case string:
			c.want = want
			if problem := badOperand(c.op, want); problem != "" {
				p.problem("%s.%s: %s", where, clip(path), problem)
			}
		case bool:
			c.want = want
		case json.Number:
			n, err := want.Int64()
			if err != nil {
				p.problem("%s.%s: %s is not an integer; compare strings, integers or booleans", where, clip(path), describe(want))
			}
			c.want = n
		default:
			p.problem("%s.%s: want a string, an integer or a boolean", where, clip(path))
		}
		out = append(out, c)
	}
	return out
}

// badOperand says what is wrong with a condition's value for its operator.
func badOperand(op operator, want string) string {
	switch {
	case want == "" || len(want) > maxURL:
		return fmt.Sprintf("want 1 to %d characters", maxURL)
	case op == idPrefix:
		if id, err := spiffeid.FromString(want); err != nil || id.Path() == "" {
			return "want a SPIFFE ID with a path"
		}
	case op == uriPrefix:
		u, err := url.Parse(want)
		if err != nil || u.Scheme == "" || u.Host == "" {
			return "want an absolute URI with a host"
		}
	case op == dnsSuffix:
		if strings.Trim(want, ".") == "" || !safeName(strings.TrimPrefix(want, ".")) {
			return "want a domain"
		}
	}
	return ""
}

func (p *specReader) trustDomain(m *Method) {
	text := p.text("trust_domain")
	td, err := spiffeid.TrustDomainFromString(text)
	if err != nil || text == "" {
		p.problem("trust_domain: want a SPIFFE trust domain, such as prod.example")
		return
	}
	m.TrustDomain = td.Name()
}
