package x509_test

import (
	"crypto"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	stdx509 "crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/x509"
	"github.com/mayfly-broker/mayfly/secret"
)

// TestNameConstraintsAreInTheCA: a stranger with the CA's key could not certify
// beyond them either.
func TestNameConstraintsAreInTheCA(t *testing.T) {
	target := newTarget(t, constrained)
	block, _ := pem.Decode([]byte(target.Secrets[x509.SecretCertificate].Reveal()))
	ca, err := stdx509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if !ca.PermittedDNSDomainsCritical || len(ca.PermittedDNSDomains) != 2 || len(ca.PermittedIPRanges) != 2 ||
		len(ca.PermittedEmailAddresses) != 1 || len(ca.PermittedURIDomains) != 1 || ca.MaxPathLen != 1 {
		t.Errorf("the CA's constraints: %+v", ca)
	}
}

// imported makes a root and an intermediate below it, as an administrator would
// bring them.
func imported(t *testing.T, change func(*stdx509.Certificate)) (map[string]secret.Text, *stdx509.CertPool) {
	t.Helper()
	rootKey, key := mustEC(t, elliptic.P384()), mustEC(t, elliptic.P256())
	root := &stdx509.Certificate{
		Subject: pkix.Name{CommonName: "Root"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: stdx509.KeyUsageCertSign,
	}
	intermediate := &stdx509.Certificate{
		Subject: pkix.Name{CommonName: "Intermediate"}, NotBefore: root.NotBefore, NotAfter: root.NotAfter,
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: stdx509.KeyUsageCertSign,
	}
	if change != nil {
		change(intermediate)
	}
	rootDER := mustSign(t, root, root, rootKey.Public(), rootKey)
	parsed, err := stdx509.ParseCertificate(rootDER)
	if err != nil {
		t.Fatal(err)
	}
	der := mustSign(t, intermediate, parsed, key.Public(), rootKey)
	keyDER, err := stdx509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	pool := stdx509.NewCertPool()
	pool.AddCert(parsed)
	return map[string]secret.Text{
		x509.SecretKey:         secret.New(text("PRIVATE KEY", keyDER)),
		x509.SecretCertificate: secret.New(text("CERTIFICATE", der) + text("CERTIFICATE", rootDER)),
	}, pool
}

func mustSign(t *testing.T, template, parent *stdx509.Certificate, public crypto.PublicKey, key crypto.Signer) []byte {
	t.Helper()
	der, err := stdx509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestImportedIntermediate(t *testing.T) {
	secrets, roots := imported(t, nil)
	i := mustOpen(t, issuers.Target{Spec: json.RawMessage(`{}`), Secrets: secrets})
	c, err := mintCSR(t, i, grant(both, "dns:a.example"), nil)
	if err != nil {
		t.Fatal(err)
	}
	intermediates := stdx509.NewCertPool()
	if !intermediates.AppendCertsFromPEM([]byte(c.Public["ca_chain"])) {
		t.Fatal("ca_chain is not readable")
	}
	if _, err := leafOf(t, c).Verify(stdx509.VerifyOptions{Roots: roots, Intermediates: intermediates, DNSName: "a.example"}); err != nil {
		t.Errorf("against the root: %v", err)
	}

	// constraints that only the imported CA has
	secrets, _ = imported(t, func(c *stdx509.Certificate) { c.PermittedDNSDomains = []string{"internal.example"} })
	i = mustOpen(t, issuers.Target{Spec: json.RawMessage(`{}`), Secrets: secrets})
	if _, err := mintCSR(t, i, grant(both, "dns:a.example"), nil); issuers.KindOf(err) != issuers.Refused {
		t.Errorf("a name that the imported CA may not certify: %v; want refused", err)
	}
	secrets, _ = imported(t, func(c *stdx509.Certificate) { c.ExtKeyUsage = []stdx509.ExtKeyUsage{stdx509.ExtKeyUsageClientAuth} })
	i = mustOpen(t, issuers.Target{Spec: json.RawMessage(`{}`), Secrets: secrets})
	if _, err := mintCSR(t, i, grant(both, "dns:a.example"), nil); issuers.KindOf(err) != issuers.Refused {
		t.Errorf("a use that the imported CA may not certify: %v; want refused", err)
	}
}

func TestOpenRefusesWhatIsNoCA(t *testing.T) {
	good, _ := imported(t, nil)
	other, _ := imported(t, nil)
	notCA, _ := imported(t, func(c *stdx509.Certificate) { c.IsCA, c.MaxPathLenZero, c.KeyUsage = false, false, 0 })
	noSign, _ := imported(t, func(c *stdx509.Certificate) { c.KeyUsage = stdx509.KeyUsageCRLSign })
	chain := good[x509.SecretCertificate].Reveal()
	first := chain[:strings.Index(chain, "-----END CERTIFICATE-----\n")+26]
	const leak = "a-secret-that-must-not-be-quoted"
	with := func(key, cert secret.Text) map[string]secret.Text {
		return map[string]secret.Text{x509.SecretKey: key, x509.SecretCertificate: cert}
	}
	for name, secrets := range map[string]map[string]secret.Text{
		"nothing":              nil,
		"no key":               with(secret.Text{}, good[x509.SecretCertificate]),
		"no certificate":       with(good[x509.SecretKey], secret.Text{}),
		"no PEM":               with(secret.New(leak), good[x509.SecretCertificate]),
		"text after the key":   with(secret.New(good[x509.SecretKey].Reveal()+leak), good[x509.SecretCertificate]),
		"another's key":        with(other[x509.SecretKey], good[x509.SecretCertificate]),
		"not a CA":             notCA,
		"may not sign":         noSign,
		"a broken chain":       with(good[x509.SecretKey], secret.New(first+other[x509.SecretCertificate].Reveal())),
		"garbage in the chain": with(good[x509.SecretKey], secret.New(first+leak)),
		"too long a chain":     with(good[x509.SecretKey], secret.New(strings.Repeat(first, 6))),
	} {
		_, err := x509.Kind{}.Open(issuers.Target{Spec: json.RawMessage(`{}`), Secrets: secrets})
		if err == nil {
			t.Errorf("%s: Open succeeds", name)
		} else if strings.Contains(err.Error(), leak) {
			t.Errorf("%s: law 6: the error quotes the secret: %v", name, err)
		}
	}
}

// TestCheckSeesTheCAsEnd: a CA that lives for a year and then stops everything is told
// of before it does, and of an imported one also what stands above it.
func TestCheckSeesTheCAsEnd(t *testing.T) {
	check := func(target issuers.Target) []issuers.Finding {
		t.Helper()
		found, err := mustOpen(t, target).(issuers.Checker).Check(t.Context())
		if err != nil || len(found) == 0 {
			t.Fatalf("%+v %v", found, err)
		}
		return found
	}
	target := newTarget(t, `{}`)
	block, _ := pem.Decode([]byte(target.Secrets[x509.SecretCertificate].Reveal()))
	fingerprint := fmt.Sprintf("%x", sha256.Sum256(block.Bytes))
	if f := check(target)[0]; !f.OK || !strings.Contains(f.Detail, fingerprint) || !strings.Contains(f.Detail, `"Mayfly CA"`) {
		t.Errorf("a new CA: %+v", f)
	}
	target.Draft = true
	if f := check(target)[0]; !f.OK || strings.Contains(f.Detail, fingerprint) {
		t.Errorf("a draft's: %+v", f)
	}
	for _, x := range []struct {
		name        string
		begun, ends time.Duration
		ok, warns   bool
		want        string
	}{
		{"a month and a day left", -335 * 24 * time.Hour, 31 * 24 * time.Hour, true, false, "until"},
		{"a month", -336 * 24 * time.Hour, 29 * 24 * time.Hour, false, true, "ends soon"},
		{"half of a short life", -12 * time.Hour, 12 * time.Hour, true, false, "until"},
		{"the end of a short life", -20 * time.Hour, 4 * time.Hour, false, true, "ends soon"},
		{"over", -48 * time.Hour, -time.Minute, false, false, "has expired"},
	} {
		old := newTarget(t, `{}`)
		old.Secrets, _ = imported(t, func(c *stdx509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(x.begun), time.Now().Add(x.ends)
		})
		f := check(old)[0]
		if f.OK != x.ok || f.Warning != x.warns || !strings.Contains(f.Detail, x.want) || !x.ok && !strings.Contains(f.Detail, "newer ca_certificate") {
			t.Errorf("%s: %+v", x.name, f)
		}
		if len(check(old)) < 2 {
			t.Errorf("%s: nothing is said of the CA above", x.name)
		}
	}
}
