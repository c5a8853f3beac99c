package api_test

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker/api"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/identity"
	"github.com/mayfly-broker/mayfly/client/keys"
	"github.com/mayfly-broker/mayfly/client/wire"
)

const (
	clientCC   = "client_credentials"
	exchange   = "urn:ietf:params:oauth:grant-type:token-exchange"
	deferredGT = "urn:ietf:params:oauth:grant-type:deferred"
	readonly   = `[{"type":"mayfly_role","identifier":"orders/readonly"}]`
)

func TestDiscoveryNamesWhatIsServed(t *testing.T) {
	tc, n := one(t)
	c := tc.newClient(t, "", "")
	for _, path := range []string{"/.well-known/openid-configuration", "/.well-known/oauth-authorization-server"} {
		var meta map[string]any
		okay(t, c.send(c.request("GET", n.url+path, "")), &meta)
		if meta["issuer"] != n.url || meta["deferred_token_response_supported"] != true {
			t.Errorf("%s: %v", path, meta)
		}
		for name, v := range meta {
			at, _ := v.(string)
			if !strings.HasSuffix(name, "_endpoint") {
				continue
			}
			// Each is there, and wants to know who asks.
			r := c.request("POST", at, "")
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			oauthRefused(t, c.send(r), 400, "invalid_dpop_proof")
		}
	}
}

func TestClientCredentialsOpenASession(t *testing.T) {
	tc, w := oauthNodes(t, 1)
	n, c := tc.nodes[0], w.registered(tc, t)
	out := oauthOK(t, w.post(c, n, "/oauth/token", w.asClient(c, with("grant_type", clientCC, "client_id", ann, "resource", n.url+"/mcp"))))
	if !strings.HasPrefix(out.AccessToken, "mfs_") || out.TokenType != "DPoP" || out.ExpiresIn != 900 || out.IssuedTokenType != "urn:ietf:params:oauth:token-type:access_token" {
		t.Fatalf("%+v", out)
	}
	if w.ended != 0 {
		t.Fatal("the session that was asked for has been ended")
	}
	c.token = out.AccessToken
	var who wire.Whoami
	okay(t, c.send(w.prove(c, n, c.request("GET", n.url+"/api/v1/whoami", ""))), &who)
	if who.Principal != ann {
		t.Fatalf("%+v", who)
	}
	// With a session there is nothing to be had but a role.
	oauthRefused(t, w.post(c, n, "/oauth/token", with("grant_type", clientCC)), 400, "invalid_request")
}

func TestClientCredentialsOverMutualTLS(t *testing.T) {
	tc, w := oauthNodes(t, 1)
	n, m := tc.nodes[0], tc.newClient(t, "", "mtls")
	w.set(func(w *world) { w.keys[m.key.Thumbprint()] = ann })
	out := oauthOK(t, m.send(m.formRequest(n, "/oauth/token", w.asClient(m, with("grant_type", clientCC)).Encode())))
	if out.TokenType != "mTLS" || out.AccessToken == "" {
		t.Fatalf("%+v", out)
	}
}

func TestCredentialsThatAreNoTokens(t *testing.T) {
	tc, w := oauthNodes(t, 1)
	n, c := tc.nodes[0], w.registered(tc, t)
	details := `[{"type":"mayfly_role","identifier":"orders/readonly","purpose":"ticket 123","ttl":"15m"},
	             {"type":"database","identifier":"orders","actions":["select"],"tables":[{"name":"public.orders"}]}]`
	out := oauthOK(t, w.post(c, n, "/oauth/token", w.asClient(c, with("grant_type", clientCC, "authorization_details", details))))
	if out.TokenType != "N_A" || out.IssuedTokenType != "urn:mayfly:params:oauth:token-type:credential" || out.Credential["password"] != "sesame-password" || out.ExpiresIn != 600 || out.LeaseID != lease {
		t.Fatalf("%+v", out)
	}
	var same map[string]string
	must(t, json.Unmarshal([]byte(out.AccessToken), &same))
	if same["username"] != "mf_x" {
		t.Fatalf("access_token is not the credential's JSON: %s", out.AccessToken)
	}
	if got := string(out.Details); got != `[{"type":"mayfly_role","identifier":"orders/readonly"},{"type":"database","identifier":"orders","actions":["select"]}]` {
		t.Fatalf("what was granted: %s", got)
	}
	in := w.asked[0]
	if in.Role != "orders/readonly" || in.Purpose != "ticket 123" || in.TTL != "15m" || !strings.Contains(string(in.Scope), "public.orders") || strings.Contains(string(in.Scope), "mayfly_role") {
		t.Fatalf("%+v %s", in, in.Scope)
	}
	if w.opened != 1 || w.ended != 1 {
		t.Fatalf("%d sessions opened, %d ended", w.opened, w.ended)
	}
}

