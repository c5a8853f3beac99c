package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/client/keys"
	"github.com/mayfly-broker/mayfly/secret"
)

func TestSessionTokens(t *testing.T) {
	seen := map[TokenHash]bool{}
	for range 100 {
		token, hash := MintSession()
		text := token.Reveal()
		if len(text) != len(SessionPrefix)+43 || !strings.HasPrefix(text, "mfs_") || hash != sha256.Sum256([]byte(text)) || seen[hash] {
			t.Fatalf("minted a token of %d characters", len(text))
		}
		seen[hash] = true
		got, err := HashSession(token)
		if err != nil || got != hash {
			t.Fatalf("hash %x, %v", got, err)
		}
	}
	token, _ := MintSession()
	text := token.Reveal()
	for _, bad := range []string{"", "mfs_", text[1:], text[:len(text)-1], text + "A", "mfe_" + text[4:], strings.ToUpper(text), text[:20] + "\n" + text[21:], text[:20] + "+" + text[21:], "hvs." + text[4:]} {
		_, err := HashSession(secret.New(bad))
		wantCode(t, bad, err, CodeSessionToken)
	}
}

func TestCertificateBinding(t *testing.T) {
	mine, other := newClientCert(t), newClientCert(t)
	bound := CertThumbprint(mine)
	if bound != keys.CertificateThumbprint(mine) {
		t.Error("client and broker compute another thumbprint")
	}
	for name, c := range map[string]struct {
		peers []*x509.Certificate
		bound string
		want  bool
	}{
		"the same":         {[]*x509.Certificate{mine}, bound, true},
		"another":          {[]*x509.Certificate{other}, bound, false},
		"second in chain":  {[]*x509.Certificate{other, mine}, bound, false},
		"no certificate":   {nil, bound, false},
		"no binding":       {[]*x509.Certificate{mine}, "", false},
		"neither":          {nil, "", false},
		"nil certificate":  {[]*x509.Certificate{nil}, "", false},
		"a cut thumbprint": {[]*x509.Certificate{mine}, bound[:42], false},
	} {
		if got := CertMatches(c.peers, c.bound); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if SameThumbprint("", "") || !SameThumbprint("a", "a") || SameThumbprint("a", "b") {
		t.Error("SameThumbprint is wrong")
	}
}

func newEnrol(t testing.TB, addresses ...string) EnrolToken {
	t.Helper()
	e, err := NewEnrolToken(sha256.Sum256([]byte("ca")), addresses)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestEnrolTokensSurviveAPaste(t *testing.T) {
	for _, addresses := range [][]string{
		{"127.0.0.1:8700"}, {"n1.example:8700", "n2.example:8700", "[::1]:8700"},
		slices.Repeat([]string{strings.Repeat("a", 249) + ":65535"}, maxAddresses),
	} {
		e := newEnrol(t, addresses...)
		text := e.Encode().Reveal()
		for name, pasted := range map[string]string{
			"plain": text, "with spaces around": " \t" + text + "\r\n", "wrapped": text[:40] + "\r\n  " + text[40:],
		} {
			got, err := ParseEnrolToken(secret.New(pasted))
			if err != nil || got.Secret != e.Secret || got.CAHash != e.CAHash || !slices.Equal(got.Addresses, addresses) || got.Hash() != e.Hash() {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	a, b := newEnrol(t, "h:1"), newEnrol(t, "h:1")
	if a.Secret == b.Secret || a.Hash() == b.Hash() {
		t.Error("two tokens have one secret")
	}
	moved := a
	moved.Addresses = []string{"evil.example:1"}
	if moved.Hash() == a.Hash() {
		t.Error("a token with another address has the same hash")
	}
}

func TestBrokenPastesAreNamed(t *testing.T) {
	e := newEnrol(t, "n1.example:8700", "n2.example:8700")
	text := e.Encode().Reveal()
	for cut := len(EnrolPrefix); cut < len(text); cut++ {
		_, err := ParseEnrolToken(secret.New(text[:cut]))
		wantCode(t, "cut", err, CodeEnrolTruncated)
	}
	for at := len(EnrolPrefix) + 8; at < len(text); at++ {
		other := byte('A')
		if text[at] == 'A' {
			other = 'B'
		}
		_, err := ParseEnrolToken(secret.New(text[:at] + string(other) + text[at+1:]))
		wantCode(t, "changed", err, CodeEnrolCorrupt)
	}
	for bad, code := range map[string]string{
		"": CodeEnrolInvalid, "mfs_" + text[4:]: CodeEnrolInvalid, text[1:]: CodeEnrolInvalid, "mfe_AgAA" + text[8:]: CodeEnrolInvalid,
		text + "AAAA": CodeEnrolCorrupt, text + text: CodeEnrolCorrupt, "mfe_AQAA": CodeEnrolCorrupt, "mfe_!!!!": CodeEnrolCorrupt,
		strings.Repeat("mfe_", maxEnrolText): CodeEnrolInvalid,
	} {
		_, err := ParseEnrolToken(secret.New(bad))
		wantCode(t, bad[:min(len(bad), 12)], err, code)
	}
}

func TestEnrolTokensCarryAddressesOnly(t *testing.T) {
	for _, bad := range [][]string{
		nil, {""}, {"host"}, {"host:"}, {":1"}, {"host:0"}, {"host:70000"}, {"host:01"}, {"host:http"}, {"a b:1"}, {"https://h:1"}, {"u@h:1"}, {"[zz::]:1"}, {"h\n:1"},
		{strings.Repeat("a", 260) + ":1"}, slices.Repeat([]string{"h:1"}, maxAddresses+1),
	} {
		if _, err := NewEnrolToken([32]byte{}, bad); !errors.Is(err, &fault.Error{Kind: fault.Invalid, Code: CodeEnrolInvalid}) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// Law 6: an enrolment token does not print its secret by accident.
func TestLaw6EnrolTokenTextIsSecret(t *testing.T) {
	e := newEnrol(t, "h:1")
	if got := e.Encode().String(); got != secret.Redacted {
		t.Errorf("printed %q", got)
	}
}

func TestURLsAreComparedNormalised(t *testing.T) {
	x, err := parseExternals([]string{"https://Broker.Example:443/base/", "https://[::1]:8700"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		htu, target string
		want        bool
	}{
		{"https://broker.example/base/a", "/a", true},
		{"HTTPS://BROKER.example:443/base/a", "/a", true},
		{"https://broker.example:0443/base/a", "/a", true},
		{"https://broker.example/base/%7Ea", "/~a", true},
		{"https://broker.example/base/~a", "/%7ea", true},
		{"https://broker.example/base/%e4", "/%E4", true},
		{"https://broker.example/base/a?x#y", "/a", true},
		{"https://broker.example/base/a", "https://broker.example/base/a?q", true},
		{"https://[::1]:8700/a", "/a", true},
		{"https://[::1]:8700", "/", true},
		{"https://broker.example/a", "/a", false},
		{"https://broker.example/basement/a", "https://broker.example/basement/a", false},
		{"https://broker.example/base/a", "https://[::1]:8700/a", false},
		{"https://[::1]:8700/a/", "/a", false},
		{"https://[::1]:8700//a", "/a", false},
		{"https://[::1]:8700/a%2Fb", "/a/b", false},
		{"https://[::1]:8700/a", "a", false},
		{"https://[::1]:8700/a/../a", "/a/../a", false},
		{"https://[::1]:8700/%2e%2e/a", "/%2e%2e/a", false},
		{"https://[::1]:8700/a%zz", "/a%zz", false},
		{"https://[::1]:8700/a\\b", "/a\\b", false},
		{"https:/a", "/a", false},
		{"https://:8700/a", "/a", false},
		{"https://[::1]:99999/a", "/a", false},
	} {
		if err := x.match(c.htu, c.target); (err == nil) != c.want {
			t.Errorf("%s for %s: %v", c.htu, c.target, err)
		}
	}
}
