package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/e2e/harness"
	"github.com/mayfly-broker/mayfly/issuers/postgres/pgtest"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// roles are a database's: one that two people of dba must agree to, and that a
// person may break the glass for; and one whose requester must sign.
const roles = `kind: Principal
name: "human:bo"
---
kind: Principal
name: "human:kim"
---
kind: Principal
name: "human:ann"
---
kind: Group
name: dba
spec: {members: [{name: "human:bo"}, {name: "human:kim"}]}
---
kind: Role
name: orders/privileged
spec:
  scope: [{type: database, identifier: orders, actions: [select, update], tables: [{name: "public.*"}]}]
  ttl: {default: 10m, max: 1h}
  approvals: [{group: dba, count: 2}]
  emergency: {max_ttl: 15m, review: [{group: dba, count: 2}]}
---
kind: Role
name: orders/signed
spec:
  scope: [{type: database, identifier: orders, actions: [select], tables: [{name: "public.*"}]}]
  ttl: {default: 10m, max: 1h}
`

const mayAsk = `@id("may-ask") permit (principal, action == Action::"request", resource == Role::"orders/privileged");
@id("signs-again") @step_up("passkey")
permit (principal, action == Action::"request", resource == Role::"orders/signed");
`

// house is a real node with a real database behind it, and a browser at its
// console. Kim sits at a command line and has a key file.
type house struct {
	*sitting
	dir        string
	pg         *pgtest.Server
	admin, kim harness.CLI
	complaints *complaints
}

func newHouse(t *testing.T) *house {
	t.Helper()
	h := &house{dir: t.TempDir(), pg: pgtest.Start(t), complaints: &complaints{}}
	dev := harness.StartDev(t)
	h.admin = dev.Operator
	harness.Database(t, h.pg, h.admin, h.dir, "orders")
	h.admin.Apply(t, roles)
	h.admin.ApplyPolicy(t, h.dir, "ask", mayAsk)
	h.kim = h.admin.Redeem(t, h.dir, "human:kim", h.token(t, "human:kim"))
	h.kim.Must(t, "key", "add", "--use", "approve")

	stage := consoleOf(t, dev)
	page, end, err := stage.Browse(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(end)
	h.sitting = &sitting{Stage: stage, t: t, page: page}
	if err := chromedp.Listen(page, h.complaints.hear); err != nil {
		t.Fatal(err)
	}
	h.do("listening to the browser's log", call(cdplog.Enable, cdp.Empty{}), call(runtime.Enable, cdp.Empty{}), Authenticator())
	return h
}

func (h *house) token(t *testing.T, principal string) string {
	t.Helper()
	return strings.TrimSpace(h.admin.Must(t, "principal", "enroll", principal, "--field", "token"))
}

// consoleOf is the node's, under its name. The browser is told of one certificate
// alone: the one that the node shows, once it was verified for that name against
// the node's own CA, as a browser that trusts the CA would.
func consoleOf(t *testing.T, dev *harness.Dev) *Stage {
	t.Helper()
	u, err := url.Parse(dev.URL)
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(dev.Operator.Getenv("MAYFLY_CACERT"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		t.Fatal("the CA's file holds no certificate")
	}
	d := tls.Dialer{Config: &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS13}}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	conn, err := d.DialContext(ctx, "tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	leaf := conn.(*tls.Conn).ConnectionState().VerifiedChains[0][0]
	sum := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	return &Stage{URL: "https://localhost:" + u.Port(), spki: base64.StdEncoding.EncodeToString(sum[:])}
}

// complaints are what a browser logs of pages: what their policy made it refuse,
// what did not load, what a script died of.
type complaints struct {
	mu    sync.Mutex
	heard []string
}

func (c *complaints) hear(ev any) {
	text := ""
	switch ev := ev.(type) {
	case *cdplog.EventEntryAdded:
		if ev.Entry.Level == cdplog.EntryLevelError || ev.Entry.Source == cdplog.EntrySourceSecurity {
			text = fmt.Sprintf("%s: %s (%s)", ev.Entry.Source, ev.Entry.Text, ev.Entry.URL)
		}
	case *runtime.EventExceptionThrown:
		text = "script: " + ev.ExceptionDetails.Text
	}
	if text != "" {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.heard = append(c.heard, text)
	}
}

func (c *complaints) all() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.heard)
}

