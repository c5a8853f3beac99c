package gcp_test

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/gcp/gcptest"
)

// What is asked of Google, to the letter: the boundary always last.
func TestWhatIsAskedOfGoogle(t *testing.T) {
	g, s := google(t)
	l := lease(theScope)
	l.NotAfter = l.NotBefore.Add(40 * time.Minute)
	c := mint(t, open(t, g, s), l)
	asked := g.Asked()
	if len(asked) != 3 || asked[0].Path != "/v1/token" || asked[1].Path != "/v1/projects/-/serviceAccounts/"+gcptest.Account+":generateAccessToken" || asked[2].Path != "/v1/token" {
		t.Fatalf("asked %+v", asked)
	}
	var iam struct {
		Scope    []string `json:"scope"`
		Lifetime string   `json:"lifetime"`
	}
	if err := json.Unmarshal([]byte(asked[1].Body), &iam); err != nil || len(iam.Scope) != 1 || iam.Scope[0] != "https://www.googleapis.com/auth/cloud-platform" {
		t.Errorf("%s %v", asked[1].Body, err)
	}
	// What is left of 40 minutes, less what a question may take.
	if n, err := strconv.Atoi(strings.TrimSuffix(iam.Lifetime, "s")); err != nil || n > 2390 || n < 2300 {
		t.Errorf("lifetime %s", iam.Lifetime)
	}
	const want = `{"accessBoundary":{"accessBoundaryRules":[` +
		`{"availableResource":"//storage.googleapis.com/projects/_/buckets/orders","availablePermissions":["inRole:roles/storage.legacyObjectReader"],` +
		`"availabilityCondition":{"expression":"resource.name.startsWith('projects/_/buckets/orders/objects/2026/')"}},` +
		`{"availableResource":"//storage.googleapis.com/projects/_/buckets/orders","availablePermissions":["inRole:roles/storage.objectViewer"],` +
		`"availabilityCondition":{"expression":"api.getAttribute('storage.googleapis.com/objectListPrefix', '').startsWith('2026/')"}}]}}`
	if got := asked[2].Form.Get("options"); got != want {
		t.Errorf("options:\n%s\nwant\n%s", got, want)
	}
	for _, i := range []int{0, 2} {
		if asked[i].Header.Get("Authorization") != "" {
			t.Error("STS was sent an Authorization header")
		}
	}
	if c.Public["service_account"] != gcptest.Account || c.Env["CLOUDSDK_AUTH_ACCESS_TOKEN"] != "access_token" || len(c.Secret) != 1 {
		t.Errorf("%v %v", c.Public, c.Env)
	}
}

// Every code, to the kind that the broker acts on.
func TestErrorsAreClassified(t *testing.T) {
	g, s := google(t)
	is := open(t, g, s)
	const nasty = "a message with a mark \u202e and a line\nmore"
	for _, x := range []struct {
		at     string
		answer http.HandlerFunc
		kind   issuers.ErrorKind
	}{
		{"/v1/token", gcptest.STSRefusal(400, "invalid_grant", nasty), issuers.Refused},
		{"/v1/token", gcptest.STSRefusal(400, "invalid_target", nasty), issuers.Refused},
		{"/v1/token", gcptest.STSRefusal(401, "unauthorized_client", nasty), issuers.Refused},
		{"/v1/token", gcptest.STSRefusal(400, "something_new", nasty), issuers.Refused},
		{"/v1/token", gcptest.STSRefusal(429, "rate_limited", nasty), issuers.Unreachable},
		{"/v1/token", gcptest.STSRefusal(500, "internal", nasty), issuers.Unknown},
		{"/v1/token", gcptest.STSRefusal(400, "", nasty), issuers.Unknown},
		{"/v1/token", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>fine</html>")) }, issuers.Unknown},
		{"/v1/token", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"access_token":"` + strings.Repeat("x", 1<<17) + `"}`))
		}, issuers.Unknown},
		{"/v1/token", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, g.URL+"/elsewhere", http.StatusFound)
		}, issuers.Unknown},
		{":generateAccessToken", gcptest.IAMRefusal(403, "PERMISSION_DENIED", nasty), issuers.Refused},
		{":generateAccessToken", gcptest.IAMRefusal(404, "NOT_FOUND", nasty), issuers.Refused},
		{":generateAccessToken", gcptest.IAMRefusal(400, "INVALID_ARGUMENT", nasty), issuers.Refused},
		{":generateAccessToken", gcptest.IAMRefusal(429, "RESOURCE_EXHAUSTED", nasty), issuers.Unreachable},
		{":generateAccessToken", gcptest.IAMRefusal(503, "UNAVAILABLE", nasty), issuers.Unknown},
		{":generateAccessToken", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"accessToken":"ya29.half-an-answer"}`))
		}, issuers.Unknown},
	} {
		g.Answer(x.at, x.answer)
		_, err := is.Mint(t.Context(), lease(theScope))
		if issuers.KindOf(err) != x.kind || err == nil || strings.ContainsAny(err.Error(), "\n\u202e") {
			t.Errorf("%s: %v; want kind %s", x.at, err, x.kind)
		}
		g.Answer(x.at, nil)
	}
	for _, a := range g.Asked() {
		if a.Path == "/elsewhere" {
			t.Error("a redirect was followed")
		}
	}
	// The scope's fault is the requester's to know.
	g.Answer("/v1/token", func(w http.ResponseWriter, r *http.Request) {
		if form := g.Asked()[len(g.Asked())-1].Form; !form.Has("options") {
			g.STS(w, r, form)
			return
		}
		gcptest.STSRefusal(400, "invalid_request", "no such bucket")(w, r)
	})
	_, err := is.Mint(t.Context(), lease(theScope))
	wantKind(t, err, issuers.BadScope)
}

