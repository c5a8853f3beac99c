package ledger

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/mayfly-broker/mayfly/scope"
)

// States of a lease.
const (
	LeaseOpen   = "open"   // the credential may live
	LeaseEnding = "ending" // being withdrawn
	LeaseEnded  = "ended"  // proven gone, or expires-only and past, or forced
)

// WithdrawMarginMS is added to a mint deadline before the last look at the
// target. The deadline is by the clock of the leader that minted, the look by the
// clock of the one that withdraws; each may be off by 2 s before it steps down
// (HAZARDS 24), in opposite directions. Then 2 s for a statement that has passed
// its own check of the deadline to commit.
const WithdrawMarginMS = 2*2_000 + 2_000

// Grant is the permission under which a lease was opened.
type Grant struct {
	ID         string `json:"id"`
	DecisionID string `json:"decision_id"`
	TaskID     string `json:"task_id"`
	Principal  string `json:"principal"`
	Instance   string `json:"instance,omitempty"`
	// Chain holds the principals on whose behalf the task runs, nearest first.
	Chain       []string    `json:"chain,omitempty"`
	Role        string      `json:"role"`
	RoleVersion uint64      `json:"role_version"`
	Scope       scope.Scope `json:"scope"`
	Purpose     string      `json:"purpose,omitempty"`
	// BoundedBy says what set NotAfterMS of the lease: "role", "task",
	// "requested", "policy:<id>".
	BoundedBy string `json:"bounded_by"`
}

// Lease is one credential's life.
type Lease struct {
	ID         string `json:"id"`
	Grant      Grant  `json:"grant"`
	Target     string `json:"target"`
	Name       string `json:"name"` // exact name on the target, newest generation
	Generation uint64 `json:"generation"`
	State      string `json:"state"`
	OpenedMS   int64  `json:"opened_ms"`
	ExpiresMS  int64  `json:"expires_ms"`
	NotAfterMS int64  `json:"not_after_ms"` // renewals end here
	// MintDeadlineMS is after which no mint of this lease can still take effect.
	MintDeadlineMS int64 `json:"mint_deadline_ms"`
	// Revocable false: the credential ends only by its own expiry (HAZARDS 18).
	Revocable bool            `json:"revocable"`
	CSR       []byte          `json:"csr,omitempty"`
	PublicKey json.RawMessage `json:"public_key,omitempty"`
	End       *End            `json:"end,omitempty"`
}

// End is how a lease ended.
type End struct {
	Reason  string `json:"reason"`
	By      string `json:"by,omitempty"`
	SinceMS int64  `json:"since_ms"` // when it was set to end
	EndedMS int64  `json:"ended_ms,omitempty"`
	// Receipt is what the target's catalogue said, or how it was forced.
	Receipt json.RawMessage `json:"receipt,omitempty"`
	// Problem is why it has not ended yet, where a person is needed.
	Problem string `json:"problem,omitempty"`
}

func (v *view) lease(id string) (Lease, bool) {
	var l Lease
	ok := v.load(bucketLease, []byte(id), &l)
	return l, ok
}

// OpenLease is grant, lease and decision in one: committed before the target
// hears of the credential (law 1).
type OpenLease struct {
	Lease Lease `json:"lease"`
	// ImplicitTask is opened with the lease when the request named no task.
	ImplicitTask *Task `json:"implicit_task,omitempty"`
	// Read holds the versions that the decision rests on (HAZARDS 20).
	Read Read `json:"read"`
}

// Read is what the decider had read.
type Read struct {
	PolicyEpoch   uint64 `json:"policy_epoch"`
	TargetVersion uint64 `json:"target_version"`
}

// Type implements [Body].
func (*OpenLease) Type() string { return "open_lease" }

