package policy_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/policy"
)

// crowd makes n policies as a large installation has them: most name a role or a group of their
// own, a few name neither.
func crowd(n int) string {
	var text strings.Builder
	text.WriteString(contractPolicy)
	for i := range n - 1 {
		switch {
		case i < 4:
			fmt.Fprintf(&text, "@id(\"p%d\") forbid (principal, action == Action::\"request\", resource) when { context.risk > %d };\n", i, 90+i)
		case i%4 == 0:
			fmt.Fprintf(&text, "@id(\"p%d\") @max_ttl(\"1h\") permit (principal in Group::\"team%d\", action == Action::\"request\", resource == Role::\"orders/readwrite\") when { context.session.bound };\n", i, i)
		case i%4 == 1:
			fmt.Fprintf(&text, "@id(\"p%d\") permit (principal in Group::\"team%d\", action, resource in Zone::\"eu\") when { context.session.bound };\n", i, i)
		default:
			fmt.Fprintf(&text, "@id(\"p%d\") @max_ttl(\"1h\") permit (principal in Group::\"sre\", action in [Action::\"request\", Action::\"renew\"], resource == Role::\"db%d/readwrite\") when { context.session.bound && context.risk < 60 };\n", i, i)
		}
	}
	return text.String()
}

// One document may not hold ten thousand policies of this size; several may.
func crowdSet(b testing.TB, n int) *policy.Set {
	b.Helper()
	lines := strings.SplitAfter(crowd(n), ";\n")
	var texts []string
	for len(lines) > 0 {
		cut := min(1000, len(lines))
		texts = append(texts, strings.Join(lines[:cut], ""))
		lines = lines[cut:]
	}
	return compile(b, texts...)
}

// The budget: below 20 µs at 1,000 policies, and flat.
func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{10, 1_000, 10_000} {
		s := crowdSet(b, n)
		if s.Len() != n {
			b.Fatalf("%d policies, want %d", s.Len(), n)
		}
		permitted, denied := ann("sre", "oncall", "emea"), ann("nobody")
		for name, r := range map[string]policy.Request{"permit": permitted, "deny": denied} {
			b.Run(fmt.Sprintf("%s/policies=%d", name, n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if d := s.Decide(r); d.Permit != (name == "permit") || len(d.Errors) > 0 {
						b.Fatal(d)
					}
				}
			})
		}
	}
}

// A thousand ordinary policies, and the one that is dearest to check within the limits.
func BenchmarkCompile(b *testing.B) {
	dearest := `@id("p") permit (principal, action, resource) when { `
	for i := range policy.MaxGuards {
		dearest += fmt.Sprintf("principal.hasTag(\"a%d\") && ", i)
	}
	for name, text := range map[string]string{"thousand": crowd(1_000), "dearest": dearest + "true };"} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := policy.Compile([]policy.Source{{Name: "a", Text: text}}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
