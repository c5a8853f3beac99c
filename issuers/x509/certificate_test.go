package x509_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	stdx509 "crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/x509"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

func mustURL(t testing.TB, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func mintCSR(t testing.TB, i issuers.Issuer, s scope.Scope, csr []byte) (issuers.Credential, error) {
	t.Helper()
	l := issuertest.NewLease(x509.Kind{}, s)
	l.CSR = csr
	return i.Mint(t.Context(), l)
}

func TestSVIDVerifiesWithTheSPIFFELibrary(t *testing.T) {
	i := mustOpen(t, newTarget(t, `{"name_constraints":{"spiffe":["td.example"]}}`))
	key := mustEC(t, elliptic.P256())
	csr := mustCSR(t, key, &stdx509.CertificateRequest{URIs: []*url.URL{mustURL(t, "spiffe://td.example/ns/a/sa/b")}})
	c, err := mintCSR(t, i, grant(both, "spiffe://td.example/ns/*"), csr)
	if err != nil {
		t.Fatal(err)
	}
	docs, err := i.(issuers.Publisher).Publish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	td := spiffeid.RequireTrustDomainFromString("td.example")
	bundle, err := x509bundle.Parse(td, docs["ca"])
	if err != nil {
		t.Fatal(err)
	}
	id, _, err := x509svid.Verify([]*stdx509.Certificate{leafOf(t, c)}, bundle)
	if err != nil || id.String() != "spiffe://td.example/ns/a/sa/b" {
		t.Fatalf("the SVID verifies as %q, %v", id, err)
	}
}

// What a CSR asks for is checked against the scope; nothing else of it is used.
func TestLaw3CSRNamesAreWithinTheScope(t *testing.T) {
	i := mustOpen(t, newTarget(t, `{}`))
	key := mustEC(t, elliptic.P256())
	allowed := grant(client, "spiffe://td.example/ns/*", "dns:a.example", "ip:10.1.*", "email:ann@example.com")
	uri := func(s ...string) (out []*url.URL) {
		for _, s := range s {
			out = append(out, mustURL(t, s))
		}
		return out
	}
	for name, c := range map[string]struct {
		csr  stdx509.CertificateRequest
		fine bool
	}{
		"one of each":        {stdx509.CertificateRequest{URIs: uri("spiffe://td.example/ns/a"), DNSNames: []string{"A.example"}, IPAddresses: []net.IP{net.ParseIP("10.1.2.3")}, EmailAddresses: []string{"ann@example.com"}}, true},
		"a part":             {stdx509.CertificateRequest{DNSNames: []string{"a.example"}}, true},
		"no names":           {stdx509.CertificateRequest{}, false}, // the scope leaves names open
		"another path":       {stdx509.CertificateRequest{URIs: uri("spiffe://td.example/admin")}, false},
		"dots in the path":   {stdx509.CertificateRequest{URIs: uri("spiffe://td.example/ns/../admin")}, false},
		"escapes":            {stdx509.CertificateRequest{URIs: uri("spiffe://td.example/ns/%2e%2e/admin")}, false},
		"another domain":     {stdx509.CertificateRequest{URIs: uri("spiffe://evil.example/ns/a")}, false},
		"a query":            {stdx509.CertificateRequest{URIs: uri("spiffe://td.example/ns/a?x=1")}, false},
		"two SPIFFE IDs":     {stdx509.CertificateRequest{URIs: uri("spiffe://td.example/ns/a", "spiffe://td.example/ns/b")}, false},
		"another host":       {stdx509.CertificateRequest{DNSNames: []string{"a.example", "b.example"}}, false},
		"a wildcard":         {stdx509.CertificateRequest{DNSNames: []string{"*.example"}}, false},
		"the pattern itself": {stdx509.CertificateRequest{URIs: uri("spiffe://td.example/ns/*")}, false},
		"another address":    {stdx509.CertificateRequest{IPAddresses: []net.IP{net.ParseIP("10.10.0.1")}}, false},
		"an https URI":       {stdx509.CertificateRequest{URIs: uri("https://td.example/ns/a")}, false},
		"another mailbox":    {stdx509.CertificateRequest{EmailAddresses: []string{"bo@example.com"}}, false},
	} {
		cred, err := mintCSR(t, i, allowed, mustCSR(t, key, &c.csr))
		if !c.fine {
			if issuers.KindOf(err) != issuers.BadScope {
				t.Errorf("%s: %v; want refused", name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		leaf := leafOf(t, cred)
		want := len(c.csr.URIs) + len(c.csr.DNSNames) + len(c.csr.IPAddresses) + len(c.csr.EmailAddresses)
		if got := len(leaf.URIs) + len(leaf.DNSNames) + len(leaf.IPAddresses) + len(leaf.EmailAddresses); got != want {
			t.Errorf("%s: the certificate has %d names; the CSR asked for %d", name, got, want)
		}
	}
}

func TestCSRAsksForMoreThanAKey(t *testing.T) {
	i := mustOpen(t, newTarget(t, `{}`))
	key := mustEC(t, elliptic.P256())
	isCA, err := asn1.Marshal(struct{ CA bool }{true})
	if err != nil {
		t.Fatal(err)
	}
	c, err := mintCSR(t, i, grant(client, "dns:a.example"), mustCSR(t, key, &stdx509.CertificateRequest{
		Subject: pkix.Name{CommonName: "postgres", Organization: []string{"system:masters"}},
		ExtraExtensions: []pkix.Extension{
			{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: isCA},
			{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Critical: true, Value: []byte{3, 2, 1, 6}}, // certSign, CRLSign
		},
	}))
	if err != nil {
		t.Fatal(err)
	}
	leaf := leafOf(t, c)
	if leaf.IsCA || leaf.KeyUsage != stdx509.KeyUsageDigitalSignature || leaf.Subject.String() != "" {
		t.Errorf("CA %v, usage %b, subject %q", leaf.IsCA, leaf.KeyUsage, leaf.Subject)
	}
	if len(leaf.ExtKeyUsage) != 1 || leaf.ExtKeyUsage[0] != stdx509.ExtKeyUsageClientAuth {
		t.Errorf("extended usages %v", leaf.ExtKeyUsage)
	}
	// an otherName, which crypto/x509 passes over in silence
	other, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: []byte{6, 1, 42}}})
	if err != nil {
		t.Fatal(err)
	}
	csr := mustCSR(t, key, &stdx509.CertificateRequest{
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: other}},
	})
	if _, err := mintCSR(t, i, grant(client, "dns:a.example"), csr); issuers.KindOf(err) != issuers.BadScope {
		t.Errorf("an otherName: %v; want refused", err)
	}
}

