package aws_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/aws"
	"github.com/mayfly-broker/mayfly/issuers/aws/awstest"
	"github.com/mayfly-broker/mayfly/secret"
)

// check returns the findings by name.
func check(t testing.TB, tg issuers.Target) map[string]issuers.Finding {
	t.Helper()
	list, err := open(t, tg).(issuers.Checker).Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]issuers.Finding{}
	for _, f := range list {
		t.Logf("%+v", f)
		out[f.Name] = f
	}
	return out
}

func wantFinding(t testing.TB, f issuers.Finding, ok, warning bool, words ...string) {
	t.Helper()
	if f.Name == "" || f.OK != ok || f.Warning != warning {
		t.Errorf("%+v; want ok %t, warning %t", f, ok, warning)
	}
	for _, w := range words {
		if !strings.Contains(f.Detail+" "+f.Fix, w) {
			t.Errorf("%+v does not say %q", f, w)
		}
	}
}

func TestCheckOnTheRealServer(t *testing.T) {
	ways(t, func(t *testing.T, s spec) {
		for name, f := range check(t, target(t, s)) {
			if !f.OK {
				t.Errorf("%s: %+v", name, f)
			}
		}
	})
	wrong := target(t, byRole())
	wrong.Secrets["admin_password"] = secret.New("of somebody else, and long enough")
	wantFinding(t, check(t, wrong)["AssumeRole"], false, false)
	// A key that is published nowhere: as `target add` sees it, and as it is later.
	stranger := target(t, byIdentity())
	stranger.Secrets["identity_jwks"] = fresh(t)
	found := check(t, stranger)
	wantFinding(t, found["identity provider"], false, true, "lacks this target's key")
	wantFinding(t, found["AssumeRoleWithWebIdentity"], false, true)
	unwritten := target(t, byIdentity().with(spec{"web_identity": spec{"issuer": strings.Replace(issuerURL, targetName, "unwritten", 1)}}))
	wantFinding(t, check(t, unwritten)["identity provider"], false, true, "status 404", "not written yet")
}

func TestCheckSaysWhatIsMissing(t *testing.T) {
	s, stop := standIn(t)
	defer stop()
	role := target(t, byRole().with(spec{"endpoint": s.URL, "role_arn": realRole, "external_id": "ours:42", "tags": true}))
	found := check(t, role)
	wantFinding(t, found["access key"], true, false, "arn:aws:iam::123456789012:user/mayfly")
	wantFinding(t, found["AssumeRole"], true, false)
	wantFinding(t, found["session"], true, false)
	wantFinding(t, found["clock"], true, false)
	for _, a := range s.Asked() {
		if p := a.Form.Get("Policy"); a.Form.Get("Action") == "AssumeRole" && (p == "" || strings.Contains(p, "Allow")) {
			t.Errorf("the check opened a session with the policy %q", p)
		}
	}
	s.Answer("AssumeRole", awstest.Refusal(403, "AccessDenied", "not authorized to perform: sts:AssumeRole"))
	wantFinding(t, check(t, role)["AssumeRole"], false, false, "trust policy", "aws iam update-assume-role-policy --role-name 'mayfly-orders'",
		`"AWS":"arn:aws:iam::123456789012:user/mayfly"`, `"sts:TagSession"`, `"sts:ExternalId":"ours:42"`)
	s.Answer("GetCallerIdentity", awstest.Refusal(403, "InvalidClientTokenId", "The security token included in the request is invalid."))
	found = check(t, role)
	wantFinding(t, found["access key"], false, false, "does not exist or is not active")
	if len(found) != 1 {
		t.Errorf("%d findings follow from one", len(found))
	}

	web := target(t, byIdentity().with(spec{"endpoint": s.URL, "role_arn": realRole}))
	s.Answer("AssumeRoleWithWebIdentity", awstest.Refusal(400, "InvalidIdentityToken", "No OpenIDConnect provider found in your account for https://x"))
	wantFinding(t, check(t, web)["AssumeRoleWithWebIdentity"], false, false, "aws iam create-open-id-connect-provider --url '"+issuerURL+"' --client-id-list 'sts.amazonaws.com'")
	s.Answer("AssumeRoleWithWebIdentity", awstest.Refusal(403, "AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity"))
	name := strings.TrimPrefix(issuerURL, "https://")
	wantFinding(t, check(t, web)["AssumeRoleWithWebIdentity"], false, false, `"Federated":"arn:aws:iam::123456789012:oidc-provider/`+name+`"`,
		`"`+name+`:sub":"target:`+targetName+`"`, `"`+name+`:aud":"sts.amazonaws.com"`)
}

// AWS takes no provider at a port; other systems do.
func TestCheckWarnsOfAPort(t *testing.T) {
	is := open(t, target(t, byIdentity().with(spec{"endpoint": "", "role_arn": realRole})))
	aws.Through(is, roundTrip(func(r *http.Request) (*http.Response, error) {
		if r.URL.Host == "sts.us-east-1.amazonaws.com" {
			return answering{403, []byte(awstest.Refusal(403, "AccessDenied", "no").Body)}.RoundTrip(r)
		}
		return ca.Client().Transport.RoundTrip(r)
	}))
	list, err := is.(issuers.Checker).Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wantFinding(t, list[0], false, true, "has a port")
}

func TestCheckLooksAtAccountClockAndRoot(t *testing.T) {
	s, stop := standIn(t)
	defer stop()
	other := check(t, target(t, byRole().with(spec{"endpoint": s.URL, "role_arn": strings.Replace(realRole, "123456789012", "999999999999", 1)})))
	wantFinding(t, other["session"], false, false, "another account")
	const root = `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult><Arn>arn:aws:iam::123456789012:root</Arn></GetCallerIdentityResult></GetCallerIdentityResponse>`
	s.Answer("GetCallerIdentity", awstest.Answer{Do: func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat))
		_, _ = w.Write([]byte(root))
	}})
	federation := byFederation(s)
	wantFinding(t, check(t, target(t, federation))["access key"], false, true, "root user")
	s.Answer("GetFederationToken", awstest.Answer{Do: func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat))
		w.WriteHeader(http.StatusForbidden)
		_, _ = w.Write([]byte(awstest.Refusal(403, "AccessDenied", "no").Body))
	}})
	found := check(t, target(t, federation))
	wantFinding(t, found["clock"], false, true, "1h0m0s behind")
	wantFinding(t, found["GetFederationToken"], false, false, "sts:GetFederationToken")
}
