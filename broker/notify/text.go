package notify

import (
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"
)

// unseen reports whether r would act on the text around it instead of being
// read: controls, bidi and other format characters, private ones, and letters
// that have no shape.
func unseen(r rune) bool {
	switch r {
	case utf8.RuneError, '\u2028', '\u2029', '\u115f', '\u1160', '\u3164', '\uffa0':
		return true
	}
	return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Co, unicode.Cs)
}

// clean makes one line of at most limit bytes of any text. White space becomes
// one space; in place of what is unseen stands U+FFFD, so that a trick shows.
func clean(text string, limit int) string {
	// What is beyond any limit is not even looked at: 4 bytes a rune at most.
	if len(text) > 4*limit {
		text = text[:4*limit]
	}
	var b strings.Builder
	var last rune
	for _, r := range text {
		switch {
		case unicode.IsSpace(r):
			r = ' '
		case unseen(r):
			r = utf8.RuneError
		}
		if r == last && (r == ' ' || r == utf8.RuneError) || r == ' ' && last == 0 {
			continue
		}
		b.WriteRune(r)
		last = r
	}
	return cut(strings.TrimRight(b.String(), " "), limit)
}

// cut shortens text to limit bytes, at a rune, with an ellipsis.
func cut(text string, limit int) string {
	const more = "…"
	if len(text) <= limit {
		return text
	}
	end := limit - len(more)
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return strings.TrimRight(text[:end], " ") + more
}

// link returns a page's address if it is one that may stand in a message, or "".
func link(page string) string {
	u, err := url.Parse(page)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || len(page) > maxURL {
		return ""
	}
	return u.String()
}
