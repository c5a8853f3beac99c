package cosign_test

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/broker/cosign/cosigntest"
)

// RFC 8037 §A.3 for Ed25519; RFC 7515 §A.3's key, in any order and spacing.
func TestThumbprintOfRFC7638(t *testing.T) {
	for _, c := range []struct{ jwk, want string }{
		{`{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`, "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"},
		{`{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}`, "oKIywvGUpTVTyxMQ3bwIIeQUudfr_CkLMjCE19ECD-U"},
		{" { \"y\" : \"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0\",\n\"\\u0078\":\"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU\", \"kty\":\"EC\",\"crv\":\"P-256\"}", "oKIywvGUpTVTyxMQ3bwIIeQUudfr_CkLMjCE19ECD-U"},
	} {
		got, err := cosign.Thumbprint(json.RawMessage(c.jwk))
		if err != nil || got != c.want {
			t.Errorf("%s: %s, %v; wanted %s", c.jwk, got, err, c.want)
		}
	}
}

func TestWhatIsNoKeyIsRefused(t *testing.T) {
	const x, y = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"
	ec := func(x, y, more string) string {
		return fmt.Sprintf(`{"kty":"EC","crv":"P-256","x":"%s","y":"%s"%s}`, x, y, more)
	}
	for _, c := range []struct{ jwk, want string }{
		{ec(x, y, `,"d":"870MB6gfuTJ4HtUnUvYMyJpr5eUZNP4Bk43bVdj3eAE"`), "exactly the members"},
		{ec(x, y, `,"kid":"1"`), "exactly the members"},
		{ec(x, y, `,"x":"`+x+`"`), "two members"},
		{ec(x, x, ``), "no point of P-256"},
		{ec("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", ``), "no point of P-256"},
		{ec(x+"=", y, ``), "JWK's x is not 32 bytes"},
		{ec(x, y+`\n`, ``), "JWK's y is not 32 bytes"},
		{ec(x, loosen(y), ``), "JWK's y is not 32 bytes"},
		{ec(strings.NewReplacer("_", "/", "-", "+").Replace(x), strings.NewReplacer("_", "/").Replace(y), ``), "JWK's y is not 32 bytes"},
		{ec("AA"+x, y, ``), "JWK's x is not 32 bytes"},
		{ec("", y, ``), "JWK's x is not 32 bytes"},
		{ec(`\"`+x+`\"`, y, ``), "JWK's x is not 32 bytes"},
		{`{"kty":"EC","crv":"P-256","x":1,"y":2}`, "missing or no text"},
		{`{"kty":"EC","crv":"P-256","x":"` + x + `","z":"` + y + `"}`, "y is missing"},
		{`{"kty":"EC","crv":"P-384","x":"` + x + `","y":"` + y + `"}`, "its crv is"},
		{`{"kty":"EC","crv":"secp256k1","x":"` + x + `","y":"` + y + `"}`, "its crv is"},
		{`{"kty":"OKP","crv":"X25519","x":"` + x + `"}`, "its crv is"},
		{`{"kty":"OKP","crv":"P-256","x":"` + x + `","y":"` + y + `"}`, "exactly the members"},
		{`{"kty":"RSA","n":"AQAB","e":"AQAB"}`, "kty is \"RSA\""},
		{`{"kty":"oct","k":"AAAA"}`, "kty is \"oct\""},
		{`{}`, "kty is missing"},
		{`[]`, "not an object"},
		{`"x"`, "not an object"},
		{``, "not an object"},
		{`{"kty":"EC"` + strings.Repeat(" ", 512) + `}`, "at most 512"},
	} {
		t.Run(c.want, func(t *testing.T) {
			_, err := cosign.Thumbprint(json.RawMessage(c.jwk))
			refused(t, err, c.want)
		})
	}
}

// Points of small order, and bytes that are no point or another's second
// encoding. The first eight are every point whose order divides 8.
func TestEd25519KeysOfNobodyAreRefused(t *testing.T) {
	for _, bad := range []string{
		"0100000000000000000000000000000000000000000000000000000000000000",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"0000000000000000000000000000000000000000000000000000000000000000",
		"0000000000000000000000000000000000000000000000000000000000000080",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
		"0100000000000000000000000000000000000000000000000000000000000080", // x = -0
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // y = p + 1
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // y = p
		"ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
		"0200000000000000000000000000000000000000000000000000000000000000", // no point
	} {
		b, err := hex.DecodeString(bad)
		if err != nil {
			t.Fatal(err)
		}
		_, err = cosign.Thumbprint(json.RawMessage(`{"kty":"OKP","crv":"Ed25519","x":"` + base64.RawURLEncoding.EncodeToString(b) + `"}`))
		refused(t, err, "no point of Ed25519")
	}
	// Keys that people have are none of these.
	for range 50 {
		if err := cosigntest.New(cosign.KindSSH).Key().Check(); err != nil {
			t.Error(err)
		}
	}
}

