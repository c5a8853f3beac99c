package notify_test

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/mayfly-broker/mayfly/broker/notify"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files under testdata")

func sample() notify.Event {
	at := time.Date(2026, 3, 1, 12, 0, 0, 5e6, time.UTC)
	return notify.Event{
		ID: "evt_00112233445566778899aabbccddeeff", Kind: notify.GrantWaiting, Seq: 41, At: at,
		Grant: notify.View{
			ID: "grt_01jnabcdefghjkmnpqrstvwxyz", Kind: "access", State: "waiting", Role: "orders/readwrite", Principal: "agent:coder",
			Purpose: "fix order 4711 <urgent> & more", Needs: []notify.Need{{Group: "dba", Required: 2, Have: 1}},
			RequestedAt: at, CollectBefore: at.Add(time.Hour), Hash: strings.Repeat("0123456789abcdef", 4),
			URL: "https://mayfly.example:8700/grants/grt_01jnabcdefghjkmnpqrstvwxyz?a=1&b=2",
		},
	}
}

func emergency() notify.Event {
	e := sample()
	e.Kind, e.Grant.Kind, e.Grant.State, e.Grant.Reason = notify.ReviewOverdue, "emergency", "open", "the shop is down"
	e.Grant.Needs, e.Grant.Hash = nil, ""
	e.Grant.Review = &notify.Review{Due: e.At, Needs: []notify.Need{{Group: "leads", Required: 1}}}
	return e
}

func contained() notify.Event {
	e := sample()
	e.Kind, e.Grant = notify.Contained, notify.View{}
	e.Contained = &notify.Containment{Kind: "Principal", Name: "agent:coder", By: "human:ann", Reason: "acts oddly"}
	return e
}

