package api_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker/api"
	"github.com/mayfly-broker/mayfly/broker/fault"
)

func TestForeignHostAndOriginAreRefused(t *testing.T) {
	tc, n := one(t, func(c *api.Config) { c.Hosts = []string{"Health.example"} })
	c := tc.newClient(t, "", "")
	ask := func(path string, set func(r *http.Request)) reply {
		r := c.request("GET", n.url+path, "")
		set(r)
		return c.send(r)
	}
	for _, path := range []string{"/api/v1/sys/status", "/healthz", "/metrics", "/nowhere"} {
		for _, host := range []string{"evil.example", "127.0.0.1", "localhost:8700"} {
			refused(t, ask(path, func(r *http.Request) { r.Host = host }), 403, api.CodeForeignHost)
		}
		for _, origin := range []string{"https://evil.example", "null", "http://" + n.addr, "https://" + n.addr + ".evil.example"} {
			refused(t, ask(path, func(r *http.Request) { r.Header.Set("Origin", origin) }), 403, api.CodeForeignOrigin)
		}
		refused(t, ask(path, func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }), 403, api.CodeForeignOrigin)
	}
	okay(t, ask("/healthz", func(r *http.Request) { r.Header.Set("Origin", n.url) }), nil)
	okay(t, ask("/healthz", func(r *http.Request) { r.Host = "health.example" }), nil)
}

func TestEveryAnswerHasTheSecurityHeaders(t *testing.T) {
	tc, n := one(t)
	c := tc.newClient(t, "", "")
	for _, path := range []string{"/api/v1/sys/status", "/nowhere", "/api/v1/whoami", "/metrics"} {
		h := c.send(c.request("GET", n.url+path, "")).header
		for name, want := range map[string]string{
			"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Strict-Transport-Security": "max-age=31536000",
			"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'", "Referrer-Policy": "no-referrer",
		} {
			if h.Get(name) != want {
				t.Errorf("%s: %s is %q", path, name, h.Get(name))
			}
		}
		if h.Get("X-Request-Id") == "" || h.Get("DPoP-Nonce") == "" || h.Get("Server") != "" {
			t.Errorf("%s: %v", path, h)
		}
	}
}

func TestPathsAndMethodsThatAreNotThere(t *testing.T) {
	tc, n := one(t)
	c := tc.newClient(t, "", "")
	for _, path := range []string{"/api", "/api/v1", "/api/v1/nope", "/api/v1//whoami", "/api/v1/../whoami", "/api/v1/./whoami", "/docs", "/openapi.json", "/schemas/Task.json"} {
		r := c.request("GET", n.url, "")
		r.URL.Opaque = path
		refused(t, c.send(r), 404, api.CodeNoRoute)
	}
	ans := c.send(c.request("PUT", n.url+"/api/v1/tasks", ""))
	refused(t, ans, 405, api.CodeMethod)
	if got := ans.header.Get("Allow"); got != "GET, POST" {
		t.Fatalf("Allow %q", got)
	}
	refused(t, c.send(c.request("BREW", n.url+"/healthz", "")), 405, api.CodeMethod)
	refused(t, c.send(c.request("GET", n.url+"/api/v1/"+long(3000), "")), 414, api.CodeRequest)
	r := c.request("GET", n.url+"/healthz", "")
	for i := range 80 {
		r.Header.Set(fmt.Sprintf("X-%d", i), "1")
	}
	refused(t, c.send(r), 431, api.CodeHeaders)
}