func (b *OpenLease) apply(s *state, c *context) Result {
	l, g := b.Lease, &b.Lease.Grant
	role, res := s.checkGround(c, l, b.Read)
	if !res.OK() {
		return res
	}
	taskScope, deadline, res := s.checkTask(c, b)
	if !res.OK() {
		return res
	}
	if res := checkBounds(c, role, l, taskScope, deadline); !res.OK() {
		return res
	}
	old, supersedes := s.superseded(b)
	credit := 0
	if supersedes {
		credit = 1
	}
	if res := s.checkCaps(c, role, l, credit); !res.OK() {
		return res
	}
	if res := s.checkAccountLease(c, role, l); !res.OK() {
		return res
	}
	if taken := s.Get(bucketName, []byte(l.Name)); taken != nil {
		return refuse(CodeExists, "The credential name is taken.")
	}

	var replaced []string
	if supersedes {
		s.endLease(c, old, EndSuperseded)
		replaced = append(replaced, old.ID)
	}
	if t := b.ImplicitTask; t != nil {
		s.openImplicit(c, *t)
	}
	l.State, l.OpenedMS, l.Generation, l.End = LeaseOpen, c.now, 1, nil
	s.saveOpen(l)
	s.put(bucketLeaseTask, key(g.TaskID, l.ID), []byte{1})
	s.put(bucketLeaseOf, key(g.Principal, l.ID), []byte{1})
	s.put(bucketLeaseOn, key(l.Target, l.ID), []byte{1})
	s.hold(l)
	s.countLease(l, 1)
	s.addRate(c.now, g.Principal, g.Role)
	if cosigned, ok := s.cosigned(g.ID); ok {
		s.useGrant(c, cosigned, l.ID)
	}
	return done(l.ID, replaced...)
}

// saveOpen writes an open lease, its name and its place in the expiry index.
func (s *state) saveOpen(l Lease) {
	s.save(bucketLease, []byte(l.ID), l)
	s.put(bucketName, []byte(l.Name), []byte(l.ID))
	s.put(bucketLeaseDue, due(l.ExpiresMS, l.ID), []byte{1})
}

// checkGround checks what the lease stands on: well-formed ids, the versions
// that were read, containment, and the role's own floor (HAZARDS 1).
func (s *state) checkGround(c *context, l Lease, read Read) (RoleSpec, Result) {
	g := l.Grant
	var role RoleSpec
	switch { // what is cheap to check comes first
	case !validID(PrefixLease, l.ID) || !validID(PrefixGrant, g.ID) || l.Name == "" || g.Principal != c.Actor.Principal || g.DecisionID != c.DecisionID:
		return role, refuse(CodeInvalid, "The lease record is not well formed.")
	case s.Get(bucketLease, []byte(l.ID)) != nil:
		return role, refuse(CodeExists, "The lease exists.")
	case len(g.Purpose) > MaxPurposeBytes:
		return role, refuse(CodeInvalid, "A purpose has at most %d bytes.", MaxPurposeBytes)
	case read.PolicyEpoch != s.policyEpoch():
		return role, refuse(CodeStale, "Policies or objects changed while the request was decided.")
	}
	ro, role, ok := s.role(g.Role)
	target, spec, ok2 := s.target(l.Target)
	if !ok || !ok2 || RoleTarget(g.Role) != l.Target {
		return role, refuse(CodeNotFound, "Role %s does not exist.", g.Role)
	}
	if s.Get(bucketObject, objectKey(KindPrincipal, g.Principal)) == nil {
		return role, refuse(CodeNotFound, "Principal %s does not exist.", g.Principal)
	}
	if ro.Version != g.RoleVersion || target.Version != read.TargetVersion {
		return role, refuse(CodeStale, "The role or target changed while the request was decided.")
	}
	if res := s.checkFrozen(g.Principal, l.Target, spec.Zone); !res.OK() {
		return role, res
	}
	if cosigned, ok := s.cosigned(g.ID); ok {
		return role, s.checkCosigned(c, cosigned, role, l)
	}
	if len(role.Approvals) > 0 {
		return role, refuse(CodeApprovalRequired, "Role %s asks for co-signatures, and the grant carries none.", g.Role)
	}
	return role, done("")
}

func (s *state) checkFrozen(principal, target, zone string) Result {
	switch {
	case s.frozen(KindPrincipal, principal):
		return refuse(CodeFrozen, "%s is contained.", principal)
	case s.frozen(KindTarget, target):
		return refuse(CodeFrozen, "Target %s is contained.", target)
	case s.frozen(KindZone, zone):
		return refuse(CodeFrozen, "Zone %s is contained.", zone)
	}
	return done("")
}

