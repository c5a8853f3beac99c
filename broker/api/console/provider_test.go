package console_test

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/api/console"
	"github.com/mayfly-broker/mayfly/broker/api/console/consoletest"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// gate is a broker whose provider says what a test wants.
type gate struct {
	*consoletest.Engine
	began  broker.SignInRequest
	answer broker.SignInAnswer
	err    error
}

func (g *gate) SignInMethods(context.Context) ([]string, error) {
	return []string{"corp", "<b>\u202e"}, nil
}

func (g *gate) BeginSignIn(_ context.Context, in broker.SignInRequest) (broker.SignInStart, error) {
	g.began = in
	return broker.SignInStart{URL: "https://corp.example/authorize?a=1&state=s", Ticket: "ticket", Until: time.Now().Add(time.Minute)}, g.err
}

func (g *gate) FinishSignIn(_ context.Context, in broker.SignInAnswer) (wire.LoginAnswer, string, error) {
	g.answer = in
	return wire.LoginAnswer{SessionToken: "mfs_x", ExpiresAt: time.Now().Add(time.Minute)}, "//evil.example", g.err
}

func newGate(t *testing.T) (*gate, *desk) {
	t.Helper()
	g := &gate{Engine: consoletest.New(home, time.Now)}
	pages, err := console.New(console.Config{Engine: func() (console.Engine, error) { return g, nil }, Node: g.Engine, ExternalURLs: []string{home}})
	if err != nil {
		t.Fatal(err)
	}
	return g, &desk{Engine: g.Engine, pages: pages}
}

func cookie(res *http.Response, name string) *http.Cookie {
	for _, c := range res.Cookies() {
		if c.Name == name {
			return c
		}
	}
	return &http.Cookie{}
}

func TestLeavingForAProvider(t *testing.T) {
	g, d := newGate(t)
	if _, body := d.do(d.get("/signin?to=/keys")); !strings.Contains(body, "Sign in with corp") || strings.Contains(body, "<b>") || strings.Contains(body, "\u202e") {
		t.Errorf("the sign-in page: %s", body)
	}
	res, body := d.do(d.post("/signin/oidc", url.Values{"method": {"corp"}, "to": {"https://evil.example"}}))
	if g.began != (broker.SignInRequest{Method: "corp", Origin: home, To: "/"}) {
		t.Errorf("began %+v", g.began)
	}
	if res.StatusCode != http.StatusOK || !strings.Contains(body, `content="0; url=https://corp.example/authorize?a=1&amp;state=s"`) {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	c := cookie(res, "__Host-mayfly-signin")
	if c.Value != "ticket" || !c.Secure || !c.HttpOnly || c.SameSite != http.SameSiteLaxMode || c.Path != "/" || c.Domain != "" {
		t.Errorf("cookie %+v", c)
	}
	g.began = broker.SignInRequest{}
	foreign := d.post("/signin/oidc", url.Values{"method": {"corp"}})
	foreign.Header.Set("Origin", "https://evil.example")
	if res, _ := d.do(foreign); res.StatusCode != http.StatusForbidden || g.began.Method != "" {
		t.Errorf("another site's form is answered with %d", res.StatusCode)
	}
	if res, _ := d.do(d.get("/signin/oidc?method=corp")); res.StatusCode == http.StatusOK || g.began.Method != "" {
		t.Errorf("a link begins a sign-in: %d", res.StatusCode)
	}
	g.err = fault.New(fault.Unavailable, "issuer_unavailable", "The provider is away.")
	if res, body := d.do(d.post("/signin/oidc", url.Values{"method": {"corp"}})); res.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, "The provider is away.") || len(res.Cookies()) != 0 {
		t.Errorf("%d %s", res.StatusCode, body)
	}
}

// back is a browser that a provider has sent back.
func (d *desk) back(query string) *http.Request {
	r := d.get(broker.SignInPath + "?" + query)
	for name, value := range map[string]string{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"} {
		r.Header.Set(name, value)
	}
	r.AddCookie(&http.Cookie{Name: "__Host-mayfly-signin", Value: "ticket"})
	return r
}

