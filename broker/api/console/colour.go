package console

import (
	"regexp"
	"strings"
)

// CodeLine is one line of a policy, in coloured parts.
type CodeLine []Part

// Part is a run of characters of one kind.
type Part struct{ Text, Class string }

// cedar finds what Cedar's text is made of, as far as colours go.
var cedar = regexp.MustCompile(`(//.*$)|("(?:[^"\\]|\\.)*"?)|(@[A-Za-z_]+)|\b(permit|forbid)\b|\b(when|unless|principal|action|resource|context|in|is|has|like|if|then|else|true|false)\b`)

var cedarClasses = []string{"c", "s", "a", "e", "k"} // comment, string, annotation, effect, keyword

// colour takes a policy's text apart. It changes no character of it.
func colour(text string) (out []CodeLine) {
	for _, line := range splitLines(text) {
		var parts CodeLine
		at := 0
		for _, m := range cedar.FindAllStringSubmatchIndex(line, -1) {
			if m[0] > at {
				parts = append(parts, Part{Text: line[at:m[0]]})
			}
			class := ""
			for i, c := range cedarClasses {
				if m[2+2*i] >= 0 {
					class = c
				}
			}
			if class == "e" && strings.HasPrefix(line[m[0]:], "forbid") {
				class = "f"
			}
			parts = append(parts, Part{Text: line[m[0]:m[1]], Class: class})
			at = m[1]
		}
		out = append(out, append(parts, Part{Text: line[at:]}))
	}
	return out
}
