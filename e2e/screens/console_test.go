package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"

	"github.com/mayfly-broker/mayfly/broker/api/console/consoletest"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// sitting is a browser on a stage.
type sitting struct {
	*Stage
	t    *testing.T
	page context.Context
}

func sit(t *testing.T) *sitting {
	t.Helper()
	stage, err := NewStage(time.Now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stage.Close)
	page, end, err := stage.Browse(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(end)
	return &sitting{Stage: stage, t: t, page: page}
}

func (s *sitting) do(what string, steps ...step) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.page, time.Minute)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		text, _ := chromedp.Run(s.page, chromedp.Evaluate[string](`location.pathname + "\n" + document.body.innerText`))
		s.t.Fatalf("%s: %v\nthe page says: %s", what, err, text)
	}
}

func ask[T any](s *sitting, expression string) T {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.page, time.Minute)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		s.t.Fatalf("%s: %v", expression, err)
	}
	return v
}

func (s *sitting) at(path string) step { return chromedp.Navigate(s.URL + path) }

func css(selector string) chromedp.CSS { return chromedp.CSS(selector) }

// on waits until the browser has come to a path. While it is on its way, a
// question finds no page to answer it.
func on(path string) step {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		look := time.NewTicker(50 * time.Millisecond)
		defer look.Stop()
		for {
			there, err := chromedp.Evaluate[bool](`location.pathname === "`+path+`" && document.readyState === "complete"`)(ctx, t)
			if err == nil && there {
				return nil
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-look.C:
			}
		}
	})
}

// The whole way of a person: a token, a passkey, out and in again by it, and a
// signature over somebody's request, each checked as a cluster does.
func TestAPersonEnrolsSignsInAndApproves(t *testing.T) {
	s := sit(t)
	s.do("redeeming the token", Authenticator(), s.at("/"), on("/signin"), chromedp.Click(css("details summary")), chromedp.SendKeys(css("textarea[data-token]"), consoletest.WholeToken),
		chromedp.Click(css(`form[action="/signin/enrol"] button`)), on("/keys"))
	if got := ask[string](s, `document.cookie`); got != "" {
		t.Errorf("scripts see the cookie: %q", got)
	}
	add := css("form[data-newkey] button")
	s.do("adding a passkey", chromedp.WaitEnabled(add), chromedp.Click(add), chromedp.WaitVisible(css(`form[action="/keys/remove"]`)))
	s.do("signing out", chromedp.Click(css(`main form[action="/signout"] button`)), on("/signin"))
	s.do("a page without a session", s.at("/grants/"+consoletest.GrantWrite), on("/signin"))
	in := css("form[data-signin] button")
	s.do("signing in", chromedp.WaitEnabled(in), chromedp.Click(in), on("/grants/"+consoletest.GrantWrite))
	sign := css("form[data-sign] button")
	s.do("approving", chromedp.WaitEnabled(sign), chromedp.Click(sign), chromedp.WaitVisible(css(".note.good")))
	g := s.grant(consoletest.GrantWrite)
	if g.State != wire.GrantApproved || len(g.Approvals) != 2 || g.Approvals[1].Kind != "passkey" || g.Approvals[1].Principal != consoletest.Me {
		t.Errorf("the grant is %s with %v", g.State, g.Approvals)
	}
}

func (s *sitting) grant(id string) wire.Grant {
	var out wire.Grant
	s.Engine.Grow(func(w *consoletest.World) {
		for _, g := range w.Grants {
			if g.ID == id {
				out = g
			}
		}
	})
	return out
}

// A second passkey needs the first one's word. The authenticator holds one
// passkey a person, so the second comes from another.
func TestASecondPasskeyIsVouchedFor(t *testing.T) {
	s := sit(t)
	s.do("a session", call(network.Enable, network.EnableParams{}), s.signedIn(), Authenticator(), s.at("/keys"))
	add := css("form[data-newkey] button")
	s.do("the first", chromedp.WaitEnabled(add), chromedp.Click(add), chromedp.WaitVisible(css(`form[action="/keys/remove"]`)))
	s.do("the same device again", chromedp.Click(add), chromedp.WaitVisible(css("form[data-newkey] [data-status].bad")))
	if said := ask[string](s, `document.querySelector("form[data-newkey] [data-status]").textContent`); !strings.Contains(said, "already") {
		t.Errorf("the page says %q", said)
	}
	s.do("removing it", chromedp.Click(css(`form[action="/keys/remove"] button`)), chromedp.WaitNotPresent(css(`form[action="/keys/remove"]`)))
}

// An emergency is reviewed with a signature over verdict and note.
func TestAReviewIsSigned(t *testing.T) {
	s := sit(t)
	add, sign := css("form[data-newkey] button"), css("form[data-review] button")
	s.do("a passkey", call(network.Enable, network.EnableParams{}), s.signedIn(), Authenticator(), s.at("/keys"), chromedp.WaitEnabled(add), chromedp.Click(add), chromedp.WaitVisible(css(`form[action="/keys/remove"]`)))
	s.do("reviewing", s.at("/grants/"+consoletest.GrantEmergency), chromedp.Click(css(`input[value="justified"]`)), chromedp.SendKeys(css(`form[data-review] textarea`), "The lock was real."),
		chromedp.WaitEnabled(sign), chromedp.Click(sign), chromedp.WaitVisible(css(".note.good")))
	if r := s.grant(consoletest.GrantEmergency).Review; !r.Done || r.Verdicts[0].Note != "The lock was real." {
		t.Errorf("review %+v", r)
	}
}

