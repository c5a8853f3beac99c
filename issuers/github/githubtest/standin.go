// Package githubtest is a stand-in for GitHub's REST API, as far as an App needs it:
// it verifies what GitHub verifies, refuses what GitHub refuses, and answers in the
// forms of GitHub's published OpenAPI description. It must know nothing of issuers.
package githubtest

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// What the stand-in knows.
const (
	ClientID     = "Iv23liStandInApp0001"
	AppID        = 123456
	Owner        = "Acme"
	Installation = 42
)

// StandIn is one GitHub with one App, installed on one organisation.
type StandIn struct {
	// URL is the API's base; CA the certificate to trust, in PEM; Key the App's
	// private key in PEM, PKCS#1 as GitHub gives it, and Key8 the same in PKCS#8.
	URL, CA, Key, Key8 string

	key    *rsa.PrivateKey
	server *httptest.Server

	mu     sync.Mutex
	tokens map[string]*Grant
	asked  []string
	// hooks, all guarded by mu
	intercept func(w http.ResponseWriter, r *http.Request) bool
	alter     func(answer map[string]any)
	installed map[string]string
	user      bool
	ahead     time.Duration
}

// Grant is what one token may do.
type Grant struct {
	Repositories []string
	Permissions  map[string]string
	Expires      time.Time
	Revoked      bool
}

// repositories that the installation has, and one that it has not.
var repositories = []string{"orders", "billing", "Web.Site", "x_y-z"}

// New starts one.
func New() (*StandIn, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	eight, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	s := &StandIn{
		key: key, tokens: map[string]*Grant{},
		Key:       string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})),
		Key8:      string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: eight})),
		installed: map[string]string{"contents": "write", "issues": "write", "metadata": "read", "pull_requests": "write", "members": "read"},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v3/app", s.app)
	mux.HandleFunc("GET /api/v3/orgs/{owner}/installation", s.installation)
	mux.HandleFunc("GET /api/v3/users/{owner}/installation", s.installation)
	mux.HandleFunc("GET /api/v3/app/installations/{id}", s.installation)
	mux.HandleFunc("POST /api/v3/app/installations/{id}/access_tokens", s.create)
	mux.HandleFunc("DELETE /api/v3/installation/token", s.revoke)
	mux.HandleFunc("GET /api/v3/installation/repositories", s.list)
	mux.HandleFunc("GET /api/v3/repos/{owner}/{repo}/contents/{path}", s.contents)
	s.server = httptest.NewTLSServer(s.door(mux))
	s.URL = s.server.URL + "/api/v3"
	s.CA = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.server.Certificate().Raw}))
	return s, nil
}

// Close stops it.
func (s *StandIn) Close() { s.server.Close() }

// Client trusts the stand-in.
func (s *StandIn) Client() *http.Client { return s.server.Client() }

// Intercept lets f answer by itself; it says whether it has. Nil ends that.
func (s *StandIn) Intercept(f func(w http.ResponseWriter, r *http.Request) bool) {
	s.set(func() { s.intercept = f })
}

// Alter changes what is answered for a new token, and not what the token may do.
func (s *StandIn) Alter(f func(answer map[string]any)) { s.set(func() { s.alter = f }) }

// Permit replaces what the App may do.
func (s *StandIn) Permit(p map[string]string) { s.set(func() { s.installed = p }) }

// OnUser has the App installed on a user, who is no organisation.
func (s *StandIn) OnUser(yes bool) { s.set(func() { s.user = yes }) }

// Ahead sets the stand-in's clock before everybody's.
func (s *StandIn) Ahead(d time.Duration) { s.set(func() { s.ahead = d }) }

func (s *StandIn) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// Asked are the methods and paths that came, oldest first.
func (s *StandIn) Asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

// Grant returns what a token may do; nil if there is none.
func (s *StandIn) Grant(token string) *Grant {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tokens[token]
}

// Live counts the tokens that GitHub would accept.
func (s *StandIn) Live() int { return len(s.Accepted()) }