func TestKeysAreCheckedForTheirKind(t *testing.T) {
	change := func(variant string, f func(*cosign.Key)) cosign.Key {
		k := seeded(variant).Key()
		f(&k)
		return k
	}
	type K = *cosign.Key
	for _, c := range []struct {
		k    cosign.Key
		want string
	}{
		{change("jws", func(k K) { k.Kind = "pgp" }), "kind is 'pgp'"},
		{change("jws", func(k K) { k.Kind = "" }), "kind is ''"},
		{change("jws", func(k K) { k.RPID = "a" }), "only a passkey"},
		{change("jws", func(k K) { k.CredentialID = []byte{1} }), "only a passkey"},
		{change("ssh", func(k K) { k.Origins = []string{"https://a"} }), "only a passkey"},
		{change("jws", func(k K) { k.SSHType = "ssh-ed25519" }), "only an SSH key"},
		{change("passkey", func(k K) { k.Application = "ssh:" }), "only an SSH key"},
		{change("passkey", func(k K) { k.CredentialID = nil }), "1 to 1023 bytes"},
		{change("passkey", func(k K) { k.CredentialID = make([]byte, 1024) }), "1 to 1023 bytes"},
		{change("passkey", func(k K) { k.Origins = nil }), "1 to 16 origins"},
		{change("passkey", func(k K) { k.Origins = make([]string, 17) }), "1 to 16 origins"},
		{change("passkey", func(k K) { k.Origins = []string{"https://a", "https://a"} }), "comes twice"},
		{change("ssh", func(k K) { k.SSHType = "ssh-rsa" }), "type is 'ssh-rsa'"},
		{change("ssh", func(k K) { k.SSHType = "" }), "type is ''"},
		{change("ssh", func(k K) { k.SSHType = "ecdsa-sha2-nistp256" }), "is a P-256 key"},
		{change("ssh ecdsa", func(k K) { k.SSHType = "ssh-ed25519" }), "is an Ed25519 key"},
		{change("ssh ecdsa", func(k K) { k.SSHType = "sk-ssh-ed25519@openssh.com" }), "is an Ed25519 key"},
		{change("ssh", func(k K) { k.Application = "ssh:" }), "only an SSH key of an sk- type"},
		{change("ssh ed25519-sk", func(k K) { k.Application = "" }), "begins with"},
		{change("ssh ed25519-sk", func(k K) { k.Application = "https://a" }), "begins with"},
		{change("ssh ed25519-sk", func(k K) { k.Application = "ssh:\n" }), "begins with"},
		{change("ssh ed25519-sk", func(k K) { k.Application = "ssh:" + strings.Repeat("a", 252) }), "begins with"},
	} {
		t.Run(c.want, func(t *testing.T) { refused(t, c.k.Check(), c.want) })
	}
	for _, host := range []string{"", ".", "a.", ".a", "a..b", "-a", "a-", "A.example", "a_b", "a b", "10.0.0.1", "1", "0x7f.0x1", "é", strings.Repeat("a", 64), strings.Repeat("a.", 127) + "a"} {
		t.Run(host, func(t *testing.T) {
			refused(t, change("passkey", func(k K) { k.RPID = host }).Check(), "rp_id is a host name")
			refused(t, change("passkey", func(k K) { k.Origins = []string{"https://" + host} }).Check(), "an origin is")
		})
	}
	for _, host := range []string{"localhost", "broker.example", "a-b.example", "xn--nxasmq6b.example", "1.example", "a"} {
		if err := change("passkey", func(k K) { k.RPID, k.Origins = host, []string{"https://" + host} }).Check(); err != nil {
			t.Error(err)
		}
	}
}

func TestOriginsAreAsBrowsersWriteThem(t *testing.T) {
	for origin, good := range map[string]bool{
		"https://broker.example":        true,
		"https://broker.example:8443":   true,
		"https://localhost:8443":        true,
		"http://localhost":              true,
		"http://localhost:8080":         true,
		"https://broker.example:443":    false,
		"http://localhost:80":           false,
		"http://broker.example":         false,
		"http://localhost.example":      false,
		"https://broker.example/":       false,
		"https://broker.example:":       false,
		"https://broker.example:0":      false,
		"https://broker.example:08":     false,
		"https://broker.example:65536":  false,
		"https://broker.example:+8":     false,
		"https://u@broker.example":      false,
		"https://broker.example:8443/a": false,
		"https://broker.example?":       false,
		"https://*.example":             false,
		"HTTPS://broker.example":        false,
		"https://Broker.example":        false,
		"https://[::1]":                 false,
		"https:broker.example":          false,
		"android:apk-key-hash:abc":      false,
		"null":                          false,
		"":                              false,
	} {
		k := seeded(cosign.KindPasskey).Key()
		k.Origins = []string{origin}
		if err := k.Check(); (err == nil) != good {
			t.Errorf("%s: %v", origin, err)
		}
	}
}

// Seeded people are the same ones each time, and sign with the same bytes; new
// ones never are.
func TestSeededPeopleAreTheSame(t *testing.T) {
	for _, v := range cosigntest.Variants() {
		a, b, c := cosigntest.Seeded(v, "a"), cosigntest.Seeded(v, "a"), cosigntest.New(v)
		if a.Thumbprint() != b.Thumbprint() || !equal(a.Sign(domain, hash), b.Sign(domain, hash)) {
			t.Errorf("%s: two people of one seed differ", v)
		}
		if d := cosigntest.New(v); c.Thumbprint() == d.Thumbprint() {
			t.Errorf("%s: two new people have one key", v)
		}
	}
}
