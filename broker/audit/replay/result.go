package replay

import (
	"fmt"
	"time"

	"github.com/mayfly-broker/mayfly/broker/audit"
	"github.com/mayfly-broker/mayfly/broker/ledger"
)

// A Result is what executing the ledger again has shown. Counts are of what the
// rules give, which is what is recorded unless Defects says otherwise.
type Result struct {
	// Entries were executed; Refused of them are recorded as refusals.
	Entries int64 `json:"entries"`
	Refused int64 `json:"refused"`
	// SizeAssumed counts refusals that stand only if a secret was too long.
	SizeAssumed int64 `json:"size_assumed,omitempty"`
	// Stopped says why nothing after some entry could be executed; "" if all was.
	Stopped string `json:"stopped,omitempty"`

	Genesis Genesis `json:"genesis"`
	Grants  Grants  `json:"grants"`
	Leases  Leases  `json:"leases"`
	// Signatures counts verified co-signatures by the kind of their keys.
	Signatures map[string]int64 `json:"signatures"`
	Reviews    Reviews          `json:"emergencies"`
	// Changes were made under dual control.
	Changes int64 `json:"changes_under_dual_control"`

	Approvals []Approval `json:"approvals"`
	Keys      []Key      `json:"approval_keys"`
	// Defects are what disagrees, in order; their codes are outcome, unreadable,
	// genesis, floor, custody, signature and vouch.
	Defects []Defect `json:"defects"`
	LeftOut LeftOut  `json:"left_out"`
}

// LeftOut counts what a Result does not list, for its bounds.
type LeftOut struct {
	Approvals int64 `json:"approvals"`
	Keys      int64 `json:"approval_keys"`
	Defects   int64 `json:"defects"`
}

// Defect is an [audit.Defect] of the ledger's content.
type Defect struct {
	Seq    int64  `json:"seq"`
	Line   int64  `json:"line"` // of the export
	Code   string `json:"code"`
	Detail string `json:"detail"`
}

// Genesis is what the genesis record says of who governs.
type Genesis struct {
	At          time.Time         `json:"at"`
	Cluster     string            `json:"cluster"`
	Incarnation int               `json:"incarnation"`
	VerifierKey string            `json:"verifier_key"`
	Approvals   []ledger.Approval `json:"approvals"` // none: no dual control
	Founders    []ledger.Founder  `json:"founders"`
	// Objects are the first ones, as Kind/name: nobody approved them but whoever
	// ran operator init.
	Objects []string `json:"objects"`
}

// Grants counts grants that have a record of their own.
type Grants struct {
	Asked       int64 `json:"asked"` // access, changes and emergencies
	Access      int64 `json:"access"`
	Changes     int64 `json:"changes"`
	Emergencies int64 `json:"emergencies"`
	// Approved had all their signatures once.
	Approved int64 `json:"approved"`
	// States counts them by what they are at the end.
	States map[string]int64 `json:"states"`
}

// Leases counts credentials.
type Leases struct {
	Opened int64 `json:"opened"`
	// Cosigned stand on a grant that was approved, Emergency on one that was not.
	Cosigned  int64 `json:"cosigned"`
	Emergency int64 `json:"emergency"`
	// Floored are on roles that asked for approvals when the lease was opened.
	Floored int64 `json:"on_roles_with_floor"`
}

// Reviews counts emergencies and their second look.
type Reviews struct {
	Begun    int64 `json:"begun"`
	Reviewed int64 `json:"reviewed"`
	// Unreviewed ones are listed; Overdue counts those past their day.
	Unreviewed []string `json:"unreviewed"`
	Overdue    int64    `json:"overdue"`
}

// Approval is one verified co-signature.
type Approval struct {
	Seq   int64     `json:"seq"`
	At    time.Time `json:"at"`
	Grant string    `json:"grant_id"`
	Kind  string    `json:"kind"` // access, change, emergency
	// What is the role, or what the change changes; For is who asked.
	What string `json:"what"`
	For  string `json:"for"`
	// Hash is what was signed: of the document with Domain.
	Domain string `json:"domain"`
	Hash   string `json:"hash"`
	By     string `json:"by"`
	Person string `json:"person"`
	Key    string `json:"key"`
	// KeyKind is passkey, ssh or jws.
	KeyKind string `json:"key_kind"`
	StepUp  bool   `json:"step_up,omitempty"`
	// Verdict is a reviewer's.
	Verdict string `json:"verdict,omitempty"`
	// Completed: with this one the grant had all it needed, or the review.
	Completed bool `json:"completed,omitempty"`
}

// Key is a key to approve with, and how it came in.
type Key struct {
	Seq        int64     `json:"seq"`
	At         time.Time `json:"at"`
	Principal  string    `json:"principal"`
	Thumbprint string    `json:"thumbprint"`
	Kind       string    `json:"kind"`
	VouchedBy  string    `json:"vouched_by"` // in words; "" is a defect
}

func newResult() *Result {
	return &Result{
		Signatures: map[string]int64{}, Grants: Grants{States: map[string]int64{}}, Reviews: Reviews{Unreviewed: []string{}},
		Genesis:   Genesis{Approvals: []ledger.Approval{}, Founders: []ledger.Founder{}, Objects: []string{}},
		Approvals: []Approval{}, Keys: []Key{}, Defects: []Defect{},
	}
}

func (r *Result) defect(seq int64, code, text string) {
	if len(r.Defects) >= MaxDefects {
		r.LeftOut.Defects++
		return
	}
	r.Defects = append(r.Defects, Defect{Seq: seq, Line: seq + 2, Code: code, Detail: text}) // after the header, counted from 1
}

func (r *Result) approval(a Approval) {
	r.Signatures[a.KeyKind]++
	if len(r.Approvals) >= MaxApprovals {
		r.LeftOut.Approvals++
		return
	}
	r.Approvals = append(r.Approvals, a)
}

func (r *Result) key(k Key) {
	if len(r.Keys) >= MaxKeys {
		r.LeftOut.Keys++
		return
	}
	r.Keys = append(r.Keys, k)
}

// close counts what is left at the end.
func (r *Result) close(c check) {
	c.CosignedGrants("", func(g ledger.Cosigned) bool {
		r.Grants.States[g.State]++
		if g.Review != nil && g.Review.DoneMS == 0 {
			if g.Review.DueMS < c.ms {
				r.Reviews.Overdue++
			}
			if len(r.Reviews.Unreviewed) < MaxEmergency {
				r.Reviews.Unreviewed = append(r.Reviews.Unreviewed, g.ID)
			}
		}
		return true
	})
}

// Caveats says in sentences what was not proven, beyond the chain's own.
func (r Report) Caveats() []string {
	out := r.Chain.Caveats()
	if r.Result == nil {
		return append(out, "Co-signatures and outcomes were not checked: that takes an export from the beginning (mayfly audit export without --from), verified without --chain-only.")
	}
	if n := r.Result.SizeAssumed; n > 0 {
		out = append(out, fmt.Sprintf("%d refusals stand only if a secret had more than %d bytes; that cannot be told without the secret.", n, ledger.MaxSecretBytes))
	}
	if len(r.Result.Genesis.Approvals) == 0 && r.Result.Genesis.Cluster != "" {
		out = append(out, "Dual control of administration is off: one administrator alone could change roles, groups and policies.")
	}
	return out
}

// Error says it as the chain's defects are said.
func (d Defect) Error() string {
	return (&audit.Defect{Line: d.Line, Seq: d.Seq, Code: d.Code, Detail: d.Detail}).Error()
}
