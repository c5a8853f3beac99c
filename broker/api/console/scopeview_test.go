package console

import (
	"slices"
	"testing"

	"github.com/mayfly-broker/mayfly/scope"
)

// A filter is in the tree that approvers read, and in what is compared.
func TestHazard14ConsoleShowsTheFilter(t *testing.T) {
	parse := func(rows string) scope.Scope {
		s, err := scope.Parse([]byte(`[{"type":"database","identifier":"d","actions":["select"],"tables":[{"name":"public.people"` + rows + `}]}]`))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	whole, part := parse(""), parse(`,"rows":[{"column":"region","op":"in","values":["us","eu"]},{"column":"left","op":"null"}]`)
	var shown []string
	for _, b := range scopeTree(part)[0].Kids[0].Kids {
		shown = append(shown, b.Label+": "+b.Text)
	}
	if want := []string{"only rows where: left is null", `only rows where: region in "eu", "us"`}; !slices.Equal(shown, want) {
		t.Errorf("shown as %q; want %q", shown, want)
	}
	lines, sum := compared(part, whole)
	if sum != "Wider than then." || lines[0].Text != "database d · select · public.people" {
		t.Errorf("losing a filter reads as %q, %+v", sum, lines)
	}
	lines, sum = compared(whole, part)
	if sum != "Narrower than then." || lines[0].Text != `database d · select · public.people where left is null and region in "eu", "us"` {
		t.Errorf("a new filter reads as %q, %+v", sum, lines)
	}
}