// Nothing was sent: no connection, or one to somebody else.
func TestNobodyAnswers(t *testing.T) {
	g, s := google(t)
	nobody, err := gcptest.Nobody()
	if err != nil {
		t.Fatal(err)
	}
	stranger, other := google(t)
	for what, sp := range map[string]spec{
		"nobody listens":     {"sts_endpoint": "https://" + nobody},
		"another authority":  {"sts_endpoint": g.URL, "tls": other["tls"]},
		"the system's roots": {"sts_endpoint": g.URL, "tls": spec{}},
	} {
		is := open(t, stranger, s.with(sp))
		_, err := is.Mint(t.Context(), lease(theScope))
		if issuers.KindOf(err) != issuers.Unreachable || err == nil {
			t.Errorf("%s: %v; want kind unreachable", what, err)
		}
		if _, err := is.(issuers.Checker).Check(t.Context()); issuers.KindOf(err) != issuers.Unreachable {
			t.Errorf("%s: the check says %v", what, err)
		}
	}
	if n := len(g.Asked()); n != 0 {
		t.Errorf("%d requests went to a server that was not verified", n)
	}
}

// findings are those of a check, by name.
func findings(t testing.TB, is issuers.Issuer) map[string]issuers.Finding {
	t.Helper()
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

func TestCheckSaysWhatIsMissing(t *testing.T) {
	g, s := google(t)
	is := open(t, g, s.with(spec{"resources": []string{"gs://orders/*"}}))
	found := findings(t, is)
	for _, name := range []string{"token exchange", "generateAccessToken", "access boundary", "clock"} {
		if !found[name].OK {
			t.Errorf("%s: %+v", name, found[name])
		}
	}
	if options := g.Asked()[2].Form.Get("options"); !strings.Contains(options, "objects/mayfly-check'") {
		t.Errorf("the check's token may do %s", options)
	}
	g.Answer(":generateAccessToken", gcptest.IAMRefusal(403, "PERMISSION_DENIED", "Permission 'iam.serviceAccounts.getAccessToken' denied"))
	f := findings(t, is)["generateAccessToken"]
	if f.OK || f.Warning || !strings.Contains(f.Fix, "add-iam-policy-binding "+gcptest.Account+" --role=roles/iam.workloadIdentityUser --member='principal://iam.googleapis.com/projects/123456789/locations/global/workloadIdentityPools/mayfly/subject/target:prod'") {
		t.Errorf("%+v", f)
	}
	g.Answer("/v1/token", gcptest.STSRefusal(400, "invalid_target", "no such provider"))
	f = findings(t, is)["token exchange"]
	if f.OK || !f.Warning || !strings.Contains(f.Fix, `create-oidc prod --project=123456789 --location=global --workload-identity-pool=mayfly --issuer-uri='`+gcptest.Issuer+`'`) || !strings.Contains(f.Fix, "target:prod") {
		t.Errorf("%+v", f)
	}
	g.Answer("/v1/token", gcptest.STSRefusal(400, "invalid_grant", "the audience does not match"))
	f = findings(t, is)["token exchange"]
	if f.OK || !strings.Contains(f.Fix, "update-oidc prod ") || strings.Contains(f.Detail, "token exchange") {
		t.Errorf("a provider that is there is not made again: %+v", f)
	}
}

// A target that is not trusted, or that speaks for another one, gets nothing.
func TestStrangersAreRefused(t *testing.T) {
	g, s := google(t)
	mint(t, open(t, g, s), lease(theScope))
	stranger := target(t, s) // with keys that nobody published
	other := target(t, s)
	other.Name = "other"
	for _, tg := range []issuers.Target{stranger, other} {
		is, err := published{google: g}.Kind.Open(tg)
		if err != nil {
			t.Fatal(err)
		}
		_, err = is.Mint(t.Context(), lease(theScope))
		wantKind(t, err, issuers.Refused)
		if err := is.Close(); err != nil {
			t.Error(err)
		}
	}
}
