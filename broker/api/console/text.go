package console

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// blank are letters and marks that print as nothing, though Unicode calls them
// printable: fillers, joiners, selectors.
var blank = &unicode.RangeTable{
	R16: []unicode.Range16{
		{Lo: 0x034f, Hi: 0x034f, Stride: 1}, {Lo: 0x115f, Hi: 0x1160, Stride: 1}, {Lo: 0x17b4, Hi: 0x17b5, Stride: 1},
		{Lo: 0x180b, Hi: 0x180f, Stride: 1}, {Lo: 0x2800, Hi: 0x2800, Stride: 1}, {Lo: 0x3164, Hi: 0x3164, Stride: 1},
		{Lo: 0xfe00, Hi: 0xfe0f, Stride: 1}, {Lo: 0xffa0, Hi: 0xffa0, Stride: 1},
	},
	R32: []unicode.Range32{{Lo: 0xe0100, Hi: 0xe01ef, Stride: 1}},
}

// maxMarks is how many marks may stand on one letter: more climb over the lines
// around it.
const maxMarks = 2

// seen says whether a person sees r as what it is. marks is how many combining
// marks stand before it.
func seen(r rune, marks int) bool {
	return strconv.IsPrint(r) && !unicode.Is(blank, r) && (marks < maxMarks || !unicode.In(r, unicode.Mn, unicode.Me))
}

// Piece is a part of a text: as it is, or an escape of one character that
// cannot be seen.
type Piece struct {
	Text string
	Odd  bool
}

// Pieces splits a stranger's text into what can be seen and escapes of what
// cannot: control characters, bidirectional overrides, invisible ones.
func Pieces(s string) []Piece {
	var out []Piece
	var plain strings.Builder
	flush := func() {
		if plain.Len() > 0 {
			out = append(out, Piece{Text: plain.String()})
			plain.Reset()
		}
	}
	marks := 0
	for i, r := range s {
		broken := r == unicode.ReplacementChar && !strings.HasPrefix(s[i:], string(unicode.ReplacementChar))
		if !broken && seen(r, marks) {
			plain.WriteRune(r)
		} else {
			flush()
			out = append(out, Piece{Text: escape(r, broken, s[i]), Odd: true})
		}
		if unicode.In(r, unicode.Mn, unicode.Me) {
			marks++
		} else {
			marks = 0
		}
	}
	flush()
	return out
}

// escape writes one character so that it can be read and looked up.
func escape(r rune, broken bool, b byte) string {
	switch {
	case broken:
		return fmt.Sprintf(`\x%02x`, b)
	case r == '\n':
		return `\n`
	case r == '\t':
		return `\t`
	case r == '\r':
		return `\r`
	default:
		return fmt.Sprintf(`\u{%04x}`, r)
	}
}

// Visible is [Pieces] as one string.
func Visible(s string) string {
	var b strings.Builder
	for _, p := range Pieces(s) {
		b.WriteString(p.Text)
	}
	return b.String()
}

// scrub spells out what cannot be seen in a whole page, line ends excepted: the
// last line of defence, for a text that a template put in as it came.
func scrub(page string) string {
	if !strings.ContainsFunc(page, func(r rune) bool { return r != '\n' && (r > '~' || r < ' ') }) {
		return page
	}
	var b strings.Builder
	for line := range strings.Lines(page) {
		text, ended := strings.CutSuffix(line, "\n")
		b.WriteString(Visible(text))
		if ended {
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// span says how long something is, in at most two units.
func span(d time.Duration) string {
	if d < 0 {
		d = -d
	}
	switch {
	case d < time.Minute:
		return strconv.Itoa(int(d/time.Second)) + " s"
	case d < time.Hour:
		return strconv.Itoa(int(d/time.Minute)) + " min"
	case d < 24*time.Hour:
		h, m := int(d/time.Hour), int(d%time.Hour/time.Minute)
		if m == 0 {
			return strconv.Itoa(h) + " h"
		}
		return fmt.Sprintf("%d h %d min", h, m)
	default:
		days, h := int(d/(24*time.Hour)), int(d%(24*time.Hour)/time.Hour)
		if h == 0 || days > 9 {
			return plural(days, "day")
		}
		return fmt.Sprintf("%s %d h", plural(days, "day"), h)
	}
}

// until says when t is, from now: "in 12 min", "3 h ago".
func until(t, now time.Time) string {
	d := t.Sub(now)
	if d >= 0 {
		return "in " + span(d)
	}
	return span(d) + " ago"
}

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	if word == "person" {
		return strconv.Itoa(n) + " people"
	}
	return strconv.Itoa(n) + " " + word + "s"
}

// clip shortens a text for a line of a list.
func clip(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:n-1]) + "…"
}
