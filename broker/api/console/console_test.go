package console_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker/api/console"
	"github.com/mayfly-broker/mayfly/broker/api/console/consoletest"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/client/wire"
)

const home = "https://mayfly.example"

// desk is a console over a broker in memory, with somebody signed in.
type desk struct {
	*consoletest.Engine
	pages *console.Console
	token string
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	d := &desk{Engine: consoletest.New(home, time.Now)}
	var err error
	d.pages, err = console.New(console.Config{Engine: func() (console.Engine, error) { return d.Engine, nil }, Node: d.Engine, ExternalURLs: []string{home}})
	if err != nil {
		t.Fatal(err)
	}
	d.token = d.Open(consoletest.Me, "cookie")
	return d
}

// csrf is what a form of the session carries.
func (d *desk) csrf() string {
	m := hmac.New(sha256.New, []byte(d.token))
	m.Write([]byte("csrf"))
	return base64.RawURLEncoding.EncodeToString(m.Sum(nil))
}

func (d *desk) get(path string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, home+path, nil)
	if d.token != "" {
		r.AddCookie(&http.Cookie{Name: "__Host-mayfly", Value: d.token})
	}
	return r
}

// post is a form that one of the console's own pages sends.
func (d *desk) post(path string, fields url.Values) *http.Request {
	r := httptest.NewRequest(http.MethodPost, home+path, strings.NewReader(fields.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Origin", home)
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	if d.token != "" {
		r.AddCookie(&http.Cookie{Name: "__Host-mayfly", Value: d.token})
	}
	return r
}

func (d *desk) do(r *http.Request) (*http.Response, string) {
	w := httptest.NewRecorder()
	d.pages.ServeHTTP(w, r)
	res := w.Result()
	body, _ := io.ReadAll(res.Body)
	return res, string(body)
}

// every is a path of each page.
var every = []string{"/", "/grants", "/grants/" + consoletest.GrantWrite, "/grants/" + consoletest.GrantChange, "/grants/" + consoletest.GrantEmergency,
	"/grants/" + consoletest.GrantMine, "/tasks", "/tasks?state=ended", "/tasks/" + consoletest.TaskRoot, "/leases", "/leases?state=all", "/leases/" + consoletest.LeaseOpen,
	"/leases/" + consoletest.LeaseEnded, "/principals", "/principals/agent:billing-bot", "/targets", "/targets/orders", "/rotations", "/audit", "/audit?actor=human:bo&result=ok", "/policies",
	"/decisions/" + consoletest.DecisionDeny, "/cluster", "/keys"}

func TestEveryPageIsServed(t *testing.T) {
	d := newDesk(t)
	for _, path := range every {
		res, body := d.do(d.get(path))
		if res.StatusCode != http.StatusOK || !strings.Contains(body, "</html>") {
			t.Errorf("%s: %d\n%s", path, res.StatusCode, body)
		}
		if strings.Contains(body, "style=") || strings.Contains(body, "onclick") || strings.Contains(body, "<style") {
			t.Errorf("%s has a style or a handler in the page, which the browser refuses", path)
		}
		if strings.Contains(body, "ZgotmplZ") || strings.Contains(body, "%!") || strings.Contains(body, "<no value>") {
			t.Errorf("%s: a template filled something in wrongly", path)
		}
	}
}

// Whatever is answered, no other site may frame it, read it or add to it.
func TestEveryAnswerIsHardened(t *testing.T) {
	d := newDesk(t)
	guest := newDesk(t)
	guest.token = ""
	foreign := d.get("/")
	foreign.Host = "evil.example"
	requests := map[string]*http.Request{"foreign host": foreign, "nowhere": d.get("/nowhere"), "style": d.get("/assets/console.css"), "script": d.get("/assets/console.js"),
		"no asset": d.get("/assets/../console.go"), "sign-in": guest.get("/signin"), "not signed in": guest.get("/"), "begin": guest.post("/signin/begin", nil),
		"bad login": guest.post("/signin/finish", url.Values{"credential": {"{}"}}), "put": httptest.NewRequest(http.MethodPut, home+"/", nil)}
	for _, path := range every {
		requests[path] = d.get(path)
	}
	for name, r := range requests {
		res, _ := d.do(r)
		h := res.Header
		for key, want := range map[string]string{
			"Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
			"X-Frame-Options":         "DENY", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin", "Cache-Control": "no-store",
			"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
		} {
			if got := h.Get(key); got != want {
				t.Errorf("%s: %s is %q, want %q", name, key, got, want)
			}
		}
		if res.Header.Get("Content-Type") == "" && res.StatusCode != http.StatusSeeOther {
			t.Errorf("%s: no content type", name)
		}
	}
}

func TestForeignHostsAreRefused(t *testing.T) {
	d := newDesk(t)
	for _, host := range []string{"evil.example", "mayfly.example.evil.example", "127.0.0.1", "mayfly.example:8443", ""} {
		r := d.get("/")
		r.Host = host
		if res, body := d.do(r); res.StatusCode != http.StatusForbidden || strings.Contains(body, "billing-bot") {
			t.Errorf("host %q: %d", host, res.StatusCode)
		}
	}
	r := d.get("/")
	r.Host = "MAYFLY.example:443"
	if res, _ := d.do(r); res.StatusCode != http.StatusOK {
		t.Errorf("its own name in other letters: %d", res.StatusCode)
	}
}

// A form of another page, or of another session, changes nothing.
func TestForgedFormsAreRefused(t *testing.T) {
	deny := url.Values{"reason": {"no"}}
	with := func(token string) url.Values { return url.Values{"reason": {"no"}, "csrf": {token}} }
	other := newDesk(t)
	other.token = other.Open("human:bo", "cookie")
	for name, forge := range map[string]func(d *desk) *http.Request{
		"no token":    func(d *desk) *http.Request { return d.post("/grants/"+consoletest.GrantWrite+"/deny", deny) },
		"empty token": func(d *desk) *http.Request { return d.post("/grants/"+consoletest.GrantWrite+"/deny", with("")) },
		"another's": func(d *desk) *http.Request {
			return d.post("/grants/"+consoletest.GrantWrite+"/deny", with(other.csrf()))
		},
		"token in query": func(d *desk) *http.Request {
			return d.post("/grants/"+consoletest.GrantWrite+"/deny?csrf="+d.csrf(), deny)
		},
		"no origin": func(d *desk) *http.Request {
			r := d.post("/grants/"+consoletest.GrantWrite+"/deny", with(d.csrf()))
			r.Header.Del("Origin")
			return r
		},
		"null origin": func(d *desk) *http.Request {
			r := d.post("/grants/"+consoletest.GrantWrite+"/deny", with(d.csrf()))
			r.Header.Set("Origin", "null")
			return r
		},
		"foreign origin": func(d *desk) *http.Request {
			r := d.post("/grants/"+consoletest.GrantWrite+"/deny", with(d.csrf()))
			r.Header.Set("Origin", "https://evil.example")
			return r
		},
		"origin without TLS": func(d *desk) *http.Request {
			r := d.post("/grants/"+consoletest.GrantWrite+"/deny", with(d.csrf()))
			r.Header.Set("Origin", "http://mayfly.example")
			return r
		},
		"two origins": func(d *desk) *http.Request {
			r := d.post("/grants/"+consoletest.GrantWrite+"/deny", with(d.csrf()))
			r.Header.Add("Origin", "https://evil.example")
			return r
		},
		"same site only": func(d *desk) *http.Request {
			r := d.post("/grants/"+consoletest.GrantWrite+"/deny", with(d.csrf()))
			r.Header.Set("Sec-Fetch-Site", "same-site")
			return r
		},
		"by GET": func(d *desk) *http.Request {
			return d.get("/grants/" + consoletest.GrantWrite + "/deny?reason=no&csrf=" + d.csrf())
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			res, _ := d.do(forge(d))
			if res.StatusCode < 400 || len(d.Ended) > 0 {
				t.Errorf("answered %d; ended %v", res.StatusCode, d.Ended)
			}
		})
	}
	d := newDesk(t)
	res, body := d.do(d.post("/grants/"+consoletest.GrantWrite+"/deny", with(d.csrf())))
	if res.StatusCode != http.StatusSeeOther || d.Ended[consoletest.GrantWrite] != "no" {
		t.Errorf("the page's own form: %d, ended %v\n%s", res.StatusCode, d.Ended, body)
	}
}

// The cookie is the browser's alone, and only a session made for one is taken.
func TestSessionsAndCookies(t *testing.T) {
	d := newDesk(t)
	d.token = d.Open(consoletest.Me, "dpop")
	if res, _ := d.do(d.get("/")); res.StatusCode != http.StatusSeeOther || !strings.HasPrefix(res.Header.Get("Location"), "/signin") {
		t.Errorf("a session bound to a key opens the console: %d", res.StatusCode)
	}
	d.token = "mfs_unknown"
	if res, _ := d.do(d.get("/grants/x?a=b")); res.Header.Get("Location") != "/signin?to=%2Fgrants%2Fx%3Fa%3Db" {
		t.Errorf("sent to %q", res.Header.Get("Location"))
	}
	d.token = ""
	res, _ := d.do(d.post("/signin/enrol", url.Values{"token": {" " + consoletest.EnrolmentToken + "\n"}}))
	if res.StatusCode != http.StatusSeeOther || len(res.Cookies()) != 1 {
		t.Fatalf("enrolment: %d, cookies %v", res.StatusCode, res.Cookies())
	}
	c := res.Cookies()[0]
	if c.Name != "__Host-mayfly" || !c.Secure || !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Path != "/" || c.Domain != "" {
		t.Errorf("cookie %v", c)
	}
	if res, body := d.do(d.post("/signin/enrol", url.Values{"token": {consoletest.EnrolmentToken}})); res.StatusCode != http.StatusUnauthorized || !strings.Contains(body, "spent") || strings.Contains(body, consoletest.EnrolmentToken) {
		t.Errorf("a spent token: %d", res.StatusCode)
	}
	d.token = c.Value
	if res, _ := d.do(d.post("/signout", url.Values{"csrf": {d.csrf()}})); res.StatusCode != http.StatusSeeOther || res.Cookies()[0].MaxAge >= 0 {
		t.Errorf("sign-out: %d", res.StatusCode)
	}
	if res, _ := d.do(d.get("/")); res.StatusCode != http.StatusSeeOther {
		t.Error("the session lives on after sign-out")
	}
}

// Nobody is sent to another site after signing in.
func TestNobodyIsSentElsewhere(t *testing.T) {
	d := newDesk(t)
	for to, want := range map[string]string{"//evil.example": "/", "https://evil.example": "/", `/\evil.example`: "/", "/\tevil": "/", "": "/", "/grants/x?done=deny": "/grants/x?done=deny"} {
		if res, _ := d.do(d.get("/signin?to=" + url.QueryEscape(to))); res.Header.Get("Location") != want {
			t.Errorf("%q leads to %q, want %q", to, res.Header.Get("Location"), want)
		}
		if res, _ := d.do(d.post("/theme", url.Values{"theme": {"dark"}, "to": {to}})); res.Header.Get("Location") != want {
			t.Errorf("theme: %q leads to %q, want %q", to, res.Header.Get("Location"), want)
		}
	}
}

// A link in a chat leads somewhere, though browsers keep the cookie back.
func TestALinkFromElsewhereArrives(t *testing.T) {
	d := newDesk(t)
	r := d.get("/grants/" + consoletest.GrantWrite)
	r.Header.Set("Sec-Fetch-Site", "cross-site")
	if res, body := d.do(r); res.StatusCode != http.StatusForbidden || strings.Contains(body, "billing-bot") {
		t.Errorf("an embedding: %d", res.StatusCode)
	}
	r.Header.Set("Sec-Fetch-Mode", "navigate")
	r.Header.Set("Sec-Fetch-Dest", "document")
	if res, body := d.do(r); res.StatusCode != http.StatusOK || !strings.Contains(body, `http-equiv="refresh"`) || strings.Contains(body, "billing-bot") {
		t.Errorf("a link: %d\n%s", res.StatusCode, body)
	}
	r.Header.Set("Sec-Fetch-Dest", "iframe")
	if res, _ := d.do(r); res.StatusCode != http.StatusForbidden {
		t.Errorf("a frame: %d", res.StatusCode)
	}
}

// A sealed node has no sessions, and must still say what it is.
func TestASealedNodeSaysSo(t *testing.T) {
	e := consoletest.New(home, time.Now)
	e.World.Status = wire.Status{Node: "eu-1", Initialised: true, Sealed: true, Role: "sealed", Have: 1, Threshold: 3, Total: 5}
	pages, err := console.New(console.Config{Engine: func() (console.Engine, error) {
		return nil, fault.New(fault.Unavailable, "sealed", "This node is sealed.")
	}, Node: e, ExternalURLs: []string{home}})
	if err != nil {
		t.Fatal(err)
	}
	d := &desk{Engine: e, pages: pages}
	if res, body := d.do(d.get("/cluster")); res.StatusCode != http.StatusOK || !strings.Contains(body, "1 of 3") || !strings.Contains(body, "mayfly operator unseal") {
		t.Errorf("cluster: %d\n%s", res.StatusCode, body)
	}
	if res, body := d.do(d.get("/")); res.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, "sealed") {
		t.Errorf("inbox: %d", res.StatusCode)
	}
}

