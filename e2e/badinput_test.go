package e2e_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/keys"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/e2e/harness"
)

// wiretap makes HTTPS requests by hand, with proofs and tokens of the test's
// choosing.
type wiretap struct {
	url   string
	http  *http.Client
	key   *keys.Key
	token string
	nonce string
}

// newWiretap takes the session and the key out of a home.
func newWiretap(t *testing.T, h *house, who harness.CLI) *wiretap {
	t.Helper()
	who.Must(t, "whoami")
	home, err := client.OpenHome(who.Getenv("MAYFLY_HOME"))
	if err != nil {
		t.Fatal(err)
	}
	var stored struct{ Token string }
	if err := home.ReadJSON("session.json", &stored); err != nil || stored.Token == "" {
		t.Fatalf("no session in the home: %v", err)
	}
	pem, err := os.ReadFile(h.operator.Getenv("MAYFLY_CACERT"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	w := &wiretap{url: h.dev.URL, token: stored.Token,
		http: &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}}}}
	if w.key, err = home.Key(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.http.CloseIdleConnections)
	w.get(t, "/api/v1/whoami") // brings the nonce
	return w
}

func (w *wiretap) proof(t *testing.T, key *keys.Key, method, path string) string {
	t.Helper()
	p, err := key.DPoP(method, w.url+path, w.nonce, w.token, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// send makes one request with exactly these headers.
func (w *wiretap) send(t *testing.T, method, path, body string, header map[string]string) (int, wire.Problem) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, w.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	if body != "" && req.Header.Get("Content-Type") == "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := w.http.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if n := resp.Header.Get("DPoP-Nonce"); n != "" {
		w.nonce = n
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	var p wire.Problem
	if resp.StatusCode >= 400 {
		if got := resp.Header.Get("Content-Type"); got != "application/problem+json" {
			t.Errorf("%s %s: %d of type %q: %.200s", method, path, resp.StatusCode, got, raw)
		}
		decode(t, string(raw), &p)
		if bytes.Contains(raw, []byte(w.token)) {
			t.Errorf("%s %s: the problem document holds the session token", method, path)
		}
	}
	return resp.StatusCode, p
}

// signed makes a proper request with any body.
func (w *wiretap) signed(t *testing.T, method, path, body string) (int, wire.Problem) {
	t.Helper()
	return w.send(t, method, path, body, map[string]string{"Authorization": "DPoP " + w.token, "DPoP": w.proof(t, w.key, method, strings.SplitN(path, "?", 2)[0]), "Idempotency-Key": "k" + randomWord()})
}

func (w *wiretap) get(t *testing.T, path string) (int, wire.Problem) {
	t.Helper()
	return w.signed(t, http.MethodGet, path, "")
}

// Law 7: a stolen token alone opens nothing.
func TestLaw7StolenTokenOpensNothing(t *testing.T) {
	h := newHouse(t)
	w := newWiretap(t, h, h.worker)
	const path = "/api/v1/whoami"
	if status, p := w.get(t, path); status != 200 {
		t.Fatalf("the wiretap itself does not work: %d %+v", status, p)
	}
	thief, err := keys.Generate(keys.P256)
	if err != nil {
		t.Fatal(err)
	}
	auth := "DPoP " + w.token
	old := w.proof(t, w.key, "GET", path)
	if status, p := w.send(t, "GET", path, "", map[string]string{"Authorization": auth, "DPoP": old}); status != 200 {
		t.Fatalf("first use of a proof: %d %+v", status, p)
	}
	for _, c := range []struct {
		what, code string
		header     map[string]string
	}{
		{"no proof", "proof_missing", map[string]string{"Authorization": auth}},
		{"as a bearer token", "bearer_refused", map[string]string{"Authorization": "Bearer " + w.token}},
		{"a proof of another key", "key_mismatch", map[string]string{"Authorization": auth, "DPoP": w.proof(t, thief, "GET", path)}},
		{"a replayed proof", "dpop_proof_replayed", map[string]string{"Authorization": auth, "DPoP": old}},
		{"a proof of another path", "invalid_dpop_proof", map[string]string{"Authorization": auth, "DPoP": w.proof(t, w.key, "GET", "/api/v1/leases")}},
		{"a proof of another method", "invalid_dpop_proof", map[string]string{"Authorization": auth, "DPoP": w.proof(t, w.key, "POST", path)}},
		{"a mangled proof", "invalid_dpop_proof", map[string]string{"Authorization": auth, "DPoP": old[:len(old)-6]}},
		{"another token", "", map[string]string{"Authorization": "DPoP mfs_" + strings.Repeat("A", 43), "DPoP": w.proof(t, w.key, "GET", path)}},
		{"no credentials", "authorization_missing", nil},
	} {
		status, p := w.send(t, "GET", path, "", c.header)
		if status != 401 || c.code != "" && p.Code != c.code {
			t.Errorf("%s: %d %s, want 401 %s (%s)", c.what, status, p.Code, c.code, p.Detail)
		}
	}
	// The same by the command line: a stolen session file, another key.
	stolen := filepath.Join(h.dir, "stolen")
	if err := os.MkdirAll(stolen, 0o700); err != nil {
		t.Fatal(err)
	}
	session, err := os.ReadFile(filepath.Join(h.worker.Getenv("MAYFLY_HOME"), "session.json"))
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(stolen, "session.json"), string(session))
	h.worker.With("MAYFLY_HOME", stolen).With("MAYFLY_CACERT", h.operator.Getenv("MAYFLY_CACERT")).Refused(t, 6, "", "whoami")
}

