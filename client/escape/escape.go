// Package escape makes text from anywhere safe to show to a person: what a
// terminal would obey, what turns its surroundings around, and what nobody can
// see is written out as \u escapes instead.
//
// The package must know nothing of what the text says or where it is shown.
package escape

import (
	"bytes"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Hostile reports whether a terminal might obey r instead of showing it, or
// show it so that the text around it reads as something else: controls, and
// the format characters, bidi overrides and most invisible ones among them.
func Hostile(r rune) bool {
	return unicode.Is(unicode.Cc, r) || unicode.Is(unicode.Cf, r) || r == '\u2028' || r == '\u2029' || r == utf8.RuneError
}

// Unseen reports whether r is [Hostile], or leaves nothing on the screen that
// tells it from nothing or from a space: fillers, joiners, variation selectors,
// odd spaces, tags.
func Unseen(r rune) bool {
	return Hostile(r) || r != ' ' && unicode.Is(unicode.Zs, r) || r == '\u2800' ||
		unicode.Is(unicode.Other_Default_Ignorable_Code_Point, r) || unicode.Is(unicode.Variation_Selector, r)
}

// Line escapes what is [Unseen] in one line of text.
func Line(text string) string { return runes(text, Unseen) }

// Lines is [Line] for text of several lines: line feeds and tabs stay.
func Lines(text string) string {
	return runes(text, func(r rune) bool { return Unseen(r) && r != '\n' && r != '\t' })
}

// Quoted is [Line] between double quotes; those inside, and backslashes, are
// escaped, so that the text cannot end its own quotation.
func Quoted(text string) string {
	return `"` + Line(strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(text)) + `"`
}

func runes(text string, bad func(rune) bool) string {
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
			b.WriteString(Rune(r))
		}
	}
	return b.String()
}

// Rune writes r as an escape that Go, YAML and Python read.
func Rune(r rune) string {
	if r > 0xFFFF {
		return fmt.Sprintf(`\U%08x`, r)
	}
	return fmt.Sprintf(`\u%04x`, r)
}

// JSON writes hostile characters of a JSON document as \u escapes. They can
// stand in strings only, so that the document stays the same.
func JSON(doc []byte) []byte {
	if !bytes.ContainsFunc(doc, func(r rune) bool { return r > 0x7e && Hostile(r) }) {
		return doc
	}
	var b bytes.Buffer
	for _, r := range string(doc) {
		switch {
		case r <= 0x7e || !Hostile(r):
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
