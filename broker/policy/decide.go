package policy

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	cedar "github.com/cedar-policy/cedar-go"
)

// Decide answers r. It never fails: what cannot be decided is denied, and the
// [Decision] says why. It is safe for concurrent use.
func (s *Set) Decide(r Request) Decision {
	d := Decision{Code: CodeNoPermit, PolicyHash: s.Hash()}
	if s == nil || s.words == nil {
		return d
	}
	f, code, problem := s.words.facts(&r)
	if code != "" {
		d.Code, d.Errors = code, []string{clip(problem)}
		return d
	}
	found := s.candidates(f)
	f.fill(&r, found.needs())
	verdict, diag := cedar.Authorize(found, f, f.request)
	applied := s.applied(diag.Reasons)
	d.Errors = evaluationErrors(diag.Errors)
	switch {
	case len(applied) > 0 && !applied[0].permits():
		d.Code = CodeForbidden
	case len(diag.Errors) > 0:
		// Cedar skips a policy that fails. Were it a forbid, going on would let
		// through what it forbids.
		d.Code = CodePolicyError
		return d
	case verdict == cedar.Allow && len(applied) > 0:
		d.Permit, d.Code = true, CodePermit
		for _, p := range applied {
			d.Obligations.add(p.obligations)
		}
	default:
		d.Nearly = s.nearMisses(f, found)
		return d
	}
	d.Policies = make([]Reason, len(applied))
	for i, p := range applied {
		d.Policies[i] = p.reason()
	}
	return d
}

// applied returns the rules Cedar names, by id. They are all permits or all
// forbids.
func (s *Set) applied(reasons []cedar.DiagnosticReason) []*rule {
	rules := make([]*rule, 0, len(reasons))
	for _, reason := range reasons {
		at, ok := slices.BinarySearchFunc(s.policies, string(reason.PolicyID), func(r *rule, id string) int {
			return strings.Compare(r.id, id)
		})
		if ok {
			rules = append(rules, s.policies[at])
		}
	}
	slices.SortFunc(rules, func(a, b *rule) int { return cmp.Compare(a.id, b.id) })
	return rules
}

func (r *rule) reason() Reason {
	effect := EffectForbid
	if r.permits() {
		effect = EffectPermit
	}
	return Reason{
		ID: r.id, Source: r.source, Line: r.line, Effect: effect, Hash: r.hash,
		Annotations: maps.Clone(r.rest), // the set is shared, the decision is not
	}
}

func evaluationErrors(errs []cedar.DiagnosticError) []string {
	if len(errs) == 0 {
		return nil
	}
	out := make([]string, len(errs))
	for i, e := range errs {
		out[i] = clip(string(e.PolicyID) + ": " + e.Message)
	}
	slices.Sort(out)
	return out[:min(len(out), MaxErrors)]
}
