package aws_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/aws"
	"github.com/mayfly-broker/mayfly/issuers/aws/awstest"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

const plainSpec = `{"way":"web_identity","region":"eu-central-1","role_arn":"arn:aws:iam::123456789012:role/mayfly-orders"}`

func fresh(t testing.TB) secret.Text {
	t.Helper()
	made, err := aws.Kind{}.MakeSecrets(nil)
	if err != nil {
		t.Fatal(err)
	}
	return made[aws.SecretJWKS]
}

// changed is plainSpec with members replaced; null takes one out.
func changed(t testing.TB, change string) []byte {
	t.Helper()
	var members, more map[string]any
	if err := json.Unmarshal([]byte(plainSpec), &members); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(change), &more); err != nil {
		t.Fatal(change, err)
	}
	for k, v := range more {
		members[k] = v
		if v == nil {
			delete(members, k)
		}
	}
	raw, err := json.Marshal(members)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestSpecs(t *testing.T) {
	for name, x := range map[string]struct {
		change string
		ok     bool
	}{
		"as it is":                     {`{}`, true},
		"by a key":                     {`{"way":"assume_role","admin":{"username":"AKIAIOSFODNN7EXAMPLE"},"external_id":"a:b"}`, true},
		"by federation":                {`{"way":"federation_token","role_arn":null,"admin":{"username":"AKIAIOSFODNN7EXAMPLE"}}`, true},
		"China":                        {`{"region":"cn-north-1","role_arn":"arn:aws-cn:iam::123456789012:role/path/to/x"}`, true},
		"FIPS":                         {`{"fips":true}`, true},
		"a VPC endpoint":               {`{"endpoint":"https://vpce-1.sts.eu-central-1.vpce.amazonaws.com"}`, true},
		"loopback":                     {`{"endpoint":"http://127.0.0.1:9000"}`, true},
		"documents elsewhere":          {`{"web_identity":{"issuer":"https://id.example/mayfly","audience":"x"}}`, true},
		"resources":                    {`{"resources":["arn:aws:s3:::orders/*"]}`, true},
		"no way":                       {`{"way":null}`, false},
		"the machine's own identity":   {`{"way":"instance_profile"}`, false},
		"a key that is not needed":     {`{"admin":{"username":"AKIAIOSFODNN7EXAMPLE"}}`, false},
		"a key without its id":         {`{"way":"assume_role"}`, false},
		"federation into a role":       {`{"way":"federation_token","admin":{"username":"AKIAIOSFODNN7EXAMPLE"}}`, false},
		"no region":                    {`{"region":null}`, false},
		"a region that is a host":      {`{"region":"evil.example/#"}`, false},
		"no role":                      {`{"role_arn":null}`, false},
		"any role":                     {`{"role_arn":"arn:aws:iam::123456789012:role/*"}`, false},
		"a user":                       {`{"role_arn":"arn:aws:iam::123456789012:user/x"}`, false},
		"an endpoint without TLS":      {`{"endpoint":"http://sts.internal"}`, false},
		"an endpoint with a user":      {`{"endpoint":"https://a:b@sts.internal"}`, false},
		"an endpoint with a path":      {`{"endpoint":"https://sts.internal/x"}`, false},
		"FIPS of somewhere else":       {`{"fips":true,"endpoint":"https://sts.internal"}`, false},
		"two CAs":                      {`{"tls":{"ca":"x","ca_file":"y"}}`, false},
		"TLS without verifying":        {`{"tls":{"mode":"insecure"}}`, false},
		"an issuer without TLS":        {`{"web_identity":{"issuer":"http://id.example"}}`, false},
		"an issuer with a slash":       {`{"web_identity":{"issuer":"https://id.example/"}}`, false},
		"an external id of a provider": {`{"external_id":"abc"}`, false},
		"too long a life":              {`{"max_ttl":"13h"}`, false},
		"too short a life":             {`{"max_ttl":"1s"}`, false},
		"a resource that is none":      {`{"resources":["orders"]}`, false},
		"both any and some":            {`{"resources":["arn:aws:s3:::orders/*"],"any_resource":true}`, false},
	} {
		if err := (aws.Kind{}).CheckSpec(changed(t, x.change)); (err == nil) != x.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The session policy of a scope, as a person can read it.
func TestCompiledPolicies(t *testing.T) {
	end := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	const until = `"DateLessThan":{"aws:CurrentTime":"2026-11-22T10:00:00Z"}`
	for _, x := range []struct {
		s    scope.Scope
		want string
	}{
		{allow("s3:getobject", s3("orders/2026/*")),
			`{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::orders/2026/*","Condition":{` + until + `}}`},
		{allow("s3:getobject s3:listbucket", s3("orders/2026/*")),
			`{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::orders/2026/*","Condition":{` + until + `}},` +
				`{"Effect":"Allow","Action":"s3:ListBucket","Resource":"arn:aws:s3:::orders","Condition":{` + until + `,"StringLike":{"s3:prefix":"2026/*"}}}`},
		{allow("s3:getobject s3:listbucket s3:getbucketlocation", s3("orders"), s3("orders/*")),
			`{"Effect":"Allow","Action":["s3:GetBucketLocation","s3:ListBucket"],"Resource":"arn:aws:s3:::orders","Condition":{` + until + `}},` +
				`{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::orders/*","Condition":{` + until + `}}`},
		{allow("s3:listbucket", s3("a/x*"), s3("a/y/*"), s3("b/z*")),
			`{"Effect":"Allow","Action":"s3:ListBucket","Resource":"arn:aws:s3:::a","Condition":{` + until + `,"StringLike":{"s3:prefix":["x*","y/*"]}}},` +
				`{"Effect":"Allow","Action":"s3:ListBucket","Resource":"arn:aws:s3:::b","Condition":{` + until + `,"StringLike":{"s3:prefix":"z*"}}}`},
		{allow("dynamodb:getitem dynamodb:query", "arn:aws:dynamodb:eu-west-1:123456789012:table/orders"),
			`{"Effect":"Allow","Action":["dynamodb:getitem","dynamodb:query"],"Resource":"arn:aws:dynamodb:eu-west-1:123456789012:table/orders","Condition":{` + until + `}}`},
		{allow("s3:getobject", s3("orders/ключ🦟é/*")),
			`{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::orders/\u043a\u043b\u044e\u0447\ud83e\udd9f\u00e9/*","Condition":{` + until + `}}`},
	} {
		got, err := aws.Compile([]byte(plainSpec), x.s, end)
		if want := `{"Version":"2012-10-17","Statement":[` + x.want + `]}`; err != nil || got != want {
			t.Errorf("%s:\n got %s, %v\nwant %s", x.s, got, err, want)
		}
	}
	if _, err := aws.Compile(changed(t, `{"any_resource":true}`), allow("ec2:describeinstances", "*"), end); err != nil {
		t.Error(err)
	}
	if _, err := aws.Compile([]byte(plainSpec), long(40), end); err == nil || !strings.Contains(err.Error(), "2048") {
		t.Errorf("a policy that is too long: %v", err)
	}
	only := changed(t, `{"resources":["arn:aws:s3:::orders","arn:aws:s3:::orders/2026/*"]}`)
	for l, ok := range map[string]bool{"orders": true, "orders/2026/*": true, "orders/2026/a": true, "orders/*": false, "orders/2026*": false, "orders2": false, "orders*": false} {
		action := "s3:getobject"
		if !strings.Contains(l, "/") {
			action = "s3:listbucket"
		}
		if _, err := aws.Compile(only, allow(action, s3(l)), end); (err == nil) != ok {
			t.Errorf("%s within the target's resources: %v", l, err)
		}
	}
}

// Roles are offered for the objects that the target names, and are as they say.
func TestRoles(t *testing.T) {
	roles, err := aws.Kind{}.Roles([]byte(plainSpec))
	if err != nil || len(roles) != 0 {
		t.Errorf("%v %v", roles, err)
	}
	roles, err = aws.Kind{}.Roles(changed(t, `{"max_ttl":"10m","resources":["arn:aws:s3:::orders/*","arn:aws:dynamodb:eu-west-1:123456789012:table/x"]}`))
	if err != nil || len(roles) != 2 || roles[0].Suffix != "readonly" || roles[1].Suffix != "readwrite" {
		t.Fatalf("%v %v", roles, err)
	}
	if err := scope.Covers(roles[1].Scope, roles[0].Scope); err != nil || scope.Covers(roles[0].Scope, roles[1].Scope) == nil {
		t.Errorf("readonly is not the narrower one: %v", err)
	}
	if roles[0].MaxTTL != 10*time.Minute || roles[0].DefaultTTL != 10*time.Minute || len(roles[0].Scope[0].Locations) != 1 {
		t.Errorf("%+v", roles[0])
	}
}

// A set of keys that is not ours is not signed with, nor quoted.
func TestLaw6AWSKeysThatAreNotOursAreNotQuoted(t *testing.T) {
	for _, text := range []string{"", "{}", "sekret", `{"keys":[]}`, `{"keys":[{"kty":"oct","k":"c2VrcmV0","kid":"sekret"}]}`,
		strings.Replace(fresh(t).Reveal(), `"kid":"`, `"kid":"sekret`, 1), strings.Replace(fresh(t).Reveal(), "ES256", "ES384", 1)} {
		_, err := aws.Kind{}.Open(issuers.Target{Name: "x", Spec: []byte(plainSpec), Issuer: "https://mayfly.example", Secrets: map[string]secret.Text{aws.SecretJWKS: secret.New(text)}})
		if err == nil || strings.Contains(err.Error(), "sekret") {
			t.Errorf("%q: %v", text, err)
		}
	}
	good := map[string]secret.Text{aws.SecretJWKS: fresh(t)}
	for _, broker := range []string{"", "http://mayfly.example", "https://mayfly.example?x=y"} {
		if _, err := (aws.Kind{}).Open(issuers.Target{Name: "x", Spec: []byte(plainSpec), Issuer: broker, Secrets: good}); err == nil {
			t.Errorf("a broker at %q makes an identity provider", broker)
		}
	}
}

// statements are read back as IAM would.
type readPolicy struct {
	Version   string
	Statement []struct {
		Effect           string
		Action, Resource any
		Condition        map[string]map[string]any
	}
}

func list(v any) (out []string) {
	switch x := v.(type) {
	case string:
		return []string{x}
	case []any:
		for _, e := range x {
			s, _ := e.(string)
			out = append(out, s)
		}
	}
	return out
}

// FuzzCompile: whatever a scope says, its policy is one that STS can read, allows
// nothing that no location names, and ends.
func FuzzCompile(f *testing.F) {
	for _, s := range append(append(accepted(), hostile()...), invalid()...) {
		raw, err := json.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add([]byte(plainSpec), raw)
		f.Add([]byte(`{"way":"assume_role","region":"eu-west-1","role_arn":"`+realRole+`","admin":{"username":"AKIA"},"any_resource":true,"lasting_actions":true}`), raw)
	}
	f.Fuzz(func(t *testing.T, spec, raw []byte) {
		s, err := scope.Parse(raw)
		if err != nil {
			return
		}
		text, err := aws.Compile(spec, s, time.Unix(1800000000, 0))
		if err != nil {
			return
		}
		if len(text) > 2048 || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Fatalf("STS would not read %q", text)
		}
		var p readPolicy
		if err := json.Unmarshal([]byte(text), &p); err != nil || p.Version != "2012-10-17" || len(p.Statement) == 0 {
			t.Fatalf("%v: %s", err, text)
		}
		var places []string
		for _, d := range s {
			places = append(places, d.Locations...)
		}
		for _, st := range p.Statement {
			actions, resources := list(st.Action), list(st.Resource)
			if st.Effect != "Allow" || len(actions) == 0 || len(resources) == 0 || st.Condition["DateLessThan"]["aws:CurrentTime"] != "2027-01-15T08:00:00Z" {
				t.Fatalf("%s", text)
			}
			for _, a := range actions {
				if strings.ContainsAny(a, "*?") {
					t.Fatalf("the action %q of %s", a, text)
				}
			}
			for _, r := range resources {
				prefixes := list(st.Condition["StringLike"]["s3:prefix"])
				named := func(r string) bool {
					return slices.Contains(places, r) || slices.Contains(places, r+"/*") // to list all that a bucket holds
				}
				for _, x := range prefixes {
					if !slices.Contains(places, r+"/"+x) {
						t.Fatalf("the prefix %q of %s is no location of %s", x, text, raw)
					}
				}
				if len(prefixes) == 0 && !named(r) || strings.Contains(strings.TrimSuffix(r, "*"), "*") || strings.Contains(r, "?") || strings.Contains(r, "${") {
					t.Fatalf("the resource %q of %s is no location of %s", r, text, raw)
				}
			}
		}
	})
}

// answering answers every request alike.
type answering struct {
	status int
	body   []byte
}

func (a answering) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: a.status, Header: http.Header{"Content-Type": {"text/xml"}}, Body: io.NopCloser(bytes.NewReader(a.body)), Request: r, ProtoMajor: 1, ProtoMinor: 1}, nil
}

