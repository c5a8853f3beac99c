package identity

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/mayfly-broker/mayfly/broker/fault"
)

// A condition compares one claim with one value, exactly: same type, same
// case. A claim that is a list matches if the value is a member of it.
type condition struct {
	path string
	want any // string, int64 or bool
	op   operator
}

type operator int

const (
	exact operator = iota
	idPrefix
	uriPrefix
	dnsSuffix
)

// certificateFields are the claims that a certificate has, in the conditions
// of x509 and spiffe methods; the operator says how a value is compared, and
// from is the claim it is compared with.
var certificateFields = map[MethodType]map[string]struct {
	from string
	op   operator
}{
	MethodX509: {
		"uri": {"uri", exact}, "uri_prefix": {"uri", uriPrefix},
		"dns": {"dns", exact}, "dns_suffix": {"dns", dnsSuffix},
		"cn": {"cn", exact}, "o": {"o", exact}, "ou": {"ou", exact},
	},
	MethodSPIFFE: {
		"spiffe_id": {"spiffe_id", exact}, "spiffe_id_prefix": {"spiffe_id", idPrefix}, "path": {"path", exact},
	},
}

// A rule names the principal of the evidence that meets its conditions.
type rule struct {
	when     []condition
	as       template
	instance string // claim path; empty means the rule names no instance
}

// holds reports whether every condition is met. No condition holds vacuously;
// ParseMethod sees to it that this is never all there is.
func holds(conditions []condition, claims object) bool {
	for _, c := range conditions {
		if !c.met(claims) {
			return false
		}
	}
	return true
}

func (c condition) met(claims object) bool {
	v, ok := claims.lookup(c.path)
	if !ok {
		return false
	}
	list, ok := v.([]any)
	if !ok {
		return c.equals(v)
	}
	return slices.ContainsFunc(list, c.equals)
}

func (c condition) equals(v any) bool {
	switch want := c.want.(type) {
	case string:
		got, ok := v.(string)
		return ok && c.compare(got, want)
	case int64:
		n, ok := v.(json.Number)
		if !ok {
			return false
		}
		got, err := n.Int64()
		return err == nil && got == want
	case bool:
		got, ok := v.(bool)
		return ok && got == want
	default:
		return false
	}
}

// compare applies the operator. Prefixes end at a path segment and suffixes
// begin at a label, so that prod is never a prefix of production.
func (c condition) compare(got, want string) bool {
	switch c.op {
	case exact:
		return got == want
	case idPrefix:
		id, err := spiffeid.FromString(got)
		prefix, perr := spiffeid.FromString(want)
		return err == nil && perr == nil && spiffeid.MatchIDPrefix(prefix)(id) == nil
	case uriPrefix:
		return got == want || (strings.HasPrefix(got, strings.TrimSuffix(want, "/")+"/") && plainPath(got))
	case dnsSuffix:
		label := strings.TrimPrefix(strings.ToLower(want), ".")
		return strings.HasSuffix(strings.ToLower(got), "."+label)
	default:
		return false
	}
}

// plainPath reports whether a URI's path has no dot segments, by which it could
// leave a prefix it seems to lie under.
func plainPath(uri string) bool {
	u, err := url.Parse(uri)
	if err != nil {
		return false
	}
	_, err = normalPath(u.EscapedPath())
	return err == nil
}

// binding is the outcome of a method's rules.
type binding struct{ principal, instance string }

// bindClaims checks require and names the principal by the first rule that
// matches. A rule that matches and cannot name it fails; later rules are not
// tried, since the operator wrote the first one for this evidence.
func (m Method) bindClaims(claims object) (binding, *fault.Error) {
	if m.uses("email") && !verifiedEmail(claims) {
		return binding{}, unauthenticated(CodeClaimsRefused, "Auth method %q goes by email, and the issuer does not say that this one is verified (email_verified).", m.Name)
	}
	for _, c := range m.require {
		if !c.met(claims) {
			return binding{}, unauthenticated(CodeClaimsRefused, "Auth method %q requires another value of %s.", m.Name, c.path)
		}
	}
	for i, r := range m.bind {
		if !holds(r.when, claims) {
			continue
		}
		principal, err := r.as.expand(claims)
		if err != nil {
			return binding{}, unauthenticated(CodeClaimUnusable, "Rule %d of auth method %q cannot name a principal: %v.", i+1, m.Name, err)
		}
		b := binding{principal: principal}
		if r.instance != "" {
			v, _ := claims.lookup(r.instance)
			s, ok := scalar(v)
			if !ok || len(s) > maxName || !printable(s) {
				return binding{}, unauthenticated(CodeClaimUnusable, "Rule %d of auth method %q takes the instance from %s, which is missing or unusable.", i+1, m.Name, r.instance)
			}
			b.instance = s
		}
		return b, nil
	}
	return binding{}, unauthenticated(CodeNoBinding, "No rule of auth method %q is for this identity.", m.Name)
}

