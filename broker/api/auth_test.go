package api_test

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker/api"
	"github.com/mayfly-broker/mayfly/broker/identity"
	"github.com/mayfly-broker/mayfly/client/wire"
)

func TestBothBindingsReachTheEngine(t *testing.T) {
	tc, n := one(t)
	dpop := tc.newClient(t, "mfs_one", "dpop")
	var who wire.Whoami
	okay(t, dpop.do(n, "GET", "/whoami", ""), &who)
	if who.Principal != "human:ann" || who.Binding != "dpop" {
		t.Fatalf("%+v", who)
	}
	mtls := tc.newClient(t, "mfs_two", "mtls")
	r := mtls.request("GET", n.url+"/api/v1/whoami", "")
	r.Header.Set("Authorization", "mTLS mfs_two")
	okay(t, mtls.send(r), &who)
	if who.Binding != "mtls" {
		t.Fatalf("%+v", who)
	}
	if _, last, _ := n.broker.seen(); last.Address != "127.0.0.1" {
		t.Fatalf("address %q", last.Address)
	}
}

func TestLaw7StolenTokenAloneOpensNothing(t *testing.T) {
	tc, n := one(t)
	tc.newClient(t, sesame, "dpop") // the owner, from whom the token is stolen
	tc.newClient(t, "mfs_cert", "mtls")
	thief := tc.newClient(t, "", "")
	thief.token = sesame
	thief.fresh(n)
	url := n.url + "/api/v1/whoami"

	bare := thief.request("GET", url, "")
	refused(t, thief.send(bare), 401, api.CodeNoCredentials)

	noProof := thief.request("GET", url, "")
	noProof.Header.Set("Authorization", "DPoP "+sesame)
	refused(t, thief.send(noProof), 401, api.CodeNoProof)

	refused(t, thief.send(thief.sign(thief.request("GET", url, ""))), 401, api.CodeWrongKey)

	bearer := thief.request("GET", url, "")
	bearer.Header.Set("Authorization", "Bearer "+sesame)
	refused(t, thief.send(bearer), 401, api.CodeBearer)

	asCert := thief.request("GET", url, "")
	asCert.Header.Set("Authorization", "mTLS "+sesame)
	refused(t, thief.send(asCert), 401, api.CodeBinding)

	noCert := thief.request("GET", url, "")
	noCert.Header.Set("Authorization", "mTLS mfs_cert")
	refused(t, thief.send(noCert), 401, api.CodeNoProof)

	otherCert := tc.newClient(t, "mfs_other", "mtls")
	r := otherCert.request("GET", url, "")
	r.Header.Set("Authorization", "mTLS mfs_cert")
	refused(t, otherCert.send(r), 401, api.CodeWrongKey)

	if calls, _, _ := n.broker.seen(); calls != 0 {
		t.Fatalf("the engine was called %d times", calls)
	}
}

func TestLaw7BearerSessionsOpenNothingHere(t *testing.T) {
	tc, n := one(t)
	c := tc.newClient(t, "mfs_bearer", "bearer")
	refused(t, c.do(n, "GET", "/whoami", ""), 401, api.CodeBinding)
	r := c.request("GET", n.url+"/api/v1/whoami", "")
	r.Header.Set("Authorization", "Bearer mfs_bearer")
	refused(t, c.send(r), 401, api.CodeBearer)
}

func TestHazard4ProofServesOneRequestOnly(t *testing.T) {
	tc, n := one(t)
	c := tc.newClient(t, sesame, "dpop").fresh(n)
	url := n.url + "/api/v1/whoami"
	r := c.sign(c.request("GET", url, ""))
	okay(t, c.send(r), nil)
	refused(t, c.send(r.Clone(t.Context())), 401, identity.CodeProofReplayed)

	move := func(to *http.Request) reply {
		from := c.sign(c.request("GET", url, ""))
		to.Header = from.Header
		return c.send(to)
	}
	refused(t, move(c.request("GET", n.url+"/api/v1/keys", "")), 401, identity.CodeProofInvalid)
	refused(t, move(c.request("POST", n.url+"/api/v1/logout", "")), 401, identity.CodeProofInvalid)

	elsewhere, err := c.key.DPoP("GET", "https://evil.example/api/v1/whoami", c.nonce, c.token, now)
	must(t, err)
	r = c.sign(c.request("GET", url, ""))
	r.Header.Set("DPoP", elsewhere)
	refused(t, c.send(r), 401, identity.CodeProofInvalid)

	old, err := c.key.DPoP("GET", url, c.nonce, c.token, now.Add(-time.Hour))
	must(t, err)
	r.Header.Set("DPoP", old)
	refused(t, c.send(r), 401, identity.CodeProofInvalid)

	otherToken, err := c.key.DPoP("GET", url, c.nonce, "mfs_another", now)
	must(t, err)
	r.Header.Set("DPoP", otherToken)
	refused(t, c.send(r), 401, identity.CodeProofInvalid)

	twice := c.sign(c.request("GET", url, ""))
	twice.Header.Add("DPoP", twice.Header.Get("DPoP"))
	refused(t, c.send(twice), 401, identity.CodeProofInvalid)
}

