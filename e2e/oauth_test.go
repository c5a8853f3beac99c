package e2e_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/keys"
	"github.com/mayfly-broker/mayfly/e2e/harness"
)

// oauthClient is the client of docs/oauth.md: keys, forms, and nothing of
// Mayfly's own API.
type oauthClient struct {
	t         *testing.T
	http      *http.Client
	issuer    string
	key       *keys.Key
	principal string
	nonce     string
}

// post sends a form with a proof of the key, and again if the node wants a
// nonce of its own in it (RFC 9449 §8).
func (c *oauthClient) post(path string, form url.Values) (status int, answer map[string]any) {
	c.t.Helper()
	for range 2 {
		if c.principal != "" {
			assertion, err := c.key.Assertion(c.issuer, c.principal, "", time.Now())
			c.must(err)
			form.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
			form.Set("client_assertion", assertion)
		}
		proof, err := c.key.DPoP(http.MethodPost, c.issuer+path, c.nonce, "", time.Now())
		c.must(err)
		r, err := http.NewRequestWithContext(c.t.Context(), http.MethodPost, c.issuer+path, strings.NewReader(form.Encode()))
		c.must(err)
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("DPoP", proof)
		resp, err := c.http.Do(r)
		c.must(err)
		body, err := io.ReadAll(resp.Body)
		c.must(err)
		c.must(resp.Body.Close())
		c.nonce, answer = resp.Header.Get("DPoP-Nonce"), nil
		if len(body) > 0 {
			c.must(json.Unmarshal(body, &answer))
		}
		if status = resp.StatusCode; answer["error"] != "use_dpop_nonce" {
			break
		}
	}
	return status, answer
}

func (c *oauthClient) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// ok posts and expects success.
func (c *oauthClient) ok(path string, form url.Values) map[string]any {
	c.t.Helper()
	status, answer := c.post(path, form)
	if status != http.StatusOK {
		c.t.Fatalf("%s: %d %v", path, status, answer)
	}
	return answer
}

// refused posts and expects an error of OAuth's.
func (c *oauthClient) refused(path string, form url.Values, word string) map[string]any {
	c.t.Helper()
	status, answer := c.post(path, form)
	if status != http.StatusBadRequest || answer["error"] != word || answer["error_description"] == "" {
		c.t.Fatalf("%s: %d %v; want %s", path, status, answer, word)
	}
	return answer
}

// oauthOf makes an OAuth client of a CLI's home.
func oauthOf(t *testing.T, cli harness.CLI, caFile, principal string) *oauthClient {
	t.Helper()
	c := &oauthClient{t: t, issuer: strings.TrimSuffix(cli.Getenv("MAYFLY_ADDR"), "/"), principal: principal}
	home, err := client.OpenHome(cli.Getenv("MAYFLY_HOME"))
	c.must(err)
	c.key, err = home.Key()
	c.must(err)
	c.trust(caFile)
	return c
}

func (c *oauthClient) trust(caFile string) {
	pem, err := os.ReadFile(caFile)
	c.must(err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}}
	c.t.Cleanup(tr.CloseIdleConnections)
	c.http = &http.Client{Transport: tr, Timeout: 30 * time.Second}
}

const oauthHouse = `
kind: Target
name: api
spec: {type: jwt, max_ttl: 1h}
---
kind: Role
name: api/use
spec:
  scope: [{type: jwt, locations: ["https://api.example"], actions: [use], privileges: [read, write]}]
  ttl: {default: 10m, max: 1h}
---
kind: Target
name: pki
spec: {type: x509}
---
kind: Role
name: pki/client
spec:
  scope: [{type: x509, locations: ["dns:billing.internal"], actions: [client]}]
  ttl: {default: 10m, max: 1h}
`

