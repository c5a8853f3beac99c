package e2e_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/e2e/harness"
)

const ciAudience = "https://mayfly.example"

// ci is a house whose workloads log in with tokens of a local issuer.
type ci struct {
	*house
	issuer *harness.Issuer
}

func newCI(t *testing.T) *ci {
	t.Helper()
	h := newHouse(t)
	ca := harness.NewCA(t, h.dir)
	c := &ci{h, harness.StartIssuer(t, ca, h.dir)}
	method, err := json.Marshal(map[string]any{"type": "oidc", "issuer": c.issuer.URL, "audience": ciAudience, "key_in_audience": true, "ca": ca.PEM,
		"require": map[string]string{"repository_owner_id": "4711"},
		"bind":    []any{map[string]any{"when": map[string]string{"repository_id": "815", "environment": "production"}, "as": "workload:deploy", "instance": "run_id"}}})
	if err != nil {
		t.Fatal(err)
	}
	h.operator.Apply(t, "kind: AuthMethod\nname: ci\nspec: "+string(method)+"\n---\nkind: Principal\nname: workload:deploy\nspec: {}\n"+`---
kind: Role
name: orders/job
spec:
  scope: [{type: database, identifier: orders, actions: [select], tables: [{name: "public.*"}]}]
  ttl: {default: 10m, max: 1h}
  caps: {per_instance: 2, per_principal: 4}
`)
	h.operator.ApplyPolicy(t, h.dir, "deploy", `@id("deploy")
permit (principal == Workload::"deploy", action == Action::"request", resource == Role::"orders/job")
when { context.session.bound && context.session.attested_key };
`)
	return c
}

// claims are a good token's for the key in a home.
func (c *ci) claims(t *testing.T, home, run string) map[string]any {
	t.Helper()
	h, err := client.OpenHome(home)
	if err != nil {
		t.Fatal(err)
	}
	key, err := h.Key()
	if err != nil {
		t.Fatal(err)
	}
	m := c.issuer.Claims(ciAudience+"#"+key.Thumbprint(), "repo:acme/shop")
	for k, v := range map[string]string{"repository_owner_id": "4711", "repository_id": "815", "environment": "production", "run_id": run} {
		m[k] = v
	}
	return m
}

// job is a command line that logs in with a token file. Each job is a new
// machine: it has a home, and so a key, of its own.
func (c *ci) job(t *testing.T, name string) (cli harness.CLI, home, tokenFile string) {
	t.Helper()
	home, tokenFile = filepath.Join(c.dir, "job-"+name), filepath.Join(c.dir, "token-"+name)
	cli = harness.NewCLI(t, map[string]string{"MAYFLY_ADDR": c.dev.URL, "MAYFLY_CACERT": c.operator.Getenv("MAYFLY_CACERT"),
		"MAYFLY_HOME": home, "MAYFLY_METHOD": "ci", "MAYFLY_JWT_FILE": tokenFile, "MAYFLY_RETRY": "5s"})
	return cli, home, tokenFile
}

