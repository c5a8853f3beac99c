package ssh_test

import (
	"context"
	"crypto"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	xssh "golang.org/x/crypto/ssh"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/ssh"
	"github.com/mayfly-broker/mayfly/issuers/ssh/sshdtest"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

// as is a login with a credential whose key was made here.
func as(c issuers.Credential, command string, options ...string) sshdtest.Login {
	return sshdtest.Login{PrivateKey: c.Secret["private_key"].Reveal(), Certificate: c.Public["certificate"], Command: command, Options: options}
}

// mustRun logs in with OpenSSH's client and returns what the command says.
func mustRun(t *testing.T, s *sshdtest.Server, l sshdtest.Login) string {
	t.Helper()
	out, err := s.Run(t.Context(), l)
	if err != nil {
		t.Fatalf("log in: %v\n%s\nthe server says:\n%s", err, out, s.Log())
	}
	return strings.TrimSpace(out)
}

// mustBeShutOut says that the server refused the login, and in its log why.
func mustBeShutOut(t *testing.T, s *sshdtest.Server, l sshdtest.Login, why string) {
	t.Helper()
	before := len(s.Log())
	out, err := s.Run(t.Context(), l)
	if err == nil || !strings.Contains(out, "Permission denied (publickey)") {
		t.Errorf("the login is not refused: %v\n%s", err, out)
	}
	mustSay(t, s, before, why)
}

// mustSay waits until the server's log says something after its first bytes: sshd
// writes it in a process of its own, and a client may have its answer before.
func mustSay(t *testing.T, s *sshdtest.Server, from int, what string) {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the server says:\n%s", s.Log()[from:])
		}
	})
	until(t, fmt.Sprintf("the server says %q", what), func() bool { return strings.Contains(s.Log()[from:], what) })
}

func TestLogin(t *testing.T) {
	for _, alg := range []string{"ed25519", "ecdsa-p256"} {
		i := mustOpen(t, newTarget(t, `{"ca_algorithm":"`+alg+`"}`))
		s := serverFor(t, i)
		c := mint(t, i, user(s.User))
		if out := mustRun(t, s, as(c, "id -un")); out != s.User {
			t.Errorf("%s: the session is %q's", alg, out)
		}
		mustSay(t, s, 0, "ID "+c.Public["key_id"]+" (serial "+c.Public["serial"]+")")
	}
}

// A server maps principals to accounts itself.
func TestPrincipals(t *testing.T) {
	i := mustOpen(t, newTarget(t, `{}`))
	s := serverFor(t, i)
	put(t, s, sshdtest.FilePrincipals, []byte("zone/eu:dba\n"))
	mustRun(t, s, as(mint(t, i, user("zone/eu:dba", "other")), "true"))
	for _, principal := range []string{"zone/us:dba", "zone/eu", s.User} {
		mustBeShutOut(t, s, as(mint(t, i, user(principal)), "true"), "Certificate does not contain an authorized principal")
	}
}

func TestSourceAddress(t *testing.T) {
	i := mustOpen(t, newTarget(t, `{}`))
	s := serverFor(t, i)
	from := func(networks ...string) scope.Scope {
		return with(user(s.User), func(d *scope.Detail) { d.Locations = networks })
	}
	mustRun(t, s, as(mint(t, i, from("127.0.0.0/8", "192.0.2.0/24")), "true"))
	mustBeShutOut(t, s, as(mint(t, i, from("192.0.2.0/24", "2001:db8::/32")), "true"), "not from a permitted source address")
}

func TestForcedCommand(t *testing.T) {
	i := mustOpen(t, newTarget(t, `{}`))
	s := serverFor(t, i)
	c := mint(t, i, with(user(s.User), func(d *scope.Detail) { d.Identifier = `echo "forced, not $SSH_ORIGINAL_COMMAND"` }))
	if out := mustRun(t, s, as(c, "id")); out != "forced, not id" {
		t.Errorf("the command answers %q", out)
	}
}