func TestTokensAreBoundToTheProofsKey(t *testing.T) {
	tc, w := oauthNodes(t, 1)
	n, c := tc.nodes[0], w.registered(tc, t)
	w.set(func(w *world) { w.answer.Credential = map[string]string{"token": "ey.x.y", "token_type": "DPoP"} })
	out := oauthOK(t, w.post(c, n, "/oauth/token", w.asClient(c, with("grant_type", clientCC, "audience", "api/read"))))
	if out.AccessToken != "ey.x.y" || out.TokenType != "DPoP" || out.Credential != nil || out.IssuedTokenType != "urn:ietf:params:oauth:token-type:access_token" {
		t.Fatalf("%+v", out)
	}
	own, err := c.key.PublicJWK()
	must(t, err)
	if in := w.asked[0]; in.Role != "api/read" || !sameKey(t, in.PublicKey, own) {
		t.Fatalf("%s is not %s", in.PublicKey, own)
	}
}

func sameKey(t testing.TB, a, b []byte) bool {
	t.Helper()
	var x, y map[string]any
	must(t, json.Unmarshal(a, &x))
	must(t, json.Unmarshal(b, &y))
	return x["x"] == y["x"] && x["y"] == y["y"] && x["crv"] == y["crv"] && x["d"] == nil
}

func TestSessionAuthenticatesToo(t *testing.T) {
	tc, w := oauthNodes(t, 1)
	n, c := tc.nodes[0], tc.newClient(t, sesame, "dpop")
	oauthOK(t, w.post(c, n, "/oauth/token", with("grant_type", clientCC, "audience", "orders/readonly")))
	if w.opened != 0 || w.ended != 0 {
		t.Fatal("a session was opened or ended")
	}
	oauthRefused(t, w.post(c, n, "/oauth/token", w.asClient(c, with("grant_type", clientCC, "audience", "orders/readonly"))), 400, "invalid_request")
	thief := tc.newClient(t, "", "")
	thief.token = sesame
	oauthRefused(t, w.post(thief, n, "/oauth/token", with("grant_type", clientCC, "audience", "orders/readonly")), 401, "invalid_client")
}

func TestGuessingAtTheTokenEndpointIsSlowedAndNeighboursAreNot(t *testing.T) {
	tc, w := oauthNodes(t, 1, func(c *api.Config) { c.Limits.Failures = 0.1 }) // a burst of 2
	n, c, good := tc.nodes[0], tc.newClient(t, "", "dpop"), tc.newClient(t, sesame, "dpop")
	for range 2 {
		oauthRefused(t, w.post(c, n, "/oauth/token", w.asClient(c, with("grant_type", clientCC))), 401, "invalid_client")
	}
	if r := w.post(c, n, "/oauth/token", w.asClient(c, with("grant_type", clientCC))); r.header.Get("Retry-After") == "" {
		t.Fatal("no Retry-After")
	} else {
		oauthRefused(t, r, 429, "temporarily_unavailable")
	}
	oauthOK(t, w.post(good, n, "/oauth/token", with("grant_type", clientCC, "audience", "orders/readonly")))
}