// Denying needs no script and no signature, but a reason.
func TestDenyingNeedsAReason(t *testing.T) {
	s := sit(t)
	s.do("denying", call(network.Enable, network.EnableParams{}), s.signedIn(), s.at("/grants/"+consoletest.GrantDeploy), chromedp.Click(css(".acts2 summary")),
		chromedp.SendKeys(css(`form[action$="/deny"] textarea`), "Not before the freeze ends."), chromedp.Click(css(`form[action$="/deny"] button`)), chromedp.WaitVisible(css(".note.good")))
	if s.Engine.Ended[consoletest.GrantDeploy] != "Not before the freeze ends." {
		t.Errorf("ended: %v", s.Engine.Ended)
	}
}

// An open page shows what has happened since, and does not lose the place of
// whoever works by keys.
func TestPagesAreLive(t *testing.T) {
	s := sit(t)
	s.do("the inbox", call(network.Enable, network.EnableParams{}), s.signedIn(), s.at("/"), chromedp.KeyEvent("j"), chromedp.KeyEvent("j"))
	if at := ask[string](s, `document.activeElement.getAttribute("href")`); at != "/grants/"+consoletest.GrantWrite {
		t.Errorf("j, j leads to %q", at)
	}
	s.Engine.Grow(func(w *consoletest.World) {
		g := w.Grants[0]
		g.ID, g.Purpose = "grt_new", "A new one"
		w.Grants = append(w.Grants, g)
	})
	s.do("what is new", chromedp.WaitVisible(css(`a[href="/grants/grt_new"]`)))
	if at := ask[string](s, `document.activeElement.getAttribute("href")`); at != "/grants/"+consoletest.GrantWrite {
		t.Errorf("after the change the focus is on %q", at)
	}
	s.do("opening it", chromedp.KeyEvent("\r"), on("/grants/"+consoletest.GrantWrite), chromedp.KeyEvent("?"), chromedp.WaitVisible(css("#help[open]")))
}

// Whatever can be used can be reached by the tab key, and is seen to be.
func TestFocusIsSeen(t *testing.T) {
	s := sit(t)
	s.do("a grant", call(network.Enable, network.EnableParams{}), s.signedIn(), Authenticator(), s.at("/grants/"+consoletest.GrantDeploy))
	seen := map[string]bool{}
	for range 60 {
		s.do("tab", chromedp.KeyEvent("\t"))
		got := ask[[]string](s, `(() => { const e = document.activeElement, c = getComputedStyle(e); return [e.tagName + " " + (e.getAttribute("href") || e.textContent.trim().slice(0, 30)), c.outlineStyle, c.outlineWidth] })()`)
		if strings.HasPrefix(got[0], "BODY") {
			continue
		}
		if !seen[got[0]] && (got[1] == "none" || got[2] == "0px") {
			t.Errorf("%s has the focus and shows nothing of it", got[0])
		}
		seen[got[0]] = true
	}
	for _, want := range []string{"A #main", "A /grants", "SUMMARY Deny…", "BUTTON Auto"} {
		if !seen[want] {
			t.Errorf("the tab key does not reach %s; it reaches %v", want, seen)
		}
	}
}

// No page is wider than a phone, and the browser finds nothing to refuse in
// any: no style, script or picture from where it must not come.
func TestPagesFitAPhoneAndKeepTheirPolicy(t *testing.T) {
	s := sit(t)
	s.Engine.AddFixedPasskey()
	s.do("a session", call(network.Enable, network.EnableParams{}), s.signedIn(), chromedp.EmulateViewport(360, 740))
	for _, shot := range shots() {
		if shot.guest {
			continue
		}
		s.do(shot.name, append([]step{s.at(shot.path), chromedp.WaitReady(css("main"))}, shot.before...)...)
		wide := ask[[]string](s, `[...document.querySelectorAll("body *")].filter((e) => e.getBoundingClientRect().right > 361 && !e.closest("nav, .hide, svg, dialog, pre, .diff")).map((e) => e.tagName + "." + e.className).slice(0, 5)`)
		if ask[float64](s, `document.documentElement.scrollWidth`) > 360 || len(wide) > 0 {
			t.Errorf("%s is wider than a phone: %v", shot.name, wide)
		}
		if n := ask[float64](s, `performance.getEntriesByType("resource").filter((r) => !r.name.startsWith(location.origin)).length`); n > 0 {
			t.Errorf("%s loads from elsewhere", shot.name)
		}
	}
}

// A page that somebody chose to see dark stays so, without a script.
func TestTheLookIsKept(t *testing.T) {
	s := sit(t)
	s.do("dark", s.at("/signin"), chromedp.Click(css(`button[value=dark]`)), chromedp.WaitVisible(css(`html[data-theme=dark] button[value=dark][aria-pressed=true]`)), s.at("/cluster"), chromedp.WaitReady(css(`html[data-theme=dark]`)))
	if bg := ask[string](s, `getComputedStyle(document.body).backgroundColor`); bg != "rgb(16, 20, 19)" {
		t.Errorf("the page is %s", bg)
	}
}