// noComplaints fails if the browser had any; then it shows that it would have
// told, by a page that does break its policy.
func (h *house) noComplaints() {
	h.t.Helper()
	if heard := h.complaints.all(); len(heard) > 0 {
		h.t.Errorf("the browser complains: %q", heard)
	}
	h.do("a foreign style", chromedp.Evaluate[chromedp.Void](`document.head.append(Object.assign(document.createElement("style"), {textContent: "body { color: red }"}))`))
	harness.Within(h.t, 20*time.Second, "the browser tells of a broken policy", func() error {
		if heard := h.complaints.all(); !slices.ContainsFunc(heard, func(s string) bool { return strings.Contains(s, "Content Security Policy") }) {
			return fmt.Errorf("heard %q", heard)
		}
		return nil
	})
}

// enrol signs a person in with a token and gives them a passkey, as they do it
// the first time; then out, and in again with the passkey.
func (h *house) enrol(principal string) {
	h.t.Helper()
	add, in := css("form[data-newkey] button"), css("form[data-signin] button")
	h.do(principal+" redeems the token", h.at("/"), on("/signin"), chromedp.Click(css("details summary")), chromedp.SendKeys(css("textarea[data-token]"), h.token(h.t, principal)),
		chromedp.Click(css(`form[action="/signin/enrol"] button`)), on("/keys"))
	h.do("adding a passkey", chromedp.WaitEnabled(add), chromedp.Click(add), chromedp.WaitVisible(css(`form[action="/keys/remove"]`)))
	h.do("signing out", chromedp.Click(css(`main form[action="/signout"] button`)), on("/signin"))
	h.do("signing in with the passkey", chromedp.WaitEnabled(in), chromedp.Click(in), on("/"))
	if who := ask[string](h.sitting, `document.querySelector(".meline").textContent`); !strings.Contains(who, strings.TrimPrefix(principal, "human:")) {
		h.t.Errorf("signed in as %q", who)
	}
}

// sign presses a grant's button for a passkey's signature, on the page that is open.
func (h *house) sign(what string) {
	h.t.Helper()
	button := css("form[data-sign] button")
	h.do(what, chromedp.WaitEnabled(button), chromedp.Click(button), chromedp.WaitVisible(css(".note.good")))
}

// client is a program that asks and waits.
type client struct {
	cmd         *exec.Cmd
	out, said   bytes.Buffer // read once it has ended
	done        chan struct{}
	terminal    error
	description string
}

// start runs a command that ends with the test at the latest.
func start(t *testing.T, as harness.CLI, args ...string) *client {
	t.Helper()
	c := &client{cmd: exec.CommandContext(t.Context(), harness.Binary(t), args...), done: make(chan struct{}), description: strings.Join(args, " ")}
	c.cmd.Env, c.cmd.Stdout, c.cmd.Stderr, c.cmd.WaitDelay = as.Environ(), &c.out, &c.said, 5*time.Second
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { defer close(c.done); c.terminal = c.cmd.Wait() }()
	t.Cleanup(func() { <-c.done }) // its context has ended by then
	return c
}

func (c *client) running() bool {
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

// answer waits for the end and reads what was printed.
func (c *client) answer(t *testing.T, within time.Duration) (a wire.AccessAnswer) {
	t.Helper()
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case <-c.done:
	case <-timer.C:
		t.Fatalf("mayfly %s has not ended within %s", c.description, within)
	}
	if c.terminal != nil {
		t.Fatalf("mayfly %s: %v\n%s%s", c.description, c.terminal, c.out.String(), c.said.String())
	}
	if err := json.Unmarshal(c.out.Bytes(), &a); err != nil {
		t.Fatalf("mayfly %s prints no JSON: %v\n%s", c.description, err, c.out.String())
	}
	return a
}

// waiting is the one grant that waits for somebody at a command line.
func waiting(t *testing.T, as harness.CLI) (g wire.Grant) {
	t.Helper()
	harness.Within(t, 60*time.Second, "a grant waits", func() error {
		var list []wire.Grant
		as.JSON(t, &list, "grant", "list", "--pending")
		if len(list) != 1 {
			return fmt.Errorf("%d grants wait", len(list))
		}
		as.JSON(t, &g, "grant", "show", list[0].ID)
		return nil
	})
	return g
}

