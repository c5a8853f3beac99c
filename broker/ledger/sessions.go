package ledger

import (
	"cmp"
	"encoding/json"
	"slices"

	"github.com/mayfly-broker/mayfly/broker/cosign"
)

// Uses of a key.
const (
	UseSession = "session" // logs in and proves possession
	UseApprove = "approve" // co-signs; never logs in
)

// Key is a public key registered for a principal, named by its RFC 7638
// thumbprint.
type Key struct {
	Thumbprint string          `json:"thumbprint"`
	Principal  string          `json:"principal"`
	Use        string          `json:"use"`
	JWK        json.RawMessage `json:"jwk"`
	// Approve is the whole key, where it is one to approve with.
	Approve *cosign.Key `json:"approve,omitempty"`
	AddedMS int64       `json:"added_ms"`
	AddedBy string      `json:"added_by,omitempty"`
}

// AddKey registers a key. One to approve with signs for itself (Proof) and is
// vouched for (Vouch); see checkVouched.
type AddKey struct {
	Key   Key               `json:"key"`
	Proof *cosign.Signature `json:"proof,omitempty"`
	Vouch *cosign.Signature `json:"vouch,omitempty"`
}

// Type implements [Body].
func (*AddKey) Type() string { return "add_key" }

func (b *AddKey) apply(s *state, c *context) Result {
	if b.Key.Use == UseApprove {
		if res := s.checkApproveKey(b.Key); !res.OK() {
			return res
		}
		if res := s.checkVouched(b); !res.OK() {
			return res
		}
	}
	if res := s.checkKey(b.Key); !res.OK() {
		return res
	}
	s.addKey(c, b.Key)
	return done(b.Key.Thumbprint)
}

func (s *state) checkKey(k Key) Result {
	switch {
	case s.Get(bucketObject, objectKey(KindPrincipal, k.Principal)) == nil:
		return refuse(CodeNotFound, "Principal %s does not exist.", k.Principal)
	case k.Thumbprint == "" || len(k.Thumbprint) > MaxNameBytes || len(k.JWK) == 0:
		return refuse(CodeInvalid, "A key has a thumbprint and a JWK.")
	case k.Use != UseSession && k.Use != UseApprove:
		return refuse(CodeInvalid, "A key's use is %s or %s.", UseSession, UseApprove)
	}
	var old Key
	if s.load(bucketKey, []byte(k.Thumbprint), &old) && (old.Principal != k.Principal || old.Use != k.Use) {
		return refuse(CodeExists, "This key is registered for another principal or another use. Make a new one.")
	}
	if len(s.ids(bucketKeyOf, prefix(k.Principal), MaxKeys+1)) >= MaxKeys {
		return refuse(CodeCapCount, "%s has %d keys already; remove one first.", k.Principal, MaxKeys)
	}
	return done("")
}

func (s *state) addKey(c *context, k Key) {
	if _, ok := s.founder(k.Principal); ok && k.Use == UseApprove { // the token vouched for the first key, and serves no more
		s.put(bucketKeyGone, key("founder", k.Principal), []byte{1})
	}
	k.AddedMS, k.AddedBy = c.now, c.Actor.Principal
	s.save(bucketKey, []byte(k.Thumbprint), k)
	s.put(bucketKeyOf, key(k.Principal, k.Thumbprint), []byte{1})
}

// RemoveKey removes a key and ends the sessions bound to it.
type RemoveKey struct {
	Principal  string `json:"principal"`
	Thumbprint string `json:"thumbprint"`
}

// Type implements [Body].
func (*RemoveKey) Type() string { return "remove_key" }

func (b *RemoveKey) apply(s *state, _ *context) Result {
	var k Key
	if !s.load(bucketKey, []byte(b.Thumbprint), &k) || k.Principal != b.Principal {
		return refuse(CodeNotFound, "%s has no key %s.", b.Principal, b.Thumbprint)
	}
	s.dropKey(k.Principal, k.Thumbprint)
	for _, id := range s.sessionIDs(k.Principal) {
		if ses, ok := s.session(id); ok && ses.KeyThumbprint == k.Thumbprint {
			s.dropSession(id)
		}
	}
	return done(b.Thumbprint)
}

