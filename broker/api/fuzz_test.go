package api_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/api"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// FuzzHTTP sends whatever to the handler, with and without a good session:
// nothing is ever an internal error, every refusal is a problem document, and
// no answer repeats the session token.
func FuzzHTTP(f *testing.F) {
	tc := start(f, 1, func(c *api.Config) {
		c.Limits = api.Limits{Logins: 1e9, Failures: 1e9, Operator: 1e9, Open: 1e9}
	})
	n := tc.nodes[0]
	c := tc.newClient(f, sesame, "dpop").fresh(n)
	for _, op := range operations {
		method, path, _ := strings.Cut(op, " ")
		f.Add(method, "/api/v1"+path, "", "Accept: */*", []byte(`{}`), true)
	}
	f.Add("POST", "/api/v1/requests", "", "Idempotency-Key: k", []byte(`{"role":"orders/readonly","scope":[{"type":"database"}],"ttl":"1h"}`), true)
	f.Add("POST", "/api/v1/objects", "", "Content-Type: application/json", []byte(`{"objects":[{"kind":"Role","name":"a","spec":{"x":[1,2,{"y":null}]},"secrets":{"p":"q"}}],"dry_run":true}`), true)
	f.Add("POST", "/api/v1/login", "", "DPoP: a.b.c", []byte(`{"method":"x","jwk":{"kty":"EC"}}`), false)
	f.Add("GET", "/api/v1/leases", "limit=5&state=open&after=a%20b", "Range: bytes=0-", []byte(nil), true)
	f.Add("POST", "/api/v1/tasks/a%2Fb/end", "wait=1s", "Expect: 100-continue", []byte("{}"), true)
	f.Add("GET", "/.well-known/openid-configuration", "", "Origin: null", []byte(nil), false)
	f.Add("HEAD", "/healthz", "", "Host: evil", []byte(nil), false)
	f.Add("CONNECT", "/", "", "Upgrade: websocket", []byte(nil), false)
	f.Add("POST", "/api/v1/sys/init", "", "Authorization: Bearer x", []byte(`{"shares":-1,"admins":null}`), false)
	f.Fuzz(func(t *testing.T, method, path, query, header string, body []byte, signed bool) {
		r, err := http.NewRequest(method, n.url+path, bytes.NewReader(body))
		if err != nil {
			return
		}
		r.URL.RawQuery = query
		r.RemoteAddr = "127.0.0.1:1"
		r.Header.Set("Content-Type", "application/json")
		if signed {
			proof, err := c.key.DPoP(r.Method, r.URL.String(), c.nonce, sesame, now)
			if err == nil {
				r.Header.Set("Authorization", "DPoP "+sesame)
				r.Header.Set("DPoP", proof)
			}
		}
		if name, v, ok := strings.Cut(header, ": "); ok && name != "" {
			r.Header[http.CanonicalHeaderKey(name)] = []string{v}
		}
		w := httptest.NewRecorder()
		n.server.Handler().ServeHTTP(w, r)
		if w.Code >= 500 {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		if strings.Contains(w.Body.String(), sesame) {
			t.Fatalf("the answer repeats the token: %s", w.Body)
		}
		if w.Code < 400 {
			return
		}
		if strings.HasPrefix(w.Header().Get("Content-Type"), "application/json") && strings.HasPrefix(path, "/oauth/") {
			return // RFC 6749's errors; FuzzTokenForm reads them
		}
		var p wire.Problem
		if w.Header().Get("Content-Type") != "application/problem+json" || json.Unmarshal(w.Body.Bytes(), &p) != nil || p.Status != w.Code || p.Code == "" || p.Detail == "" {
			t.Fatalf("%d %s %s", w.Code, w.Header().Get("Content-Type"), w.Body)
		}
	})
}
