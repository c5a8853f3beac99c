package identity

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
)

// contractSpec is CONTRACT's AuthMethod, as JSON.
const contractSpec = `{
  "type": "oidc",
  "issuer": "https://token.actions.githubusercontent.com",
  "audience": "https://mayfly.example",
  "key_in_audience": true,
  "require": {"repository_owner_id": "4711"},
  "bind": [{"when": {"repository_id": "815", "environment": "production"}, "as": "workload:deploy", "instance": "run_id"}]
}`

func TestContractsAuthMethodParses(t *testing.T) {
	m, err := ParseMethod("github", json.RawMessage(contractSpec))
	if err != nil {
		t.Fatal(err)
	}
	if m.Name != "github" || m.Type != MethodOIDC || m.Issuer != "https://token.actions.githubusercontent.com" ||
		len(m.Audiences) != 1 || m.Audiences[0] != "https://mayfly.example" || !m.KeyInAudience || m.MaxTTL != 15*time.Minute {
		t.Errorf("parsed %+v", m)
	}
	if len(m.require) != 1 || len(m.bind) != 1 || len(m.bind[0].when) != 2 || m.bind[0].instance != "run_id" {
		t.Errorf("rules %+v %+v", m.require, m.bind)
	}
}

func TestMethodsAreRefusedWithEveryProblem(t *testing.T) {
	bind := []any{claims{"when": claims{"sub": "x"}, "as": "workload:x"}}
	oidc := claims{"type": "oidc", "issuer": "https://idp.example", "audience": "a", "bind": bind}
	rule := func(r claims) claims { return oidc.with("bind", []any{r}) }
	root := newAuthority(t, "root", nil)
	cases := map[string]struct {
		spec any
		want []string // each must be in the detail
	}{
		"not JSON":          {json.RawMessage(`{`), []string{"not valid JSON"}},
		"a list":            {json.RawMessage(`[]`), []string{"not a JSON object"}},
		"duplicate keys":    {json.RawMessage(`{"type":"key","type":"oidc"}`), []string{`"type" appears twice`}},
		"no type":           {claims{}, []string{"type: want"}},
		"unknown type":      {claims{"type": "saml"}, []string{"type: want"}},
		"unknown key":       {oidc.with("isuer", "x"), []string{"isuer: unknown key"}},
		"key in upper case": {oidc.with("Issuer", "x"), []string{"Issuer: unknown key"}},
		"key of another":    {oidc.with("jwks", claims{}), []string{"jwks: does not go with type oidc"}},
		"everything wrong at once": {
			claims{"type": "oidc", "issuer": "http://x", "max_ttl": "1y", "key_in_audience": "yes", "bind": []any{claims{"as": "robot:x", "wen": 1}}, "foo": 1},
			[]string{"foo: unknown key", "issuer: want an https URL", "max_ttl: want", "key_in_audience: want", "audience: missing", "bind[0].as: want kind:name", "bind[0].wen: unknown key", "bind[0]: matches every identity"},
		},
		"no issuer":                    {oidc.with("issuer", nil), []string{"issuer: missing"}},
		"issuer a number":              {oidc.with("issuer", 1), []string{"issuer is not a string"}},
		"issuer with query":            {oidc.with("issuer", "https://x/?a"), []string{"issuer: want"}},
		"no audience":                  {oidc.with("audience", nil), []string{"audience: missing"}},
		"empty audience":               {oidc.with("audience", ""), []string{"audience: want"}},
		"no audiences":                 {oidc.with("audience", []any{}), []string{"audience: want"}},
		"audience twice":               {oidc.with("audience", []any{"a", "a"}), []string{"appears twice"}},
		"audience with hash":           {oidc.with("audience", "a#b").with("key_in_audience", true), []string{"audience: "}},
		"no bind":                      {oidc.with("bind", nil), []string{"bind: want"}},
		"empty bind":                   {oidc.with("bind", []any{}), []string{"bind: want"}},
		"rule not an object":           {oidc.with("bind", []any{"x"}), []string{"bind[0]: want"}},
		"rule without as":              {rule(claims{"when": claims{"sub": "x"}}), []string{"bind[0].as: missing"}},
		"rule for everybody":           {rule(claims{"when": claims{}, "as": "workload:x"}), []string{"matches every identity"}},
		"template without require":     {rule(claims{"when": claims{"a": "b"}, "as": "workload:{sub}"}), []string{"a template needs require"}},
		"template with plumbing only":  {rule(claims{"when": claims{"a": "b"}, "as": "workload:{sub}"}).with("require", claims{"aud": "a"}), []string{"a template needs require"}},
		"kind from a claim":            {rule(claims{"when": claims{"a": "b"}, "as": "{kind}:x"}), []string{"want kind:name"}},
		"claims that run together":     {rule(claims{"when": claims{"a": "b"}, "as": "workload:{a}-{b}"}).with("require", claims{"t": "x"}), []string{"put a / between"}},
		"template not closed":          {rule(claims{"when": claims{"a": "b"}, "as": "workload:{a"}), []string{"closed"}},
		"principal with a space":       {rule(claims{"when": claims{"a": "b"}, "as": "workload:a b"}), []string{"letters, digits"}},
		"principal with dots":          {rule(claims{"when": claims{"a": "b"}, "as": "workload:../x"}), []string{"letters, digits"}},
		"principal without name":       {rule(claims{"when": claims{"a": "b"}, "as": "workload:"}), []string{"want a name"}},
		"float condition":              {rule(claims{"when": claims{"a": 1.5}, "as": "workload:x"}), []string{"not an integer"}},
		"null condition":               {rule(claims{"when": claims{"a": json.RawMessage("null")}, "as": "workload:x"}), []string{"want a string, an integer"}},
		"list condition":               {rule(claims{"when": claims{"a": []any{"b"}}, "as": "workload:x"}), []string{"want a string, an integer"}},
		"empty condition":              {rule(claims{"when": claims{"a": ""}, "as": "workload:x"}), []string{"want 1 to"}},
		"ttl too long":                 {oidc.with("max_ttl", "25h"), []string{"max_ttl: want"}},
		"ttl zero":                     {oidc.with("max_ttl", "0s"), []string{"max_ttl: want"}},
		"ttl a number":                 {oidc.with("max_ttl", 900), []string{"max_ttl"}},
		"jwt without keys":             {oidc.with("type", "jwt"), []string{"jwks: missing"}},
		"jwt with both":                {oidc.with("type", "jwt").with("jwks", claims{}).with("jwks_file", "x"), []string{"not both"}},
		"jwks as text":                 {oidc.with("type", "jwt").with("jwks", "{}"), []string{"jwks: want a JWK set"}},
		"jwks without keys":            {oidc.with("type", "jwt").with("jwks", claims{"keys": []any{}}), []string{"jwks: holds no key"}},
		"jwks with a private key":      {oidc.with("type", "jwt").with("jwks", claims{"keys": []any{claims{"kty": "EC", "d": "x"}}}), []string{"private key"}},
		"jwks for encryption":          {oidc.with("type", "jwt").with("jwks", claims{"keys": []any{jwkOf(t, root.key.Public(), "k", "", "enc")}}), []string{"jwks: holds no key"}},
		"x509 without ca":              {claims{"type": "x509", "bind": []any{claims{"when": claims{"cn": "x"}, "as": "workload:x"}}}, []string{"ca: missing"}},
		"x509 by a token's claim":      {claims{"type": "x509", "ca": pemOf(root.cert), "bind": []any{claims{"when": claims{"sub": "x"}, "as": "workload:x"}}}, []string{`a certificate has no "sub"`}},
		"x509 named by a prefix":       {claims{"type": "x509", "ca": pemOf(root.cert), "require": claims{"o": "acme"}, "bind": []any{claims{"as": "workload:{uri_prefix}"}}}, []string{`a certificate has no "uri_prefix"`}},
		"ca of no CA":                  {claims{"type": "x509", "ca": pemOf(root.issue(t, leafOf("x")).cert), "bind": []any{claims{"when": claims{"cn": "x"}, "as": "workload:x"}}}, []string{"is not a CA's"}},
		"ca of nothing":                {claims{"type": "x509", "ca": "hello", "bind": []any{claims{"when": claims{"cn": "x"}, "as": "workload:x"}}}, []string{"no certificate"}},
		"ca with a private key":        {claims{"type": "x509", "ca": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "bind": []any{claims{"when": claims{"cn": "x"}, "as": "workload:x"}}}, []string{"want certificates only"}},
		"spiffe without domain":        {claims{"type": "spiffe", "ca": pemOf(root.cert), "bind": []any{claims{"when": claims{"path": "x"}, "as": "workload:x"}}}, []string{"trust_domain: want"}},
		"spiffe without bundle":        {claims{"type": "spiffe", "trust_domain": "td", "bind": []any{claims{"when": claims{"path": "x"}, "as": "workload:x"}}}, []string{"ca: missing"}},
		"spiffe tokens, no audience":   {claims{"type": "spiffe", "trust_domain": "td", "jwks": claims{"keys": []any{jwkOf(t, root.key.Public(), "k", "", "jwt-svid")}}, "bind": []any{claims{"when": claims{"path": "x"}, "as": "workload:x"}}}, []string{"audience: missing"}},
		"spiffe prefix without a path": {claims{"type": "spiffe", "trust_domain": "td", "ca": pemOf(root.cert), "bind": []any{claims{"when": claims{"spiffe_id_prefix": "spiffe://td"}, "as": "workload:x"}}}, []string{"want a SPIFFE ID with a path"}},
		"key with rules":               {claims{"type": "key", "bind": bind}, []string{"bind: does not go with type key"}},
	}
	for name, c := range cases {
		_, err := ParseMethod("m", asJSON(t, c.spec))
		wantCode(t, name, err, CodeMethodInvalid)
		for _, part := range c.want {
			if err != nil && !strings.Contains(fault.As(err).Detail, part) {
				t.Errorf("%s: %q is not in %q", name, part, fault.As(err).Detail)
			}
		}
	}
	if _, err := ParseMethod("", json.RawMessage(contractSpec)); !errors.Is(err, &fault.Error{Kind: fault.Invalid}) {
		t.Errorf("no name: %v", err)
	}
	if _, err := ParseMethod("m", json.RawMessage(`"`+strings.Repeat("x", maxSpec)+`"`)); !errors.Is(err, &fault.Error{Kind: fault.Invalid}) {
		t.Errorf("huge: %v", err)
	}
}

