package ssh

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	xssh "golang.org/x/crypto/ssh"

	"github.com/mayfly-broker/mayfly/secret"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/ssh/sshdtest"
	"github.com/mayfly-broker/mayfly/scope"
)

// readKRL is a reader of its own, by OpenSSH's PROTOCOL.krl and not by the
// writer: the serials of each CA, in order.
func readKRL(raw []byte) (version uint64, revoked map[string][]uint64, err error) {
	r := reader{rest: raw}
	revoked = map[string][]uint64{}
	if magic := string(r.take(8)); magic != "SSHKRL\n\x00" {
		return 0, nil, fmt.Errorf("magic %q", magic)
	}
	if v := r.u32(); v != 1 {
		return 0, nil, fmt.Errorf("format version %d", v)
	}
	version = r.u64()
	r.u64() // generated
	if flags := r.u64(); flags != 0 {
		return 0, nil, fmt.Errorf("flags %x", flags)
	}
	r.text() // reserved
	r.text() // comment
	for len(r.rest) > 0 && r.err == nil {
		if kind := r.take(1); r.err == nil && kind[0] != 1 {
			return 0, nil, fmt.Errorf("section %d", kind[0])
		}
		s := reader{rest: r.text()}
		ca := string(s.text())
		s.text() // reserved
		for len(s.rest) > 0 && s.err == nil {
			if kind := s.take(1); s.err == nil && kind[0] != 0x20 {
				return 0, nil, fmt.Errorf("section %x of certificates", kind[0])
			}
			list := reader{rest: s.text()}
			for len(list.rest) > 0 && list.err == nil {
				revoked[ca] = append(revoked[ca], list.u64())
			}
			s.err = errors.Join(s.err, list.err)
		}
		r.err = errors.Join(r.err, s.err)
	}
	return version, revoked, r.err
}

type reader struct {
	rest []byte
	err  error
}

func (r *reader) take(n int) []byte {
	if n > len(r.rest) {
		r.err, r.rest = fmt.Errorf("%d bytes are missing", n-len(r.rest)), nil
		return make([]byte, min(n, 8))
	}
	out := r.rest[:n]
	r.rest = r.rest[n:]
	return out
}

func (r *reader) u32() uint32  { return binary.BigEndian.Uint32(r.take(4)) }
func (r *reader) u64() uint64  { return binary.BigEndian.Uint64(r.take(8)) }
func (r *reader) text() []byte { return r.take(int(r.u32())) }

func caKeys(t testing.TB, n int) []xssh.PublicKey {
	t.Helper()
	var out []xssh.PublicKey
	for range n {
		out = append(out, opened(t).ca.keys...)
	}
	return out
}