// dropKey forgets a key. One to approve with is remembered as gone: what vouched
// for it once stands in the record for ever, and must not bring it back.
func (s *state) dropKey(principal, thumbprint string) {
	var k Key
	if s.load(bucketKey, []byte(thumbprint), &k) && k.Use == UseApprove {
		s.put(bucketKeyGone, []byte(thumbprint), []byte{1})
	}
	s.del(bucketKey, []byte(thumbprint))
	s.del(bucketKeyOf, key(principal, thumbprint))
}

// Enrolment is a one-time token by which a principal registers its first key.
// Only the token's hash is kept.
type Enrolment struct {
	TokenHash string `json:"token_hash"`
	Principal string `json:"principal"`
	ExpiresMS int64  `json:"expires_ms"`
	IssuedBy  string `json:"issued_by,omitempty"`
	// SpentBy is the key that redeemed it. The same key may do so again, since
	// its answer may have been lost.
	SpentBy string `json:"spent_by,omitempty"`
}

// IssueEnrolment records a one-time enrolment token.
type IssueEnrolment struct {
	TokenHash string `json:"token_hash"`
	Principal string `json:"principal"`
	ExpiresMS int64  `json:"expires_ms"`
	// Why is empty for a token that a session asked for; else init, recover or
	// dev: then the header has no decision, and this says what stood in for one.
	Why string `json:"why,omitempty"`
}

// Type implements [Body].
func (*IssueEnrolment) Type() string { return "issue_enrolment" }

func (b *IssueEnrolment) apply(s *state, c *context) Result {
	switch {
	case s.Get(bucketObject, objectKey(KindPrincipal, b.Principal)) == nil:
		return refuse(CodeNotFound, "Principal %s does not exist.", b.Principal)
	case b.ExpiresMS <= c.now || len(b.TokenHash) != 64:
		return refuse(CodeInvalid, "An enrolment token has a hash and a future end.")
	}
	s.save(bucketEnrolment, []byte(b.TokenHash), Enrolment{TokenHash: b.TokenHash, Principal: b.Principal, ExpiresMS: b.ExpiresMS, IssuedBy: c.Actor.Principal})
	s.forgetAt(b.ExpiresMS, bucketEnrolment, []byte(b.TokenHash))
	return done(b.Principal)
}

// Session is a short authenticated conversation, bound to a key.
type Session struct {
	ID        string `json:"id"`
	TokenHash string `json:"token_hash"`
	Principal string `json:"principal"`
	Instance  string `json:"instance,omitempty"`
	// Binding is "dpop", "mtls" or "bearer"; Thumbprint is the jkt or x5t#S256.
	Binding    string `json:"binding"`
	Thumbprint string `json:"thumbprint,omitempty"`
	// KeyThumbprint is the registered key by which the session was opened.
	KeyThumbprint string            `json:"key_thumbprint,omitempty"`
	Method        string            `json:"method"`
	AttestedKey   bool              `json:"attested_key,omitempty"`
	Facts         map[string]string `json:"facts,omitempty"`
	Address       string            `json:"address,omitempty"`
	CreatedMS     int64             `json:"created_ms"`
	ExpiresMS     int64             `json:"expires_ms"`
}

// OpenSession records a session after attestation, and in the same step spends
// what may be used only once.
type OpenSession struct {
	Session Session `json:"session"`
	// EnrolmentHash, where set, is the enrolment token that is spent; NewKey is
	// the key that it registers.
	EnrolmentHash string `json:"enrolment_hash,omitempty"`
	NewKey        *Key   `json:"new_key,omitempty"`
	// OneShot is evidence that may be used once, until OneShotUntilMS
	// (HAZARDS 3).
	OneShot        string `json:"one_shot,omitempty"`
	OneShotUntilMS int64  `json:"one_shot_until_ms,omitempty"`
}

// Type implements [Body].
func (*OpenSession) Type() string { return "open_session" }