func TestBadInput(t *testing.T) {
	h := newHouse(t)
	t.Run("requests", h.badRequests)
	t.Run("bodies", h.badBodies)
	t.Run("names", h.badNames)
	harness.AllEnded(t, h.operator.Client(t, 10*time.Second), 30*time.Second)
	harness.NothingLeft(t, harness.Postgres{Server: h.pg}, 0)
}

// badRequests are requests for access that a user can mistype or try.
func (h *house) badRequests(t *testing.T) {
	other := h.operator.Enrol(t, h.dir, "workload:other")
	var foreign, ended, mine wire.Task
	other.JSON(t, &foreign, "task", "start", "theirs", "--purpose", "theirs")
	h.worker.JSON(t, &ended, "task", "start", "over", "--purpose", "over")
	h.worker.Must(t, "task", "end", "over")
	h.worker.JSON(t, &mine, "task", "start", "narrow", "--purpose", "narrow", "--scope", twoColumns)
	for _, c := range []struct {
		what string
		exit int
		code string
		args []string
	}{
		{"an unknown role", 1, "role_not_found", []string{"orders/nosuch", "--purpose", "x"}},
		{"an unknown target", 1, "", []string{"nosuch/readonly", "--purpose", "x"}},
		{"another's task", 3, "task_not_yours", []string{"orders/readonly", "--task", foreign.ID}},
		{"another's task by name", 1, "task_not_found", []string{"orders/readonly", "--task", "theirs"}},
		{"an ended task", 3, "task_ended", []string{"orders/readonly", "--task", ended.ID}},
		{"a scope wider than the role", 3, "scope_exceeds_role", []string{"orders/readonly", "--purpose", "x", "--scope", strings.Replace(twoColumns, "select", "delete", 1)}},
		{"a scope wider than the task", 3, "scope_exceeds_task", []string{"orders/readonly", "--task", mine.ID, "--scope", strings.Replace(twoColumns, `"id","name"`, `"id","salary"`, 1)}},
		{"another database", 3, "scope_exceeds_role", []string{"orders/readonly", "--purpose", "x", "--scope", strings.Replace(twoColumns, `"orders"`, `"postgres"`, 1)}},
		{"a longer ttl", 3, "ttl_exceeds_role", []string{"orders/readonly", "--purpose", "x", "--ttl", "9000h"}},
		{"a negative ttl", 2, "usage", []string{"orders/readonly", "--purpose", "x", "--ttl=-5m"}},
		{"a ttl that is none", 2, "usage", []string{"orders/readonly", "--purpose", "x", "--ttl", "soon"}},
		{"a scope with a member nobody knows", 2, "invalid_authorization_details", []string{"orders/readonly", "--purpose", "x", "--scope", `[{"type":"database","actions":["select"],"where":"1=1"}]`}},
		{"an empty scope", 2, "invalid_authorization_details", []string{"orders/readonly", "--purpose", "x", "--scope", `[]`}},
		{"a scope that is no JSON", 2, "usage", []string{"orders/readonly", "--purpose", "x", "--scope", `[{`}},
		{"a purpose too long", 2, "", []string{"orders/readonly", "--purpose", strings.Repeat("x", 70_000)}},
	} {
		t.Run(c.what, func(t *testing.T) {
			h.worker.Refused(t, c.exit, c.code, append([]string{"request"}, c.args...)...)
		})
	}
	h.worker.Must(t, "task", "end", "narrow")
}

