// Package wire holds the JSON shapes of the native API: one struct per request
// and answer, shared by the broker that serves them and the client that calls.
//
// Fields may be added, never changed. Times are RFC 3339 in UTC, durations are
// strings like "15m", sizes are bytes. The package must know nothing of either
// side; it imports nothing of the broker.
package wire

import (
	"encoding/json"
	"time"

	"github.com/mayfly-broker/mayfly/scope"
)

// Problem is an RFC 9457 problem document, media type application/problem+json.
type Problem struct {
	Type       string `json:"type" doc:"URI of the problem's page; about:blank where there is none"`
	Title      string `json:"title" doc:"The kind of problem in words"`
	Status     int    `json:"status"`
	Detail     string `json:"detail" doc:"What was wrong, what is allowed, what to do next"`
	Code       string `json:"code" doc:"Stable, machine-readable"`
	Kind       string `json:"kind,omitempty" doc:"Coarse class: invalid, denied, unavailable …"`
	DecisionID string `json:"decision_id,omitempty" doc:"The recorded decision, for mayfly policy explain"`
	RetryAfter int    `json:"retry_after_s,omitempty" doc:"Seconds after which a retry may help"`
}

// LoginRequest opens a session. The client proves its key in the same request
// by a DPoP header (RFC 9449) or by a TLS client certificate.
type LoginRequest struct {
	Method string `json:"method,omitempty" doc:"Name of the AuthMethod; empty for the built-in key method and for enrolment"`
	// Token is the evidence: an ID token, a service-account token, a JWT-SVID,
	// or the assertion of the key method.
	Token string `json:"token,omitempty" doc:"Evidence: ID token, service-account token or key assertion"`
	// EnrolmentToken registers the proven key for the principal it was made for.
	EnrolmentToken string `json:"enrolment_token,omitempty"`
	// JWK is the client's public key; needed with EnrolmentToken.
	JWK json.RawMessage `json:"jwk,omitempty"`
}

// LoginAnswer is an open session.
type LoginAnswer struct {
	SessionToken string    `json:"session_token"`
	TokenType    string    `json:"token_type" doc:"DPoP or mTLS"`
	SessionID    string    `json:"session_id"`
	Principal    string    `json:"principal"`
	Instance     string    `json:"instance,omitempty"`
	Method       string    `json:"method"`
	ExpiresAt    time.Time `json:"expires_at"`
	// Founder says that the enrolment token vouches for the person's first key to
	// approve with.
	Founder bool `json:"founder,omitempty"`
}

// Whoami describes the caller's session.
type Whoami struct {
	Principal   string            `json:"principal"`
	Instance    string            `json:"instance,omitempty"`
	Groups      []string          `json:"groups"`
	Owner       string            `json:"owner,omitempty"`
	SessionID   string            `json:"session_id"`
	Binding     string            `json:"binding" doc:"dpop, mtls or bearer"`
	Method      string            `json:"method"`
	AttestedKey bool              `json:"attested_key"`
	Facts       map[string]string `json:"facts,omitempty"`
	ExpiresAt   time.Time         `json:"expires_at"`
	Cluster     string            `json:"cluster"`
}

// Key is a registered public key.
type Key struct {
	Thumbprint string          `json:"thumbprint" doc:"RFC 7638"`
	Principal  string          `json:"principal"`
	Use        string          `json:"use" doc:"session or approve"`
	Kind       string          `json:"kind,omitempty" doc:"Of a key to approve with: passkey, ssh or jws"`
	JWK        json.RawMessage `json:"jwk"`
	SSH        string          `json:"ssh,omitempty" doc:"An SSH key in authorized_keys form"`
	// GrantID is set where the key waits for approvers.
	GrantID string    `json:"grant_id,omitempty"`
	AddedAt time.Time `json:"added_at"`
	AddedBy string    `json:"added_by,omitempty"`
}

