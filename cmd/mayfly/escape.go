package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// colour is an SGR code; the zero value leaves text alone.
type colour string

const (
	red    colour = "31"
	green  colour = "32"
	yellow colour = "33"
	dim    colour = "2"
	bold   colour = "1"
)

// painter returns what colours text for w: nothing at all off a terminal.
func (s *shell) painter(w io.Writer) func(colour, string) string {
	if !s.coloured(w) {
		return func(_ colour, text string) string { return text }
	}
	return func(c colour, text string) string {
		if c == "" || text == "" {
			return text
		}
		return "\x1b[" + string(c) + "m" + text + "\x1b[0m"
	}
}

// hostile reports whether a terminal might obey r instead of showing it, or
// show it so that the text around it reads as something else: controls, and
// the format characters, bidi overrides and invisible ones among them.
func hostile(r rune) bool {
	return unicode.Is(unicode.Cc, r) || unicode.Is(unicode.Cf, r) || r == '\u2028' || r == '\u2029' || r == utf8.RuneError
}

// clean escapes what is hostile in one line of text from anywhere.
func clean(text string) string { return cleanRunes(text, hostile) }

// cleanLines is clean for text of several lines.
func cleanLines(text string) string {
	return cleanRunes(text, func(r rune) bool { return hostile(r) && r != '\n' && r != '\t' })
}

func cleanRunes(text string, bad func(rune) bool) string {
	if !strings.ContainsFunc(text, bad) {
		return text
	}
	var b strings.Builder
	for i, r := range text {
		switch {
		case !bad(r):
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == utf8.RuneError && !strings.HasPrefix(text[i:], "\uFFFD"):
			fmt.Fprintf(&b, `\x%02x`, text[i])
		default:
			b.WriteString(escapeRune(r))
		}
	}
	return b.String()
}

func escapeRune(r rune) string {
	if r > 0xFFFF {
		return fmt.Sprintf(`\U%08x`, r)
	}
	return fmt.Sprintf(`\u%04x`, r)
}

// escapeJSON writes hostile characters of a JSON document as \u escapes. They
// can stand in strings only, so that the document stays the same.
func escapeJSON(doc []byte) []byte {
	if !bytes.ContainsFunc(doc, func(r rune) bool { return r > 0x7e && hostile(r) }) {
		return doc
	}
	var b bytes.Buffer
	for _, r := range string(doc) {
		switch {
		case r <= 0x7e || !hostile(r):
			b.WriteRune(r)
		case r > 0xFFFF: // a surrogate pair
			r -= 0x10000
			fmt.Fprintf(&b, `\u%04x\u%04x`, 0xd800+(r>>10), 0xdc00+(r&0x3ff))
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.Bytes()
}

// escapeYAML does the same for YAML, where the strings that hold such
// characters are double-quoted.
func escapeYAML(doc []byte) []byte {
	var b bytes.Buffer
	for _, r := range string(doc) {
		if r > 0x7e && hostile(r) {
			b.WriteString(escapeRune(r))
		} else {
			b.WriteRune(r)
		}
	}
	return b.Bytes()
}

// exportTo is stdout for a document whose bytes must stay as they are; only a
// terminal gets them escaped.
func (s *shell) exportTo() io.Writer {
	if terminal(s.out) {
		return escaping{s.out}
	}
	return s.out
}

type escaping struct{ w io.Writer }

func (e escaping) Write(p []byte) (int, error) {
	if _, err := e.w.Write(escapeJSON(p)); err != nil {
		return 0, err
	}
	return len(p), nil
}