func TestKeysOfCSRs(t *testing.T) {
	i := mustOpen(t, newTarget(t, `{}`))
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	strong, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	blank := &stdx509.CertificateRequest{}
	fine := mustCSR(t, mustEC(t, elliptic.P256()), blank)
	tampered := bytes.Clone(fine)
	tampered[len(tampered)-1] ^= 1
	for name, c := range map[string]struct {
		csr  []byte
		fine bool
	}{
		"P-256":          {fine, true},
		"P-521":          {mustCSR(t, mustEC(t, elliptic.P521()), blank), true},
		"Ed25519":        {mustCSR(t, ed, blank), true},
		"RSA 2048":       {mustCSR(t, strong, blank), true},
		"P-224":          {mustCSR(t, mustEC(t, elliptic.P224()), blank), false},
		"RSA 1024":       {weakRSA(t), false},
		"bad signature":  {tampered, false},
		"trailing bytes": {append(bytes.Clone(fine), 0), false},
		"PEM":            {pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: fine}), false},
		"too long":       {make([]byte, 17<<10), false},
		"another's key":  {anothersKey(t), false},
	} {
		_, err := mintCSR(t, i, grant(client, "dns:a.example"), c.csr)
		if c.fine != (err == nil) || !c.fine && issuers.KindOf(err) != issuers.BadScope {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// weakRSA is a CSR with the outline of RSA 1024. crypto/rsa no longer makes such
// keys, so the bytes are put together here; the key is refused before the
// signature is looked at.
func weakRSA(t *testing.T) []byte {
	t.Helper()
	n := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 1024), big.NewInt(105))
	spki, err := stdx509.MarshalPKIXPublicKey(&rsa.PublicKey{N: n, E: 65537})
	if err != nil {
		t.Fatal(err)
	}
	return replaceKey(t, spki)
}

// anothersKey is a CSR for somebody else's public key, signed with one's own.
func anothersKey(t *testing.T) []byte {
	t.Helper()
	spki, err := stdx509.MarshalPKIXPublicKey(mustEC(t, elliptic.P256()).Public())
	if err != nil {
		t.Fatal(err)
	}
	return replaceKey(t, spki)
}