// What changes something, and only that, is the leader's.
func TestFollowersPassChangesOn(t *testing.T) {
	e := consoletest.New(home, time.Now)
	e.World.Status.Role = "follower"
	var passed []string
	pages, err := console.New(console.Config{Engine: func() (console.Engine, error) { return e, nil }, Node: e, ExternalURLs: []string{home},
		Leader: func(w http.ResponseWriter, r *http.Request) bool {
			passed = append(passed, r.Method+" "+r.URL.Path)
			w.WriteHeader(http.StatusTeapot)
			return true
		}})
	if err != nil {
		t.Fatal(err)
	}
	d := &desk{Engine: e, pages: pages, token: e.Open(consoletest.Me, "cookie")}
	d.do(d.get("/"))
	d.do(d.post("/theme", url.Values{"theme": {"dark"}}))
	d.do(d.post("/signin/begin", nil))
	d.do(d.post("/grants/x/deny", nil))
	forged := d.post("/grants/x/deny", nil)
	forged.Header.Set("Origin", "https://evil.example")
	d.do(forged)
	d.token = "mfs_opened-a-moment-ago"
	d.do(d.get("/grants"))
	want := []string{"POST /signin/begin", "POST /grants/x/deny", "GET /grants"}
	if fmt.Sprint(passed) != fmt.Sprint(want) {
		t.Errorf("passed on %v, want %v", passed, want)
	}
}