func TestErrorsBecomeProblemsByTheTable(t *testing.T) {
	tc, n := one(t)
	c := tc.newClient(t, sesame, "dpop")
	for _, tt := range []struct {
		err    error
		status int
		code   string
		retry  string
	}{
		{&fault.Error{Kind: fault.Denied, Code: "scope_exceeds_role", Detail: "Too wide.", DecisionID: "dec_7"}, 403, "scope_exceeds_role", ""},
		{&fault.Error{Kind: fault.ApprovalRequired, Detail: "Two approvals are needed."}, 403, "approval_required", ""},
		{&fault.Error{Kind: fault.NotFound, Detail: "No such lease."}, 404, "not_found", ""},
		{&fault.Error{Kind: fault.Conflict, Detail: "It changed."}, 409, "conflict", ""},
		{&fault.Error{Kind: fault.RateLimited, Code: "cap_role", Detail: "Too many.", RetryAfter: 1500 * time.Millisecond}, 429, "cap_role", "2"},
		{&fault.Error{Kind: fault.Unavailable, Code: "sealed", Detail: "Sealed."}, 503, "sealed", ""},
		{&fault.Error{Kind: fault.Upstream, Code: "target_unavailable", Detail: "Down."}, 502, "target_unavailable", ""},
		{&fault.Error{Kind: fault.Indeterminate, Detail: "Unknown."}, 503, "indeterminate", "1"},
		{fmt.Errorf("while asking: %w", &fault.Error{Kind: fault.Denied, Code: "frozen", Detail: "Contained."}), 403, "frozen", ""},
		{context.DeadlineExceeded, 503, api.CodeTimeout, "1"},
		{errors.New("pq: password sesame-inside is wrong"), 500, "internal", ""},
		{&fault.Error{Kind: fault.Internal, Detail: "sesame-inside", Err: errors.New("sesame-inside")}, 500, "internal", ""},
	} {
		n.broker.set(func(b *fakeBroker) { b.err = tt.err })
		r := c.do(n, "POST", "/requests", `{"role":"a/b"}`)
		p := refused(t, r, tt.status, tt.code)
		if r.header.Get("Retry-After") != tt.retry {
			t.Errorf("%v: Retry-After %q", tt.err, r.header.Get("Retry-After"))
		}
		if strings.Contains(string(r.body), "sesame") {
			t.Errorf("%v: %s", tt.err, r.body)
		}
		if tt.code == "scope_exceeds_role" && p.DecisionID != "dec_7" {
			t.Errorf("decision_id %q", p.DecisionID)
		}
		if tt.status == 500 && !strings.Contains(p.Detail, r.header.Get("X-Request-Id")) {
			t.Errorf("detail %q does not name the request", p.Detail)
		}
	}
}

func TestPanicIsAnAnswer(t *testing.T) {
	tc, n := one(t)
	c := tc.newClient(t, sesame, "dpop")
	n.broker.set(func(b *fakeBroker) { b.panics = true })
	refused(t, c.do(n, "GET", "/whoami", ""), 500, "internal")
	n.broker.set(func(b *fakeBroker) { b.panics = false })
	okay(t, c.do(n, "GET", "/whoami", ""), nil)
}

func TestSealedNodeSaysSo(t *testing.T) {
	tc, n := one(t)
	c := tc.newClient(t, sesame, "dpop").fresh(n)
	n.node.setSealed(true)
	refused(t, c.send(c.sign(c.request("GET", n.url+"/api/v1/whoami", ""))), 503, "sealed")
	refused(t, c.send(c.sign(c.request("POST", n.url+"/api/v1/login", "{}"))), 503, "sealed")
	refused(t, c.send(c.request("GET", n.url+"/readyz", "")), 503, "sealed")
	okay(t, c.send(c.request("GET", n.url+"/healthz", "")), nil)
	okay(t, c.send(c.request("GET", n.url+"/api/v1/sys/status", "")), nil)
	okay(t, c.send(c.request("POST", n.url+"/api/v1/sys/unseal", `{"share":"x"}`)), nil)
	n.node.setSealed(false)
	okay(t, c.send(c.request("GET", n.url+"/readyz", "")), nil)
	n.broker.set(func(b *fakeBroker) { b.ready = fault.New(fault.Unavailable, "stale", "Cut off.") })
	refused(t, c.send(c.request("GET", n.url+"/readyz", "")), 503, "stale")
}

func TestOperatorCallsAreSlow(t *testing.T) {
	tc, n := one(t, func(c *api.Config) { c.Limits.Operator = 0.3 }) // a burst of 3
	c := tc.newClient(t, "", "")
	for range 3 {
		okay(t, c.send(c.request("POST", n.url+"/api/v1/sys/unseal", `{"share":"x"}`)), nil)
	}
	refused(t, c.send(c.request("POST", n.url+"/api/v1/sys/unseal", `{"share":"x"}`)), 429, api.CodeRateLimited)
	okay(t, c.send(c.request("GET", n.url+"/api/v1/sys/status", "")), nil)
}