func TestSharedIssuersNeedRequire(t *testing.T) {
	for _, shared := range []string{
		"https://token.actions.githubusercontent.com", "https://token.actions.githubusercontent.com/acme", "https://gitlab.com", "https://GitLab.com/",
		"https://accounts.google.com", "https://login.microsoftonline.com/common/v2.0", "https://login.microsoftonline.com/9188040d-6c67-4c5b-b112-36a304b66dad/v2.0",
		"https://agent.buildkite.com", "https://app.terraform.io",
	} {
		spec := claims{"type": "oidc", "issuer": shared, "audience": "a", "bind": []any{claims{"when": claims{"sub": "x"}, "as": "workload:x"}}}
		for name, require := range map[string]any{"none": nil, "empty": claims{}, "plumbing": claims{"aud": "a", "iss": shared}} {
			_, err := ParseMethod("m", asJSON(t, spec.with("require", require)))
			if err == nil || !strings.Contains(fault.As(err).Detail, "require: missing") {
				t.Errorf("%s, require %s: %v", shared, name, err)
			}
		}
		if _, err := ParseMethod("m", asJSON(t, spec.with("require", claims{"org_id": "1"}))); err != nil {
			t.Errorf("%s with require: %v", shared, err)
		}
	}
	for _, own := range []string{"https://gitlab.acme.example", "https://login.microsoftonline.com/99999999-8888-7777-6666-555555555555/v2.0", "https://notgitlab.com"} {
		spec := claims{"type": "oidc", "issuer": own, "audience": "a", "bind": []any{claims{"when": claims{"sub": "x"}, "as": "workload:x"}}}
		if _, err := ParseMethod("m", asJSON(t, spec)); err != nil {
			t.Errorf("%s: %v", own, err)
		}
	}
}

