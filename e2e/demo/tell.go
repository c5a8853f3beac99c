package main

import (
	"fmt"
	"io"
	"strings"
)

// Colours of a terminal; [teller.paint] leaves them out elsewhere.
const (
	bold  = "1"
	dim   = "2"
	green = "32"
	cyan  = "36"
)

const (
	margin = "  "
	width  = 96 // sentences are broken here
)

// teller lays the demo out for a reader: chapters, sentences, commands, and
// what they printed.
type teller struct {
	w       io.Writer
	colours bool
	chapter int
}

func newTeller(w io.Writer, colours bool) *teller { return &teller{w: w, colours: colours} }

func (t *teller) paint(code, text string) string {
	if !t.colours {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// title opens a chapter.
func (t *teller) title(text string) {
	t.chapter++
	line := fmt.Sprintf("── %d. %s ", t.chapter, text)
	fmt.Fprintf(t.w, "\n%s\n", t.paint(bold, line+strings.Repeat("─", max(0, width-len([]rune(line))))))
}

// say prints a sentence.
func (t *teller) say(format string, args ...any) {
	fmt.Fprintln(t.w)
	line := ""
	for _, word := range strings.Fields(fmt.Sprintf(format, args...)) {
		if len([]rune(line))+1+len([]rune(word)) > width {
			fmt.Fprintln(t.w, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	fmt.Fprintln(t.w, line)
}

// typed prints what somebody types; long lines are broken as a shell allows.
func (t *teller) typed(who, command string) {
	prompt := who + " $ "
	fmt.Fprintf(t.w, "\n%s%s%s\n", margin, t.paint(cyan, prompt), t.paint(bold, command))
}

// output prints what came of it.
func (t *teller) output(text string) {
	for _, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		fmt.Fprintf(t.w, "%s%s\n", margin, t.paint(dim, line))
	}
}

// file shows a file's content.
func (t *teller) file(name, text string) {
	fmt.Fprintf(t.w, "\n%s%s\n", margin, t.paint(cyan, name))
	for _, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		fmt.Fprintf(t.w, "%s  %s\n", margin, line)
	}
}