// checkTask returns the scope and deadline that the lease's task sets.
func (s *state) checkTask(c *context, b *OpenLease) (scope.Scope, int64, Result) {
	g := b.Lease.Grant
	if b.ImplicitTask == nil {
		t, res := s.liveTask(c, g.TaskID, c.Actor.Principal)
		return t.Scope, t.DeadlineMS, res
	}
	t := *b.ImplicitTask
	if t.ID != g.TaskID || !t.Implicit || t.Parent != "" || t.Name != "" || t.Role != g.Role || t.Instance != g.Instance {
		return nil, 0, refuse(CodeInvalid, "The implicit task is not well formed.")
	}
	res := s.checkNewTask(c, &t)
	return t.Scope, t.DeadlineMS, res
}

// checkBounds: scope and time only narrow (law 3).
func checkBounds(c *context, role RoleSpec, l Lease, taskScope scope.Scope, deadline int64) Result {
	if err := scope.Covers(role.Scope, l.Grant.Scope); err != nil || len(l.Grant.Scope) == 0 {
		return refuse(CodeNarrow, "The scope exceeds the role's: %v.", err)
	}
	if taskScope != nil {
		if err := scope.Covers(taskScope, l.Grant.Scope); err != nil {
			return refuse(CodeNarrow, "The scope exceeds the task's: %v.", err)
		}
	}
	switch {
	case l.ExpiresMS <= c.now || l.ExpiresMS > l.NotAfterMS:
		return refuse(CodeTTL, "The lease would end before it begins or after its last day.")
	case l.NotAfterMS > c.now+role.TTL.Max.MS():
		return refuse(CodeTTL, "The lease would outlive the role's ttl.max.")
	case l.NotAfterMS > deadline:
		return refuse(CodeTTL, "The lease would outlive its task.")
	}
	return done("")
}

// superseded returns the open lease of the same instance's earlier implicit
// task on the same role, so that a crash loop replaces its own credential.
func (s *state) superseded(b *OpenLease) (Lease, bool) {
	t := b.ImplicitTask
	if t == nil || t.Instance == "" {
		return Lease{}, false
	}
	old := s.Get(bucketInstance, key(t.Principal, t.Instance, t.Role))
	if old == nil {
		return Lease{}, false
	}
	for _, id := range s.ids(bucketLeaseTask, prefix(string(old)), 1) {
		return s.lease(id)
	}
	return Lease{}, false
}

func (s *state) openImplicit(c *context, t Task) {
	t.State, t.StartedMS, t.StartedBy = TaskOpen, c.now, c.Actor.Principal
	s.save(bucketTask, []byte(t.ID), t)
	if t.Instance != "" {
		s.put(bucketInstance, key(t.Principal, t.Instance, t.Role), []byte(t.ID))
	}
}

// RemintLease opens a new generation of an open lease whose answer was lost:
// the same account, a fresh secret (HAZARDS 9).
type RemintLease struct {
	ID             string `json:"id"`
	Generation     uint64 `json:"generation"` // the new one: current + 1
	Name           string `json:"name"`
	MintDeadlineMS int64  `json:"mint_deadline_ms"`
}

// Type implements [Body].
func (*RemintLease) Type() string { return "remint_lease" }

