package gcp_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/gcp"
	"github.com/mayfly-broker/mayfly/issuers/gcp/gcptest"
	"github.com/mayfly-broker/mayfly/scope"
)

var plain = spec{"service_account": gcptest.Account, "provider": gcptest.Provider}

func TestSpecs(t *testing.T) {
	for name, x := range map[string]struct {
		change spec
		ok     bool
	}{
		"as it is":                {spec{}, true},
		"endpoints of one's own":  {spec{"sts_endpoint": "https://sts-x.p.googleapis.com", "iam_endpoint": "https://iamcredentials-x.p.googleapis.com/"}, true},
		"documents elsewhere":     {spec{"identity": spec{"issuer": "https://id.example/x", "audience": "y"}}, true},
		"resources":               {spec{"resources": []string{"gs://orders/*"}, "max_ttl": "15m"}, true},
		"no account":              {spec{"service_account": ""}, false},
		"a person":                {spec{"service_account": "jane@example.com"}, false},
		"a path":                  {spec{"service_account": "x/../y@p.iam.gserviceaccount.com"}, false},
		"a project by its name":   {spec{"provider": strings.Replace(gcptest.Provider, "123456789", "my-project", 1)}, false},
		"a pool":                  {spec{"provider": "projects/1/locations/global/workloadIdentityPools/mayfly"}, false},
		"an endpoint without TLS": {spec{"sts_endpoint": "http://sts.internal"}, false},
		"an endpoint with a path": {spec{"iam_endpoint": "https://iam.internal/x"}, false},
		"an issuer without TLS":   {spec{"identity": spec{"issuer": "http://id.example"}}, false},
		"a key":                   {spec{"credentials_json": "{}"}, false},
		"two CAs":                 {spec{"tls": spec{"ca": "x", "ca_file": "y"}}, false},
		"too long a life":         {spec{"max_ttl": "61m"}, false},
		"too short a life":        {spec{"max_ttl": "1s"}, false},
		"a resource that is none": {spec{"resources": []string{"orders"}}, false},
	} {
		if err := (gcp.Kind{}).CheckSpec(plain.with(x.change).raw(t)); (err == nil) != x.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	only := plain.with(spec{"resources": []string{"gs://orders/2026/*"}}).raw(t)
	for l, ok := range map[string]bool{"gs://orders/2026/*": true, "gs://orders/2026/a": true, "gs://orders/*": false, "gs://orders/2026*": false, "gs://orders2/2026/*": false} {
		if err := (gcp.Kind{}).CheckScope(only, allow("get", l)); (err == nil) != ok {
			t.Errorf("%s within the target's resources: %v", l, err)
		}
	}
}

// Roles are offered for the objects that the target names, and are as they say.
func TestRoles(t *testing.T) {
	if roles, err := (gcp.Kind{}).Roles(plain.raw(t)); err != nil || len(roles) != 0 {
		t.Errorf("%v %v", roles, err)
	}
	roles, err := gcp.Kind{}.Roles(plain.with(spec{"max_ttl": "10m", "resources": []string{"gs://orders/*", "gs://orders/one"}}).raw(t))
	if err != nil || len(roles) != 2 || roles[0].Suffix != "readonly" || roles[1].Suffix != "readwrite" {
		t.Fatalf("%v %v", roles, err)
	}
	if err := scope.Covers(roles[1].Scope, roles[0].Scope); err != nil || scope.Covers(roles[0].Scope, roles[1].Scope) == nil {
		t.Errorf("readonly is not the narrower one: %v", err)
	}
	if roles[0].MaxTTL != 10*time.Minute || roles[0].DefaultTTL != 10*time.Minute {
		t.Errorf("%+v", roles[0])
	}
}

// FuzzCompile: whatever a scope says, its boundary is one that STS can read, and
// allows nothing that no location names.
func FuzzCompile(f *testing.F) {
	for _, s := range append(append(accepted(), hostile()...), invalid()...) {
		raw, err := json.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, "2026/a.txt", "orders")
	}
	sp := plain.raw(f)
	f.Fuzz(func(t *testing.T, raw []byte, object, bucket string) {
		s, err := scope.Parse(raw)
		if err != nil {
			return
		}
		text, err := gcp.Compile(sp, s)
		if err != nil {
			return
		}
		rules, err := gcptest.ReadBoundary(text)
		if err != nil {
			t.Fatalf("STS would not read %s: %v", text, err)
		}
		for _, what := range []string{"get", "list", "create", "delete", "update"} {
			if gcptest.Allowed(rules, what, bucket, object) != named(s, what, bucket, object) {
				t.Fatalf("%s gs://%s/%s: %t by %s, of %s", what, bucket, object, gcptest.Allowed(rules, what, bucket, object), text, raw)
			}
		}
	})
}

// named says whether a scope names an operation: the algebra's own reading.
func named(s scope.Scope, what, bucket, object string) bool {
	for _, d := range s {
		for _, a := range d.Actions {
			for _, l := range d.Locations {
				prefix, open := strings.CutSuffix(l, "*")
				at := "gs://" + bucket + "/" + object
				within := at == l && what != "list" || open && strings.HasPrefix(at, prefix)
				if a == "storage.objects."+what && within && !strings.Contains(bucket, "/") {
					return true
				}
			}
		}
	}
	return false
}

type answering struct {
	status int
	body   []byte
}

func (a answering) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: a.status, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(a.body)), Request: r, ProtoMajor: 1, ProtoMinor: 1}, nil
}

// FuzzAnswer: whatever Google says, it is a whole token or an error of a kind.
func FuzzAnswer(f *testing.F) {
	f.Add(200, []byte(`{"access_token":"ya29.xxxxxxxx","token_type":"Bearer","accessToken":"ya29.yyyyyyyy","expireTime":"2026-01-01T00:00:00Z","expires_in":1}`))
	f.Add(200, []byte(`{"access_token":"ya29.xxxxxxxx","token_type":"Bearer","accessToken":"ya29.yyyyyyyy","expireTime":"9999-01-01T00:00:00Z","expires_in":-1}`))
	f.Add(400, []byte(`{"error":"invalid_grant","error_description":"x"}`))
	f.Add(403, []byte(`{"error":{"code":403,"message":"x","status":"PERMISSION_DENIED"}}`))
	f.Add(200, []byte(`null`))
	is, err := gcp.Kind{}.Open(target(f, plain))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		gcp.Through(is, answering{100 + max(0, status)%500, body})
		l := lease(theScope)
		c, err := is.Mint(t.Context(), l)
		if err != nil {
			var typed *issuers.Error
			if !errors.As(err, &typed) || len(c.Secret) > 0 {
				t.Fatalf("%T %v", err, err)
			}
			return
		}
		end, err := time.Parse(time.RFC3339, c.Public["expiration"])
		if err != nil || end.After(l.NotAfter) || len(c.Secret["access_token"].Reveal()) < 8 {
			t.Fatalf("%v %v", c.Public, err)
		}
	})
}
