package azuretest

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-broker/mayfly/e2e/servertest"
	"github.com/mayfly-broker/mayfly/issuers/federation/federationtest"
)

// What the stand-in knows.
const (
	Tenant  = "72f988bf-86f1-41af-91ab-2d7cd011db47"
	Client  = "11059fcc-5514-4800-b5f8-49808b9cfab6"
	Subject = "target:prod"
	Issuer  = "https://mayfly.example/api/v1/public/targets/prod"
)

// Entra plays the token endpoint: it refuses what Microsoft's reference says that
// it refuses. Nobody but Microsoft has proven that it reads it right.
type Entra struct {
	URL string
	// Life is that of the tokens it gives.
	Life time.Duration
	// Trusted is the application's federated credential.
	Trusted *federationtest.Verifier

	mu     sync.Mutex
	asked  []url.Values
	answer http.HandlerFunc
	jwts   map[string]string // identity tokens by the oid that was given for them
}

// Trust is what the application's federated credential says.
func Trust() *federationtest.Verifier {
	return federationtest.New(Issuer, Subject, "api://AzureADTokenExchange", jose.RS256)
}

// NewEntra starts one under a certificate of ca's.
func NewEntra(ca *servertest.Authority) (e *Entra, closer func(), err error) {
	pair, err := certificate(ca)
	if err != nil {
		return nil, nil, err
	}
	e = &Entra{Life: time.Hour, Trusted: Trust(), jwts: map[string]string{}}
	srv := httptest.NewUnstartedServer(e)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	e.URL = srv.URL
	return e, srv.Close, nil
}

// Answer sets how requests are answered; nil undoes it.
func (e *Entra) Answer(h http.HandlerFunc) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.answer = h
}

// Asked returns the requests that came so far.
func (e *Entra) Asked() []url.Values {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.asked)
}

// Identity returns the identity token for which an oid was given.
func (e *Entra) Identity(oid string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.jwts[oid]
}

// Refusal is an error as Entra writes it.
func Refusal(status int, code, description string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]any{"error": code, "error_description": description, "error_codes": []int{70021}, "timestamp": "2026-01-01 00:00:00Z",
			"trace_id": Client, "correlation_id": Client, "error_uri": "https://login.microsoftonline.com/error?code=70021"})
	}
}

// Identities returns the identity tokens for which access tokens were made, whether
// or not anybody heard of those.
func (e *Entra) Identities() (out []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, jwt := range e.jwts {
		if jwt != "" { // a test's own
			out = append(out, jwt)
		}
	}
	return out
}

// ServeHTTP implements [http.Handler].
func (e *Entra) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 1<<20)
	if err := r.ParseForm(); err != nil || r.Method != http.MethodPost || r.URL.RawQuery != "" {
		http.NotFound(w, r)
		return
	}
	form := r.PostForm
	e.mu.Lock()
	e.asked = append(e.asked, form)
	other := e.answer
	e.mu.Unlock()
	for name := range form {
		if !slices.Contains([]string{"client_id", "scope", "client_assertion_type", "client_assertion", "grant_type"}, name) || len(form[name]) != 1 {
			Refusal(400, "invalid_request", "AADSTS90014: "+name)(w, r)
			return
		}
	}
	switch resource, known := resources[form.Get("scope")]; {
	case other != nil:
		other(w, r)
	case r.URL.Path != "/"+Tenant+"/oauth2/v2.0/token":
		Refusal(400, "invalid_request", "AADSTS90002: Tenant not found.")(w, r)
	case form.Get("grant_type") != "client_credentials":
		Refusal(400, "unsupported_grant_type", "AADSTS70003")(w, r)
	case form.Get("client_id") != Client:
		Refusal(400, "unauthorized_client", "AADSTS700016: Application was not found in the directory.")(w, r)
	case !known:
		Refusal(400, "invalid_scope", "AADSTS70011: The provided value for the input parameter 'scope' is not valid.")(w, r)
	case form.Get("client_assertion_type") != "urn:ietf:params:oauth:client-assertion-type:jwt-bearer":
		Refusal(401, "invalid_client", "AADSTS700027")(w, r)
	default:
		if err := e.Trusted.Verify(r.Context(), form.Get("client_assertion")); err != nil {
			Refusal(401, "invalid_client", "AADSTS70021: No matching federated identity record found: "+err.Error())(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		seconds := int(e.Life.Seconds())
		_ = json.NewEncoder(w).Encode(map[string]any{"token_type": "Bearer", "expires_in": seconds, "ext_expires_in": seconds, "access_token": e.Token(resource, form.Get("client_assertion"))})
	}
}

var resources = map[string]string{"https://storage.azure.com/.default": "https://storage.azure.com", "https://management.azure.com/.default": "https://management.azure.com"}

// Token makes an access token of the shape that Azurite takes; it does not look at
// who signed it.
func (e *Entra) Token(resource, identity string) string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // it never fails
	h := hex.EncodeToString(id[:])
	oid := h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
	e.mu.Lock()
	e.jwts[oid] = identity
	e.mu.Unlock()
	now := time.Now()
	payload, err := json.Marshal(map[string]any{"aud": resource, "iss": "https://sts.windows.net/" + Tenant + "/", "iat": now.Add(-time.Minute).Unix(), "nbf": now.Add(-time.Minute).Unix(),
		"exp": now.Add(e.Life).Unix(), "oid": oid, "tid": Tenant, "appid": Client})
	if err != nil {
		return ""
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: []byte(rand.Text() + rand.Text())}, nil)
	if err != nil {
		return ""
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		return ""
	}
	text, _ := jws.CompactSerialize() // one signature always can
	return text
}