// cutOff waits until the server itself has ended a session.
func cutOff(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	harness.Within(t, 30*time.Second, "the session is ended", func() error {
		_, err := conn.Exec(t.Context(), "SELECT 1")
		var said *pgconn.PgError
		switch {
		case errors.As(err, &said) && said.Code == "57P01":
			return nil
		case err != nil:
			t.Fatalf("the session ended by something else than the server's word: %v", err)
		}
		return errors.New("it goes on")
	})
}

// The whole way of an approval, with nothing played: a real node and database, a
// person at a real browser with a passkey, another at a command line, and a
// program that has been waiting for both.
func TestARealPersonApprovesInTheBrowser(t *testing.T) {
	h := newHouse(t)
	worker := h.admin.Enrol(t, h.dir, "workload:billing")
	program := start(t, worker, "request", "orders/privileged", "--purpose", "quarter's end", "--wait", "2m", "-o", "json")
	g := waiting(t, h.kim)

	h.enrol("human:bo")
	row := css(`#pending a[href="/grants/` + g.ID + `"]`)
	h.do("opening it from the inbox", chromedp.WaitVisible(row), chromedp.Click(row), on("/grants/"+g.ID))
	if u, err := url.Parse(g.URL); err != nil || "https://"+u.Host != h.URL || u.Path != "/grants/"+g.ID {
		t.Errorf("the command line sends people to %s; the page with the passkeys is under %s", g.URL, h.URL)
	}
	large := ask[string](h.sitting, `document.querySelector(".hash .mono b").textContent.replaceAll(" ", "")`)
	whole := large + ask[string](h.sitting, `document.querySelector(".hash .mono span").textContent`)
	if len(large) != 16 || whole != g.Hash {
		t.Fatalf("the page shows the hash %s, the command line %s", whole, g.Hash)
	}
	h.sign("bo approves")
	if !program.running() {
		t.Fatalf("one of two was enough: %s%s", program.out.String(), program.said.String())
	}
	h.kim.Must(t, "grant", "approve", g.ID, "--hash", large)

	a := program.answer(t, 60*time.Second)
	if a.Status != "issued" || a.GrantID != g.ID {
		t.Fatalf("the answer is %s on %s: %s", a.Status, a.GrantID, program.out.String())
	}
	conn, err := harness.Login(t, a.Credential["url"])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), "UPDATE people SET salary = salary + 1"); err != nil {
		t.Errorf("what was approved is refused: %v", err)
	}
	var who wire.Whohas
	h.admin.JSON(t, &who, "whohas", a.Credential["username"])
	slices.Sort(who.Approvals)
	if !slices.Equal(who.Approvals, []string{"human:bo", "human:kim"}) || who.Principal != "workload:billing" {
		t.Errorf("whohas says %s, approved by %v", who.Principal, who.Approvals)
	}
	h.admin.JSON(t, &g, "grant", "show", g.ID)
	kinds := map[string]string{}
	for _, s := range g.Approvals {
		kinds[s.Principal] = s.Kind
	}
	if kinds["human:bo"] != "passkey" || kinds["human:kim"] != "ssh" {
		t.Errorf("signed with %v", kinds)
	}

	h.do("bo revokes", h.at("/grants/"+g.ID), chromedp.Click(css("details.acts2 summary")), chromedp.SendKeys(css(`form[action$="/revoke"] textarea`), "wrong table"),
		chromedp.Click(css(`form[action$="/revoke"] button`)), chromedp.WaitVisible(css(".note.good")))
	cutOff(t, conn)
	harness.NothingLeft(t, harness.Postgres{Server: h.pg}, 30*time.Second)
	h.noComplaints()
}

