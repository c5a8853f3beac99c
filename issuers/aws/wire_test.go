package aws_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/aws"
	"github.com/mayfly-broker/mayfly/issuers/aws/awstest"
	"github.com/mayfly-broker/mayfly/secret"
)

func standIn(t testing.TB) (*awstest.StandIn, func()) {
	t.Helper()
	s, stop, err := awstest.NewStandIn(ca)
	if err != nil {
		t.Fatal(err)
	}
	return s, stop
}

const realRole = "arn:aws:iam::123456789012:role/mayfly-orders"

func byFederation(s *awstest.StandIn) spec {
	return spec{"way": "federation_token", "region": awstest.Region, "endpoint": s.URL, "tls": spec{"ca": ca.PEM}, "admin": spec{"username": "AKIAIOSFODNN7EXAMPLE"}}
}

// sole is the one request that came.
func sole(t testing.TB, s *awstest.StandIn) awstest.Asked {
	t.Helper()
	asked := s.Asked()
	if len(asked) != 1 {
		t.Fatalf("%d requests came", len(asked))
	}
	return asked[0]
}

var theScope = allow("s3:getobject", s3("orders/2026/*"))

// What is asked of STS, to the letter: the policy always among it.
func TestWhatIsAskedOfSTS(t *testing.T) {
	l := lease(theScope)
	l.NotAfter = l.NotBefore.Add(40 * time.Minute)
	end := l.NotAfter.UTC().Truncate(time.Second).Format(time.RFC3339)
	policy := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::orders/2026/*","Condition":{"DateLessThan":{"aws:CurrentTime":"` + end + `"}}}]}`
	tags := map[string]string{"mayfly:lease": l.ID, "mayfly:principal": l.Principal, "mayfly:role": l.Role, "mayfly:task": l.TaskID}
	check := func(t *testing.T, a awstest.Asked, want map[string]string) {
		t.Helper()
		want["Policy"], want["Version"] = policy, "2011-06-15"
		for k, v := range want {
			if got := a.Form.Get(k); got != v {
				t.Errorf("%s is %q; want %q", k, got, v)
			}
		}
		// What is left of 40 minutes, never more.
		if d, err := strconv.Atoi(a.Form.Get("DurationSeconds")); err != nil || d >= 2400 || d < 2300 {
			t.Errorf("DurationSeconds is %d, %v", d, err)
		}
	}
	formTags := func(a awstest.Asked) map[string]string {
		out := map[string]string{}
		for _, n := range []string{"1", "2", "3", "4", "5"} {
			if k := a.Form.Get("Tags.member." + n + ".Key"); k != "" {
				out[k] = a.Form.Get("Tags.member." + n + ".Value")
			}
		}
		return out
	}
	same := func(t *testing.T, got map[string]string) {
		t.Helper()
		if len(got) != len(tags) {
			t.Errorf("tags %v", got)
		}
		for k, v := range tags {
			if got[k] != v {
				t.Errorf("tag %s is %q; want %q", k, got[k], v)
			}
		}
	}
	t.Run("assume_role", func(t *testing.T) {
		s, stop := standIn(t)
		defer stop()
		sp := byRole().with(spec{"endpoint": s.URL, "role_arn": realRole, "external_id": "ours:42", "tags": true, "source_identity": true})
		c := mint(t, open(t, target(t, sp)), l)
		a := sole(t, s)
		check(t, a, map[string]string{"Action": "AssumeRole", "RoleArn": realRole, "RoleSessionName": l.Name, "ExternalId": "ours:42", "SourceIdentity": "mayfly-" + l.ID})
		same(t, formTags(a))
		if c.Public["arn"] != "arn:aws:sts::123456789012:assumed-role/demo/TestAR" || c.Public["expiration"] != end || c.Public["access_key_id"] != "ASIAIOSFODNN7EXAMPLE" {
			t.Errorf("%v", c.Public)
		}
	})
	t.Run("federation_token", func(t *testing.T) {
		s, stop := standIn(t)
		defer stop()
		c := mint(t, open(t, target(t, byFederation(s).with(spec{"tags": true}))), l)
		a := sole(t, s)
		check(t, a, map[string]string{"Action": "GetFederationToken", "Name": l.Name, "RoleArn": ""})
		same(t, formTags(a))
		if c.Public["arn"] != "arn:aws:sts::123456789012:federated-user/Jean" || len(c.Secret["session_token"].Reveal()) < 16 {
			t.Errorf("%v", c.Public)
		}
	})
	t.Run("web_identity", func(t *testing.T) {
		s, stop := standIn(t)
		defer stop()
		is := open(t, target(t, byIdentity().with(spec{"endpoint": s.URL, "role_arn": realRole, "tags": true, "source_identity": true})))
		mint(t, is, l)
		a := sole(t, s)
		check(t, a, map[string]string{"Action": "AssumeRoleWithWebIdentity", "RoleArn": realRole, "RoleSessionName": l.Name})
		if a.Header.Get("Authorization") != "" {
			t.Error("a request that needs no key was signed with one")
		}
		claims := verified(t, is, a.Form.Get("WebIdentityToken"))
		if claims.Issuer != issuerURL || claims.Subject != "target:"+targetName || claims.Audience != "sts.amazonaws.com" || claims.ID != l.Name ||
			claims.Expires != l.MintDeadline.Unix() || claims.IssuedAt > time.Now().Unix() || claims.Source != "mayfly-"+l.ID {
			t.Errorf("%+v", claims)
		}
		got := map[string]string{}
		for k, v := range claims.Tags.Principal {
			got[k] = strings.Join(v, "|")
		}
		same(t, got)
	})
}

type webClaims struct {
	Issuer   string `json:"iss"`
	Subject  string `json:"sub"`
	Audience string `json:"aud"`
	IssuedAt int64  `json:"iat"`
	Expires  int64  `json:"exp"`
	ID       string `json:"jti"`
	Source   string `json:"https://aws.amazon.com/source_identity"`
	Tags     struct {
		Principal map[string][]string `json:"principal_tags"`
	} `json:"https://aws.amazon.com/tags"`
}

// verified reads a token as STS does: by the published documents alone.
func verified(t *testing.T, is issuers.Issuer, token string) webClaims {
	t.Helper()
	docs, err := is.(issuers.Publisher).Publish(t.Context())
	if err != nil || docs["jwks"] != nil { // "jwks" would go among the broker's own keys
		t.Fatal(err, len(docs))
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(docs["jwks.json"], &set); err != nil || len(set.Keys) != 1 || !set.Keys[0].IsPublic() {
		t.Fatalf("jwks.json: %v %s", err, docs["jwks.json"])
	}
	var discovery struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	if err := json.Unmarshal(docs["openid-configuration"], &discovery); err != nil || discovery.Issuer != issuerURL || discovery.Keys != issuerURL+"/jwks.json" {
		t.Fatalf("openid-configuration: %v %+v", err, discovery)
	}
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	payload, err := jws.Verify(set.Key(jws.Signatures[0].Protected.KeyID)[0])
	if err != nil {
		t.Fatal(err)
	}
	var c webClaims
	if err := json.Unmarshal(payload, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// Leases shorter than any session ask for the shortest, and nothing longer.
func TestDurationIsWithinWhatSTSTakes(t *testing.T) {
	for ttl, want := range map[time.Duration]string{time.Minute: "900", 14 * time.Minute: "900", 16 * time.Minute: "959", 12 * time.Hour: "43199"} {
		s, stop := standIn(t)
		is := open(t, target(t, byRole().with(spec{"endpoint": s.URL, "max_ttl": "12h"})))
		l := lease(theScope)
		l.NotAfter = l.NotBefore.Truncate(time.Second).Add(ttl)
		mint(t, is, l)
		got := sole(t, s).Form.Get("DurationSeconds")
		if len(got) != len(want) || got > want || ttl < 15*time.Minute && got != want {
			t.Errorf("a lease of %s asks for %s seconds; want %s at most", ttl, got, want)
		}
		stop()
	}
}

// Every code that STS knows, to the kind that the broker acts on.
func TestSTSErrorsAreClassified(t *testing.T) {
	s, stop := standIn(t)
	defer stop()
	is := open(t, target(t, byIdentity().with(spec{"endpoint": s.URL})))
	for _, x := range []struct {
		status int
		code   string
		kind   issuers.ErrorKind
	}{
		{403, "AccessDenied", issuers.Refused},
		{403, "InvalidClientTokenId", issuers.Refused},
		{403, "SignatureDoesNotMatch", issuers.Refused},
		{400, "RequestExpired", issuers.Refused},
		{400, "ValidationError", issuers.Refused},
		{400, "InvalidIdentityToken", issuers.Refused},
		{403, "IDPRejectedClaim", issuers.Refused},
		{400, "IDPCommunicationError", issuers.Refused},
		{403, "RegionDisabledException", issuers.Refused},
		{400, "SomethingThatIsNewThisYear", issuers.Refused},
		{400, "ExpiredTokenException", issuers.TooLate},
		{400, "MalformedPolicyDocument", issuers.BadScope},
		{400, "PackedPolicyTooLarge", issuers.BadScope},
		{400, "Throttling", issuers.Unreachable},
		{429, "TooManyRequestsException", issuers.Unreachable},
		{503, "SlowDown", issuers.Unreachable},
		{500, "InternalFailure", issuers.Unknown},
		{503, "ServiceUnavailable", issuers.Unknown},
		{400, "", issuers.Unknown},
		{307, "TemporaryRedirect", issuers.Unknown},
	} {
		s.Answer("AssumeRoleWithWebIdentity", awstest.Refusal(x.status, x.code, "a message with a mark \u202e and a line\nmore"))
		_, err := is.Mint(t.Context(), lease(theScope))
		if issuers.KindOf(err) != x.kind {
			t.Errorf("%d %s: %v; want kind %s", x.status, x.code, err, x.kind)
		}
		if err == nil || strings.ContainsAny(err.Error(), "\n\u202e") {
			t.Errorf("%d %s: the error holds what a terminal obeys: %q", x.status, x.code, err)
		}
	}
}

// What is no whole answer yields no credential, and is not taken for a refusal.
func TestAnswersThatAreNone(t *testing.T) {
	s, stop := standIn(t)
	defer stop()
	elsewhere, stopElsewhere := standIn(t)
	defer stopElsewhere()
	is := open(t, target(t, byRole().with(spec{"endpoint": s.URL})))
	const wholeCredentials = `<Credentials><AccessKeyId>ASIAIOSFODNN7EXAMPLE</AccessKeyId><SecretAccessKey>wJalrXUtnFEMIK7MDENG</SecretAccessKey><SessionToken>AQoDYXdzEPT</SessionToken><Expiration>2099-07-15T23:28:33Z</Expiration></Credentials>`
	const half = `<AssumeRoleResponse><AssumeRoleResult>%s</AssumeRoleResult></AssumeRoleResponse>`
	for what, a := range map[string]awstest.Answer{
		"nothing":         {Status: 200},
		"no XML":          {Status: 200, Body: "fine"},
		"no credentials":  {Status: 200, Body: strings.ReplaceAll(half, "%s", "")},
		"half of them":    {Status: 200, Body: strings.ReplaceAll(half, "%s", "<Credentials><AccessKeyId>ASIAIOSFODNN7EXAMPLE</AccessKeyId><Expiration>2099-07-15T23:28:33Z</Expiration></Credentials>")},
		"no expiration":   {Status: 200, Body: strings.ReplaceAll(half, "%s", "<Credentials><AccessKeyId>ASIAIOSFODNN7EXAMPLE</AccessKeyId><SecretAccessKey>wJalrXUtnFEMIK7MDENG</SecretAccessKey><SessionToken>AQoDYXdzEPT</SessionToken></Credentials>")},
		"one without end": {Status: 200, Body: strings.ReplaceAll(half, "%s", strings.Repeat("<x/>", 1<<18)+wholeCredentials)},
		"a proxy's page":  {Status: 502, Body: "<html>Bad Gateway</html>"},
		"a redirect": {Do: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL, http.StatusFound)
		}},
		"a line cut in two": {Do: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "500")
			_, _ = w.Write([]byte("<AssumeRole"))
		}},
	} {
		s.Answer("AssumeRole", a)
		_, err := is.Mint(t.Context(), lease(theScope))
		if issuers.KindOf(err) != issuers.Unknown || err == nil {
			t.Errorf("%s: %v; want kind unknown", what, err)
		}
	}
	if n := len(elsewhere.Asked()); n != 0 {
		t.Errorf("%d requests followed a redirect to another server", n)
	}
}

// Nothing was sent: no connection, or one to somebody else.
func TestNobodyAnswers(t *testing.T) {
	nobody, err := awstest.Nobody()
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := awstest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	s, stop := standIn(t)
	defer stop()
	for what, sp := range map[string]spec{
		"nobody listens":     {"endpoint": "https://" + nobody},
		"another authority":  {"endpoint": s.URL, "tls": spec{"ca": stranger.PEM}},
		"the system's roots": {"endpoint": s.URL, "tls": spec{}},
		"another name":       {"endpoint": strings.Replace(s.URL, "127.0.0.1", "127.0.0.3", 1)},
	} {
		began := time.Now()
		is := open(t, target(t, byRole().with(sp)))
		_, err := is.Mint(t.Context(), lease(theScope))
		if issuers.KindOf(err) != issuers.Unreachable || err == nil {
			t.Errorf("%s: %v; want kind unreachable", what, err)
		}
		if d := time.Since(began); d > 25*time.Second {
			t.Errorf("%s took %s", what, d)
		}
		if _, err := is.(issuers.Checker).Check(t.Context()); issuers.KindOf(err) != issuers.Unreachable {
			t.Errorf("%s: the check says %v", what, err)
		}
	}
	if n := len(s.Asked()); n != 0 {
		t.Errorf("%d requests went to a server that was not verified", n)
	}
}

// The broker uses the target's key or none, never what its machine happens to have.
func TestNothingIsTakenFromTheEnvironment(t *testing.T) {
	s, stop := standIn(t)
	defer stop()
	trap, stopTrap := standIn(t)
	defer stopTrap()
	for k, v := range map[string]string{
		"AWS_ACCESS_KEY_ID": "AKIAOFTHEMACHINE0000", "AWS_SECRET_ACCESS_KEY": "of the machine", "AWS_SESSION_TOKEN": "of the machine", "AWS_REGION": "ap-south-1",
		"AWS_PROFILE": "machine", "AWS_ENDPOINT_URL": trap.URL, "AWS_ENDPOINT_URL_STS": trap.URL, "AWS_CONTAINER_CREDENTIALS_FULL_URI": trap.URL,
		"AWS_EC2_METADATA_SERVICE_ENDPOINT": trap.URL, "AWS_WEB_IDENTITY_TOKEN_FILE": "/nowhere", "AWS_ROLE_ARN": realRole, "AWS_CA_BUNDLE": "/nowhere",
		"AWS_USE_FIPS_ENDPOINT": "true", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "false", "HTTPS_PROXY": "",
	} {
		t.Setenv(k, v)
	}
	mint(t, open(t, target(t, byRole().with(spec{"endpoint": s.URL}))), lease(theScope))
	a := sole(t, s)
	if auth := a.Header.Get("Authorization"); !strings.Contains(auth, "Credential="+shared.Root.ID+"/") || !strings.Contains(auth, "/us-east-1/sts/") {
		t.Errorf("signed as %s", auth)
	}
	if a.Header.Get("X-Amz-Security-Token") != "" || len(trap.Asked()) != 0 {
		t.Error("something of the environment was used")
	}
	none := target(t, byRole())
	none.Secrets = map[string]secret.Text{}
	if _, err := (aws.Kind{}).Open(none); err == nil {
		t.Error("a target without its key opens")
	}
}

// A tag's value is what it is, or there is no mint.
func TestTagsAreNeverAltered(t *testing.T) {
	s, stop := standIn(t)
	defer stop()
	is := open(t, target(t, byRole().with(spec{"endpoint": s.URL, "tags": true})))
	for _, principal := range []string{"", "a;b", "a\nb", strings.Repeat("x", 257), "a<b>", "\u202ea"} {
		l := lease(theScope)
		l.Principal = principal
		_, err := is.Mint(t.Context(), l)
		wantKind(t, err, issuers.Refused)
	}
	if n := len(s.Asked()); n != 0 {
		t.Errorf("%d requests came", n)
	}
	var e *issuers.Error
	l := lease(theScope)
	l.Role = "x#y"
	if _, err := is.Mint(t.Context(), l); !errors.As(err, &e) || !strings.Contains(e.Detail, "mayfly:role") {
		t.Errorf("%v", e)
	}
}
