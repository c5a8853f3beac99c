package identity

import (
	"crypto/x509"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/client/keys"
	"github.com/mayfly-broker/mayfly/secret"
)

const ownIssuer = "https://broker.example"

// registry is a set of registered keys.
func registry(entries map[string]string) Deps {
	return Deps{Issuer: ownIssuer, LookupKey: func(jkt string) (string, bool) {
		p, ok := entries[jkt]
		return p, ok
	}}
}

func TestAssertionsOfTheClientLibraryAreAccepted(t *testing.T) {
	for _, alg := range []keys.Algorithm{keys.P256, keys.Ed25519} {
		registered, err := keys.Generate(alg)
		if err != nil {
			t.Fatal(err)
		}
		session := newClientKey(t)
		a := attestor(t, claims{"type": "key", "max_ttl": "5m"}, registry(map[string]string{registered.Thumbprint(): "agent:coder"}))
		for name, bound := range map[string]string{"the same key": "", "another key": session.Thumbprint()} {
			token, err := registered.Assertion(ownIssuer, "agent:coder", bound, noon)
			if err != nil {
				t.Fatal(err)
			}
			jkt := bound
			if jkt == "" {
				jkt = registered.Thumbprint()
			}
			got, err := attest(t, a, token, jkt)
			if err != nil || got.Principal != "agent:coder" || !got.AttestedKey || got.Facts["key"] != registered.Thumbprint() {
				t.Errorf("%s %s: %+v, %v", alg, name, got, err)
			}
			if got.OneShot == "" || !got.OneShotUntil.Equal(noon.Add(keys.AssertionLife+clockSkew)) || !got.ExpiresAt.Equal(noon.Add(5*time.Minute)) {
				t.Errorf("%s %s: one-shot %q until %s, session until %s", alg, name, got.OneShot, got.OneShotUntil, got.ExpiresAt)
			}
		}
		cert, err := registered.Certificate("coder", noon, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		token, err := registered.Assertion(ownIssuer, "agent:coder", "", noon)
		if err != nil {
			t.Fatal(err)
		}
		ev := Evidence{Method: "m", Token: secret.New(token), PeerCerts: []*x509.Certificate{cert.Leaf}}
		if got, err := a.Attest(t.Context(), ev, noon); err != nil || !got.AttestedKey {
			t.Errorf("%s over mutual TLS: %v", alg, err)
		}
	}
}

// HAZARDS 3: an assertion taken from a log or a proxy opens nothing for
// whoever has another key.
func TestHazard3StolenAssertionIsRefusedForAnotherKey(t *testing.T) {
	registered, thief := newClientKey(t), newClientKey(t)
	a := attestor(t, claims{"type": "key"}, registry(map[string]string{registered.Thumbprint(): "agent:coder"}))
	for _, bound := range []string{"", newClientKey(t).Thumbprint()} {
		token, err := registered.Assertion(ownIssuer, "agent:coder", bound, noon)
		if err != nil {
			t.Fatal(err)
		}
		for _, jkt := range []string{"", thief.Thumbprint()} {
			_, err := attest(t, a, token, jkt)
			wantCode(t, fmt.Sprintf("bound %q, client %q", bound, jkt), err, CodeKeyBinding)
		}
	}
}

func TestBadAssertionsAreRefused(t *testing.T) {
	key := newP256(t)
	jkt, err := KeyThumbprint(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	a := attestor(t, claims{"type": "key"}, registry(map[string]string{jkt: "agent:coder"}))
	header := claims{"typ": typeAssertion, "alg": "ES256", "jwk": jwkOf(t, key.Public(), "", "", "")}
	body := claims{"iss": "agent:coder", "sub": "agent:coder", "aud": ownIssuer, "jti": "0123456789", "iat": noon.Unix(), "exp": noon.Add(time.Minute).Unix()}
	stranger := newP256(t)
	for name, c := range map[string]struct {
		key          any
		header, body claims
		code         string
	}{
		"good":                   {key, header, body, ""},
		"aud a list of one":      {key, header, body.with("aud", []any{ownIssuer}), ""},
		"aud the token endpoint": {key, header, body.with("aud", ownIssuer+"/oauth/token"), CodeAudience},
		"aud with the endpoint":  {key, header, body.with("aud", []any{ownIssuer, ownIssuer + "/oauth/token"}), CodeAudience},
		"aud twice":              {key, header, body.with("aud", []any{ownIssuer, ownIssuer}), CodeAudience},
		"aud with a slash":       {key, header, body.with("aud", ownIssuer+"/"), CodeAudience},
		"no aud":                 {key, header, body.with("aud", nil), CodeAudience},
		"typ JWT":                {key, header.with("typ", "JWT"), body, CodeTokenType},
		"no typ":                 {key, header.with("typ", nil), body, CodeTokenType},
		"typ of a proof":         {key, header.with("typ", typeProof), body, CodeTokenType},
		"alg none":               {nil, header.with("alg", "none"), body, CodeAlgorithm},
		"no key":                 {key, header.with("jwk", nil), body, CodeTokenMalformed},
		"jku":                    {key, header.with("jku", "https://evil.example"), body, CodeTokenMalformed},
		"signed by another":      {stranger, header, body, CodeSignature},
		"not registered":         {stranger, header.with("jwk", jwkOf(t, stranger.Public(), "", "", "")), body, CodePrincipal},
		"another principal":      {key, header, body.with("iss", "human:ann").with("sub", "human:ann"), CodePrincipal},
		"another subject":        {key, header, body.with("sub", "human:ann"), CodePrincipal},
		"no issuer":              {key, header, body.with("iss", nil), CodePrincipal},
		"no jti":                 {key, header, body.with("jti", nil), CodeTokenMalformed},
		"no exp":                 {key, header, body.with("exp", nil), CodeLifetime},
		"valid for an hour":      {key, header, body.with("exp", noon.Add(time.Hour).Unix()), CodeLifetime},
		"expired":                {key, header, body.with("exp", noon.Add(-time.Minute).Unix()), CodeExpired},
		"of the future":          {key, header, body.with("iat", noon.Add(time.Minute).Unix()), CodeNotYetValid},
		"cnf of another":         {key, header, body.with("cnf", claims{"jkt": "x"}), CodeKeyBinding},
		"too long":               {key, header, body.with("x", strings.Repeat("a", maxProof)), CodeTokenMalformed},
	} {
		_, err := attest(t, a, forge(t, c.key, c.header, c.body), jkt)
		wantCode(t, name, err, c.code)
	}
	_, err = attest(t, a, "", jkt)
	wantCode(t, "nothing", err, CodeEvidenceMissing)
}

// A replayed jti has the same name in the log, whatever else differs.
func TestReplayedAssertionHasOneName(t *testing.T) {
	key := newP256(t)
	jkt, err := KeyThumbprint(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	a := attestor(t, claims{"type": "key"}, registry(map[string]string{jkt: "agent:coder"}))
	header := claims{"typ": typeAssertion, "alg": "ES256", "jwk": jwkOf(t, key.Public(), "", "", "")}
	names := map[string]bool{}
	for _, jti := range []string{"0123456789", "0123456789", "9876543210"} {
		body := claims{"iss": "agent:coder", "sub": "agent:coder", "aud": ownIssuer, "jti": jti, "exp": noon.Add(time.Duration(20+len(names)) * time.Second).Unix()}
		got, err := attest(t, a, forge(t, key, header, body), jkt)
		if err != nil {
			t.Fatal(err)
		}
		names[got.OneShot] = true
	}
	if len(names) != 2 {
		t.Errorf("two jti have %d names", len(names))
	}
}

func TestMethodsThatThisNodeCannotServe(t *testing.T) {
	for name, c := range map[string]struct {
		spec claims
		deps Deps
	}{
		"key without registry":   {claims{"type": "key"}, Deps{Issuer: ownIssuer}},
		"key without issuer":     {claims{"type": "key"}, Deps{LookupKey: func(string) (string, bool) { return "", false }}},
		"enroll":                 {claims{"type": "enroll"}, Deps{}},
		"oidc without network":   {claims{"type": "oidc", "issuer": "https://idp.example", "audience": "a", "bind": []any{claims{"when": claims{"sub": "x"}, "as": "workload:x"}}}, Deps{}},
		"x509 with a file":       {claims{"type": "x509", "ca_file": "ca.pem", "bind": []any{claims{"when": claims{"cn": "x"}, "as": "workload:x"}}}, Deps{}},
		"x509 with a bad file":   {claims{"type": "x509", "ca_file": "ca.pem", "bind": []any{claims{"when": claims{"cn": "x"}, "as": "workload:x"}}}, Deps{ReadFile: func(string) ([]byte, error) { return []byte("x"), nil }}},
		"x509 with a lost file":  {claims{"type": "x509", "ca_file": "ca.pem", "bind": []any{claims{"when": claims{"cn": "x"}, "as": "workload:x"}}}, Deps{ReadFile: func(string) ([]byte, error) { return nil, fmt.Errorf("no") }}},
		"spiffe with a key file": {claims{"type": "spiffe", "trust_domain": "td", "audience": "a", "jwks_file": "x", "bind": []any{claims{"when": claims{"path": "x"}, "as": "workload:x"}}}, Deps{}},
	} {
		_, err := NewAttestor(parse(t, c.spec), c.deps)
		wantCode(t, name, err, CodeMethodUnusable)
	}
	_, err := NewAttestor(Method{}, Deps{})
	wantCode(t, "the zero method", err, CodeMethodUnusable)
}
