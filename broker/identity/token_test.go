package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/secret"
)

func TestGoodTokenIsAttested(t *testing.T) {
	i := newIssuer(t)
	a := attestor(t, i.spec(claims{"facts": []string{"team"}, "max_ttl": "2m"}), i.deps())
	got, err := attest(t, a, i.token(t, i.claims()), "")
	if err != nil {
		t.Fatal(err)
	}
	if got.Principal != "workload:deploy" || got.Method != "m" || got.AttestedKey {
		t.Errorf("attested %+v", got)
	}
	if !got.ExpiresAt.Equal(noon.Add(2 * time.Minute)) {
		t.Errorf("session until %s, want max_ttl", got.ExpiresAt)
	}
	if len(got.OneShot) != 43 || !got.OneShotUntil.Equal(noon.Add(5*time.Minute+clockSkew)) {
		t.Errorf("one-shot %q until %s", got.OneShot, got.OneShotUntil)
	}
	for name, want := range map[string]string{"claim.team": "blue", "issuer": i.URL, "subject": "job-7", "audience": "https://mayfly.example", "token_id": "id-1", "method": "m", "method_type": "oidc"} {
		if got.Facts[name] != want {
			t.Errorf("fact %s = %q, want %q", name, got.Facts[name], want)
		}
	}
	if len(got.Facts) != 7 {
		t.Errorf("further facts: %v", got.Facts)
	}
}

