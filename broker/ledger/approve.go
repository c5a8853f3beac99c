package ledger

import (
	"encoding/hex"
	"slices"

	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/scope"
)

// ApproveGrant adds one co-signature, which every replica verifies (law 4).
type ApproveGrant struct {
	GrantID   string           `json:"grant_id"`
	Signature cosign.Signature `json:"signature"`
}

// Type implements [Body].
func (*ApproveGrant) Type() string { return "approve_grant" }

func (b *ApproveGrant) apply(s *state, c *context) Result {
	g, res := s.pending(c, b.GrantID)
	if !res.OK() {
		return res
	}
	k, res := s.approvalKey(c, b.Signature)
	if !res.OK() {
		return res
	}
	if res := verify(k, g.Domain, g.Hash, b.Signature); !res.OK() {
		return res
	}
	sg := Signed{Principal: k.Principal, Person: s.person(k.Principal), AtMS: c.now, Seq: c.seq, Signature: b.Signature}
	if res := s.checkSigner(c, g, &sg); !res.OK() {
		return res
	}
	g.Signed = append(g.Signed, sg)
	if g.State == GrantWaiting && s.enough(c.now, g) {
		g.State = GrantApproved
		g.Signed[len(g.Signed)-1].Last = true
	}
	s.keep(c, g)
	return done(g.ID)
}

// pending returns a grant that may still be signed.
func (s *state) pending(c *context, id string) (Cosigned, Result) {
	g, ok := s.cosigned(id)
	switch {
	case !ok:
		return g, refuse(CodeNotFound, "Grant %s does not exist.", id)
	case g.State != GrantWaiting && g.State != GrantApproved || g.Kind == GrantEmergency:
		return g, refuse(CodeGrantOver, "Grant %s is %s; it cannot be approved.", id, g.State)
	case g.CollectBeforeMS <= c.now:
		return g, refuse(CodeGrantOver, "Grant %s has expired. The requester may ask again.", id)
	}
	if why := s.stands(g); why != "" {
		return g, refuse(CodeGrantVoid, "Grant %s is void: %s. The requester may ask again.", id, why)
	}
	if g.TaskID != "" {
		if _, res := s.liveTask(c, g.TaskID, g.Principal); !res.OK() {
			return g, refuse(CodeGrantOver, "Grant %s is over: %s", id, res.Detail)
		}
	}
	return g, done("")
}

// approvalKey returns the registered key of a signature, which must be the actor's.
func (s *state) approvalKey(c *context, sig cosign.Signature) (Key, Result) {
	var k Key
	if len(sig.Key) > MaxNameBytes || !s.load(bucketKey, []byte(sig.Key), &k) || k.Use != UseApprove || k.Approve == nil || k.Principal != c.Actor.Principal {
		return k, refuse(CodeNotEligible, "This key is not registered to approve with. Register one with: mayfly key add --use approve")
	}
	if s.frozen(KindPrincipal, k.Principal) {
		return k, refuse(CodeFrozen, "%s is contained.", k.Principal)
	}
	return k, done("")
}

func verify(k Key, domain, hash string, sig cosign.Signature) Result {
	var h cosign.Hash
	if n, err := hex.Decode(h[:], []byte(hash)); err != nil || n != len(h) {
		return refuse(CodeInvalid, "The stored hash does not read.")
	}
	if err := cosign.Verify(*k.Approve, domain, h, sig); err != nil {
		return refuse(CodeSignature, "The signature does not hold: %v.", err)
	}
	return done("")
}

// checkSigner: the signer has no part in what is asked, has a part in the
// quorum, and has not signed yet. The requester's own person may step up.
func (s *state) checkSigner(c *context, g Cosigned, sg *Signed) Result {
	if g.StepUp != "" && sg.Person == s.person(g.Principal) && sg.Principal == sg.Person {
		sg.StepUp = true
		if g.StepUp == stepUpPasskey && sg.Signature.Kind != cosign.KindPasskey {
			return refuse(CodeStepUp, "The step-up asks for a passkey. Sign on the grant's page in the console.")
		}
	} else if involved, whole := s.involved(g); !whole {
		return refuse(CodeTaskTree, "The tree of tasks has grown larger than %d, so that nobody can tell who has a part in it.", MaxTaskTree)
	} else if slices.Contains(involved, sg.Person) {
		return refuse(CodeSelfApproval, "%s has a part in this grant, as requester, owner or in its chain of tasks, and cannot approve it.", sg.Person)
	}
	for _, x := range g.Signed {
		if x.Person == sg.Person && x.StepUp == sg.StepUp && s.uncounted(x) == "" {
			return refuse(CodeTwice, "%s has approved this grant already; people count, not keys.", sg.Person)
		}
	}
	if len(g.Signed) >= MaxSignatures {
		return refuse(CodeCapCount, "Grant %s has %d signatures already.", g.ID, MaxSignatures)
	}
	if sg.StepUp {
		return done("")
	}
	for _, m := range s.membersAmong(c.now, g.Needs, []string{sg.Principal}) {
		if m[sg.Principal] != "" {
			return done("")
		}
	}
	return refuse(CodeNotEligible, "%s is in none of the groups whose approval is needed.", sg.Principal)
}

