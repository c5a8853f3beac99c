package x509_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	stdx509 "crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/x509"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

func newTarget(t testing.TB, spec string) issuers.Target {
	t.Helper()
	secrets, err := x509.Kind{}.MakeSecrets(json.RawMessage(spec))
	if err != nil {
		t.Fatal(err)
	}
	return issuers.Target{Name: "mesh", Spec: json.RawMessage(spec), Secrets: secrets}
}

func mustOpen(t testing.TB, target issuers.Target) issuers.Issuer {
	t.Helper()
	i, err := x509.Kind{}.Open(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = i.Close() })
	return i
}

func grant(actions []string, locations ...string) scope.Scope {
	return scope.Scope{{Type: "x509", Locations: locations, Actions: actions}}
}

var (
	both   = []string{"client", "server"}
	client = []string{"client"}
	server = []string{"server"}
)

func mustEC(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func mustCSR(t testing.TB, key crypto.Signer, template *stdx509.CertificateRequest) []byte {
	t.Helper()
	der, err := stdx509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// leafOf parses the certificate of a credential.
func leafOf(t testing.TB, c issuers.Credential) *stdx509.Certificate {
	t.Helper()
	cert, err := parseLeaf(c)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func parseLeaf(c issuers.Credential) (*stdx509.Certificate, error) {
	block, rest := pem.Decode([]byte(c.Public["certificate"]))
	if block == nil || len(rest) > 0 {
		return nil, errors.New("the field certificate is not one PEM block")
	}
	return stdx509.ParseCertificate(block.Bytes)
}

// mesh is a system that trusts the target's CA: two peers over a pipe, with real
// TLS on both sides.
type mesh struct {
	mu   sync.Mutex
	keys map[string]crypto.Signer // of the requesters, by public key

	// a server that does not get its certificate from us, and who trusts it
	other      tls.Certificate
	otherRoots *stdx509.CertPool
}

func newMesh(t *testing.T) *mesh {
	t.Helper()
	key := mustEC(t, elliptic.P256())
	template := &stdx509.Certificate{DNSNames: []string{"localhost"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der := mustSign(t, template, template, key.Public(), key)
	leaf, err := stdx509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	m := &mesh{keys: map[string]crypto.Signer{}, otherRoots: stdx509.NewCertPool()}
	m.other = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	m.otherRoots.AddCert(leaf)
	return m
}

func publicText(key crypto.PublicKey) string {
	der, err := stdx509.MarshalPKIXPublicKey(key)
	if err != nil {
		return ""
	}
	return string(der)
}

// prepare gives a lease a CSR that names nothing, for a fresh key.
func (m *mesh) prepare(t *testing.T, l *issuers.Lease) {
	key := mustEC(t, elliptic.P256())
	l.CSR = mustCSR(t, key, &stdx509.CertificateRequest{})
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keys[publicText(key.Public())] = key
}

// pair is the certificate with its private key, wherever that was made.
func (m *mesh) pair(c issuers.Credential) (tls.Certificate, error) {
	chain := []byte(c.Public["certificate"] + c.Public["ca_chain"])
	if key, made := c.Secret["private_key"]; made {
		return tls.X509KeyPair(chain, []byte(key.Reveal()))
	}
	leaf, err := parseLeaf(c)
	if err != nil {
		return tls.Certificate{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	pair := tls.Certificate{Leaf: leaf, PrivateKey: m.keys[publicText(leaf.PublicKey)]}
	for rest := chain; len(rest) > 0; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		pair.Certificate = append(pair.Certificate, block.Bytes)
	}
	if pair.PrivateKey == nil {
		return pair, errors.New("the certificate is for a key that nobody asked with")
	}
	return pair, nil
}

// use does mutual TLS with the credential on every side that it is good for.
func (m *mesh) use(ctx context.Context, roots *stdx509.CertPool, c issuers.Credential) error {
	pair, err := m.pair(c)
	if err != nil {
		return err
	}
	leaf, err := parseLeaf(c)
	if err != nil {
		return err
	}
	asServer, serverRoots := pair, roots
	if !slices.Contains(leaf.ExtKeyUsage, stdx509.ExtKeyUsageServerAuth) {
		asServer, serverRoots = m.other, m.otherRoots
	}
	serverConfig := &tls.Config{Certificates: []tls.Certificate{asServer}, MinVersion: tls.VersionTLS12}
	clientConfig := &tls.Config{RootCAs: serverRoots, ServerName: "localhost", MinVersion: tls.VersionTLS12}
	if slices.Contains(leaf.ExtKeyUsage, stdx509.ExtKeyUsageClientAuth) {
		serverConfig.ClientAuth, serverConfig.ClientCAs = tls.RequireAndVerifyClientCert, roots
		clientConfig.Certificates = []tls.Certificate{pair}
	}
	return handshake(ctx, clientConfig, serverConfig)
}

func handshake(ctx context.Context, clientConfig, serverConfig *tls.Config) error {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	done := make(chan error, 1)
	go func() {
		conn := tls.Server(b, serverConfig)
		err := conn.HandshakeContext(ctx)
		if err == nil {
			_, err = conn.Write([]byte("welcome"))
		}
		_ = b.Close()
		done <- err
	}()
	conn := tls.Client(a, clientConfig)
	_, err := conn.Read(make([]byte, 7)) // in TLS 1.3 a refused client certificate shows here
	_ = a.Close()
	return errors.Join(err, <-done)
}

// trust is the pool of whoever reads the published CA.
func trust(t testing.TB, i issuers.Issuer) *stdx509.CertPool {
	t.Helper()
	docs, err := i.(issuers.Publisher).Publish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	roots := stdx509.NewCertPool()
	if !roots.AppendCertsFromPEM(docs["ca"]) {
		t.Fatal("the published CA is not readable")
	}
	return roots
}

const constrained = `{"name_constraints":{"spiffe":["td.example"],"dns":["localhost","internal.example"],"ip":["127.0.0.0/8","fd00::/8"],"email":["example.com"]}}`

func TestConformance(t *testing.T) {
	for _, c := range []struct {
		name, spec string
		csr        bool
	}{
		{"with the requester's key", `{}`, true},
		{"with a key made here", `{"max_ttl":"1h"}`, false},
		{"with name constraints", constrained, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMesh(t)
			target := newTarget(t, c.spec)
			roots := trust(t, mustOpen(t, target))
			h := issuertest.Harness{
				Kind:     x509.Kind{},
				Target:   target,
				Scope:    grant(both, "dns:localhost", "spiffe://td.example/ns/a/sa/b"),
				Narrower: grant(client, "spiffe://td.example/ns/a/sa/b"),
				Invalid:  invalidScopes(),
				Accepted: []scope.Scope{
					grant(server, "dns:a.internal.example", "ip:127.0.0.1", "ip:fd00::1"),
					grant(client, "email:Ann.B+x@example.com"),
				},
				Hostile: []scope.Scope{
					grant(both, "dns:a\x00.example"), grant(both, "dns:localhost,DNS:evil.example"),
					grant(both, "spiffe://td.example/../admin"), grant(both, "spiffe://td.example@evil/x"),
					grant(both, "spiffe://td.example/a%2Fb"), grant(both, "email:a@b@example.com"),
				},
				Use:  func(ctx context.Context, c issuers.Credential) error { return m.use(ctx, roots, c) },
				Gone: func(context.Context, issuers.Lease) error { return nil }, // nothing is kept anywhere
				Expires: func(c issuers.Credential) (time.Time, error) {
					leaf, err := parseLeaf(c)
					if err != nil {
						return time.Time{}, err
					}
					return leaf.NotAfter, nil
				},
			}
			h.Keys = &issuertest.Keys{
				CrossSigned: true,
				Old:         []map[string]secret.Text{firstShape()},
				Verify: func(ctx context.Context, documents map[string][]byte, c issuers.Credential) error {
					roots := stdx509.NewCertPool()
					roots.AppendCertsFromPEM(documents["ca"])
					return m.use(ctx, roots, c)
				},
			}
			if c.csr {
				h.Prepare, h.NoSecret = m.prepare, true
			}
			issuertest.Run(t, h)
		})
	}
}

func invalidScopes() []scope.Scope {
	detail := func(change func(*scope.Detail)) scope.Scope {
		s := grant(client, "dns:localhost")
		change(&s[0])
		return s
	}
	out := []scope.Scope{
		grant(both),
		append(grant(client, "dns:localhost"), grant(server, "dns:b.internal.example")...),
		detail(func(d *scope.Detail) { d.Identifier = "postgres" }),
		detail(func(d *scope.Detail) { d.Privileges = []string{"ca"} }),
		detail(func(d *scope.Detail) { d.Datatypes = []string{"pii"} }),
		detail(func(d *scope.Detail) { d.Tables = []scope.Table{{Name: "a.b"}} }),
		detail(func(d *scope.Detail) { d.Actions = []string{"client", "ca"} }),
	}
	for _, location := range []string{
		"localhost", "dns:", "dns:UPPER.example", "dns:-a.example", "dns:a..example", "dns:a_b.example", "dns:a.example.",
		"dns:" + strings.Repeat("a", 64) + ".example", "ip:*", "ip:1*", "ip:127.0.0.1.*", "ip:300.*", "ip:fd00:*", "ip:fe80::1%eth0",
		"ip:::ffff:127.0.0.1", "ip:127.1", "ip:FD00::1", "email:ann", "email:@example.com", "email:a..b@example.com", "email:\"a b\"@example.com",
		"spiffe://", "spiffe://td.example", "spiffe://td.example/", "spiffe://td*", "spiffe://*", "spiffe://td.example*", "spiffe://TD.example/x",
		"spiffe://td.example/a//b", "spiffe://td.example/./a*", "spiffe://td.example/a?b", "https://td.example/x", "*", "spiffe://00./0", "spiffe://10.0.0.1/a", "spiffe://a..b/*", "uri:spiffe://td.example/x",
	} {
		out = append(out, grant(both, location))
	}
	return out
}

func TestPatternsNeedAnEndThatStaysInside(t *testing.T) {
	for _, c := range []struct {
		spec, location string
		fine           bool
	}{
		{`{}`, "spiffe://td.example/*", true},
		{`{}`, "spiffe://td.example/ns/team-*", true},
		{`{}`, "ip:10.*", true},
		{`{}`, "ip:10.1.2.*", true},
		{`{}`, "dns:api-*", false}, // api-.evil.example
		{`{}`, "email:ann@*", false},
		{constrained, "dns:api-*", true},
		{constrained, "email:ann@*", true},
		{constrained, "spiffe://other.example/*", false},
		{constrained, "dns:evil.example", false},
		{constrained, "dns:notlocalhost", false},
		{constrained, "ip:10.0.0.1", false},
		{constrained, "email:ann@a.example.com", false},
		{`{"name_constraints":{"dns":["internal.example"]}}`, "spiffe://td.example/x", false}, // a form not mentioned
		{`{"name_constraints":{"dns":["internal.example"]}}`, "email:ann@*", false},
	} {
		err := x509.Kind{}.CheckScope(json.RawMessage(c.spec), grant(both, c.location))
		if (err == nil) != c.fine {
			t.Errorf("%s with %s: %v", c.location, c.spec, err)
		}
	}
}

func TestSpecs(t *testing.T) {
	for spec, fine := range map[string]bool{
		`{}`: true, constrained: true, `{"ca_ttl":"720h","max_ttl":"1m","ca_name":"Orders CA","common_names":true}`: true,
		`{"ca_ttl":"1h"}`: false, `{"max_ttl":"10s"}`: false, `{"max_ttl":"721h"}`: false, `{"ca_ttl":"24h","max_ttl":"24h"}`: false,
		`{"ca_name":"a\nb"}`: false, `{"name_constraints":{}}`: false, `{"name_constraints":{"dns":[".a.example"]}}`: false,
		`{"name_constraints":{"ip":["10.0.0.1/8"]}}`: false, `{"name_constraints":{"spiffe":["spiffe://td.example"]}}`: false,
		`{"name_constraints":{"uri":["x"]}}`: false, `null`: false, ``: false, `{"ca_key":"x"}`: false, `{} {}`: false,
	} {
		if err := (x509.Kind{}).CheckSpec(json.RawMessage(spec)); (err == nil) != fine {
			t.Errorf("CheckSpec(%s): %v", spec, err)
		}
	}
}

func TestRoles(t *testing.T) {
	roles, err := x509.Kind{}.Roles(json.RawMessage(constrained))
	if err != nil || len(roles) != 1 || roles[0].Scope[0].Locations[0] != "spiffe://td.example/*" {
		t.Fatalf("Roles: %+v, %v", roles, err)
	}
	if err := (x509.Kind{}).CheckScope(json.RawMessage(constrained), roles[0].Scope); err != nil {
		t.Error(err)
	}
	for _, spec := range []string{`{}`, `{"name_constraints":{"dns":["a.example"]}}`} {
		if roles, err := (x509.Kind{}).Roles(json.RawMessage(spec)); err != nil || len(roles) != 0 {
			t.Errorf("Roles for %s: %+v, %v", spec, roles, err)
		}
	}
}

// The serial is pure, so a change of its derivation would part every ledger from
// its certificates.
func TestGoldenSerial(t *testing.T) {
	const id = "01hzy3m8k2q4w6e8r0t2y4v6x8"
	for generation, want := range map[uint64]string{
		1: "6aa5cb369e7239cd65da1f4d82ec91f8854922bd", 2: "56b15564136b20558061f2f407f2e762273baef5",
	} {
		if got := (x509.Kind{}).CredentialName(id, generation); got != want {
			t.Errorf("serial of generation %d is %s; want %s", generation, got, want)
		}
	}
	for range 1000 {
		name := x509.Kind{}.CredentialName(issuertest.NewLeaseID(), 1)
		if len(name) != 40 || name[0] < '4' || name[0] > '7' {
			t.Fatalf("serial %s is not 20 octets, positive (RFC 5280 §4.1.2.2)", name)
		}
	}
}

func TestSerialIsTheName(t *testing.T) {
	i := mustOpen(t, newTarget(t, `{}`))
	l := issuertest.NewLease(x509.Kind{}, grant(client, "dns:localhost"))
	c, err := i.Mint(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%040x", leafOf(t, c).SerialNumber); got != l.Name || c.Public["serial"] != l.Name {
		t.Errorf("the certificate's serial is %s, its name %s", got, l.Name)
	}
	l.Name = x509.Kind{}.CredentialName(issuertest.NewLeaseID(), 1)
	if _, err := i.Mint(t.Context(), l); issuers.KindOf(err) != issuers.Refused {
		t.Errorf("another lease's serial: %v; want refused", err)
	}
}
