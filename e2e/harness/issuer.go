package harness

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// Issuer is a local OIDC issuer over TLS: a discovery document, keys, and tokens
// with whatever claims a test wants.
type Issuer struct {
	URL string
	// SPKI is the SHA-256 of its server's public key in base64, by which a browser
	// can be told to trust it.
	SPKI string
	key  *ecdsa.PrivateKey

	mu    sync.Mutex
	codes map[string]url.Values // what the authorization endpoint was asked
}

// The client as which a console is registered at every [Issuer].
const (
	ConsoleClient = "mayfly-console"
	ConsoleSecret = "console-secret"
)

// StartIssuer serves an issuer with a certificate of ca until the test ends.
func StartIssuer(t testing.TB, ca *CA, dir string) *Issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	chain, keyFile := ca.Issue(t, dir, "issuer")
	cert, err := tls.LoadX509KeyPair(chain, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	spki := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	is := &Issuer{key: key, SPKI: base64.StdEncoding.EncodeToString(spki[:]), codes: map[string]url.Values{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]any{"issuer": is.URL, "jwks_uri": is.URL + "/keys", "id_token_signing_alg_values_supported": []string{"ES256"},
			"authorization_endpoint": is.URL + "/authorize", "token_endpoint": is.URL + "/token", "response_types_supported": []string{"code", "id_token"}, "subject_types_supported": []string{"public"},
			"code_challenge_methods_supported": []string{"S256"}, "authorization_response_iss_parameter_supported": true})
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k1", Algorithm: "ES256", Use: "sig"}}})
	})
	mux.HandleFunc("GET /authorize", is.authorize)
	mux.HandleFunc("POST /token", func(w http.ResponseWriter, r *http.Request) { is.redeem(t, w, r) })
	srv := httptest.NewUnstartedServer(mux)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	is.URL = srv.URL
	return is
}

// authorize is the page on which a person, "kim", signs in by a link.
func (i *Issuer) authorize(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	back, err := url.Parse(q.Get("redirect_uri"))
	if err != nil || q.Get("client_id") != ConsoleClient || q.Get("response_type") != "code" || q.Get("code_challenge_method") != "S256" {
		http.Error(w, "The request is not one of the console's.", http.StatusBadRequest)
		return
	}
	code := rand.Text()
	i.mu.Lock()
	i.codes[code] = q
	i.mu.Unlock()
	back.RawQuery = url.Values{"code": {code}, "state": {q.Get("state")}, "iss": {i.URL}}.Encode()
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = fmt.Fprintf(w, `<!doctype html><title>Sign in</title><a id="kim" href="%s">I am Kim</a>`, html.EscapeString(back.String()))
}

// redeem gives the ID token of a code, once, to the client that proves itself
// and the request (RFC 7636).
func (i *Issuer) redeem(t testing.TB, w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	q := i.codes[r.PostFormValue("code")]
	delete(i.codes, r.PostFormValue("code"))
	i.mu.Unlock()
	id, password, _ := r.BasicAuth()
	challenge := sha256.Sum256([]byte(r.PostFormValue("code_verifier")))
	if q == nil || id != ConsoleClient || password != ConsoleSecret || q.Get("redirect_uri") != r.PostFormValue("redirect_uri") ||
		q.Get("code_challenge") != base64.RawURLEncoding.EncodeToString(challenge[:]) {
		w.WriteHeader(http.StatusBadRequest)
		answer(w, map[string]string{"error": "invalid_grant"})
		return
	}
	claims := i.Claims(ConsoleClient, "kim")
	claims["nonce"] = q.Get("nonce")
	answer(w, map[string]string{"token_type": "Bearer", "access_token": "unused", "id_token": i.Sign(t, claims)})
}

func answer(w http.ResponseWriter, doc any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(doc)
}

// Claims are a good token's: one for audience, for an hour, never seen before.
func (i *Issuer) Claims(audience, subject string) map[string]any {
	now := time.Now()
	return map[string]any{"iss": i.URL, "aud": audience, "sub": subject, "iat": now.Unix(), "nbf": now.Unix() - 5, "exp": now.Add(5 * time.Minute).Unix(), "jti": rand.Text()}
}

// Sign makes a token of the issuer's key.
func (i *Issuer) Sign(t testing.TB, claims map[string]any) string {
	t.Helper()
	return sign(t, i.key, claims)
}

// Forge makes a token that names the issuer's key but is signed by another.
func (i *Issuer) Forge(t testing.TB, claims map[string]any) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return sign(t, key, claims)
}

func sign(t testing.TB, key *ecdsa.PrivateKey, claims map[string]any) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "k1"}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}
