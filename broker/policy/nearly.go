package policy

import (
	"slices"
	"strings"

	cedar "github.com/cedar-policy/cedar-go"
	publicast "github.com/cedar-policy/cedar-go/ast"
	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
	"github.com/cedar-policy/cedar-go/x/exp/eval"
)

// nearMisses returns permits that would have applied had one thing been
// different: first those whose conditions did not hold; when there are none,
// those that permit this on the resource, to another principal.
func (s *Set) nearMisses(f *facts, found candidates) []NearMiss {
	var out []NearMiss
	for _, at := range found.at {
		r := s.policies[at]
		if len(out) == MaxNearly {
			break
		}
		if r.permits() && f.matches(f.principal, r.ast.Principal) && f.matches(f.resource, r.ast.Resource) {
			out = append(out, r.near(f.failing(r.ast)))
		}
	}
	if len(out) > 0 {
		return out
	}
	var others []int32
	for principals := range s.index.tables(f) {
		others = append(others, principals.first...)
	}
	slices.Sort(others)
	for _, at := range others {
		r := s.policies[at]
		if len(out) == MaxNearly {
			break
		}
		if f.matches(f.resource, r.ast.Resource) {
			out = append(out, r.near(r.head))
		}
	}
	return out
}

func (r *rule) near(missing string) NearMiss {
	return NearMiss{ID: r.id, Source: r.source, Line: r.line, Missing: clip(missing)}
}

// matches reports whether e is what a head's scope asks for.
func (f *facts) matches(e cedar.Entity, scope ast.IsScopeNode) bool {
	isIn := func(parent types.EntityUID) bool { return e.UID == parent || e.Parents.Contains(parent) }
	switch s := scope.(type) {
	case ast.ScopeTypeAll:
		return true
	case ast.ScopeTypeEq:
		return e.UID == s.Entity
	case ast.ScopeTypeIn:
		return isIn(s.Entity)
	case ast.ScopeTypeIs:
		return e.UID.Type == s.Type
	case ast.ScopeTypeIsIn:
		return e.UID.Type == s.Type && isIn(s.Entity)
	}
	return false
}

// failing returns the text of the first part of p's conditions that does not
// hold.
func (f *facts) failing(p *ast.Policy) string {
	for _, c := range p.Conditions {
		if c.Condition == ast.ConditionUnless {
			if f.holds(c.Body) {
				return "!(" + conditionText(c.Body) + ")"
			}
			continue
		}
		if !f.holds(c.Body) {
			return conditionText(f.firstFalse(c.Body))
		}
	}
	return ""
}

// firstFalse goes down a chain of && to the first part that is false.
func (f *facts) firstFalse(n ast.IsNode) ast.IsNode {
	for {
		and, ok := n.(ast.NodeTypeAnd)
		switch {
		case !ok:
			return n
		case !f.holds(and.Left):
			n = and.Left
		default:
			n = and.Right
		}
	}
}

func (f *facts) holds(n ast.IsNode) bool {
	v, err := eval.Eval(n, eval.Env{
		Entities: f, Principal: f.request.Principal, Action: f.request.Action,
		Resource: f.request.Resource, Context: f.request.Context,
	})
	return err == nil && v == types.True
}

// conditionText renders an expression through a policy that holds nothing else,
// since Cedar renders only policies.
func conditionText(n ast.IsNode) string {
	text := render(ast.Permit().When(ast.NewNode(n)))
	_, text, _ = strings.Cut(text, "when { ")
	return strings.TrimSuffix(text, " };")
}

// headText renders what a head asks of the principal.
func headText(p *ast.Policy) string {
	bare := ast.Permit()
	bare.Principal = p.Principal
	text := strings.TrimPrefix(render(bare), "permit (")
	text, _, _ = strings.Cut(strings.TrimSpace(text), ",\n")
	return text
}

func render(p *ast.Policy) string {
	return string(cedar.NewPolicyFromAST((*publicast.Policy)(p)).MarshalCedar())
}
