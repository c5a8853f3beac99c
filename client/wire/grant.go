package wire

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/scope"
)

// States of a grant. All but waiting, approved and open are final.
const (
	GrantWaiting   = "waiting"   // for approvals
	GrantApproved  = "approved"  // may be collected
	GrantOpen      = "open"      // collected: a lease on it lives, or may still be opened
	GrantEnded     = "ended"     // used up
	GrantDenied    = "denied"    // by an approver
	GrantCancelled = "cancelled" // by the requester, or its task has ended
	GrantExpired   = "expired"   // not approved or not collected in time
	GrantVoid      = "void"      // what it rested on has changed
	GrantRevoked   = "revoked"   // by an approver, afterwards
)

// Kinds of grants.
const (
	GrantAccess    = "access"    // a credential
	GrantChange    = "change"    // of configuration
	GrantEmergency = "emergency" // a credential, reviewed afterwards
)

// Need is one quorum: so many people of a group.
type Need struct {
	Group    string `json:"group"`
	Required int    `json:"required"`
	Have     int    `json:"have"`
	// Eligible is how many people could still fill it, those that have signed included.
	Eligible int    `json:"eligible"`
	By       string `json:"by,omitempty" doc:"Who asks for it: role, policy:ID or genesis"`
}

// Waiting is what a request gets that needs approvals.
type Waiting struct {
	Hash          string     `json:"hash,omitempty" doc:"What approvers sign, in hex"`
	CollectBefore *time.Time `json:"collect_before,omitempty"`
	URL           string     `json:"url,omitempty" doc:"The grant's page in the console"`
	Needs         []Need     `json:"needs,omitempty"`
	StepUp        string     `json:"step_up,omitempty" doc:"The requester's person must sign too, with this kind of key"`
}

// Approval is one co-signature.
type Approval struct {
	Principal string    `json:"principal"`
	Key       string    `json:"key" doc:"RFC 7638 thumbprint"`
	Kind      string    `json:"kind" doc:"passkey, ssh or jws"`
	At        time.Time `json:"at"`
	// Counts is false where it no longer does: the person has left the group, or
	// the key was removed.
	Counts bool   `json:"counts"`
	Why    string `json:"why,omitempty" doc:"Why it does not count"`
	StepUp bool   `json:"step_up,omitempty" doc:"The requester's own"`
}

// Grant is a permission: asked for, approved where that is needed, used.
type Grant struct {
	ID         string      `json:"grant_id"`
	Kind       string      `json:"kind" doc:"access, change or emergency"`
	State      string      `json:"state"`
	Principal  string      `json:"principal"`
	Role       string      `json:"role,omitempty"`
	Target     string      `json:"target,omitempty"`
	Scope      scope.Scope `json:"scope,omitempty"`
	TaskID     string      `json:"task_id,omitempty"`
	Purpose    string      `json:"purpose,omitempty"`
	Reason     string      `json:"reason,omitempty" doc:"Of an emergency or a change"`
	DecisionID string      `json:"decision_id"`

	RequestedAt   time.Time  `json:"requested_at"`
	CollectBefore *time.Time `json:"collect_before,omitempty"`
	EndsBy        *time.Time `json:"ends_by,omitempty"`
	MaxLeases     int        `json:"max_leases,omitempty"`
	Leases        []string   `json:"leases"`

	// Domain, Hash and Document are what approvers sign: the hash is SHA-256 of
	// the domain, a NUL and the document's bytes exactly as they stand here.
	Domain   string          `json:"domain,omitempty"`
	Hash     string          `json:"hash,omitempty"`
	Document json.RawMessage `json:"document,omitempty"`

	Needs     []Need     `json:"needs,omitempty"`
	StepUp    string     `json:"step_up,omitempty"`
	Approvals []Approval `json:"approvals,omitempty"`
	// MayApprove says whether the caller could approve it now; WhyNot why not.
	MayApprove bool   `json:"may_approve"`
	WhyNot     string `json:"why_not,omitempty"`

	EndedAt   *time.Time `json:"ended_at,omitempty"`
	EndedBy   string     `json:"ended_by,omitempty"`
	EndReason string     `json:"end_reason,omitempty" doc:"An approver's words, or what changed"`

	Review *Review `json:"review,omitempty"`
	// Version grows with every change of the grant; a long poll waits for one
	// that is not the given.
	Version uint64 `json:"version"`
	GrantWay
}

