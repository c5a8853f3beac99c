package api_test

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// operations is what ENGINE promises outside; a path that goes missing breaks
// programs.
var operations = []string{
	"GET /grants", "GET /grants/{id}", "POST /grants/{id}/approve", "POST /grants/{id}/deny", "POST /grants/{id}/cancel", "POST /grants/{id}/revoke",
	"POST /grants/{id}/collect", "POST /grants/{id}/review", "GET /grants/{id}/previous",
	"POST /login", "POST /logout", "GET /whoami", "GET /keys", "POST /keys", "POST /keys/document", "DELETE /keys/{thumbprint}", "POST /principals/{name}/enrolment",
	"GET /objects/{kind}", "GET /objects/{kind}/{name}", "POST /objects", "POST /targets/{name}/check", "POST /target-preview",
	"POST /tasks", "GET /tasks", "GET /tasks/{id}", "POST /tasks/{id}/heartbeat", "POST /tasks/{id}/end",
	"POST /requests", "GET /leases", "GET /leases/{id}", "POST /leases/{id}/renew", "POST /leases/{id}/revoke",
	"GET /whohas", "POST /contain", "POST /release", "GET /decisions/{id}", "POST /policy/test", "POST /policy/replay",
	"GET /audit/entries", "GET /audit/export", "GET /audit/verify", "POST /reconcile", "POST /rotate", "GET /rotations",
	"GET /sys/status", "POST /sys/init", "POST /sys/unseal", "POST /sys/recover", "POST /sys/rekey",
	"POST /sys/seal", "POST /sys/join-token", "GET /sys/peers", "GET /sys/plugins", "POST /sys/remove-peer", "POST /sys/step-down",
}

type document struct {
	OpenAPI string
	Info    struct{ Title, Version string }
	Paths   map[string]map[string]struct {
		OperationID string
		Parameters  []struct {
			Name, In string
			Required bool
		}
		Responses map[string]struct {
			Content map[string]json.RawMessage
		}
		Security []map[string][]string
	}
	Components struct {
		Schemas         map[string]json.RawMessage
		SecuritySchemes map[string]json.RawMessage
	}
}

func TestOpenAPIDocumentHoldsEveryOperation(t *testing.T) {
	tc, n := one(t)
	c := tc.newClient(t, "", "")
	ans := c.send(c.request("GET", n.url+"/api/v1/openapi.json", ""))
	var doc document
	okay(t, ans, &doc)
	if !strings.HasPrefix(doc.OpenAPI, "3.1") || doc.Info.Title != "Mayfly" || ans.header.Get("Content-Type") != "application/openapi+json" {
		t.Fatalf("%s %+v %v", doc.OpenAPI, doc.Info, ans.header)
	}
	var have []string
	ids := map[string]bool{}
	template := regexp.MustCompile(`\{([^}]+)\}`)
	for path, methods := range doc.Paths {
		for method, op := range methods {
			have = append(have, strings.ToUpper(method)+" "+strings.TrimPrefix(path, "/api/v1"))
			if ids[op.OperationID] || op.OperationID == "" {
				t.Errorf("%s %s: operation id %q is not its own", method, path, op.OperationID)
			}
			ids[op.OperationID] = true
			if _, ok := op.Responses["default"].Content["application/problem+json"]; !ok {
				t.Errorf("%s %s: no problem document", method, path)
			}
			// OpenAPI 3.1 §4.8.9: each template variable is a required parameter.
			for _, v := range template.FindAllStringSubmatch(path, -1) {
				if !slices.ContainsFunc(op.Parameters, func(p struct {
					Name, In string
					Required bool
				}) bool {
					return p.Name == v[1] && p.In == "path" && p.Required
				}) {
					t.Errorf("%s %s: no parameter %s", method, path, v[1])
				}
			}
			open := strings.HasSuffix(path, "/login") || slices.Contains([]string{"status", "init", "unseal", "recover", "rekey"}, op.OperationID)
			if open != (len(op.Security) == 0) {
				t.Errorf("%s %s: security %v", method, path, op.Security)
			}
		}
	}
	slices.Sort(have)
	want := slices.Sorted(slices.Values(operations))
	if !slices.Equal(have, want) {
		t.Errorf("operations\n%q\nwant\n%q", have, want)
	}
	text := string(ans.body)
	for _, ref := range regexp.MustCompile(`"#/components/schemas/([^"]+)"`).FindAllStringSubmatch(text, -1) {
		if _, ok := doc.Components.Schemas[ref[1]]; !ok {
			t.Errorf("schema %s is referred to, but not there", ref[1])
		}
	}
	for _, absent := range []string{"$schema", "ErrorModel"} {
		if strings.Contains(text, absent) {
			t.Errorf("the document has %s", absent)
		}
	}
	for _, s := range []string{"Problem", "AccessRequest", "AccessAnswer", "Lease", "Whoami"} {
		if _, ok := doc.Components.Schemas[s]; !ok {
			t.Errorf("no schema %s", s)
		}
	}
}

// Every operation of the document is there, and refuses strangers.
func TestStrangersGetNowhere(t *testing.T) {
	tc, n := one(t)
	c := tc.newClient(t, "", "")
	for _, op := range operations {
		method, path, _ := strings.Cut(op, " ")
		path = strings.NewReplacer("{kind}", "Role", "{name}", "x", "{id}", "x", "{thumbprint}", "x").Replace(path)
		r := c.send(c.request(method, n.url+"/api/v1"+path, ""))
		switch {
		case path == "/sys/status":
			okay(t, r, nil)
		case strings.HasPrefix(path, "/sys/") && slices.Contains([]string{"/sys/init", "/sys/unseal", "/sys/recover", "/sys/rekey"}, path):
			if r.status != 400 { // no body, no shares
				t.Errorf("%s: %d %s", op, r.status, r.body)
			}
		default:
			if r.status != 401 {
				t.Errorf("%s: %d %s", op, r.status, r.body)
			}
		}
	}
	if calls, _, _ := n.broker.seen(); calls != 0 {
		t.Fatalf("the engine was called %d times", calls)
	}
}

func TestDiscoveryAndKeysArePublic(t *testing.T) {
	tc, n := one(t)
	c := tc.newClient(t, "", "")
	var meta struct {
		Issuer  string `json:"issuer"`
		JWKSURI string `json:"jwks_uri"`
	}
	okay(t, c.send(c.request("GET", n.url+"/.well-known/openid-configuration", "")), &meta)
	if meta.Issuer != n.url || meta.JWKSURI != n.url+"/oauth/jwks" {
		t.Fatalf("%+v", meta)
	}
	r := c.send(c.request("GET", meta.JWKSURI, ""))
	if string(r.body) != `{"keys":[]}` || !strings.HasPrefix(r.header.Get("Cache-Control"), "public") {
		t.Fatalf("%s %v", r.body, r.header)
	}
}
