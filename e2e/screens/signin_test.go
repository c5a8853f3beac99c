package main

import (
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/mayfly-broker/mayfly/broker/api/console/consoletest"
	"github.com/mayfly-broker/mayfly/e2e/harness"
)

// A person goes to the provider and comes back, from another site, to the page
// that was wanted. The browser keeps every cookie's rules.
func TestAPersonSignsInByAProvider(t *testing.T) {
	stage, err := NewStage(time.Now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stage.Close)
	dir := t.TempDir()
	ca := harness.NewCA(t, dir)
	issuer := harness.StartIssuer(t, ca, dir)
	stage.Trust(issuer.SPKI)
	stage.Engine.Providers = []consoletest.Provider{{Name: "corp", Secret: harness.ConsoleSecret, Spec: map[string]any{
		"type": "oidc", "issuer": issuer.URL, "audience": "https://mayfly.example", "ca": ca.PEM, "console": map[string]any{"client_id": harness.ConsoleClient},
		"bind": []any{map[string]any{"when": map[string]string{"sub": "kim"}, "as": consoletest.Me}}}}}
	page, end, err := stage.Browse(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(end)
	s := &sitting{Stage: stage, t: t, page: page}
	leave := css(`form[action="/signin/oidc"] button`)
	s.do("leaving", s.at("/"), on("/signin"), chromedp.WaitVisible(leave), chromedp.Click(leave), on("/authorize"))
	s.do("coming back", chromedp.Click(css("#kim")), on("/"), chromedp.WaitVisible(css("header.side")))
	if got := ask[string](s, `document.cookie`); got != "" {
		t.Errorf("scripts see a cookie: %q", got)
	}
	if at := ask[string](s, `location.origin + document.title`); at == "" || ask[string](s, `location.origin`) != stage.URL {
		t.Errorf("the browser is at %q", at)
	}
	// The answer of a sign-in that this browser did not begin.
	s.do("signing out", s.at("/keys"), chromedp.Click(css(`main form[action="/signout"] button`)), on("/signin"))
	s.do("another's answer", s.at("/signin/oidc/callback?code=x&state=y"), chromedp.WaitVisible(css(`form[action="/signin/oidc"] button`)))
	s.do("nobody is signed in", s.at("/"), on("/signin"))
}
