package cosign

import (
	"slices"
	"unicode/utf16"
	"unicode/utf8"
)

// maxInteger is the largest number that every JSON reader holds exactly (RFC 7493 §2.2).
const maxInteger = 1<<53 - 1

// reader reads JSON strictly and writes its canonical form as it goes. It is our
// own because its verdicts are frozen, and those of a library are not.
type reader struct {
	in    []byte
	at    int
	depth int
	// anyNumber copies numbers that are no integers as they stand, for what is
	// read but not signed by its canonical form.
	anyNumber bool
}

// member is one of an object's, its value in canonical form.
type member struct {
	name  string
	value []byte
}

func (r *reader) refuse(detail string) error {
	return refuse(ruleJSON, "at byte %d: %s", r.at, detail)
}

// space steps over white space.
func (r *reader) space() {
	for r.at < len(r.in) {
		switch r.in[r.at] {
		case ' ', '\t', '\n', '\r':
			r.at++
		default:
			return
		}
	}
}

// next is the byte that comes next, after white space; 0 at the end.
func (r *reader) next() byte {
	r.space()
	if r.at == len(r.in) {
		return 0
	}
	return r.in[r.at]
}

// end refuses anything but white space after the value.
func (r *reader) end() error {
	r.space()
	if r.at != len(r.in) {
		return r.refuse("something follows the value")
	}
	return nil
}

// value reads one value and appends its canonical form.
func (r *reader) value(out []byte) ([]byte, error) {
	switch c := r.next(); {
	case c == '{':
		members, err := r.object()
		if err != nil {
			return nil, err
		}
		return appendObject(out, members), nil
	case c == '[':
		return r.array(out)
	case c == '"':
		s, err := r.text()
		if err != nil {
			return nil, err
		}
		return appendText(out, s), nil
	case c == '-' || '0' <= c && c <= '9':
		return r.number(out)
	}
	for _, word := range []string{"null", "true", "false"} {
		if end := r.at + len(word); end <= len(r.in) && string(r.in[r.at:end]) == word {
			r.at = end
			return append(out, word...), nil
		}
	}
	return nil, r.refuse("a value is missing")
}

// enter goes into an object or an array.
func (r *reader) enter() error {
	r.depth++
	if r.depth > MaxDepth {
		return r.refuse("too deep: objects and arrays may stand 64 within one another")
	}
	r.at++
	return nil
}

// array reads an array, whose bracket is next, and appends its form.
func (r *reader) array(out []byte) ([]byte, error) {
	if err := r.enter(); err != nil {
		return nil, err
	}
	out = append(out, '[')
	for first := true; ; first = false {
		c := r.next()
		if c == ']' {
			r.at++
			r.depth--
			return append(out, ']'), nil
		}
		if !first {
			if c != ',' {
				return nil, r.refuse("a comma or the end of the array is missing")
			}
			r.at++
			if r.next() == ']' {
				return nil, r.refuse("a comma stands before the end of the array")
			}
			out = append(out, ',')
		}
		var err error
		if out, err = r.value(out); err != nil {
			return nil, err
		}
	}
}

// object reads an object, whose brace is next, and returns its members by name,
// in the order of RFC 8785 §3.2.3.
func (r *reader) object() ([]member, error) {
	if err := r.enter(); err != nil {
		return nil, err
	}
	var members []member
	for r.next() != '}' {
		if len(members) > 0 {
			if r.next() != ',' {
				return nil, r.refuse("a comma or the end of the object is missing")
			}
			r.at++
		}
		m, err := r.member()
		if err != nil {
			return nil, err
		}
		members = append(members, m)
	}
	r.at++
	r.depth--
	slices.SortFunc(members, func(a, b member) int { return compareUTF16(a.name, b.name) })
	for i := 1; i < len(members); i++ {
		if members[i].name == members[i-1].name {
			return nil, r.refuse("the object that ends here has two members called " + echo(members[i].name))
		}
	}
	return members, nil
}

func (r *reader) member() (m member, err error) {
	if r.next() != '"' {
		return m, r.refuse("a member's name is missing")
	}
	if m.name, err = r.text(); err != nil {
		return m, err
	}
	if r.next() != ':' {
		return m, r.refuse("a colon is missing after a member's name")
	}
	r.at++
	m.value, err = r.value(nil)
	return m, err
}

// number reads a number: an integer that every reader holds exactly.
func (r *reader) number(out []byte) ([]byte, error) {
	begin := r.at
	if r.in[r.at] == '-' {
		r.at++
	}
	digits := r.at
	r.digits()
	if r.at == digits {
		return nil, r.refuse("a number lacks its digits")
	}
	if r.in[digits] == '0' && r.at > digits+1 {
		return nil, r.refuse("a number begins with a zero that means nothing")
	}
	integer := r.at
	if err := r.fraction(); err != nil {
		return nil, err
	}
	if r.anyNumber {
		return append(out, r.in[begin:r.at]...), nil
	}
	if r.at != integer {
		return nil, r.refuse("only integers can be signed, without fraction or exponent")
	}
	var n int64
	for _, c := range r.in[digits:integer] {
		if n = n*10 + int64(c-'0'); n > maxInteger {
			return nil, r.refuse("only integers from -9007199254740991 to 9007199254740991 can be signed")
		}
	}
	if n == 0 {
		return append(out, '0'), nil // of -0 too: RFC 8785 §3.2.2.3
	}
	return append(out, r.in[begin:integer]...), nil
}

func (r *reader) digits() {
	for r.at < len(r.in) && '0' <= r.in[r.at] && r.in[r.at] <= '9' {
		r.at++
	}
}

