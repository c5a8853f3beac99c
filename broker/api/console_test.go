package api_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/api"
)

// The pages have a policy of their own under the same front: no nonce, no
// frame, and links from elsewhere arrive.
func TestPagesComeUnderTheirOwnPolicy(t *testing.T) {
	tc, n := one(t)
	c := tc.newClient(t, "", "")
	for _, path := range []string{"/", "/signin", "/grants/x", "/assets/console.css", "/cluster"} {
		h := c.send(c.request("GET", n.url+path, "")).header
		if !strings.Contains(h.Get("Content-Security-Policy"), "script-src 'self'") || h.Get("X-Frame-Options") != "DENY" || h.Get("DPoP-Nonce") != "" ||
			h.Get("Strict-Transport-Security") == "" || h.Get("X-Request-Id") == "" || len(h.Values("Content-Security-Policy")) != 1 {
			t.Errorf("%s: %v", path, h)
		}
	}
	link := c.request("GET", n.url+"/cluster", "")
	link.Header.Set("Sec-Fetch-Site", "cross-site")
	refused(t, c.send(link), 403, api.CodeForeignOrigin)
	link.Header.Set("Sec-Fetch-Mode", "navigate")
	link.Header.Set("Sec-Fetch-Dest", "document")
	if got := c.send(link); got.status != http.StatusOK || !strings.Contains(string(got.body), "refresh") {
		t.Errorf("a link from elsewhere: %d", got.status)
	}
}

// A cookie opens pages only; what it carries is refused wherever else it is
// shown.
func TestLaw7TheConsolesCookieOpensNothingElse(t *testing.T) {
	tc, n := one(t)
	c := tc.newClient(t, "mfs_cookie", "cookie")
	for name, header := range map[string]string{"Cookie": "__Host-mayfly=mfs_cookie", "Authorization": "Bearer mfs_cookie"} {
		r := c.request("GET", n.url+"/api/v1/whoami", "")
		r.Header.Set(name, header)
		if got := c.send(r); got.status != http.StatusUnauthorized {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
	}
	refused(t, c.do(n, "GET", "/whoami", ""), 401, api.CodeBinding)
}