// GrantWay is where a grant is shown, and where it leads.
type GrantWay struct {
	URL string `json:"url,omitempty"`
	// Opens is set where the grant gives out an account that lives on. It is the
	// account as it is now, by the cluster's word; nobody signs it.
	Opens *Opens `json:"opens,omitempty"`
}

// Opens says what a grant on an account lets its requester into.
type Opens struct {
	Account   string   `json:"account"`
	Usernames []string `json:"usernames" doc:"Its name on the target, or two that take turns"`
	Target    string   `json:"target"`
	System    string   `json:"system" doc:"The target's type, and its address where it has one"`
	// OneHolder: the secret is replaced after each use; otherwise it is shared.
	OneHolder bool   `json:"one_holder"`
	Secret    string `json:"secret" doc:"Who else has the secret, and until when it works, in a sentence"`
}

// Text says it in a sentence.
func (o Opens) Text() string {
	return "logs in as " + strings.Join(o.Usernames, " or ") + " on target " + o.Target + ", " + o.System + " (account " + o.Account + ")"
}

// Review is the second look at an emergency grant.
type Review struct {
	Due      time.Time `json:"due"`
	Overdue  bool      `json:"overdue"`
	Done     bool      `json:"done"`
	Needs    []Need    `json:"needs"`
	Verdicts []Verdict `json:"verdicts"`
}

// Verdict is one reviewer's word.
type Verdict struct {
	Principal string    `json:"principal"`
	Verdict   string    `json:"verdict" doc:"justified or unjustified"`
	Note      string    `json:"note,omitempty"`
	At        time.Time `json:"at"`
}

// Signature is a co-signature, or the proof of a key; binary fields are base64.
type Signature struct {
	Kind              string `json:"kind" doc:"passkey, ssh or jws"`
	Key               string `json:"key" doc:"RFC 7638 thumbprint of the signing key"`
	AuthenticatorData []byte `json:"authenticator_data,omitempty"`
	ClientDataJSON    []byte `json:"client_data_json,omitempty"`
	Assertion         []byte `json:"assertion,omitempty"`
	SSHSIG            []byte `json:"sshsig,omitempty" doc:"The blob inside the armour"`
	JWS               string `json:"jws,omitempty" doc:"Compact; its payload is the 32 bytes of the hash"`
}

// ApproveRequest approves exactly the document with that hash.
type ApproveRequest struct {
	Hash      string    `json:"hash"`
	Signature Signature `json:"signature"`
}

// EndGrantRequest denies, cancels or revokes a grant.
type EndGrantRequest struct {
	Reason string `json:"reason,omitempty"`
}

// CollectRequest picks up what was approved. CSR and PublicKey are as in the request.
type CollectRequest struct {
	CSR       string          `json:"csr,omitempty"`
	PublicKey json.RawMessage `json:"public_key,omitempty"`
}

// ReviewRequest is a reviewer's word on an emergency grant, signed.
type ReviewRequest struct {
	Verdict   string    `json:"verdict" doc:"justified or unjustified"`
	Note      string    `json:"note,omitempty"`
	Signature Signature `json:"signature"`
}

// ApproveKey is a key to approve with, as it is registered: an SSH public key in
// authorized_keys form or a JWK. Passkeys are registered in the console.
type ApproveKey struct {
	SSH string          `json:"ssh,omitempty"`
	JWK json.RawMessage `json:"jwk,omitempty"`
}

// KeyDocument asks for the document that a new approver's key signs, and a key
// that vouches for it.
type KeyDocument struct {
	Document json.RawMessage `json:"document"`
	Hash     string          `json:"hash"`
	Domain   string          `json:"domain"`
	// Vouch says who else must sign: "" nobody, "key" one of the person's own
	// approval keys, "approvers" a quorum (then adding it answers with a grant).
	Vouch string `json:"vouch"`
}