// fraction steps over what may follow the integer of a number.
func (r *reader) fraction() error {
	if r.at < len(r.in) && r.in[r.at] == '.' {
		r.at++
		digits := r.at
		if r.digits(); r.at == digits {
			return r.refuse("a number lacks the digits after its point")
		}
	}
	if r.at < len(r.in) && (r.in[r.at] == 'e' || r.in[r.at] == 'E') {
		r.at++
		if r.at < len(r.in) && (r.in[r.at] == '+' || r.in[r.at] == '-') {
			r.at++
		}
		digits := r.at
		if r.digits(); r.at == digits {
			return r.refuse("a number lacks the digits of its exponent")
		}
	}
	return nil
}

// text reads a string, whose quote is next, and returns what it means.
func (r *reader) text() (string, error) {
	r.at++
	var out []byte
	for r.at < len(r.in) {
		c := r.in[r.at]
		switch {
		case c == '"':
			r.at++
			return string(out), nil
		case c == '\\':
			ch, err := r.escape()
			if err != nil {
				return "", err
			}
			out = utf8.AppendRune(out, ch)
		case c < 0x20:
			return "", r.refuse("a control character stands in a text without its escape")
		case c < utf8.RuneSelf:
			out = append(out, c)
			r.at++
		default:
			ch, size := utf8.DecodeRune(r.in[r.at:])
			if ch == utf8.RuneError && size == 1 {
				return "", r.refuse("a text is not UTF-8")
			}
			out = append(out, r.in[r.at:r.at+size]...)
			r.at += size
		}
	}
	return "", r.refuse("a text does not end")
}

// escape reads one escape, whose backslash is next; two where they are the
// halves of one character.
func (r *reader) escape() (rune, error) {
	if r.at+1 >= len(r.in) {
		return 0, r.refuse("a text ends within an escape")
	}
	c := r.in[r.at+1]
	if c == 'u' {
		return r.unicode()
	}
	for _, e := range short {
		if e.letter == c {
			r.at += 2
			return rune(e.char), nil
		}
	}
	if c == '/' {
		r.at += 2
		return '/', nil
	}
	return 0, r.refuse("an escape is none of JSON's")
}

// short are the escapes of one letter that RFC 8785 writes (§3.2.2.2).
var short = [...]struct{ char, letter byte }{
	{'"', '"'}, {'\\', '\\'}, {'\b', 'b'}, {'\f', 'f'}, {'\n', 'n'}, {'\r', 'r'}, {'\t', 't'},
}

func (r *reader) unicode() (rune, error) {
	high, err := r.hex()
	if err != nil || !utf16.IsSurrogate(high) {
		return high, err
	}
	if r.at+1 < len(r.in) && r.in[r.at] == '\\' && r.in[r.at+1] == 'u' {
		low, err := r.hex()
		if err != nil {
			return 0, err
		}
		if ch := utf16.DecodeRune(high, low); ch != utf8.RuneError {
			return ch, nil
		}
	}
	return 0, r.refuse("half of a surrogate pair stands alone, which is no character")
}

// hex reads \uXXXX.
func (r *reader) hex() (rune, error) {
	if r.at+6 > len(r.in) {
		return 0, r.refuse("a text ends within an escape")
	}
	var n rune
	for _, c := range r.in[r.at+2 : r.at+6] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, r.refuse("an escape wants four hexadecimal digits")
		}
		n = n<<4 | rune(c)
	}
	r.at += 6
	return n, nil
}

// compareUTF16 orders two valid texts by their UTF-16 code units. That is the
// order of their characters, except that those beyond U+FFFF, written as
// surrogates, come before U+E000 to U+FFFF.
func compareUTF16(a, b string) int {
	for {
		if a == "" || b == "" {
			return len(a) - len(b)
		}
		x, n := utf8.DecodeRuneInString(a)
		y, m := utf8.DecodeRuneInString(b)
		if x != y {
			if x > 0xffff && y > 0xffff {
				return int(x) - int(y)
			}
			return int(unit(x)) - int(unit(y))
		}
		a, b = a[n:], b[m:]
	}
}

// unit is the first UTF-16 code unit of a character.
func unit(c rune) rune {
	if c > 0xffff {
		high, _ := utf16.EncodeRune(c)
		return high
	}
	return c
}

func appendObject(out []byte, members []member) []byte {
	out = append(out, '{')
	for i, m := range members {
		if i > 0 {
			out = append(out, ',')
		}
		out = appendText(out, m.name)
		out = append(out, ':')
		out = append(out, m.value...)
	}
	return append(out, '}')
}

// appendText writes a valid text as RFC 8785 §3.2.2.2 does: nothing is escaped
// that need not be.
func appendText(out []byte, s string) []byte {
	const digits = "0123456789abcdef"
	out = append(out, '"')
next:
	for i := range len(s) {
		c := s[i]
		if c >= 0x20 && c != '"' && c != '\\' {
			out = append(out, c)
			continue
		}
		for _, e := range short {
			if e.char == c {
				out = append(out, '\\', e.letter)
				continue next
			}
		}
		out = append(out, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
	}
	return append(out, '"')
}

// quoted is a text's canonical form.
func quoted(s string) string { return string(appendText(nil, s)) }

// readObject reads one object of at most limit bytes, whatever its members' values.
func readObject(raw []byte, limit int) ([]member, error) {
	if len(raw) > limit {
		return nil, refuse(ruleJSON, "it has %d bytes; at most %d are allowed", len(raw), limit)
	}
	r := reader{in: raw, anyNumber: true}
	if r.next() != '{' {
		return nil, r.refuse("it is not an object")
	}
	members, err := r.object()
	if err != nil {
		return nil, err
	}
	return members, r.end()
}

// find returns the canonical form of a member's value; "" if there is none.
func find(members []member, name string) string {
	for _, m := range members {
		if m.name == name {
			return string(m.value)
		}
	}
	return ""
}
