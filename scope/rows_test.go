package scope_test

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/mayfly-broker/mayfly/scope"
)

func filtered(columns, rows string) string {
	t := `{"name":"public.people"`
	if columns != "" {
		t += `,"columns":` + columns
	}
	if rows != "" {
		t += `,"rows":` + rows
	}
	return `[{"type":"database","identifier":"d","actions":["select"],"tables":[` + t + `}]}]`
}

func TestRowFiltersRefuse(t *testing.T) {
	many := strings.TrimSuffix(strings.Repeat(`{"column":"a","op":"null"},`, 17), ",")
	for name, in := range map[string]string{
		"SQL":                 filtered("", `"region = 'eu'"`),
		"SQL in a list":       filtered("", `["region = 'eu'"]`),
		"no condition":        filtered("", `[]`),
		"no column":           filtered("", `[{"op":"eq","values":["1"]}]`),
		"no op":               filtered("", `[{"column":"a","values":["1"]}]`),
		"an op as SQL":        filtered("", `[{"column":"a","op":"= 1 or 1 =","values":["1"]}]`),
		"a sign as op":        filtered("", `[{"column":"a","op":"=","values":["1"]}]`),
		"no value":            filtered("", `[{"column":"a","op":"eq"}]`),
		"two values":          filtered("", `[{"column":"a","op":"lt","values":["1","2"]}]`),
		"in of nothing":       filtered("", `[{"column":"a","op":"in","values":[]}]`),
		"null with a value":   filtered("", `[{"column":"a","op":"null","values":["1"]}]`),
		"a number":            filtered("", `[{"column":"a","op":"eq","values":[1]}]`),
		"unknown member":      filtered("", `[{"column":"a","op":"eq","values":["1"],"sql":"x"}]`),
		"control character":   filtered("", `[{"column":"a","op":"eq","values":["\u0000"]}]`),
		"bidi override":       filtered("", `[{"column":"a","op":"eq","values":["\u202e"]}]`),
		"long value":          filtered("", `[{"column":"a","op":"eq","values":["`+strings.Repeat("x", scope.MaxName+1)+`"]}]`),
		"too many":            filtered("", "["+many+"]"),
		"an ungranted column": filtered(`["id"]`, `[{"column":"salary","op":"gt","values":["9"]}]`),
	} {
		if sc, err := scope.Parse([]byte(in)); err == nil {
			t.Errorf("%s: accepted as %s", name, sc)
		}
	}
}

func TestRowFiltersNormalForm(t *testing.T) {
	in := filtered("", `[{"column":"b","op":"in","values":["2","1","2"]},{"column":"a","op":"in","values":[""]},{"column":"a","op":"eq","values":[""]}]`)
	want := filtered("", `[{"column":"a","op":"eq","values":[""]},{"column":"b","op":"in","values":["1","2"]}]`)
	sc := mustParse(t, in)
	if sc.String() != want {
		t.Errorf("normalised to %s\nwant %s", sc, want)
	}
	if got := sc[0].Tables[0].Filter(); got != `a = "" and b in "1", "2"` {
		t.Errorf("for people: %s", got)
	}
	// a scope without a filter is written as it always was
	if plain := filtered(`["id"]`, ""); mustParse(t, plain).String() != plain {
		t.Errorf("%s is now written as %s", plain, mustParse(t, plain))
	}
	sly := scope.Condition{Column: `a = "1" or b`, Op: "eq", Values: []string{`2" or "`}}
	if got := sly.String(); got != `"a = \"1\" or b" = "2\" or \""` {
		t.Errorf("a column passes for a condition: %s", got)
	}
}

