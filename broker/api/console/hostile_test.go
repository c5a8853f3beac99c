package console_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker/api/console"
	"github.com/mayfly-broker/mayfly/broker/api/console/consoletest"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// hostile is a text that breaks out of whatever is careless: markup, attributes,
// scripts, and characters that rearrange or hide.
const hostile = "</title></textarea><script>alert(1)</script><img src=x onerror=alert(2)>\" autofocus onfocus='alert(3)' {{.CSRF}} javascript:alert(4) \u202eevil\u202c \u200bz\u00a0w\x00\x07\u2066\ufeff\u3164 z\u0300\u0301\u0302\u0303\u0304"

// poison puts the text into every name, purpose and reason of the world.
func poison(w *consoletest.World) {
	s := hostile
	for i := range w.Grants {
		g := &w.Grants[i]
		g.Purpose, g.Reason, g.EndReason, g.WhyNot, g.Role, g.EndedBy = s, s, s, s, "orders/"+s, "human:"+s
		for j := range g.Needs {
			g.Needs[j].Group = s
		}
		for j := range g.Approvals {
			g.Approvals[j].Principal, g.Approvals[j].Kind, g.Approvals[j].Why, g.Approvals[j].Counts = "human:"+s, s, s, false
		}
		g.Principal = "agent:" + s
		if g.Review != nil {
			g.Review.Verdicts = append(g.Review.Verdicts, wire.Verdict{Principal: "human:" + s, Verdict: s, Note: s, At: time.Now()})
		}
		g.Opens = &wire.Opens{Account: s, Usernames: []string{s, s}, Target: s, System: s, Secret: s}
		g.Document = poisoned(g.Document)
	}
	for i := range w.Tasks {
		t := &w.Tasks[i]
		t.Name, t.Purpose, t.EndReason, t.Principal = s, s, s, "agent:"+s
	}
	for i := range w.Leases {
		l := &w.Leases[i]
		l.Role, l.Username, l.Purpose, l.Problem, l.EndReason, l.Instance, l.Principal = s, s, s, s, s, s, "agent:"+s
		l.Receipt = json.RawMessage(`{"said":` + string(quote(s)) + `}`)
	}
	for i := range w.Objects {
		o := &w.Objects[i]
		o.ChangedBy = "human:" + s
		o.Spec = poisoned(o.Spec)
		if o.Kind == "Policy" || o.Kind == "Role" {
			o.Name += s
		}
	}
	for id, d := range w.Decisions {
		d.Text, d.Actor, d.Command = s+"\n"+s, "agent:"+s, s
		w.Decisions[id] = d
	}
	for i := range w.Entries {
		w.Entries[i].Actor, w.Entries[i].Result, w.Entries[i].Type = "agent:"+s, s, s
	}
	for i := range w.Findings {
		w.Findings[i].Name, w.Findings[i].Detail, w.Findings[i].Fix = s, s, s
	}
	for i := range w.Rotations {
		r := &w.Rotations[i]
		r.Name, r.Username, r.Problem, r.Reason, r.Wanted, r.State = s, s, s, s, s, s
		if r.Kind != "Target" { // or its target's page would not show it
			r.Target = s
		}
	}
	for i := range w.Plugins {
		p := &w.Plugins[i]
		p.Node, p.SHA256, p.Registered, p.Problem = s, s, s, s
	}
	w.Rotations = append(w.Rotations, wire.Rotation{Kind: s, Name: s, Target: "orders", State: s, Problem: s})
	w.Plugins = append(w.Plugins, wire.NodePlugin{Name: "postgres", Node: s, Problem: s, Running: true, SHA256: s})
	for i := range w.Peers {
		w.Peers[i].ID, w.Peers[i].Addr = s, s
	}
	w.Status.Cluster, w.Status.Version, w.Status.Leader, w.Status.Node = s, s, s, s
	w.GroupsOf[consoletest.Me] = []string{s}
}

func quote(s string) []byte { b, _ := json.Marshal(s); return b }

