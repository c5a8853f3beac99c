package api_test

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/api"
	"github.com/mayfly-broker/mayfly/client/wire"
)

func TestBodiesAreReadStrictly(t *testing.T) {
	tc, n := one(t)
	c := tc.newClient(t, sesame, "dpop")
	deep := `{"role":"a/b","scope":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `}`
	for _, tt := range []struct {
		name, path, body string
		status           int
		code             string
	}{
		{"nothing", "/requests", "", 400, api.CodeBodyNeeded},
		{"not JSON", "/requests", `{"role":`, 400, api.CodeMalformed},
		{"an array", "/requests", `[]`, 400, api.CodeMalformed},
		{"null", "/requests", `null`, 400, api.CodeMalformed},
		{"broken UTF-8", "/requests", "{\"role\":\"\xff\"}", 400, api.CodeMalformed},
		{"a member twice", "/requests", `{"role":"a/b","role":"a/c"}`, 400, api.CodeDuplicate},
		{"twice in what is free", "/requests", `{"role":"a/b","scope":[{"type":"x","type":"y"}]}`, 400, api.CodeDuplicate},
		{"another case", "/requests", `{"role":"a/b","Role":"a/c"}`, 400, api.CodeUnknown},
		{"unknown", "/requests", `{"role":"a/b","rolle":1}`, 400, api.CodeUnknown},
		{"unknown inside", "/objects", `{"objects":[{"kind":"Role","name":"x","spec":{},"sbec":1}]}`, 400, api.CodeUnknown},
		{"more after", "/requests", `{"role":"a/b"} {}`, 400, api.CodeTrailing},
		{"too deep", "/requests", deep, 400, api.CodeTooDeep},
		{"wrong type", "/requests", `{"role":7}`, 400, api.CodeRequest},
		{"needed member missing", "/requests", `{}`, 400, api.CodeRequest},
		{"too large", "/requests", `{"role":"` + strings.Repeat("a", 70_000) + `"}`, 413, api.CodeTooLarge},
		{"too large for objects", "/objects", `{"objects":[{"kind":"` + strings.Repeat("a", 1<<20) + `"}]}`, 413, api.CodeTooLarge},
		{"a body for none", "/logout", `{"x":1}`, 400, api.CodeUnknown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c.t = t
			refused(t, c.do(n, "POST", tt.path, tt.body), tt.status, tt.code)
		})
	}
	if calls, _, _ := n.broker.seen(); calls != 0 {
		t.Fatalf("the engine was called %d times", calls)
	}
}

func TestRefusalsDoNotRepeatWhatWasSent(t *testing.T) {
	tc, n := one(t)
	c := tc.newClient(t, sesame, "dpop")
	for _, body := range []string{
		`{"name":"x","spec":{},"secrets":{"password":["sesame-typed"]}}`,
		`{"name":"x","spec":{},"secrets":"sesame-typed"}`,
		`{"name":"x","spec":{},"secrets":{"password":"sesame-typed"`,
	} {
		if r := c.do(n, "POST", "/target-preview", body); r.status != 400 || strings.Contains(string(r.body), "sesame") {
			t.Fatalf("%d %s", r.status, r.body)
		}
	}
}

func TestWhatIsOptionalMayBeLeftOut(t *testing.T) {
	tc, n := one(t)
	c := tc.newClient(t, sesame, "dpop")
	for _, path := range []string{"/leases/lease_1/renew", "/leases/lease_1/revoke", "/principals/human:bo/enrolment", "/tasks/t/heartbeat", "/sys/join-token"} {
		okay(t, c.do(n, "POST", path, ""), nil)
		okay(t, c.do(n, "POST", path, "{}"), nil)
	}
	if r := c.do(n, "POST", "/logout", "{}"); r.status != http.StatusNoContent || len(r.body) != 0 {
		t.Fatalf("%d %s", r.status, r.body)
	}
}

func TestMediaTypeIsChecked(t *testing.T) {
	tc, n := one(t)
	c := tc.newClient(t, sesame, "dpop")
	for _, set := range []func(h http.Header){
		func(h http.Header) { h.Del("Content-Type") },
		func(h http.Header) { h.Set("Content-Type", "text/plain") },
		func(h http.Header) { h.Set("Content-Type", "application/x-www-form-urlencoded") },
		func(h http.Header) { h.Set("Content-Type", "application/json; charset=latin1") },
		func(h http.Header) { h.Add("Content-Type", "application/json") },
		func(h http.Header) { h.Set("Content-Encoding", "gzip") },
	} {
		c.fresh(n)
		r := c.sign(c.request("POST", n.url+"/api/v1/requests", `{"role":"a/b"}`))
		set(r.Header)
		refused(t, c.send(r), 415, api.CodeMediaType)
	}
	c.fresh(n)
	r := c.sign(c.request("POST", n.url+"/api/v1/requests", `{"role":"a/b"}`))
	r.Header.Set("Content-Type", "application/json; charset=UTF-8")
	okay(t, c.send(r), nil)
}

func TestParametersAreChecked(t *testing.T) {
	tc, n := one(t)
	c := tc.newClient(t, sesame, "dpop")
	for path, code := range map[string]string{
		"/leases?limit=1001":        api.CodeRequest,
		"/leases?limit=0":           api.CodeRequest,
		"/leases?limit=x":           api.CodeRequest,
		"/leases?stat=open":         api.CodeRequest,
		"/leases?state=a&state=b":   api.CodeParameter,
		"/leases?state=%zz":         api.CodeParameter,
		"/whohas":                   api.CodeRequest,
		"/audit/entries?from=-1":    api.CodeRequest,
		"/tasks?after=" + long(200): api.CodeRequest,
	} {
		refused(t, c.do(n, "GET", path, ""), 400, code)
	}
	refused(t, c.send(c.request("GET", n.url+"/api/v1/tasks?state="+long(5_000), "")), 400, api.CodeParameter)
	for _, wait := range []string{"61s", "-1s", "soon"} {
		refused(t, c.do(n, "POST", "/tasks/t/end?wait="+wait, ""), 400, api.CodeParameter)
	}
	okay(t, c.do(n, "GET", "/leases?state=open&target=orders&limit=7&after=l1", ""), nil)
	if _, _, in := n.broker.seen(); in != (broker.LeaseFilter{State: "open", Target: "orders", Limit: 7, After: "l1"}) {
		t.Fatalf("%+v", in)
	}
	okay(t, c.do(n, "GET", "/tasks", ""), nil)
	if _, _, in := n.broker.seen(); in != (broker.TaskFilter{Limit: 100}) {
		t.Fatalf("%+v", in)
	}
	okay(t, c.do(n, "POST", "/tasks/t/end?wait=10s", ""), nil)
	if _, _, in := n.broker.seen(); in != 10*time.Second {
		t.Fatalf("%+v", in)
	}
}

func TestPathsReachTheEngine(t *testing.T) {
	tc, n := one(t)
	c := tc.newClient(t, sesame, "dpop")
	for path, want := range map[string]any{
		"POST /tasks/task_7/heartbeat":                "task_7",
		"GET /tasks/task_7":                           "task_7",
		"GET /leases/lease_7":                         "lease_7",
		"GET /decisions/dec_7":                        "dec_7",
		"DELETE /keys/abc?principal=human:bo":         "human:bo abc",
		"POST /targets/orders/check":                  "orders",
		"POST /reconcile?target=orders":               wire.ReconcileRequest{Target: "orders"},
		"POST /reconcile?target=t&heal=true&reason=r": wire.ReconcileRequest{Target: "t", Heal: true, Reason: "r"},
		"GET /audit/entries?from=5&limit=3":           3,
		"GET /audit/export?from=5&to=9":               [2]uint64{5, 9},
		"GET /objects/Role/orders/readonly":           "orders/readonly",
		"GET /whohas?name=v-orders-0123456789abc":     "v-orders-0123456789abc",
	} {
		method, rest, _ := strings.Cut(path, " ")
		okay(t, c.do(n, method, rest, ""), nil)
		if _, _, in := n.broker.seen(); in != want {
			t.Errorf("%s: the engine got %v, not %v", path, in, want)
		}
	}
	var task wire.EndTaskAnswer
	okay(t, c.do(n, "POST", "/tasks/task_8/end", ""), &task)
	okay(t, c.do(n, "POST", "/rotate", `{"kind":"account","name":"billing","now":true}`), new(wire.Rotation))
	if _, _, in := n.broker.seen(); in != (wire.RotateRequest{Kind: "account", Name: "billing", Now: true}) {
		t.Errorf("%+v", in)
	}
	var lease wire.Lease
	okay(t, c.do(n, "POST", "/leases/lease_8/revoke", `{"force":true,"reason":"gone"}`), &lease)
	if _, _, in := n.broker.seen(); task.Task.ID != "task_8" || lease.ID != "lease_8" || in != (wire.RevokeRequest{Force: true, Reason: "gone"}) {
		t.Errorf("%+v %+v %+v", task, lease, in)
	}
}

func long(n int) string { return strings.Repeat("a", n) }

func TestNamesMayHoldSlashesAndColons(t *testing.T) {
	tc, n := one(t)
	c := tc.newClient(t, sesame, "dpop")
	var o wire.Object
	for path, want := range map[string]string{
		"/objects/Role/orders/readonly":   "orders/readonly",
		"/objects/Role/orders%2Freadonly": "orders/readonly",
		"/objects/Principal/human:ann":    "human:ann",
	} {
		okay(t, c.do(n, "GET", path, ""), &o)
		if o.Name != want {
			t.Fatalf("%s: %q", path, o.Name)
		}
	}
}

func TestEmptyListsAreArrays(t *testing.T) {
	tc, n := one(t)
	c := tc.newClient(t, sesame, "dpop")
	for _, path := range []string{"/keys", "/tasks", "/leases", "/objects/Role", "/sys/peers", "/sys/plugins", "/rotations"} {
		if r := c.do(n, "GET", path, ""); strings.TrimSpace(string(r.body)) != "[]" {
			t.Fatalf("%s: %s", path, r.body)
		}
	}
}

func TestIdempotencyKeyComesWithTheRequestsHash(t *testing.T) {
	tc, n := one(t)
	c := tc.newClient(t, sesame, "dpop")
	with := func(method, path, body string, keys ...string) reply {
		c.fresh(n)
		r := c.sign(c.request(method, n.url+"/api/v1"+path, body))
		r.Header["Idempotency-Key"] = keys
		return c.send(r)
	}
	okay(t, with("POST", "/requests", `{"role":"a/b"}`, "k1"), nil)
	_, last, _ := n.broker.seen()
	sum := sha256.Sum256([]byte("POST\n/api/v1/requests\n\n" + `{"role":"a/b"}`))
	if last.Idem == nil || last.Idem.Key != "k1" || last.Idem.Hash != hex.EncodeToString(sum[:]) {
		t.Fatalf("%+v", last.Idem)
	}
	first := last.Idem.Hash
	okay(t, with("POST", "/requests", `{"role":"a/c"}`, "k1"), nil)
	if _, last, _ = n.broker.seen(); last.Idem.Hash == first {
		t.Fatal("another body, the same hash")
	}
	okay(t, with("DELETE", "/keys/x?principal=human:bo", "", "k2"), nil)
	_, last, _ = n.broker.seen()
	first = last.Idem.Hash
	okay(t, with("DELETE", "/keys/x?principal=human:kim", "", "k2"), nil)
	if _, last, _ = n.broker.seen(); last.Idem.Hash == first {
		t.Fatal("another query, the same hash")
	}
	okay(t, with("GET", "/whoami", "", "k3"), nil)
	if _, last, _ = n.broker.seen(); last.Idem != nil {
		t.Fatalf("a read has an idempotency key: %+v", last.Idem)
	}
	refused(t, with("POST", "/logout", "", "a", "b"), 400, api.CodeIdemKey)
	refused(t, with("POST", "/logout", "", long(129)), 400, api.CodeIdemKey)
	refused(t, with("POST", "/logout", "", "a b"), 400, api.CodeIdemKey)
}