func TestAssertionsThatAreRefused(t *testing.T) {
	tc, w := oauthNodes(t, 1)
	n, c := tc.nodes[0], w.registered(tc, t)
	send := func(by *client, assertion, typ string) reply {
		return w.post(by, n, "/oauth/token", with("grant_type", clientCC, "client_assertion", assertion, "client_assertion_type", typ))
	}
	const typ = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
	good := w.assertion(c)
	parts := strings.Split(good, ".")
	head := part(t, good, 0)
	head["alg"] = "none"
	raw, err := json.Marshal(head)
	must(t, err)
	unsigned := base64.RawURLEncoding.EncodeToString(raw) + "." + parts[1] + "."
	for name, audience := range map[string]string{"endpoint": n.url + "/oauth/token", "slash": n.url + "/", "other": "https://evil.example"} {
		a, err := c.key.Assertion(audience, ann, "", w.clock())
		must(t, err)
		if out := oauthRefused(t, send(c, a, typ), 401, "invalid_client"); out.Code != identity.CodeAudience {
			t.Errorf("%s: %+v", name, out)
		}
	}
	if out := oauthRefused(t, send(c, unsigned, typ), 401, "invalid_client"); out.Code != identity.CodeAlgorithm {
		t.Errorf("%+v", out)
	}
	old, err := c.key.Assertion(w.issuer, ann, "", w.clock().Add(-time.Hour))
	must(t, err)
	oauthRefused(t, send(c, old, typ), 401, "invalid_client")
	oauthRefused(t, send(c, good, "urn:ietf:params:oauth:client-assertion-type:saml2-bearer"), 401, "invalid_client")
	oauthRefused(t, send(c, "", typ), 401, "invalid_client")
	oauthRefused(t, w.post(c, n, "/oauth/token", with("grant_type", clientCC, "client_secret", "sesame", "client_id", "x")), 401, "invalid_client")
	stranger := tc.newClient(t, "", "")
	oauthRefused(t, send(stranger, w.assertion(stranger), typ), 401, "invalid_client")
	oauthRefused(t, w.post(c, n, "/oauth/token", w.asClient(c, with("grant_type", clientCC, "client_id", "human:bo"))), 401, "invalid_client")
	if w.opened != w.ended {
		t.Fatalf("%d sessions opened, %d ended", w.opened, w.ended)
	}
	basic := w.prove(c, n, c.formRequest(n, "/oauth/token", "grant_type=client_credentials"))
	basic.SetBasicAuth("x", "sesame")
	oauthRefused(t, c.send(basic), 401, "invalid_client")
}

func TestHazard3StolenAssertionGetsNoTokenForAnotherKey(t *testing.T) {
	tc, w := oauthNodes(t, 1)
	n, c, thief := tc.nodes[0], w.registered(tc, t), tc.newClient(t, "", "")
	// A thief with a registered key of its own fares no better.
	w.set(func(w *world) { w.keys[thief.key.Thumbprint()] = "human:bo" })
	v := w.asClient(c, with("grant_type", clientCC))
	if out := oauthRefused(t, w.post(thief, n, "/oauth/token", v), 401, "invalid_client"); out.Code != identity.CodeKeyBinding {
		t.Fatalf("%+v", out)
	}
	oauthOK(t, w.post(c, n, "/oauth/token", v))
	if out := oauthRefused(t, w.post(thief, n, "/oauth/token", v), 401, "invalid_client"); out.Code != identity.CodeKeyBinding {
		t.Fatalf("%+v", out)
	}
}