func (b *OpenSession) apply(s *state, c *context) Result {
	ses := b.Session
	switch {
	case !validID(PrefixSession, ses.ID) || len(ses.TokenHash) != 64 || ses.ExpiresMS <= c.now || len(ses.Facts) > MaxFacts:
		return refuse(CodeInvalid, "The session record is not well formed.")
	case s.Get(bucketObject, objectKey(KindPrincipal, ses.Principal)) == nil:
		return refuse(CodeNotFound, "Principal %s does not exist.", ses.Principal)
	case s.frozen(KindPrincipal, ses.Principal):
		return refuse(CodeFrozen, "%s is contained.", ses.Principal)
	case s.Get(bucketSession, []byte(ses.ID)) != nil:
		return refuse(CodeExists, "The session exists.")
	}
	if res := s.spend(c, b); !res.OK() {
		return res
	}
	s.evictSessions(ses.Principal, ses.Instance)
	ses.CreatedMS = c.now
	s.save(bucketSession, []byte(ses.ID), ses)
	s.put(bucketSessionOf, key(ses.Principal, ses.ID), []byte{1})
	s.forgetAt(ses.ExpiresMS, bucketSession, []byte(ses.ID))
	return done(ses.ID)
}

// spend checks and consumes one-time evidence; it writes only when all holds.
func (s *state) spend(c *context, b *OpenSession) Result {
	if b.OneShot != "" {
		// The same key may present it again: a workload whose projected token
		// lives longer than its process must be able to restart.
		if by := s.Get(bucketSpent, []byte(b.OneShot)); by != nil && string(by) != b.Session.Thumbprint {
			return refuse(CodeTokenSpent, "This evidence was used before. Get a fresh one.")
		}
	}
	if b.EnrolmentHash != "" {
		var e Enrolment
		if len(b.EnrolmentHash) != 64 || !s.load(bucketEnrolment, []byte(b.EnrolmentHash), &e) || e.ExpiresMS <= c.now || e.Principal != b.Session.Principal ||
			e.SpentBy != "" && (b.NewKey == nil || e.SpentBy != b.NewKey.Thumbprint) {
			return refuse(CodeTokenSpent, "The enrolment token is unknown, spent or expired. Have a new one made.")
		}
		if b.NewKey == nil || b.NewKey.Principal != e.Principal || b.NewKey.Use != UseSession || b.NewKey.Approve != nil {
			return refuse(CodeInvalid, "An enrolment registers a key of the same principal, to log in with.")
		}
		if e.SpentBy == "" {
			if res := s.checkKey(*b.NewKey); !res.OK() {
				return res
			}
			e.SpentBy = b.NewKey.Thumbprint
			s.save(bucketEnrolment, []byte(b.EnrolmentHash), e)
			s.addKey(c, *b.NewKey)
		}
	}
	if b.OneShot != "" {
		s.put(bucketSpent, []byte(b.OneShot), []byte(b.Session.Thumbprint))
		s.forgetAt(max(b.OneShotUntilMS, c.now), bucketSpent, []byte(b.OneShot))
	}
	return done("")
}

// evictSessions ends the oldest sessions of a principal's instance that has too
// many, so that a client that logs in for every call locks nobody out.
func (s *state) evictSessions(principal, instance string) {
	ids := s.sessionIDs(principal)
	if len(ids) < MaxSessions {
		return
	}
	var mine []Session
	for _, id := range ids {
		if ses, ok := s.session(id); ok && ses.Instance == instance {
			mine = append(mine, ses)
		}
	}
	slices.SortFunc(mine, func(a, b Session) int {
		return cmp.Or(cmp.Compare(a.CreatedMS, b.CreatedMS), cmp.Compare(a.ID, b.ID))
	})
	for len(mine) >= MaxSessions {
		s.dropSession(mine[0].ID)
		mine = mine[1:]
	}
}

// EndSession ends one session.
type EndSession struct {
	ID string `json:"id"`
}

// Type implements [Body].
func (*EndSession) Type() string { return "end_session" }

func (b *EndSession) apply(s *state, _ *context) Result {
	s.dropSession(b.ID) // ending what is gone is done
	return done(b.ID)
}

func (v *view) session(id string) (Session, bool) {
	var ses Session
	ok := v.load(bucketSession, []byte(id), &ses)
	return ses, ok
}

func (v *view) sessionIDs(principal string) []string {
	return v.ids(bucketSessionOf, prefix(principal), 1<<16)
}

