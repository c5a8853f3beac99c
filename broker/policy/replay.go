package policy

import (
	"fmt"
	"slices"
	"strings"
)

// Same reports whether o asks for just what p asks for. Which policy asks for a
// quorum makes no difference.
func (o Obligations) Same(p Obligations) bool {
	return o.MaxTTL == p.MaxTTL && o.ApprovalTTL == p.ApprovalTTL && o.StepUp == p.StepUp &&
		slices.EqualFunc(o.Approvals, p.Approvals, func(a, b Quorum) bool { return a.Group == b.Group && a.Count == b.Count })
}

// maxNamed bounds the policies that a brief names.
const maxNamed = 3

// Brief says on one line how a decision came out, by which policies and on what
// conditions. What could hide or rearrange the text is escaped.
func Brief(d Decision) string {
	switch {
	case d.Permit:
		return "permitted by " + briefIDs(d.Policies) + briefObligations(d.Obligations)
	case d.Code == CodeForbidden:
		return "forbidden by " + briefIDs(d.Policies)
	case d.Code == CodeNoPermit && len(d.Nearly) > 0:
		n := d.Nearly[0]
		return fmt.Sprintf("no policy permits it; %s would, but for: %s", visible(n.ID), oneLine(n.Missing))
	case d.Code == CodeNoPermit:
		return "no policy permits it"
	case len(d.Errors) > 0:
		return visible(d.Code) + ": " + oneLine(d.Errors[0])
	default:
		return visible(d.Code)
	}
}

func briefIDs(reasons []Reason) string {
	var ids []string
	for i, p := range reasons {
		if i == maxNamed {
			ids = append(ids, fmt.Sprintf("%d more", len(reasons)-i))
			break
		}
		ids = append(ids, visible(p.ID))
	}
	return strings.Join(ids, ", ")
}

func briefObligations(o Obligations) string {
	var parts []string
	if o.MaxTTL > 0 {
		parts = append(parts, "for at most "+o.MaxTTL.String())
	}
	for _, q := range o.Approvals {
		parts = append(parts, fmt.Sprintf("with %d of %s", q.Count, visible(q.Group)))
	}
	if o.ApprovalTTL > 0 {
		parts = append(parts, "approved within "+o.ApprovalTTL.String())
	}
	if o.StepUp != "" {
		parts = append(parts, "with a fresh "+visible(o.StepUp))
	}
	if len(parts) == 0 {
		return ""
	}
	return ", " + strings.Join(parts, ", ")
}