func put(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestOIDCLogin(t *testing.T) {
	c := newCI(t)
	t.Run("bound principal and instance", func(t *testing.T) {
		job, home, file := c.job(t, "good")
		put(t, file, c.issuer.Sign(t, c.claims(t, home, "run-1")))
		var me wire.Whoami
		job.JSON(t, &me, "whoami")
		if me.Principal != "workload:deploy" || me.Instance != "run-1" || me.Method != "ci" || !me.AttestedKey || me.Binding != "dpop" {
			t.Errorf("whoami: %+v", me)
		}
	})
	t.Run("refusals", c.refusals)
	t.Run("a crash loop supersedes itself", c.crashLoop)
	t.Run("caps", c.caps)
	harness.AllEnded(t, c.operator.Client(t, 10*time.Second), 30*time.Second)
	harness.NothingLeft(t, harness.Postgres{Server: c.pg}, 0)
}

// refusals are tokens that must open nothing, each with the code that says why.
func (c *ci) refusals(t *testing.T) {
	with := func(name string, value any) func(map[string]any) {
		return func(m map[string]any) { m[name] = value }
	}
	now := time.Now()
	for i, bad := range []struct {
		code   string
		change func(map[string]any)
		encode func(testing.TB, map[string]any) string
	}{
		{"token_expired", with("exp", now.Add(-10*time.Minute).Unix()), c.issuer.Sign},
		{"token_not_yet_valid", with("nbf", now.Add(10*time.Minute).Unix()), c.issuer.Sign},
		{"token_signature", with("x", 1), c.issuer.Forge},
		{"token_algorithm", with("x", 1), unsigned},
		{"token_audience", with("aud", "https://other.example"), c.issuer.Sign},
		{"token_audience", with("aud", ciAudience), c.issuer.Sign}, // names no key
		{"key_binding", with("aud", ciAudience+"#AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"), c.issuer.Sign},
		{"token_issuer", with("iss", "https://evil.example"), c.issuer.Sign},
		{"claims_refused", with("repository_owner_id", "4712"), c.issuer.Sign},
		{"no_binding", with("environment", "staging"), c.issuer.Sign},
		{"", with("run_id", "a\nb"), c.issuer.Sign},
		{"token_malformed", with("x", strings.Repeat("x", 24<<10)), c.issuer.Sign},
	} {
		job, home, file := c.job(t, fmt.Sprintf("bad-%d", i))
		m := c.claims(t, home, "run-9")
		bad.change(m)
		put(t, file, bad.encode(t, m))
		t.Run(bad.code, func(t *testing.T) { job.Refused(t, 6, bad.code, "whoami") })
	}
}

// unsigned makes a token of algorithm none (RFC 8725 §2.1).
func unsigned(t testing.TB, claims map[string]any) string {
	t.Helper()
	body, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	return b64([]byte(`{"alg":"none","typ":"JWT","kid":"k1"}`)) + "." + b64(body) + "."
}

// crashLoop is a service that dies right after it got its credential, over and
// over: it must neither lock itself out nor pile up accounts.
func (c *ci) crashLoop(t *testing.T) {
	var before string
	for i := range 8 {
		job, home, file := c.job(t, fmt.Sprintf("loop-%d", i))
		put(t, file, c.issuer.Sign(t, c.claims(t, home, "pod-7")))
		var a wire.AccessAnswer
		job.JSON(t, &a, "request", "orders/job", "--purpose", "serve", "--ttl", "10m")
		if i > 0 && (len(a.Replaced) != 1 || a.Replaced[0] != before) {
			t.Errorf("round %d replaced %v, want %s", i, a.Replaced, before)
		}
		before = a.LeaseID
	}
	var open []wire.Lease
	c.operator.JSON(t, &open, "lease", "list", "--state", "open", "--principal", "workload:deploy")
	if len(open) != 1 || open[0].ID != before || open[0].Instance != "pod-7" {
		t.Errorf("after the loop %d leases are open: %+v", len(open), open)
	}
	// Another instance is untouched by it, and touches nothing.
	job, home, file := c.job(t, "healthy")
	put(t, file, c.issuer.Sign(t, c.claims(t, home, "pod-8")))
	var a wire.AccessAnswer
	job.JSON(t, &a, "request", "orders/job", "--purpose", "serve", "--ttl", "10m")
	if len(a.Replaced) != 0 {
		t.Errorf("another instance's lease was replaced: %v", a.Replaced)
	}
	c.operator.Must(t, "lease", "revoke", a.LeaseID)
	c.operator.Must(t, "lease", "revoke", before)
}

// caps: what an instance, and all of them together, may hold.
func (c *ci) caps(t *testing.T) {
	var leases []string
	ask := func(instance string, n int) (granted int, last harness.Result) {
		job, home, file := c.job(t, "cap-"+instance)
		put(t, file, c.issuer.Sign(t, c.claims(t, home, instance)))
		task := "work-" + instance
		job.Must(t, "task", "start", task, "--purpose", "caps")
		for range n {
			last = job.Run(t, "request", "orders/job", "--task", task, "--ttl", "10m", "-o", "json")
			if last.Code == 0 {
				var a wire.AccessAnswer
				decode(t, last.Stdout, &a)
				leases = append(leases, a.LeaseID)
				granted++
			}
		}
		return granted, last
	}
	n, last := ask("one", 3)
	if n != 2 {
		t.Errorf("one instance got %d leases, its cap is 2", n)
	}
	last.Problem(t, 5, "cap_per_instance")
	if n, _ := ask("two", 2); n != 2 {
		t.Errorf("another instance got %d leases, its cap is 2", n)
	}
	n, last = ask("three", 1)
	if n != 0 {
		t.Error("the principal got more leases than its cap of 4")
	}
	last.Problem(t, 5, "cap_per_principal")
	for _, id := range leases {
		c.operator.Must(t, "lease", "revoke", id)
	}
}
