package wire

import (
	"time"

	"github.com/mayfly-broker/mayfly/scope"
)

// Changes that a replay finds.
const (
	ChangePermitToDeny = "permit_to_deny"
	ChangeDenyToPermit = "deny_to_permit"
	ChangeObligations  = "obligations" // permitted before and after, on other conditions
)

// PolicyReplayRequest decides recorded history again, by drafts. The commands
// looked at are those between Since and Until, the newest Last of them, from
// From up to To; all that are given hold together. With none of From, Since and
// Last, the newest 10,000 are meant.
type PolicyReplayRequest struct {
	Policies []Object `json:"policies,omitempty" doc:"Drafts: each replaces the policy of its name, or is added"`
	Delete   []string `json:"delete,omitempty" doc:"Names of policies that the draft leaves out"`

	Since *time.Time `json:"since,omitempty"`
	Until *time.Time `json:"until,omitempty" doc:"Not included"`
	Last  uint64     `json:"last,omitempty" doc:"So many of the newest commands"`
	// From and To go on where an answer stopped: its next and its to.
	From uint64 `json:"from,omitempty" doc:"The first command's sequence number"`
	To   uint64 `json:"to,omitempty" doc:"The sequence number after the last command; 0: the newest"`
	// Limit is how many commands one call looks at, at most and by default 50,000.
	Limit int `json:"limit,omitempty"`
}

// PolicyReplayAnswer says what would have come out otherwise.
type PolicyReplayAnswer struct {
	From uint64 `json:"from"`
	To   uint64 `json:"to" doc:"The sequence number after the last command of the whole range"`
	// Next is where to go on, with the same To; 0 when the range is done.
	Next  uint64     `json:"next"`
	First *time.Time `json:"first,omitempty" doc:"When the first command looked at was recorded"`
	Last  *time.Time `json:"last,omitempty"`

	Entries   int `json:"entries" doc:"Commands looked at"`
	Decisions int `json:"decisions" doc:"Decisions made again"`
	// Moot are recorded permits that came to nothing for another reason, a cap or
	// a scope; they are not decided again.
	Moot       int `json:"moot"`
	Unreadable int `json:"unreadable,omitempty" doc:"Decisions that this build cannot read"`

	Same         int `json:"same"`
	PermitToDeny int `json:"permit_to_deny"`
	DenyToPermit int `json:"deny_to_permit"`
	Obligations  int `json:"obligations" doc:"Permitted before and after, on other conditions"`

	Groups []PolicyReplayGroup `json:"groups"`
	// Omitted is how many differences stand in no group, because there are too many groups.
	Omitted int `json:"omitted,omitempty"`
	// PolicyHash names the policies that decided, the draft's among the live ones.
	PolicyHash string `json:"policy_hash"`
}

// Differences is how many decisions would have come out otherwise.
func (a PolicyReplayAnswer) Differences() int {
	return a.PermitToDeny + a.DenyToPermit + a.Obligations
}

// PolicyReplayGroup is all differences of one sort about one principal, action and resource.
type PolicyReplayGroup struct {
	Change    string `json:"change" doc:"permit_to_deny, deny_to_permit or obligations"`
	Principal string `json:"principal"`
	Action    string `json:"action"`
	// Resource is KIND/NAME; of what lives briefly, a grant or a lease, it is the
	// kind and where it belongs: "Grant of Role/orders/readwrite".
	Resource string `json:"resource"`
	Count    int    `json:"count"`
	// Already is how many of them come out so under today's policies too: those
	// are not the draft's doing.
	Already int       `json:"already,omitempty"`
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
	// DecisionID is the newest one's, an example; Before and After are its reasons.
	DecisionID string `json:"decision_id"`
	Before     string `json:"before"`
	After      string `json:"after"`
}

// What is known of a requester's earlier leases on a role.
const (
	SeenRecently = "recently" // within the days looked at
	SeenEarlier  = "earlier"  // before them
	SeenNever    = "never"    // the ledger has none
	SeenUnknown  = "unknown"  // none was found, but not everything was looked at
)

// PreviousAccess is what a requester had before on the role and target of a
// grant. It is the cluster's word, and no part of what approvers sign.
type PreviousAccess struct {
	GrantID   string `json:"grant_id"`
	Principal string `json:"principal"`
	Role      string `json:"role"`
	Target    string `json:"target"`
	Days      int    `json:"days" doc:"How far back was to be looked, from the request on"`
	// Since is how far back everything was looked at; Cut says that it is less
	// than Days, because there are too many leases.
	Since time.Time `json:"since"`
	Cut   bool      `json:"cut,omitempty"`

	Seen     string     `json:"seen" doc:"recently, earlier, never or unknown: leases on the role"`
	Count    int        `json:"count" doc:"Leases on the role within the days"`
	OnTarget int        `json:"on_target" doc:"Leases on the target within the days, by any role"`
	Last     *time.Time `json:"last,omitempty" doc:"When the newest lease on the role was opened"`

	// Scope is the union of what its leases on the target allowed.
	Scope scope.Scope `json:"scope,omitempty"`
	// Wider says that the grant allows what none of them did; By is what.
	Wider bool   `json:"wider"`
	By    string `json:"by,omitempty"`
	// NewActions are the grant's actions that none of them allowed.
	NewActions []string `json:"new_actions,omitempty"`
	Text       string   `json:"text" doc:"The same in a sentence"`
}
