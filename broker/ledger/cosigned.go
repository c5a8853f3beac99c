package ledger

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"

	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/scope"
)

// States of a grant that has a record of its own; see ADR 11.
const (
	GrantWaiting   = "waiting"   // for approvals
	GrantApproved  = "approved"  // may be collected
	GrantOpen      = "open"      // collected; it may have further leases
	GrantEnded     = "ended"     // a change that was made
	GrantDenied    = "denied"    // by an approver
	GrantCancelled = "cancelled" // by the requester
	GrantExpired   = "expired"   // nobody approved or collected it in time
	GrantVoid      = "void"      // what it rests on has changed
	GrantRevoked   = "revoked"   // by an approver, afterwards
)

// Kinds of such grants.
const (
	GrantAccess    = "access"
	GrantChange    = "change"
	GrantEmergency = "emergency"
)

// Cosigned is a grant that lives before its leases: asked for, signed, used.
type Cosigned struct {
	ID     string `json:"id"`
	Kind   string `json:"kind"`
	State  string `json:"state"`
	Domain string `json:"domain"`
	// Document is the canonical text that approvers sign, under its Hash in hex.
	Document  json.RawMessage `json:"document"`
	Hash      string          `json:"hash"`
	Principal string          `json:"principal"`
	TaskID    string          `json:"task_id,omitempty"`
	Role      string          `json:"role,omitempty"`
	Needs     []cosign.Need   `json:"needs"`
	StepUp    string          `json:"step_up,omitempty"`

	RequestedMS     int64 `json:"requested_ms"`
	CollectBeforeMS int64 `json:"collect_before_ms"`
	EndsByMS        int64 `json:"ends_by_ms,omitempty"`
	MaxLeases       int   `json:"max_leases,omitempty"`

	Signed []Signed     `json:"signed,omitempty"`
	Leases []string     `json:"leases,omitempty"`
	End    *GrantEnd    `json:"end,omitempty"`
	Review *GrantReview `json:"review,omitempty"`
	// Version is the ledger sequence of the last change.
	Version uint64 `json:"version"`
}

// Signed is one verified signature.
type Signed struct {
	Principal string `json:"principal"`
	Person    string `json:"person"`
	AtMS      int64  `json:"at_ms"`
	StepUp    bool   `json:"step_up,omitempty"` // the requester's own person
	// Seq is the command that brought it; Last says that nothing was missing then.
	Seq       uint64           `json:"seq"`
	Last      bool             `json:"last,omitempty"`
	Signature cosign.Signature `json:"signature"`
}

// GrantEnd is how a grant ended before its use, or was taken back.
type GrantEnd struct {
	By   string `json:"by,omitempty"`
	AtMS int64  `json:"at_ms"`
	Note string `json:"note,omitempty"`
}

// Access decodes the document of a grant of access or emergency.
func (g Cosigned) Access() (d cosign.GrantDocument, err error) {
	err = strict(g.Document, &d)
	return d, err
}

// Change decodes the document of a change.
func (g Cosigned) Change() (d cosign.ChangeDocument, err error) {
	err = strict(g.Document, &d)
	return d, err
}

func (v *view) cosigned(id string) (Cosigned, bool) {
	var g Cosigned
	ok := v.load(bucketGrant, []byte(id), &g)
	return g, ok
}

// keep writes a changed grant.
func (s *state) keep(c *context, g Cosigned) {
	g.Version = c.seq
	// As it stands: escapes for HTML would be other bytes than those under the hash.
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(g); err != nil {
		s.corrupt(bucketGrant, []byte(g.ID), err)
		return
	}
	s.put(bucketGrant, []byte(g.ID), bytes.TrimSuffix(b.Bytes(), []byte{'\n'}))
}

// ApprovedSeq is the command that completed the quorum; 0 while none has.
func (g Cosigned) ApprovedSeq() uint64 {
	for _, s := range g.Signed {
		if s.Last {
			return s.Seq
		}
	}
	return 0
}

// over reports whether nothing more can become of the grant.
func (g Cosigned) over() bool {
	return !slices.Contains([]string{GrantWaiting, GrantApproved, GrantOpen}, g.State)
}

// RequestGrant asks for a grant that needs approvals, or begins an emergency.
// Exactly one document is set.
type RequestGrant struct {
	Access *cosign.GrantDocument  `json:"access,omitempty"`
	Change *cosign.ChangeDocument `json:"change,omitempty"`
	// ImplicitTask is opened with the grant when the request named no task; it
	// ends with the grant's lease or with the grant.
	ImplicitTask *Task  `json:"implicit_task,omitempty"`
	PolicyEpoch  uint64 `json:"policy_epoch"`
}

// Type implements [Body].
func (*RequestGrant) Type() string { return "request_grant" }

