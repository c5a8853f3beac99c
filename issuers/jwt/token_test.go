package jwt_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/jwt"
)

// holderKey is the key of RFC 7638 §3.1, whose thumbprint stands in the RFC.
const (
	holderKey = `{"kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMs` +
		`tn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbI` +
		`SD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw","e":"AQAB"}`
	holderJKT = "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
)

func goldenLease() issuers.Lease {
	start := time.Date(2026, 3, 1, 12, 0, 0, 999_000_000, time.UTC)
	l := issuers.Lease{
		ID: "01hzy3m8k2q4w6e8r0t2y4v6x8", Generation: 3,
		Principal: "human:ann", Chain: []string{"agent:coder", "workload:ci"}, TaskID: "01hzy3m8k2q4w6e8r0t2y4task",
		Scope:     grant([]string{"https://api.example/users", audience}, "write", "read"),
		NotBefore: start, NotAfter: start.Add(15 * time.Minute), MintDeadline: start.Add(24 * 365 * time.Hour),
		PublicKey: json.RawMessage(holderKey),
	}
	l.Name = jwt.Kind{}.CredentialName(l.ID, l.Generation)
	return l
}

// part decodes a part of a compact JWS: 0 is the header, 1 the payload.
func part(t *testing.T, token string, n int) string {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("%d parts", len(parts))
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[n])
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

const goldenClaims = `{"iss":"https://mayfly.example:8700","sub":"human:ann",` +
	`"aud":["https://api.example/orders","https://api.example/users"],"client_id":"agent:coder",` +
	`"iat":1772366400,"nbf":1772366400,"exp":1772367300,"jti":"mf-01hzy3m8k2q4w6e8r0t2y4v6x8-3",` +
	`"scope":"read write","task":"01hzy3m8k2q4w6e8r0t2y4task",` +
	`"act":{"sub":"agent:coder","act":{"sub":"workload:ci"}},"cnf":{"jkt":"` + holderJKT + `"},` +
	`"authorization_details":[{"type":"jwt","locations":["https://api.example/orders","https://api.example/users"],` +
	`"actions":["use"],"privileges":["read","write"]}]}`

func TestGoldenClaims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // the bubble's clock starts in 2000
		l := goldenLease()
		time.Sleep(time.Until(l.NotBefore))
		target := newTarget(t, `{}`)
		i := mustOpen(t, target)
		c, err := i.Mint(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		if got := part(t, tokenOf(c), 1); got != goldenClaims {
			t.Errorf("claims\n%s\nwant\n%s", got, goldenClaims)
		}
		kid := published(t, i).Keys[0].KeyID
		if got, want := part(t, tokenOf(c), 0), `{"alg":"ES256","kid":"`+kid+`","typ":"at+jwt"}`; got != want {
			t.Errorf("header %s, want %s", got, want)
		}
		if c.Public["token_type"] != "DPoP" || c.Public["expires_at"] != "2026-03-01T12:15:00Z" || c.Public["jti"] != l.Name {
			t.Errorf("public fields %v", c.Public)
		}
		bare := l
		bare.Chain, bare.PublicKey, bare.Scope = nil, nil, grant([]string{audience})
		if c, err = i.Mint(t.Context(), bare); err != nil {
			t.Fatal(err)
		}
		got := part(t, tokenOf(c), 1)
		for _, absent := range []string{`"act"`, `"cnf"`, `"scope"`} {
			if strings.Contains(got, absent) {
				t.Errorf("claims have %s: %s", absent, got)
			}
		}
		if !strings.Contains(got, `"aud":"`+audience+`"`) || !strings.Contains(got, `"client_id":"human:ann"`) {
			t.Errorf("claims %s", got)
		}
	})
}

// HAZARDS 9: a retried token says the same, to the same key; a re-mint differs
// in its jti alone.
func TestHazard9RetriesSayTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := goldenLease()
		time.Sleep(time.Until(l.NotBefore))
		i := mustOpen(t, newTarget(t, `{"alg":"EdDSA"}`))
		var payloads []string
		for _, generation := range []uint64{3, 3, 4} {
			l.Generation = generation
			l.Name = jwt.Kind{}.CredentialName(l.ID, generation)
			c, err := i.Mint(t.Context(), l)
			if err != nil {
				t.Fatal(err)
			}
			payloads = append(payloads, part(t, tokenOf(c), 1))
			time.Sleep(10 * time.Second) // the bubble's clock
		}
		if payloads[0] != payloads[1] {
			t.Errorf("a retry says\n%s\nand not\n%s", payloads[1], payloads[0])
		}
		if want := strings.Replace(payloads[0], l.ID+"-3", l.ID+"-4", 1); payloads[2] != want {
			t.Errorf("a re-mint says\n%s\nand not\n%s", payloads[2], want)
		}
	})
}