// uses reports whether the method decides by the claim at path.
func (m Method) uses(path string) bool {
	is := func(c condition) bool { return c.path == path }
	if slices.ContainsFunc(m.require, is) {
		return true
	}
	for _, r := range m.bind {
		if slices.ContainsFunc(r.when, is) || slices.Contains(r.as.claims(), path) || r.instance == path {
			return true
		}
	}
	return false
}

// verifiedEmail: an issuer that lets people type in an address lets them type
// in yours. Some issuers write the boolean as a string.
func verifiedEmail(claims object) bool {
	v := claims["email_verified"]
	return v == true || v == "true"
}

// A template is `kind:name` with claims in braces: "workload:{namespace}/{name}".
type template struct {
	kind  string
	parts []part
}

type part struct {
	text  string
	claim bool // text is a claim's path
}

// principalKinds: DESIGN §1.
var principalKinds = []string{"workload", "agent", "human", "node"}

func (t template) claims() []string {
	var out []string
	for _, p := range t.parts {
		if p.claim {
			out = append(out, p.text)
		}
	}
	return out
}

// expand fills the template in. A claim's value may hold safe characters only;
// a slash only where it is the template's one claim, so that two claims cannot
// be cut in two ways to give one name.
func (t template) expand(claims object) (string, error) {
	var name strings.Builder
	slash := len(t.claims()) == 1
	for _, p := range t.parts {
		if !p.claim {
			name.WriteString(p.text)
			continue
		}
		v, ok := claims.lookup(p.text)
		s, usable := scalar(v)
		switch {
		case !ok || !usable:
			return "", fmt.Errorf("the claim %s is missing or not a name", p.text)
		case len(s) > maxName:
			return "", fmt.Errorf("the claim %s is longer than %d bytes", p.text, maxName)
		case !safeName(s) || (!slash && strings.Contains(s, "/")):
			return "", fmt.Errorf("the claim %s has characters that a name may not have", p.text)
		}
		name.WriteString(s)
	}
	if !safeName(name.String()) || name.Len() > maxName {
		return "", fmt.Errorf("the name is longer than %d bytes or not safe", maxName)
	}
	return t.kind + ":" + name.String(), nil
}

// safeName: letters, digits and ._-@ in segments between slashes, none of them
// empty, a dot segment, or starting with anything but a letter or digit.
func safeName(s string) bool {
	if s == "" {
		return false
	}
	for segment := range strings.SplitSeq(s, "/") {
		if segment == "" || strings.IndexByte("._-@", segment[0]) >= 0 {
			return false
		}
		for i := range len(segment) {
			if c := segment[i]; !unreserved(c) && c != '@' || c == '~' {
				return false
			}
		}
	}
	return true
}

// parseTemplate reads `kind:name`, with or without claims in braces.
func parseTemplate(text string) (template, error) {
	kind, rest, ok := strings.Cut(text, ":")
	if !ok || !slices.Contains(principalKinds, kind) {
		return template{}, fmt.Errorf("want kind:name, kind one of %s", strings.Join(principalKinds, ", "))
	}
	t := template{kind: kind}
	if rest == "" || len(rest) > maxPath {
		return template{}, fmt.Errorf("want a name of 1 to %d characters", maxName)
	}
	sample := ""
	for rest != "" {
		before, after, open := strings.Cut(rest, "{")
		if before != "" {
			t.parts = append(t.parts, part{text: before})
			sample += before
		}
		if !open {
			break
		}
		path, tail, closed := strings.Cut(after, "}")
		if !closed || !validPath(path) {
			return template{}, fmt.Errorf("want {claim} closed and naming a claim")
		}
		if n := len(t.claims()); n > 0 && !strings.Contains(before, "/") {
			return template{}, fmt.Errorf("put a / between two claims, so that no two identities give one name")
		}
		t.parts = append(t.parts, part{text: path, claim: true})
		sample += "x" // stands for any value: the fixed text must be safe around it
		rest = tail
	}
	if !safeName(sample) || len(sample) > maxName {
		return template{}, fmt.Errorf("a name has letters, digits and ._-@ in segments between slashes, up to %d", maxName)
	}
	return t, nil
}

func validPath(path string) bool {
	return path != "" && len(path) <= maxPath && printable(path) &&
		!strings.ContainsAny(path, "{}") && strings.Count(path, ".") <= 4*maxPathDots
}

// describe renders a condition's value for a message.
func describe(v any) string {
	switch v := v.(type) {
	case string:
		return strconv.Quote(clip(v))
	case json.Number:
		return clip(v.String())
	default:
		return "that"
	}
}