// badBodies come straight over HTTPS.
func (h *house) badBodies(t *testing.T) {
	w := newWiretap(t, h, h.worker)
	w.get(t, "/api/v1/whoami")
	const path = "/api/v1/tasks"
	for _, c := range []struct {
		what, body string
		status     int
		code       string
	}{
		{"an oversized body", `{"name":"x","purpose":"` + strings.Repeat("x", 8<<20) + `"}`, 413, "body_too_large"},
		{"a deep body", `{"name":"x","purpose":"y","scope":` + strings.Repeat("[", 200) + strings.Repeat("]", 200) + `}`, 400, "json_too_deep"},
		{"an unknown member", `{"name":"x","purpose":"y","sudo":true}`, 400, "unknown_member"},
		{"a member twice", `{"name":"x","name":"z","purpose":"y"}`, 400, "duplicate_member"},
		{"more than one document", `{"name":"x","purpose":"y"}{}`, 400, "trailing_data"},
		{"no JSON", `name=x`, 400, "malformed_json"},
		{"no body", ``, 400, "body_missing"},
		{"bytes that are no UTF-8", "{\"name\":\"\xff\xfe\",\"purpose\":\"y\"}", 400, ""},
		{"NUL in a name", `{"name":"a\u0000b","purpose":"y"}`, 400, "task_name"},
		{"an escape sequence in a name", `{"name":"\u001b[2Jx","purpose":"y"}`, 400, "task_name"},
	} {
		t.Run(c.what, func(t *testing.T) {
			status, p := w.signed(t, "POST", path, c.body)
			if status != c.status || c.code != "" && p.Code != c.code {
				t.Errorf("%d %s, want %d %s (%s)", status, p.Code, c.status, c.code, p.Detail)
			}
		})
	}
	if status, p := w.send(t, "POST", path, "name=x", map[string]string{"Authorization": "DPoP " + w.token, "DPoP": w.proof(t, w.key, "POST", path), "Content-Type": "application/x-www-form-urlencoded"}); status != 415 && status != 400 {
		t.Errorf("a form: %d %s", status, p.Code)
	}
	if status, p := w.signed(t, "GET", "/api/v1/no/such/path", ""); status != 404 || p.Code != "no_such_path" {
		t.Errorf("no such path: %d %s", status, p.Code)
	}
	if status, p := w.signed(t, "DELETE", "/api/v1/whoami", ""); status != 405 {
		t.Errorf("no such method: %d %s", status, p.Code)
	}
}

// badNames has SQL and control characters stand wherever a name may. None may
// reach the target as anything but a name.
func (h *house) badNames(t *testing.T) {
	for _, evil := range []string{`x"; DROP TABLE people; --`, `x'; DROP TABLE people; --`, `$1`, `people" CASCADE`, "a\x1b[2Jb", "a\nb", `../../etc`, `%s%n`, "\u202eevil"} {
		quoted, err := json.Marshal(evil)
		if err != nil {
			t.Fatal(err)
		}
		q := string(quoted)
		for _, args := range [][]string{
			{"request", evil, "--purpose", "x"},
			{"request", "orders/" + evil, "--purpose", "x"},
			{"request", "orders/readonly", "--task", evil},
			{"request", "orders/readonly", "--purpose", "x", "--scope", `[{"type":"database","identifier":` + q + `,"actions":["select"]}]`},
			{"request", "orders/readonly", "--purpose", "x", "--scope", `[{"type":"database","identifier":"orders","actions":[` + q + `]}]`},
			{"request", "orders/readonly", "--purpose", "x", "--scope", `[{"type":"database","identifier":"orders","actions":["select"],"tables":[{"name":` + strings.Replace(q, `"`, `"public.`, 1) + `}]}]`},
			{"request", "orders/readonly", "--purpose", "x", "--scope", `[{"type":"database","identifier":"orders","actions":["select"],"tables":[{"name":"public.people","columns":[` + q + `]}]}]`},
			{"whohas", evil},
			{"lease", "show", evil},
			{"lease", "revoke", evil},
			{"task", "end", evil},
			{"task", "show", evil},
			{"lease", "renew", evil},
		} {
			r := h.worker.Run(t, append([]string{"-o", "json"}, args...)...)
			if r.Code == 0 || r.Code == 5 {
				t.Errorf("mayfly %q: exit code %d\n%s%s", args, r.Code, r.Stdout, r.Stderr)
			}
			if i := strings.IndexAny(r.Stderr, "\x1b\u202e\x00"); i >= 0 {
				t.Errorf("mayfly %q: what a terminal obeys reached stderr: %q", args, r.Stderr)
			}
		}
	}
	var n int
	if err := h.pg.Admin(t, "orders").QueryRow(t.Context(), "SELECT count(*) FROM people").Scan(&n); err != nil || n != 2 {
		t.Errorf("people after all this: %d, %v", n, err)
	}
}
