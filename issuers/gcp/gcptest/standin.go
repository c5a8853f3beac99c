// Package gcptest plays Google's token services for tests: STS, and the IAM Service
// Account Credentials API; and as much of Cloud Storage as shows what a token may do.
// It refuses what their references say that they refuse, and judges a narrowed token
// as the reference of access boundaries says. That it reads them right nobody has
// proven but Google.
//
// It knows requests and answers, and nothing of issuers.
package gcptest

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-broker/mayfly/e2e/servertest"
	"github.com/mayfly-broker/mayfly/issuers/federation/federationtest"
)

// What the stand-in knows.
const (
	Account  = "mayfly-orders@my-project.iam.gserviceaccount.com"
	Provider = "projects/123456789/locations/global/workloadIdentityPools/mayfly/providers/prod"
	Subject  = "target:prod"
	Issuer   = "https://mayfly.example/api/v1/public/targets/prod"
)

// Asked is one request that came.
type Asked struct {
	Path   string
	Form   url.Values // of STS
	Body   string
	Header http.Header
}

// StandIn plays Google.
type StandIn struct {
	URL, CAPEM string
	// Trusted is the identity provider that [Provider] was set up for.
	Trusted *federationtest.Verifier

	mu      sync.Mutex
	asked   []Asked
	answers map[string]http.HandlerFunc // by path's end
	tokens  map[string]issued
	objects map[string]string // by bucket/object
}

// issued is a token that was made.
type issued struct {
	kind    string // federated, account, narrowed
	expires time.Time
	rules   []Rule
	jwt     string
}

// Rule is one of an access boundary.
type Rule struct {
	Resource    string   `json:"availableResource"`
	Permissions []string `json:"availablePermissions"`
	Condition   struct {
		Expression string `json:"expression"`
	} `json:"availabilityCondition"`
}

// Trust is what the administrator told Google of the target's identity provider.
func Trust() *federationtest.Verifier {
	return federationtest.New(Issuer, Subject, "https://iam.googleapis.com/"+Provider, jose.ES256, jose.RS256)
}

// New starts one under TLS, on 127.0.0.1.
func New() (s *StandIn, closer func(), err error) {
	ca, err := servertest.NewAuthority()
	if err != nil {
		return nil, nil, err
	}
	cert, key, err := ca.ForServer()
	if err != nil {
		return nil, nil, err
	}
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	if err != nil {
		return nil, nil, err
	}
	s = &StandIn{CAPEM: ca.PEM, Trusted: Trust(), answers: map[string]http.HandlerFunc{}, tokens: map[string]issued{}, objects: map[string]string{}}
	srv := httptest.NewUnstartedServer(s)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	s.URL = srv.URL
	return s, srv.Close, nil
}

// Answer sets how requests to a path that ends like this are answered; nil undoes it.
func (s *StandIn) Answer(suffix string, h http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers[suffix] = h
	if h == nil {
		delete(s.answers, suffix)
	}
}

// Asked returns the requests that came so far.
func (s *StandIn) Asked() []Asked {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

// Identity returns the identity token that a narrowed one began with.
func (s *StandIn) Identity(narrowed string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tokens[narrowed].jwt
}

// Token is one that was made, whether or not anybody heard of it.
type Token struct {
	// Kind is account, for one that may do all that the service account may, or
	// narrowed.
	Kind     string
	Identity string // the identity token that it began with
	Expires  time.Time
}

// Made returns the tokens that were made and open something.
func (s *StandIn) Made() (out []Token) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.tokens {
		if t.kind != "federated" {
			out = append(out, Token{t.kind, t.jwt, t.expires})
		}
	}
	return out
}

// ServeHTTP implements [http.Handler].
func (s *StandIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	form, _ := url.ParseQuery(string(body)) // of IAM's requests it is nothing
	s.mu.Lock()
	s.asked = append(s.asked, Asked{r.URL.Path, form, string(body), r.Header.Clone()})
	var other http.HandlerFunc
	for suffix, h := range s.answers {
		if strings.HasSuffix(r.URL.Path, suffix) {
			other = h
		}
	}
	s.mu.Unlock()
	switch {
	case other != nil:
		other(w, r)
	case r.Method == http.MethodPost && r.URL.Path == "/v1/token":
		s.STS(w, r, form)
	case r.Method == http.MethodPost && r.URL.Path == "/v1/projects/-/serviceAccounts/"+Account+":generateAccessToken":
		s.iam(w, r, body)
	case r.Method == http.MethodGet && strings.HasPrefix(r.URL.Path, objectsPath):
		s.storage(w, r)
	case strings.HasSuffix(r.URL.Path, ":generateAccessToken"):
		IAMRefusal(http.StatusNotFound, "NOT_FOUND", "Not found; Gaia id not found for email")(w, r)
	default:
		http.NotFound(w, r)
	}
}