// AddKeyRequest registers a key for the caller or, where policy lets it, for
// another principal.
type AddKeyRequest struct {
	Principal string `json:"principal,omitempty"`
	Use       string `json:"use,omitempty" doc:"session (default) or approve"`
	// JWK is a key for sessions; Approve is one to approve with.
	JWK     json.RawMessage `json:"jwk,omitempty"`
	Approve *ApproveKey     `json:"approve,omitempty"`
	// Proof is the new approval key's own signature over its [KeyDocument], and
	// Vouch that of one that the person already has.
	Proof *Signature `json:"proof,omitempty"`
	Vouch *Signature `json:"vouch,omitempty"`
}

// EnrolRequest asks for a one-time enrolment token.
type EnrolRequest struct {
	TTL string `json:"ttl,omitempty" doc:"How long the token may be used; default 1h"`
}

// EnrolAnswer is a one-time enrolment token, shown once.
type EnrolAnswer struct {
	Principal string    `json:"principal"`
	Token     string    `json:"token"`
	ExpiresAt time.Time `json:"expires_at"`
	Command   string    `json:"command" doc:"What the principal pastes"`
}

// Object is one document of configuration.
type Object struct {
	Kind      string          `json:"kind"`
	Name      string          `json:"name"`
	Version   uint64          `json:"version,omitempty"`
	Spec      json.RawMessage `json:"spec"`
	ChangedAt *time.Time      `json:"changed_at,omitempty"`
	ChangedBy string          `json:"changed_by,omitempty"`
	// Sealed names the secret fields that the broker holds; never their values.
	Sealed []string `json:"sealed,omitempty"`
	// Secrets are read by the client from files and sealed by the broker. Only
	// in requests.
	Secrets map[string]string `json:"secrets,omitempty"`
	// Rotation is what its rotation has come to, where it has one. Only in answers.
	Rotation *Rotation `json:"rotation,omitempty"`
}

// Rotation is where the replacing of a secret that lives on stands.
type Rotation struct {
	Kind   string `json:"kind"` // Account or Target
	Name   string `json:"name"`
	Target string `json:"target"`
	// Username is whom an account is entered as now, where two names take turns.
	Username string `json:"username,omitempty"`
	State    string `json:"state" enum:"idle,turning,grace,retiring,publishing"`
	// ID, Reason and BegunAt are the present turn's, or the last one's.
	ID      string     `json:"id,omitempty"`
	Reason  string     `json:"reason,omitempty" enum:"first,schedule,demand,use,withdrawn"`
	Turns   uint64     `json:"turns"`
	BegunAt *time.Time `json:"begun_at,omitempty"`
	DoneAt  *time.Time `json:"done_at,omitempty"`
	DueAt   *time.Time `json:"due_at,omitempty" doc:"The next turn by the schedule"`
	NextAt  *time.Time `json:"next_at,omitempty" doc:"When something happens next: a turn, a retry, the end of a grace"`
	Wanted  string     `json:"wanted,omitempty" doc:"Why a turn is to begin as soon as it can"`
	Tries   int        `json:"tries,omitempty" doc:"Failures since the last success"`
	Problem string     `json:"problem,omitempty"`
}

// RotateRequest asks for a secret to be replaced now.
type RotateRequest struct {
	Kind string `json:"kind" doc:"account or target"`
	Name string `json:"name"`
	Now  bool   `json:"now,omitempty" doc:"End the grace of what was given out before, too"`
}

// ApplyRequest writes objects, all or none.
type ApplyRequest struct {
	Objects []Object `json:"objects,omitempty"`
	Delete  []Ref    `json:"delete,omitempty"`
	DryRun  bool     `json:"dry_run,omitempty"`
	// Prune deletes every object of the kinds present in Objects that Objects
	// does not hold.
	Prune bool `json:"prune,omitempty"`
	// Override lets secrets in Objects take the place of targets' own that were
	// rotated, because a person has reset them. They are tried by logging in, and
	// replaced at once. It takes a reason.
	Override bool   `json:"override,omitempty"`
	Reason   string `json:"reason,omitempty" doc:"For those who approve the change"`
}

// Ref names an object.
type Ref struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
}

// ApplyAnswer lists what changed, or would.
type ApplyAnswer struct {
	Changes []Change `json:"changes"`
	DryRun  bool     `json:"dry_run"`
	// GrantID is set where the change waits for approvals and nothing is written yet.
	GrantID string `json:"grant_id,omitempty"`
	Waiting
}

