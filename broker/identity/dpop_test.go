package identity

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/client/keys"
	"github.com/mayfly-broker/mayfly/secret"
)

const (
	external = "https://broker.example:8700"
	path     = "/api/v1/request"
)

func newVerifier(t testing.TB, n *Nonces) *Verifier {
	t.Helper()
	v, err := NewVerifier(VerifierConfig{ExternalURLs: []string{external, "https://n2.example/mayfly/"}, Nonces: n})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestGoodProofsAreAccepted(t *testing.T) {
	v := newVerifier(t, NewNonces("n1"))
	token, _ := MintSession()
	for _, alg := range []keys.Algorithm{keys.P256, keys.Ed25519} {
		k, err := keys.Generate(alg)
		if err != nil {
			t.Fatal(err)
		}
		for _, target := range []struct{ signed, asked string }{
			{external + path, path},
			{external + path + "?q=1#f", path + "?q=2"},
			{external + path, external + path},
			{"https://n2.example/mayfly" + path, path},
		} {
			for _, tok := range []secret.Text{{}, token} {
				proof, err := k.DPoP("POST", target.signed, v.Nonce(noon), tok.Reveal(), noon)
				if err != nil {
					t.Fatal(err)
				}
				jkt, err := v.Verify(proof, "POST", target.asked, tok, noon)
				if err != nil || jkt != k.Thumbprint() {
					t.Errorf("%s %v: %q, %v", alg, target, jkt, err)
				}
			}
		}
	}
}

// forgedProof is a proof that an attacker can shape at will.
type forgedProof struct {
	header, claims claims
	key            any
}

func TestBadProofsAreRefused(t *testing.T) {
	v := newVerifier(t, NewNonces("n1"))
	key := newP256(t)
	token := secret.New("mfs_token")
	sum := sha256.Sum256([]byte("mfs_token"))
	private, err := json.Marshal(jose.JSONWebKey{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	header := claims{"typ": "dpop+jwt", "alg": "ES256", "jwk": jwkOf(t, key.Public(), "", "", "")}
	body := claims{
		"jti": "0123456789abcdef", "htm": "POST", "htu": external + path, "iat": noon.Unix(),
		"ath": base64.RawURLEncoding.EncodeToString(sum[:]), "nonce": v.Nonce(noon),
	}
	cases := map[string]forgedProof{
		"typ JWT":              {header.with("typ", "JWT"), body, key},
		"no typ":               {header.with("typ", nil), body, key},
		"typ assertion":        {header.with("typ", typeAssertion), body, key},
		"alg none":             {header.with("alg", "none"), body, nil},
		"HS256 with the jwk":   {header.with("alg", "HS256"), body, asJSON(t, header["jwk"])},
		"HS256 with oct":       {header.with("alg", "HS256").with("jwk", claims{"kty": "oct", "k": "AAAA"}), body, []byte{0, 0, 0}},
		"RS256":                {header.with("alg", "RS256").with("jwk", jwkOf(t, rsaKey().Public(), "", "", "")), body, rsaKey()},
		"EdDSA with P-256":     {header.with("alg", "EdDSA"), body, key},
		"private jwk":          {header.with("jwk", json.RawMessage(private)), body, key},
		"no jwk":               {header.with("jwk", nil), body, key},
		"jwk null":             {header.with("jwk", json.RawMessage("null")), body, key},
		"jwk a string":         {header.with("jwk", "x"), body, key},
		"another key's":        {header, body, newP256(t)},
		"jku":                  {header.with("jku", "https://evil.example/k"), body, key},
		"x5u":                  {header.with("x5u", "https://evil.example/k"), body, key},
		"x5c":                  {header.with("x5c", []string{}), body, key},
		"crit":                 {header.with("crit", []string{"b64"}).with("b64", false), body, key},
		"no jti":               {header, body.with("jti", nil), key},
		"short jti":            {header, body.with("jti", "1234567"), key},
		"long jti":             {header, body.with("jti", strings.Repeat("j", maxProofID+1)), key},
		"jti a number":         {header, body.with("jti", 12345678901), key},
		"another method":       {header, body.with("htm", "GET"), key},
		"method lower case":    {header, body.with("htm", "post"), key},
		"no method":            {header, body.with("htm", nil), key},
		"another path":         {header, body.with("htu", external+"/api/v1/approve"), key},
		"a longer path":        {header, body.with("htu", external+path+"/x"), key},
		"path case":            {header, body.with("htu", external+"/API/v1/request"), key},
		"another host":         {header, body.with("htu", "https://evil.example"+path), key},
		"another port":         {header, body.with("htu", "https://broker.example"+path), key},
		"http":                 {header, body.with("htu", "http://broker.example:8700"+path), key},
		"dot segments":         {header, body.with("htu", external+"/x/.."+path), key},
		"relative htu":         {header, body.with("htu", path), key},
		"user in htu":          {header, body.with("htu", "https://a@broker.example:8700"+path), key},
		"no htu":               {header, body.with("htu", nil), key},
		"no iat":               {header, body.with("iat", nil), key},
		"iat a string":         {header, body.with("iat", "now"), key},
		"iat huge":             {header, body.with("iat", json.RawMessage("1e300")), key},
		"too old":              {header, body.with("iat", noon.Unix()-61), key},
		"of the future":        {header, body.with("iat", noon.Unix()+31), key},
		"another token's":      {header, body.with("ath", base64.RawURLEncoding.EncodeToString(sum[1:])), key},
		"no ath":               {header, body.with("ath", nil), key},
		"nonce a number":       {header, body.with("nonce", 1), key},
		"nonce too long":       {header, body.with("nonce", strings.Repeat("n", maxNonce+1)), key},
		"claims not an object": {header, nil, key},
	}
	for name, c := range cases {
		_, err := v.Verify(forge(t, c.key, c.header, c.claims), "POST", path, token, noon)
		wantCode(t, name, err, CodeProofInvalid)
	}
	good := forge(t, key, header, body)
	for name, proof := range map[string]string{
		"empty": "", "garbage": "a.b.c", "two parts": good[:strings.LastIndex(good, ".")], "four parts": good + ".x",
		"line break": good[:20] + "\n" + good[20:], "trailing break": good + "\n", "padding": good + "=", "two proofs": good + "," + good,
		"too long":  good + strings.Repeat("A", maxProof),
		"signature": good[:len(good)-4] + "AAAA",
		"duplicate": forge(t, key, header, json.RawMessage(`{"jti":"0123456789abcdef","htm":"GET","htm":"POST"}`)),
	} {
		_, err := v.Verify(proof, "POST", path, token, noon)
		wantCode(t, name, err, CodeProofInvalid)
	}
	// After all this the good one is still good: the cases differ by what they say.
	_, err = v.Verify(good, "POST", path, token, noon)
	wantCode(t, "good", err, "")
	_, err = v.Verify(good, "POST", path, token, noon)
	wantCode(t, "again", err, CodeProofReplayed)
}

func TestAProofWithATokensHashNeedsTheToken(t *testing.T) {
	v := newVerifier(t, NewNonces("n1"))
	proof, err := newClientKey(t).DPoP("POST", external+path, v.Nonce(noon), "mfs_stolen", noon)
	if err != nil {
		t.Fatal(err)
	}
	_, err = v.Verify(proof, "POST", path, secret.Text{}, noon)
	wantCode(t, "without its token", err, CodeProofInvalid)
}

func TestOneDPoPHeader(t *testing.T) {
	for _, c := range []struct {
		values []string
		want   string
		code   string
	}{{nil, "", ""}, {[]string{"p"}, "p", ""}, {[]string{"p", "p"}, "", CodeProofInvalid}} {
		h := http.Header{}
		for _, v := range c.values {
			h.Add("DPoP", v)
		}
		got, err := ProofFromHeader(h)
		wantCode(t, fmt.Sprint(c.values), err, c.code)
		if got != c.want {
			t.Errorf("%v: %q", c.values, got)
		}
	}
}

// HAZARDS 4: a proof captured at node B must not be good at C, nor at B after
// a restart.
func TestHazard4ProofIsRefusedAtAnotherNodeAndAfterARestart(t *testing.T) {
	nodeB := NewNonces("b")
	captured, err := newClientKey(t).DPoP("POST", external+path, nodeB.Current(noon), "", noon)
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range map[string]*Verifier{
		"another node":    newVerifier(t, NewNonces("c")),
		"after a restart": newVerifier(t, NewNonces("b")),
	} {
		_, err := v.Verify(captured, "POST", path, secret.Text{}, noon)
		wantCode(t, name, err, CodeProofNonce)
		fresh, ok := FreshNonce(err)
		if !ok || fresh != v.Nonce(noon) || fault.KindOf(err) != fault.Unauthenticated {
			t.Errorf("%s: fresh nonce %q, %v, kind %q", name, fresh, ok, fault.KindOf(err))
		}
	}
	v := newVerifier(t, nodeB)
	_, err = v.Verify(captured, "POST", path, secret.Text{}, noon)
	wantCode(t, "where it was made for", err, "")
	if _, ok := FreshNonce(err); ok {
		t.Error("a nonce in no error")
	}
}

// HAZARDS 4: the leader checks a forwarded proof itself, and once.
func TestHazard4LeaderVerifiesForwardedProofsItself(t *testing.T) {
	follower, leader := newVerifier(t, NewNonces("f")), newVerifier(t, NewNonces("l"))
	k := newClientKey(t)
	sign := func(method, target, nonce, token string, at time.Time) string {
		proof, err := k.DPoP(method, target, nonce, token, at)
		if err != nil {
			t.Fatal(err)
		}
		return proof
	}
	proof := sign("POST", external+path, follower.Nonce(noon), "t", noon)
	token := secret.New("t")
	_, err := leader.Verify(proof, "POST", path, token, noon)
	wantCode(t, "direct, with a follower's nonce", err, CodeProofNonce)
	jkt, err := leader.VerifyForwarded(proof, "POST", path, token, noon)
	wantCode(t, "forwarded", err, "")
	if jkt != k.Thumbprint() {
		t.Errorf("thumbprint %q", jkt)
	}
	_, err = leader.VerifyForwarded(proof, "POST", path, token, noon)
	wantCode(t, "forwarded twice", err, CodeProofReplayed)

	own := sign("POST", external+path, leader.Nonce(noon), "t", noon)
	_, err = leader.Verify(own, "POST", path, token, noon)
	wantCode(t, "sent to the leader", err, "")
	_, err = leader.VerifyForwarded(own, "POST", path, token, noon)
	wantCode(t, "then forwarded by a follower that kept it", err, CodeProofReplayed)

	for name, lie := range map[string]string{
		"another method": sign("GET", external+path, "n", "t", noon),
		"another path":   sign("POST", external+"/api/v1/approve", "n", "t", noon),
		"another host":   sign("POST", "https://evil.example"+path, "n", "t", noon),
		"another token":  sign("POST", external+path, "n", "u", noon),
		"no nonce":       sign("POST", external+path, "", "t", noon),
		"old":            sign("POST", external+path, "n", "t", noon.Add(-2*time.Minute)),
	} {
		_, err := leader.VerifyForwarded(lie, "POST", path, token, noon)
		wantCode(t, name, err, CodeProofInvalid)
	}
}

func TestNoncesLiveOneToTwoMinutes(t *testing.T) {
	n := NewNonces("n1")
	start := noon.Truncate(nonceBucket)
	first := n.Current(start)
	for offset, want := range map[time.Duration]bool{
		0: true, nonceBucket - time.Second: true, nonceBucket: true, 2*nonceBucket - time.Second: true,
		2 * nonceBucket: false, time.Hour: false, -time.Second: false,
	} {
		if got := n.Valid(first, start.Add(offset)); got != want {
			t.Errorf("%s later: %v, want %v", offset, got, want)
		}
	}
	for _, bad := range []string{"", first + "x", first[:21], strings.ToLower(first)} {
		if bad != first && n.Valid(bad, start) {
			t.Errorf("%q is valid", bad)
		}
	}
	if len(first) != 22 || n.Current(start.Add(nonceBucket)) == first {
		t.Errorf("nonce %q does not change", first)
	}
}

func TestVerifierConfigurationIsChecked(t *testing.T) {
	for name, cfg := range map[string]VerifierConfig{
		"no URL":     {Nonces: NewNonces("n")},
		"no nonces":  {ExternalURLs: []string{external}},
		"http":       {ExternalURLs: []string{"http://broker.example"}, Nonces: NewNonces("n")},
		"with query": {ExternalURLs: []string{external + "/?x"}, Nonces: NewNonces("n")},
		"no host":    {ExternalURLs: []string{"https://"}, Nonces: NewNonces("n")},
	} {
		_, err := NewVerifier(cfg)
		wantCode(t, name, err, CodeMethodUnusable)
	}
}