// Accepted are the tokens that GitHub would accept, which it itself tells nobody.
func (s *StandIn) Accepted() (tokens []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for token, g := range s.tokens {
		if !g.Revoked && s.now().Before(g.Expires) {
			tokens = append(tokens, token)
		}
	}
	return tokens
}

func (s *StandIn) now() time.Time { return time.Now().Add(s.ahead) }

func say(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client has gone, then
}

func no(w http.ResponseWriter, status int, message string) {
	say(w, status, map[string]string{"message": message, "documentation_url": "https://docs.github.com/rest", "status": strconv.Itoa(status)})
}

// door is what every request meets.
func (s *StandIn) door(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.asked = append(s.asked, r.Method+" "+strings.TrimPrefix(r.URL.Path, "/api/v3"))
		intercept := s.intercept
		w.Header().Set("Date", s.now().UTC().Format(http.TimeFormat))
		s.mu.Unlock()
		switch {
		case intercept != nil && intercept(w, r):
		case r.UserAgent() == "" || strings.HasPrefix(r.UserAgent(), "Go-http-client"):
			no(w, 403, "Request forbidden by administrative rules. Please make sure your request has a User-Agent header")
		case r.Header.Get("X-GitHub-Api-Version") != "2022-11-28" || r.Header.Get("Accept") != "application/vnd.github+json":
			no(w, 400, "Unsupported version")
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// asApp verifies a JWT of the App's, and says no where it is none.
func (s *StandIn) asApp(w http.ResponseWriter, r *http.Request) bool {
	text, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	signed, err := jose.ParseSigned(text, []jose.SignatureAlgorithm{jose.RS256})
	if !ok || err != nil {
		no(w, 401, "A JSON web token could not be decoded")
		return false
	}
	payload, err := signed.Verify(&s.key.PublicKey)
	if err != nil {
		no(w, 401, "A JSON web token could not be decoded")
		return false
	}
	var c struct {
		Iss      string
		Iat, Exp int64
	}
	now := s.now().Unix()
	switch err := json.Unmarshal(payload, &c); {
	case err != nil || c.Iss != ClientID && c.Iss != strconv.Itoa(AppID):
		no(w, 401, "'Issuer' claim ('iss') must be an Integer or client ID")
	case c.Iat > now:
		no(w, 401, "'Issued at' claim ('iat') must be an Integer representing the time that the assertion was issued")
	case c.Exp <= now:
		no(w, 401, "'Expiration time' claim ('exp') must be a numeric value representing the future time at which the assertion expires")
	case c.Exp > now+600:
		no(w, 401, "'Expiration time' claim ('exp') is too far in the future")
	default:
		return true
	}
	return false
}

func (s *StandIn) app(w http.ResponseWriter, r *http.Request) {
	if s.asApp(w, r) {
		say(w, 200, map[string]any{"id": AppID, "client_id": ClientID, "slug": "mayfly-stand-in", "name": "Mayfly stand-in", "permissions": s.installed})
	}
}

func (s *StandIn) installation(w http.ResponseWriter, r *http.Request) {
	if !s.asApp(w, r) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	byOrg := strings.Contains(r.URL.Path, "/orgs/")
	if id := r.PathValue("id"); id != "" && id != strconv.Itoa(Installation) || id == "" && (!strings.EqualFold(r.PathValue("owner"), Owner) || byOrg == s.user) {
		no(w, 404, "Not Found")
		return
	}
	say(w, 200, map[string]any{
		"id": Installation, "app_id": AppID, "account": map[string]any{"login": Owner, "id": 7}, "permissions": s.installed,
		"repository_selection": "selected", "suspended_at": nil, "target_type": "Organization",
	})
}

var levels = map[string]int{"read": 1, "write": 2, "admin": 3}

// create makes a token as GitHub does: what the body leaves out or leaves empty is
// everything that the installation has.
func (s *StandIn) create(w http.ResponseWriter, r *http.Request) {
	if !s.asApp(w, r) {
		return
	}
	var in struct {
		Repositories []string          `json:"repositories"`
		Permissions  map[string]string `json:"permissions"`
	}
	if r.PathValue("id") != strconv.Itoa(Installation) {
		no(w, 404, "Not Found")
		return
	}
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&in); err != nil {
		no(w, 400, "Problems parsing JSON")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g := &Grant{Permissions: map[string]string{}, Expires: s.now().Add(time.Hour).UTC().Truncate(time.Second)}
	for _, name := range in.Repositories {
		i := slices.IndexFunc(repositories, func(x string) bool { return strings.EqualFold(x, name) })
		if i < 0 {
			no(w, 422, "There is at least one repository that does not exist or is not accessible to the parent installation.")
			return
		}
		g.Repositories = append(g.Repositories, repositories[i])
	}
	for name, level := range in.Permissions {
		if levels[level] == 0 || levels[level] > levels[s.installed[name]] {
			no(w, 422, "The permissions requested are not granted to this installation.")
			return
		}
		g.Permissions[name] = level
	}
	selection := "selected"
	if len(in.Repositories) == 0 {
		g.Repositories, selection = repositories, "all"
	}
	if len(in.Permissions) == 0 {
		g.Permissions = maps.Clone(s.installed)
	}
	g.Permissions["metadata"] = "read"
	s.answer(w, g, selection)
}

// answer hands a token out, in the form of the schema installation-token.
func (s *StandIn) answer(w http.ResponseWriter, g *Grant, selection string) {
	b := make([]byte, 27)
	_, _ = rand.Read(b) // never fails; see crypto/rand
	token := "ghs_" + base64.RawURLEncoding.EncodeToString(b)
	s.tokens[token] = g
	var list []any
	for i, name := range g.Repositories {
		list = append(list, map[string]any{"id": 1000 + i, "name": name, "full_name": Owner + "/" + name, "private": true, "owner": map[string]any{"login": Owner}})
	}
	out := map[string]any{"token": token, "expires_at": g.Expires.Format(time.RFC3339), "permissions": maps.Clone(g.Permissions), "repository_selection": selection, "repositories": list}
	if s.alter != nil {
		s.alter(out)
	}
	say(w, 201, out)
}

// asToken returns what the request's token may do, and says no where it is none.
func (s *StandIn) asToken(w http.ResponseWriter, r *http.Request) *Grant {
	g := s.tokens[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]
	if g == nil || g.Revoked || !s.now().Before(g.Expires) {
		no(w, 401, "Bad credentials")
		return nil
	}
	return g
}

func (s *StandIn) revoke(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := s.asToken(w, r); g != nil {
		g.Revoked = true
		w.WriteHeader(http.StatusNoContent)
	}
}

func (s *StandIn) list(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := s.asToken(w, r); g != nil {
		say(w, 200, map[string]any{"total_count": len(g.Repositories), "repositories": []any{}})
	}
}

func (s *StandIn) contents(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.asToken(w, r)
	switch {
	case g == nil:
	case !slices.Contains(g.Repositories, r.PathValue("repo")) || !strings.EqualFold(r.PathValue("owner"), Owner):
		no(w, 404, "Not Found") // also where it exists
	case g.Permissions["contents"] == "":
		no(w, 403, "Resource not accessible by integration")
	default:
		say(w, 200, map[string]any{"name": r.PathValue("path"), "content": "aGVsbG8="})
	}
}

// Read reads a file of a repository with a token, as any program would.
func (s *StandIn) Read(token, repository string) error {
	req, err := http.NewRequest(http.MethodGet, s.URL+"/repos/"+Owner+"/"+repository+"/contents/README.md", nil)
	if err != nil {
		return err
	}
	for k, v := range map[string]string{"User-Agent": "a test", "Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28", "Authorization": "Bearer " + token} {
		req.Header.Set(k, v)
	}
	resp, err := s.Client().Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return nil
}
