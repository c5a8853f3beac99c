package azure_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/azure"
	"github.com/mayfly-broker/mayfly/issuers/azure/azuretest"
	"github.com/mayfly-broker/mayfly/scope"
)

// Every code of Entra's, to the kind that the broker acts on.
func TestErrorsAreClassified(t *testing.T) {
	is := open(t, bySAS())
	defer world.Entra.Answer(nil)
	const nasty = "AADSTS70021: a message with a mark \u202e and a line\r\nmore"
	for _, x := range []struct {
		answer http.HandlerFunc
		kind   issuers.ErrorKind
	}{
		{azuretest.Refusal(401, "invalid_client", nasty), issuers.Refused},
		{azuretest.Refusal(400, "unauthorized_client", nasty), issuers.Refused},
		{azuretest.Refusal(400, "invalid_scope", nasty), issuers.Refused},
		{azuretest.Refusal(400, "something_new", nasty), issuers.Refused},
		{azuretest.Refusal(429, "too_many", nasty), issuers.Unreachable},
		{azuretest.Refusal(503, "temporarily_unavailable", nasty), issuers.Unreachable},
		{azuretest.Refusal(500, "server_error", nasty), issuers.Unknown},
		{azuretest.Refusal(400, "", nasty), issuers.Unknown},
		{func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>fine</html>")) }, issuers.Unknown},
		{func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"token_type":"Bearer","access_token":"` + strings.Repeat("x", 1<<17) + `"}`))
		}, issuers.Unknown},
		{func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, world.Blobs.URL, http.StatusTemporaryRedirect)
		}, issuers.Unknown},
		{func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"token_type":"Bearer","expires_in":3600,"access_token":"a token that is none"}`))
		}, issuers.Unknown},
		// The storage account itself turns this one away.
		{func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"token_type":"Bearer","expires_in":3600,"access_token":"not-a-token"}`))
		}, issuers.Refused},
	} {
		world.Entra.Answer(x.answer)
		_, err := is.Mint(t.Context(), lease(theScope))
		if issuers.KindOf(err) != x.kind || err == nil || strings.ContainsAny(err.Error(), "\r\n\u202e") {
			t.Errorf("%v; want kind %s", err, x.kind)
		}
	}
}

// Nothing was sent: no connection, or one to somebody else.
func TestNobodyAnswers(t *testing.T) {
	nobody, err := azuretest.Nobody()
	if err != nil {
		t.Fatal(err)
	}
	before := len(world.Entra.Asked())
	for what, sp := range map[string]spec{"nobody listens": {"authority": "https://" + nobody}, "the system's roots": {"tls": spec{}}} {
		is := open(t, bySAS().with(sp))
		_, err := is.Mint(t.Context(), lease(theScope))
		if issuers.KindOf(err) != issuers.Unreachable || err == nil {
			t.Errorf("%s: %v; want kind unreachable", what, err)
		}
		if _, err := is.(issuers.Checker).Check(t.Context()); issuers.KindOf(err) != issuers.Unreachable {
			t.Errorf("%s: the check says %v", what, err)
		}
	}
	if n := len(world.Entra.Asked()) - before; n != 0 {
		t.Errorf("%d requests went to a server that was not verified", n)
	}
}

func TestCheckSaysWhatIsMissing(t *testing.T) {
	is := open(t, bySAS())
	defer world.Entra.Answer(nil)
	find := func() map[string]issuers.Finding {
		list, err := is.(issuers.Checker).Check(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]issuers.Finding{}
		for _, f := range list {
			out[f.Name] = f
		}
		return out
	}
	if found := find(); !found["Entra token"].OK || !found["user delegation key"].OK || !found["clock"].OK {
		t.Errorf("%+v", found)
	}
	world.Entra.Answer(azuretest.Refusal(401, "invalid_client", "AADSTS70021: No matching federated identity record found"))
	f := find()["Entra token"]
	if f.OK || !strings.Contains(f.Fix, "az ad app federated-credential create --id "+azuretest.Client) || !strings.Contains(f.Fix, `"subject":"target:prod"`) || !strings.Contains(f.Fix, azuretest.Issuer) {
		t.Errorf("%+v", f)
	}
}

const someKey = `<?xml version="1.0" encoding="utf-8"?><UserDelegationKey><SignedOid>11059fcc-5514-4800-b5f8-49808b9cfab6</SignedOid><SignedTid>72f988bf-86f1-41af-91ab-2d7cd011db47</SignedTid>` +
	`<SignedStart>2026-01-01T00:00:00Z</SignedStart><SignedExpiry>2026-01-01T01:00:00Z</SignedExpiry><SignedService>b</SignedService><SignedVersion>2022-11-02</SignedVersion>` +
	`<Value>AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=</Value></UserDelegationKey>`

// A directory's SAS says how deep it lies; Azurite knows no directories.
func TestDirectorySAS(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	raw := plain.with(spec{"hierarchical": true}).raw(t)
	text, err := azure.Sign(raw, allow("read list", "az://orders/2026/11/*"), []byte(someKey), start, start.Add(time.Hour))
	q, err2 := url.ParseQuery(text)
	if err != nil || err2 != nil || q.Get("sr") != "d" || q.Get("sdd") != "2" || q.Get("sp") != "rl" || q.Get("se") != "2026-01-01T01:00:00Z" {
		t.Errorf("%s, %v, %v", text, err, err2)
	}
	for _, bad := range []string{"", "<a/>", strings.Replace(someKey, "<SignedService>b", "<SignedService>b\n", 1), strings.Replace(someKey, "AAEC", "!!!!", 1)} {
		if text, err := azure.Sign(raw, theScope, []byte(bad), start, start); err == nil {
			t.Errorf("%q signs %s", bad, text)
		}
	}
}

func TestSpecs(t *testing.T) {
	for name, x := range map[string]struct {
		change spec
		ok     bool
	}{
		"as it is":                    {spec{}, true},
		"a range":                     {spec{"ip_range": "10.0.0.1-10.0.0.9"}, true},
		"a cloud of its own":          {spec{"authority": "https://login.microsoftonline.us", "blob_endpoint": "https://x.blob.core.usgovcloudapi.net"}, true},
		"a directory":                 {spec{"hierarchical": true, "resources": []string{"az://orders/2026/*"}}, true},
		"tokens":                      {spec{"way": "token", "account": "", "resources": []string{"https://management.azure.com"}}, true},
		"tokens for anything":         {spec{"way": "token", "account": ""}, false},
		"tokens for a pattern":        {spec{"way": "token", "account": "", "resources": []string{"https://*"}}, false},
		"a tenant by its name":        {spec{"tenant": "example.onmicrosoft.com"}, false},
		"a tenant that is a path":     {spec{"tenant": "../x"}, false},
		"no account":                  {spec{"account": ""}, false},
		"a secret":                    {spec{"client_secret": "x"}, false},
		"an authority without TLS":    {spec{"authority": "http://127.0.0.1"}, false},
		"a range of names":            {spec{"ip_range": "localhost"}, false},
		"a range that ends too early": {spec{"ip_range": "10.0.0.9-10.0.0.1"}, false},
		"a range with a line":         {spec{"ip_range": "10.0.0.9\n"}, false},
		"too long a life":             {spec{"max_ttl": "25h"}, false},
		"a prefix":                    {spec{"resources": []string{"az://orders/20*"}}, false},
	} {
		if err := (azure.Kind{}).CheckSpec(plain.with(x.change).raw(t)); (err == nil) != x.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	roles, err := azure.Kind{}.Roles(plain.with(spec{"resources": []string{"az://orders/*"}}).raw(t))
	if err != nil || len(roles) != 2 || scope.Covers(roles[1].Scope, roles[0].Scope) != nil || scope.Covers(roles[0].Scope, roles[1].Scope) == nil {
		t.Errorf("%v %v", roles, err)
	}
}

// FuzzCompile: whatever a scope says, its SAS is for the one place that it names,
// and nothing in it reads as another parameter.
func FuzzCompile(f *testing.F) {
	for _, s := range append(append(accepted(), hostile()...), invalid()...) {
		raw, err := json.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, []byte(someKey))
	}
	sp := plain.with(spec{"hierarchical": true}).raw(f)
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, raw, key []byte) {
		s, err := scope.Parse(raw)
		if err != nil {
			return
		}
		kind, container, path, permissions, err := azure.Grant(sp, s)
		if err != nil {
			return
		}
		want := map[string]string{"c": "az://" + container + "/*", "d": "az://" + container + "/" + path + "/*", "b": "az://" + container + "/" + path}[kind]
		if len(s) == 0 || s[0].Locations[0] != want || strings.ContainsFunc(path, func(r rune) bool { return r < ' ' }) || permissions == "" || len(permissions) > len(s[0].Actions) {
			t.Fatalf("%s became %s %s %s %s", raw, kind, container, path, permissions)
		}
		text, err := azure.Sign(sp, s, key, start, start.Add(time.Hour))
		if err != nil {
			return
		}
		q, err := url.ParseQuery(text)
		if err != nil || q.Get("sp") != permissions || q.Get("sr") != kind || len(q["sig"]) != 1 || q.Get("spr") != "https" || len(q) > 14 {
			t.Fatalf("%s: %s %v", raw, text, err)
		}
	})
}