// What the scope does not permit the server refuses, and what it permits works.
func TestPermissions(t *testing.T) {
	i := mustOpen(t, newTarget(t, `{}`))
	s := serverFor(t, i)
	bare := with(user(s.User), func(d *scope.Detail) { d.Actions = []string{"user"} })
	full := with(user(s.User), func(d *scope.Detail) { d.Actions = []string{"user", "permit-pty", "permit-port-forwarding"} })
	// Outside the group tty, an sshd without root's rights gets no further than
	// the attempt to hand the terminal over; but it has permitted it.
	out, err := s.Run(t.Context(), as(mint(t, i, full), "tty", "-tt"))
	if err != nil || !strings.Contains(out, "/dev/") {
		t.Logf("with permit-pty the session's terminal is %q, %v", out, err)
		mustSay(t, s, 0, "chown(/dev/pts/")
	}
	out, err = s.Run(t.Context(), as(mint(t, i, bare), "tty", "-tt"))
	if err == nil || !strings.Contains(out, "PTY allocation request failed") {
		t.Errorf("without permit-pty the session's terminal is %q", out)
	}
	if banner, err := forward(t, s, i, full); err != nil || !strings.HasPrefix(banner, "SSH-2.0-OpenSSH") {
		t.Errorf("with permit-port-forwarding a forwarded connection reads %q, %v", banner, err)
	}
	if banner, err := forward(t, s, i, bare); err == nil {
		t.Errorf("without permit-port-forwarding a forwarded connection reads %q", banner)
	}
}