// The region's own endpoint is asked, and no global one.
func TestEndpoints(t *testing.T) {
	for change, want := range map[string]string{
		`{}`:                                   "https://sts.eu-central-1.amazonaws.com/",
		`{"region":"us-east-1"}`:               "https://sts.us-east-1.amazonaws.com/",
		`{"region":"us-west-2","fips":true}`:   "https://sts-fips.us-west-2.amazonaws.com/",
		`{"region":"cn-north-1"}`:              "https://sts.cn-north-1.amazonaws.com.cn/",
		`{"endpoint":"https://sts.internal"}`:  "https://sts.internal/",
		`{"endpoint":"http://127.0.0.1:9000"}`: "http://127.0.0.1:9000/",
	} {
		is, err := aws.Kind{}.Open(issuers.Target{Name: "x", Spec: changed(t, change), Issuer: "https://mayfly.example", Secrets: map[string]secret.Text{aws.SecretJWKS: fresh(t)}})
		if err != nil {
			t.Fatal(err)
		}
		var asked string
		aws.Through(is, roundTrip(func(r *http.Request) (*http.Response, error) {
			asked = r.URL.String()
			return nil, errors.New("that is enough")
		}))
		_, err = is.Mint(t.Context(), lease(theScope))
		wantKind(t, err, issuers.Unreachable)
		if asked != want {
			t.Errorf("%s asks %s; want %s", change, asked, want)
		}
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// FuzzAnswer: whatever STS says, it is a whole credential or an error of a kind.
func FuzzAnswer(f *testing.F) {
	f.Add(200, []byte(`<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>ASIAIOSFODNN7EXAMPLE</AccessKeyId><SecretAccessKey>wJalrXUtnFEMI</SecretAccessKey>`+
		`<SessionToken>AQoDYXdzEPT</SessionToken><Expiration>2099-07-15T23:28:33.359Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>`))
	f.Add(403, []byte(awstest.Refusal(403, "AccessDenied", "no").Body))
	f.Add(200, []byte(`<a><b><c/></b>`))
	f.Add(500, []byte(``))
	is, err := aws.Kind{}.Open(issuers.Target{Name: "x", Secrets: map[string]secret.Text{aws.SecretKey: secret.New("key")},
		Spec: []byte(`{"way":"assume_role","region":"eu-west-1","role_arn":"` + realRole + `","admin":{"username":"AKIA"}}`)})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		aws.Through(is, answering{100 + max(0, status)%500, body})
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
		if err != nil || end.After(l.NotAfter) || len(c.Public["access_key_id"]) < 8 || len(c.Secret["secret_access_key"].Reveal()) < 8 || len(c.Secret["session_token"].Reveal()) < 8 {
			t.Fatalf("%v %v", c.Public, err)
		}
	})
}