// Change is what apply does to one object.
type Change struct {
	Kind    string          `json:"kind"`
	Name    string          `json:"name"`
	Action  string          `json:"action" doc:"create, update, delete or unchanged"`
	Before  json.RawMessage `json:"before,omitempty"`
	After   json.RawMessage `json:"after,omitempty"`
	Version uint64          `json:"version,omitempty"`
}

// Finding is one line of a rights check on a target.
type Finding struct {
	Name    string `json:"name"`
	OK      bool   `json:"ok"`
	Warning bool   `json:"warning,omitempty"`
	Detail  string `json:"detail,omitempty"`
	Fix     string `json:"fix,omitempty" doc:"What the target's administrator can run"`
}

// TargetPreview asks what a target that is not written yet would be like.
type TargetPreview struct {
	Name    string            `json:"name"`
	Spec    json.RawMessage   `json:"spec"`
	Secrets map[string]string `json:"secrets,omitempty"`
}

// TargetReport is the result of a check.
type TargetReport struct {
	Target   string    `json:"target"`
	OK       bool      `json:"ok"`
	Findings []Finding `json:"findings"`
	// Roles are working roles for the target (preview only).
	Roles []Object `json:"roles,omitempty"`
	// Permit is a policy to start from (preview only).
	Permit string `json:"permit,omitempty"`
}

// StartTaskRequest opens a task.
type StartTaskRequest struct {
	Name    string          `json:"name"`
	Purpose string          `json:"purpose"`
	TTL     string          `json:"ttl,omitempty" doc:"Until the deadline; default 1h, at most the parent's"`
	Parent  string          `json:"parent,omitempty" doc:"Task id or name; makes a child"`
	For     string          `json:"for,omitempty" doc:"Principal that works in the child task"`
	Scope   json.RawMessage `json:"scope,omitempty" doc:"authorization_details that narrow the task"`
	Lapse   string          `json:"lapse,omitempty" doc:"End the task when no heartbeat comes for so long"`
}

// Task is a piece of work.
type Task struct {
	ID        string      `json:"id"`
	Name      string      `json:"name,omitempty"`
	Purpose   string      `json:"purpose,omitempty"`
	Principal string      `json:"principal"`
	StartedBy string      `json:"started_by,omitempty"`
	Parent    string      `json:"parent,omitempty"`
	Implicit  bool        `json:"implicit,omitempty"`
	Scope     scope.Scope `json:"scope,omitempty"`
	State     string      `json:"state" doc:"open or ended"`
	StartedAt time.Time   `json:"started_at"`
	Deadline  time.Time   `json:"deadline"`
	DueAt     time.Time   `json:"due_at" doc:"Deadline, or the lapse if that is earlier"`
	EndedAt   *time.Time  `json:"ended_at,omitempty"`
	EndReason string      `json:"end_reason,omitempty"`
	Leases    []string    `json:"leases,omitempty" doc:"Open leases (show only)"`
	Children  []string    `json:"children,omitempty" doc:"Child tasks (show only)"`
}

// EndTaskAnswer says what ending a task set in motion.
type EndTaskAnswer struct {
	Task   Task     `json:"task"`
	Ended  []string `json:"ended" doc:"Descendant tasks that ended with it"`
	Leases int      `json:"leases" doc:"Leases being withdrawn"`
	// Withdrawn is true when wait was asked for and every lease has ended. What that
	// is worth, the proofs say.
	Withdrawn bool `json:"withdrawn"`
	// Proofs counts the leases that have ended by the proof in their receipts.
	Proofs map[string]int `json:"proofs,omitempty" doc:"How many of the leases have ended with each proof: absent, revoked, expires-only …"`
	// WorksUntil is set where credentials are not withdrawn but end by themselves.
	WorksUntil *time.Time `json:"works_until,omitempty" doc:"When the last of the credentials that cannot be withdrawn ends by itself, at the earliest"`
}