func (s *state) dropSession(id string) {
	ses, ok := s.session(id)
	if !ok {
		return
	}
	s.del(bucketSession, []byte(id))
	s.del(bucketSessionOf, key(ses.Principal, id))
	s.del(bucketDueSweep, due(ses.ExpiresMS, bucketSession+"\x00"+id))
}

// Freeze contains a principal, target or zone: its sessions are dead and its
// leases are withdrawn; nothing new is issued until it is released.
type Freeze struct {
	Kind   string `json:"kind"` // Principal, Target, Zone
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// FreezeRecord is what stands while something is contained.
type FreezeRecord struct {
	Kind    string `json:"kind"`
	Name    string `json:"name"`
	Reason  string `json:"reason"`
	By      string `json:"by"`
	SinceMS int64  `json:"since_ms"`
}

var freezable = []string{KindPrincipal, KindTarget, KindZone}

// Type implements [Body].
func (*Freeze) Type() string { return "freeze" }

func (b *Freeze) apply(s *state, c *context) Result {
	switch {
	case !slices.Contains(freezable, b.Kind):
		return refuse(CodeInvalid, "A principal, a target or a zone can be contained.")
	case s.Get(bucketObject, objectKey(b.Kind, b.Name)) == nil:
		return refuse(CodeNotFound, "%s %s does not exist.", b.Kind, b.Name)
	case b.Reason == "" || len(b.Reason) > MaxReasonBytes:
		return refuse(CodeInvalid, "A reason of 1 to %d bytes is needed.", MaxReasonBytes)
	}
	s.save(bucketFrozen, objectKey(b.Kind, b.Name), FreezeRecord{Kind: b.Kind, Name: b.Name, Reason: b.Reason, By: c.Actor.Principal, SinceMS: c.now})
	if b.Kind == KindPrincipal {
		for _, id := range s.sessionIDs(b.Name) {
			s.dropSession(id)
		}
	}
	return done(b.Kind + "/" + b.Name)
}

// Release ends a containment. What was withdrawn stays withdrawn.
type Release struct {
	Kind   string `json:"kind"`
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// Type implements [Body].
func (*Release) Type() string { return "release" }

func (b *Release) apply(s *state, _ *context) Result {
	k := objectKey(b.Kind, b.Name)
	if s.Get(bucketFrozen, k) == nil {
		return refuse(CodeNotFound, "%s %s is not contained.", b.Kind, b.Name)
	}
	s.del(bucketFrozen, k)
	return done(b.Kind + "/" + b.Name)
}

func (v *view) frozen(kind, name string) bool {
	return name != "" && v.Get(bucketFrozen, objectKey(kind, name)) != nil
}

// IssueJoinToken records a one-time token by which a node joins.
type IssueJoinToken struct {
	TokenHash string `json:"token_hash"`
	ExpiresMS int64  `json:"expires_ms"`
}

// Type implements [Body].
func (*IssueJoinToken) Type() string { return "issue_join_token" }

func (b *IssueJoinToken) apply(s *state, c *context) Result {
	if len(b.TokenHash) != 64 || b.ExpiresMS <= c.now {
		return refuse(CodeInvalid, "A join token has a hash and a future end.")
	}
	k := []byte("join:" + b.TokenHash)
	s.put(bucketEnrolment, k, beUint(uint64(b.ExpiresMS)))
	s.forgetAt(b.ExpiresMS, bucketEnrolment, k)
	return done("")
}

// AdmitNode spends a join token for one node.
type AdmitNode struct {
	TokenHash string `json:"token_hash"`
	NodeID    string `json:"node_id"`
	Addr      string `json:"addr"`
}

// Type implements [Body].
func (*AdmitNode) Type() string { return "admit_node" }

func (b *AdmitNode) apply(s *state, c *context) Result {
	k := []byte("join:" + b.TokenHash)
	exp := s.Get(bucketEnrolment, k)
	if exp == nil || int64(toUint(exp)) <= c.now {
		return refuse(CodeTokenSpent, "The join token is unknown, spent or expired. Make a new one with: mayfly operator join-token")
	}
	s.del(bucketEnrolment, k)
	return done(b.NodeID)
}
