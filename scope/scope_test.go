package scope_test

import (
	"encoding/json"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/mayfly-broker/mayfly/scope"
)

func mustParse(t *testing.T, s string) scope.Scope {
	t.Helper()
	sc, err := scope.Parse([]byte(s))
	if err != nil {
		t.Fatalf("Parse(%s): %v", s, err)
	}
	return sc
}

func TestParseRefuses(t *testing.T) {
	deep := strings.Repeat("[", 40) + strings.Repeat("]", 40)
	long := strings.Repeat("x", scope.MaxName+1)
	for name, in := range map[string]string{
		"empty":              `[]`,
		"null":               `null`,
		"no actions":         `[{"type":"database"}]`,
		"no type":            `[{"actions":["select"]}]`,
		"unknown member":     `[{"type":"database","actions":["select"],"admin":true}]`,
		"row filter as SQL":  `[{"type":"database","actions":["select"],"tables":[{"name":"a.b","rows":"1=1"}]}]`,
		"duplicate member":   `[{"type":"database","actions":["select"],"actions":["delete"]}]`,
		"folded duplicate":   `[{"type":"database","actions":["select"],"Actions":["delete"]}]`,
		"upper-case member":  `[{"Type":"database","actions":["select"]}]`,
		"trailing data":      `[{"type":"database","actions":["select"]}] []`,
		"depth":              deep,
		"long name":          `[{"type":"database","identifier":"` + long + `","actions":["select"]}]`,
		"control character":  `[{"type":"database","identifier":"a\u0000b","actions":["select"]}]`,
		"bidi override":      `[{"type":"database","identifier":"a\u202eb","actions":["select"]}]`,
		"sql in an action":   `[{"type":"database","actions":["select; drop"]}]`,
		"unqualified table":  `[{"type":"database","actions":["select"],"tables":[{"name":"orders"}]}]`,
		"three-part table":   `[{"type":"database","actions":["select"],"tables":[{"name":"a.b.c"}]}]`,
		"partial wildcard":   `[{"type":"database","actions":["select"],"tables":[{"name":"public.ord*"}]}]`,
		"inner star":         `[{"type":"database","identifier":"a*b","actions":["select"]}]`,
		"empty column list":  `[{"type":"database","actions":["select"],"tables":[{"name":"a.b","columns":[]}]}]`,
		"too many details":   `[` + strings.TrimSuffix(strings.Repeat(`{"type":"t","actions":["a"]},`, scope.MaxDetails+1), ",") + `]`,
		"too many bytes":     `[{"type":"t","actions":["` + strings.Repeat("a", scope.MaxBytes) + `"]}]`,
		"not an array":       `{"type":"t","actions":["a"]}`,
		"number as a string": `[{"type":1,"actions":["a"]}]`,
	} {
		if sc, err := scope.Parse([]byte(in)); err == nil {
			t.Errorf("%s: accepted as %s", name, sc)
		}
	}
}

// Law 3: scope only narrows.
func TestLaw3Covers(t *testing.T) {
	role := mustParse(t, `[{"type":"database","identifier":"orders","actions":["select","insert"],"tables":[{"name":"public.*"},{"name":"hr.staff","columns":["id","name"]}]}]`)
	for in, want := range map[string]bool{
		`[{"type":"database","identifier":"orders","actions":["select"],"tables":[{"name":"public.orders","columns":["id"]}]}]`: true,
		`[{"type":"database","identifier":"orders","actions":["select"],"tables":[{"name":"public.*"}]}]`:                       true,
		`[{"type":"database","identifier":"orders","actions":["select"],"tables":[{"name":"hr.staff","columns":["id"]}]}]`:      true,
		`[{"type":"database","identifier":"orders","actions":["select"],"tables":[{"name":"hr.staff"}]}]`:                       false,
		`[{"type":"database","identifier":"orders","actions":["select"],"tables":[{"name":"hr.staff","columns":["salary"]}]}]`:  false,
		`[{"type":"database","identifier":"orders","actions":["select"],"tables":[{"name":"*.*"}]}]`:                            false,
		`[{"type":"database","identifier":"orders","actions":["select"]}]`:                                                      false,
		`[{"type":"database","identifier":"orders","actions":["delete"],"tables":[{"name":"public.orders"}]}]`:                  false,
		`[{"type":"database","identifier":"other","actions":["select"],"tables":[{"name":"public.orders"}]}]`:                   false,
		`[{"type":"database","actions":["select"],"tables":[{"name":"public.orders"}]}]`:                                        false,
		`[{"type":"jwt","identifier":"orders","actions":["select"],"tables":[{"name":"public.orders"}]}]`:                       false,
		`[{"type":"database","identifier":"orders","actions":["select","delete"],"tables":[{"name":"public.orders"}]}]`:         false,
		`[{"type":"database","identifier":"orders","actions":["select"],"tables":[{"name":"public.a"},{"name":"hr.other"}]}]`:   false,
	} {
		if err := scope.Covers(role, mustParse(t, in)); (err == nil) != want {
			t.Errorf("Covers(%s) = %v, want covered %v", in, err, want)
		}
	}
}