func TestMetricsCountAndNameNobody(t *testing.T) {
	tc, n := one(t)
	c := tc.newClient(t, sesame, "dpop")
	okay(t, c.do(n, "GET", "/objects/Role/sesame-name", ""), nil)
	refused(t, c.send(c.request("GET", n.url+"/sesame-path", "")), 404, api.CodeNoRoute)
	refused(t, c.send(c.request("SESAME", n.url+"/api/v1/whoami", "")), 405, api.CodeMethod)
	refused(t, c.send(c.request("GET", n.url+"/api/v1/whoami", "")), 401, api.CodeNoCredentials)
	text := string(c.send(c.request("GET", n.url+"/metrics", "")).body)
	for _, want := range []string{
		`mayfly_http_requests_total{method="GET",route="/api/v1/objects/{kind}/{name}",status="200"} 1`,
		`mayfly_http_requests_total{method="GET",route="none",status="404"} 1`,
		`mayfly_http_requests_total{method="other",route="none",status="405"} 1`,
		`mayfly_auth_refusals_total{code="authorization_missing"} 1`,
		`mayfly_http_in_flight 1`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s", want)
		}
	}
	if strings.Contains(strings.ToLower(text), "sesame") {
		t.Error("a label holds what a client chose")
	}
}

func TestLaw6NoSecretReachesTheLog(t *testing.T) {
	tc, n := one(t)
	c := tc.newClient(t, sesame, "dpop")
	okay(t, c.do(n, "POST", "/requests", `{"role":"sesame-role","purpose":"sesame-purpose"}`), nil)
	okay(t, c.do(n, "POST", "/objects", `{"objects":[{"kind":"Target","name":"t","spec":{},"secrets":{"p":"sesame-secret"}}]}`), nil)
	okay(t, c.do(n, "GET", "/whohas?name=sesame-query", ""), nil)
	okay(t, c.send(c.request("POST", n.url+"/api/v1/sys/unseal", `{"share":"sesame-share"}`)), nil)
	c.token = "mfs_sesame-unknown"
	refused(t, c.do(n, "GET", "/whoami", ""), 401, "session_unknown")
	refused(t, c.do(n, "GET", "/sesame-path", ""), 404, api.CodeNoRoute)
	c.token = sesame
	n.broker.set(func(b *fakeBroker) { b.panics = true })
	refused(t, c.do(n, "GET", "/whoami", ""), 500, "internal")
	logs := n.logs.String()
	if strings.Contains(logs, "sesame") {
		t.Fatalf("the log has a secret:\n%s", logs)
	}
	for _, want := range []string{`"route":"/api/v1/requests"`, `"principal":"human:ann"`, `"code":"session_unknown"`, "request handler panicked"} {
		if !strings.Contains(logs, want) {
			t.Errorf("the log lacks %s", want)
		}
	}
}

func TestExportStreamsAndBreaksVisibly(t *testing.T) {
	tc, n := one(t)
	c := tc.newClient(t, sesame, "dpop")
	n.broker.set(func(b *fakeBroker) { b.lines = 5000 })
	r := c.do(n, "GET", "/audit/export?from=3", "")
	if r.status != 200 || strings.Count(string(r.body), "\n") != 5000 || r.header.Get("Content-Type") != "application/x-ndjson" {
		t.Fatalf("%d, %d bytes, %v", r.status, len(r.body), r.header)
	}
	n.broker.set(func(b *fakeBroker) { b.err, b.lines = fault.New(fault.Denied, "", "No."), 0 })
	refused(t, c.do(n, "GET", "/audit/export", ""), 403, "denied")

	n.broker.set(func(b *fakeBroker) { b.err, b.lines = errors.New("disk"), 5000 })
	c.fresh(n)
	resp, err := c.http.Do(c.sign(c.request("GET", n.url+"/api/v1/audit/export", "")))
	must(t, err)
	defer resp.Body.Close()
	buf := make([]byte, 1<<20)
	for err == nil {
		_, err = resp.Body.Read(buf)
	}
	if err.Error() == "EOF" {
		t.Fatal("a broken export ended like a whole one")
	}
}

func TestShutdownWaitsForWhatIsInFlight(t *testing.T) {
	tc, n := one(t)
	c := tc.newClient(t, sesame, "dpop").fresh(n)
	entered, leave := make(chan struct{}), make(chan struct{})
	n.broker.set(func(b *fakeBroker) {
		b.hold = func(ctx context.Context) error {
			close(entered)
			select {
			case <-leave:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
	r := c.sign(c.request("POST", n.url+"/api/v1/tasks/t/end?wait=30s", ""))
	answered := make(chan reply, 1)
	go func() { answered <- c.send(r) }()
	<-entered
	down := make(chan error, 1)
	go func() { down <- n.server.Shutdown(context.Background()) }()
	must(t, <-n.done) // the listener is closed
	n.done <- nil
	select {
	case <-down:
		t.Fatal("shut down with a request in flight")
	default:
	}
	close(leave)
	okay(t, <-answered, nil)
	must(t, <-down)
}