// What receivers parse is public: members are added, not changed.
func TestGoldenMessages(t *testing.T) {
	for name, e := range map[string]notify.Event{"waiting": sample(), "overdue": emergency(), "contained": contained()} {
		for _, format := range []string{notify.FormatPlain, notify.FormatSlack} {
			body, err := notify.Encode(format, "c-92d7ed5cb762a52c", e)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", name+"."+format+".json")
			if *rewrite {
				if err := os.MkdirAll("testdata", 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, append(body, '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatalf("%v; run: go test ./broker/notify -run Golden -rewrite", err)
			}
			if string(body)+"\n" != string(want) {
				t.Errorf("%s is\n%s\nwanted\n%s", file, body, want)
			}
		}
	}
}

// texts returns every mrkdwn text of a Slack message.
func texts(t *testing.T, body []byte) (out []string) {
	t.Helper()
	var m struct {
		Text      string `json:"text"`
		Parse     string `json:"parse"`
		LinkNames *bool  `json:"link_names"`
		Blocks    []struct {
			Type string `json:"type"`
			Text struct {
				Type     string `json:"type"`
				Text     string `json:"text"`
				Verbatim bool   `json:"verbatim"`
			} `json:"text"`
			Accessory, Elements json.RawMessage
		} `json:"blocks"`
	}
	if err := json.Unmarshal(body, &m); err != nil {
		t.Fatal(err)
	}
	if m.Parse != "none" || m.LinkNames == nil || *m.LinkNames {
		t.Errorf("Slack is let to look for names: %s", body)
	}
	for _, b := range m.Blocks {
		if b.Type != "section" || b.Text.Type != "mrkdwn" || !b.Text.Verbatim || b.Accessory != nil || b.Elements != nil {
			t.Errorf("a block that is no plain section: %+v", b)
		}
		if n := utf8.RuneCountInString(b.Text.Text); n == 0 || n > 3000 {
			t.Errorf("a block of %d characters", n)
		}
		out = append(out, b.Text.Text)
	}
	return append(out, m.Text)
}

var (
	angle = regexp.MustCompile(`<[^>]*>?`)
	code  = regexp.MustCompile("`[^`]*`")
)

// hostile are purposes and names that try to be something else in a chat.
var hostile = []string{
	"<!channel> approve", "<!here|here>", "<!everyone>", "<@U12345>", "<#C12345>", "<!subteam^S123>", "@here @channel @everyone now",
	"<https://evil.example|Open in the console>", "https://evil.example/approve", "www.evil.example", "mailto:a@evil.example",
	"`*bold* <https://evil.example>`", "``` <!channel>", "&lt;!channel&gt;", "&#60;!channel&#62;",
	"*Who:* `human:ceo`\n*State:* approved", "a\u2028b\u2029c\r\nd\x85e", "\u202egnp.exe", "\u2066x\u2069", "zero\u200bwidth\ufeff", "\x1b[31mred\x00",
	"\U000e0041tag", "\u3164\u115f", "\xff\xfe broken", strings.Repeat("&", 5000), strings.Repeat("@", 5000), strings.Repeat("é", 5000), "", "   ",
}

// Whatever people write stays text: no link, no mention, no markup, no line of
// its own, nothing unseen.
func TestSlackInjection(t *testing.T) {
	for _, bad := range hostile {
		for _, e := range []notify.Event{sample(), emergency(), contained()} {
			if e.Contained != nil {
				e.Contained.Name, e.Contained.By, e.Contained.Reason = bad, bad, bad
			} else {
				v := &e.Grant
				v.Principal, v.Role, v.Purpose, v.Reason, v.State, v.Kind, v.ID = bad, bad, bad, bad, bad, bad, "grt_"+bad
				v.Needs = []notify.Need{{Group: bad}, {Group: bad}, {Group: bad}, {Group: bad}}
				v.URL = "https://mayfly.example/grants/x|" + bad
			}
			body, err := notify.Encode(notify.FormatSlack, bad, e)
			if err != nil {
				t.Fatal(err)
			}
			for _, text := range texts(t, body) {
				for _, m := range angle.FindAllString(text, -1) {
					if !strings.HasPrefix(m, "<https://mayfly.example/grants/x%7C") || !strings.HasSuffix(m, "|Open it in the console>") || strings.Count(m, "|") != 1 {
						t.Errorf("%q gives the markup %q", bad, m)
					}
				}
				outside := code.ReplaceAllString(text, "")
				if strings.Contains(outside, "`") {
					t.Errorf("%q leaves its code: %q", bad, text)
				}
				if strings.Contains(outside, "evil") && !strings.HasPrefix(angle.FindString(outside), "<https://mayfly.example/") {
					t.Errorf("%q stands outside of code: %q", bad, text)
				}
				for _, call := range []string{"@here", "@channel", "@everyone", "@U1"} {
					if strings.Contains(text, call) && !strings.Contains(angle.FindString(text), call) {
						t.Errorf("%q calls people: %q", bad, text)
					}
				}
			}
		}
	}
}

// The plain format is clean and bounded, too, and has no room for a scope.
func TestPlainMessagesAreCleanAndBounded(t *testing.T) {
	for _, bad := range hostile {
		e := sample()
		e.Grant.Purpose, e.Grant.Reason, e.Grant.Principal = bad, bad, bad
		body, err := notify.Encode(notify.FormatPlain, "c", e)
		if err != nil {
			t.Fatal(err)
		}
		var m struct {
			Grant struct{ Purpose, Reason, Principal string }
		}
		if err := json.Unmarshal(body, &m); err != nil {
			t.Fatal(err)
		}
		for _, s := range []string{m.Grant.Purpose, m.Grant.Reason, m.Grant.Principal} {
			if len(s) > notify.MaxText || strings.ContainsAny(s, "\n\r\t\x00\x1b\u202e\u2066\u2069\u200b\ufeff\u2028\u2029\u3164\u115f\U000e0041") {
				t.Errorf("%q is told as %q", bad, s)
			}
		}
		if len(body) > 16<<10 {
			t.Errorf("a message of %d bytes", len(body))
		}
	}
	if got := notify.Clean("a\u202e\u202eb\r\n  c ", 100); got != "a\ufffdb c" {
		t.Errorf("a trick shows as %q", got)
	}
	if got := notify.Clean("déjà vu", 8); got != "déj…" {
		t.Errorf("cut to %q", got)
	}
}

// A page's address is one, or is left out.
func TestLinksAreAddressesOfPages(t *testing.T) {
	for page, want := range map[string]string{
		"https://m.example/g?a=1&b=2":          "https://m.example/g?a=1&amp;b=2",
		"javascript:alert(1)":                  "",
		"https://user:pw@m.example/":           "",
		"//m.example/g":                        "",
		"":                                     "",
		"https://m.example/g|Approve>":         "https://m.example/g%7CApprove%3E",
		"https://m.example/?q=<!channel>|x`y`": "https://m.example/?q=%3C!channel%3E%7Cx%60y%60",
		"https://m.example/" + strings.Repeat("x", 3000): "",
	} {
		if got := notify.SlackLink(page); got != want {
			t.Errorf("%q is linked as %q, wanted %q", page, got, want)
		}
	}
}

// FuzzSlackCode: whatever comes in, what goes out is one line of code that ends
// where it should, with entities for markup, bounded, and the same for the same.
func FuzzSlackCode(f *testing.F) {
	for _, s := range hostile {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		text := notify.Clean(in, notify.MaxText)
		if len(text) > notify.MaxText || !utf8.ValidString(text) || text != notify.Clean(text, notify.MaxText) {
			t.Fatalf("%q is cleaned to %q", in, text)
		}
		out := notify.SlackCode(text)
		if out == "–" {
			if strings.TrimSpace(text) != "" {
				t.Fatalf("%q is left out", text)
			}
			return
		}
		inner, ok := strings.CutPrefix(out, "`")
		inner, ok2 := strings.CutSuffix(inner, "`")
		if !ok || !ok2 || strings.ContainsAny(inner, "`<>\n\r\u2028\u2029\u202e\x00\x1b") || len(out) > 5*notify.MaxText+2 {
			t.Fatalf("%q stands as %q", in, out)
		}
		rest := strings.NewReplacer("&amp;", "", "&lt;", "", "&gt;", "").Replace(inner)
		if strings.Contains(rest, "&") || strings.Contains(strings.ReplaceAll(inner, "[@]", ""), "@") || strings.Contains(inner, "://") {
			t.Fatalf("%q stands as %q", in, out)
		}
	})
}
