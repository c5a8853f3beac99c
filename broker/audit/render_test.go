package audit_test

import (
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/mayfly-broker/mayfly/broker/audit"
)

func TestEscape(t *testing.T) {
	for in, want := range map[string]string{
		"agent:coder":         "agent:coder",
		"":                    "",
		"Zoë 日本":              "Zoë 日本",
		"a\x1b[2Jb":           `a\x1b[2Jb`,
		"a\nb\r\t\x00":        `a\x0ab\x0d\x09\x00`,
		"\u202egnp.exe":       `\u202egnp.exe`,
		"\u2066x\u2069\u200f": `\u2066x\u2069\u200f`,
		"a\u200bb\ufeff":      `a\u200bb\ufeff`,
		"\u009b31m":           `\u009b31m`,
		"a\u00a0b\u2028":      `a\u00a0b\u2028`,
		"\xff\xc0":            `\xff\xc0`,
		`\u202e`:              `\\u202e`,
		"\U000e0041":          `\U000e0041`,
		"a\u3164\u2800":       `a\u3164\u2800`,
		"x\ufe0f":             `x\ufe0f`,
	} {
		if got := audit.Escape(in); got != want {
			t.Errorf("%q became %s, want %s", in, got, want)
		}
	}
}

func hostile() audit.Entry {
	return audit.Entry{
		Seq: 7, Summary: audit.Summary{Time: time.Unix(1_800_000_000, 0), Type: "lease.open", Actor: "agent:x\u202e\x1b]0;pwned\x07"},
		Result: strings.Repeat("é", 500), Command: []byte("{\"purpose\":\"a\u2067b\x9b\\n\",\"n\":1}"),
	}
}

func TestRowAndTextAreSafeToPrint(t *testing.T) {
	e := hostile()
	row := e.Row()
	if len(row) != len(audit.Columns()) || row[0] != "7" || row[1] != "2027-01-15T08:00:00Z" || row[5] != "-" {
		t.Fatalf("%q", row)
	}
	if n := len([]rune(row[3])); n != 64 {
		t.Fatalf("a cell of %d characters", n)
	}
	text := e.Text()
	for _, s := range append(row, strings.Split(text, "\n")...) {
		for _, r := range s {
			if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == unicode.ReplacementChar {
				t.Fatalf("%q holds %U", s, r)
			}
		}
	}
	for _, want := range []string{"seq       7\n", `agent:x\u202e\x1b]0;pwned\x07`, `a\u2067b\x9b\\n`} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing in\n%s", want, text)
		}
	}
}