func TestHazard4NonceOfAnotherNodeIsRefusedAndReplaced(t *testing.T) {
	tc := start(t, 2)
	a, b := tc.nodes[0], tc.nodes[1]
	c := tc.newClient(t, sesame, "dpop").fresh(b)
	ans := c.send(c.sign(c.request("GET", a.url+"/api/v1/whoami", "")))
	refused(t, ans, 401, identity.CodeProofNonce)
	if got := ans.header.Get("WWW-Authenticate"); !strings.Contains(got, `error="use_dpop_nonce"`) {
		t.Fatalf("WWW-Authenticate %q", got)
	}
	c.nonce = ans.header.Get("DPoP-Nonce")
	okay(t, c.send(c.sign(c.request("GET", a.url+"/api/v1/whoami", ""))), nil)
}

func TestUnsignedAndForeignAlgorithmsAreRefused(t *testing.T) {
	tc, n := one(t)
	c := tc.newClient(t, sesame, "dpop").fresh(n)
	r := c.sign(c.request("GET", n.url+"/api/v1/whoami", ""))
	parts := strings.Split(r.Header.Get("DPoP"), ".")
	for _, alg := range []string{"none", "HS256", "ES384"} {
		raw, err := base64.RawURLEncoding.DecodeString(parts[0])
		must(t, err)
		var head map[string]any
		must(t, json.Unmarshal(raw, &head))
		head["alg"] = alg
		raw, err = json.Marshal(head)
		must(t, err)
		r.Header.Set("DPoP", base64.RawURLEncoding.EncodeToString(raw)+"."+parts[1]+"."+parts[2])
		refused(t, c.send(r), 401, identity.CodeProofInvalid)
	}
	r.Header.Set("DPoP", parts[0]+"."+parts[1]+".")
	refused(t, c.send(r), 401, identity.CodeProofInvalid)
}

func TestMalformedCredentialsAreRefused(t *testing.T) {
	tc, n := one(t)
	c := tc.newClient(t, "", "")
	for _, h := range []string{"DPoP", "DPoP ", "DPoP a b", "Basic YTpi", "mfs_x", "DPoP " + strings.Repeat("a", 300), "DPoP a,b"} {
		r := c.request("GET", n.url+"/api/v1/whoami", "")
		r.Header.Set("Authorization", h)
		refused(t, c.send(r), 401, api.CodeCredentials)
	}
	r := c.request("GET", n.url+"/api/v1/whoami", "")
	r.Header["Authorization"] = []string{"DPoP a", "DPoP b"}
	refused(t, c.send(r), 401, api.CodeCredentials)
}

func TestEveryAnswerOf401HasAChallenge(t *testing.T) {
	tc, n := one(t)
	c := tc.newClient(t, "", "")
	ans := c.send(c.request("GET", n.url+"/api/v1/whoami", ""))
	if got := ans.header.Get("WWW-Authenticate"); got != `DPoP algs="ES256 EdDSA"` {
		t.Fatalf("WWW-Authenticate %q", got)
	}
	c.token = "mfs_unknown"
	ans = c.do(n, "GET", "/whoami", "")
	refused(t, ans, 401, "session_unknown")
	if got := ans.header.Get("WWW-Authenticate"); !strings.HasPrefix(got, `DPoP error="invalid_token"`) {
		t.Fatalf("WWW-Authenticate %q", got)
	}
}

func TestLoginPassesOnWhatWasProven(t *testing.T) {
	tc, n := one(t)
	c := tc.newClient(t, "", "dpop")
	r := c.request("POST", n.url+"/api/v1/login", `{"method":"github","token":"sesame-id-token"}`)
	refused(t, c.send(r), 401, api.CodeNoProof)

	var out wire.LoginAnswer
	okay(t, c.do(n, "POST", "/login", `{"method":"github","token":"sesame-id-token"}`), &out)
	in := n.broker.login
	if in.JKT != c.key.Thumbprint() || in.X5T != "" || in.Token != "sesame-id-token" || in.Address != "127.0.0.1" || out.SessionToken != "mfs_fresh" {
		t.Fatalf("%+v %+v", in, out)
	}

	m := tc.newClient(t, "", "mtls")
	okay(t, m.send(m.request("POST", n.url+"/api/v1/login", `{}`)), nil)
	if in = n.broker.login; in.X5T == "" || len(in.PeerCerts) != 1 || in.JKT != "" {
		t.Fatalf("%+v", in)
	}
}

func TestGuessingIsSlowedAndNeighboursAreNot(t *testing.T) {
	tc, n := one(t, func(c *api.Config) { c.Limits.Failures = 0.1 }) // a burst of 2
	good := tc.newClient(t, sesame, "dpop")
	bad := tc.newClient(t, "", "")
	bad.token = "mfs_guess"
	for range 2 {
		refused(t, bad.do(n, "GET", "/whoami", ""), 401, "session_unknown")
	}
	ans := bad.do(n, "GET", "/whoami", "")
	p := refused(t, ans, 429, api.CodeRateLimited)
	if ans.header.Get("Retry-After") == "" || p.RetryAfter < 1 {
		t.Fatalf("no Retry-After: %+v", p)
	}
	okay(t, good.do(n, "GET", "/whoami", ""), nil)
	// Whoever has failed so often may not try to log in from there either.
	refused(t, bad.do(n, "POST", "/login", `{}`), 429, api.CodeRateLimited)
}

func TestHazard5CutOffNodeAnswersNobody(t *testing.T) {
	tc, n := one(t)
	c := tc.newClient(t, sesame, "dpop")
	n.broker.set(func(b *fakeBroker) { b.stale = true })
	ans := c.do(n, "GET", "/whoami", "")
	refused(t, ans, 503, "stale")
	if ans.header.Get("Retry-After") == "" {
		t.Fatal("no Retry-After")
	}
}