// Every way to sign a token that is not the issuer's.
func TestForgedTokensAreRefused(t *testing.T) {
	i := newIssuer(t)
	a := attestor(t, i.spec(nil), i.deps())
	body := i.claims()
	good := claims{"alg": "ES256", "typ": "JWT", "kid": "k1"}
	spki, err := x509.MarshalPKIXPublicKey(rsaKey().Public())
	if err != nil {
		t.Fatal(err)
	}
	thief := newP256(t)
	thiefJWK := jwkOf(t, thief.Public(), "k1", "ES256", "sig")
	cases := map[string]struct {
		key    any
		header any
		code   string
	}{
		"alg none":                    {nil, good.with("alg", "none"), CodeAlgorithm},
		"alg None":                    {nil, good.with("alg", "None"), CodeAlgorithm},
		"no alg":                      {i.key, good.with("alg", nil), CodeAlgorithm},
		"alg a number":                {i.key, good.with("alg", 1), CodeTokenMalformed},
		"HS256, PEM as secret":        {pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}), claims{"alg": "HS256", "kid": "rsa"}, CodeAlgorithm},
		"HS256, DER as secret":        {spki, claims{"alg": "HS256", "kid": "rsa"}, CodeAlgorithm},
		"HS256, modulus as secret":    {rsaKey().N.Bytes(), claims{"alg": "HS256", "kid": "rsa"}, CodeAlgorithm},
		"ES256 by another key":        {thief, good, CodeSignature},
		"embedded jwk":                {thief, good.with("jwk", thiefJWK), CodeTokenMalformed},
		"jku":                         {thief, good.with("jku", i.URL+"/keys"), CodeTokenMalformed},
		"x5u":                         {thief, good.with("x5u", "https://evil.example"), CodeTokenMalformed},
		"x5c":                         {thief, good.with("x5c", []string{"AAAA"}), CodeTokenMalformed},
		"crit":                        {i.key, good.with("crit", []string{"exp"}), CodeTokenMalformed},
		"RS256 with the EC kid":       {rsaKey(), good.with("alg", "RS256"), CodeUnknownKey},
		"ES256 with the RSA kid":      {i.key, good.with("kid", "rsa"), CodeUnknownKey},
		"unknown kid":                 {i.key, good.with("kid", "k9"), CodeUnknownKey},
		"kid too long":                {i.key, good.with("kid", strings.Repeat("k", maxKeyID+1)), CodeTokenMalformed},
		"typ DPoP":                    {i.key, good.with("typ", "dpop+jwt"), CodeTokenType},
		"typ logout":                  {i.key, good.with("typ", "logout+jwt"), CodeTokenType},
		"typ SET":                     {i.key, good.with("typ", "secevent+jwt"), CodeTokenType},
		"typ assertion":               {i.key, good.with("typ", typeAssertion), CodeTokenType},
		"duplicate alg":               {i.key, json.RawMessage(`{"alg":"none","alg":"ES256","kid":"k1"}`), CodeTokenMalformed},
		"PS256 signed as RS256":       {rsaKey(), claims{"alg": "RS256", "kid": "rsa"}, ""},
		"PS256":                       {rsaKey(), claims{"alg": "PS256", "kid": "rsa"}, ""},
		"without kid, one key fits":   {i.key, good.with("kid", nil), ""},
		"typ jwt in lower case":       {i.key, good.with("typ", "jwt"), ""},
		"no typ":                      {i.key, good.with("typ", nil), ""},
		"typ JWT and unknown members": {i.key, good.with("x5t", "abc"), ""},
	}
	for name, c := range cases {
		_, err := attest(t, a, forge(t, c.key, c.header, body), "")
		wantCode(t, name, err, c.code)
	}
	token := i.token(t, body)
	head, rest, _ := strings.Cut(token, ".")
	for name, bad := range map[string]string{
		"signature cut": token[:len(token)-2], "payload swapped": head + "." + rest[4:], "line break": head + ".\n" + rest,
		"empty": "", "not a JWT": "abc", "JSON serialisation": `{"payload":"e30","signatures":[]}`, "five parts": token + ".a.b",
		"alg none with the old signature": base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + rest,
	} {
		_, err := attest(t, a, bad, "")
		if fault.KindOf(err) != fault.Unauthenticated {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestClaimsAreChecked(t *testing.T) {
	i := newIssuer(t)
	a := attestor(t, i.spec(claims{"audience": []string{"https://mayfly.example", "mayfly-two"}}), i.deps())
	c := i.claims()
	unix := func(d time.Duration) int64 { return noon.Add(d).Unix() }
	cases := map[string]struct {
		claims claims
		code   string
	}{
		"good":                       {c, ""},
		"second audience of ours":    {c.with("aud", "mayfly-two"), ""},
		"list with ours":             {c.with("aud", []string{"other", "mayfly-two"}), ""},
		"expired within the skew":    {c.with("exp", unix(-29*time.Second)), ""},
		"issued ahead within skew":   {c.with("iat", unix(30*time.Second)).with("nbf", unix(30*time.Second)), ""},
		"exp with a fraction":        {c.with("exp", 1795348800.5), ""},
		"no nbf, no iat":             {c.with("nbf", nil).with("iat", nil), ""},
		"expired":                    {c.with("exp", unix(-30*time.Second)), CodeExpired},
		"long expired":               {c.with("exp", 1), CodeExpired},
		"of the future (nbf)":        {c.with("nbf", unix(31*time.Second)), CodeNotYetValid},
		"of the future (iat)":        {c.with("iat", unix(time.Hour)), CodeNotYetValid},
		"no exp":                     {c.with("exp", nil), CodeLifetime},
		"exp null":                   {c.with("exp", json.RawMessage("null")), CodeTokenMalformed},
		"exp a string":               {c.with("exp", "1795348800"), CodeTokenMalformed},
		"exp huge":                   {c.with("exp", json.RawMessage("1e400")), CodeTokenMalformed},
		"exp beyond year 9999":       {c.with("exp", json.RawMessage("99999999999999")), CodeTokenMalformed},
		"exp negative":               {c.with("exp", -5), CodeTokenMalformed},
		"bearer valid for days":      {c.with("exp", unix(48*time.Hour)), CodeLifetime},
		"another audience":           {c.with("aud", "https://evil.example"), CodeAudience},
		"audience with a suffix":     {c.with("aud", "https://mayfly.example/"), CodeAudience},
		"audience with a thumbprint": {c.with("aud", "https://mayfly.example#abc"), CodeAudience},
		"audience in upper case":     {c.with("aud", "HTTPS://MAYFLY.EXAMPLE"), CodeAudience},
		"no audience":                {c.with("aud", nil), CodeAudience},
		"empty list":                 {c.with("aud", []string{}), CodeAudience},
		"list of numbers":            {c.with("aud", []int{1}), CodeTokenMalformed},
		"many audiences":             {c.with("aud", append(make([]string, maxAudiences), "mayfly-two")), CodeAudience},
		"another issuer":             {c.with("iss", "https://evil.example"), CodeIssuer},
		"issuer with a slash":        {c.with("iss", i.URL+"/"), CodeIssuer},
		"no issuer":                  {c.with("iss", nil), CodeIssuer},
		"issuer a list":              {c.with("iss", []string{i.URL}), CodeIssuer},
		"no rule for the team":       {c.with("team", "red"), CodeNoBinding},
		"sub a number":               {c.with("sub", 7), CodeTokenMalformed},
		"sub too long":               {c.with("sub", strings.Repeat("s", maxTokenID+1)), CodeTokenMalformed},
		"jti a number":               {c.with("jti", 7), CodeTokenMalformed},
		"cnf we cannot check":        {c.with("cnf", claims{"kid": "x"}), CodeKeyBinding},
		"cnf empty":                  {c.with("cnf", claims{}), CodeTokenMalformed},
	}
	for name, tc := range cases {
		_, err := attest(t, a, i.token(t, tc.claims), "")
		wantCode(t, name, err, tc.code)
	}
}

func TestTokensThatTwoParsersReadDifferentlyAreRefused(t *testing.T) {
	i := newIssuer(t)
	a := attestor(t, i.spec(nil), i.deps())
	good := string(asJSON(t, i.claims()))
	deep := good[:len(good)-1] + `,"x":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + "}"
	wide := good[:len(good)-1] + `,"x":[0` + strings.Repeat(",0", maxClaims) + "]}"
	for name, payload := range map[string]string{
		"duplicate aud":        good[:len(good)-1] + `,"aud":"https://evil.example"}`,
		"duplicate by escape":  good[:len(good)-1] + `,"\u0061ud":"https://mayfly.example"}`,
		"duplicate inside":     good[:len(good)-1] + `,"x":{"a":1,"a":2}}`,
		"too deep":             deep,
		"too many values":      wide,
		"invalid UTF-8":        good[:len(good)-1] + ",\"x\":\"\xff\"}",
		"something after":      good + "{}",
		"a list":               "[" + good + "]",
		"a comment":            good + "//",
		"a trailing comma":     good[:len(good)-1] + ",}",
		"not a number":         good[:len(good)-1] + `,"x":NaN}`,
		"an array of garbage":  good[:len(good)-1] + `,"x":[1 2]}`,
		"megabytes of nothing": good[:len(good)-1] + `,"x":"` + strings.Repeat("a", maxToken) + `"}`,
	} {
		token := forge(t, i.key, claims{"alg": "ES256", "kid": "k1"}, json.RawMessage(payload))
		_, err := attest(t, a, token, "")
		wantCode(t, name, err, CodeTokenMalformed)
	}
	token := forge(t, i.key, claims{"alg": "ES256", "kid": "k1"}, json.RawMessage(good))
	_, err := attest(t, a, token, "")
	wantCode(t, "the same signed as it is", err, "")
}

// HAZARDS 3: a stolen token must not open a session for the thief's key.
func TestHazard3StolenTokenIsRefusedForAnotherKey(t *testing.T) {
	i := newIssuer(t)
	a := attestor(t, i.spec(claims{"key_in_audience": true}), i.deps())
	victim, thief := newClientKey(t), newClientKey(t)
	token := i.token(t, i.claims().with("aud", []string{"other", "https://mayfly.example#" + victim.Thumbprint()}))

	got, err := attest(t, a, token, victim.Thumbprint())
	if err != nil || !got.AttestedKey || got.OneShot != "" {
		t.Fatalf("its own key: %+v, %v", got, err)
	}
	_, err = attest(t, a, token, thief.Thumbprint())
	wantCode(t, "the thief's key", err, CodeKeyBinding)
	_, err = attest(t, a, token, "")
	wantCode(t, "no key", err, CodeKeyBinding)
	for name, aud := range map[string]string{"audience without key": "https://mayfly.example", "empty thumbprint": "https://mayfly.example#"} {
		bare := i.token(t, i.claims().with("aud", aud))
		for _, jkt := range []string{"", thief.Thumbprint()} {
			if _, err := attest(t, a, bare, jkt); fault.KindOf(err) != fault.Unauthenticated {
				t.Errorf("%s, client key %q: %v", name, jkt, err)
			}
		}
	}
	// The key may as well be that of a mutual-TLS connection …
	cert, err := victim.Certificate("c", noon, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	ev := Evidence{Method: "m", Token: secret.New(token), PeerCerts: []*x509.Certificate{cert.Leaf}}
	got, err = a.Attest(t.Context(), ev, noon)
	if err != nil || !got.AttestedKey {
		t.Errorf("its own certificate: %v", err)
	}
	// … but the session is bound to the DPoP key where there is one.
	ev.ClientJKT = thief.Thumbprint()
	_, err = a.Attest(t.Context(), ev, noon)
	wantCode(t, "the thief's proof over the victim's connection", err, CodeKeyBinding)
}

func TestHazard3ConfirmedKeyIsHonoured(t *testing.T) {
	i := newIssuer(t)
	a := attestor(t, i.spec(nil), i.deps())
	k := newClientKey(t)
	cert, err := k.Certificate("c", noon, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(cert.Leaf.Raw)
	token := i.token(t, i.claims().with("cnf", claims{"jkt": k.Thumbprint(), "x5t#S256": base64.RawURLEncoding.EncodeToString(sum[:])}))
	ev := Evidence{Method: "m", Token: secret.New(token), ClientJKT: k.Thumbprint(), PeerCerts: []*x509.Certificate{cert.Leaf}}
	got, err := a.Attest(t.Context(), ev, noon)
	if err != nil || !got.AttestedKey || got.OneShot != "" {
		t.Fatalf("both keys: %+v, %v", got, err)
	}
	ev.PeerCerts = nil
	_, err = a.Attest(t.Context(), ev, noon)
	wantCode(t, "only one of two keys", err, CodeKeyBinding)
}

// HAZARDS 3: where no key can be named, the token is good once; its name in the
// log cannot be varied by whoever stole it.
func TestHazard3BearerTokenHasOneName(t *testing.T) {
	i := newIssuer(t)
	a := attestor(t, i.spec(nil), i.deps())
	name := func(c claims) string {
		got, err := attest(t, a, i.token(t, c), "")
		if err != nil {
			t.Fatal(err)
		}
		if got.AttestedKey || got.OneShot == "" {
			t.Fatalf("a bearer token: %+v", got)
		}
		return got.OneShot
	}
	c := i.claims()
	first, again := name(c), name(c)
	if first != again || first != name(c.with("iat", nil)) {
		t.Error("one jti has two names")
	}
	if name(c) == name(c.with("jti", "id-2")) {
		t.Error("two jti have one name")
	}
	// Without a jti the token itself is named: ECDSA signatures differ and are
	// malleable, what was signed is not.
	bare := c.with("jti", nil)
	first, again = name(bare), name(bare)
	if first != again || first == name(bare.with("sub", "job-8")) {
		t.Error("tokens without jti are not told apart by what they say")
	}
}

func TestWeakIssuerKeysAreNotUsed(t *testing.T) {
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	spec := claims{
		"type": "jwt", "issuer": "https://weak.example", "audience": "a",
		"jwks": claims{"keys": []any{jwkOf(t, weak.Public(), "w", "RS256", "sig")}},
		"bind": []any{claims{"when": claims{"sub": "x"}, "as": "workload:x"}},
	}
	_, err = ParseMethod("m", asJSON(t, spec))
	wantCode(t, "1024 bits", err, CodeMethodInvalid)
}

// Without a kid a token is verified by the one key that fits, never by trying.
func TestTokenWithoutKeyIDNeedsOneFittingKey(t *testing.T) {
	first, second := newP256(t), newP256(t)
	spec := func(public ...any) claims {
		return claims{"type": "jwt", "issuer": "i", "audience": "a", "jwks": claims{"keys": public}, "bind": []any{claims{"when": claims{"sub": "x"}, "as": "workload:x"}}}
	}
	token := forge(t, first, claims{"alg": "ES256"}, claims{"iss": "i", "aud": "a", "sub": "x", "exp": noon.Add(time.Minute).Unix()})
	one, two := jwkOf(t, first.Public(), "1", "", "sig"), jwkOf(t, second.Public(), "2", "", "sig")
	for name, c := range map[string]struct {
		spec claims
		code string
	}{
		"one key":                  {spec(one), ""},
		"two keys":                 {spec(one, two), CodeUnknownKey},
		"one of another kind":      {spec(one, jwkOf(t, rsaKey().Public(), "3", "", "sig")), ""},
		"one for encryption":       {spec(one, jwkOf(t, second.Public(), "2", "", "enc")), ""},
		"one for another alg":      {spec(one, jwkOf(t, second.Public(), "2", "ES384", "sig")), ""},
		"only another's":           {spec(two), CodeSignature},
		"only one of another kind": {spec(jwkOf(t, rsaKey().Public(), "3", "", "sig")), CodeUnknownKey},
	} {
		_, err := attest(t, attestor(t, c.spec, Deps{}), token, "")
		wantCode(t, name, err, c.code)
	}
}

func TestEvidenceForNobody(t *testing.T) {
	i := newIssuer(t)
	a := attestor(t, i.spec(nil), i.deps())
	_, err := attest(t, a, "", "")
	wantCode(t, "nothing", err, CodeEvidenceMissing)
	_, err = a.Attest(t.Context(), Evidence{Method: "other", Token: secret.New(i.token(t, i.claims()))}, noon)
	if err == nil {
		t.Error("evidence for another method was accepted")
	}
}

// Law 6: no error says what the token was.
func TestLaw6ErrorsDoNotQuoteTokens(t *testing.T) {
	i := newIssuer(t)
	a := attestor(t, i.spec(nil), i.deps())
	for _, c := range []claims{i.claims().with("exp", 1), i.claims().with("iss", "x"), i.claims().with("aud", "x"), i.claims().with("team", "x"), i.claims().with("cnf", claims{"jkt": "y"})} {
		token := i.token(t, c)
		_, err := attest(t, a, token, "")
		if err == nil {
			t.Fatal("accepted")
		}
		for part := range strings.SplitSeq(token, ".") {
			if strings.Contains(fmt.Sprintf("%+v", err), part) {
				t.Errorf("%v holds a part of the token", err)
			}
		}
	}
}

// The library checks some of this too; that a key is of the kind and strength
// its algorithm needs is decided here.
func TestKeysFitTheirAlgorithmOnly(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	ed := fixedKey().Public()
	for _, c := range []struct {
		key  crypto.PublicKey
		fits []jose.SignatureAlgorithm
	}{
		{newP256(t).Public(), []jose.SignatureAlgorithm{jose.ES256}},
		{rsaKey().Public(), []jose.SignatureAlgorithm{jose.RS256, jose.PS256}},
		{ed, []jose.SignatureAlgorithm{jose.EdDSA}},
		{p384.Public(), nil}, {weak.Public(), nil}, {[]byte("hmac"), nil}, {nil, nil},
	} {
		for _, alg := range []jose.SignatureAlgorithm{jose.RS256, jose.PS256, jose.ES256, jose.ES384, jose.EdDSA, jose.HS256, "none", ""} {
			if got := fits(c.key, alg); got != slices.Contains(c.fits, alg) {
				t.Errorf("%T with %q: %v", c.key, alg, got)
			}
		}
	}
}
