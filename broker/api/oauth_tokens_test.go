package api_test

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker/api"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// jwtOf is a JWT as a jwt target mints it.
func (w *world) jwtOf(t testing.TB, change map[string]any) string {
	c := map[string]any{"iss": w.issuer, "sub": ann, "aud": "https://api.example", "client_id": ann, "jti": jti, "scope": "read",
		"iat": w.clock().Unix(), "nbf": w.clock().Unix(), "exp": w.clock().Add(5 * time.Minute).Unix(), "cnf": map[string]string{"jkt": "thumb"},
		"act": map[string]string{"sub": "agent:x"}, "authorization_details": []any{map[string]any{"type": "jwt", "actions": []string{"use"}}}, "active": true}
	for k, v := range change {
		c[k] = v
	}
	return w.sign(t, c)
}

func (w *world) holds(principal string) {
	w.set(func(w *world) { w.lease = wire.Lease{ID: lease, State: "open", Principal: principal, Username: jti} })
}

func introspect(t testing.TB, w *world, c *client, n *testNode, token string) (out map[string]any) {
	t.Helper()
	okay(t, w.post(c, n, "/oauth/introspect", w.asClient(c, with("token", token))), &out)
	return out
}

func TestIntrospectionOfSessions(t *testing.T) {
	tc, w := oauthNodes(t, 1)
	n, c := tc.nodes[0], w.registered(tc, t)
	out := oauthOK(t, w.post(c, n, "/oauth/token", w.asClient(c, with("grant_type", clientCC))))
	got := introspect(t, w, c, n, out.AccessToken)
	cnf, _ := got["cnf"].(map[string]any)
	if got["active"] != true || got["sub"] != ann || got["token_type"] != "DPoP" || cnf["jkt"] != c.key.Thumbprint() || got["exp"] != float64(now.Add(15*time.Minute).Unix()) {
		t.Fatalf("%v", got)
	}
	for _, token := range []string{"mfs_unknown", "x", "lse_1", "mfe_x", "mfd_x", out.AccessToken + "x"} {
		if got := introspect(t, w, c, n, token); len(got) != 1 || got["active"] != false {
			t.Fatalf("%s: %v", token, got)
		}
	}
	tc.newClient(t, sesame, "cookie")
	if got := introspect(t, w, c, n, sesame); len(got) != 1 || got["active"] != false {
		t.Fatalf("%v", got)
	}
	oauthRefused(t, w.post(c, n, "/oauth/introspect", with("token", out.AccessToken)), 401, "invalid_client")
	oauthRefused(t, w.post(c, n, "/oauth/introspect", w.asClient(c, with())), 400, "invalid_request")
	if w.opened != w.ended+1 {
		t.Fatalf("%d sessions opened, %d ended", w.opened, w.ended)
	}
}

func TestIntrospectionOfJWTs(t *testing.T) {
	tc, w := oauthNodes(t, 1)
	n, c := tc.nodes[0], w.registered(tc, t)
	w.holds(ann)
	good := w.jwtOf(t, nil)
	got := introspect(t, w, c, n, good)
	if got["active"] != true || got["jti"] != jti || got["sub"] != ann || got["token_type"] != "DPoP" || got["scope"] != "read" || got["aud"] != "https://api.example" || got["act"] == nil || got["authorization_details"] == nil {
		t.Fatalf("%v", got)
	}
	parts := strings.Split(good, ".")
	claims := part(t, good, 1)
	claims["sub"] = "human:eve"
	raw, err := json.Marshal(claims)
	must(t, err)
	forged := base64.RawURLEncoding.EncodeToString(raw)
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","kid":"k1"}`))
	for name, token := range map[string]string{
		"forged": parts[0] + "." + forged + "." + parts[2], "none": none + "." + forged + ".", "unsigned": parts[0] + "." + parts[1] + ".",
		"issuer": w.jwtOf(t, map[string]any{"iss": "https://other.example"}), "expired": w.jwtOf(t, map[string]any{"exp": now.Unix()}),
		"early": w.jwtOf(t, map[string]any{"nbf": now.Add(time.Minute).Unix()}), "no lease": w.jwtOf(t, map[string]any{"jti": "x"}),
		"generation": w.jwtOf(t, map[string]any{"jti": strings.TrimSuffix(jti, "1") + "2"}), "another": w.jwtOf(t, map[string]any{"jti": strings.Replace(jti, "0", "1", 1)}),
	} {
		if got := introspect(t, w, c, n, token); len(got) != 1 || got["active"] != false {
			t.Errorf("%s: %v", name, got)
		}
	}
	if got := introspect(t, w, c, n, w.jwtOf(t, map[string]any{"cnf": nil})); got["token_type"] != "Bearer" {
		t.Fatalf("%v", got)
	}
	w.set(func(w *world) { w.lease.State = "ending" })
	if got := introspect(t, w, c, n, good); got["active"] != false {
		t.Fatalf("%v", got)
	}
	// Whose lease it is not and who may not read it, learns nothing.
	w.holds("human:bo")
	if got := introspect(t, w, c, n, good); len(got) != 1 || got["active"] != false {
		t.Fatalf("%v", got)
	}
}

func TestIntrospectionAtAFollower(t *testing.T) {
	tc, w := oauthNodes(t, 2)
	follower := tc.nodes[1]
	c := tc.newClient(t, sesame, "dpop")
	var out map[string]any
	okay(t, w.post(c, follower, "/oauth/introspect", with("token", sesame)), &out)
	if out["active"] != true {
		t.Fatalf("%v", out)
	}
	// What a follower has not heard of yet, the leader may know.
	follower.broker.set(func(b *fakeBroker) { b.lagging = true })
	okay(t, w.post(c, follower, "/oauth/introspect", with("token", sesame)), &out)
	if out["active"] != true {
		t.Fatalf("%v", out)
	}
	follower.broker.set(func(b *fakeBroker) { b.lagging, b.stale = false, true })
	oauthRefused(t, w.post(c, follower, "/oauth/introspect", with("token", sesame)), 503, "temporarily_unavailable")
}