const stepUpPasskey = "passkey"

// checkCosigned lets a lease open on a grant with a record: all is counted and
// compared again (law 4, HAZARDS 20).
func (s *state) checkCosigned(c *context, g Cosigned, role RoleSpec, l Lease) Result {
	d, err := g.Access()
	if err != nil || g.Kind == GrantChange {
		return refuse(CodeInvalid, "Grant %s is not for a credential.", g.ID)
	}
	granted, err := scope.Parse(d.Scope)
	if err == nil {
		err = scope.Covers(granted, l.Grant.Scope)
	}
	switch {
	case g.State != GrantApproved && g.State != GrantOpen:
		return refuse(CodeApprovalRequired, "Grant %s is %s.", g.ID, g.State)
	case g.State == GrantApproved && g.CollectBeforeMS <= c.now, g.EndsByMS <= c.now:
		return refuse(CodeGrantOver, "Grant %s has expired. Ask again.", g.ID)
	case g.Principal != l.Grant.Principal || g.Role != l.Grant.Role || g.TaskID != l.Grant.TaskID:
		return refuse(CodeNotFound, "Grant %s does not exist.", g.ID)
	case !s.askedWith(c, d.Requester.Key):
		return refuse(CodeNotFound, "Grant %s was asked for with another key; only that key collects it.", g.ID)
	case len(g.Leases) >= g.MaxLeases:
		return refuse(CodeGrantOver, "Grant %s has had its %d leases. Ask again.", g.ID, g.MaxLeases)
	case err != nil:
		return refuse(CodeNarrow, "The scope exceeds the grant's: %v.", err)
	case l.NotAfterMS > g.EndsByMS || l.NotAfterMS > c.now+d.TotalS*1000 || l.ExpiresMS > c.now+d.TTLS*1000:
		return refuse(CodeTTL, "The lease would outlive its grant.")
	}
	return s.checkStillGranted(c, g, role)
}

// askedWith reports whether the actor's session is bound to the key that a grant
// was asked for with.
func (s *state) askedWith(c *context, key string) bool {
	ses, ok := s.session(c.Actor.Session)
	return ok && key != "" && ses.Principal == c.Actor.Principal && (key == ses.Thumbprint || key == ses.KeyThumbprint)
}

// checkStillGranted holds at every mint and at every renewal.
func (s *state) checkStillGranted(c *context, g Cosigned, role RoleSpec) Result {
	if why := s.stands(g); why != "" {
		return refuse(CodeGrantVoid, "Grant %s is void: %s. Ask again.", g.ID, why)
	}
	if g.Kind == GrantEmergency {
		if role.Emergency == nil {
			return refuse(CodeEmergency, "Role %s allows no emergencies any more.", g.Role)
		}
		return done("")
	}
	if res := checkFloor(role, g.Needs); !res.OK() {
		return res
	}
	if !s.enough(c.now, g) {
		return refuse(CodeApprovalRequired, "Grant %s no longer has all the approvals it needs: somebody has left a group, or a key was removed.", g.ID)
	}
	return done("")
}

// EndGrant ends a grant: an approver denies or revokes it, the requester cancels
// it, the leader finds it expired or void.
type EndGrant struct {
	GrantID string `json:"grant_id"`
	State   string `json:"state"` // denied, cancelled, revoked, expired, void
	Note    string `json:"note,omitempty"`
}

// Type implements [Body].
func (*EndGrant) Type() string { return "end_grant" }