// replaceKey makes a CSR and puts another key into it.
func replaceKey(t *testing.T, spki []byte) []byte {
	t.Helper()
	var outer struct {
		Info struct {
			Version    int
			Subject    asn1.RawValue
			Key        asn1.RawValue
			Attributes asn1.RawValue
		}
		Algorithm asn1.RawValue
		Signature asn1.BitString
	}
	if _, err := asn1.Unmarshal(mustCSR(t, mustEC(t, elliptic.P256()), &stdx509.CertificateRequest{}), &outer); err != nil {
		t.Fatal(err)
	}
	outer.Info.Key = asn1.RawValue{FullBytes: spki}
	der, err := asn1.Marshal(outer)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// HAZARDS 9: a retry with the requester's key is the same certificate; a re-mint
// differs in its serial.
func TestHazard9RetriesAreTheSameCertificate(t *testing.T) {
	i := mustOpen(t, newTarget(t, `{}`))
	l := issuertest.NewLease(x509.Kind{}, grant(both, "dns:a.example"))
	l.CSR = mustCSR(t, mustEC(t, elliptic.P256()), &stdx509.CertificateRequest{})
	var certs []*stdx509.Certificate
	for _, l := range []issuers.Lease{l, l, issuertest.Regenerate(x509.Kind{}, l)} {
		c, err := i.Mint(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		certs = append(certs, leafOf(t, c))
	}
	if !certs[0].Equal(certs[1]) {
		t.Error("one serial stands on two certificates")
	}
	if certs[2].SerialNumber.Cmp(certs[0].SerialNumber) == 0 {
		t.Error("two generations have one serial")
	}
	if !certs[2].PublicKey.(*ecdsa.PublicKey).Equal(certs[0].PublicKey) {
		t.Error("a re-mint is for another key")
	}
}

func TestCommonNames(t *testing.T) {
	spec := `{"common_names":true}`
	i := mustOpen(t, newTarget(t, spec))
	named := func(cn string) scope.Scope {
		s := grant(client, "dns:a.example")
		s[0].Identifier = cn
		return s
	}
	for _, bad := range []string{"", "*", strings.Repeat("x", 65)} {
		if err := (x509.Kind{}).CheckScope(json.RawMessage(spec), named(bad)); err == nil {
			t.Errorf("identifier %q is accepted", bad)
		}
	}
	csr := func(cn string) []byte {
		return mustCSR(t, mustEC(t, elliptic.P256()), &stdx509.CertificateRequest{Subject: pkix.Name{CommonName: cn}})
	}
	for _, c := range []struct {
		identifier string
		csr        []byte
		want       string // empty: refused
	}{
		{"orders", nil, "orders"},
		{"orders", csr("postgres"), "orders"}, // the scope decides
		{"orders-*", csr("orders-app"), "orders-app"},
		{"orders-*", csr("postgres"), ""},
		{"orders-*", csr("orders-*"), ""},
		{"orders-*", csr("orders-\n"), ""},
		{"orders-*", csr(""), ""},
		{"orders-*", nil, ""},
	} {
		cred, err := mintCSR(t, i, named(c.identifier), c.csr)
		switch {
		case c.want == "":
			if issuers.KindOf(err) != issuers.BadScope {
				t.Errorf("%q: %v; want refused", c.identifier, err)
			}
		case err != nil:
			t.Errorf("%q: %v", c.identifier, err)
		case leafOf(t, cred).Subject.CommonName != c.want:
			t.Errorf("%q gave the common name %q", c.identifier, leafOf(t, cred).Subject.CommonName)
		}
	}
}

func TestClockEdges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := mustOpen(t, newTarget(t, `{"ca_ttl":"48h","max_ttl":"2h"}`))
		roots := trust(t, i)
		valid := func(c issuers.Credential, at time.Time) bool {
			_, err := leafOf(t, c).Verify(stdx509.VerifyOptions{Roots: roots, CurrentTime: at, KeyUsages: []stdx509.ExtKeyUsage{stdx509.ExtKeyUsageAny}})
			return err == nil
		}
		lease := func(ttl time.Duration) issuers.Lease {
			l := issuertest.NewLease(x509.Kind{}, grant(both, "dns:a.example"))
			l.NotAfter = l.NotBefore.Add(ttl)
			return l
		}
		for _, c := range []struct{ ttl, lives time.Duration }{
			{10 * time.Minute, 10 * time.Minute}, {90*time.Second + 999*time.Millisecond, 90 * time.Second},
			{8 * time.Hour, 2 * time.Hour}, {3 * time.Second, 3 * time.Second},
		} {
			l := lease(c.ttl)
			cred, err := i.Mint(t.Context(), l)
			if err != nil {
				t.Fatal(err)
			}
			end := l.NotBefore.Add(c.lives)
			if !valid(cred, l.NotBefore.Add(-20*time.Second)) || !valid(cred, end.Add(-time.Second)) {
				t.Errorf("ttl %s: not valid within its life", c.ttl)
			}
			if valid(cred, end) || valid(cred, l.NotBefore.Add(-time.Minute)) {
				t.Errorf("ttl %s: valid outside its life", c.ttl)
			}
		}
		ended := lease(time.Second)
		if _, err := i.Mint(t.Context(), ended); issuers.KindOf(err) != issuers.TooLate {
			t.Errorf("a lease with nothing left: %v; want too_late", err)
		}
		time.Sleep(47 * time.Hour) // the bubble's clock; the CA has an hour left
		last := lease(2 * time.Hour)
		cred, err := i.Mint(t.Context(), last)
		if err != nil {
			t.Fatal(err)
		}
		if end := leafOf(t, cred).NotAfter; end.After(last.NotBefore.Add(time.Hour)) {
			t.Errorf("the certificate outlives its CA: %s", end)
		}
		time.Sleep(2 * time.Hour)
		if _, err := i.Mint(t.Context(), lease(time.Hour)); issuers.KindOf(err) != issuers.Refused {
			t.Errorf("an expired CA: %v; want refused", err)
		}
	})
}