// Whoever speaks OAuth gets sessions, tokens and credentials without knowing
// Mayfly's own API.
func TestOAuth(t *testing.T) {
	dev := harness.StartDev(t)
	dir := t.TempDir()
	dev.Operator.Apply(t, oauthHouse)
	worker := dev.Operator.Enrol(t, dir, "workload:billing")
	dev.Operator.ApplyPolicy(t, dir, "oauth", `@id("oauth")
permit (principal == Workload::"billing", action == Action::"request", resource)
when { context.session.bound && resource in [Role::"api/use", Role::"pki/client"] };
`)
	c := oauthOf(t, worker, dev.Operator.Getenv("MAYFLY_CACERT"), "workload:billing")

	session := c.ok("/oauth/token", url.Values{"grant_type": {"client_credentials"}})
	if session["token_type"] != "DPoP" || !strings.HasPrefix(session["access_token"].(string), "mfs_") {
		t.Fatalf("%v", session["token_type"])
	}
	state := c.ok("/oauth/introspect", url.Values{"token": {session["access_token"].(string)}})
	if state["active"] != true || state["sub"] != "workload:billing" {
		t.Fatalf("%v", state)
	}
	t.Run("token", func(t *testing.T) { oauthToken(t, c) })
	t.Run("credential", func(t *testing.T) {
		a := c.ok("/oauth/token", url.Values{"grant_type": {"client_credentials"}, "audience": {"pki/client"}})
		cred, _ := a["credential"].(map[string]any)
		if a["token_type"] != "N_A" || a["issued_token_type"] != "urn:mayfly:params:oauth:token-type:credential" || cred["certificate"] == nil || cred["private_key"] == nil {
			t.Fatalf("%v %v", a["token_type"], a["issued_token_type"])
		}
		c.ok("/oauth/revoke", url.Values{"token": {a["lease_id"].(string)}})
	})
	t.Run("refusals", func(t *testing.T) {
		c.refused("/oauth/token", url.Values{"grant_type": {"client_credentials"}, "audience": {"api/none"}}, "invalid_authorization_details")
		d := c.refused("/oauth/token", url.Values{"grant_type": {"client_credentials"},
			"authorization_details": {`[{"type":"mayfly_role","identifier":"api/use"},{"type":"jwt","locations":["https://other.example"],"actions":["use"]}]`}}, "access_denied")
		if d["code"] != "scope_exceeds_role" || d["decision_id"] == nil {
			t.Fatalf("%v", d)
		}
	})
	// None of the calls but the first has left a session behind.
	c.ok("/oauth/revoke", url.Values{"token": {session["access_token"].(string)}})
	if state := c.ok("/oauth/introspect", url.Values{"token": {session["access_token"].(string)}}); state["active"] != false {
		t.Fatalf("%v", state)
	}
}

// oauthToken gets a JWT, narrowed and bound to the client's key, and takes it back.
func oauthToken(t *testing.T, c *oauthClient) {
	a := c.ok("/oauth/token", url.Values{"grant_type": {"client_credentials"},
		"authorization_details": {`[{"type":"mayfly_role","identifier":"api/use","purpose":"month end","ttl":"5m"},
			{"type":"jwt","locations":["https://api.example"],"actions":["use"],"privileges":["read"]}]`}})
	token := a["access_token"].(string)
	if a["token_type"] != "DPoP" || a["expires_in"].(float64) > 300 || strings.Count(token, ".") != 2 {
		t.Fatalf("%v %v", a["token_type"], a["expires_in"])
	}
	details, err := json.Marshal(a["authorization_details"])
	c.must(err)
	if !strings.Contains(string(details), `"identifier":"api/use"`) || strings.Contains(string(details), "write") {
		t.Fatalf("granted: %s", details)
	}
	state := c.ok("/oauth/introspect", url.Values{"token": {token}})
	cnf, _ := state["cnf"].(map[string]any)
	if state["active"] != true || state["scope"] != "read" || cnf["jkt"] != c.key.Thumbprint() || state["sub"] != "workload:billing" {
		t.Fatalf("%v", state)
	}
	c.ok("/oauth/revoke", url.Values{"token": {token}})
	if state := c.ok("/oauth/introspect", url.Values{"token": {token}}); state["active"] != false {
		t.Fatalf("%v", state)
	}
}