func (b *RemintLease) apply(s *state, c *context) Result {
	l, role, res := s.liveLease(c, b.ID)
	if !res.OK() {
		return res
	}
	// A fresh secret is a delivery: it goes to the key that approvers saw.
	if g, ok := s.cosigned(l.Grant.ID); ok {
		if d, err := g.Access(); err != nil || !s.askedWith(c, d.Requester.Key) {
			return refuse(CodeNotFound, "Lease %s was asked for with another key; only that key collects it.", l.ID)
		}
	}
	account, on := AccountOf(l)
	if named := strings.HasPrefix(b.Name, accountPrefix); named != on || on && b.Name != AccountLease(account, BareID(l.ID)) {
		return refuse(CodeInvalid, "A lease on an account bears its name, and no other does.")
	}
	if b.Generation != l.Generation+1 || b.Name == "" {
		return refuse(CodeGeneration, "Lease %s is at generation %d.", l.ID, l.Generation)
	}
	if taken := s.Get(bucketName, []byte(b.Name)); taken != nil && string(taken) != l.ID {
		return refuse(CodeExists, "The credential name is taken.")
	}
	perMinute := role.Caps.MintsPerMinute
	if perMinute == 0 {
		perMinute = DefaultMintsPerMinute
	}
	if res := s.checkRate(c, l.Grant.Principal, l.Grant.Role, perMinute); !res.OK() {
		return res
	}
	l.Generation, l.Name, l.MintDeadlineMS = b.Generation, b.Name, max(l.MintDeadlineMS, b.MintDeadlineMS)
	s.saveOpen(l)
	s.addRate(c.now, l.Grant.Principal, l.Grant.Role)
	return done(l.ID)
}

// ExtendLease renews a lease within its hard end.
type ExtendLease struct {
	ID        string `json:"id"`
	ExpiresMS int64  `json:"expires_ms"`
	Read      Read   `json:"read"`
}

// Type implements [Body].
func (*ExtendLease) Type() string { return "extend_lease" }

func (b *ExtendLease) apply(s *state, c *context) Result {
	if b.Read.PolicyEpoch != s.policyEpoch() {
		return refuse(CodeStale, "Policies or objects changed while the renewal was decided.")
	}
	l, _, res := s.liveLease(c, b.ID)
	if !res.OK() {
		return res
	}
	if b.ExpiresMS > l.NotAfterMS {
		return refuse(CodeTTL, "The lease cannot be extended past its hard end.")
	}
	if b.ExpiresMS <= l.ExpiresMS {
		return done(l.ID) // never backwards
	}
	s.del(bucketLeaseDue, due(l.ExpiresMS, l.ID))
	l.ExpiresMS = b.ExpiresMS
	s.saveOpen(l)
	return done(l.ID)
}

// liveLease returns an open lease of the actor in a live task whose role still
// exists and whose parts are not contained.
func (s *state) liveLease(c *context, id string) (Lease, RoleSpec, Result) {
	var role RoleSpec
	l, ok := s.lease(id)
	switch {
	case !ok:
		return l, role, refuse(CodeNotFound, "Lease %s does not exist.", id)
	case l.State != LeaseOpen || l.ExpiresMS <= c.now:
		return l, role, refuse(CodeLeaseEnded, "Lease %s has ended.", id)
	case l.Grant.Principal != c.Actor.Principal:
		return l, role, refuse(CodeNotFound, "Lease %s does not exist.", id)
	}
	if _, res := s.liveTask(c, l.Grant.TaskID, l.Grant.Principal); !res.OK() {
		return l, role, res
	}
	_, role, ok = s.role(l.Grant.Role)
	_, spec, ok2 := s.target(l.Target)
	if !ok || !ok2 {
		return l, role, refuse(CodeNotFound, "Role %s does not exist.", l.Grant.Role)
	}
	// The role may have changed since the lease was opened: what it no longer
	// allows is neither minted again nor prolonged (HAZARDS 1 and 15).
	if cosigned, ok := s.cosigned(l.Grant.ID); ok && slices.Contains(cosigned.Leases, l.ID) {
		if res := s.checkStillGranted(c, cosigned, role); !res.OK() {
			return l, role, res
		}
	} else if len(role.Approvals) > 0 {
		return l, role, refuse(CodeApprovalRequired, "Role %s asks for co-signatures now, and the grant carries none.", l.Grant.Role)
	}
	if account, _ := AccountOf(l); account != role.Account {
		return l, role, refuse(CodeNotFound, "Role %s is no longer on what the lease is on.", l.Grant.Role)
	}
	if err := scope.Covers(role.Scope, l.Grant.Scope); err != nil {
		return l, role, refuse(CodeNarrow, "Role %s has become narrower than the lease: %v.", l.Grant.Role, err)
	}
	return l, role, s.checkFrozen(l.Grant.Principal, l.Target, spec.Zone)
}