// A policy asks for the requester's own passkey: they ask at a command line,
// sign in the browser, and collect.
func TestARequesterStepsUpInTheBrowser(t *testing.T) {
	h := newHouse(t)
	ann := h.admin.Redeem(t, h.dir, "human:ann", h.token(t, "human:ann"))
	r := ann.Run(t, "request", "orders/signed", "--purpose", "a look", "-o", "json")
	var a wire.AccessAnswer
	if err := json.Unmarshal([]byte(r.Stdout), &a); err != nil || r.Code != 4 {
		t.Fatalf("exit %d, %v: %s%s", r.Code, err, r.Stdout, r.Stderr)
	}
	if a.StepUp != "passkey" || !strings.HasPrefix(a.URL, h.URL+"/") {
		t.Errorf("the answer does not say who must sign with what and where: %s", r.Stdout)
	}
	if r := ann.Run(t, "grant", "collect", a.GrantID); r.Code != 4 {
		t.Fatalf("collected without the step-up: exit %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	h.enrol("human:ann")
	h.do("the page that the answer names", chromedp.Navigate(a.URL), on("/grants/"+a.GrantID))
	h.sign("ann signs")
	ann.JSON(t, &a, "grant", "collect", a.GrantID)
	conn, err := harness.Login(t, a.Credential["url"])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), "SELECT * FROM people"); err != nil {
		t.Error(err)
	}
	h.noComplaints()
}

// A browser cannot use a key file, so it cannot let one vouch for a passkey. The
// page says so before anything is made, and what to do.
func TestAKeyFileCannotVouchInTheBrowser(t *testing.T) {
	h := newHouse(t)
	add := css("form[data-newkey] button")
	h.do("kim redeems a token", h.at("/"), on("/signin"), chromedp.Click(css("details summary")), chromedp.SendKeys(css("textarea[data-token]"), h.token(t, "human:kim")),
		chromedp.Click(css(`form[action="/signin/enrol"] button`)), on("/keys"))
	h.do("adding a passkey", chromedp.WaitEnabled(add), chromedp.Click(add), chromedp.WaitVisible(css("form[data-newkey] [data-status].bad")))
	if said := ask[string](h.sitting, `document.querySelector("form[data-newkey] [data-status]").textContent`); !strings.Contains(said, "mayfly key remove") {
		t.Errorf("the page says %q", said)
	}
	var keys []wire.Key
	h.kim.JSON(t, &keys, "key", "list", "--use", "approve")
	if len(keys) != 1 {
		t.Fatalf("kim's keys: %+v", keys)
	}
	h.kim.Must(t, "key", "remove", keys[0].Thumbprint)
	h.do("adding it now", chromedp.WaitEnabled(add), chromedp.Click(add), chromedp.WaitVisible(css(`form[action="/keys/remove"]`)))
}

// An emergency is begun alone and answered for: one reviewer signs in the
// browser, the other at a command line.
func TestAnEmergencyIsReviewedInTheBrowser(t *testing.T) {
	h := newHouse(t)
	var a wire.AccessAnswer
	h.admin.JSON(t, &a, "request", "orders/privileged", "--purpose", "orders are stuck", "--emergency", "--reason", "checkout is down")
	if _, err := harness.Login(t, a.Credential["url"]); err != nil {
		t.Fatal(err)
	}
	h.enrol("human:bo")
	row, sign := css(`#reviews a[href="/grants/`+a.GrantID+`"]`), css("form[data-review] button")
	h.do("opening it from the inbox", chromedp.WaitVisible(row), chromedp.Click(row), on("/grants/"+a.GrantID))
	h.do("bo reviews", chromedp.Click(css(`input[value="justified"]`)), chromedp.SendKeys(css(`form[data-review] textarea`), "Page 7731, seen it."),
		chromedp.WaitEnabled(sign), chromedp.Click(sign), chromedp.WaitVisible(css(".note.good")))
	var g wire.Grant
	h.kim.JSON(t, &g, "grant", "show", a.GrantID)
	if g.Review == nil || g.Review.Done || len(g.Review.Verdicts) != 1 || g.Review.Verdicts[0].Principal != "human:bo" || g.Review.Verdicts[0].Note != "Page 7731, seen it." {
		t.Fatalf("after bo: %+v", g.Review)
	}
	h.kim.Must(t, "grant", "review", a.GrantID, "--verdict", "justified", "--note", "so did I", "--hash", g.Hash[:16])
	h.admin.JSON(t, &g, "grant", "show", a.GrantID)
	if g.Review == nil || !g.Review.Done {
		t.Errorf("after both: %+v", g.Review)
	}
	// The page that is open shows it by itself.
	h.do("what has changed", chromedp.WaitVisible(css("#review .under + .under")))
	h.noComplaints()
}
