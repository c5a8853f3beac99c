package ssh_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	xssh "golang.org/x/crypto/ssh"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/ssh"
	"github.com/mayfly-broker/mayfly/issuers/ssh/sshdtest"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

func newTarget(t testing.TB, spec string) issuers.Target {
	t.Helper()
	secrets, err := ssh.Kind{}.MakeSecrets(json.RawMessage(spec))
	if err != nil {
		t.Fatal(err)
	}
	return issuers.Target{Name: "fleet", Spec: json.RawMessage(spec), Secrets: secrets}
}

func mustOpen(t testing.TB, target issuers.Target) issuers.Issuer {
	t.Helper()
	i, err := ssh.Kind{}.Open(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = i.Close() })
	return i
}

// user is a scope for those principals, with a terminal.
func user(principals ...string) scope.Scope {
	return scope.Scope{{Type: "ssh", Actions: []string{"user", "permit-pty"}, Privileges: principals}}
}

func host(principals ...string) scope.Scope {
	return scope.Scope{{Type: "ssh", Actions: []string{"host"}, Privileges: principals}}
}

// with changes a copy of a scope's one detail.
func with(s scope.Scope, change func(*scope.Detail)) scope.Scope {
	out := slices.Clone(s)
	change(&out[0])
	return out
}

func mint(t testing.TB, i issuers.Issuer, s scope.Scope) issuers.Credential {
	t.Helper()
	c, err := i.Mint(t.Context(), issuertest.NewLease(ssh.Kind{}, s))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// certOf parses a credential's certificate with x/crypto's own reader.
func certOf(c issuers.Credential) (*xssh.Certificate, error) {
	key, _, _, rest, err := xssh.ParseAuthorizedKey([]byte(c.Public["certificate"]))
	if err != nil || len(rest) > 0 {
		return nil, fmt.Errorf("the certificate is not one line: %w", err)
	}
	cert, ok := key.(*xssh.Certificate)
	if !ok {
		return nil, errors.New("the certificate is a bare key")
	}
	return cert, nil
}

func mustCert(t testing.TB, c issuers.Credential) *xssh.Certificate {
	t.Helper()
	cert, err := certOf(c)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func published(t testing.TB, i issuers.Issuer, document string) []byte {
	t.Helper()
	docs, err := i.(issuers.Publisher).Publish(t.Context())
	if err != nil || len(docs[document]) == 0 {
		t.Fatalf("%s is not published: %v", document, err)
	}
	return docs[document]
}

// revocations is the list for those leases, as a broker would have it made.
func revocations(t testing.TB, i issuers.Issuer, leases ...issuers.Lease) []byte {
	t.Helper()
	docs, err := i.(issuers.RevocationPublisher).PublishRevoked(t.Context(), slices.Values(leases))
	if err != nil {
		t.Fatal(err)
	}
	return docs["krl"]
}

// serverFor starts an sshd that trusts the issuer's CA, with an empty list.
func serverFor(t testing.TB, i issuers.Issuer, lines ...string) *sshdtest.Server {
	t.Helper()
	s := sshdtest.Start(t, lines...)
	put(t, s, sshdtest.FileCA, published(t, i, "ca.pub"))
	put(t, s, sshdtest.FileKRL, revocations(t, i))
	return s
}

func put(t testing.TB, s *sshdtest.Server, file string, content []byte) {
	t.Helper()
	if err := s.Write(file, content); err != nil {
		t.Fatal(err)
	}
}

// holders keeps the private keys of requesters who brought their own.
type holders struct {
	mu   sync.Mutex
	keys map[string]crypto.Signer
}

func (h *holders) prepare(t *testing.T, l *issuers.Lease) {
	t.Helper()
	key := newKey(t, elliptic.P256())
	l.PublicKey = jwk(t, key.Public())
	public, err := xssh.NewPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.keys[string(public.Marshal())] = key
}

func newKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func jwk(t testing.TB, key any) json.RawMessage {
	t.Helper()
	out, err := json.Marshal(jose.JSONWebKey{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (h *holders) signer(c issuers.Credential, cert *xssh.Certificate) (xssh.Signer, error) {
	var inner xssh.Signer
	var err error
	if made, ok := c.Secret["private_key"]; ok {
		inner, err = xssh.ParsePrivateKey([]byte(made.Reveal()))
	} else {
		h.mu.Lock()
		key := h.keys[string(cert.Key.Marshal())]
		h.mu.Unlock()
		if key == nil {
			return nil, errors.New("the certificate is for a key that nobody asked with")
		}
		inner, err = xssh.NewSignerFromKey(key)
	}
	if err != nil {
		return nil, err
	}
	return xssh.NewCertSigner(cert, inner)
}

// login logs in to the real server with the library's client, which is faster
// than a process for each of the suite's logins, and runs a command.
func (h *holders) login(ctx context.Context, s *sshdtest.Server, c issuers.Credential) error {
	cert, err := certOf(c)
	if err != nil {
		return err
	}
	signer, err := h.signer(c, cert)
	if err != nil {
		return err
	}
	client, err := xssh.Dial("tcp", s.Addr(), &xssh.ClientConfig{
		User: s.User, Auth: []xssh.AuthMethod{xssh.PublicKeys(signer)},
		HostKeyCallback: xssh.FixedHostKey(s.HostKey), Timeout: 10 * time.Second,
	})
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = client.Close() })
	defer stop()
	session, err := client.NewSession()
	if err != nil {
		return err
	}
	out, err := session.CombinedOutput("echo in")
	if err == nil && strings.TrimSpace(string(out)) != "in" {
		err = fmt.Errorf("the command answers %q", out)
	}
	return err
}

func TestConformance(t *testing.T) {
	for _, c := range []struct {
		name, spec string
		own        bool
	}{
		{"with the requester's key", `{}`, true},
		{"with a key made here", `{"max_ttl":"1h","krl":{"max_age":"60s"}}`, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			target := newTarget(t, c.spec)
			i := mustOpen(t, target)
			s := serverFor(t, i)
			people := &holders{keys: map[string]crypto.Signer{}}
			wide := scope.Scope{{Type: "ssh", Actions: []string{"permit-pty", "permit-port-forwarding", "permit-user-rc", "user"}, Privileges: []string{s.User, "deploy"}}}
			h := issuertest.Harness{
				Kind: ssh.Kind{}, Target: target,
				Scope: wide,
				Narrower: with(wide, func(d *scope.Detail) {
					d.Actions, d.Privileges, d.Locations = []string{"user"}, []string{s.User}, []string{"127.0.0.0/8", "::1/128"}
				}),
				Invalid: invalidScopes(),
				Accepted: []scope.Scope{
					with(user("zone/eu:dba"), func(d *scope.Detail) { d.Identifier = "/usr/bin/backup --all 'a b'" }),
					with(user("root"), func(d *scope.Detail) {
						d.Actions = append(d.Actions, "permit-agent-forwarding", "permit-x11-forwarding")
					}),
				},
				Hostile: []scope.Scope{
					user("a,root"), user("-oProxyCommand"), user("ann\x00root"), user("../root"), user("$(id)"),
					with(user("ann"), func(d *scope.Detail) { d.Identifier = "x\"; id; \"" }),
					with(user("ann"), func(d *scope.Detail) { d.Identifier = "x\nid" }),
					with(user("ann"), func(d *scope.Detail) { d.Locations = []string{"10.0.0.0/8,0.0.0.0/0"} }),
				},
				Use:  func(ctx context.Context, c issuers.Credential) error { return people.login(ctx, s, c) },
				Gone: func(context.Context, issuers.Lease) error { return nil }, // nothing is kept anywhere
				Expires: func(c issuers.Credential) (time.Time, error) {
					cert, err := certOf(c)
					if err != nil {
						return time.Time{}, err
					}
					return time.Unix(int64(cert.ValidBefore), 0), nil
				},
			}
			h.Keys = &issuertest.Keys{
				Old: []map[string]secret.Text{{ssh.SecretKey: secret.New(firstShape)}},
				Verify: func(ctx context.Context, documents map[string][]byte, c issuers.Credential) error {
					put(t, s, sshdtest.FileCA, documents["ca.pub"])
					put(t, s, sshdtest.FileKRL, documents["krl"])
					return people.login(ctx, s, c)
				},
			}
			if c.own {
				h.Prepare, h.NoSecret = people.prepare, true
			}
			issuertest.Run(t, h)
		})
	}
}

func invalidScopes() []scope.Scope {
	out := []scope.Scope{
		append(user("ann"), user("bo")...), // two details, two certificates
		user(), user("a b"), user("Ann"), user("ann*"), user("*"), user("ann@example"), user(".ann"), user("/ann"), user("a..b"),
		host(), // types are [user]
		host("web.example"),
	}
	for _, change := range []func(*scope.Detail){
		func(d *scope.Detail) { d.Actions = []string{"permit-pty"} },
		func(d *scope.Detail) { d.Actions = []string{"user", "host"} },
		func(d *scope.Detail) { d.Actions = []string{"user", "no-touch-required"} },
		func(d *scope.Detail) { d.Actions = []string{"user", "force-command"} },
		func(d *scope.Detail) { d.Datatypes = []string{"pii"} },
		func(d *scope.Detail) { d.Tables = []scope.Table{{Name: "a.b"}} },
		func(d *scope.Detail) { d.Identifier = "backup*" },
		func(d *scope.Detail) { d.Identifier = " backup" },
	} {
		out = append(out, with(user("ann"), change))
	}
	for _, source := range []string{"10.1.2.3", "10.*", "10.1.2.3/8", "10.0.0.0/33", "fe80::1%eth0/128", "::ffff:10.0.0.0/104", "FD00::/8", "example.com", "!10.0.0.0/8", ""} {
		out = append(out, with(user("ann"), func(d *scope.Detail) { d.Locations = []string{source} }))
	}
	return out
}

func TestSpecs(t *testing.T) {
	for spec, fine := range map[string]bool{
		`{}`: true, `{"types":["host"],"max_ttl":"720h"}`: true, `{"types":["user","host"],"ca_algorithm":"ecdsa-p256"}`: true,
		`{"principals":["deploy","zone/eu"],"krl":{"max_age":"60s"}}`: true, `{"types":["host"],"principals":["web.example","2001:db8::1"]}`: true,
		`{"max_ttl":"25h"}`: false, `{"types":["user","host"],"max_ttl":"48h"}`: false, `{"max_ttl":"1s"}`: false, `{"types":["host"],"max_ttl":"721h"}`: false,
		`{"types":["root"]}`: false, `{"ca_algorithm":"rsa"}`: false, `{"krl":{}}`: false, `{"krl":{"max_age":"1ms"}}`: false, `{"krl":{"max_age":"60s","url":"x"}}`: false,
		`{"principals":["*"]}`: false, `{"types":["host"],"principals":["zone/eu"]}`: false, `{"principals":[""]}`: false, `{"ca_key":"x"}`: false, `null`: false, ``: false,
	} {
		if err := (ssh.Kind{}).CheckSpec(json.RawMessage(spec)); (err == nil) != fine {
			t.Errorf("CheckSpec(%s): %v", spec, err)
		}
	}
	for spec, want := range map[string]time.Duration{`{}`: 24 * time.Hour, `{"max_ttl":"5m"}`: 5 * time.Minute, `{`: time.Millisecond} {
		if got := (ssh.Kind{}).MaxTTL(json.RawMessage(spec)); got != want {
			t.Errorf("MaxTTL(%s) is %s, want %s", spec, got, want)
		}
	}
}

func TestRoles(t *testing.T) {
	spec := json.RawMessage(`{"types":["user","host"],"principals":["deploy","web.example","zone/eu"],"max_ttl":"2h"}`)
	roles, err := ssh.Kind{}.Roles(spec)
	if err != nil || len(roles) != 2 {
		t.Fatalf("Roles: %+v, %v", roles, err)
	}
	for n, want := range []string{
		`[{"type":"ssh","actions":["permit-pty","user"],"privileges":["deploy","web.example","zone/eu"]}]`,
		`[{"type":"ssh","actions":["host"],"privileges":["deploy","web.example"]}]`,
	} {
		if err := (ssh.Kind{}).CheckScope(spec, roles[n].Scope); err != nil || roles[n].Scope.String() != want {
			t.Errorf("role %s: %s, %v; want %s", roles[n].Suffix, roles[n].Scope, err, want)
		}
	}
	if roles, err := (ssh.Kind{}).Roles(json.RawMessage(`{}`)); err != nil || len(roles) != 0 {
		t.Errorf("without principals: %+v, %v", roles, err)
	}
}

// A principal that the spec does not name is refused whatever the role says.
func TestSpecBoundsPrincipals(t *testing.T) {
	spec := json.RawMessage(`{"principals":["deploy"]}`)
	if err := (ssh.Kind{}).CheckScope(spec, user("deploy")); err != nil {
		t.Error(err)
	}
	if err := (ssh.Kind{}).CheckScope(spec, user("deploy", "root")); err == nil {
		t.Error("root passes")
	}
}

// Law 3: each member narrows as package scope compares it, and what a narrower
// scope leaves out it does not gain.
func TestLaw3CertificateNarrowsWithItsScope(t *testing.T) {
	role := scope.Scope{{Type: "ssh", Actions: []string{"user", "permit-pty"}, Privileges: []string{"deploy", "ops"}, Locations: []string{"10.0.0.0/8", "192.0.2.7/32"}, Identifier: "/usr/bin/backup"}}
	for name, c := range map[string]struct {
		change func(*scope.Detail)
		within bool
	}{
		"one principal":          {func(d *scope.Detail) { d.Privileges = []string{"ops"} }, true},
		"another principal":      {func(d *scope.Detail) { d.Privileges = []string{"root"} }, false},
		"no principals":          {func(d *scope.Detail) { d.Privileges = nil }, false},
		"one source":             {func(d *scope.Detail) { d.Locations = []string{"192.0.2.7/32"} }, true},
		"another source":         {func(d *scope.Detail) { d.Locations = []string{"0.0.0.0/0"} }, false},
		"no sources":             {func(d *scope.Detail) { d.Locations = nil }, false},
		"no forced command":      {func(d *scope.Detail) { d.Identifier = "" }, false},
		"another forced command": {func(d *scope.Detail) { d.Identifier = "/usr/bin/backup; sh" }, false},
		"no terminal":            {func(d *scope.Detail) { d.Actions = []string{"user"} }, true},
		"forwarding":             {func(d *scope.Detail) { d.Actions = []string{"user", "permit-port-forwarding"} }, false},
	} {
		if err := scope.Covers(role, with(role, c.change)); (err == nil) != c.within {
			t.Errorf("%s: %v", name, err)
		}
	}
	i := mustOpen(t, newTarget(t, `{}`))
	cert := mustCert(t, mint(t, i, role))
	want := map[string]string{"source-address": "10.0.0.0/8,192.0.2.7/32", "force-command": "/usr/bin/backup"}
	if len(cert.CriticalOptions) != 2 || cert.CriticalOptions["source-address"] != want["source-address"] || cert.CriticalOptions["force-command"] != want["force-command"] {
		t.Errorf("critical options %v, want %v", cert.CriticalOptions, want)
	}
	if _, ok := cert.Extensions["permit-pty"]; !ok || len(cert.Extensions) != 1 || !slices.Equal(cert.ValidPrincipals, []string{"deploy", "ops"}) {
		t.Errorf("extensions %v, principals %v", cert.Extensions, cert.ValidPrincipals)
	}
}

// What OpenSSH itself reads in a certificate.
func TestGoldenCertificateAsOpenSSHReadsIt(t *testing.T) {
	i := mustOpen(t, newTarget(t, `{"types":["user","host"]}`))
	l := issuertest.NewLease(ssh.Kind{}, scope.Scope{{Type: "ssh", Actions: []string{"user", "permit-x11-forwarding", "permit-pty"}, Privileges: []string{"deploy", "ops"}, Locations: []string{"10.0.0.0/8"}, Identifier: "/usr/bin/backup --all"}})
	l.ID, l.Generation = "01hzy3m8k2q4w6e8r0t2y4v6x8", 3
	l.Name = ssh.Kind{}.CredentialName(l.ID, l.Generation)
	for _, c := range []struct {
		scope scope.Scope
		want  []string
	}{
		{l.Scope, []string{
			"Type: ssh-ed25519-cert-v01@openssh.com user certificate", `Key ID: "mf-01hzy3m8k2q4w6e8r0t2y4v6x8-3"`, "Serial: 2688848465390253995",
			"Principals: deploy ops", "Critical Options: force-command /usr/bin/backup --all source-address 10.0.0.0/8", "Extensions: permit-X11-forwarding permit-pty",
		}},
		{host("web.example", "192.0.2.7"), []string{"host certificate", "Principals: 192.0.2.7 web.example", "Critical Options: (none)", "Extensions: (none)"}},
	} {
		l.Scope = c.scope
		cred, err := i.Mint(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := sshdtest.Keygen(t, map[string][]byte{"c-cert.pub": []byte(cred.Public["certificate"])}, "-L", "-f", "c-cert.pub")
		if err != nil {
			t.Fatalf("ssh-keygen -L: %v\n%s", err, raw)
		}
		got := strings.Join(strings.Fields(raw), " ")
		valid := fmt.Sprintf("Valid: from %s to %s", l.NotBefore.Add(-time.Minute).UTC().Format("2006-01-02T15:04:05"), l.NotAfter.UTC().Format("2006-01-02T15:04:05"))
		for _, want := range append(c.want, valid) {
			if !strings.Contains(got, want) {
				t.Errorf("ssh-keygen reads\n%s\nwithout %q", raw, want)
			}
		}
	}
}

// A private key made here is one that OpenSSH reads, and the certificate's.
func TestPrivateKeyIsOpenSSHs(t *testing.T) {
	c := mint(t, mustOpen(t, newTarget(t, `{}`)), user("ann"))
	out, err := sshdtest.Keygen(t, map[string][]byte{"k": []byte(c.Secret["private_key"].Reveal())}, "-y", "-f", "k")
	if err != nil {
		t.Fatalf("ssh-keygen -y: %v\n%s", err, out)
	}
	if want := string(xssh.MarshalAuthorizedKey(mustCert(t, c).Key)); strings.TrimSpace(out) != strings.TrimSpace(want) {
		t.Errorf("the key's public half is %s, the certificate's %s", out, want)
	}
}

func TestHolderKeys(t *testing.T) {
	i := mustOpen(t, newTarget(t, `{}`))
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	line := func(k any) string {
		p, err := xssh.NewPublicKey(k)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(xssh.MarshalAuthorizedKey(p)))
	}
	quoted := func(s string) json.RawMessage {
		out, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	ed := line(public)
	for name, c := range map[string]struct {
		key  json.RawMessage
		want string // the certificate's type; empty: refused
	}{
		"Ed25519 JWK":         {jwk(t, public), "ssh-ed25519-cert-v01@openssh.com"},
		"P-384 JWK":           {jwk(t, newKey(t, elliptic.P384()).Public()), "ecdsa-sha2-nistp384-cert-v01@openssh.com"},
		"a line":              {quoted(ed + " ann@laptop\n"), "ssh-ed25519-cert-v01@openssh.com"},
		"a hardware key":      {quoted(hardwareKey(t, public)), "sk-ssh-ed25519-cert-v01@openssh.com"},
		"private JWK":         {jwk(t, newKey(t, elliptic.P256())), ""},
		"P-224 JWK":           {json.RawMessage(`{"kty":"EC","crv":"P-224","x":"AA","y":"AA"}`), ""},
		"symmetric":           {json.RawMessage(`{"kty":"oct","k":"c2VjcmV0LXNlY3JldC1zZWNyZXQ"}`), ""},
		"two lines":           {quoted(ed + "\n" + ed), ""},
		"options in the line": {quoted(`command="id" ` + ed), ""},
		"a certificate":       {quoted(mint(t, i, user("ann")).Public["certificate"]), ""},
		"no key":              {json.RawMessage(`{}`), ""},
		"null":                {json.RawMessage(`null`), ""},
		"too long":            {quoted(strings.Repeat("x", 5000)), ""},
	} {
		l := issuertest.NewLease(ssh.Kind{}, user("ann"))
		l.PublicKey = c.key
		cred, err := i.Mint(t.Context(), l)
		switch {
		case c.want == "" && issuers.KindOf(err) != issuers.Refused:
			t.Errorf("%s: %v; want refused", name, err)
		case c.want != "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.want != "" && (mustCert(t, cred).Type() != c.want || len(cred.Secret) != 0):
			t.Errorf("%s: %s, %d secrets", name, mustCert(t, cred).Type(), len(cred.Secret))
		}
	}
}

func hardwareKey(t testing.TB, public ed25519.PublicKey) string {
	t.Helper()
	key, err := xssh.ParsePublicKey(xssh.Marshal(struct {
		Name string
		Key  []byte
		App  string
	}{"sk-ssh-ed25519@openssh.com", public, "ssh:"}))
	if err != nil {
		t.Fatal(err)
	}
	return string(xssh.MarshalAuthorizedKey(key))
}

// HAZARDS 9: a retry says the same for the same key, and one serial ends every
// generation.
func TestHazard9RetriesShareKeyAndSerial(t *testing.T) {
	i := mustOpen(t, newTarget(t, `{}`))
	l := issuertest.NewLease(ssh.Kind{}, user("ann"))
	l.PublicKey = jwk(t, newKey(t, elliptic.P256()).Public())
	var seen []*xssh.Certificate
	for _, generation := range []uint64{1, 1, 2} {
		l.Generation, l.Name = generation, ssh.Kind{}.CredentialName(l.ID, generation)
		c, err := i.Mint(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		cert := mustCert(t, c)
		cert.Nonce, cert.Signature = nil, nil
		if cert.KeyId != l.Name {
			t.Errorf("key id %s, want %s", cert.KeyId, l.Name)
		}
		cert.KeyId = ""
		seen = append(seen, cert)
	}
	for _, c := range seen[1:] {
		if !bytes.Equal(c.Marshal(), seen[0].Marshal()) {
			t.Errorf("%+v and %+v differ in more than nonce and key id", c, seen[0])
		}
	}
}

func TestCAKeys(t *testing.T) {
	made := newTarget(t, `{}`)
	other := newTarget(t, `{}`)
	p384, err := xssh.MarshalPrivateKey(newKey(t, elliptic.P384()), "")
	if err != nil {
		t.Fatal(err)
	}
	one, two := made.Secrets[ssh.SecretKey].Reveal(), other.Secrets[ssh.SecretKey].Reveal()
	const leak = "a-secret-that-must-not-be-quoted"
	for name, c := range map[string]struct {
		text, spec string
		keys       int // 0: refused
	}{
		"one":               {one, `{}`, 1},
		"two":               {two + one, `{}`, 2},
		"none":              {"", `{}`, 0},
		"no PEM":            {leak, `{}`, 0},
		"text after":        {one + leak, `{}`, 0},
		"too many":          {strings.Repeat(one, 5), `{}`, 0},
		"another curve":     {string(pem.EncodeToMemory(p384)), `{}`, 0},
		"another algorithm": {one, `{"ca_algorithm":"ecdsa-p256"}`, 0},
		"a broken body":     {"-----BEGIN OPENSSH PRIVATE KEY-----\n" + "YWJj\n" + "-----END OPENSSH PRIVATE KEY-----\n", `{}`, 0},
	} {
		target := made
		target.Spec = json.RawMessage(c.spec)
		target.Secrets = map[string]secret.Text{ssh.SecretKey: secret.New(c.text)}
		i, err := ssh.Kind{}.Open(target)
		if c.keys == 0 {
			if err == nil || strings.Contains(err.Error(), leak) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		lines := strings.Count(string(published(t, i, "ca.pub")), "\n")
		findings, err := i.(issuers.Checker).Check(t.Context())
		if lines != c.keys || err != nil || len(findings) != c.keys+1 {
			t.Errorf("%s: %d lines published, findings %+v, %v", name, lines, findings, err)
		}
	}
}

// The key that a draft is checked with is thrown away: whoever gave it to servers
// would wonder why they trust nothing.
func TestDraftShowsNoKey(t *testing.T) {
	draft := newTarget(t, `{}`)
	draft.Draft = true
	i, err := ssh.Kind{}.Open(draft)
	if err != nil {
		t.Fatal(err)
	}
	findings, err := i.(issuers.Checker).Check(t.Context())
	if err != nil || len(findings) == 0 {
		t.Fatal(findings, err)
	}
	for _, f := range findings {
		if strings.Contains(f.Detail, "ssh-ed25519 ") || strings.Contains(f.Detail, "SHA256:") {
			t.Errorf("a draft's check shows a key: %s", f.Detail)
		}
	}
}
