package gcp_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/gcp/gcptest"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/scope"
)

// The harness has no Unreachable: a withdrawal asks Google nothing, so it cannot
// fail to reach it. TestNobodyAnswers tries the mint.
func TestConformance(t *testing.T) {
	g, s := google(t)
	issuertest.Run(t, issuertest.Harness{
		Kind: published{google: g}, Target: target(t, s),
		Scope: theScope, Narrower: allow("get", "gs://orders/2026/a*"),
		Invalid: invalid(), Accepted: accepted(), Hostile: hostile(),
		Use: func(_ context.Context, c issuers.Credential) error {
			if !g.Allowed(c.Secret["access_token"].Reveal(), "get", "orders", "2026/a.txt") {
				return errors.New("it does not read gs://orders/2026/a.txt")
			}
			return nil
		},
		Gone:    func(context.Context, issuers.Lease) error { return nil }, // Google lists no tokens
		Expires: func(c issuers.Credential) (time.Time, error) { return time.Parse(time.RFC3339, c.Public["expiration"]) },
		Keys: &issuertest.Keys{Verify: func(ctx context.Context, documents map[string][]byte, c issuers.Credential) error {
			now := gcptest.Trust()
			if err := now.Learn(documents["jwks.json"]); err != nil {
				return err
			}
			return now.Verify(ctx, g.Identity(c.Secret["access_token"].Reveal()))
		}},
	})
}

func invalid() []scope.Scope {
	return []scope.Scope{
		allow("get"), // no location: never everything
		allow("", "gs://orders/*"),
		allow("get", "*"), allow("get", "gs://*"), allow("get", "gs://orders*"), allow("get", "gs://orders"), allow("get", "gs://orders/"), allow("get", "orders/*"),
		allow("get", "gs://o*/x"), allow("get", "gs://orders/*/x"), allow("get", "gs://orders/x?"), allow("get", "gs://orders/x**"), allow("get", "s3://orders/*"),
		allow("get", "gs://Orders/*"), allow("get", "gs:///x"),
		allow("list", "gs://orders/one"),           // one object cannot be listed
		allow("delete", "gs://orders/*"),           // Google's role creates, too
		allow("update", "gs://orders/*"),           // and this one does everything
		allow("create delete update", "gs://o1/*"), // all but reading
		allow("getiampolicy", "gs://orders/*"), allow("setiampolicy", "gs://orders/*"), allow("*", "gs://orders/*"),
		{{Type: "gcp", Actions: []string{"bigquery.tables.getData"}, Locations: []string{"gs://orders/*"}}},
		{{Type: "gcp", Actions: []string{"storage.buckets.delete"}, Locations: []string{"gs://orders/*"}}},
		{{Type: "gcp", Identifier: "x", Actions: []string{"storage.objects.get"}, Locations: []string{"gs://orders/*"}}},
		{{Type: "gcp", Privileges: []string{"x"}, Actions: []string{"storage.objects.get"}, Locations: []string{"gs://orders/*"}}},
		{{Type: "gcp", Datatypes: []string{"x"}, Actions: []string{"storage.objects.get"}, Locations: []string{"gs://orders/*"}}},
		{{Type: "gcp", Tables: []scope.Table{{Name: "a.b"}}, Actions: []string{"storage.objects.get"}, Locations: []string{"gs://orders/*"}}},
		buckets(11),
		long(40),
	}
}

// buckets names so many buckets, each of which takes a rule.
func buckets(n int) scope.Scope {
	var l []string
	for i := range n {
		l = append(l, fmt.Sprintf("gs://bucket-%02d/*", i))
	}
	return allow("get", l...)
}

// long names so many prefixes of one bucket that its condition is too long.
func long(n int) scope.Scope {
	var l []string
	for i := range n {
		l = append(l, fmt.Sprintf("gs://orders/a-rather-long-prefix-number-%02d-%s/*", i, strings.Repeat("x", 20)))
	}
	return allow("get", l...)
}

func accepted() []scope.Scope {
	return []scope.Scope{
		allow("get", "gs://orders/2026/a.txt"), allow("list", "gs://orders/*"), allow("create", "gs://orders/in/*", "gs://orders/out/*"),
		allow("create delete", "gs://orders/in/*"), allow("get list create delete update", "gs://orders/*"), allow("get list", "gs://orders/one", "gs://orders/many/*"),
		append(allow("get", "gs://orders/2026/*"), allow("create", "gs://orders/out/*")...),
		buckets(10), long(10),
	}
}

// hostile are names that try to end a string, begin another term, or mean more to
// CEL than to the algebra.
func hostile() []scope.Scope {
	var out []scope.Scope
	for _, name := range []string{
		`x') || true || ('`, `x' || '`, `x'`, `x"`, `x\`, `x\'`, `x\x27`, "x`", `x")`, "x) || (", "x' + '", "x//y", "x\ny", "x\x00", "x\ty", "\u202ex", "\u2028x", "ключ", "𝕏🦟", "\ufffd",
		"../other/a", ".", "..", "a//b", "x*y", "**", "?", "[a-z]", "x#1", "${x}", "{{x}}", "<&>", "%27", "x\xff", strings.Repeat("x", 240), "', '').startsWith('",
	} {
		out = append(out, allow("get", "gs://orders/"+name), allow("get list", "gs://orders/"+name+"*"), allow("get", "gs://"+name+"/*"), allow("get", name),
			scope.Scope{{Type: "gcp", Actions: []string{"storage.objects.get" + name}, Locations: []string{"gs://orders/*"}}})
	}
	return out
}
