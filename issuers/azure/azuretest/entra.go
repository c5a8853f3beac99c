package azuretest

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"fmt"
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

	mu      sync.Mutex
	issuer  string // that the federated credential names
	subject string
	keys    jose.JSONWebKeySet
	asked   []url.Values
	answer  http.HandlerFunc
	jwts    map[string]string // identity tokens by the oid that was given for them
}

// NewEntra starts one under a certificate of ca's.
func NewEntra(ca *servertest.Authority) (e *Entra, closer func(), err error) {
	pair, err := certificate(ca)
	if err != nil {
		return nil, nil, err
	}
	e = &Entra{Life: time.Hour, issuer: Issuer, subject: Subject, jwts: map[string]string{}}
	srv := httptest.NewUnstartedServer(e)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	e.URL = srv.URL
	return e, srv.Close, nil
}

// SetUp has the federated credential name another issuer, and another subject.
func (e *Entra) SetUp(issuer, subject string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.issuer, e.subject = issuer, subject
}

// Trust takes a provider's published keys beside those of before.
func (e *Entra) Trust(jwks []byte) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(jwks, &set); err != nil {
		return err
	}
	for _, k := range set.Keys {
		if len(e.keys.Key(k.KeyID)) == 0 {
			e.keys.Keys = append(e.keys.Keys, k)
		}
	}
	return nil
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
	other, keys, issuer, subject := e.answer, e.keys, e.issuer, e.subject
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
		if err := verify(form.Get("client_assertion"), keys, issuer, subject); err != nil {
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

// Verify judges an identity token by a set of keys, as a federated credential does.
func Verify(token string, keys jose.JSONWebKeySet) error {
	return verify(token, keys, Issuer, Subject)
}

func verify(token string, keys jose.JSONWebKeySet, issuer, subject string) error {
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		return fmt.Errorf("the assertion cannot be read: %w", err)
	}
	found := keys.Key(jws.Signatures[0].Protected.KeyID)
	if len(found) != 1 {
		return fmt.Errorf("no key with id %q", jws.Signatures[0].Protected.KeyID)
	}
	payload, err := jws.Verify(found[0])
	if err != nil {
		return err
	}
	var c struct {
		Issuer   string `json:"iss"`
		Subject  string `json:"sub"`
		Audience string `json:"aud"`
		IssuedAt int64  `json:"iat"`
		Expires  int64  `json:"exp"`
	}
	now := time.Now().Unix()
	switch err := json.Unmarshal(payload, &c); {
	case err != nil:
		return err
	case c.Issuer != issuer, c.Subject != subject, c.Audience != "api://AzureADTokenExchange": // compared as they are written
		return fmt.Errorf("issuer %q, subject %q, audience %q", c.Issuer, c.Subject, c.Audience)
	case c.IssuedAt > now, c.Expires <= now:
		return fmt.Errorf("the assertion is from %d to %d; it is %d", c.IssuedAt, c.Expires, now)
	}
	return nil
}
