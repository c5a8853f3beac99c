package broker_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// provider is an OpenID provider over TLS. Its fields may be changed before it is
// asked.
type provider struct {
	*httptest.Server
	t   testing.TB
	key *ecdsa.PrivateKey
	// document is laid over the discovery document, claims over the ID token; nil
	// takes a member out.
	document, claims map[string]any
	// token answers the token endpoint instead of the provider, sign makes the
	// ID token.
	token http.HandlerFunc
	sign  func(claims map[string]any) string

	nonce, challenge string // of the one code
	redeems          atomic.Int64
}

const (
	clientID     = "mayfly console"
	clientSecret = "a secret: 100% & more"
)

func newProvider(t testing.TB) *provider {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p := &provider{t: t, key: key}
	p.sign = func(claims map[string]any) string { return p.signed(p.key, claims) }
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		doc := map[string]any{"issuer": p.URL, "jwks_uri": p.URL + "/keys", "authorization_endpoint": p.URL + "/authorize?tenant=1", "token_endpoint": p.URL + "/token",
			"authorization_response_iss_parameter_supported": true, "code_challenge_methods_supported": []string{"plain", "S256"}}
		reply(w, lay(doc, p.document))
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k1", Algorithm: "ES256", Use: "sig"}}})
	})
	mux.HandleFunc("POST /token", p.redeem)
	p.Server = httptest.NewUnstartedServer(mux)
	p.Config.ErrorLog = log.New(io.Discard, "", 0)
	p.StartTLS()
	t.Cleanup(p.Close)
	return p
}

func reply(w http.ResponseWriter, doc any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(doc)
}

func lay(doc, over map[string]any) map[string]any {
	for k, v := range over {
		if doc[k] = v; v == nil {
			delete(doc, k)
		}
	}
	return doc
}

func (p *provider) signed(key *ecdsa.PrivateKey, claims map[string]any) string {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "k1"}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		p.t.Error(err)
		return ""
	}
	text, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		p.t.Error(err)
	}
	return text
}

// redeem is the token endpoint, as strict as RFC 6749 and RFC 7636 ask.
func (p *provider) redeem(w http.ResponseWriter, r *http.Request) {
	p.redeems.Add(1)
	if p.token != nil {
		p.token(w, r)
		return
	}
	id, password, ok := r.BasicAuth()
	id, _ = url.QueryUnescape(id)
	password, _ = url.QueryUnescape(password)
	verifier := sha256.Sum256([]byte(r.PostFormValue("code_verifier")))
	if !ok || id != clientID || password != clientSecret || r.PostFormValue("grant_type") != "authorization_code" || r.PostFormValue("code") != "the-code" ||
		r.PostFormValue("redirect_uri") != "https://mayfly.example/signin/oidc/callback" || base64.RawURLEncoding.EncodeToString(verifier[:]) != p.challenge {
		w.WriteHeader(http.StatusBadRequest)
		reply(w, map[string]string{"error": "invalid_grant"})
		return
	}
	now := time.Now()
	claims := map[string]any{"iss": p.URL, "aud": clientID, "sub": "u-1", "dept": "ops", "nonce": p.nonce, "iat": now.Unix(), "exp": now.Add(time.Minute).Unix()}
	reply(w, map[string]any{"access_token": "unused", "token_type": "Bearer", "id_token": p.sign(lay(claims, p.claims))})
}

// spec is an AuthMethod for the provider.
func (p *provider) spec(console map[string]any) json.RawMessage {
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate().Raw})
	return mustJSON(map[string]any{"type": "oidc", "issuer": p.URL, "audience": "https://mayfly.example/api", "ca": string(ca), "max_ttl": "40m",
		"require": map[string]any{"dept": "ops"}, "console": console,
		"bind": []any{
			map[string]any{"when": map[string]any{"sub": "u-1"}, "as": operator},
			map[string]any{"when": map[string]any{"sub": "robot"}, "as": "workload:a"},
			map[string]any{"when": map[string]any{"sub": "stranger"}, "as": "human:stranger"},
		}})
}

// visit is what the provider does when the browser comes: it remembers what it
// was told, and sends the browser back.
func (p *provider) visit(to string) (state string) {
	p.t.Helper()
	u, err := url.Parse(to)
	if err != nil || !strings.HasPrefix(to, p.URL+"/authorize?") {
		p.t.Fatalf("sent to %q, %v", to, err)
	}
	q := u.Query()
	for name, want := range map[string]string{"response_type": "code", "client_id": clientID, "scope": "openid email", "code_challenge_method": "S256",
		"redirect_uri": "https://mayfly.example/signin/oidc/callback", "tenant": "1"} {
		if q.Get(name) != want {
			p.t.Errorf("%s = %q, want %q", name, q.Get(name), want)
		}
	}
	p.nonce, p.challenge = q.Get("nonce"), q.Get("code_challenge")
	return q.Get("state")
}
