// Package policy decides: may this principal do this to that, in this context,
// and on what conditions. Cedar evaluates; this package brings the schema, loads
// and checks policies, finds the few that can apply, and gathers obligations and
// reasons.
//
// It is pure. It must not know of a clock, a file, a network or the ledger: all
// that bears on a decision is in the [Set] and the [Request], so that a recorded
// request can be decided again. Whatever goes wrong, the answer is a denial.
package policy

import (
	"time"
)

// Source is one Cedar document. It may hold several policies.
type Source struct {
	// Name is the document's, as reasons and problems cite it.
	Name string
	// Text is the document itself.
	Text string
}

// The codes of a [Decision].
const (
	CodePermit         = "permit"
	CodeNoPermit       = "no_permit"           // nothing permits it
	CodeForbidden      = "forbidden_by_policy" // a forbid applied
	CodePolicyError    = "policy_error"        // a policy could not be evaluated
	CodeUnknownAction  = "unknown_action"      // the schema has no such action
	CodeInvalidRequest = "invalid_request"     // a kind, a pair or a size that the schema or the limits exclude
)

// The effects in a [Reason].
const (
	EffectPermit = "permit"
	EffectForbid = "forbid"
)

// Decision is the answer to a [Request]. The zero value denies. Its JSON form is
// stable and deterministic: it is part of a replicated command.
type Decision struct {
	Permit bool   `json:"permit"`
	Code   string `json:"code"`
	// Policies made the decision: the permits that applied or, when one did, the
	// forbids. Sorted by ID. Empty when nothing permitted.
	Policies []Reason `json:"policies,omitempty"`
	// Errors says what could not be evaluated or was wrong with the request;
	// sorted, at most [MaxErrors].
	Errors []string `json:"errors,omitempty"`
	// Nearly lists permits that would have applied but for one thing. Only with
	// [CodeNoPermit]; at most [MaxNearly].
	Nearly []NearMiss `json:"nearly,omitempty"`
	// Obligations hold for a permit only.
	Obligations Obligations `json:"obligations,omitzero"`
	// PolicyHash is [Set.Hash] of the set that decided.
	PolicyHash string `json:"policy_hash"`
}

// Reason names one policy that made a decision.
type Reason struct {
	ID     string `json:"id"`
	Source string `json:"source"`
	// Line is where the policy starts in its source, from 1.
	Line   int    `json:"line"`
	Effect string `json:"effect"`
	// Hash is the SHA-256 of the policy's text, in hex. What must hold on to the
	// policies that decided, but not to their neighbours, binds to it.
	Hash string `json:"hash"`
	// Annotations are the policy's own, without @id.
	Annotations map[string]string `json:"annotations,omitempty"`
}

// NearMiss is a permit that did not apply, and why.
type NearMiss struct {
	ID     string `json:"id"`
	Source string `json:"source"`
	Line   int    `json:"line"`
	// Missing is the Cedar text of what did not hold: a part of a condition, or
	// the scope's demand on the principal.
	Missing string `json:"missing"`
}

// Obligations are the conditions of a permit: the strictest of all permits that
// applied. The zero value asks for nothing.
type Obligations struct {
	// MaxTTL is the longest life of what is issued; 0 means that policy sets no
	// limit of its own. Whole seconds.
	MaxTTL time.Duration `json:"max_ttl_ns,omitempty"`
	// Approvals are all needed; one per group, sorted by group.
	Approvals []Quorum `json:"approvals,omitempty"`
	// StepUp is the fresh authentication the principal must show; "" for none.
	StepUp string `json:"step_up,omitempty"`
	// ApprovalTTL is how long the grant may wait for its approvals; 0 means that
	// policy sets no limit of its own. Whole seconds.
	ApprovalTTL time.Duration `json:"approval_ttl_ns,omitempty"`
}

// Quorum asks for Count distinct approvers of Group.
type Quorum struct {
	Group string `json:"group"`
	Count int    `json:"count"`
	// Policy is the ID of the policy that asks for that many; the first by ID
	// where several do.
	Policy string `json:"policy"`
}

// Set is a compiled set of policies. It is immutable and may be shared. The zero
// value, and nil, holds no policy and so denies everything.
type Set struct {
	words    *vocabulary
	policies []*rule // sorted by id, which sorts every list of reasons
	index    index
	hash     string
}

// Len returns the number of policies.
func (s *Set) Len() int {
	if s == nil {
		return 0
	}
	return len(s.policies)
}

// Hash identifies the policies of the set, in hex. It depends on their text, not
// on the order, the names or the comments between them of the sources.
func (s *Set) Hash() string {
	if s == nil || s.hash == "" {
		return hashOf(nil)
	}
	return s.hash
}