func TestProofsOfTokenRequests(t *testing.T) {
	tc, w := oauthNodes(t, 1)
	n, c := tc.nodes[0], w.registered(tc, t)
	body := func() string { return w.asClient(c, with("grant_type", clientCC)).Encode() }
	oauthRefused(t, c.send(c.formRequest(n, "/oauth/token", body())), 400, "invalid_dpop_proof")

	c.nonce = ""
	r := c.sign(c.formRequest(n, "/oauth/token", body()))
	ans := c.send(r)
	oauthRefused(t, ans, 400, "use_dpop_nonce")
	if c.nonce = ans.header.Get("DPoP-Nonce"); c.nonce == "" {
		t.Fatal("no DPoP-Nonce")
	}
	r = c.sign(c.formRequest(n, "/oauth/token", body()))
	again := c.formRequest(n, "/oauth/token", body())
	again.Header = r.Header.Clone()
	oauthOK(t, c.send(r))
	if out := oauthRefused(t, c.send(again), 400, "invalid_dpop_proof"); out.Code != identity.CodeProofReplayed {
		t.Fatalf("%+v", out)
	}
	moved := w.prove(c, n, c.formRequest(n, "/oauth/revoke", body()))
	to := c.formRequest(n, "/oauth/token", body())
	to.Header = moved.Header
	oauthRefused(t, c.send(to), 400, "invalid_dpop_proof")
}

func TestFormsAreReadStrictly(t *testing.T) {
	tc, w := oauthNodes(t, 1)
	n, c := tc.nodes[0], w.registered(tc, t)
	good := w.asClient(c, with("grant_type", clientCC)).Encode()
	send := func(body string) reply { return c.send(w.prove(c, n, c.formRequest(n, "/oauth/token", body))) }
	for name, body := range map[string]string{
		"twice":            good + "&grant_type=client_credentials",
		"twice, once none": good + "&grant_type=",
		"unknown, twice":   good + "&x=1&x=1",
		"escape":           good + "&x=%zz",
		"name":             good + "&%zz=1",
		"not UTF-8":        good + "&x=%ff",
		"no name":          good + "&=1",
		"many":             good + strings.Repeat("&a", 1) + "&" + manyParameters(40),
		"no grant type":    "client_id=human%3Aann",
		"empty":            "",
	} {
		if r := send(body); r.status != 400 {
			t.Errorf("%s: %d %s", name, r.status, r.body)
		} else {
			oauthRefused(t, r, 400, "invalid_request")
		}
	}
	for _, gt := range []string{"password", "authorization_code", "refresh_token", "urn:ietf:params:oauth:grant-type:jwt-bearer", "CLIENT_CREDENTIALS"} {
		oauthRefused(t, send("grant_type="+url.QueryEscape(gt)), 400, "unsupported_grant_type")
	}
	oauthRefused(t, send("x="+strings.Repeat("a", 64<<10)), 413, "invalid_request")
	r := w.prove(c, n, c.formRequest(n, "/oauth/token", good))
	r.Header.Set("Content-Type", "application/json")
	oauthRefused(t, c.send(r), 415, "invalid_request")
	r = w.prove(c, n, c.formRequest(n, "/oauth/token", good))
	r.URL.RawQuery = "client_id=x"
	oauthRefused(t, c.send(r), 400, "invalid_request")
	// What nobody knows is ignored, and so is what has no value.
	oauthOK(t, send(good+"&unheard_of=1&scope=&&"))
	if w.opened != 1 {
		t.Fatalf("%d sessions opened", w.opened)
	}
}

func manyParameters(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString("&p" + string(rune('a'+i/26)) + string(rune('a'+i%26)) + "=1")
	}
	return b.String()
}

