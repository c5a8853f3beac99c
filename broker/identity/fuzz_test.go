package identity

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/secret"
)

// checkFault fails on an error that a caller could not act on.
func checkFault(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	fe, ok := err.(*fault.Error)
	if !ok || fe == nil || fe.Kind == fault.Internal || fe.Code == "" || fe.Detail == "" || len(fe.Detail) > 8<<10 {
		t.Fatalf("not an actionable error: %#v", err)
	}
}

// fixedKey is the same in every worker process, and signs the same each time:
// fuzzing is guided by coverage, and randomness looks like news to it.
func fixedKey() ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))
}

func FuzzProof(f *testing.F) {
	private := fixedKey()
	jkt, err := KeyThumbprint(private.Public())
	if err != nil {
		f.Fatal(err)
	}
	n := &Nonces{node: "n"} // of no randomness: seeds must be good in every worker
	sum := sha256.Sum256([]byte("t"))
	proof := forge(f, private, claims{"typ": typeProof, "alg": "EdDSA", "jwk": jwkOf(f, private.Public(), "", "", "")}, claims{
		"jti": "0123456789", "htm": "POST", "htu": external + path, "iat": noon.Unix(), "nonce": n.Current(noon),
		"ath": base64.RawURLEncoding.EncodeToString(sum[:]),
	})
	f.Add(proof, path)
	f.Add(proof, external+path)
	f.Add("e30.e30.AAAA", "/")
	f.Add("eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjpudWxsfQ.e30.", "/%")
	f.Fuzz(func(t *testing.T, text, target string) {
		v := newVerifier(t, n)
		got, err := v.Verify(text, "POST", target, secret.New("t"), noon)
		checkFault(t, err)
		// Nobody but the key's holder makes a proof: whatever passes is the
		// seed, byte for byte.
		if err == nil && (got != jkt || text != proof) {
			t.Fatalf("accepted %q", text)
		}
		_, err = v.VerifyForwarded(text, "GET", target, secret.Text{}, noon)
		checkFault(t, err)
		if err == nil {
			t.Fatalf("accepted %q for another method", text)
		}
	})
}

func FuzzToken(f *testing.F) {
	key := fixedKey()
	good := claims{"iss": "i", "aud": "a", "exp": noon.Add(time.Minute).Unix(), "sub": "s"}
	header := claims{"alg": "EdDSA", "kid": "k"}
	a := attestor(f, claims{
		"type": "jwt", "issuer": "i", "audience": "a", "jwks": claims{"keys": []any{jwkOf(f, key.Public(), "k", "", "")}},
		"require": claims{"sub": "s"}, "bind": []any{claims{"as": "workload:{sub}/{a.b.c}"}, claims{"when": claims{"x": 1}, "as": "agent:y", "instance": "sub"}},
	}, Deps{})
	// The payload is signed as it comes, so that fuzzing reaches past the
	// signature; the other seed is a token as text.
	f.Add(forge(f, key, header, good), asJSON(f, good))
	f.Add("a.b.c", []byte(`{"iss":"i","aud":["a"],"exp":1795348900,"a.b":{"c":"x"},"sub":"s","cnf":{"jkt":""}}`))
	f.Add("..", []byte(`{"iss":"i","iss":1}`))
	f.Add("", []byte(`[[[[]]]]`))
	f.Fuzz(func(t *testing.T, text string, payload []byte) {
		for _, token := range []string{text, forge(t, key, header, json.RawMessage(payload))} {
			got, err := attest(t, a, token, "")
			checkFault(t, err)
			if err != nil {
				continue
			}
			kind, name, _ := strings.Cut(got.Principal, ":")
			if (kind != "workload" && kind != "agent") || !safeName(name) || len(got.Facts) > maxFacts || got.OneShot == "" || !got.ExpiresAt.After(noon.Add(-time.Second)) {
				t.Fatalf("attested %+v", got)
			}
			for k, v := range got.Facts {
				if len(v) > maxFact || !printable(v) {
					t.Fatalf("fact %s = %q", k, v)
				}
			}
		}
	})
}

func FuzzEnrolToken(f *testing.F) {
	text := newEnrol(f, "n1.example:8700", "[::1]:1").Encode().Reveal()
	f.Add(text)
	f.Add(text[:50])
	f.Add("mfe_AQBI")
	f.Fuzz(func(t *testing.T, text string) {
		e, err := ParseEnrolToken(secret.New(text))
		checkFault(t, err)
		if err != nil {
			return
		}
		again := e.Encode().Reveal()
		if stripped := strings.Join(strings.Fields(text), ""); again != stripped {
			t.Fatalf("%q reads like %q", text, again)
		}
	})
}

func FuzzMethod(f *testing.F) {
	f.Add([]byte(contractSpec))
	f.Add([]byte(`{"type":"spiffe","trust_domain":"td","audience":["a"],"jwks":{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","use":"jwt-svid"}]},"bind":[{"when":{"path":"x"},"as":"agent:{path}"}]}`))
	f.Add([]byte(`{"type":"x509","ca":"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----","bind":[{"when":{"dns_suffix":"."},"as":"node:{cn}/{dns}"}]}`))
	f.Add([]byte(`{"type":"key","max_ttl":"1h"}`))
	f.Add([]byte(`{"type":"oidc","issuer":"https://i.example","audience":"a","console":{"client_id":"c","scopes":["openid","email"]},"bind":[{"when":{"sub":"x"},"as":"human:x"}]}`))
	f.Fuzz(func(t *testing.T, spec []byte) {
		m, err := ParseMethod("m", spec)
		checkFault(t, err)
		if err != nil {
			return
		}
		if m.MaxTTL <= 0 || m.MaxTTL > maxSessionTTL {
			t.Fatalf("session of %s", m.MaxTTL)
		}
		for _, r := range m.bind {
			if len(r.when) == 0 && len(m.require) == 0 {
				t.Fatalf("a rule for everybody: %s", spec)
			}
			if len(r.as.claims()) > 0 && len(m.require) == 0 {
				t.Fatalf("a template without require: %s", spec)
			}
		}
		// Nothing that parses may admit evidence without claims.
		if len(m.bind) > 0 {
			if b, ferr := m.bindClaims(object{}); ferr == nil {
				t.Fatalf("%s admits nobody in particular as %v", spec, b)
			}
		}
	})
}

func FuzzKeySet(f *testing.F) {
	f.Add([]byte(`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`), false)
	f.Add(asJSON(f, claims{"keys": []any{jwkOf(f, fixedKey().Public(), "k", "EdDSA", "sig")}}), true)
	f.Fuzz(func(t *testing.T, data []byte, spiffe bool) {
		set, err := parseKeySet(data, spiffe)
		if err != nil && len(set.keys) > 0 {
			t.Fatal("keys beside an error")
		}
		for _, k := range set.keys {
			if !fits(k.key, "ES256") && !fits(k.key, "EdDSA") && !fits(k.key, "RS256") {
				t.Fatalf("a key that fits nothing: %T", k.key)
			}
		}
	})
}