// poisoned puts the text behind every string of a document but the ones that
// the page reads it by.
func poisoned(raw json.RawMessage) json.RawMessage {
	var v any
	if json.Unmarshal(raw, &v) != nil {
		return raw
	}
	var walk func(v any) any
	walk = func(v any) any {
		switch v := v.(type) {
		case map[string]any:
			for k := range v {
				if k != "type" && k != "grant_id" && k != "scope" && k != "owner" && k != "until" {
					v[k] = walk(v[k])
				}
			}
			return v
		case []any:
			for i := range v {
				v[i] = walk(v[i])
			}
			return v
		case string:
			return v + hostile
		}
		return v
	}
	out, _ := json.Marshal(walk(v))
	return out
}

// Nothing that a requester wrote is markup, and nothing hides.
func TestHostileTextStaysText(t *testing.T) {
	d := newDesk(t)
	d.Grow(poison)
	pages := append([]string{"/grants?principal=" + url.QueryEscape(hostile), "/audit?actor=" + url.QueryEscape(hostile), "/leases?target=" + url.QueryEscape(hostile),
		"/signin?to=" + url.QueryEscape("/"+hostile), "/decisions/" + url.PathEscape(hostile), "/principals/" + url.PathEscape(hostile)}, every...)
	for _, path := range pages {
		_, body := d.do(d.get(path))
		checkClean(t, path, body)
	}
	for path, fields := range map[string]url.Values{
		"/targets/orders/check": {}, "/policies/test": {"draft": {hostile}, "cases": {"[" + hostile}, "name": {hostile}},
		"/grants/" + consoletest.GrantWrite + "/approve": {"hash": {hostile}, "key": {hostile}},
		"/grants/" + consoletest.GrantWrite + "/review":  {"verdict": {hostile}, "reason": {hostile}},
	} {
		fields.Set("csrf", d.csrf())
		_, body := d.do(d.post(path, fields))
		checkClean(t, path, body)
	}
}

func checkClean(t *testing.T, path, body string) {
	t.Helper()
	// The one script and the one title are the page's own.
	for _, bad := range []string{"<script>", "<img", "<textarea><", "</title></textarea>", `" autofocus onfocus`, "href=\"javascript:"} {
		if strings.Contains(body, bad) {
			t.Errorf("%s: %q got through", path, bad)
		}
	}
	if n := strings.Count(body, "<script"); n > 1 {
		t.Errorf("%s has %d scripts", path, n)
	}
	for i, r := range body {
		if r != '\n' && (r < ' ' || r == 0x7f || strings.ContainsRune("\u202e\u202c\u200b\u00a0\u2066\ufeff\u3164", r)) {
			t.Errorf("%s: %U stands in the page: …%s", path, r, body[max(0, i-60):i])
			return
		}
	}
	if strings.Contains(body, "\u0302\u0303") {
		i := strings.Index(body, "\u0302\u0303")
		t.Errorf("%s: marks are piled up: %q", path, body[max(0, i-200):i+20])
	}
}

func TestOddCharactersAreSpeltOut(t *testing.T) {
	for in, want := range map[string]string{
		"plain näïve 名前 🙂": "plain näïve 名前 🙂", "a\u202eb": `a\u{202e}b`, "a\nb\tc\rd": `a\nb\tc\rd`, "\x00\x1b": `\u{0000}\u{001b}`,
		"x\u00a0y": `x\u{00a0}y`, "\xff": `\xff`, "\ufffd": "\ufffd", "ㅤ": `\u{3164}`, "e\u0301": "e\u0301", "e\u0301\u0301\u0301": "e\u0301\u0301" + `\u{0301}`,
		"\U000e0041": `\u{e0041}`, "a\u00adb": `a\u{00ad}b`,
	} {
		if got := console.Visible(in); got != want {
			t.Errorf("%q reads %q, want %q", in, got, want)
		}
	}
}

// A page's own address and errors are hostile, too.
func TestProblemsAreShownAsText(t *testing.T) {
	d := newDesk(t)
	res, body := d.do(d.get("/grants/" + url.PathEscape("<b>x</b>\u202e")))
	if res.StatusCode != http.StatusNotFound || strings.Contains(body, "<b>x") || !strings.Contains(body, `\u{202e}`) {
		t.Errorf("%d\n%s", res.StatusCode, body)
	}
}