// HAZARDS 18: whatever the lease, a token lives at most max_ttl.
func TestHazard18LifeIsCapped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := mustOpen(t, newTarget(t, `{"max_ttl":"5m"}`))
		l := issuertest.NewLease(jwt.Kind{}, grant([]string{audience}))
		l.NotAfter = l.NotBefore.Add(8 * time.Hour)
		l.MintDeadline = l.NotAfter
		c, err := i.Mint(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		api := service{keys: published(t, i), alg: jose.ES256, audience: audience}
		end := l.NotBefore.Add(5 * time.Minute)
		if _, err := api.accept(tokenOf(c), end.Add(-time.Second)); err != nil {
			t.Errorf("a second before its end: %v", err)
		}
		if _, err := api.accept(tokenOf(c), end.Add(time.Second)); err == nil {
			t.Error("a second after its end the token is accepted")
		}
		if got := c.Public["expires_at"]; got != end.UTC().Format(time.RFC3339) {
			t.Errorf("expires_at is %s; want %s", got, end)
		}
		time.Sleep(5 * time.Minute)
		if err := mintError(t, i, l); err.Kind != issuers.TooLate {
			t.Errorf("a mint past max_ttl: %v; want too_late", err)
		}
	})
}

func TestClockEdges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := mustOpen(t, newTarget(t, `{}`))
		api := service{keys: published(t, i), alg: jose.ES256, audience: audience}
		now := time.Now()
		for _, c := range []struct {
			name                  string
			from, until, deadline time.Duration
			want                  issuers.ErrorKind
			fine                  bool
		}{
			{"deadline this instant", 0, time.Minute, 0, issuers.TooLate, false},
			{"deadline in a nanosecond", 0, time.Minute, 1, 0, true},
			{"lease ends this instant", -time.Minute, 0, time.Minute, issuers.TooLate, false},
			{"lease ends within this second", -time.Minute, 999 * time.Millisecond, time.Minute, issuers.TooLate, false},
			{"lease ends in a second", -time.Minute, time.Second, time.Minute, 0, true},
			{"lease ends before it starts", time.Hour, time.Minute, time.Minute, 0, false},
		} {
			l := issuertest.NewLease(jwt.Kind{}, grant([]string{audience}))
			l.NotBefore, l.NotAfter, l.MintDeadline = now.Add(c.from), now.Add(c.until), now.Add(c.deadline)
			cred, err := i.Mint(t.Context(), l)
			if !c.fine && err == nil {
				if _, err := api.accept(tokenOf(cred), now); err == nil {
					t.Errorf("%s: a token that works", c.name)
				}
				continue
			}
			if c.fine != (err == nil) || !c.fine && issuers.KindOf(err) != c.want {
				t.Errorf("%s: %v", c.name, err)
			}
		}
		l := issuertest.NewLease(jwt.Kind{}, grant([]string{audience}))
		l.NotBefore = time.Time{}
		if err := mintError(t, i, l); err.Kind != issuers.TooLate {
			t.Errorf("a lease without a start: %v", err)
		}
	})
}

// The signature is checked here with nothing but the standard library, so that
// one JOSE library's idea of a token is not its own witness.
func TestSignatureByTheStandardLibrary(t *testing.T) {
	for _, alg := range []string{"ES256", "EdDSA"} {
		i := mustOpen(t, newTarget(t, `{"alg":"`+alg+`"}`))
		c, err := i.Mint(t.Context(), issuertest.NewLease(jwt.Kind{}, grant([]string{audience})))
		if err != nil {
			t.Fatal(err)
		}
		signed := tokenOf(c)[:strings.LastIndexByte(tokenOf(c), '.')]
		signature := []byte(part(t, tokenOf(c), 2))
		switch key := published(t, i).Keys[0].Key.(type) {
		case *ecdsa.PublicKey:
			sum := sha256.Sum256([]byte(signed))
			r, s := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
			if len(signature) != 64 || !ecdsa.Verify(key, sum[:], r, s) {
				t.Error("ES256 signature is wrong")
			}
		case ed25519.PublicKey:
			if !ed25519.Verify(key, []byte(signed), signature) {
				t.Error("EdDSA signature is wrong")
			}
		default:
			t.Errorf("%s: published key is a %T", alg, key)
		}
	}
}