func TestFirstMatchingRuleDecides(t *testing.T) {
	m := parse(t, claims{"type": "oidc", "issuer": "https://idp.example", "audience": "a", "require": claims{"org": "acme"}, "bind": []any{
		claims{"when": claims{"sub": "a"}, "as": "workload:first", "instance": "run"},
		claims{"when": claims{"sub": "a"}, "as": "workload:second"},
		claims{"when": claims{"n": 5, "ok": true}, "as": "agent:{name}"},
		claims{"as": "human:{email}"},
	}})
	for name, c := range map[string]struct {
		claims    object
		principal string
		code      string
	}{
		"first":                 {object{"org": "acme", "sub": "a", "run": "7", "email_verified": true}, "workload:first", ""},
		"no fall through":       {object{"org": "acme", "sub": "a", "email_verified": true}, "", CodeClaimUnusable},
		"types must agree":      {object{"org": "acme", "n": json.Number("5"), "ok": true, "name": "x", "email_verified": true}, "agent:x", ""},
		"true as text":          {object{"org": "acme", "n": json.Number("5"), "ok": "true", "email": "a@b.example", "email_verified": "true"}, "human:a@b.example", ""},
		"email not verified":    {object{"org": "acme", "email": "a@b.example"}, "", CodeClaimsRefused},
		"require":               {object{"org": "other", "sub": "a", "run": "7", "email_verified": true}, "", CodeClaimsRefused},
		"require, not a member": {object{"org": []any{"acme2"}, "sub": "a", "run": "7", "email_verified": true}, "", CodeClaimsRefused},
		"require, a member":     {object{"org": []any{"x", "acme"}, "sub": "a", "run": json.Number("7"), "email_verified": true}, "workload:first", ""},
		"name from a list":      {object{"org": "acme", "n": json.Number("5"), "ok": true, "name": []any{"x"}, "email_verified": true}, "", CodeClaimUnusable},
		"unsafe name":           {object{"org": "acme", "n": json.Number("5"), "ok": true, "name": "a b", "email_verified": true}, "", CodeClaimUnusable},
		"name with bidi":        {object{"org": "acme", "n": json.Number("5"), "ok": true, "name": "a\u202eb", "email_verified": true}, "", CodeClaimUnusable},
		"name too long":         {object{"org": "acme", "n": json.Number("5"), "ok": true, "name": strings.Repeat("a", maxName+1), "email_verified": true}, "", CodeClaimUnusable},
		"instance unprintable":  {object{"org": "acme", "sub": "a", "run": "7\n8", "email_verified": true}, "", CodeClaimUnusable},
		"number as text":        {object{"org": "acme", "n": "5", "ok": true, "name": "x", "email_verified": true}, "", CodeClaimUnusable},
	} {
		b, ferr := m.bindClaims(c.claims)
		var err error
		if ferr != nil {
			err = ferr
		}
		wantCode(t, name, err, c.code)
		if b.principal != c.principal {
			t.Errorf("%s: %q, want %q", name, b.principal, c.principal)
		}
	}
}