func (b *RequestGrant) apply(s *state, c *context) Result {
	var g Cosigned
	var res Result
	switch {
	case (b.Access == nil) == (b.Change == nil):
		return refuse(CodeInvalid, "A grant has one document.")
	case b.PolicyEpoch != s.policyEpoch():
		return refuse(CodeStale, "Policies or objects changed while the request was decided.")
	case b.Access != nil && len(c.secrets) > 0:
		return refuse(CodeInvalid, "A request for access carries no secrets.")
	case b.Access != nil:
		g, res = s.askAccess(c, b)
	default:
		g, res = s.askChange(c, b)
	}
	if !res.OK() {
		return res
	}
	for _, name := range secretNames(c) {
		i := slices.IndexFunc(c.secrets, func(x Secret) bool { return x.Name == name })
		s.put(bucketSecret, heldSecret(g.ID, name), c.secrets[i].Value)
	}
	s.list(g)
	if t := b.ImplicitTask; t != nil {
		kept := *t
		kept.State, kept.StartedMS, kept.StartedBy = TaskOpen, c.now, c.Actor.Principal
		s.save(bucketTask, []byte(kept.ID), kept)
	}
	s.keep(c, g)
	return done(g.ID)
}

func secretNames(c *context) []string {
	var out []string
	for _, x := range c.secrets {
		out = append(out, x.Name)
	}
	return out
}

// heldSecret is where a secret waits with its change.
func heldSecret(grant, name string) []byte { return []byte("grant/" + grant + "/" + name) }

// checkCommon checks what all documents begin with, and makes the record.
func (s *state) checkCommon(c *context, domain string, d *cosign.Common, full any) (Cosigned, Result) {
	var none Cosigned
	var genesis Genesis
	s.load(bucketMeta, metaGenesis, &genesis)
	switch {
	case d.Type != domain || d.Cluster != genesis.Cluster || d.Incarnation != genesis.Incarnation || !validID(PrefixGrant, d.GrantID) || len(d.Nonce) != 43:
		return none, refuse(CodeInvalid, "The grant document is not well formed.")
	case d.Requester.Principal != c.Actor.Principal || d.Decision != c.DecisionID || c.DecisionID == "":
		return none, refuse(CodeInvalid, "The grant document names another requester or decision.")
	case s.Get(bucketGrant, []byte(d.GrantID)) != nil:
		return none, refuse(CodeExists, "The grant exists.")
	case d.CollectBeforeMS <= c.now || d.CollectBeforeMS > c.now+MaxApprovalMS:
		return none, refuse(CodeTTL, "A grant waits for approvals at most %d hours.", MaxApprovalMS/3_600_000)
	case len(s.ids(bucketGrantOf, prefix(c.Actor.Principal), MaxWaiting)) >= MaxWaiting:
		return none, refuse(CodeCapCount, "%s has %d unfinished grants; collect or cancel some first.", c.Actor.Principal, MaxWaiting)
	case s.frozen(KindPrincipal, c.Actor.Principal):
		return none, refuse(CodeFrozen, "%s is contained.", c.Actor.Principal)
	}
	if res := s.checkRequester(c, d.Requester); !res.OK() {
		return none, res
	}
	if res := s.checkPolicies(domain, d.Policies); !res.OK() {
		return none, res
	}
	text, err := cosign.Canonical(full)
	if err != nil || len(text) > MaxDocumentBytes {
		return none, refuse(CodeInvalid, "The grant document cannot be written in canonical form, or has more than %d bytes.", MaxDocumentBytes)
	}
	return Cosigned{
		ID: d.GrantID, State: GrantWaiting, Domain: domain, Document: text, Hash: cosign.Sum(domain, text).String(),
		Principal: c.Actor.Principal, Needs: d.Needs, RequestedMS: c.now, CollectBeforeMS: d.CollectBeforeMS,
	}, done("")
}

// checkRequester: what the document calls proven is what session and principal say.
func (s *state) checkRequester(c *context, r cosign.Requester) Result {
	ses, ok := s.session(c.Actor.Session)
	var p PrincipalSpec
	if _, exists := s.spec(KindPrincipal, r.Principal, &p); !ok || !exists || ses.Principal != r.Principal {
		return refuse(CodeNotFound, "%s does not exist, or its session has ended.", r.Principal)
	}
	var agent AgentSpec
	if p.Agent != nil {
		agent = *p.Agent
	}
	same := r.Instance == ses.Instance && r.Owner == p.Owner && r.Model == agent.Model && r.Version == agent.Version &&
		r.Method == ses.Method && r.Binding == ses.Binding && r.Key == ses.Thumbprint && r.AttestedKey == ses.AttestedKey
	same = same && maps.Equal(r.Facts, ses.Facts)
	if !same {
		return refuse(CodeInvalid, "The grant document does not describe the requester as the ledger does.")
	}
	return done("")
}

// checkPolicies: the policies that decided are those that stand now.
func (v *view) checkPolicies(domain string, list []cosign.Policy) Result {
	none := len(list) == 0 && domain != cosign.DomainChange // a key of one's own takes no permit to ask for
	if none || len(list) > MaxNeeds {
		return refuse(CodeInvalid, "A grant names 1 to %d policies that permitted it.", MaxNeeds)
	}
	for _, p := range list {
		if o, ok := v.object(KindPolicy, p.Object); !ok || o.Version != p.Version {
			return refuse(CodeGrantVoid, "Policy %s, which permitted this, has changed. Ask again.", p.ID)
		}
	}
	return done("")
}

