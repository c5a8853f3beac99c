package policy_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/policy"
)

// FuzzCompile: any text is refused with problems, or compiles to a set that hashes the same again
// and decides without crashing, with an answer that is its own JSON.
func FuzzCompile(f *testing.F) {
	f.Add(contractPolicy)
	f.Add(policy.DevPolicy().Text)
	f.Add(crowd(12))
	for _, condition := range []string{
		`context.network has ip && context.network.ip.isInRange(ip("10.0.0.0/8"))`,
		`context.now.toTime() >= duration("8h") && context.now.offset(duration("-1d")) < datetime("2026-03-04")`,
		`if context.risk * 2 > 5 then principal in [Group::"a"] else resource is Role in Zone::"eu"`,
		`{a: [1, 2, -3], "b c": context}.a.containsAny([context.risk - 1])`,
		`context.purpose like "a\*b*c" || !principal.hasTag("x") || decimal("1.5").lessThan(decimal("2.0"))`,
		`context.session.attestation.hasTag(context.purpose) && context.session.attestation.getTag(context.purpose) != "\u{202e}"`,
	} {
		f.Add(`@id("a") permit (principal, action == Action::"request", resource) when { ` + condition + ` };`)
		f.Add(`@id("a") forbid (principal, action, resource) unless { ` + condition + ` };`)
	}
	f.Add("// only a comment")
	f.Add(`@id("a") permit (principal, action, resource) when { "` + "\x00" + `" == "\x00\u{0}" };;`)
	request := full()
	f.Fuzz(func(t *testing.T, text string) {
		s, err := policy.Compile([]policy.Source{{Name: "fuzz.cedar", Text: text}})
		if err != nil {
			var list policy.Problems
			if fault.KindOf(err) != fault.Invalid || !errors.As(err, &list) || len(list) == 0 || !utf8.ValidString(fault.As(err).Detail) {
				t.Fatalf("refused without a usable reason: %v", err)
			}
			return
		}
		again, err := policy.Compile([]policy.Source{{Name: "other.cedar", Text: text + "\n// end\n"}})
		if err != nil || again.Hash() != s.Hash() || again.Len() != s.Len() {
			t.Fatalf("compiles differently the second time: %v", err)
		}
		if strings.Count(text, ";") < s.Len() {
			t.Fatalf("%d policies out of %d semicolons", s.Len(), strings.Count(text, ";"))
		}
		d := s.Decide(request)
		if d.Permit != (d.Code == policy.CodePermit) || d.Permit && (len(d.Policies) == 0 || len(d.Errors) > 0) {
			t.Fatalf("inconsistent: %+v", d)
		}
		if out := policy.Explain(d, request); !utf8.ValidString(out) || strings.ContainsAny(out, "\x00\x1b\u202e\r") {
			t.Fatalf("explanation is not plain: %q", out)
		}
		encoded, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		var back policy.Decision
		if err := json.Unmarshal(encoded, &back); err != nil {
			t.Fatal(err)
		}
		if reencoded, err := json.Marshal(back); err != nil || string(reencoded) != string(encoded) {
			t.Fatalf("JSON changes on the way: %s, %s, %v", encoded, reencoded, err)
		}
	})
}

// FuzzCases: any document is refused as invalid, or gives cases that run and report.
func FuzzCases(f *testing.F) {
	f.Add([]byte(goodCases))
	f.Add([]byte(`{"cases":[{"name":"a","request":{},"want":{"permit":false}}]}`))
	f.Add([]byte("cases: &a [*a]"))
	f.Add([]byte("a: &a [x,x]\nb: &b [*a,*a]\ncases: [*b,*b]"))
	f.Add([]byte("cases: [{name: \"\\u202e\", request: {principal: {kind: human, name: \"\\0\"}}, want: {permit: true}}]"))
	s := compile(f, contractPolicy)
	f.Fuzz(func(t *testing.T, document []byte) {
		cases, err := policy.DecodeCases(document)
		if err != nil {
			if fault.KindOf(err) != fault.Invalid || !utf8.ValidString(fault.As(err).Detail) {
				t.Fatalf("refused without a usable reason: %v", err)
			}
			return
		}
		results := policy.RunCases(s, cases)
		if len(results) != len(cases) || len(cases) == 0 {
			t.Fatalf("%d results for %d cases", len(results), len(cases))
		}
		for i, r := range results {
			if r.Passed != (len(r.Differences) == 0) || r.Passed && r.Got.Permit != cases[i].Want.Permit {
				t.Fatalf("inconsistent: %+v", r)
			}
			if _, err := json.Marshal(r); err != nil {
				t.Fatal(err)
			}
		}
	})
}