func TestDottedPaths(t *testing.T) {
	o := object{
		"a":   object{"b": object{"c": "nested"}, "x.y": "dotted inside"},
		"a.b": object{"d": "dotted outside"},
		"u":   object{"v": "one"}, "u.v": "two",
		"https://acme.example/team": "blue",
	}
	for path, want := range map[string]any{
		"a.b.c": "nested", "a.x.y": "dotted inside", "a.b.d": "dotted outside", "https://acme.example/team": "blue",
		"u.v": nil, "a.b": nil, "a.b.e": nil, "": nil, ".": nil, "a.": nil, ".a": nil, "a..b": nil, "u.v.w": nil,
	} {
		got, ok := o.lookup(path)
		if ok != (want != nil) || (ok && got != want) {
			t.Errorf("%q: %v %v, want %v", path, got, ok, want)
		}
	}
}

func TestPrefixesEndAtBoundaries(t *testing.T) {
	for _, c := range []struct {
		op        operator
		want, got string
		met       bool
	}{
		{idPrefix, "spiffe://td/ns/prod", "spiffe://td/ns/prod/sa/api", true},
		{idPrefix, "spiffe://td/ns/prod", "spiffe://td/ns/production", false},
		{idPrefix, "spiffe://td/ns/prod", "spiffe://td2/ns/prod/sa", false},
		{uriPrefix, "https://h/prod", "https://h/prod/x", true},
		{uriPrefix, "https://h/prod/", "https://h/prod/x", true},
		{uriPrefix, "https://h/prod", "https://h/production", false},
		{uriPrefix, "https://h/prod", "https://h/prod/../admin", false},
		{uriPrefix, "https://h/prod", "https://h/prod/%2e%2e/admin", false},
		{dnsSuffix, "prod.example", "api.prod.example", true},
		{dnsSuffix, ".prod.example", "API.Prod.example", true},
		{dnsSuffix, "prod.example", "api-prod.example", false},
		{dnsSuffix, "prod.example", "evilprod.example", false},
		{dnsSuffix, "prod.example", "prod.example", false},
		{exact, "a", "A", false},
	} {
		cond := condition{path: "x", want: c.want, op: c.op}
		if got := cond.met(object{"x": c.got}); got != c.met {
			t.Errorf("%d %q against %q: %v", c.op, c.got, c.want, got)
		}
	}
}
