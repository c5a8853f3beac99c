package aws_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/aws"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

func TestConformanceAssumeRole(t *testing.T) { issuertest.Run(t, harness(t, byRole())) }
func TestConformanceWebIdentity(t *testing.T) {
	h := harness(t, byIdentity().with(spec{"endpoint": frontSTS(t)}))
	h.Keys = &issuertest.Keys{Verify: accepts, Old: []map[string]secret.Text{{aws.SecretJWKS: secret.New(firstShape)}}}
	issuertest.Run(t, h)
}

// harness has no Unreachable: a withdrawal asks STS nothing, so it cannot fail to
// reach it. TestNobodyAnswers tries the mint.
func harness(t *testing.T, s spec) issuertest.Harness {
	return issuertest.Harness{
		Kind: aws.Kind{}, Target: target(t, s),
		Scope:    allow("s3:getobject s3:listbucket", s3("orders/2026/*")),
		Narrower: allow("s3:getobject", s3("orders/2026/a*")),
		Invalid:  invalid(), Accepted: accepted(), Hostile: hostile(),
		Use: func(ctx context.Context, c issuers.Credential) error {
			code, text, err := shared.Do(ctx, keys(c), http.MethodGet, "orders/2026/a.txt", "", nil)
			if err == nil && code != http.StatusOK {
				err = fmt.Errorf("status %d: %s", code, text)
			}
			return err
		},
		Gone: func(context.Context, issuers.Lease) error { return nil }, // STS lists no sessions
		Intact: func(ctx context.Context) error {
			for _, path := range []string{"orders/2026/a.txt", "other/2026/a.txt"} {
				if code, _, err := shared.Do(ctx, shared.Root, http.MethodGet, path, "", nil); err != nil || code != http.StatusOK {
					return fmt.Errorf("%s: status %d, %w", path, code, err)
				}
			}
			return nil
		},
		Expires: func(c issuers.Credential) (time.Time, error) { return time.Parse(time.RFC3339, c.Public["expiration"]) },
	}
}

func invalid() []scope.Scope {
	return []scope.Scope{
		allow("s3:getobject"), // no location: never everything
		allow("s3:getobject", "*"),
		allow("s3:getobject", "orders/*"),
		allow("s3:getobject", "arn:aws:s3:::"),
		allow("s3:getobject", "arn:aws:s3:::/x"),
		allow("s3:getobject", "arn:*"),
		allow("s3:getobject", "arn:aws:s3*"),
		allow("s3:getobject", "arn:aws:s3:eu-*"),
		allow("s3:getobject", s3("orders/*/x")),
		allow("s3:getobject", s3("orders/20?6/*")),
		allow("s3:getobject", s3("orders/${aws:username}/*")),
		allow("s3:getobject", s3("orders")),           // a bucket has no object
		allow("s3:getbucketlocation", s3("orders/*")), // an object is no bucket
		allow("s3:listbucket", s3("orders/one")),
		allow("s3:listallmybuckets", s3("orders")),
		allow("s3:nosuchaction", s3("orders/*")),
		allow("s3:*", s3("orders/*")), allow("*", s3("orders/*")), allow("s3:get*", s3("orders/*")), allow("getobject", s3("orders/*")), allow("s3:", s3("orders/*")),
		allow("iam:createuser", "arn:aws:iam::123456789012:user/x"), allow("sts:assumerole", "arn:aws:iam::123456789012:role/x"),
		allow("sts:getfederationtoken", "arn:aws:iam::123456789012:role/x"), allow("s3:putbucketpolicy", s3("orders")), allow("s3:putobjectacl", s3("orders/*")),
		allow("kms:creategrant", "arn:aws:kms:eu-west-1:123456789012:key/x"), allow("ecr:getauthorizationtoken", "arn:aws:ecr:eu-west-1:123456789012:repository/x"),
		{{Type: "aws", Identifier: "x", Actions: []string{"s3:getobject"}, Locations: []string{s3("orders/*")}}},
		{{Type: "aws", Privileges: []string{"x"}, Actions: []string{"s3:getobject"}, Locations: []string{s3("orders/*")}}},
		{{Type: "aws", Datatypes: []string{"x"}, Actions: []string{"s3:getobject"}, Locations: []string{s3("orders/*")}}},
		{{Type: "aws", Tables: []scope.Table{{Name: "a.b"}}, Actions: []string{"s3:getobject"}, Locations: []string{s3("orders/*")}}},
		long(40), // 2,048 characters
	}
}

// long names so many resources that the session policy is too long.
func long(n int) scope.Scope {
	var l []string
	for i := range n {
		l = append(l, s3(fmt.Sprintf("orders/a-rather-long-prefix-number-%02d-%s/*", i, strings.Repeat("x", 20))))
	}
	return allow("s3:getobject", l...)
}

func accepted() []scope.Scope {
	return []scope.Scope{
		allow("s3:listbucket s3:getbucketlocation", s3("orders")),
		allow("s3:listbucket s3:listbucketversions s3:getobject s3:getobjectversion", s3("orders/*")),
		allow("s3:putobject s3:deleteobject s3:abortmultipartupload s3:listmultipartuploadparts", s3("orders/in/*"), s3("orders/out/*")),
		allow("s3:getobject s3:listbucket", s3("orders*")),
		allow("s3:getobject", s3("orders/2026/a.txt")),
		allow("s3:listallmybuckets", s3("*")),
		{
			{Type: "aws", Actions: []string{"s3:getobject"}, Locations: []string{s3("orders/2026/*")}},
			{Type: "aws", Actions: []string{"s3:putobject"}, Locations: []string{s3("orders/out/*")}},
		},
		long(15),
	}
}

// hostile are names that try to end a string, begin another statement, or mean
// more to IAM than to the algebra.
func hostile() []scope.Scope {
	var out []scope.Scope
	for _, name := range []string{
		`x"],"Resource":"*`, `x"}]}`, `x\`, `x\"`, `x\u002a`, "x'", "x<y>&z", "x%2a", "x$", "x${", "${*}", "$", "${aws:PrincipalArn}", "x?", "?", "**", "x*y", "x**",
		"x y", "x\ny", "x\x00y", "x\ty", "\u202ex", "\u2028x", "ключ", "𝕏🦟", "\u00e9\u00ff\u0100", "x\ufffd", "../other/2026/a.txt", "./", "//", "a//b", ".", "..", strings.Repeat("x", 240), "x\xff",
	} {
		out = append(out, allow("s3:getobject", s3("orders/"+name)), allow("s3:getobject s3:listbucket", s3("orders/"+name+"*")), allow("s3:listbucket", s3(name)),
			allow("s3:getobject", name), allow("s3:getobject"+name, s3("orders/*")))
	}
	return out
}