func TestRevocation(t *testing.T) {
	tc, w := oauthNodes(t, 1)
	n, c := tc.nodes[0], w.registered(tc, t)
	revoke := func(token string) reply { return w.post(c, n, "/oauth/revoke", w.asClient(c, with("token", token))) }
	quiet := func(r reply) {
		t.Helper()
		if r.status != 200 || len(r.body) != 0 {
			t.Fatalf("%d %s", r.status, r.body)
		}
	}
	for _, token := range []string{"x", "mfs_unknown", lease, w.jwtOf(t, nil)} {
		quiet(revoke(token))
	}
	out := oauthOK(t, w.post(c, n, "/oauth/token", w.asClient(c, with("grant_type", clientCC))))
	quiet(revoke(out.AccessToken))
	if got := introspect(t, w, c, n, out.AccessToken); got["active"] != false {
		t.Fatalf("%v", got)
	}
	tc.newClient(t, sesame, "dpop")
	tc.mu.Lock()
	s := tc.sessions[sesame]
	s.Principal = "human:bo"
	tc.sessions[sesame] = s
	tc.mu.Unlock()
	oauthRefused(t, revoke(sesame), 400, "unauthorized_client")

	w.holds(ann)
	quiet(revoke(w.jwtOf(t, nil)))
	w.holds(ann)
	quiet(revoke(lease))
	quiet(revoke(lease)) // it has ended
	if len(w.revoked) != 2 || w.revoked[0] != lease {
		t.Fatalf("%q", w.revoked)
	}
	oauthRefused(t, w.post(c, n, "/oauth/revoke", w.asClient(c, with("token", "x", "token_type_hint", "refresh_token"))), 400, "unsupported_token_type")
	oauthRefused(t, w.post(c, n, "/oauth/revoke", with("token", "x")), 401, "invalid_client")
	oauthRefused(t, w.post(c, n, "/oauth/revoke", w.asClient(c, with())), 400, "invalid_request")
}

// FuzzTokenForm sends any body to the three endpoints, by a client with a good
// proof and, as told, a session: nothing is an internal error, every refusal is
// RFC 6749's, and none repeats the session or what was sent as a secret.
func FuzzTokenForm(f *testing.F) {
	tc, w := oauthNodes(f, 1, func(c *api.Config) {
		c.Limits = api.Limits{Logins: 1e9, Failures: 1e9, Operator: 1e9, Open: 1e9}
	})
	n, c := tc.nodes[0], tc.newClient(f, sesame, "dpop").fresh(tc.nodes[0])
	w.wait(c, wire.GrantWaiting)
	session := tc.sessions[sesame]
	for _, v := range []string{
		"", "&", "=", "%", "a=b&a=b", "grant_type=client_credentials&client_assertion=sesame-secret", "grant_type=client_credentials&audience=a%2Fb&completion_mode=deferred",
		with("grant_type", clientCC, "authorization_details", readonly).Encode(), with("grant_type", exchange, "subject_token", "sesame-secret", "mayfly_method", "ci").Encode(),
		with("grant_type", deferredGT, "deferral_code", "mfd_01jdz5x0000000000000000000"+strings.Repeat("A", 27)).Encode(), "token=" + sesame, "token=ey.ey.ey&token_type_hint=access_token", "token=" + w.jwtOf(f, nil), "token=" + lease,
		`grant_type=client_credentials&authorization_details=[{"type":"mayfly_role","identifier":"a/b"},{"type":"x","y":[{"z":null}]}]`,
	} {
		for kind := range uint8(6) {
			f.Add(v, kind)
		}
	}
	paths := []string{"/oauth/token", "/oauth/introspect", "/oauth/revoke"}
	f.Fuzz(func(t *testing.T, body string, kind uint8) {
		path, signed := paths[kind%3], kind/3%2 == 0
		r := httptest.NewRequest("POST", n.url+path, strings.NewReader(body))
		r.Host, r.RemoteAddr, r.RequestURI = n.addr, "127.0.0.1:1", path
		r.URL.Scheme, r.URL.Host = "", ""
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		token := ""
		if signed {
			token = sesame
			r.Header.Set("Authorization", "DPoP "+sesame)
		}
		proof, err := c.key.DPoP("POST", n.url+path, c.nonce, token, now)
		must(t, err)
		r.Header.Set("DPoP", proof)
		a := httptest.NewRecorder()
		n.server.Handler().ServeHTTP(a, r)
		if a.Code >= 500 {
			t.Fatalf("%d %s", a.Code, a.Body)
		}
		if strings.Contains(a.Body.String(), sesame) || strings.Contains(a.Body.String(), "sesame-secret") {
			t.Fatalf("the answer repeats a secret: %s", a.Body)
		}
		if a.Code == http.StatusOK {
			tc.mu.Lock()
			tc.sessions[sesame] = session // which may have ended itself
			tc.mu.Unlock()
			return
		}
		var p oauthAnswer
		if a.Header().Get("Content-Type") != "application/json" || json.Unmarshal(a.Body.Bytes(), &p) != nil || p.Error == "" || p.Description == "" || p.Code == "" {
			t.Fatalf("%d %s %s", a.Code, a.Header().Get("Content-Type"), a.Body)
		}
	})
}
