package audit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Columns are the headings of [Entry.Row].
func Columns() []string {
	return []string{"SEQ", "TIME", "TYPE", "RESULT", "ACTOR", "DECISION"}
}

// maxCell bounds a table cell, in characters.
const maxCell = 64

// Row is the entry as the cells of one table line, for `audit tail` and `audit
// list`: escaped, each at most 64 characters.
func (e Entry) Row() []string {
	cells := []string{e.Type, e.Result, e.Actor, e.DecisionID}
	row := []string{fmt.Sprint(e.Seq), formatTime(e.Time)}
	for _, c := range cells {
		if c == "" {
			c = "-"
		}
		row = append(row, shorten(Escape(c)))
	}
	return row
}

// Text is the entry as lines for a person, for `audit show`: its fields, then the
// command, indented where it is JSON. Everything is escaped.
func (e Entry) Text() string {
	var out strings.Builder
	row := []string{fmt.Sprint(e.Seq), formatTime(e.Time), e.Type, e.Result, e.Actor, e.DecisionID}
	for i, name := range Columns() {
		fmt.Fprintf(&out, "%-9s %s\n", strings.ToLower(name), Escape(row[i]))
	}
	out.WriteString("command\n")
	command := e.Command
	var pretty bytes.Buffer
	if json.Indent(&pretty, e.Command, "", "  ") == nil {
		command = pretty.Bytes()
	}
	for line := range strings.SplitSeq(string(command), "\n") {
		out.WriteString("  " + Escape(line) + "\n")
	}
	return out.String()
}

// Escape makes text safe for a terminal and honest to the eye: control
// characters, bidirectional and other invisible formatting, unusual spaces,
// private-use characters and bytes that are no UTF-8 become \x.., \u.... or
// \U........, and a backslash becomes two. What comes out is on one line and
// reads in one way only.
func Escape(s string) string {
	if plain(s) {
		return s
	}
	var out strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&out, `\x%02x`, s[0])
		case r == '\\':
			out.WriteString(`\\`)
		case visible(r):
			out.WriteRune(r)
		case r < 0x80:
			fmt.Fprintf(&out, `\x%02x`, r)
		case r < 0x10000:
			fmt.Fprintf(&out, `\u%04x`, r)
		default:
			fmt.Fprintf(&out, `\U%08x`, r)
		}
		s = s[n:]
	}
	return out.String()
}

func plain(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' || s[i] == '\\' {
			return false
		}
	}
	return true
}

// visible excludes format characters (Cf: bidi controls, zero-width), other
// spaces, and the fillers that Unicode counts as letters but nobody sees.
func visible(r rune) bool {
	switch r {
	case '\u115f', '\u1160', '\u3164', '\uffa0', '\u2800', '\u034f', '\u17b4', '\u17b5':
		return false
	}
	return unicode.IsPrint(r) && !unicode.Is(unicode.Variation_Selector, r)
}

func shorten(s string) string {
	if utf8.RuneCountInString(s) <= maxCell {
		return s
	}
	runes := []rune(s)
	return string(runes[:maxCell-1]) + "…"
}

// quote is text from outside in a message: escaped, shortened, in quotes.
func quote(s string) string { return `"` + shorten(Escape(s)) + `"` }