// A platform's token is exchanged for a credential in one call.
func TestOAuthTokenExchange(t *testing.T) {
	h := newCI(t)
	key, err := keys.Generate(keys.P256)
	if err != nil {
		t.Fatal(err)
	}
	c := &oauthClient{t: t, issuer: strings.TrimSuffix(h.dev.URL, "/"), key: key}
	c.trust(h.operator.Getenv("MAYFLY_CACERT"))
	m := h.issuer.Claims(ciAudience+"#"+key.Thumbprint(), "repo:acme/shop")
	for k, v := range map[string]string{"repository_owner_id": "4711", "repository_id": "815", "environment": "production", "run_id": "run-1"} {
		m[k] = v
	}
	ask := func(token string) url.Values {
		return url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "subject_token": {token},
			"subject_token_type": {"urn:ietf:params:oauth:token-type:id_token"}, "mayfly_method": {"ci"},
			"authorization_details": {`[{"type":"mayfly_role","identifier":"orders/job","purpose":"migrate"}]`}}
	}
	a := c.ok("/oauth/token", ask(h.issuer.Sign(t, m)))
	cred, _ := a["credential"].(map[string]any)
	if a["token_type"] != "N_A" || cred["password"] == nil || cred["username"] == nil {
		t.Fatalf("%v", a["token_type"])
	}
	c.refused("/oauth/token", ask(h.issuer.Forge(t, m)), "invalid_request")
	h.operator.Must(t, "lease", "revoke", a["lease_id"].(string))
	harness.AllEnded(t, h.operator.Client(t, 10*time.Second), 30*time.Second)
	harness.NothingLeft(t, harness.Postgres{Server: h.pg}, 0)
}

// A client that is told to wait polls with its own key, and gets its token once
// a person has signed. Another client's poll opens nothing.
func TestLaw7DeferredTokenWaitsForAPerson(t *testing.T) {
	dev := harness.StartDev(t)
	dir := t.TempDir()
	dev.Operator.Apply(t, oauthHouse+`---
kind: Role
name: api/admin
spec:
  scope: [{type: jwt, locations: ["https://api.example"], actions: [use], privileges: [admin]}]
  ttl: {default: 10m, max: 1h}
  approvals: [{group: approvers, count: 1}]
`)
	dev.Operator.ApplyPolicy(t, dir, "oauth", `@id("oauth") permit (principal, action == Action::"request", resource) when { context.session.bound };`)
	ca := dev.Operator.Getenv("MAYFLY_CACERT")
	worker := oauthOf(t, dev.Operator.Enrol(t, dir, "workload:billing"), ca, "workload:billing")
	thief := oauthOf(t, dev.Operator.Enrol(t, dir, "workload:thief"), ca, "workload:thief")
	vars, err := harness.ReadEnv(dev.Home() + "/approver.env")
	if err != nil {
		t.Fatal(err)
	}
	approver := harness.NewCLI(t, vars)

	ask := url.Values{"grant_type": {"client_credentials"}, "audience": {"api/admin"}, "completion_mode": {"deferred"}}
	waiting := worker.refused("/oauth/token", ask, "authorization_pending")
	id, _ := waiting["grant_id"].(string)
	code, _ := waiting["deferral_code"].(string)
	poll := func() url.Values {
		return url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:deferred"}, "deferral_code": {code}}
	}
	worker.refused("/oauth/token", poll(), "slow_down")
	thief.refused("/oauth/token", poll(), "invalid_grant")
	hash := strings.TrimSpace(approver.Must(t, "grant", "show", id, "--field", "hash"))
	approver.Must(t, "grant", "approve", id, "--hash", hash[:16])

	var answer map[string]any
	harness.Within(t, 60*time.Second, "the token comes", func() error {
		var status int
		if status, answer = worker.post("/oauth/token", poll()); status == http.StatusOK {
			return nil
		}
		if answer["error"] != "slow_down" {
			t.Fatalf("%d %v", status, answer)
		}
		return errors.New("slow down")
	})
	token, _ := answer["access_token"].(string)
	if seen := worker.ok("/oauth/introspect", url.Values{"token": {token}}); seen["active"] != true {
		t.Errorf("the token is %v", seen)
	}
}