func genScope(label string) *rapid.Generator[scope.Scope] {
	word := rapid.SampledFrom([]string{"a", "b", "c"})
	pattern := rapid.SampledFrom([]string{"*", "a", "ab", "a*", "ab*", "b"})
	table := rapid.Custom(func(t *rapid.T) scope.Table {
		out := scope.Table{
			Name:    rapid.SampledFrom([]string{"*", "s", "u"}).Draw(t, "schema") + "." + rapid.SampledFrom([]string{"*", "t", "v"}).Draw(t, "table"),
			Columns: rapid.OneOf(rapid.Just[[]string](nil), rapid.SliceOfNDistinct(word, 1, 3, rapid.ID[string])).Draw(t, "columns"),
		}
		// filters are on the columns given, or they are refused
		on := word
		if len(out.Columns) > 0 {
			on = rapid.SampledFrom(out.Columns)
		}
		for range rapid.IntRange(0, 2).Draw(t, "conditions") {
			out.Rows = append(out.Rows, scope.Condition{
				Column: on.Draw(t, "column"), Op: rapid.SampledFrom([]string{"eq", "ne", "in"}).Draw(t, "op"), Values: []string{rapid.SampledFrom([]string{"", "1"}).Draw(t, "value")},
			})
		}
		return out
	})
	detail := rapid.Custom(func(t *rapid.T) scope.Detail {
		return scope.Detail{
			Type:       rapid.SampledFrom([]string{"x", "y"}).Draw(t, "type"),
			Identifier: rapid.OneOf(rapid.Just(""), pattern).Draw(t, "identifier"),
			Actions:    rapid.SliceOfNDistinct(word, 1, 3, rapid.ID[string]).Draw(t, "actions"),
			Locations:  rapid.SliceOfNDistinct(pattern, 0, 2, rapid.ID[string]).Draw(t, "locations"),
			Privileges: rapid.SliceOfNDistinct(word, 0, 2, rapid.ID[string]).Draw(t, "privileges"),
			Tables:     rapid.SliceOfN(table, 0, 3).Draw(t, "tables"),
		}
	})
	return rapid.Custom(func(t *rapid.T) scope.Scope {
		s, err := scope.Scope(rapid.SliceOfN(detail, 1, 3).Draw(t, label)).Normalise()
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}

func TestLaw3IntersectionIsCoveredByBoth(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := genScope("a").Draw(t, "A"), genScope("b").Draw(t, "B")
		m, err := scope.Intersect(a, b)
		if err != nil {
			return
		}
		if err := scope.Covers(a, m); err != nil {
			t.Fatalf("a = %s\nb = %s\na∩b = %s is not within a: %v", a, b, m, err)
		}
		if err := scope.Covers(b, m); err != nil {
			t.Fatalf("a = %s\nb = %s\na∩b = %s is not within b: %v", a, b, m, err)
		}
	})
}

func TestLaw3CoversIsReflexiveAndTransitive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := genScope("a").Draw(t, "A"), genScope("b").Draw(t, "B"), genScope("c").Draw(t, "C")
		if err := scope.Covers(a, a); err != nil {
			t.Fatalf("not reflexive: %v", err)
		}
		if scope.Covers(a, b) == nil && scope.Covers(b, c) == nil {
			if err := scope.Covers(a, c); err != nil {
				t.Fatalf("not transitive: %s ⊇ %s ⊇ %s: %v", a, b, c, err)
			}
		}
		if scope.Covers(a, b) == nil {
			if m, err := scope.Intersect(a, b); err != nil || scope.Covers(m, b) != nil {
				t.Fatalf("a ⊇ b, but a∩b = %s does not cover b = %s (%v)", m, b, err)
			}
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`[{"type":"database","identifier":"orders","actions":["select"],"tables":[{"name":"public.orders","columns":["id"]}]}]`))
	f.Add([]byte(`[{"type":"database","actions":["select"],"tables":[{"name":"a.b","columns":["id"],"rows":[{"column":"id","op":"in","values":["1",""]}]}]}]`))
	f.Add([]byte(`[{"type":"jwt","locations":["https://a.example/*"],"actions":["use"]}]`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := scope.Parse(raw)
		if err != nil {
			return
		}
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		again, err := scope.Parse(b)
		if err != nil || again.String() != s.String() {
			t.Fatalf("normal form is not stable: %s, then %s (%v)", s, again, err)
		}
		if err := scope.Covers(s, s); err != nil {
			t.Fatalf("a scope does not cover itself: %v", err)
		}
	})
}