func (b *EndGrant) apply(s *state, c *context) Result {
	g, ok := s.cosigned(b.GrantID)
	unused := g.State == GrantWaiting || g.State == GrantApproved
	switch {
	case !ok:
		return refuse(CodeNotFound, "Grant %s does not exist.", b.GrantID)
	case len(b.Note) > MaxReasonBytes:
		return refuse(CodeInvalid, "A reason has at most %d bytes.", MaxReasonBytes)
	case g.over() || !unused && b.State != GrantRevoked && b.State != GrantExpired:
		return refuse(CodeGrantOver, "Grant %s is %s already.", g.ID, g.State)
	}
	switch b.State {
	case GrantDenied, GrantRevoked: // taking away needs no quorum; the engine says who may
	case GrantCancelled:
		if c.Actor.Principal != g.Principal && c.Actor.Principal != s.person(g.Principal) {
			return refuse(CodeNotFound, "Grant %s does not exist.", g.ID)
		}
	case GrantExpired:
		if g.dueMS() > c.now {
			return refuse(CodeStale, "Grant %s has not expired.", g.ID)
		}
		if !unused {
			s.unlist(g)
			g.State = GrantEnded
			s.keep(c, g)
			return done(g.ID)
		}
	case GrantVoid:
		why := s.stands(g)
		if why == "" {
			return refuse(CodeStale, "Grant %s stands.", g.ID)
		}
		b.Note = why
	default:
		return refuse(CodeInvalid, "A grant does not end as %q.", b.State)
	}
	if b.State == GrantDenied && g.Role != "" {
		if before := toUint(s.Get(bucketCooling, key(g.Principal, g.Role))); before > 0 { // a later denial counts from anew
			s.del(bucketDueSweep, due(int64(before), bucketCooling+"\x00"+string(key(g.Principal, g.Role))))
		}
		s.put(bucketCooling, key(g.Principal, g.Role), beUint(uint64(c.now+CoolingMS)))
		s.forgetAt(c.now+CoolingMS, bucketCooling, key(g.Principal, g.Role))
	}
	return done(g.ID, s.endGrant(c, g, b.State, b.Note)...)
}

// endGrant ends a grant, its live leases and its implicit task.
func (s *state) endGrant(c *context, g Cosigned, to, note string) (ended []string) {
	s.unlist(g)
	g.State, g.End = to, &GrantEnd{By: c.Actor.Principal, AtMS: c.now, Note: note}
	for _, id := range g.Leases {
		if l, ok := s.lease(id); ok && l.State == LeaseOpen {
			s.endLease(c, l, EndRevoked)
			ended = append(ended, id)
		}
	}
	if t, ok := s.task(g.TaskID); ok && t.Implicit && t.State == TaskOpen {
		s.closeTask(c, t, EndWithGrant)
	}
	s.keep(c, g)
	return ended
}

// unlist takes a grant out of the indexes of unfinished ones.
func (s *state) unlist(g Cosigned) {
	s.del(bucketGrantOf, key(g.Principal, g.ID))
	s.del(bucketGrantDue, due(g.dueMS(), g.ID))
	if g.TaskID != "" {
		s.del(bucketGrantTask, key(g.TaskID, g.ID))
	}
	var held [][]byte
	s.Scan(bucketSecret, heldSecret(g.ID, ""), nil, func(k, _ []byte) bool {
		held = append(held, slices.Clone(k))
		return true
	})
	for _, k := range held {
		s.del(bucketSecret, k)
	}
}

// useGrant notes a lease that was opened on its grant.
func (s *state) useGrant(c *context, g Cosigned, lease string) {
	s.del(bucketGrantDue, due(g.dueMS(), g.ID))
	g.Leases = append(g.Leases, lease)
	g.State = GrantOpen
	s.put(bucketGrantDue, due(g.dueMS(), g.ID), []byte{1})
	if len(g.Leases) >= g.MaxLeases {
		s.unlist(g)
	}
	s.keep(c, g)
}

// giveBack undoes the use of a grant by a lease whose mint has failed: people
// approved a credential, and none came of it. It reports whether there was one.
// A later generation is minted for whoever lost the answer of an earlier one, which
// was given out as far as anybody can tell: that grant is used, or it could be
// collected again and again by repeats that fail.
func (s *state) giveBack(c *context, l Lease) bool {
	if l.Generation > 1 {
		return false
	}
	g, ok := s.cosigned(l.Grant.ID)
	if t, open := s.task(l.Grant.TaskID); !ok || g.State != GrantOpen || !open || t.State != TaskOpen {
		return false
	}
	s.unlist(g)
	g.Leases = slices.DeleteFunc(g.Leases, func(id string) bool { return id == l.ID })
	if len(g.Leases) == 0 {
		g.State = GrantApproved
	}
	s.list(g)
	s.keep(c, g)
	return true
}

// list enters an unfinished grant in the indexes.
func (s *state) list(g Cosigned) {
	s.put(bucketGrantOf, key(g.Principal, g.ID), []byte{1})
	s.put(bucketGrantDue, due(g.dueMS(), g.ID), []byte{1})
	if g.TaskID != "" {
		s.put(bucketGrantTask, key(g.TaskID, g.ID), []byte{1})
	}
}

// dueMS is when the grant ends by itself.
func (g Cosigned) dueMS() int64 {
	if g.State == GrantOpen {
		return g.EndsByMS
	}
	return g.CollectBeforeMS
}
