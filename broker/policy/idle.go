package policy

import (
	"fmt"
	"slices"
	"strings"
)

// Idle finds the permits that ask for approvals or a step-up and name none but
// the given actions, which never wait for either: whoever wrote them expects what
// does not happen.
func (s *Set) Idle(actions ...string) Problems {
	var out Problems
	if s == nil {
		return out
	}
	for _, r := range s.policies {
		if len(r.obligations.Approvals) == 0 && r.obligations.StepUp == "" {
			continue
		}
		idle := true
		for _, a := range headActions(r.ast.Action) { // an unnamed action is none of those given
			idle = idle && slices.Contains(actions, string(a.ID))
		}
		if idle {
			out = append(out, Problem{Source: r.source, Line: r.line, Policy: r.id,
				What: fmt.Sprintf("@%s and @%s mean nothing for %s: what only takes power away never waits. Leave them out, and name fewer people instead", annApprovals, annStepUp, strings.Join(actions, " and "))})
		}
	}
	return out
}