func FuzzCSR(f *testing.F) {
	key := mustEC(f, elliptic.P256())
	f.Add(mustCSR(f, key, &stdx509.CertificateRequest{}))
	f.Add(mustCSR(f, key, &stdx509.CertificateRequest{DNSNames: []string{"a.example"}, URIs: []*url.URL{mustURL(f, "spiffe://td.example/ns/a")}}))
	f.Add(mustCSR(f, key, &stdx509.CertificateRequest{IPAddresses: []net.IP{net.ParseIP("10.1.2.3")}, EmailAddresses: []string{"ann@example.com"}}))
	i := mustOpen(f, newTarget(f, `{}`))
	allowed := grant(client, "dns:a.example", "spiffe://td.example/ns/*")
	f.Fuzz(func(t *testing.T, der []byte) {
		c, err := mintCSR(t, i, allowed, der)
		if err != nil {
			if issuers.KindOf(err) != issuers.BadScope {
				t.Fatalf("%v; want it to say what is wrong with the request", err)
			}
			return
		}
		leaf := leafOf(t, c)
		for _, u := range leaf.URIs {
			if !strings.HasPrefix(u.String(), "spiffe://td.example/ns/") {
				t.Fatalf("URI %s", u)
			}
		}
		for _, d := range leaf.DNSNames {
			if d != "a.example" {
				t.Fatalf("DNS name %s", d)
			}
		}
		if len(leaf.IPAddresses)+len(leaf.EmailAddresses) > 0 || leaf.IsCA {
			t.Fatalf("certificate %+v", leaf)
		}
	})
}

func FuzzSpecAndScope(f *testing.F) {
	f.Add([]byte(constrained), "dns:localhost")
	f.Add([]byte(`{"max_ttl":"1h"}`), "spiffe://td.example/ns/*")
	f.Add([]byte(`{}`), "ip:10.1.*")
	key := mustEC(f, elliptic.P256())
	keyDER, err := stdx509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		f.Fatal(err)
	}
	template := &stdx509.Certificate{NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := stdx509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		f.Fatal(err)
	}
	secrets := map[string]secret.Text{
		x509.SecretKey:         secret.New(string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))),
		x509.SecretCertificate: secret.New(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))),
	}
	f.Fuzz(func(t *testing.T, spec []byte, location string) {
		s := grant(both, location)
		if (x509.Kind{}).CheckScope(spec, s) != nil {
			return
		}
		i, err := x509.Kind{}.Open(issuers.Target{Spec: spec, Secrets: secrets})
		if err != nil {
			t.Fatalf("CheckScope accepts %q, Open does not: %v", spec, err)
		}
		_, err = i.Mint(t.Context(), issuertest.NewLease(x509.Kind{}, s))
		if open := strings.Contains(location, "*"); open != (err != nil) {
			t.Fatalf("scope %s is accepted; Mint without a CSR says %v", s, err)
		}
	})
}

func BenchmarkMint(b *testing.B) {
	for name, csr := range map[string][]byte{
		"csr": mustCSR(b, mustEC(b, elliptic.P256()), &stdx509.CertificateRequest{}), "key-made-here": nil,
	} {
		b.Run(name, func(b *testing.B) {
			i := mustOpen(b, newTarget(b, `{}`))
			l := issuertest.NewLease(x509.Kind{}, grant(both, "spiffe://td.example/ns/a"))
			l.MintDeadline, l.CSR = l.NotAfter, csr
			b.ReportAllocs()
			for b.Loop() {
				if _, err := i.Mint(b.Context(), l); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
