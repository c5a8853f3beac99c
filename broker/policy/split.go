package policy

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// statement is the text of one policy with its semicolon, and where it is.
type statement struct {
	text         string
	line, column int // of its first byte that is not a space or comment
}

// splitter cuts a document into statements before Cedar's parser sees it: the
// parser stops at the first error and recurses without bound, so that each
// policy is bounded first and then parsed by itself.
type splitter struct {
	text         string
	pos          int
	line, column int
	depth        int
	start        statement // of the statement under way; line 0 when none is
	from         int
}

// split returns the statements of a document. An error is about the document as
// a whole, or names the line where cutting it up became impossible.
func split(text string) ([]statement, error) {
	if len(text) > MaxDocumentBytes {
		return nil, fmt.Errorf("the document has %d bytes; at most %d are allowed", len(text), MaxDocumentBytes)
	}
	if !utf8.ValidString(text) {
		return nil, fmt.Errorf("the document is not UTF-8 text")
	}
	s := &splitter{text: text, line: 1, column: 1}
	var out []statement
	for s.pos < len(text) {
		done, err := s.step()
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", s.line, err)
		}
		if done {
			s.start.text = text[s.from:s.pos]
			out = append(out, s.start)
			s.start, s.depth = statement{}, 0
		}
	}
	if s.start.line > 0 { // let the parser say what is missing
		s.start.text = text[s.from:]
		out = append(out, s.start)
	}
	for _, st := range out {
		if len(st.text) > MaxPolicyBytes {
			return nil, fmt.Errorf("line %d: the policy has %d bytes; at most %d are allowed", st.line, len(st.text), MaxPolicyBytes)
		}
	}
	return out, nil
}

// step takes one token's worth of text and reports whether it ended a statement.
func (s *splitter) step() (done bool, err error) {
	switch c := s.text[s.pos]; {
	case c == ' ' || c == '\t' || c == '\r' || c == '\n':
		s.advance(1)
		return false, nil
	case strings.HasPrefix(s.text[s.pos:], "//"):
		end := strings.IndexByte(s.text[s.pos:], '\n')
		if end < 0 {
			end = len(s.text) - s.pos
		}
		s.advance(end)
		return false, nil
	case strings.HasPrefix(s.text[s.pos:], "/*"):
		return false, fmt.Errorf("a comment starts with // and ends with the line; /* is not Cedar")
	default:
		if s.start.line == 0 {
			s.start, s.from = statement{line: s.line, column: s.column}, s.pos
		}
		return s.token(c)
	}
}

func (s *splitter) token(c byte) (done bool, err error) {
	switch c {
	case '"':
		return false, s.quoted()
	case '(', '[', '{':
		s.depth++
		if s.depth > MaxNesting {
			return false, fmt.Errorf("brackets are nested more than %d deep", MaxNesting)
		}
	case ')', ']', '}':
		s.depth--
	}
	s.advance(1)
	return c == ';', nil
}

func (s *splitter) quoted() error {
	for i := s.pos + 1; i < len(s.text); i++ {
		switch s.text[i] {
		case '\\':
			i++
		case '\n':
			return fmt.Errorf("a text is not closed before the end of its line")
		case '"':
			s.advance(i + 1 - s.pos)
			return nil
		}
	}
	return fmt.Errorf("a text is not closed")
}

// advance moves on by n bytes, keeping line and column (in characters).
func (s *splitter) advance(n int) {
	for _, r := range s.text[s.pos : s.pos+n] {
		if r == '\n' {
			s.line++
			s.column = 1
		} else {
			s.column++
		}
	}
	s.pos += n
}