// AccessRequest asks for a credential.
type AccessRequest struct {
	Role      string          `json:"role"`
	Task      string          `json:"task,omitempty" doc:"Task id or name of an open task of the caller"`
	Purpose   string          `json:"purpose,omitempty" doc:"For a request without a task"`
	TTL       string          `json:"ttl,omitempty"`
	Scope     json.RawMessage `json:"scope,omitempty" doc:"authorization_details; omitted: all that role and task allow"`
	CSR       string          `json:"csr,omitempty" doc:"PEM PKCS#10, for certificates"`
	PublicKey json.RawMessage `json:"public_key,omitempty" doc:"JWK to bind the credential to"`
	Emergency bool            `json:"emergency,omitempty"`
	Reason    string          `json:"reason,omitempty"`
}

// AccessAnswer is an issued credential, or a grant that waits: then the fields
// of [Waiting] stand in for those of the lease.
type AccessAnswer struct {
	Status     string    `json:"status" doc:"issued or waiting"`
	Role       string    `json:"role"`
	TaskID     string    `json:"task_id"`
	GrantID    string    `json:"grant_id"`
	LeaseID    string    `json:"lease_id,omitempty"`
	DecisionID string    `json:"decision_id"`
	ExpiresAt  time.Time `json:"expires_at,omitzero"`
	// RenewAfter is set whether or not the lease can be renewed: a client that keeps
	// a credential that cannot asks for a new one from then on.
	RenewAfter time.Time `json:"renew_after,omitzero" doc:"From when a client renews the lease, or, where it is not renewable, asks for a new one"`
	NotAfter   time.Time `json:"not_after,omitzero"`
	BoundedBy  string    `json:"bounded_by,omitempty" doc:"What set not_after"`
	Renewable  bool      `json:"renewable"`
	// Scope is the effective one.
	Scope scope.Scope `json:"scope"`
	// Replaced lists leases that this one superseded.
	Replaced   []string          `json:"replaced"`
	Credential map[string]string `json:"credential,omitempty"`
	// Env maps variables that the target's clients read to credential fields.
	Env map[string]string `json:"env,omitempty"`
	Waiting
}

// Lease is one credential's life, without the credential.
type Lease struct {
	ID         string          `json:"id"`
	State      string          `json:"state" doc:"open, ending or ended"`
	Role       string          `json:"role"`
	Target     string          `json:"target"`
	Principal  string          `json:"principal"`
	Instance   string          `json:"instance,omitempty"`
	Chain      []string        `json:"chain,omitempty"`
	TaskID     string          `json:"task_id"`
	GrantID    string          `json:"grant_id"`
	DecisionID string          `json:"decision_id"`
	Purpose    string          `json:"purpose,omitempty"`
	Scope      scope.Scope     `json:"scope"`
	Username   string          `json:"username" doc:"Name on the target"`
	Generation uint64          `json:"generation"`
	OpenedAt   time.Time       `json:"opened_at"`
	ExpiresAt  time.Time       `json:"expires_at"`
	NotAfter   time.Time       `json:"not_after"`
	BoundedBy  string          `json:"bounded_by"`
	EndReason  string          `json:"end_reason,omitempty"`
	EndedBy    string          `json:"ended_by,omitempty"`
	EndingAt   *time.Time      `json:"ending_at,omitempty"`
	EndedAt    *time.Time      `json:"ended_at,omitempty"`
	Receipt    json.RawMessage `json:"receipt,omitempty" doc:"What the target's own catalogue said; proof expires-only: the credential was not withdrawn"`
	Problem    string          `json:"problem,omitempty"`
}

// Proofs of a receipt with which a lease is over and its credential may not be.
const (
	ProofExpiresOnly = "expires-only" // nothing can withdraw it
	ProofForced      = "forced"       // nobody asked the target
)

// Receipt is what a lease ended with.
type Receipt struct {
	Proof  string `json:"proof"`
	Detail string `json:"detail"`
}

// Outlived says whether a lease has ended though its credential was not withdrawn,
// and what its receipt says of that.
func (l Lease) Outlived() (r Receipt, yes bool) {
	if json.Unmarshal(l.Receipt, &r) != nil {
		return Receipt{}, false
	}
	return r, l.State == "ended" && (r.Proof == ProofExpiresOnly || r.Proof == ProofForced)
}

