package policy

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	cedar "github.com/cedar-policy/cedar-go"
)

// The annotations that a policy may carry.
const (
	annID          = "id"
	annMaxTTL      = "max_ttl"
	annApprovals   = "approvals"
	annApprovers   = "approvers"
	annStepUp      = "step_up"
	annApprovalTTL = "approval_ttl"
	annDescription = "description"
)

var allAnnotations = []string{annApprovalTTL, annApprovals, annApprovers, annDescription, annID, annMaxTTL, annStepUp}

// stepUps are the values of @step_up, from the weakest to the strongest.
var stepUps = []string{"passkey"}

var (
	idPattern    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$`)
	countPattern = regexp.MustCompile(`^[1-9][0-9]{0,2}$`)
)

// notes is what a policy's annotations mean.
type notes struct {
	id          string
	obligations Obligations
	rest        map[string]string // all but @id
}

// readAnnotations refuses whatever it does not fully understand: an obligation
// that is misread would be one that is not asked for.
func readAnnotations(given cedar.Annotations, effect cedar.Effect) (notes, []string) {
	var n notes
	var problems []string
	complain := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }

	obliges := false
	for _, key := range slices.Sorted(maps.Keys(given)) {
		name, value := string(key), string(given[key])
		if !slices.Contains(allAnnotations, name) {
			complain("unknown annotation @%s; allowed are @%s", name, strings.Join(allAnnotations, ", @"))
			continue
		}
		obliges = obliges || (name != annID && name != annDescription)
		if err := n.read(name, value); err != nil {
			complain("%s", err)
		}
	}
	if _, ok := given[annID]; !ok {
		complain(`@id is missing; every policy needs one, as in @id("dba-write")`)
	}
	if obliges && effect == cedar.Forbid {
		complain("a forbid cannot carry obligations (@%s); put them on a permit",
			strings.Join([]string{annApprovals, annApprovers, annApprovalTTL, annMaxTTL, annStepUp}, ", @"))
	}
	_, approvals := given[annApprovals]
	_, approvers := given[annApprovers]
	// @approval_ttl may stand alone: the role itself may ask for approvals.
	if approvals != approvers {
		complain(`@approvals and @approvers come together, as in @approvals("2") @approvers("dba")`)
	}
	if len(problems) == 0 && approvals {
		n.obligations.Approvals[0].Policy = n.id
	}
	return n, problems
}

// read takes one known annotation.
func (n *notes) read(name, value string) error {
	if name != annID {
		if n.rest == nil {
			n.rest = make(map[string]string)
		}
		n.rest[name] = value
	}
	var err error
	switch name {
	case annID:
		if !idPattern.MatchString(value) {
			return fmt.Errorf("@id(%q) must be 1 to 128 letters, digits, or . _ / - and start with a letter or digit", value)
		}
		n.id = value
	case annMaxTTL:
		n.obligations.MaxTTL, err = readTTL(name, value)
	case annApprovalTTL:
		n.obligations.ApprovalTTL, err = readTTL(name, value)
	case annApprovals:
		count, convErr := strconv.Atoi(value)
		if convErr != nil || !countPattern.MatchString(value) || count > MaxApprovalCount {
			return fmt.Errorf("@approvals(%q) must be a whole number from 1 to %d", value, MaxApprovalCount)
		}
		n.quorum().Count = count
	case annApprovers:
		if problem := checkText(value, MaxEntityIDBytes); problem != "" || value == "" || strings.ContainsAny(value, ", ") {
			return fmt.Errorf("@approvers(%q) must name one group; a second group needs a permit of its own", value)
		}
		n.quorum().Group = value
	case annStepUp:
		if !slices.Contains(stepUps, value) {
			return fmt.Errorf("@step_up(%q) is not known; allowed are %s", value, strings.Join(stepUps, ", "))
		}
		n.obligations.StepUp = value
	case annDescription:
		if problem := checkText(value, MaxDescriptionBytes); problem != "" {
			return fmt.Errorf("@description %s", problem)
		}
	}
	return err
}

func (n *notes) quorum() *Quorum {
	if len(n.obligations.Approvals) == 0 {
		n.obligations.Approvals = make([]Quorum, 1)
	}
	return &n.obligations.Approvals[0]
}

func readTTL(name, value string) (time.Duration, error) {
	d, err := time.ParseDuration(value)
	if err != nil || d <= 0 || d%time.Second != 0 || d > MaxAnnotationTTL {
		return 0, fmt.Errorf(`@%s(%q) must be a duration of whole seconds between "1s" and %q, as in "15m" or "8h"`, name, value, MaxAnnotationTTL)
	}
	return d, nil
}

// add makes o at least as strict as p. Nothing in it can make o looser.
func (o *Obligations) add(p Obligations) {
	o.MaxTTL = shorter(o.MaxTTL, p.MaxTTL)
	o.ApprovalTTL = shorter(o.ApprovalTTL, p.ApprovalTTL)
	if slices.Index(stepUps, p.StepUp) > slices.Index(stepUps, o.StepUp) {
		o.StepUp = p.StepUp
	}
	for _, q := range p.Approvals {
		at, found := slices.BinarySearchFunc(o.Approvals, q.Group, func(have Quorum, group string) int {
			return strings.Compare(have.Group, group)
		})
		switch {
		case !found:
			o.Approvals = slices.Insert(o.Approvals, at, q)
		case q.Count > o.Approvals[at].Count: // approvers are distinct, so the larger quorum holds the smaller
			o.Approvals[at] = q
		}
	}
}

// shorter returns the shorter of two limits, of which 0 is none.
func shorter(a, b time.Duration) time.Duration {
	if a == 0 || (b != 0 && b < a) {
		return b
	}
	return a
}