// A draft is tried on what was really asked, and the page says what would change.
func TestThePastIsDecidedAgainUnderADraft(t *testing.T) {
	d := newDesk(t)
	replay := func(draft string) string {
		t.Helper()
		res, body := d.do(d.post("/policies/test", url.Values{"csrf": {d.csrf()}, "do": {"replay"}, "draft": {draft}}))
		if res.StatusCode != http.StatusOK {
			t.Fatalf("%d\n%s", res.StatusCode, body)
		}
		return body
	}
	if body := replay(""); !strings.Contains(body, "All 980 decisions would come out the same") {
		t.Error("without a draft:", body)
	}
	body := replay("permit (principal, action, resource);")
	for _, want := range []string{"7 of 980 decisions would come out otherwise", "agent:billing-bot request Role/orders/readwrite", "no policy permits it", "/decisions/dec_"} {
		if !strings.Contains(body, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
}

// TestHazard18TheConsoleSaysWhatLivesOn: a lease that is over by the ledger alone is
// not shown as one whose credential is gone.
func TestHazard18TheConsoleSaysWhatLivesOn(t *testing.T) {
	for proof, lives := range map[string]bool{"absent": false, "expires-only": true, "forced": true} {
		d := newDesk(t)
		d.Grow(func(w *consoletest.World) {
			for i := range w.Leases {
				w.Leases[i].Receipt = fmt.Appendf(nil, `{"proof":%q,"detail":"x"}`, proof)
			}
		})
		_, body := d.do(d.get("/leases/" + consoletest.LeaseEnded))
		if strings.Contains(body, "was not withdrawn ("+proof+"): it may work until") != lives || strings.Contains(body, "what the target said when it was gone") == lives {
			t.Errorf("%s:\n%s", proof, body)
		}
	}
}

// Who approves access to an account reads whose it is, and who else has its secret.
func TestAGrantOnAnAccountSaysWhatItOpens(t *testing.T) {
	d := newDesk(t)
	if _, body := d.do(d.get("/grants/" + consoletest.GrantWrite)); strings.Contains(body, "the account as it is now") {
		t.Error("a minted credential is told as an account")
	}
	d.Grow(func(w *consoletest.World) {
		w.Grants[0].Opens = &wire.Opens{Account: "billing", Usernames: []string{"billing_a", "billing_b"}, Target: "orders", System: "postgres at db:5432", Secret: "Its secret is shared."}
	})
	_, body := d.do(d.get("/grants/" + consoletest.GrantWrite))
	for _, want := range []string{"It logs in as billing_a or billing_b on target orders, postgres at db:5432 (account billing).", "Its secret is shared."} {
		if !strings.Contains(body, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
}

// What the cluster does by itself is shown: what failed stands first, with what it
// is about to try; a target's page has what turns on it.
func TestRotationsAreShown(t *testing.T) {
	d := newDesk(t)
	order := func(body string, want ...string) {
		t.Helper()
		at := 0
		for _, w := range want {
			i := strings.Index(body[at:], w)
			if i < 0 {
				t.Errorf("%q is missing, or not where it should be:\n%s", w, body)
				return
			}
			at += i
		}
	}
	_, body := d.do(d.get("/rotations"))
	order(body, "1 of 7 cannot get on", "Account legacy-reports", "on legacy", "i/o timeout", "11 times", "9 failures since", "failing", "tried again", "Account billing", "billing_b", "somebody asked for it", "old one still works", "the old one ends",
		"Account storefront", "after its use", "no schedule", "Node certificates", "Barrier key", "by its schedule", "replaced next", "Own secret of target finance-api", "new key is published", "Own secret of target orders", "somebody had reset it by hand")
	_, body = d.do(d.get("/targets/orders"))
	order(body, "Rotations", "Account billing", "Own secret of target orders")
	if strings.Contains(body, "legacy-reports") || strings.Contains(body, "htpasswd") {
		t.Error("a target's page shows what is another's")
	}
	_, body = d.do(d.get("/targets"))
	order(body, "Plugins", "htpasswd", "on node eu-1", "sha256:", "runs", "mainframe", "is not the registered one", "registered is", "3 failed starts", "does not run")
	d.Grow(func(w *consoletest.World) {
		w.Plugins[0].Name = "postgres"
		w.Rotations = []wire.Rotation{{Kind: "Account", Name: "new", Target: "orders", State: "idle", Wanted: "first"}}
	})
	_, body = d.do(d.get("/targets/orders"))
	order(body, "the process that speaks to this target", "runs since")
	_, body = d.do(d.get("/rotations"))
	order(body, "Account new", "never replaced", "to be replaced as soon as it can: nobody had told its secret")
	if strings.Contains(body, "cannot get on") {
		t.Error("nothing fails")
	}
	d.Grow(func(w *consoletest.World) { w.Rotations, w.Plugins = nil, nil })
	if _, body = d.do(d.get("/rotations")); !strings.Contains(body, "Nothing to see") {
		t.Error(body)
	}
	if _, body = d.do(d.get("/targets")); strings.Contains(body, "Plugins") {
		t.Error("plugins that there are not")
	}
}