func opened(t testing.TB) *issuer {
	t.Helper()
	secrets, err := Kind{}.MakeSecrets([]byte(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	i, err := Kind{}.Open(issuers.Target{Spec: []byte(`{}`), Secrets: secrets})
	if err != nil {
		t.Fatal(err)
	}
	return i.(*issuer)
}

// OpenSSH reads the list as it was meant: revoked what is in it, and nothing
// else.
func TestKRLAsOpenSSHReadsIt(t *testing.T) {
	i := opened(t)
	certs := map[string][]byte{}
	var leases []issuers.Lease
	for k := range 4 {
		l := issuertest.NewLease(Kind{}, scope.Scope{{Type: "ssh", Actions: []string{"user"}, Privileges: []string{"ann"}}})
		c, err := i.Mint(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		certs[fmt.Sprintf("%d-cert.pub", k)] = []byte(c.Public["certificate"])
		leases = append(leases, l)
	}
	docs, err := i.PublishRevoked(t.Context(), slices.Values(leases[:2]))
	if err != nil {
		t.Fatal(err)
	}
	certs["krl"] = docs["krl"]
	for k := range leases {
		name := fmt.Sprintf("%d-cert.pub", k)
		out, err := sshdtest.Keygen(t, certs, "-Q", "-f", "krl", name)
		if revoked := err != nil; revoked != (k < 2) {
			t.Errorf("certificate %d is revoked: %v\n%s", k, revoked, out)
		}
	}
	none, err := i.PublishRevoked(t.Context(), slices.Values([]issuers.Lease(nil)))
	if err != nil {
		t.Fatal(err)
	}
	certs["krl"] = none["krl"]
	if out, err := sshdtest.Keygen(t, certs, "-Q", "-f", "krl", "0-cert.pub"); err != nil {
		t.Errorf("an empty list: %v\n%s", err, out)
	}
}

// An entry stays until no server can accept its certificate any more, also one
// whose clock is behind, and whatever max_ttl is by then.
func TestEntriesDropOutAfterTheirEnd(t *testing.T) {
	i := opened(t)
	i.spec.maxTTL = time.Minute
	now := time.Now()
	var leases []issuers.Lease
	for _, end := range []time.Duration{-time.Hour, -keepRevoked - time.Second, -keepRevoked + time.Minute, -time.Second, time.Second, 5 * time.Hour} {
		l := issuertest.NewLease(Kind{}, nil)
		l.NotBefore, l.NotAfter = now.Add(-3*time.Hour), now.Add(end)
		leases = append(leases, l)
	}
	docs, err := i.PublishRevoked(t.Context(), slices.Values(leases))
	if err != nil {
		t.Fatal(err)
	}
	_, revoked, err := readKRL(docs["krl"])
	if err != nil {
		t.Fatal(err)
	}
	var want []uint64
	for _, l := range leases[2:] {
		want = append(want, serialNumber(l.ID))
	}
	slices.Sort(want)
	if got := revoked[string(i.ca.keys[0].Marshal())]; !slices.Equal(got, want) {
		t.Errorf("listed are %d, want %d", got, want)
	}
}

func TestKRLIsBounded(t *testing.T) {
	serials := make([]uint64, maxRevoked+1)
	for k := range serials {
		serials[k] = uint64(k) + 1
	}
	keys := caKeys(t, 1)
	if _, err := krl(keys, serials, time.Now()); err == nil {
		t.Error("too long a list is written")
	}
	if _, err := krl(keys, serials[1:], time.Now()); err != nil {
		t.Error(err)
	}
	if _, err := krl(keys, []uint64{0, 1}, time.Now()); err == nil {
		t.Error("the serial 0 is written")
	}
	// the last of a long list is found by OpenSSH too
	i := opened(t)
	l := issuertest.NewLease(Kind{}, scope.Scope{{Type: "ssh", Actions: []string{"user"}, Privileges: []string{"ann"}}})
	c, err := i.Mint(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	list, err := krl(i.ca.keys, append(serials[:10_000:10_000], serialNumber(l.ID)), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if out, err := sshdtest.Keygen(t, map[string][]byte{"krl": list, "c-cert.pub": []byte(c.Public["certificate"])}, "-Q", "-f", "krl", "c-cert.pub"); err == nil {
		t.Errorf("OpenSSH does not find it: %s", out)
	}
}

// The serial is pure, so a change of its derivation would part every ledger from
// its certificates.
func TestGoldenSerial(t *testing.T) {
	if got := serialNumber("01hzy3m8k2q4w6e8r0t2y4v6x8"); got != 2688848465390253995 {
		t.Errorf("the serial is %d", got)
	}
	if got, want := (Kind{}).CredentialName("01hzy3m8k2q4w6e8r0t2y4v6x8", 7), "mf-01hzy3m8k2q4w6e8r0t2y4v6x8-7"; got != want {
		t.Errorf("the name is %s, want %s", got, want)
	}
}

func FuzzKRL(f *testing.F) {
	f.Add([]byte{}, uint8(1), int64(1_700_000_000_000))
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 1, 255, 255, 255, 255, 255, 255, 255, 255}, uint8(2), int64(0))
	f.Add(make([]byte, 8), uint8(1), int64(1))
	pool := caKeys(f, maxKeys)
	f.Fuzz(func(t *testing.T, raw []byte, n uint8, ms int64) {
		keys := pool[:1+int(n)%maxKeys]
		var serials []uint64
		for len(raw) >= 8 {
			serials = append(serials, binary.BigEndian.Uint64(raw))
			raw = raw[8:]
		}
		list, err := krl(keys, serials, time.UnixMilli(ms))
		if slices.Contains(serials, 0) {
			if err == nil {
				t.Fatal("the serial 0 is written")
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		version, revoked, err := readKRL(list)
		if err != nil || version != uint64(ms) {
			t.Fatalf("version %d, %v", version, err)
		}
		want := slices.Compact(slices.Sorted(slices.Values(serials)))
		for _, k := range keys {
			if got := revoked[string(k.Marshal())]; !slices.Equal(got, want) {
				t.Fatalf("listed are %d, want %d", got, want)
			}
		}
		if len(revoked) > len(keys) {
			t.Fatalf("%d CAs listed", len(revoked))
		}
	})
}

// What a scope compiles to has a principal, one type, no options but those that
// are known, and survives OpenSSH's wire format.
func FuzzSpecAndScope(f *testing.F) {
	f.Add(`{}`, `[{"type":"ssh","actions":["user","permit-pty"],"privileges":["ann"],"locations":["10.0.0.0/8"],"identifier":"id"}]`)
	f.Add(`{"types":["user","host"],"principals":["web.example"]}`, `[{"type":"ssh","actions":["host"],"privileges":["web.example"]}]`)
	f.Add(`{"krl":{"max_age":"60s"}}`, `[{"type":"ssh","actions":["user"],"privileges":["a,b"]}]`)
	f.Add(`{}`, `[{"type":"ssh","actions":["user"],"privileges":["-x"],"locations":["::ffff:1.2.3.4/128"],"identifier":"*"}]`)
	f.Fuzz(func(t *testing.T, rawSpec, rawScope string) {
		sp, err := parseSpec([]byte(rawSpec))
		if err != nil {
			return
		}
		s, err := scope.Parse([]byte(rawScope))
		if err != nil {
			return
		}
		g, err := sp.compile(s)
		if err != nil {
			return
		}
		if len(g.principals) == 0 || g.certType != xssh.UserCert && g.certType != xssh.HostCert {
			t.Fatalf("%s compiles to %+v", s, g)
		}
		for _, p := range g.principals {
			for _, r := range p {
				if r == ',' || r == '*' || r == '?' || r == '!' || r <= ' ' || r > '~' {
					t.Fatalf("the principal %q", p)
				}
			}
		}
		for o := range g.critical {
			if o != "source-address" && o != "force-command" || g.certType == xssh.HostCert {
				t.Fatalf("the critical option %q", o)
			}
		}
		for e := range g.extensions {
			known := slices.ContainsFunc(slices.Collect(values(permissions)), func(k string) bool { return k == e })
			if !known || g.certType == xssh.HostCert {
				t.Fatalf("the extension %q", e)
			}
		}
	})
}

func values(m map[string]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for _, v := range m {
			if !yield(v) {
				return
			}
		}
	}
}

func FuzzHolderKey(f *testing.F) {
	f.Add([]byte(`{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`))
	f.Add([]byte(`"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINdamAGCsQq31Uv+08lkBzoO4XLz2qYjJa8CGmj3B1Ea ann"`))
	f.Add([]byte(`{"kty":"oct","k":"AAAA"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		key, err := holderKey(raw)
		if err != nil {
			return
		}
		if again, err := xssh.ParsePublicKey(key.Marshal()); err != nil || again.Type() != key.Type() {
			t.Fatalf("a key of type %s is not read again: %v", key.Type(), err)
		}
	})
}

// The secret is read without being quoted, whatever stands in it.
func FuzzCA(f *testing.F) {
	f.Add("-----BEGIN PRIVATE KEY-----\nYWJj\n-----END PRIVATE KEY-----\n")
	f.Add("-----BEGIN OPENSSH PRIVATE KEY-----\nYWJj\n-----END OPENSSH PRIVATE KEY-----\nx")
	f.Fuzz(func(t *testing.T, text string) {
		ca, err := readCA(secret.New(text), algEd25519)
		if err == nil && (ca.signer == nil || len(ca.keys) == 0) {
			t.Fatal("an opened CA that cannot sign")
		}
	})
}
