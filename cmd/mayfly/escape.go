package main

import (
	"bytes"
	"io"

	"github.com/mayfly-broker/mayfly/client/escape"
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

// hostile is what a document may not hold unescaped; see [escape.Hostile].
func hostile(r rune) bool { return escape.Hostile(r) }

// clean escapes what is hostile or invisible in one line of text from anywhere.
func clean(text string) string { return escape.Line(text) }

// cleanLines is clean for text of several lines.
func cleanLines(text string) string { return escape.Lines(text) }

// escapeJSON writes hostile characters of a JSON document as \u escapes.
func escapeJSON(doc []byte) []byte { return escape.JSON(doc) }

// escapeYAML does the same for YAML, where the strings that hold such
// characters are double-quoted.
func escapeYAML(doc []byte) []byte {
	var b bytes.Buffer
	for _, r := range string(doc) {
		if r > 0x7e && hostile(r) {
			b.WriteString(escape.Rune(r))
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
