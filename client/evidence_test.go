package client_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/clienttest"
)

func environment(pairs map[string]string) func(string) (string, bool) {
	return func(k string) (string, bool) { v, ok := pairs[k]; return v, ok }
}

func tokenFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func principal(t *testing.T, cl *client.Client) string {
	t.Helper()
	me, err := cl.Whoami(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return me.Principal
}

// github answers like the runner's token service: the token is the audience.
func github(t *testing.T) map[string]string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer runner" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		_, _ = w.Write([]byte(`{"value":"tok:` + r.URL.Query().Get("audience") + `"}`))
	}))
	t.Cleanup(srv.Close)
	return map[string]string{"ACTIONS_ID_TOKEN_REQUEST_URL": srv.URL + "/?x=1", "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "runner"}
}

func TestEvidenceInTheContractsOrder(t *testing.T) {
	c := clienttest.New(t, 1)
	cfg := config(t, c)
	cfg.LookupEnv = environment(github(t))
	cfg.Principal = ann
	cfg.JWTFile = tokenFile(t, "file-token")
	cl := open(t, cfg)
	c.Register(cl.Key().Thumbprint(), ann)
	c.Accept("jwt", "file-token", "workload:file")
	c.Accept("github", "tok:"+clienttest.Issuer+"#"+cl.Key().Thumbprint(), "workload:runner")

	if got := principal(t, cl); got != "workload:file" {
		t.Errorf("with everything there: %s, want MAYFLY_JWT_FILE's", got)
	}
	cfg.JWTFile = ""
	if got := principal(t, open(t, cfg)); got != "workload:runner" {
		t.Errorf("without a file: %s, want the CI provider's", got)
	}
	cfg.LookupEnv = nil
	if got := principal(t, open(t, cfg)); got != ann {
		t.Errorf("with nothing else: %s, want the home's key", got)
	}
	cfg.LookupEnv = environment(github(t))
	cfg.Method = client.MethodKey
	if got := principal(t, open(t, cfg)); got != ann {
		t.Errorf("MAYFLY_METHOD=key: %s, want the home's key", got)
	}
}

// Hazard 3: a stolen identity token can be bound to the thief's key, unless its
// audience names the client's own.
func TestHazard3AudienceNamesTheClientsKey(t *testing.T) {
	c := clienttest.New(t, 1)
	cfg := config(t, c)
	cfg.LookupEnv = environment(github(t))
	cfg.Audience = "https://aud.example"
	cfg.Method = "prod"
	cl := open(t, cfg)
	c.Accept("prod", "tok:https://aud.example#"+cl.Key().Thumbprint(), "workload:runner")
	if got := principal(t, cl); got != "workload:runner" {
		t.Error(got)
	}
	cfg.PlainAudience, cfg.Home = true, filepath.Join(t.TempDir(), "other")
	c.Accept("prod", "tok:https://aud.example", "workload:plain")
	if got := principal(t, open(t, cfg)); got != "workload:plain" {
		t.Error(got)
	}
}

func TestRefusedEvidenceDoesNotFallThrough(t *testing.T) {
	c := clienttest.New(t, 1)
	cfg := config(t, c)
	cfg.Principal = ann
	cl := open(t, cfg)
	c.Register(cl.Key().Thumbprint(), ann)
	cfg.JWTFile = tokenFile(t, "nobody-accepts-this")
	_, err := open(t, cfg).Whoami(t.Context())
	if e := kind(t, err, client.KindUnauthenticated); e.ExitCode() != 6 {
		t.Errorf("exit code %d", e.ExitCode())
	}
}

func TestBrokenEvidenceDoesNotFallThrough(t *testing.T) {
	c := clienttest.New(t, 1)
	broken := github(t)
	broken["ACTIONS_ID_TOKEN_REQUEST_TOKEN"] = "wrong"
	for name, change := range map[string]func(*client.Config){
		"file is missing": func(cfg *client.Config) { cfg.JWTFile = filepath.Join(t.TempDir(), "nothing") },
		"file is empty":   func(cfg *client.Config) { cfg.JWTFile = tokenFile(t, "\n") },
		"service refuses": func(cfg *client.Config) { cfg.LookupEnv = environment(broken) },
		"method without":  func(cfg *client.Config) { cfg.Method = "ci" },
		"socket is silent": func(cfg *client.Config) {
			cfg.LookupEnv = environment(map[string]string{"SPIFFE_ENDPOINT_SOCKET": "not-a-socket"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(t, c)
			cfg.Principal = ann
			cl := open(t, cfg)
			c.Register(cl.Key().Thumbprint(), ann)
			change(&cfg)
			_, err := open(t, cfg).Whoami(t.Context())
			kind(t, err, client.KindUnauthenticated)
		})
	}
}

func TestNothingToLogInWith(t *testing.T) {
	c := clienttest.New(t, 1)
	_, err := open(t, config(t, c)).Whoami(t.Context())
	if e := kind(t, err, client.KindUnauthenticated); e.Problem.Code != client.CodeNoEvidence {
		t.Error(err)
	}
	if n := len(c.Calls("POST", "/api/v1/login")); n != 0 {
		t.Errorf("%d logins with nothing", n)
	}
}

func TestWithoutAHomeEverythingStaysInMemory(t *testing.T) {
	c := clienttest.New(t, 1)
	cfg := config(t, c)
	cfg.Home = ""
	cfg.JWTFile = tokenFile(t, "t")
	cfg.Method = "ci"
	c.Accept("ci", "t", "workload:ci")
	cl := open(t, cfg)
	for range 2 {
		if got := principal(t, cl); got != "workload:ci" {
			t.Error(got)
		}
	}
	if n := len(c.Calls("POST", "/api/v1/login")); n != 1 {
		t.Errorf("%d logins", n)
	}
}
