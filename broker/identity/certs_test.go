package identity

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/secret"
)

// authority is a certificate with its key; a CA's can issue others.
type authority struct {
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	issuer *authority
}

func newAuthority(t testing.TB, name string, issuer *authority) *authority {
	t.Helper()
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: noon.Add(-time.Hour), NotAfter: noon.Add(48 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	a := &authority{key: newP256(t), issuer: issuer}
	parent, key := template, a.key
	if issuer != nil {
		parent, key = issuer.cert, issuer.key
	}
	a.cert = sign(t, template, parent, a.key, key)
	return a
}

func (a *authority) issue(t testing.TB, template *x509.Certificate) *authority {
	t.Helper()
	leaf := &authority{key: newP256(t), issuer: a}
	leaf.cert = sign(t, template, a.cert, leaf.key, a.key)
	return leaf
}

func sign(t testing.TB, template, parent *x509.Certificate, subject, issuer *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = serial.Add(serial, big.NewInt(1))
	der, err := x509.CreateCertificate(rand.Reader, template, parent, subject.Public(), issuer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// leafOf is a template for a client certificate good for an hour.
func leafOf(cn string) *x509.Certificate {
	return &x509.Certificate{
		Subject:   pkix.Name{CommonName: cn, Organization: []string{"acme"}},
		NotBefore: noon.Add(-time.Minute), NotAfter: noon.Add(time.Hour), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
}

func svidOf(t testing.TB, id string) *x509.Certificate {
	t.Helper()
	u, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	c := leafOf("")
	c.URIs = []*url.URL{u}
	return c
}

func present(t testing.TB, a Attestor, certs ...*x509.Certificate) (Attested, error) {
	t.Helper()
	return a.Attest(t.Context(), Evidence{Method: "m", PeerCerts: certs}, noon)
}

func TestClientCertificates(t *testing.T) {
	root := newAuthority(t, "root", nil)
	middle := newAuthority(t, "middle", root)
	foreign := newAuthority(t, "root", nil) // the same name, another key
	a := attestor(t, claims{
		"type": "x509", "ca": pemOf(root.cert), "max_ttl": "2h", "require": claims{"o": "acme"},
		"bind": []any{
			claims{"when": claims{"dns_suffix": "prod.example"}, "as": "workload:{dns}", "instance": "serial"},
			claims{"when": claims{"uri_prefix": "https://acme.example/hosts"}, "as": "node:byuri"},
			claims{"when": claims{"cn": "api"}, "as": "workload:api"},
		},
	}, Deps{})
	change := func(f func(*x509.Certificate)) *x509.Certificate {
		c := leafOf("api")
		f(c)
		return c
	}
	leaf := middle.issue(t, leafOf("api")).cert
	cases := map[string]struct {
		chain     []*x509.Certificate
		principal string
		code      string
	}{
		"by cn":               {[]*x509.Certificate{leaf, middle.cert}, "workload:api", ""},
		"root sent as well":   {[]*x509.Certificate{leaf, middle.cert, root.cert}, "workload:api", ""},
		"by dns":              {[]*x509.Certificate{root.issue(t, change(func(c *x509.Certificate) { c.DNSNames = []string{"api.prod.example"} })).cert}, "workload:api.prod.example", ""},
		"two names, one rule": {[]*x509.Certificate{root.issue(t, change(func(c *x509.Certificate) { c.DNSNames = []string{"a.prod.example", "b.prod.example"} })).cert}, "", CodeClaimUnusable},
		"by uri":              {[]*x509.Certificate{root.issue(t, change(func(c *x509.Certificate) { c.URIs = svidOf(t, "https://acme.example/hosts/7").URIs })).cert}, "node:byuri", ""},
		"another o":           {[]*x509.Certificate{root.issue(t, change(func(c *x509.Certificate) { c.Subject.Organization = []string{"evil"} })).cert}, "", CodeClaimsRefused},
		"another cn":          {[]*x509.Certificate{root.issue(t, leafOf("web")).cert}, "", CodeNoBinding},
		"without the middle":  {[]*x509.Certificate{leaf}, "", CodeCertificate},
		"another root":        {[]*x509.Certificate{foreign.issue(t, leafOf("api")).cert, foreign.cert}, "", CodeCertificate},
		"self-signed":         {[]*x509.Certificate{newClientCert(t)}, "", CodeCertificate},
		"expired":             {[]*x509.Certificate{root.issue(t, change(func(c *x509.Certificate) { c.NotAfter = noon.Add(-time.Second) })).cert}, "", CodeCertificate},
		"of the future":       {[]*x509.Certificate{root.issue(t, change(func(c *x509.Certificate) { c.NotBefore = noon.Add(time.Minute) })).cert}, "", CodeCertificate},
		"for servers":         {[]*x509.Certificate{root.issue(t, change(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })).cert}, "", CodeCertificate},
		"a CA's":              {[]*x509.Certificate{middle.cert}, "", CodeCertificate},
		"issued by a leaf":    {[]*x509.Certificate{root.issue(t, leafOf("x")).issue(t, leafOf("api")).cert}, "", CodeCertificate},
		"a long chain":        {append([]*x509.Certificate{leaf}, repeat(middle.cert, maxChain)...), "", CodeCertificate},
		"none":                {nil, "", CodeEvidenceMissing},
	}
	for name, c := range cases {
		got, err := present(t, a, c.chain...)
		wantCode(t, name, err, c.code)
		if got.Principal != c.principal {
			t.Errorf("%s: %q, want %q", name, got.Principal, c.principal)
		}
	}
	got, err := present(t, a, leaf, middle.cert)
	if err != nil || !got.AttestedKey || got.OneShot != "" || got.Facts["x5t#S256"] != CertThumbprint(leaf) || got.Facts["claim.cn"] != "api" {
		t.Errorf("attested %+v, %v", got, err)
	}
	if !got.ExpiresAt.Equal(leaf.NotAfter) {
		t.Errorf("session until %s, certificate until %s", got.ExpiresAt, leaf.NotAfter)
	}
}

func newClientCert(t testing.TB) *x509.Certificate {
	t.Helper()
	c, err := newClientKey(t).Certificate("api", noon, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return c.Leaf
}

func repeat(c *x509.Certificate, n int) []*x509.Certificate {
	out := make([]*x509.Certificate, n)
	for i := range out {
		out[i] = c
	}
	return out
}

func TestX509SVIDs(t *testing.T) {
	root := newAuthority(t, "td root", nil)
	foreign := newAuthority(t, "other root", nil)
	a := attestor(t, claims{
		"type": "spiffe", "trust_domain": "td.example", "ca": pemOf(root.cert), "require": claims{"spiffe_id_prefix": "spiffe://td.example/ns"},
		"bind": []any{
			claims{"when": claims{"spiffe_id": "spiffe://td.example/ns/prod/sa/api"}, "as": "workload:api"},
			claims{"when": claims{"spiffe_id_prefix": "spiffe://td.example/ns/prod"}, "as": "workload:spiffe/{path}"},
		},
	}, Deps{})
	twoIDs := svidOf(t, "spiffe://td.example/ns/prod/sa/api")
	twoIDs.URIs = append(twoIDs.URIs, svidOf(t, "spiffe://td.example/ns/prod/sa/web").URIs...)
	caLeaf := svidOf(t, "spiffe://td.example/ns/prod/sa/api")
	caLeaf.IsCA, caLeaf.KeyUsage = true, x509.KeyUsageCertSign
	expired := svidOf(t, "spiffe://td.example/ns/prod/sa/api")
	expired.NotAfter = noon.Add(-time.Second)
	for name, c := range map[string]struct {
		cert      *x509.Certificate
		principal string
		code      string
	}{
		"exact":                {root.issue(t, svidOf(t, "spiffe://td.example/ns/prod/sa/api")).cert, "workload:api", ""},
		"prefix":               {root.issue(t, svidOf(t, "spiffe://td.example/ns/prod/sa/web")).cert, "workload:spiffe/ns/prod/sa/web", ""},
		"no segment boundary":  {root.issue(t, svidOf(t, "spiffe://td.example/ns/production/sa/web")).cert, "", CodeNoBinding},
		"outside require":      {root.issue(t, svidOf(t, "spiffe://td.example/other")).cert, "", CodeClaimsRefused},
		"another trust domain": {root.issue(t, svidOf(t, "spiffe://evil.example/ns/prod/sa/api")).cert, "", CodeCertificate},
		"another root":         {foreign.issue(t, svidOf(t, "spiffe://td.example/ns/prod/sa/api")).cert, "", CodeCertificate},
		"two IDs":              {root.issue(t, twoIDs).cert, "", CodeCertificate},
		"no ID":                {root.issue(t, leafOf("spiffe://td.example/ns/prod/sa/api")).cert, "", CodeCertificate},
		"the trust domain's":   {root.issue(t, svidOf(t, "spiffe://td.example")).cert, "", CodeIssuer},
		"a signing one":        {root.issue(t, caLeaf).cert, "", CodeCertificate},
		"expired":              {root.issue(t, expired).cert, "", CodeCertificate},
	} {
		got, err := present(t, a, c.cert)
		wantCode(t, name, err, c.code)
		if got.Principal != c.principal {
			t.Errorf("%s: %q, want %q", name, got.Principal, c.principal)
		}
		if err == nil && (!got.AttestedKey || !strings.HasPrefix(got.Facts["spiffe_id"], "spiffe://td.example/")) {
			t.Errorf("%s: %+v", name, got)
		}
	}
	_, err := attest(t, a, "x.y.z", "")
	wantCode(t, "a token where there are no keys for it", err, CodeEvidenceMissing)
}

func TestJWTSVIDs(t *testing.T) {
	root, key := newAuthority(t, "td root", nil), newP256(t)
	x5c := jwkOf(t, root.key.Public(), "", "", "x509-svid")
	x5c["x5c"] = []any{strings.ReplaceAll(strings.Split(pemOf(root.cert), "\n")[1], "\n", "")}
	spec := claims{
		"type": "spiffe", "trust_domain": "td.example", "audience": []any{"mayfly"},
		"jwks": claims{"keys": []any{jwkOf(t, key.Public(), "j1", "", "jwt-svid"), x5c}, "spiffe_sequence": 1, "spiffe_refresh_hint": 60},
		"bind": []any{claims{"when": claims{"spiffe_id_prefix": "spiffe://td.example/ns/prod"}, "as": "workload:api"}},
	}
	a := attestor(t, spec, Deps{})
	body := claims{"sub": "spiffe://td.example/ns/prod/sa/api", "aud": []any{"mayfly"}, "exp": noon.Add(5 * time.Minute).Unix()}
	header := claims{"alg": "ES256", "kid": "j1", "typ": "JOSE"}
	for name, c := range map[string]struct {
		header, body claims
		code         string
	}{
		"good":                 {header, body, ""},
		"any issuer":           {header, body.with("iss", "https://spire.example"), ""},
		"another audience":     {header, body.with("aud", "other"), CodeAudience},
		"expired":              {header, body.with("exp", 1), CodeExpired},
		"no exp":               {header, body.with("exp", nil), CodeLifetime},
		"another trust domain": {header, body.with("sub", "spiffe://evil.example/ns/prod/sa/api"), CodeIssuer},
		"not a SPIFFE ID":      {header, body.with("sub", "api"), CodeIssuer},
		"another path":         {header, body.with("sub", "spiffe://td.example/ns/dev"), CodeNoBinding},
		"typ of another kind":  {header.with("typ", "dpop+jwt"), body, CodeTokenType},
		"unknown kid":          {header.with("kid", "j2"), body, CodeUnknownKey},
	} {
		got, err := attest(t, a, forge(t, key, c.header, c.body), "")
		wantCode(t, name, err, c.code)
		// SPIFFE's agents reuse JWT-SVIDs: no one-shot, and not an attested key.
		if err == nil && (got.OneShot != "" || got.AttestedKey || got.Principal != "workload:api") {
			t.Errorf("%s: %+v", name, got)
		}
	}
	_, err := attest(t, a, forge(t, root.key, claims{"alg": "ES256"}, body), "")
	wantCode(t, "signed by the X.509 authority", err, CodeSignature)
	got, err := present(t, a, root.issue(t, svidOf(t, "spiffe://td.example/ns/prod/sa/api")).cert)
	if err != nil || got.Principal != "workload:api" {
		t.Errorf("X.509-SVID by the same bundle: %+v, %v", got, err)
	}

	k := newClientKey(t)
	keyed := attestor(t, spec.with("key_in_audience", true), Deps{})
	ev := Evidence{Method: "m", ClientJKT: k.Thumbprint(), Token: secret.New(forge(t, key, header, body.with("aud", "mayfly#"+k.Thumbprint())))}
	if got, err := keyed.Attest(t.Context(), ev, noon); err != nil || !got.AttestedKey {
		t.Errorf("with the key in its audience: %+v, %v", got, err)
	}
}
