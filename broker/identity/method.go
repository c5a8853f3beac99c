package identity

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
)

// MethodType says what kind of evidence a [Method] takes.
type MethodType string

// The method types of an AuthMethod's spec.
const (
	MethodOIDC   MethodType = "oidc"   // JWTs of an issuer whose keys are discovered
	MethodJWT    MethodType = "jwt"    // JWTs of an issuer whose keys are configured
	MethodX509   MethodType = "x509"   // client certificates of a CA
	MethodSPIFFE MethodType = "spiffe" // X.509-SVIDs and JWT-SVIDs of a trust domain
	MethodKey    MethodType = "key"    // assertions by a registered key (RFC 7523)
	MethodEnroll MethodType = "enroll" // one-time enrolment tokens; the ledger redeems them
)

// A Method is an operator's AuthMethod, parsed and validated by [ParseMethod].
// It is immutable. The zero value attests nothing.
type Method struct {
	Name string
	Type MethodType
	// Issuer is the one `iss` accepted (oidc, jwt).
	Issuer string
	// Audiences are what a token may be made for; one of them must be in its aud.
	Audiences []string
	// KeyInAudience: the audience must be `<audience>#<thumbprint of the
	// client's key>`, so that a stolen token opens nothing (HAZARDS 3).
	KeyInAudience bool
	// TrustDomain is a SPIFFE trust domain's name.
	TrustDomain string
	// MaxTTL is the longest session; 15 minutes where the spec says nothing.
	MaxTTL time.Duration
	// Console is the client as which people sign in to the console (oidc); nil
	// where the method is for the API alone.
	Console *ConsoleClient

	require []condition
	bind    []rule
	facts   []string // further claims to show to policy and audit

	keys     []verificationKey
	keysFile string
	roots    []*x509.Certificate
	rootFile string
}

// fieldsOf says which spec fields go with which type.
var fieldsOf = map[MethodType][]string{
	MethodOIDC:   {"issuer", "audience", "key_in_audience", "require", "bind", "facts", "max_ttl", "ca", "ca_file", "console"},
	MethodJWT:    {"issuer", "audience", "key_in_audience", "require", "bind", "facts", "max_ttl", "jwks", "jwks_file"},
	MethodX509:   {"require", "bind", "max_ttl", "ca", "ca_file"},
	MethodSPIFFE: {"trust_domain", "audience", "key_in_audience", "require", "bind", "max_ttl", "ca", "ca_file", "jwks", "jwks_file"},
	MethodKey:    {"max_ttl"},
	MethodEnroll: {"max_ttl"},
}

// ParseMethod reads an AuthMethod's spec (CONTRACT, "Objects") as JSON. It is
// strict: unknown keys, keys that do not go with the type, duplicate keys and
// values of the wrong type are refused. So is what would let strangers in: a
// shared issuer without require, an `as` template without require, a rule that
// everything matches. The error has kind invalid, code [CodeMethodInvalid], and
// lists every problem.
func ParseMethod(name string, spec json.RawMessage) (Method, error) {
	p := &specReader{}
	m := Method{Name: name}
	if name == "" || len(name) > maxName || !printable(name) {
		p.problem("name: want 1 to %d printable characters", maxName)
	}
	if len(spec) > maxSpec {
		return Method{}, fault.New(fault.Invalid, CodeMethodInvalid, "The AuthMethod's spec is longer than %d bytes.", maxSpec)
	}
	var err error
	if p.spec, err = decodeObject(spec, maxSpecDepth, maxSpecNodes); err != nil {
		return Method{}, fault.New(fault.Invalid, CodeMethodInvalid, "The AuthMethod's spec cannot be read: %v.", err)
	}
	m.Type = MethodType(p.text("type"))
	allowed, known := fieldsOf[m.Type]
	if !known {
		p.problem("type: want oidc, jwt, x509, spiffe, key or enroll")
		return Method{}, p.fail(name)
	}
	p.unknownKeys(m.Type, allowed)
	p.common(&m)
	switch m.Type {
	case MethodOIDC, MethodJWT:
		p.issuer(&m)
		p.audiences(&m, true)
		p.console(&m)
	case MethodSPIFFE:
		p.trustDomain(&m)
		p.audiences(&m, p.has("jwks") || p.has("jwks_file"))
	}
	p.keySet(&m)
	p.authorities(&m)
	if slices.Contains(allowed, "bind") {
		p.rules(&m)
	}
	if len(p.problems) > 0 {
		return Method{}, p.fail(name)
	}
	return m, nil
}

// specReader reads a spec's members and collects what is wrong with them.
type specReader struct {
	spec     object
	problems []string
}

func (p *specReader) problem(format string, args ...any) {
	p.problems = append(p.problems, fmt.Sprintf(format, args...))
}

func (p *specReader) fail(name string) error {
	list := p.problems
	more := ""
	if len(list) > maxProblems {
		more = fmt.Sprintf("; and %d more", len(list)-maxProblems)
		list = list[:maxProblems]
	}
	return fault.New(fault.Invalid, CodeMethodInvalid, "AuthMethod %q: %s%s.", clip(name), strings.Join(list, "; "), more)
}

func (p *specReader) has(key string) bool { _, ok := p.spec[key]; return ok }