// askAccess checks a request for access against all that Apply can see.
func (s *state) askAccess(c *context, b *RequestGrant) (g Cosigned, res Result) {
	d := b.Access
	if g, res = s.checkCommon(c, cosign.DomainGrant, &d.Common, d); !res.OK() {
		return g, res
	}
	g.Kind, g.Role, g.TaskID, g.StepUp, g.EndsByMS, g.MaxLeases = GrantAccess, d.Role, d.Task.ID, d.StepUp, d.EndsByMS, d.MaxLeases
	role, res := s.checkAsked(c, d)
	if !res.OK() {
		return g, res
	}
	deadline, res := s.checkAskedTask(c, b, d)
	if !res.OK() {
		return g, res
	}
	if g.EndsByMS > deadline || g.EndsByMS < g.CollectBeforeMS {
		return g, refuse(CodeTTL, "The grant would outlive its task, or end before it can be collected.")
	}
	if d.Emergency {
		g.Kind, g.State = GrantEmergency, GrantApproved
		g.Review, res = s.beginEmergency(c, d, role)
		return g, res
	}
	if until := toUint(s.Get(bucketCooling, key(d.Requester.Principal, d.Role))); int64(until) > c.now {
		return g, refuse(CodeCooling, "An approver denied %s to %s a moment ago. Talk to them, and ask again after a few minutes.", d.Role, d.Requester.Principal)
	}
	if res := checkFloor(role, d.Needs); !res.OK() {
		return g, res
	}
	if len(d.Needs) == 0 && d.StepUp == "" {
		return g, refuse(CodeInvalid, "A grant that needs nobody is given at once.")
	}
	return g, s.checkPossible(c, g)
}

// checkAsked compares the document with role and target (law 3, HAZARDS 1, 20).
func (s *state) checkAsked(c *context, d *cosign.GrantDocument) (RoleSpec, Result) {
	ro, role, ok := s.role(d.Role)
	target, spec, ok2 := s.target(d.Target)
	if !ok || !ok2 || RoleTarget(d.Role) != d.Target {
		return role, refuse(CodeNotFound, "Role %s does not exist.", d.Role)
	}
	if ro.Version != d.RoleVersion || target.Version != d.TargetVersion {
		return role, refuse(CodeStale, "The role or target changed while the request was decided.")
	}
	if res := s.checkFrozen(d.Requester.Principal, d.Target, spec.Zone); !res.OK() {
		return role, res
	}
	asked, err := scope.Parse(d.Scope)
	if err == nil {
		err = scope.Covers(role.Scope, asked)
	}
	switch {
	case err != nil:
		return role, refuse(CodeNarrow, "The scope exceeds the role's: %v.", err)
	case d.TTLS < 1 || d.TTLS > d.TotalS || d.TotalS*1000 > role.TTL.Max.MS():
		return role, refuse(CodeTTL, "The grant's ttl exceeds the role's.")
	case d.MaxLeases < 1 || d.MaxLeases > MaxGrantLeases:
		return role, refuse(CodeInvalid, "A grant has 1 to %d leases.", MaxGrantLeases)
	case len(d.Purpose) > MaxPurposeBytes || len(d.Reason) > MaxReasonBytes:
		return role, refuse(CodeInvalid, "A purpose has at most %d bytes, a reason %d.", MaxPurposeBytes, MaxReasonBytes)
	}
	return role, done("")
}

// checkAskedTask checks the task, its scope and the delegation chain.
func (s *state) checkAskedTask(c *context, b *RequestGrant, d *cosign.GrantDocument) (deadline int64, res Result) {
	t := Task{}
	if b.ImplicitTask != nil {
		t = *b.ImplicitTask
		if t.ID != d.Task.ID || !t.Implicit || t.Parent != "" || t.Name != "" || t.Role != d.Role || t.Instance != d.Requester.Instance {
			return 0, refuse(CodeInvalid, "The implicit task is not well formed.")
		}
		res = s.checkNewTask(c, &t)
	} else {
		t, res = s.liveTask(c, d.Task.ID, d.Requester.Principal)
	}
	if !res.OK() {
		return 0, res
	}
	if t.Scope != nil {
		asked, err := scope.Parse(d.Scope)
		if err == nil {
			err = scope.Covers(t.Scope, asked)
		}
		if err != nil {
			return 0, refuse(CodeNarrow, "The scope exceeds the task's: %v.", err)
		}
	}
	if !slices.Equal(d.Requester.Chain, s.chain(t)) || d.Task.DeadlineMS != t.DeadlineMS || d.Task.Name != t.Name || d.Task.Parent != t.Parent {
		return 0, refuse(CodeStale, "The task changed while the request was decided.")
	}
	return t.DeadlineMS, done("")
}

// chain names the principals on whose behalf a task runs, nearest first.
func (v *view) chain(t Task) []string {
	var out []string
	own := t.Principal
	for depth := 0; t.Parent != "" && depth <= MaxTaskDepth; depth++ {
		parent, ok := v.task(t.Parent)
		if !ok {
			break
		}
		if parent.Principal != own {
			out = append(out, parent.Principal)
		}
		t = parent
	}
	return out
}
