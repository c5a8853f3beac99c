package notify

import (
	"fmt"
	"strings"
)

// slackMessage is what an incoming webhook of Slack takes: blocks, and the text
// of the notification. Nothing in it may be turned into a link or a mention by
// Slack: everything of other people's making stands as code, escaped.
type slackMessage struct {
	Text        string       `json:"text"`
	Parse       string       `json:"parse"`      // "none"
	LinkNames   bool         `json:"link_names"` // false
	UnfurlLinks bool         `json:"unfurl_links"`
	UnfurlMedia bool         `json:"unfurl_media"`
	Blocks      []slackBlock `json:"blocks"`
}

type slackBlock struct {
	Type string    `json:"type"` // "section"
	Text slackText `json:"text"`
}

type slackText struct {
	Type     string `json:"type"` // "mrkdwn"
	Text     string `json:"text"` // at most 3,000 characters
	Verbatim bool   `json:"verbatim"`
}

// slackEntities are the three characters that Slack's markup is made of
// (docs.slack.dev, "Formatting message text"). A backtick would end the code.
var slackEntities = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "`", "'")

// slackRisks are what programs that take Slack's messages may turn into links
// and mentions all the same. They are left legible and made inert.
var slackRisks = strings.NewReplacer("://", "[:]//", "@", "[@]")

// slackCode makes clean text inert in Slack's mrkdwn: code, in which nothing is
// markup, a mention or a link.
func slackCode(text string) string {
	text = strings.TrimSpace(text)
	if text == "" {
		return "–"
	}
	return "`" + slackEntities.Replace(slackRisks.Replace(text)) + "`"
}

// headlines say what happened.
var headlines = map[string]string{
	GrantWaiting:   "A grant waits for approval",
	GrantReminder:  "A grant still waits for approval",
	GrantApproved:  "A grant was approved",
	GrantDenied:    "A grant was denied",
	GrantRevoked:   "A grant was revoked",
	GrantEmergency: "Emergency access was taken",
	ReviewOverdue:  "Emergency access was not reviewed in time",
	Contained:      "Contained",
}

func section(text string) slackBlock {
	return slackBlock{Type: "section", Text: slackText{Type: "mrkdwn", Text: text, Verbatim: true}}
}

func (m message) slack() slackMessage {
	head := headlines[m.Event]
	out := slackMessage{Parse: "none", Text: head}
	out.Blocks = []slackBlock{section("*" + head + "*")}
	add := func(lines []string) {
		if len(lines) > 0 {
			out.Blocks = append(out.Blocks, section(strings.Join(lines, "\n")))
		}
	}
	if c := m.Contained; c != nil {
		add([]string{"*What:* " + slackCode(c.Kind+" "+c.Name), "*By:* " + slackCode(c.By)})
		add(claimed("Reason", c.Reason))
	}
	if g := m.Grant; g != nil {
		what := g.Kind
		if g.Role != "" {
			what = g.Role + " (" + g.Kind + ")"
		}
		add([]string{"*Who:* " + slackCode(g.Principal), "*What:* " + slackCode(what), "*State:* " + slackCode(g.State)})
		add(claimed("Purpose", g.Purpose))
		add(claimed("Reason", g.Reason))
		add(needLines(g.Needs))
		add(g.lastLines())
	}
	add([]string{"*Cluster:* " + slackCode(m.Cluster) + "  *Event:* " + slackCode(m.ID)})
	return out
}

func claimed(word, text string) []string {
	if text == "" {
		return nil
	}
	return []string{"*" + word + ", as claimed:* " + slackCode(text)}
}

// slackNeeds bounds the groups of one block.
const slackNeeds = 3

func needLines(needs []needPart) (out []string) {
	for i, n := range needs {
		if i == slackNeeds {
			return append(out, fmt.Sprintf("… and %d more groups", len(needs)-i))
		}
		out = append(out, fmt.Sprintf("*Needs:* %d of %s, has %d", n.Required, slackCode(n.Group), n.Have))
	}
	return out
}

func (g grantPart) lastLines() (out []string) {
	out = append(out, "*Grant:* "+slackCode(g.ID))
	if g.CollectBefore != "" {
		out = append(out, "*Until:* "+slackCode(g.CollectBefore))
	}
	if g.ReviewDue != "" {
		out = append(out, "*Review due:* "+slackCode(g.ReviewDue))
	}
	if g.HashPrefix != "" {
		out = append(out, "*Document:* "+slackCode(g.HashPrefix+"…"))
	}
	if page := slackLink(g.URL); page != "" {
		out = append(out, "<"+page+"|Open it in the console>")
	}
	return out
}

var slackLinkRisks = strings.NewReplacer("&", "&amp;", "<", "%3C", ">", "%3E", "|", "%7C", " ", "%20", "`", "%60")

// maxSlackLink leaves room for the block's other lines.
const maxSlackLink = 1800

// slackLink makes an address stand in a link of Slack's: what could end it is
// percent-encoded.
func slackLink(page string) string {
	out := slackLinkRisks.Replace(page)
	if len(out) > maxSlackLink {
		return "" // the grant's id stands above
	}
	return out
}