// RenewRequest extends a lease.
type RenewRequest struct {
	TTL string `json:"ttl,omitempty"`
}

// RevokeRequest ends leases.
type RevokeRequest struct {
	Force  bool   `json:"force,omitempty" doc:"End without the target's word; for a target gone for good"`
	Reason string `json:"reason,omitempty"`
}

// Whohas names who got a credential.
type Whohas struct {
	LeaseID    string   `json:"lease_id"`
	Principal  string   `json:"principal"`
	Chain      []string `json:"chain,omitempty"`
	TaskID     string   `json:"task_id"`
	Purpose    string   `json:"purpose,omitempty"`
	DecisionID string   `json:"decision_id"`
	Approvals  []string `json:"approvals"`
	State      string   `json:"state"`
	Role       string   `json:"role"`
	Target     string   `json:"target"`
	Lease      Lease    `json:"lease"`
}

// ContainRequest contains or releases a principal, target/T or zone/Z.
type ContainRequest struct {
	What   string `json:"what" doc:"kind:name of a principal, target/NAME or zone/NAME"`
	Reason string `json:"reason"`
	DryRun bool   `json:"dry_run,omitempty"`
}

// ContainAnswer says what was, or would be, affected.
type ContainAnswer struct {
	What     string `json:"what"`
	Sessions int    `json:"sessions"`
	Leases   int    `json:"leases"`
	DryRun   bool   `json:"dry_run"`
}

// Decision is a recorded policy decision.
type Decision struct {
	ID       string          `json:"id"`
	Seq      uint64          `json:"seq"`
	At       time.Time       `json:"at"`
	Actor    string          `json:"actor"`
	Command  string          `json:"command"`
	Decision json.RawMessage `json:"decision" doc:"Verdict, policies, obligations, and the request that was decided"`
	Waived   string          `json:"waived,omitempty" doc:"Why the approvals and the step-up that the permit asks for were not needed"`
	Text     string          `json:"text" doc:"The same in sentences"`
}

// PolicyTestRequest runs cases against the live policies or given documents.
type PolicyTestRequest struct {
	Policies []Object        `json:"policies,omitempty"`
	Cases    json.RawMessage `json:"cases" doc:"Array of cases"`
}

// PolicyTestAnswer is the result of each case.
type PolicyTestAnswer struct {
	Passed  int          `json:"passed"`
	Failed  int          `json:"failed"`
	Results []CaseResult `json:"results"`
}

// CaseResult is one case's result.
type CaseResult struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"`
}

// AuditEntry is one command of the ledger.
type AuditEntry struct {
	Seq        uint64          `json:"seq"`
	At         time.Time       `json:"at"`
	Type       string          `json:"type"`
	Result     string          `json:"result"`
	Actor      string          `json:"actor,omitempty"`
	DecisionID string          `json:"decision_id,omitempty"`
	Command    json.RawMessage `json:"command"`
}

// AuditPage is a slice of the ledger.
type AuditPage struct {
	Size    uint64       `json:"size"`
	Entries []AuditEntry `json:"entries"`
}

// VerifyAnswer is the live ledger's own check.
type VerifyAnswer struct {
	Size       uint64   `json:"size"`
	Root       string   `json:"root"`
	Checkpoint string   `json:"checkpoint"`
	OK         bool     `json:"ok" doc:"The ledger has been checked up to its end, from where this call began, and holds"`
	Problems   []string `json:"problems,omitempty"`
	// Next is set where a long ledger takes more calls: the entries before it hold.
	Next uint64 `json:"next,omitempty" doc:"Ask again with this as from: the entries before it hold, the others are yet to be checked"`
}

// Drift is what a target holds and the ledger does not, or the reverse.
type Drift struct {
	Target string `json:"target"`
	// Unknown credentials bear our mark, but no lease names them.
	Unknown []string `json:"unknown"`
	// Ended credentials are still there though their lease has ended; they are
	// being removed.
	Ended []string `json:"ended"`
	// Missing leases are open, but their credential is not on the target.
	Missing []string `json:"missing"`
	// Healed are those of Unknown and Missing that are put right: removed from the
	// target, or their leases set to end. Only where that was asked for.
	Healed []string `json:"healed,omitempty"`
	Error  string   `json:"error,omitempty"`
}