func TestWhatIsAskedForIsReadStrictly(t *testing.T) {
	tc, w := oauthNodes(t, 1)
	n, c := tc.nodes[0], w.registered(tc, t)
	for _, x := range []struct{ name, value, word string }{
		{"authorization_details", `{"type":"mayfly_role"}`, "invalid_authorization_details"},
		{"authorization_details", `[{"type":"mayfly_role","identifier":"a/b"}] []`, "invalid_authorization_details"},
		{"authorization_details", `null`, "invalid_authorization_details"},
		{"authorization_details", `[]`, "invalid_authorization_details"},
		{"authorization_details", `[1]`, "invalid_authorization_details"},
		{"authorization_details", `[{"type":"mayfly_role"}]`, "invalid_authorization_details"},
		{"authorization_details", `[{"type":"database","actions":["select"]}]`, "invalid_authorization_details"},
		{"authorization_details", `[{"identifier":"a/b"}]`, "invalid_authorization_details"},
		{"authorization_details", `[{"type":"mayfly_role","identifier":"a/b","emergency":true}]`, "invalid_authorization_details"},
		{"authorization_details", `[{"type":"mayfly_role","Identifier":"a/b"}]`, "invalid_authorization_details"},
		{"authorization_details", `[{"type":"mayfly_role","identifier":"a/b","identifier":"c/d"}]`, "invalid_authorization_details"},
		{"authorization_details", `[{"type":"mayfly_role","identifier":["a/b"]}]`, "invalid_authorization_details"},
		{"authorization_details", `[{"type":"mayfly_role","identifier":"a/b"},{"type":"mayfly_role","identifier":"c/d"}]`, "invalid_authorization_details"},
		{"authorization_details", `[{"type":"mayfly_role","identifier":"a/b"},{"type":"database","x":{"y":1,"y":2}}]`, "invalid_authorization_details"},
		{"authorization_details", `[` + strings.Repeat(`{"type":"x"},`, 65) + `{"type":"mayfly_role","identifier":"a/b"}]`, "invalid_authorization_details"},
		{"scope", "read", "invalid_scope"},
		{"resource", "https://evil.example", "invalid_target"},
		{"resource", n.url + ".evil.example", "invalid_target"},
		{"audience", "https://evil.example", "invalid_target"},
		{"requested_token_type", "urn:ietf:params:oauth:token-type:refresh_token", "invalid_request"},
		{"requested_token_type", "urn:mayfly:params:oauth:token-type:credential", "invalid_request"},
	} {
		out := w.post(c, n, "/oauth/token", w.asClient(c, with("grant_type", clientCC, x.name, x.value)))
		t.Log(x.name, x.value)
		oauthRefused(t, out, 400, x.word)
	}
	for _, more := range []url.Values{with("audience", "c/d"), with("resource", n.url)} {
		v := w.asClient(c, with("grant_type", clientCC, "authorization_details", readonly))
		for k := range more {
			v.Set(k, more.Get(k))
		}
		if r := w.post(c, n, "/oauth/token", v); r.status != 400 {
			t.Errorf("%v: %d %s", more, r.status, r.body)
		}
	}
	if w.opened != 0 {
		t.Fatalf("%d sessions opened for requests that cannot be served", w.opened)
	}
}

func TestEngineErrorsInOAuthsWords(t *testing.T) {
	tc, w := oauthNodes(t, 1)
	n, c := tc.nodes[0], w.registered(tc, t)
	for _, x := range []struct {
		err    error
		status int
		word   string
	}{
		{&fault.Error{Kind: fault.Denied, Code: "no_permit", Detail: "No policy permits it.", DecisionID: "dec_9"}, 400, "access_denied"},
		{fault.New(fault.ApprovalRequired, "approval_required", "Approvals \"are\" needed…"), 400, "access_denied"},
		{fault.New(fault.NotFound, "role_not_found", "Role a/b does not exist."), 400, "invalid_authorization_details"},
		{fault.New(fault.Invalid, "invalid_authorization_details", "No."), 400, "invalid_authorization_details"},
		{fault.New(fault.NotFound, "task_not_found", "No."), 400, "invalid_request"},
		{fault.New(fault.Invalid, "ttl_malformed", "No."), 400, "invalid_request"},
		{fault.New(fault.Conflict, "idempotency_key_reused", "No."), 400, "invalid_request"},
		{fault.New(fault.RateLimited, "cap_role", "Too many."), 429, "temporarily_unavailable"},
		{fault.New(fault.Unavailable, "stale", "Cut off."), 503, "temporarily_unavailable"},
		{fault.New(fault.Upstream, "target_failed", "No."), 502, "temporarily_unavailable"},
		{fault.New(fault.Indeterminate, "indeterminate", "Who knows."), 503, "temporarily_unavailable"},
		{fault.New(fault.Internal, "", "sesame"), 500, "server_error"},
	} {
		w.set(func(w *world) { w.err = x.err })
		r := w.post(c, n, "/oauth/token", w.asClient(c, with("grant_type", clientCC, "audience", "a/b")))
		out := oauthRefused(t, r, x.status, x.word)
		if e := fault.As(x.err); out.Decision != e.DecisionID {
			t.Errorf("%+v", out)
		}
		if x.status >= 429 && x.word == "temporarily_unavailable" && x.status != 502 && r.header.Get("Retry-After") == "" {
			t.Errorf("%s without Retry-After", fault.As(x.err).Code)
		}
	}
	if w.opened != w.ended {
		t.Fatalf("%d sessions opened, %d ended", w.opened, w.ended)
	}
}