// Law 3 with row filters, HAZARDS 14: filters are added, never compared.
func TestHazard14FiltersOnlyNarrow(t *testing.T) {
	const eu, open = `{"column":"region","op":"eq","values":["eu"]}`, `{"column":"state","op":"eq","values":["open"]}`
	role := mustParse(t, filtered(`["id","region","state"]`, "["+eu+"]"))
	for in, want := range map[string]bool{
		filtered(`["id","region"]`, "["+eu+"]"):                                                                true,
		filtered(`["id","region","state"]`, "["+eu+","+open+"]"):                                               true,
		filtered(`["id","region","state"]`, ""):                                                                false,
		filtered(`["id","region","state"]`, "["+open+"]"):                                                      false,
		filtered(`["id","region"]`, `[{"column":"region","op":"eq","values":["us"]}]`):                         false,
		filtered(`["id","region"]`, `[{"column":"region","op":"ne","values":["us"]}]`):                         false,
		filtered(`["id","region"]`, `[{"column":"region","op":"in","values":["eu","us"]}]`):                    false,
		filtered(`["id","region","salary"]`, "["+eu+`,{"column":"salary","op":"gt","values":["9"]}]`):          false,
		strings.Replace(filtered(`["region"]`, "["+eu+"]"), "public.people", "public.*", 1):                    false,
		strings.Replace(filtered(`["region"]`, "["+eu+"]"), `["select"]`, `["select","update"]`, 1):            false,
		`[{"type":"database","identifier":"d","actions":["select"]}]`:                                          false,
		`[{"type":"database","identifier":"d","actions":["select"],"tables":[{"name":"public.people"}]}]`:      false,
		strings.Replace(filtered(`["id","region"]`, "["+eu+"]"), `"values":["eu"]`, `"values":["eu","eu"]`, 1): true,
	} {
		if err := scope.Covers(role, mustParse(t, in)); (err == nil) != want {
			t.Errorf("Covers(%s) = %v, want covered %v", in, err, want)
		}
	}
	if err := scope.Covers(mustParse(t, filtered("", "")), role); err != nil {
		t.Errorf("a table without a filter does not cover one with it: %v", err)
	}

	both, err := scope.Intersect(role, mustParse(t, filtered("", "["+open+"]")))
	if want := filtered(`["id","region","state"]`, "["+eu+","+open+"]"); err != nil || both.String() != want {
		t.Errorf("two filters meet as %s (%v)\nwant %s", both, err, want)
	}
	// without the column, its filter would be an oracle; so they do not meet
	if got, err := scope.Intersect(role, mustParse(t, filtered(`["id"]`, ""))); err == nil {
		t.Errorf("met as %s", got)
	}
}

// Whatever is added to a filter, the scope is covered by what it was, and covers
// it only when nothing changed.
func TestHazard14MoreConditionsAreNarrower(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := rapid.Custom(func(t *rapid.T) scope.Condition {
			return scope.Condition{
				Column: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "column"), Op: rapid.SampledFrom([]string{"eq", "ne", "lt", "ge"}).Draw(t, "op"),
				Values: []string{rapid.String().Filter(func(s string) bool {
					_, err := scope.Scope{{Type: "x", Actions: []string{"a"}, Tables: []scope.Table{{Name: "s.t", Rows: []scope.Condition{{Column: "a", Op: "eq", Values: []string{s}}}}}}}.Normalise()
					return err == nil
				}).Draw(t, "value")},
			}
		})
		rows := rapid.SliceOfN(draw, 0, 4).Draw(t, "rows")
		build := func(rows []scope.Condition) scope.Scope {
			if len(rows) == 0 {
				rows = nil
			}
			s, err := scope.Scope{{Type: "database", Actions: []string{"select"}, Tables: []scope.Table{{Name: "s.t", Rows: rows}}}}.Normalise()
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		wide := build(rows)
		narrow := build(append(append([]scope.Condition{}, rows...), draw.Draw(t, "one more")))
		if err := scope.Covers(wide, narrow); err != nil {
			t.Fatal(err)
		}
		if back := scope.Covers(narrow, wide) == nil; back != (wide.String() == narrow.String()) {
			t.Fatalf("%s covers %s: %t", narrow, wide, back)
		}
		again, err := scope.Parse([]byte(narrow.String()))
		if err != nil || again.String() != narrow.String() {
			t.Fatal(fmt.Errorf("%s reads as %s: %w", narrow, again, err))
		}
	})
}