// What an attacker makes of a real token and the published keys is refused by a
// service that follows docs/issuers/jwt.md.
func TestAlgorithmConfusion(t *testing.T) {
	i := mustOpen(t, newTarget(t, `{}`))
	api := service{keys: published(t, i), alg: jose.ES256, audience: audience}
	c, err := i.Mint(t.Context(), issuertest.NewLease(jwt.Kind{}, grant([]string{audience})))
	if err != nil {
		t.Fatal(err)
	}
	token := tokenOf(c)
	if _, err := api.accept(token, time.Now()); err != nil {
		t.Fatal(err)
	}
	kid, payload := api.keys.Keys[0].KeyID, strings.Split(token, ".")[1]
	b64 := base64.RawURLEncoding.EncodeToString
	jwk, err := json.Marshal(api.keys.Keys[0])
	if err != nil {
		t.Fatal(err)
	}
	hs := b64([]byte(`{"alg":"HS256","kid":"`+kid+`","typ":"at+jwt"}`)) + "." + payload
	mac := hmac.New(sha256.New, jwk)
	mac.Write([]byte(hs))
	wider := strings.Replace(part(t, token, 1), "workload:conformance", "human:operator", 1)
	parts := strings.Split(token, ".")
	for name, forged := range map[string]string{
		"none":                   b64([]byte(`{"alg":"none","typ":"at+jwt"}`)) + "." + payload + ".",
		"HMAC of the public key": hs + "." + b64(mac.Sum(nil)),
		"another subject":        parts[0] + "." + b64([]byte(wider)) + "." + parts[2],
		"another typ":            b64([]byte(strings.Replace(part(t, token, 0), "at+jwt", "JWT", 1))) + "." + parts[1] + "." + parts[2],
		"no signature":           parts[0] + "." + parts[1] + ".",
		"zero signature":         parts[0] + "." + parts[1] + "." + b64(make([]byte, 64)),
	} {
		if _, err := api.accept(forged, time.Now()); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	other := service{keys: api.keys, alg: jose.ES256, audience: "https://other.example"}
	if _, err := other.accept(token, time.Now()); err == nil {
		t.Error("another audience accepts the token")
	}
}

func TestHolderKeys(t *testing.T) {
	i := mustOpen(t, newTarget(t, `{}`))
	for name, c := range map[string]struct {
		key  json.RawMessage
		fine bool
	}{
		"EC":          {publicJWK(t, mustEC(t, elliptic.P256()).Public()), true},
		"P-384":       {publicJWK(t, mustEC(t, elliptic.P384()).Public()), true},
		"RFC 7638":    {json.RawMessage(holderKey), true},
		"private EC":  {publicJWK(t, mustEC(t, elliptic.P256())), false},
		"symmetric":   {json.RawMessage(`{"kty":"oct","k":"c2VjcmV0LXNlY3JldC1zZWNyZXQ"}`), false},
		"weak RSA":    {publicJWK(t, &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 1023), E: 65537}), false},
		"huge RSA":    {publicJWK(t, &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 8191), E: 65537}), false},
		"off curve":   {json.RawMessage(`{"kty":"EC","crv":"P-256","x":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE","y":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE"}`), false},
		"no JWK":      {json.RawMessage(`"key"`), false},
		"null":        {json.RawMessage(`null`), false},
		"unknown kty": {json.RawMessage(`{"kty":"XYZ","x":"AA"}`), false},
		"too long":    {json.RawMessage(`{"kty":"` + strings.Repeat("x", 5000) + `"}`), false},
	} {
		l := issuertest.NewLease(jwt.Kind{}, grant([]string{audience}))
		l.PublicKey = c.key
		cred, err := i.Mint(t.Context(), l)
		switch {
		case c.fine && (err != nil || !strings.Contains(part(t, tokenOf(cred), 1), `"cnf":{"jkt":"`)):
			t.Errorf("%s: %v", name, err)
		case !c.fine && issuers.KindOf(err) != issuers.Refused:
			t.Errorf("%s: %v; want refused", name, err)
		}
	}
}

func mustEC(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func publicJWK(t testing.TB, key any) json.RawMessage {
	t.Helper()
	out, err := json.Marshal(jose.JSONWebKey{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func FuzzHolderKey(f *testing.F) {
	f.Add([]byte(holderKey))
	f.Add([]byte(`{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`))
	f.Add([]byte(`{"kty":"oct","k":"AAAA"}`))
	i := mustOpen(f, newTarget(f, `{"alg":"EdDSA"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		l := issuertest.NewLease(jwt.Kind{}, grant([]string{audience}))
		l.PublicKey = raw
		c, err := i.Mint(t.Context(), l)
		if err != nil {
			if issuers.KindOf(err) != issuers.Refused {
				t.Fatalf("%v; want refused", err)
			}
			return
		}
		if bound := strings.Contains(part(t, tokenOf(c), 1), `"cnf":{"jkt":"`); bound != (len(raw) > 0) {
			t.Fatalf("key %q, and the token's binding is %v", raw, bound)
		}
	})
}

func BenchmarkMint(b *testing.B) {
	for _, c := range []struct {
		name, spec string
		key        json.RawMessage
	}{
		{"ES256", `{}`, nil},
		{"EdDSA", `{"alg":"EdDSA"}`, nil},
		{"ES256-bound", `{}`, publicJWK(b, mustEC(b, elliptic.P256()).Public())},
	} {
		b.Run(c.name, func(b *testing.B) {
			i := mustOpen(b, newTarget(b, c.spec))
			l := issuertest.NewLease(jwt.Kind{}, grant([]string{audience}, "read", "write"))
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