func TestTokenExchange(t *testing.T) {
	tc, w := oauthNodes(t, 1)
	n, c := tc.nodes[0], tc.newClient(t, "", "dpop")
	token := func() string {
		return w.sign(t, map[string]any{"iss": "https://ci.example", "sub": "deploy", "aud": "mayfly", "jti": "j", "iat": w.clock().Unix(), "exp": w.clock().Add(time.Minute).Unix()})
	}
	ask := func(pairs ...string) url.Values {
		v := with("grant_type", exchange, "subject_token", token(), "subject_token_type", "urn:ietf:params:oauth:token-type:id_token", "mayfly_method", "ci")
		for i := 0; i < len(pairs); i += 2 {
			v.Set(pairs[i], pairs[i+1])
		}
		return v
	}
	out := oauthOK(t, w.post(c, n, "/oauth/token", ask()))
	if !strings.HasPrefix(out.AccessToken, "mfs_") || out.TokenType != "DPoP" || out.IssuedTokenType != "urn:ietf:params:oauth:token-type:access_token" {
		t.Fatalf("%+v", out)
	}
	out = oauthOK(t, w.post(c, n, "/oauth/token", ask("audience", "orders/readonly", "subject_token_type", "urn:ietf:params:oauth:token-type:jwt")))
	if out.TokenType != "N_A" || w.asked[0].Role != "orders/readonly" || w.ended != 1 {
		t.Fatalf("%+v", out)
	}
	for _, bad := range [][]string{
		{"subject_token", "sesame"}, {"subject_token", ""}, {"subject_token_type", "urn:ietf:params:oauth:token-type:saml2"}, {"subject_token_type", ""},
		{"mayfly_method", ""}, {"mayfly_method", "other"}, {"actor_token", "x"}, {"actor_token_type", "x"}, {"client_assertion", "x"}, {"client_secret", "x"},
		{"subject_token", w.sign(t, map[string]any{"iss": "https://ci.example", "sub": "deploy", "aud": "else", "iat": w.clock().Unix(), "exp": w.clock().Add(time.Minute).Unix()})},
	} {
		t.Log(bad)
		oauthRefused(t, w.post(c, n, "/oauth/token", ask(bad...)), 400, "invalid_request")
	}
	// One that was used by another key is spent.
	v := ask()
	oauthOK(t, w.post(c, n, "/oauth/token", v))
	if out := oauthRefused(t, w.post(tc.newClient(t, "", "dpop"), n, "/oauth/token", v), 400, "invalid_request"); out.Code != "token_spent" {
		t.Fatalf("%+v", out)
	}
	s := tc.newClient(t, sesame, "dpop")
	oauthRefused(t, w.post(s, n, "/oauth/token", ask()), 400, "invalid_request")
}

