package github_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/github"
	"github.com/mayfly-broker/mayfly/issuers/github/githubtest"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

func secrets(key string) map[string]secret.Text {
	return map[string]secret.Text{github.SecretKey: secret.New(key)}
}

// What is asked of GitHub, to the letter.
func TestWhatIsAsked(t *testing.T) {
	s := fresh(t)
	var body string
	s.Intercept(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/access_tokens") {
			text, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			body = string(text)
			r.Body = io.NopCloser(strings.NewReader(body))
		}
		return false
	})
	i := open(t, github.New(), target(s, map[string]any{"client_id": nil, "app_id": githubtest.AppID}))
	l := lease()
	l.Scope = allow("contents:read contents:write", "Acme/orders", "Acme/billing")
	mint(t, i, l)
	if want := `{"repositories":["billing","orders"],"permissions":{"contents":"write","metadata":"read"}}`; body != want {
		t.Errorf("asked for %s; want %s", body, want)
	}
	withdraw(t, i, l)
	mint(t, i, lease())
	want := []string{
		"GET /orgs/Acme/installation", "POST /app/installations/42/access_tokens", "DELETE /installation/token", "GET /installation/repositories",
		"POST /app/installations/42/access_tokens", // the installation is looked up once
	}
	if got := s.Asked(); !slices.Equal(got, want) {
		t.Errorf("asked %q; want %q", got, want)
	}
}

func TestInstallations(t *testing.T) {
	s := fresh(t)
	s.OnUser(true)
	mint(t, open(t, github.New(), target(s, nil)), lease())
	mint(t, open(t, github.New(), target(s, map[string]any{"installation_id": githubtest.Installation})), lease())
	err := mustFail(t, open(t, github.New(), target(s, map[string]any{"installation_id": 43})), lease(), issuers.Refused)
	if !strings.Contains(err.Error(), "no such installation") {
		t.Error(err)
	}
	l := issuertest.NewLease(github.Kind{}, allow("contents:read", "Nobody/orders"))
	mustFail(t, open(t, github.New(), target(s, map[string]any{"owner": "Nobody"})), l, issuers.Refused)
}

func TestRefusals(t *testing.T) {
	s := fresh(t)
	i := open(t, github.New(), target(s, nil))
	l := lease()
	l.Scope = allow("contents:read", "Acme/someone-elses")
	mustFail(t, i, l, issuers.BadScope)
	l = lease()
	l.Scope = allow("checks:write", "Acme/orders")
	mustFail(t, i, l, issuers.BadScope)
	for code, kind := range map[int]issuers.ErrorKind{401: issuers.Refused, 403: issuers.Refused, 404: issuers.Refused, 422: issuers.BadScope, 302: issuers.Refused, 307: issuers.Refused, 400: issuers.Refused, 503: issuers.Unknown} {
		s.Intercept(on("/access_tokens", func(w http.ResponseWriter) {
			w.Header().Set("Location", s.URL+"/app")
			status(code)(w)
		}))
		mustFail(t, i, lease(), kind)
	}
	if slices.Contains(s.Asked(), "GET /app") || slices.Contains(s.Asked(), "POST /app") {
		t.Error("a redirect was followed with the App's token")
	}
	s.Intercept(nil)
	// a wrong key, and a wrong clock
	other := target(s, nil)
	other.Secrets = secrets(shared.Key)
	mustFail(t, open(t, github.New(), other), lease(), issuers.Refused)
	s.Ahead(-2 * time.Minute)
	mustFail(t, open(t, github.New(), target(s, nil)), lease(), issuers.Refused)
	if n := s.Live(); n != 0 {
		t.Errorf("%d tokens live", n)
	}
}