// forward reads the server's own banner through a session's forwarding.
func forward(t *testing.T, s *sshdtest.Server, i issuers.Issuer, granted scope.Scope) (string, error) {
	t.Helper()
	c := mint(t, i, granted)
	cert := mustCert(t, c)
	signer, err := (&holders{}).signer(c, cert)
	if err != nil {
		t.Fatal(err)
	}
	client, err := xssh.Dial("tcp", s.Addr(), &xssh.ClientConfig{User: s.User, Auth: []xssh.AuthMethod{xssh.PublicKeys(signer)}, HostKeyCallback: xssh.FixedHostKey(s.HostKey)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	conn, err := client.Dial("tcp", s.Addr())
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	buf := make([]byte, 64)
	n, err := conn.Read(buf)
	return string(buf[:n]), err
}

// until tries each quarter of a second, for at most a minute.
func until(t *testing.T, what string, try func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for !try() {
		select {
		case <-ctx.Done():
			t.Fatalf("never: %s", what)
		case <-tick.C:
		}
	}
}

// Law 2: the certificate of a lease that is over opens nothing, though nobody
// told the server.
func TestLaw2ExpiredCertificateIsRefused(t *testing.T) {
	i := mustOpen(t, newTarget(t, `{}`))
	s := serverFor(t, i)
	ample := issuertest.Ample(func() { mustRun(t, s, as(mint(t, i, user(s.User)), "true")) })
	l := issuertest.NewLease(ssh.Kind{}, user(s.User))
	l.NotAfter = l.NotBefore.Add(ample + 2*time.Second) // certificates count whole ones
	c, err := i.Mint(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	mustRun(t, s, as(c, "true"))
	people := &holders{}
	until(t, "the server refuses the certificate", func() bool { return people.login(t.Context(), s, c) != nil })
	if time.Now().Before(l.NotAfter.Add(-time.Second)) {
		t.Error("the server refused it before its end")
	}
	mustBeShutOut(t, s, as(c, "true"), "Certificate invalid: expired")
}

// A withdrawn lease's certificates, of every generation, are refused by a server
// that has the list; its neighbour's is not, and no list means no login at all.
func TestRevokedCertificateIsRefused(t *testing.T) {
	i := mustOpen(t, newTarget(t, `{}`))
	s := serverFor(t, i)
	l := issuertest.NewLease(ssh.Kind{}, user(s.User))
	var creds []issuers.Credential
	for range 2 {
		c, err := i.Mint(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		mustRun(t, s, as(c, "true"))
		creds = append(creds, c)
		l = issuertest.Regenerate(ssh.Kind{}, l)
	}
	other := mint(t, i, user(s.User))
	put(t, s, sshdtest.FileKRL, revocations(t, i, l))
	for _, c := range creds {
		mustBeShutOut(t, s, as(c, "true"), "revoked by file")
	}
	mustRun(t, s, as(other, "true"))
	put(t, s, sshdtest.FileKRL, append(revocations(t, i, l)[:40:40], "cut off"...))
	mustBeShutOut(t, s, as(other, "true"), "Error checking authentication key")
}

// The old key's certificates work and can be revoked while a CA rotates.
func TestRotation(t *testing.T) {
	old := newTarget(t, `{}`)
	rotated := newTarget(t, `{}`)
	rotated.Secrets = map[string]secret.Text{ssh.SecretKey: secret.New(rotated.Secrets[ssh.SecretKey].Reveal() + old.Secrets[ssh.SecretKey].Reveal())}
	before, after := mustOpen(t, old), mustOpen(t, rotated)
	s := serverFor(t, after)
	l := issuertest.NewLease(ssh.Kind{}, user(s.User))
	c, err := before.Mint(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	mustRun(t, s, as(c, "true"))
	mustRun(t, s, as(mint(t, after, user(s.User)), "true"))
	put(t, s, sshdtest.FileKRL, revocations(t, after, l))
	mustBeShutOut(t, s, as(c, "true"), "revoked by file")
}

// A host's certificate is no user's, even where both have one CA.
func TestHostCertificateIsNoLogin(t *testing.T) {
	i := mustOpen(t, newTarget(t, `{"types":["user","host"]}`))
	s := serverFor(t, i)
	c := mint(t, i, host("web.example"))
	put(t, s, sshdtest.FilePrincipals, []byte("web.example\n"))
	// OpenSSH's own client does not even offer it, so it is not the one to ask
	if (&holders{}).login(t.Context(), s, c) == nil {
		t.Error("a host certificate logs in")
	}
	mustSay(t, s, 0, "Certificate invalid: not a user certificate")
	// the same server and principal let in who has a user certificate
	if err := (&holders{}).login(t.Context(), s, mint(t, i, user("web.example"))); err != nil {
		t.Error(err)
	}
}

// A client that trusts the CA needs no fingerprint of a server whose host
// certificate it signed, and refuses it under another name.
func TestHostCertificate(t *testing.T) {
	i := mustOpen(t, newTarget(t, `{"types":["user","host"]}`))
	s := serverFor(t, i)
	l := issuertest.NewLease(ssh.Kind{}, host("web.example"))
	line, err := json.Marshal(string(xssh.MarshalAuthorizedKey(s.HostKey)))
	if err != nil {
		t.Fatal(err)
	}
	l.PublicKey = line
	hostCert, err := i.Mint(t.Context(), l)
	if err != nil || len(hostCert.Secret) > 0 {
		t.Fatalf("mint for the host's own key: %d secrets, %v", len(hostCert.Secret), err)
	}
	put(t, s, sshdtest.FileHostCert, []byte(hostCert.Public["certificate"]))
	s.Restart(t)
	login := as(mint(t, i, user(s.User)), "echo in")
	login.KnownHosts = "@cert-authority *.example " + string(published(t, i, "ca.pub"))
	login.Host = "web.example"
	if out := mustRun(t, s, login); out != "in" {
		t.Errorf("the command answers %q", out)
	}
	login.Host = "db.example"
	if out, err := s.Run(t.Context(), login); err == nil || !strings.Contains(out, "Certificate invalid: name is not a listed principal") {
		t.Errorf("under another name: %v\n%s", err, out)
	}
	login.Host = "web.example"
	login.KnownHosts = "@cert-authority *.example " + string(published(t, mustOpen(t, newTarget(t, `{}`)), "ca.pub"))
	if out, err := s.Run(t.Context(), login); err == nil || !strings.Contains(out, "Host key verification failed") {
		t.Errorf("with another CA: %v\n%s", err, out)
	}
}

// Another target's CA opens nothing here.
func TestAnotherCAIsRefused(t *testing.T) {
	i, stranger := mustOpen(t, newTarget(t, `{}`)), mustOpen(t, newTarget(t, `{}`))
	s := serverFor(t, i)
	mustBeShutOut(t, s, as(mint(t, stranger, user(s.User)), "true"), "CA ")
}

// A certificate is good for its own key alone.
func TestCertificateNeedsItsKey(t *testing.T) {
	i := mustOpen(t, newTarget(t, `{}`))
	s := serverFor(t, i)
	mine, theirs := mint(t, i, user(s.User)), mint(t, i, user(s.User))
	l := as(mine, "true")
	l.Certificate = theirs.Public["certificate"]
	if out, err := s.Run(t.Context(), l); err == nil {
		t.Errorf("a stolen certificate logs in: %s", out)
	}
	// nor does one whose principals somebody rewrote
	put(t, s, sshdtest.FilePrincipals, []byte("toor\n"))
	forged := as(mint(t, i, user("root")), "true")
	raw, err := base64.StdEncoding.DecodeString(strings.Fields(forged.Certificate)[1])
	if err != nil {
		t.Fatal(err)
	}
	forged.Certificate = "ssh-ed25519-cert-v01@openssh.com " + base64.StdEncoding.EncodeToString([]byte(strings.Replace(string(raw), "root", "toor", 1)))
	if out, err := s.Run(t.Context(), forged); err == nil {
		t.Errorf("a rewritten certificate logs in: %s", out)
	}
}

// HAZARDS 18: a receipt claims no more than is known, with and without a word
// about the servers.
func TestHazard18ReceiptsClaimNoRevocation(t *testing.T) {
	for _, c := range []struct {
		spec   string
		left   time.Duration
		want   string
		absent string
	}{
		{`{}`, 10 * time.Minute, "one that does not fetch the revocation list accepts the certificate until", "refuses"},
		{`{"krl":{"max_age":"60s"}}`, 10 * time.Minute, "one that fetches the revocation list within 1m0s, as the target's spec says of all, refuses the certificate from", "accepts"},
		{`{"krl":{"max_age":"60s"}}`, 30 * time.Second, "accepts the certificate until", "refuses"}, // it ends before the list bites
	} {
		i := mustOpen(t, newTarget(t, c.spec))
		l := issuertest.NewLease(ssh.Kind{}, user("ann"))
		l.NotAfter = l.NotBefore.Add(c.left)
		r := i.Withdraw(t.Context(), []issuers.Lease{l})[0].Receipt
		end := l.NotAfter.UTC().Truncate(time.Second).Format(time.RFC3339)
		if r.Proof != issuers.ProofExpiresOnly || !strings.Contains(r.Detail, c.want) || strings.Contains(r.Detail, c.absent) || !strings.Contains(r.Detail, end) || !strings.Contains(r.Detail, "no server was asked") {
			t.Errorf("%s, %s before its end: %+v", c.spec, c.left, r)
		}
	}
}

func BenchmarkMint(b *testing.B) {
	for _, c := range []struct {
		name, spec string
		key        json.RawMessage
	}{
		{"Ed25519-made-here", `{}`, nil},
		{"Ed25519", `{}`, jwk(b, benchKey(b))},
		{"P-256", `{"ca_algorithm":"ecdsa-p256"}`, jwk(b, benchKey(b))},
	} {
		b.Run(c.name, func(b *testing.B) {
			i := mustOpen(b, newTarget(b, c.spec))
			l := issuertest.NewLease(ssh.Kind{}, user("deploy"))
			l.MintDeadline, l.PublicKey = l.NotAfter, c.key
			b.ReportAllocs()
			for b.Loop() {
				if _, err := i.Mint(b.Context(), l); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func benchKey(b *testing.B) crypto.PublicKey {
	return newKey(b, elliptic.P256()).Public()
}

func BenchmarkPublishRevoked(b *testing.B) {
	for _, n := range []int{100, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			i := mustOpen(b, newTarget(b, `{}`))
			leases := make([]issuers.Lease, n)
			for k := range leases {
				leases[k] = issuertest.NewLease(ssh.Kind{}, user("ann"))
			}
			b.ReportAllocs()
			for b.Loop() {
				revocations(b, i, leases...)
			}
		})
	}
}
