package azure_test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/azure/azuretest"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/scope"
)

// The harness has no Unreachable: a withdrawal asks Azure nothing, so it cannot
// fail to reach it. TestNobodyAnswers tries the mint.
func TestConformance(t *testing.T) {
	issuertest.Run(t, issuertest.Harness{
		Kind: published{}, Target: target(t, bySAS()),
		Scope: theScope, Narrower: allow("read", "az://orders/2026/a.txt"),
		Invalid: invalid(), Accepted: accepted(), Hostile: hostile(),
		Use: func(ctx context.Context, c issuers.Credential) error {
			code, text, err := world.Blobs.Do(ctx, http.MethodGet, "orders/2026/a.txt", sasOf(c), "", nil)
			if err == nil && code != http.StatusOK {
				err = fmt.Errorf("status %d: %s", code, text)
			}
			return err
		},
		Gone:    func(context.Context, issuers.Lease) error { return nil }, // Azure lists no SAS
		Expires: func(c issuers.Credential) (time.Time, error) { return time.Parse(time.RFC3339, c.Public["expiration"]) },
		Keys: &issuertest.Keys{Verify: func(ctx context.Context, documents map[string][]byte, c issuers.Credential) error {
			now := azuretest.Trust()
			if err := now.Learn(documents["jwks.json"]); err != nil {
				return err
			}
			q, err := url.ParseQuery(sasOf(c))
			if err != nil {
				return err
			}
			return now.Verify(ctx, world.Entra.Identity(q.Get("skoid")))
		}},
	})
}

func invalid() []scope.Scope {
	return []scope.Scope{
		allow("read"), allow("", "az://orders/*"),
		allow("read", "az://orders/*", "az://other/*"), // one SAS is for one place
		append(allow("read", "az://orders/*"), allow("write", "az://other/*")...),
		allow("read", "*"), allow("read", "az://*"), allow("read", "az://orders"), allow("read", "az://orders/"), allow("read", "az://orders*"), allow("read", "orders/*"),
		allow("read", "az://orders/20*"), allow("read", "az://orders/2026/*"), // a directory, on an account without any
		allow("read", "az://orders/*/x"), allow("read", "az://$web/*"), allow("read", "az://ORDERS/*"), allow("read", "az://a--b/*"),
		allow("read", "az://orders/a/../b"), allow("read", "az://orders//a"), allow("read", "az://orders/a/"), allow("read", "az://orders/a."), allow("read", "az://orders/%2e"),
		allow("list", "az://orders/one"), allow("tag", "az://orders/*"), allow("setpermissions", "az://orders/*"), allow("*", "az://orders/*"),
		{{Type: "azure", Actions: []string{"token"}, Locations: []string{"https://management.azure.com"}}},
		{{Type: "azure", Identifier: "x", Actions: []string{"blobs.read"}, Locations: []string{"az://orders/*"}}},
		{{Type: "azure", Privileges: []string{"x"}, Actions: []string{"blobs.read"}, Locations: []string{"az://orders/*"}}},
		{{Type: "azure", Tables: []scope.Table{{Name: "a.b"}}, Actions: []string{"blobs.read"}, Locations: []string{"az://orders/*"}}},
	}
}

func accepted() []scope.Scope {
	return []scope.Scope{
		allow("read", "az://orders/2026/a.txt"), allow("read add create write delete list", "az://orders/*"), allow("write", "az://orders/in/x"), allow("list", "az://other/*"),
	}
}

// hostile are names that try to begin another line of the signed text, or another
// parameter of the SAS.
func hostile() []scope.Scope {
	var out []scope.Scope
	for _, name := range []string{
		"x\nracwdl", "x\r\n", "x\x00", "x\ty", "x&sp=racwdl", "x?sp=racwdl", "x#y", "x%0ay", "x%2f..%2fother", "../other/2026/a.txt", "./a", ".", "..", "...", "a//b", "/a", "x\\y", "x*", "**",
		"x y", "x+y", "x=y", "x;y", "x'y", `x"y`, "ключ", "𝕏🦟", "\ufffd", "\u202ex", "\u2028x", "x\xff", strings.Repeat("x", 240),
	} {
		out = append(out, allow("read", "az://orders/"+name), allow("read list", "az://orders/"+name+"/*"), allow("read", "az://"+name+"/*"), allow("read", name), allow("read"+name, "az://orders/*"))
	}
	return out
}
