package escape_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/client/escape"
)

func TestWhatNobodySeesIsWrittenOut(t *testing.T) {
	for in, want := range map[string]string{
		"plain, ünïcode, 漢字":   "plain, ünïcode, 漢字",
		"a\x1b[31mred":         `a\u001b[31mred`,
		"\u202egnp.exe":        `\u202egnp.exe`,
		"\u2066x\u2069":        `\u2066x\u2069`,
		"zero\u200bwidth":      `zero\u200bwidth`,
		"a\u00a0b":             `a\u00a0b`,
		"a\u3164b":             `a\u3164b`,
		"a\u034fb\ufe0f":       `a\u034fb\ufe0f`,
		"tag\U000e0041":        `tag\U000e0041`,
		"sel\U000e0100":        `sel\U000e0100`,
		"braille\u2800":        `braille\u2800`,
		"csi\u009b0m":          `csi\u009b0m`,
		"line\u2028\u2029\n\t": `line\u2028\u2029\n\t`,
		"bad\xff":              `bad\xff`,
		"replaced\ufffd":       `replaced\ufffd`,
	} {
		if got := escape.Line(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
	if got := escape.Lines("a\n\tb\u202e\r"); got != "a\n\tb\\u202e\\u000d" {
		t.Errorf("%q", got)
	}
	if got := escape.Quoted(`say "no"` + "\n" + `\`); got != `"say \"no\"\n\\"` {
		t.Errorf("%s", got)
	}
}

func FuzzLine(f *testing.F) {
	for _, s := range []string{"a\x1b[31m", "\u202e", "\u009b", "\xff", "\U000e0001", "a\nb", "ü", `"`, `\`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if got := escape.Line(text); strings.ContainsFunc(got, escape.Unseen) {
			t.Fatalf("%q leaves %q", text, got)
		}
		quoted := escape.Quoted(text)
		inner := strings.NewReplacer(`\\`, "", `\"`, "").Replace(quoted[1 : len(quoted)-1])
		if strings.Contains(inner, `"`) {
			t.Fatalf("%q ends its own quotation: %s", text, quoted)
		}
		raw, err := json.Marshal(text)
		if err != nil {
			t.Fatal(err)
		}
		var want, got string
		if err := json.Unmarshal(raw, &want); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(escape.JSON(raw), &got); err != nil || got != want {
			t.Fatalf("JSON %s became %s, %v", raw, escape.JSON(raw), err)
		}
	})
}