func TestComingBackFromAProvider(t *testing.T) {
	g, d := newGate(t)
	res, _ := d.do(d.back("code=c&state=s&iss=https%3A%2F%2Fcorp.example&session_state=x"))
	g.answer.Address = ""
	if g.answer != (broker.SignInAnswer{Ticket: "ticket", State: "s", Code: "c", Issuer: "https://corp.example"}) {
		t.Errorf("handed in %+v", g.answer)
	}
	if res.StatusCode != http.StatusSeeOther || res.Header.Get("Location") != "/" {
		t.Errorf("%d to %q", res.StatusCode, res.Header.Get("Location"))
	}
	if c := cookie(res, "__Host-mayfly"); c.Value != "mfs_x" || c.SameSite != http.SameSiteStrictMode || !c.HttpOnly || !c.Secure {
		t.Errorf("session %+v", c)
	}
	if c := cookie(res, "__Host-mayfly-signin"); c.MaxAge >= 0 {
		t.Errorf("the ticket stays: %+v", c)
	}
	for name, query := range map[string]string{"state twice": "state=a&state=b&code=c", "code twice": "state=a&code=b&code=c", "iss twice": "iss=a&iss=b", "unreadable": "code=%zz"} {
		g.answer = broker.SignInAnswer{}
		if res, _ := d.do(d.back(query)); res.StatusCode != http.StatusUnprocessableEntity && res.StatusCode != http.StatusBadRequest || g.answer.State != "" || g.answer.Code != "" {
			t.Errorf("%s: %d, handed in %+v", name, res.StatusCode, g.answer)
		}
	}
	picture := d.back("code=c&state=s")
	picture.Header.Set("Sec-Fetch-Mode", "no-cors")
	picture.Header.Set("Sec-Fetch-Dest", "image")
	g.answer = broker.SignInAnswer{}
	if res, _ := d.do(picture); res.StatusCode != http.StatusForbidden || g.answer.Code != "" {
		t.Errorf("a picture's address: %d", res.StatusCode)
	}
	g.err = fault.New(fault.Unauthenticated, "signin_late", "Start again.")
	res, body := d.do(d.back("code=secret-code&state=s"))
	if res.StatusCode != http.StatusUnauthorized || !strings.Contains(body, "Start again.") || strings.Contains(body, "secret-code") || cookie(res, "__Host-mayfly").Value != "" {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	g.answer = broker.SignInAnswer{}
	two := d.back("code=c&state=s")
	two.AddCookie(&http.Cookie{Name: "__Host-mayfly-signin", Value: "other"})
	if d.do(two); g.answer.Ticket != "" {
		t.Error("of two tickets one is believed")
	}
}

// Only the node that leads knows the sign-ins that it began.
func TestComingBackGoesToTheLeader(t *testing.T) {
	g, _ := newGate(t)
	g.World.Status.Role = "follower"
	var passed []string
	pages, err := console.New(console.Config{Engine: func() (console.Engine, error) { return g, nil }, Node: g.Engine, ExternalURLs: []string{home},
		Leader: func(w http.ResponseWriter, r *http.Request) bool { passed = append(passed, r.URL.Path); return true }})
	if err != nil {
		t.Fatal(err)
	}
	d := &desk{Engine: g.Engine, pages: pages}
	d.do(d.back("code=c&state=s"))
	d.do(d.post("/signin/oidc", url.Values{"method": {"corp"}}))
	if len(passed) != 2 || g.answer.Code != "" || g.began.Method != "" {
		t.Errorf("passed on: %v", passed)
	}
	stray := d.back("code=c&state=s")
	stray.Header.Del("Cookie")
	if d.do(stray); len(passed) != 2 {
		t.Error("an answer without a ticket goes on to the leader")
	}
}
