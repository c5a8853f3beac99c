package broker

import (
	"slices"
	"testing"

	"github.com/mayfly-broker/mayfly/scope"
)

// Policies see each condition of a row filter after its table's name.
func TestHazard14FiltersReachPolicies(t *testing.T) {
	s, err := scope.Parse([]byte(`[{"type":"database","actions":["select"],"tables":[
		{"name":"public.people","rows":[{"column":"region","op":"eq","values":["eu"]},{"column":"a b","op":"null"}]}]}]`))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := flatten(s).Rows, []string{`public.people."a b" is null`, `public.people.region = "eu"`}; !slices.Equal(got, want) {
		t.Errorf("policies see %q; want %q", got, want)
	}
	part, narrower := beyond(s, scope.Scope{{Type: "database", Actions: []string{"select"}, Tables: []scope.Table{{Name: "public.people"}}}})
	if !narrower || part[0].Tables[0].Rows != nil {
		t.Errorf("the table without its filter is within it: %s", part)
	}
}