// ReconcileRequest compares a target, or with "" all of them, with the ledger.
type ReconcileRequest struct {
	Target string
	// Heal puts one target right, and needs a Reason.
	Heal   bool
	Reason string
}

// InitRequest initialises a cluster on an empty node.
type InitRequest struct {
	Shares    int      `json:"shares,omitempty"`
	Threshold int      `json:"threshold,omitempty"`
	Admins    []string `json:"admins" doc:"human:name of each first administrator"`
	// Approvers turns dual control on: from then on Approvals of these people
	// co-sign every change of what decides who may get what.
	Approvers []string `json:"approvers,omitempty" doc:"human:name of each first approver"`
	Approvals int      `json:"approvals,omitempty" doc:"How many of them a change needs; 1 where left out"`
}

// InitAnswer is shown once.
type InitAnswer struct {
	Cluster string        `json:"cluster"`
	Shares  []string      `json:"shares,omitempty" doc:"Unseal shares; none with a local key"`
	Admins  []EnrolAnswer `json:"admins"`
	// Approvers are tokens of the first approvers; who is an administrator too has
	// one token, among Admins.
	Approvers []EnrolAnswer `json:"approvers,omitempty"`
}

// UnsealRequest gives one share.
type UnsealRequest struct {
	Share string `json:"share,omitempty"`
	Reset bool   `json:"reset,omitempty"`
}

// RecoverRequest makes an enrolment token for an administrator with a quorum
// of shares instead of a session.
type RecoverRequest struct {
	Principal string   `json:"principal"`
	Shares    []string `json:"shares"`
}

// RekeyRequest reshares the root key.
type RekeyRequest struct {
	Shares    []string `json:"shares" doc:"A threshold of the present shares"`
	Count     int      `json:"count"`
	Threshold int      `json:"threshold"`
}

// Status is a node's state; it needs no session.
type Status struct {
	Node        string `json:"node"`
	Cluster     string `json:"cluster,omitempty"`
	Initialised bool   `json:"initialised"`
	Sealed      bool   `json:"sealed"`
	// Threshold, Have and Total describe the unsealing in progress.
	Threshold int    `json:"threshold,omitempty"`
	Total     int    `json:"total,omitempty"`
	Have      int    `json:"have,omitempty"`
	Role      string `json:"role" doc:"leader, follower, candidate, sealed or uninitialised"`
	Leader    string `json:"leader,omitempty"`
	Fresh     bool   `json:"fresh" doc:"May serve reads: it is in contact with a quorum"`
	Size      uint64 `json:"ledger_size,omitempty"`
	// Barrier is the number of the key that this node's disk is sealed by, if open.
	Barrier uint32 `json:"barrier_key,omitempty"`
	Version string `json:"version"`
}

// JoinTokenAnswer is a one-time token by which a node joins.
type JoinTokenAnswer struct {
	Token     string    `json:"token"`
	ExpiresAt time.Time `json:"expires_at"`
	Command   string    `json:"command"`
}

// Peer is a node of the cluster.
type Peer struct {
	ID     string `json:"id"`
	Addr   string `json:"addr"`
	Voter  bool   `json:"voter"`
	Leader bool   `json:"leader"`
}

// NodePlugin is how a registered plugin does on one node.
type NodePlugin struct {
	Node    string `json:"node"`
	Name    string `json:"name"`
	Running bool   `json:"running"`
	// SHA256 is of the file that runs; Registered is of the one that shall.
	SHA256     string `json:"sha256,omitempty"`
	Registered string `json:"registered,omitempty"`
	// Problem is why it does not run, or why the file that is registered does not.
	Problem string `json:"problem,omitempty"`
	// Since is when the process that runs began.
	Since *time.Time `json:"since,omitempty"`
	// Restarts, failed starts and answers that were refused, since the node began.
	Restarts int `json:"restarts"`
	Failures int `json:"failures"`
	Refused  int `json:"refused"`
}

// RemovePeerRequest removes a node.
type RemovePeerRequest struct {
	ID string `json:"id"`
}