func (p *specReader) unknownKeys(t MethodType, allowed []string) {
	for _, key := range sortedKeys(p.spec) {
		if key == "type" || slices.Contains(allowed, key) {
			continue
		}
		elsewhere := false
		for _, fields := range fieldsOf {
			elsewhere = elsewhere || slices.Contains(fields, key)
		}
		if elsewhere {
			p.problem("%s: does not go with type %s", key, t)
		} else {
			p.problem("%s: unknown key", clip(key))
		}
	}
}

func (p *specReader) text(key string) string {
	v, err := p.spec.text(key)
	if err != nil {
		p.problem("%v", err)
	}
	return v
}

// common reads the fields that mean the same with every type.
func (p *specReader) common(m *Method) {
	m.MaxTTL = defaultSessionTTL
	if p.has("max_ttl") {
		d, err := time.ParseDuration(p.text("max_ttl"))
		if err != nil || d < time.Second || d > maxSessionTTL {
			p.problem("max_ttl: want a duration from 1s to %s, such as 15m", maxSessionTTL)
		}
		m.MaxTTL = d
	}
	if v, there := p.spec["key_in_audience"]; there {
		b, ok := v.(bool)
		if !ok {
			p.problem("key_in_audience: want true or false")
		}
		m.KeyInAudience = b
	}
	m.facts = p.texts("facts", maxFacts/2, maxPath)
}

// texts reads a string or a list of strings.
func (p *specReader) texts(key string, most, longest int) []string {
	v, there := p.spec[key]
	if !there {
		return nil
	}
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	if len(list) == 0 || len(list) > most {
		p.problem("%s: want 1 to %d entries", key, most)
		return nil
	}
	var out []string
	for _, item := range list {
		s, ok := item.(string)
		if !ok || s == "" || len(s) > longest || !printable(s) {
			p.problem("%s: want strings of 1 to %d printable characters", key, longest)
			return nil
		}
		if slices.Contains(out, s) {
			p.problem("%s: %q appears twice", key, clip(s))
		}
		out = append(out, s)
	}
	return out
}

func (p *specReader) issuer(m *Method) {
	m.Issuer = p.text("issuer")
	switch {
	case m.Issuer == "":
		p.problem("issuer: missing")
	case len(m.Issuer) > maxURL || !printable(m.Issuer):
		p.problem("issuer: want up to %d printable characters", maxURL)
	case m.Type == MethodOIDC:
		if _, err := parseEndpoint(m.Issuer); err != nil || strings.ContainsAny(m.Issuer, "?#") {
			p.problem("issuer: want an https URL without query or fragment")
		}
	}
}

func (p *specReader) audiences(m *Method, needed bool) {
	m.Audiences = p.texts("audience", maxAudiences, maxURL)
	if needed && len(m.Audiences) == 0 && !p.has("audience") {
		p.problem("audience: missing; a token for anybody is a token for nobody")
	}
	for _, a := range m.Audiences {
		if strings.Contains(a, "#") && m.KeyInAudience {
			p.problem("audience: %q has a #, which key_in_audience puts before the thumbprint", clip(a))
		}
	}
	if m.KeyInAudience && !needed {
		p.problem("key_in_audience: there is no token without jwks")
	}
}

// keySet reads jwks or jwks_file.
func (p *specReader) keySet(m *Method) {
	inline, file := p.has("jwks"), p.has("jwks_file")
	switch {
	case inline && file:
		p.problem("jwks: give jwks or jwks_file, not both")
	case m.Type == MethodJWT && !inline && !file:
		p.problem("jwks: missing; give jwks or jwks_file")
	case file:
		if m.keysFile = p.text("jwks_file"); m.keysFile == "" {
			p.problem("jwks_file: empty")
		}
	case inline:
		set, ok := p.spec["jwks"].(object)
		if !ok {
			p.problem("jwks: want a JWK set, an object with keys")
			return
		}
		parsed, err := readKeySet(set, m.Type == MethodSPIFFE)
		if err != nil {
			p.problem("jwks: %v", err)
		}
		m.keys, m.roots = parsed.keys, parsed.roots
		// The roots of a SPIFFE bundle come in the same document.
		if len(m.keys) == 0 && len(m.roots) == 0 && err == nil {
			p.problem("jwks: holds no key that Mayfly can verify with (RSA from %d bits, P-256, Ed25519)", minRSABits)
		}
	}
}

// authorities reads ca or ca_file.
func (p *specReader) authorities(m *Method) {
	inline, file := p.has("ca"), p.has("ca_file")
	switch {
	case inline && file:
		p.problem("ca: give ca or ca_file, not both")
	case file:
		if m.rootFile = p.text("ca_file"); m.rootFile == "" {
			p.problem("ca_file: empty")
		}
	case inline:
		roots, err := parseRoots([]byte(p.text("ca")))
		if err != nil {
			p.problem("ca: %v", err)
		}
		m.roots = append(m.roots, roots...)
	case m.Type == MethodX509:
		p.problem("ca: missing; give ca or ca_file")
	case m.Type == MethodSPIFFE && !p.has("jwks") && !p.has("jwks_file"):
		p.problem("ca: missing; give ca, jwks, or both")
	}
}

func sortedKeys(o object) []string {
	out := make([]string, 0, len(o))
	for k := range o {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