// Once GitHub asks to wait, it is not asked again until then: whoever goes on is banned.
func TestRateLimits(t *testing.T) {
	s := fresh(t)
	for name, header := range map[string]map[string]string{
		"403 Retry-After": {"Retry-After": "30"}, "429": {}, "429 Retry-After": {"Retry-After": "7200"}, "429 odd": {"Retry-After": "soon"},
		"403 remaining": {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": fmt.Sprint(time.Now().Add(time.Minute).Unix())},
		"403 odd reset": {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "-1e9"},
	} {
		s.Intercept(nil)
		i := open(t, github.New(), target(s, nil))
		l := lease()
		mint(t, i, l)
		code := 403
		if strings.HasPrefix(name, "429") {
			code = 429
		}
		limit := func(w http.ResponseWriter) {
			for k, v := range header {
				w.Header().Set(k, v)
			}
			status(code)(w)
		}
		s.Intercept(on("/access_tokens", limit))
		before := len(s.Asked())
		refused := lease()
		for range 5 {
			mustFail(t, i, refused, issuers.Unreachable)
		}
		if n := len(s.Asked()) - before; n != 1 {
			t.Errorf("%s: %d requests came; want 1", name, n)
		}
		if o := withdraw(t, i, refused); o.Err != nil || o.Receipt.Proof != issuers.ProofAbsent {
			t.Errorf("%s: nothing was made, and the outcome is %+v", name, o)
		}
		// tokens have a limit of their own: mints do not stand in the way of revoking
		if o := withdraw(t, i, l); o.Err != nil || s.Live() != 0 {
			t.Errorf("%s: %+v", name, o)
		}
	}
}

func TestNobodyAnswers(t *testing.T) {
	s := fresh(t)
	k, tg := github.New(), target(s, nil)
	held, l := lease(), lease()
	mint(t, open(t, k, tg), held)
	s.Close()
	i := open(t, k, tg) // with no connection left, on which something might be sent
	mustFail(t, i, l, issuers.Unreachable)
	if o := withdraw(t, i, l); o.Err != nil || o.Receipt.Proof != issuers.ProofAbsent {
		t.Errorf("nothing was sent, and the outcome is %+v", o)
	}
	if o := withdraw(t, i, held); issuers.KindOf(o.Err) != issuers.Unreachable {
		t.Errorf("a live token, and nobody answers: %+v", o)
	}
}

func TestCheck(t *testing.T) {
	s := fresh(t)
	find := func(tg issuers.Target) string {
		t.Helper()
		found, err := open(t, github.New(), tg).(issuers.Checker).Check(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, f := range found {
			mark := "FAIL"
			if f.Warning {
				mark = "warn"
			} else if f.OK {
				mark = "ok"
			}
			out = append(out, mark+" "+f.Name)
		}
		return strings.Join(out, ", ")
	}
	expect := func(got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("found %q; want %q", got, want)
		}
	}
	expect(find(target(s, nil)), "ok app, ok installation, warn permission members")
	s.Permit(map[string]string{"metadata": "read"})
	expect(find(target(s, nil)), "ok app, ok installation, warn permission contents")
	wrong := target(s, nil)
	wrong.Secrets = secrets(shared.Key)
	expect(find(wrong), "FAIL app")
	expect(find(target(s, map[string]any{"owner": "Nobody"})), "ok app, FAIL installation")
	s.Ahead(45 * time.Second)
	expect(find(target(s, nil)), "ok app, warn clock, ok installation, warn permission contents")
	s.Intercept(on("/app", status(200)))
	expect(find(target(s, nil)), "FAIL app")
	for _, path := range s.Asked() {
		if strings.HasPrefix(path, "POST") {
			t.Errorf("a check asked %s", path)
		}
	}
}

func TestSpecs(t *testing.T) {
	good := map[string]any{}
	for name, c := range map[string]struct {
		set  map[string]any
		fine bool
	}{
		"plain": {good, true}, "app id": {map[string]any{"client_id": nil, "app_id": 1}, true}, "public": {map[string]any{"api": nil}, true}, "short": {map[string]any{"max_ttl": "5m"}, true},
		"repositories": {map[string]any{"repositories": []string{"Acme/orders"}}, true},
		"both ids":     {map[string]any{"app_id": 1}, false}, "no id": {map[string]any{"client_id": nil}, false}, "negative": {map[string]any{"client_id": nil, "app_id": -1}, false},
		"no owner": {map[string]any{"owner": nil}, false}, "path": {map[string]any{"owner": "a/b"}, false}, "dots": {map[string]any{"owner": ".."}, false},
		"http": {map[string]any{"api": "http://github.example/api/v3"}, false}, "user": {map[string]any{"api": "https://u:p@github.example"}, false}, "query": {map[string]any{"api": "https://github.example?x"}, false},
		"up": {map[string]any{"api": "https://github.example/../x"}, false}, "long": {map[string]any{"max_ttl": "2h"}, false}, "foreign": {map[string]any{"repositories": []string{"Other/x"}}, false},
		"unknown": {map[string]any{"token": "x"}, false}, "two CAs": {map[string]any{"tls": map[string]any{"ca": "x", "ca_file": "y"}}, false},
	} {
		err := github.Kind{}.CheckSpec(target(shared, c.set).Spec)
		if (err == nil) != c.fine {
			t.Errorf("%s: %v", name, err)
		}
	}
	roles, err := github.Kind{}.Roles(target(shared, map[string]any{"repositories": []string{"Acme/orders", "Acme/billing"}}).Spec)
	if err != nil || len(roles) != 2 || (github.Kind{}).MaxTTL([]byte(`{}`)) > time.Second {
		t.Errorf("%+v, %v", roles, err)
	}
}

func TestKeysThatAreNoneOfGitHubs(t *testing.T) {
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ecBytes, err := x509.MarshalPKCS8PrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"1024 bits": {Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(small)}, "elliptic": {Type: "PRIVATE KEY", Bytes: ecBytes}, "empty": {Type: "PRIVATE KEY"},
	} {
		tg := target(shared, nil)
		tg.Secrets = secrets(string(pem.EncodeToMemory(block)))
		if _, err := github.New().Open(tg); err == nil {
			t.Errorf("%s: a key is accepted", name)
		}
	}
}

// FuzzCompile: whatever a scope says, what is asked for is a narrowed token, and
// nothing that the scope does not name.
func FuzzCompile(f *testing.F) {
	spec := []byte(`{"client_id":"Iv23liABCDEF","owner":"Acme"}`)
	for _, s := range slices.Concat(accepted(), hostile(), invalid()) {
		raw, err := json.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(spec, raw)
	}
	f.Fuzz(func(t *testing.T, spec, raw []byte) {
		s, err := scope.Parse(raw)
		if err != nil {
			return
		}
		repositories, permissions, err := github.Compile(spec, s)
		if err != nil {
			return
		}
		if len(repositories) == 0 || len(permissions) == 0 || permissions["metadata"] != "read" {
			t.Fatalf("%s asks for %q, %v", s, repositories, permissions)
		}
		for _, r := range repositories {
			if r == "" || strings.ContainsAny(r, "/*?#% \"\\") || !slices.ContainsFunc(s[0].Locations, func(l string) bool { return strings.HasSuffix(l, "/"+r) }) {
				t.Fatalf("%s asks for the repository %q", s, r)
			}
		}
		for name, level := range permissions {
			if name != "metadata" && !slices.Contains(s[0].Actions, name+":"+level) {
				t.Fatalf("%s asks for %s:%s", s, name, level)
			}
		}
	})
}
