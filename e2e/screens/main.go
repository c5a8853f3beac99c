package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"

	"github.com/mayfly-broker/mayfly/broker/api/console/consoletest"
)

// shot is one page to take a picture of.
type shot struct {
	name, path string
	// guest: without a session.
	guest bool
	// before prepares the page: opens what is folded, sends a form.
	before []step
}

// look is one way to look at it.
type look struct {
	name          string
	width, height int64
	dark          bool
}

var looks = []look{{"light", 1280, 800, false}, {"dark", 1280, 800, true}, {"phone", 360, 740, false}}

func shots() []shot {
	open := chromedp.Evaluate[chromedp.Void](`document.querySelectorAll("main details").forEach((d) => { d.open = true })`)
	return []shot{
		{name: "signin", path: "/signin", guest: true},
		{name: "signin-first", path: "/signin", guest: true, before: []step{open}},
		{name: "inbox", path: "/"},
		{name: "grant", path: "/grants/" + consoletest.GrantWrite},
		{name: "grant-open", path: "/grants/" + consoletest.GrantWrite, before: []step{open}},
		{name: "grant-change", path: "/grants/" + consoletest.GrantChange},
		{name: "grant-emergency", path: "/grants/" + consoletest.GrantEmergency},
		{name: "grant-own", path: "/grants/" + consoletest.GrantMine},
		{name: "grants", path: "/grants"},
		{name: "tasks", path: "/tasks"},
		{name: "task", path: "/tasks/" + consoletest.TaskRoot},
		{name: "leases", path: "/leases?state=all"},
		{name: "lease", path: "/leases/" + consoletest.LeaseEnded},
		{name: "principals", path: "/principals"},
		{name: "principal", path: "/principals/agent:billing-bot"},
		{name: "targets", path: "/targets"},
		{name: "target", path: "/targets/orders", before: []step{chromedp.Click(chromedp.CSS(`form[action$="/check"] button`)), chromedp.WaitVisible(chromedp.CSS(".checks"))}},
		{name: "rotations", path: "/rotations"},
		{name: "audit", path: "/audit"},
		{name: "decision", path: "/decisions/" + consoletest.DecisionDeny},
		{name: "policies", path: "/policies"},
		{name: "cluster", path: "/cluster"},
		{name: "keys", path: "/keys"},
		{name: "help", path: "/", before: []step{chromedp.Evaluate[chromedp.Void](`document.querySelector("#help").showModal()`)}},
		{name: "problem", path: "/grants/grt_that_is_not_there"},
	}
}

// empties are the pages of a cluster in which nothing has happened yet.
func empties() []shot {
	return []shot{
		{name: "empty-inbox", path: "/"}, {name: "empty-tasks", path: "/tasks"}, {name: "empty-leases", path: "/leases"}, {name: "empty-targets", path: "/targets"},
		{name: "empty-rotations", path: "/rotations"}, {name: "empty-policies", path: "/policies"}, {name: "empty-principals", path: "/principals"}, {name: "empty-audit", path: "/audit"}, {name: "empty-keys", path: "/keys"},
		{name: "sealed", path: "/cluster", guest: true},
	}
}

func main() {
	out := flag.String("out", ".cache/screens", "directory for the pictures")
	only := flag.String("only", "", "part of the names of those to take")
	flag.Parse()
	if err := run(*out, *only); err != nil {
		fmt.Fprintln(os.Stderr, "screens:", err)
		os.Exit(1)
	}
}

func run(out, only string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	now := time.Now()
	stage, err := NewStage(func() time.Time { return now.Add(time.Since(now)) })
	if err != nil {
		return err
	}
	defer stage.Close()
	stage.Engine.AddFixedPasskey()
	page, end, err := stage.Browse(ctx)
	if err != nil {
		return err
	}
	defer end()
	if err := album(page, stage, shots(), out, only); err != nil {
		return err
	}
	bare, err := NewStage(time.Now)
	if err != nil {
		return err
	}
	defer bare.Close()
	bare.Engine.World = consoletest.World{Status: stage.Engine.World.Status}
	other, stop, err := bare.Browse(ctx)
	if err != nil {
		return err
	}
	defer stop()
	return album(other, bare, empties(), out, only)
}

// album takes each picture in each look.
func album(page context.Context, stage *Stage, shots []shot, out, only string) error {
	for _, s := range shots {
		if !strings.Contains(s.name, only) {
			continue
		}
		sealed := s.name == "sealed"
		stage.Engine.Grow(func(w *consoletest.World) {
			w.Status.Sealed, w.Status.Threshold, w.Status.Total, w.Status.Have, w.Status.Fresh = sealed, 3, 5, 1, !sealed
		})
		for _, l := range looks {
			if err := take(page, stage, s, l, filepath.Join(out, s.name+"-"+l.name+".png")); err != nil {
				return fmt.Errorf("%s, %s: %w", s.name, l.name, err)
			}
		}
	}
	return nil
}

func take(page context.Context, stage *Stage, s shot, l look, file string) error {
	ctx, cancel := context.WithTimeout(page, 30*time.Second)
	defer cancel()
	scheme := "light"
	if l.dark {
		scheme = "dark"
	}
	steps := []step{
		call(network.ClearBrowserCookies, cdp.Empty{}),
		call(emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: l.width, Height: l.height, DeviceScaleFactor: 1, Mobile: l.width < 500}),
		call(emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
			{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"}}}),
	}
	if !s.guest {
		steps = append(steps, stage.signedIn())
	}
	steps = append(steps, chromedp.Navigate(stage.URL+s.path), chromedp.WaitReady(chromedp.CSS("main")))
	if err := chromedp.Do(ctx, append(steps, s.before...)...); err != nil {
		return err
	}
	picture, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
	if err != nil {
		return err
	}
	return os.WriteFile(file, picture, 0o644)
}

// signedIn gives the browser a session's cookie.
func (s *Stage) signedIn() step {
	yes := true
	return call(network.SetCookie, network.SetCookieParams{Name: "__Host-mayfly", Value: s.Engine.Open(consoletest.Me, "cookie"), URL: s.URL, Path: "/",
		Secure: &yes, HTTPOnly: &yes, SameSite: network.CookieSameSiteStrict})
}