func TestIdempotencyKeyCoversWhatIsAskedNotWhoProvesIt(t *testing.T) {
	tc, w := oauthNodes(t, 1)
	n, c := tc.nodes[0], w.registered(tc, t)
	for _, role := range []string{"orders/readonly", "orders/readonly", "orders/readwrite"} {
		r := w.prove(c, n, c.formRequest(n, "/oauth/token", w.asClient(c, with("grant_type", clientCC, "audience", role)).Encode()))
		r.Header.Set("Idempotency-Key", "k1")
		oauthOK(t, c.send(r))
	}
	h := []string{w.idems[0].Hash, w.idems[1].Hash, w.idems[2].Hash}
	if w.idems[0].Key != "k1" || h[0] != h[1] || h[0] == h[2] {
		t.Fatalf("%q", h)
	}
}

func TestTokenRequestsAreTheLeaders(t *testing.T) {
	tc, w := oauthNodes(t, 2)
	follower, c := tc.nodes[1], w.registered(tc, t)
	ans := w.post(c, follower, "/oauth/token", w.asClient(c, with("grant_type", clientCC, "audience", "orders/readonly")))
	oauthOK(t, ans)
	if calls, _, _ := tc.nodes[0].broker.seen(); calls != 1 {
		t.Fatalf("%d calls at the leader", calls)
	}
	// The leader's refusals come through as they are.
	oauthRefused(t, w.post(c, follower, "/oauth/token", with("grant_type", clientCC)), 401, "invalid_client")
	m := tc.newClient(t, "", "mtls")
	r := m.send(m.formRequest(follower, "/oauth/token", "grant_type=client_credentials"))
	oauthRefused(t, r, http.StatusMisdirectedRequest, "temporarily_unavailable")
	if got := r.header.Get("Location"); got != tc.nodes[0].url+"/oauth/token" {
		t.Fatalf("Location %q", got)
	}
	tc.mu.Lock()
	tc.leader = "nobody"
	tc.mu.Unlock()
	oauthRefused(t, w.post(c, follower, "/oauth/token", with("grant_type", clientCC)), 503, "temporarily_unavailable")
}

func TestLaw6NoSecretReachesTheLogByOAuth(t *testing.T) {
	tc, w := oauthNodes(t, 1)
	n, c := tc.nodes[0], w.registered(tc, t)
	v := w.asClient(c, with("grant_type", clientCC, "audience", "orders/readonly"))
	oauthOK(t, w.post(c, n, "/oauth/token", v))
	out := oauthOK(t, w.post(c, n, "/oauth/token", w.asClient(c, with("grant_type", clientCC))))
	w.wait(c, wire.GrantWaiting)
	d := oauthRefused(t, w.post(c, n, "/oauth/token", w.asClient(c, with("grant_type", clientCC, "audience", "orders/readonly", "completion_mode", "deferred"))), 400, "authorization_pending")
	w.post(c, n, "/oauth/token", w.asClient(c, with("grant_type", deferredGT, "deferral_code", d.Deferral)))
	w.post(c, n, "/oauth/introspect", w.asClient(c, with("token", out.AccessToken)))
	eventually(t, "five requests are logged", func() bool { return strings.Count(n.logs.String(), `"route":"/oauth/`) == 5 })
	for what, s := range map[string]string{"assertion": v.Get("client_assertion"), "password": "sesame", "session": out.AccessToken, "deferral code": d.Deferral} {
		if s == "" || strings.Contains(n.logs.String(), s) {
			t.Errorf("the log has the %s", what)
		}
	}
}

func TestGeneratedKeysOfBothKindsServe(t *testing.T) {
	tc, w := oauthNodes(t, 1)
	n, c := tc.nodes[0], tc.newClient(t, "", "dpop")
	k, err := keys.Generate(keys.Ed25519)
	must(t, err)
	c.key = k
	w.set(func(w *world) { w.keys[k.Thumbprint()] = ann })
	oauthOK(t, w.post(c, n, "/oauth/token", w.asClient(c, with("grant_type", clientCC, "audience", "api/read"))))
	own, err := k.PublicJWK()
	must(t, err)
	if !sameKey(t, w.asked[0].PublicKey, own) || slices.Contains([]string{"", "null"}, string(w.asked[0].PublicKey)) {
		t.Fatalf("%s", w.asked[0].PublicKey)
	}
}