// STSRefusal is an error as STS writes it.
func STSRefusal(status int, code, description string) http.HandlerFunc {
	return answer(status, map[string]string{"error": code, "error_description": description})
}

// IAMRefusal is an error as Google's APIs write it.
func IAMRefusal(status int, code, message string) http.HandlerFunc {
	return answer(status, map[string]any{"error": map[string]any{"code": status, "message": message, "status": code}})
}

func answer(status int, body any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json; charset=UTF-8")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(body)
	}
}

const prefix = "urn:ietf:params:oauth:"

// STS answers POST /v1/token, strictly.
func (s *StandIn) STS(w http.ResponseWriter, r *http.Request, form url.Values) {
	fail := func(code, why string) { STSRefusal(http.StatusBadRequest, code, why)(w, r) }
	for name := range form {
		if !slices.Contains([]string{"grant_type", "audience", "scope", "requested_token_type", "subject_token", "subject_token_type", "options"}, name) || len(form[name]) != 1 {
			fail("invalid_request", "Invalid field "+name)
			return
		}
	}
	switch {
	case r.Header.Get("Authorization") != "":
		fail("invalid_request", "This method does not take the Authorization header")
	case form.Get("grant_type") != prefix+"grant-type:token-exchange":
		fail("unsupported_grant_type", "Invalid grant_type")
	case form.Get("requested_token_type") != prefix+"token-type:access_token":
		fail("invalid_request", "Invalid requested_token_type")
	case form.Get("subject_token_type") == prefix+"token-type:jwt":
		s.exchange(w, r, form)
	case form.Get("subject_token_type") == prefix+"token-type:access_token":
		s.narrow(w, r, form)
	default:
		fail("invalid_request", "Invalid subject_token_type")
	}
}

func (s *StandIn) exchange(w http.ResponseWriter, r *http.Request, form url.Values) {
	token := form.Get("subject_token")
	switch {
	case form.Get("audience") != "//iam.googleapis.com/"+Provider:
		STSRefusal(http.StatusBadRequest, "invalid_target", "The target service indicated by the \"audience\" parameters is invalid.")(w, r)
	case form.Get("scope") == "":
		STSRefusal(http.StatusBadRequest, "invalid_request", "Missing scope")(w, r)
	default:
		if err := s.Trusted.Verify(r.Context(), token); err != nil {
			STSRefusal(http.StatusBadRequest, "invalid_grant", err.Error())(w, r)
			return
		}
		answer(http.StatusOK, map[string]any{"access_token": s.issue(issued{kind: "federated", expires: time.Now().Add(time.Hour), jwt: token}),
			"issued_token_type": prefix + "token-type:access_token", "token_type": "Bearer", "expires_in": 3600})(w, r)
	}
}

func (s *StandIn) issue(t issued) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := "ya29." + t.kind + "." + rand.Text()
	s.tokens[text] = t
	return text
}

func (s *StandIn) token(text, kind string) (issued, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.tokens[text]
	return t, ok && t.kind == kind && time.Now().Before(t.expires)
}

var lifetime = regexp.MustCompile(`^[0-9]+s$`)

// iam is generateAccessToken.
func (s *StandIn) iam(w http.ResponseWriter, r *http.Request, body []byte) {
	bearer, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	t, ok := s.token(bearer, "federated")
	if !ok {
		IAMRefusal(http.StatusUnauthorized, "UNAUTHENTICATED", "Request had invalid authentication credentials.")(w, r)
		return
	}
	var in struct {
		Delegates []string `json:"delegates"`
		Scope     []string `json:"scope"`
		Lifetime  string   `json:"lifetime"`
	}
	dec := json.NewDecoder(strings.NewReader(string(body)))
	dec.DisallowUnknownFields()
	err := dec.Decode(&in)
	n, _ := strconv.Atoi(strings.TrimSuffix(in.Lifetime, "s"))
	if err != nil || r.Header.Get("Content-Type") != "application/json" || len(in.Scope) == 0 || !lifetime.MatchString(in.Lifetime) || n < 1 || n > 3600 {
		IAMRefusal(http.StatusBadRequest, "INVALID_ARGUMENT", "Request contains an invalid argument.")(w, r)
		return
	}
	expires := time.Now().Add(time.Duration(n) * time.Second).UTC().Truncate(time.Second)
	answer(http.StatusOK, map[string]any{"accessToken": s.issue(issued{kind: "account", expires: expires, jwt: t.jwt}), "expireTime": expires.Format(time.RFC3339)})(w, r)
}

// Nobody returns an address on which nobody listens.
func Nobody() (string, error) { return servertest.Address() }
