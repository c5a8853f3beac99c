package ledger

import (
	"slices"
	"strings"
)

// States of a rotation.
const (
	RotationIdle       = "idle"
	RotationTurning    = "turning"    // the next secret is sealed; the target may have it or not
	RotationGrace      = "grace"      // the other slot's secret, or the old key, still counts
	RotationRetiring   = "retiring"   // the other slot's secret is being replaced by one that nobody gets
	RotationPublishing = "publishing" // a new key is published and does not sign yet
)

// Reasons of a rotation.
const (
	RotateScheduled = "schedule"
	RotateDemanded  = "demand"
	RotateUsed      = "use"       // a lease on the account ended, and its spec asks for it
	RotateWithdrawn = "withdrawn" // a lease on the account was revoked, or its holder contained
	RotateFirst     = "first"     // nobody has told the broker a secret
	RotateOverride  = "override"  // a person has told the broker one that was reset on the target
)

// Steps of a signing key's rotation (see issuers.KeyTurn).
const (
	KeyPublished = "published"
	KeyUsed      = "used"
	KeyRetired   = "retired"
)

// secretOwner is the kind under which the secrets of rotations are kept: the next
// one, before the target hears of it, and the one before the present, which is
// tried last when a target takes neither.
const secretOwner = "Rotation"

// Rotation is what the ledger holds of a secret that lives on: of an Account, of a
// Target's own admin account or signing keys, or of the cluster's as a whole.
type Rotation struct {
	Subject string `json:"subject"` // "Account/billing", "Target/orders"
	Target  string `json:"target"`
	State   string `json:"state"`
	// ID, Reason and BegunMS are the present rotation's, or the last one's.
	ID      string `json:"id,omitempty"`
	Reason  string `json:"reason,omitempty"`
	BegunMS int64  `json:"begun_ms,omitempty"`
	DoneMS  int64  `json:"done_ms,omitempty"` // when a secret was last replaced, and verified
	// Turns counts completed turns.
	Turns uint64 `json:"turns,omitempty"`
	// Active is the slot whose secret is given out, Slot the one being replaced; 0
	// where there is one.
	Active int `json:"active,omitempty"`
	Slot   int `json:"slot,omitempty"`
	// Field is a Target's sealed field that is being replaced, or was last.
	Field string `json:"field,omitempty"`
	// Number is the newest barrier key's.
	Number uint64 `json:"number,omitempty"`
	// Version is the object's, as of which DueMS was reckoned.
	Version uint64 `json:"version,omitempty"`
	DueMS   int64  `json:"due_ms,omitempty"` // the next turn by the schedule; 0: none
	// AtMS is when the leader looks next; 0: not before something changes.
	AtMS int64 `json:"at_ms,omitempty"`
	// Tries and Problem tell of failures since the last success.
	Tries   int    `json:"tries,omitempty"`
	Problem string `json:"problem,omitempty"`
	// Refused counts the turns in a row that the target said no to, and that were
	// taken back for it.
	Refused int `json:"refused,omitempty"`
	// Wanted is why a turn is to begin as soon as it can; Urgent cuts grace short.
	Wanted string `json:"wanted,omitempty"`
	Urgent bool   `json:"urgent,omitempty"`
}

// InFlight says whether the target may or may not have the next secret.
func (r Rotation) InFlight() bool {
	return r.State == RotationTurning || r.State == RotationRetiring
}

// RotationSubject names what rotates.
func RotationSubject(kind, name string) string { return kind + "/" + name }

// SplitSubject is the reverse of [RotationSubject].
func SplitSubject(subject string) (kind, name string) {
	kind, name, _ = strings.Cut(subject, "/")
	return kind, name
}

func (v *view) rotation(subject string) (Rotation, bool) {
	var r Rotation
	if v.load(bucketRotation, []byte(subject), &r) {
		return r, true
	}
	return unturned(subject)
}

// saveRotation writes a rotation and its place among what the leader looks at.
func (s *state) saveRotation(r Rotation, at int64) {
	s.del(bucketRotationDue, due(r.AtMS, r.Subject))
	r.AtMS = at
	if at > 0 {
		s.put(bucketRotationDue, due(at, r.Subject), []byte(r.Target))
	}
	inFlight := key(r.Target, r.Subject)
	s.del(bucketTurning, inFlight)
	if r.InFlight() {
		s.put(bucketTurning, inFlight, []byte{1})
	}
	s.save(bucketRotation, []byte(r.Subject), r)
}

// rest is when an idle rotation is looked at next.
func (r Rotation) rest(now int64) int64 {
	if r.Wanted != "" {
		return now
	}
	return r.DueMS
}

// touchRotation has the leader reckon the schedule of a written object anew.
func (s *state) touchRotation(c *context, o Object) {
	target, rotates := rotates(o)
	subject := RotationSubject(o.Kind, o.Name)
	r, ok := s.rotation(subject)
	if !ok {
		if !rotates {
			return
		}
		r = Rotation{Subject: subject, State: RotationIdle}
	}
	r.Target = target
	if initial := s.Get(bucketSecret, secretKey(o.Kind, o.Name, AccountInitial)); initial != nil && o.Kind == KindAccount {
		if r.Turns == 0 && r.State == RotationIdle {
			s.put(bucketSecret, slotKey(o.Name, 0), slices.Clone(initial))
		}
		s.del(bucketSecret, secretKey(o.Kind, o.Name, AccountInitial))
	}
	at := r.AtMS
	if r.State == RotationIdle {
		at = c.now
	}
	s.saveRotation(r, at)
}

// rotates says whether an object asks for rotation, and on which target.
func rotates(o Object) (target string, ok bool) {
	switch o.Kind {
	case KindAccount:
		var a AccountSpec
		if strict(o.Spec, &a) == nil {
			return a.Target, true
		}
	case KindTarget:
		if t, _, err := SplitTarget(o.Spec); err == nil {
			return o.Name, t.Rotation != nil
		}
	case KindCluster:
		return "", true
	}
	return "", false
}

// dropRotation forgets a deleted object's rotation and its secrets.
func (s *state) dropRotation(o Object) {
	subject := RotationSubject(o.Kind, o.Name)
	r, ok := s.rotation(subject)
	if !ok {
		return
	}
	if o.Kind == KindCluster { // it has only lost its schedule
		at := int64(0)
		if r.Wanted != "" {
			at = r.AtMS
		}
		r.Version, r.DueMS = 0, 0
		s.saveRotation(r, at)
		return
	}
	s.del(bucketRotationDue, due(r.AtMS, subject))
	s.del(bucketTurning, key(r.Target, subject))
	s.del(bucketRotation, []byte(subject))
	s.del(bucketRotated, []byte(subject))
	for _, f := range []string{"next", "old", "old1"} {
		s.del(bucketSecret, secretKey(secretOwner, subject, f))
	}
	if o.Kind != KindAccount {
		return // an account of the same name has slots of its own
	}
	s.del(bucketHolder, []byte(o.Name))
	for slot := range MaxSlots {
		s.del(bucketSecret, slotKey(o.Name, slot))
	}
}

func secretKey(kind, name, field string) []byte { return []byte(kind + "/" + name + "/" + field) }

// slotKey is where the present secret of an account's slot is kept.
func slotKey(account string, slot int) []byte {
	return secretKey(KindAccount, account, slotField(slot))
}

func slotField(slot int) string {
	if slot == 0 {
		return "slot0"
	}
	return "slot1"
}

// oldField is where the secret before the present one of a slot is kept.
func oldField(slot int) string {
	if slot == 0 {
		return "old"
	}
	return "old1"
}

// currentKey is where the present secret of what is being replaced is kept.
func (r Rotation) currentKey() []byte {
	kind, name := SplitSubject(r.Subject)
	if kind == KindAccount {
		return slotKey(name, r.Slot)
	}
	return secretKey(kind, name, r.Field)
}

// WantRotation asks for a turn as soon as one can begin.
type WantRotation struct {
	Subject string `json:"subject"`
	Reason  string `json:"reason"`
	// Urgent ends a grace that runs, and the one that follows the turn: whoever
	// holds what was given out before loses it at once.
	Urgent bool `json:"urgent,omitempty"`
}

// Type implements [Body].
func (*WantRotation) Type() string { return "want_rotation" }

func (b *WantRotation) apply(s *state, c *context) Result {
	kind, name := SplitSubject(b.Subject)
	o, ok := s.object(kind, name)
	if _, clusters := unturned(b.Subject); !clusters && (!ok || kind != KindAccount && kind != KindTarget) {
		return refuse(CodeNotFound, "%s %s does not exist.", kind, name)
	}
	if !slices.Contains([]string{RotateDemanded, RotateUsed, RotateWithdrawn}, b.Reason) {
		return refuse(CodeInvalid, "A rotation is not asked for with the reason %q.", b.Reason)
	}
	r, ok := s.rotation(b.Subject)
	if !ok {
		target, _ := rotates(o)
		r = Rotation{Subject: b.Subject, Target: target, State: RotationIdle}
	}
	if r.State == RotationGrace && !b.Urgent && b.Reason == RotateDemanded {
		return refuse(CodeRotating, "What was given out before the last turn of %s counts for a while yet, and a turn now would end it. Wait, or cut it short with: mayfly rotate %s %s --now", name, strings.ToLower(kind), name)
	}
	r.Wanted, r.Urgent = b.Reason, r.Urgent || b.Urgent
	at := r.AtMS
	if r.State == RotationIdle || r.Urgent && !r.InFlight() {
		at = c.now
	}
	s.saveRotation(r, at)
	return done(b.Subject)
}

// ScheduleRotation sets when an object's next turn is due. The leader reckons it:
// time zones change with builds, and replicas must agree.
type ScheduleRotation struct {
	Subject string `json:"subject"`
	Version uint64 `json:"version"` // the object's, as the leader read it
	DueMS   int64  `json:"due_ms"`  // 0: no schedule
}

// Type implements [Body].
func (*ScheduleRotation) Type() string { return "schedule_rotation" }

func (b *ScheduleRotation) apply(s *state, c *context) Result {
	r, o, res := s.rotating(b.Subject)
	switch {
	case !res.OK():
		return res
	case o.Version != b.Version:
		return refuse(CodeStale, "%s has changed while its schedule was reckoned.", b.Subject)
	}
	r.Version, r.DueMS = b.Version, b.DueMS
	at := r.AtMS
	if r.State == RotationIdle {
		at = r.rest(c.now)
	}
	s.saveRotation(r, at)
	return done(b.Subject)
}

// rotating returns a rotation and the object it belongs to.
func (s *state) rotating(subject string) (Rotation, Object, Result) {
	kind, name := SplitSubject(subject)
	r, ok := s.rotation(subject)
	o, ok2 := s.object(kind, name)
	if _, clusters := unturned(subject); clusters { // with or without a schedule
		o.Kind, o.Name = kind, name
		return r, o, done("")
	}
	if !ok || !ok2 {
		return r, o, refuse(CodeNotFound, "%s %s does not rotate.", kind, name)
	}
	return r, o, done("")
}

// BeginRotation seals the next secret before the target hears of it. It travels
// as the secret "Rotation/<subject>/next".
type BeginRotation struct {
	Subject string `json:"subject"`
	ID      string `json:"id"`
	Reason  string `json:"reason"`
	// Slot is an account's: the one that is not given out, where there are two.
	Slot int `json:"slot"`
	// Field is a target's sealed field: its admin account's secret.
	Field string `json:"field,omitempty"`
}

// Type implements [Body].
func (*BeginRotation) Type() string { return "begin_rotation" }

func (b *BeginRotation) apply(s *state, c *context) Result {
	r, o, res := s.rotating(b.Subject)
	if !res.OK() {
		return res
	}
	slots, res := b.check(s, c, r, o)
	if !res.OK() {
		return res
	}
	switch {
	case r.State == RotationIdle && b.Slot == (r.Active+1)%slots:
		r.State, r.BegunMS, r.Reason, r.Wanted = RotationTurning, c.now, b.Reason, ""
	case r.State == RotationGrace && slots == 2 && b.Slot != r.Active:
		if c.now < r.AtMS {
			return refuse(CodeRotating, "What was given out before the last turn of %s still counts.", b.Subject)
		}
		r.State = RotationRetiring
	default:
		return refuse(CodeRotating, "%s is %s.", b.Subject, r.State)
	}
	r.ID, r.Slot, r.Field, r.Tries, r.Problem = b.ID, b.Slot, b.Field, 0, ""
	s.put(bucketSecret, secretKey(secretOwner, b.Subject, "next"), c.secrets[0].Value)
	s.saveRotation(r, c.now)
	return done(b.ID)
}

// check returns how many slots take turns.
func (b *BeginRotation) check(s *state, c *context, r Rotation, o Object) (slots int, res Result) {
	switch {
	case !validID(PrefixRotation, b.ID):
		return 0, refuse(CodeInvalid, "A rotation has an id of its own.")
	case len(c.secrets) != 1 || c.secrets[0].Name != string(secretKey(secretOwner, b.Subject, "next")) || len(c.secrets[0].Value) > MaxSecretBytes:
		return 0, refuse(CodeInvalid, "The next secret travels with the command that begins its rotation.")
	case len(s.ids(bucketTurning, prefix(r.Target), MaxTurning)) == MaxTurning:
		return 0, refuse(CodeRotating, "%d secrets of target %s are being replaced already.", MaxTurning, r.Target)
	}
	if o.Kind == KindTarget {
		if !slices.Contains(o.Secrets, b.Field) {
			return 0, refuse(CodeNotFound, "Target %s has no sealed field %q.", o.Name, b.Field)
		}
		return 1, done("")
	}
	var a AccountSpec
	if err := strict(o.Spec, &a); err != nil || o.Kind != KindAccount || b.Field != "" {
		return 0, refuse(CodeInvalid, "%s cannot be rotated so.", b.Subject)
	}
	return len(a.Usernames), done("")
}

// FailRotation records that a step failed; it is tried again.
type FailRotation struct {
	Subject string `json:"subject"`
	ID      string `json:"id"` // empty: it could not even begin
	Problem string `json:"problem"`
	RetryMS int64  `json:"retry_ms"`
	// Undone takes the turn back: the target said no to an account's next secret, and
	// has the present one. It begins anew with another, and until then holds up
	// nothing else on the target, and not the account itself.
	Undone bool `json:"undone,omitempty"`
}

// Type implements [Body].
func (*FailRotation) Type() string { return "fail_rotation" }

func (b *FailRotation) apply(s *state, c *context) Result {
	r, o, res := s.rotating(b.Subject)
	switch {
	case !res.OK():
		return res
	case b.ID != "" && b.ID != r.ID:
		return refuse(CodeRotating, "%s is at rotation %s.", b.Subject, r.ID)
	case b.Problem == "" || len(b.Problem) > MaxReasonBytes:
		return refuse(CodeInvalid, "A problem has 1 to %d bytes.", MaxReasonBytes)
	case b.Undone && (!r.InFlight() || b.ID != r.ID || o.Kind != KindAccount): // an admin account's next secret is never given up
		return refuse(CodeRotating, "%s is at rotation %s, which is %s, and cannot be taken back.", b.Subject, r.ID, r.State)
	}
	r.Tries++
	r.Problem = b.Problem
	if b.Undone {
		s.undo(&r)
	}
	s.saveRotation(r, max(b.RetryMS, c.now))
	return done(b.Subject)
}

// undo has a turn that the target said no to wait for its next beginning.
func (s *state) undo(r *Rotation) {
	r.Refused++
	r.Tries = r.Refused
	switch {
	case r.State == RotationRetiring:
		r.State = RotationGrace
	default:
		r.State = RotationIdle
		if r.Wanted == "" && r.Reason != RotateScheduled && r.Reason != RotateFirst { // those are due as before
			r.Wanted = r.Reason
		}
	}
	s.del(bucketSecret, secretKey(secretOwner, r.Subject, "next"))
}

// FinishRotation makes the next secret the present one: the target has taken it
// in a login.
type FinishRotation struct {
	Subject string `json:"subject"`
	ID      string `json:"id"`
	DueMS   int64  `json:"due_ms"` // of the turn after this one; 0: none
}

// Type implements [Body].
func (*FinishRotation) Type() string { return "finish_rotation" }

func (b *FinishRotation) apply(s *state, c *context) Result {
	r, o, res := s.rotating(b.Subject)
	switch {
	case !res.OK():
		return res
	case !r.InFlight() || b.ID != r.ID:
		return refuse(CodeRotating, "%s is at rotation %s, which is %s.", b.Subject, r.ID, r.State)
	}
	next := secretKey(secretOwner, r.Subject, "next")
	present := r.currentKey()
	if old := s.Get(bucketSecret, present); old != nil {
		s.put(bucketSecret, secretKey(secretOwner, r.Subject, oldField(r.Slot)), slices.Clone(old))
	}
	s.put(bucketSecret, present, slices.Clone(s.Get(bucketSecret, next)))
	s.del(bucketSecret, next)
	s.put(bucketRotated, []byte(r.Subject), beUint(c.seq))
	r.DueMS, r.Tries, r.Refused, r.Problem = b.DueMS, 0, 0, ""
	at := s.turned(c, &r, o)
	s.saveRotation(r, at)
	return done(r.ID)
}

// turned moves a rotation on after its secret was replaced, and returns when the
// leader looks next.
func (s *state) turned(c *context, r *Rotation, o Object) int64 {
	r.DoneMS = c.now
	if r.State == RotationTurning {
		r.Turns++
		r.Active = r.Slot
		var a AccountSpec
		if o.Kind == KindAccount && strict(o.Spec, &a) == nil && len(a.Usernames) == 2 {
			r.State = RotationGrace
			if r.Urgent {
				return c.now
			}
			return max(c.now+a.Grace.MS(), s.promised(o.Name))
		}
	}
	r.settle()
	return r.rest(c.now)
}

// settle ends a turn. One that is wanted is yet to begin, and is as urgent as when
// it was asked for.
func (r *Rotation) settle() { r.State, r.Urgent = RotationIdle, r.Urgent && r.Wanted != "" }

// TurnKeys takes a target's signing keys one step on. What changes travels as
// secrets "Target/<name>/<field>".
type TurnKeys struct {
	Subject string   `json:"subject"`
	ID      string   `json:"id"`
	Reason  string   `json:"reason"`
	Step    string   `json:"step"`
	Fields  []string `json:"fields"`
	// UntilMS is when the next step may come; DueMS the next turn after this one.
	UntilMS int64 `json:"until_ms,omitempty"`
	DueMS   int64 `json:"due_ms,omitempty"`
}

// Type implements [Body].
func (*TurnKeys) Type() string { return "turn_keys" }

// keySteps says from which state each step leads to which.
var keySteps = map[string][2]string{
	KeyPublished: {RotationIdle, RotationPublishing},
	KeyUsed:      {RotationPublishing, RotationGrace},
	KeyRetired:   {RotationGrace, RotationIdle},
}

func (b *TurnKeys) apply(s *state, c *context) Result {
	r, o, res := s.rotating(b.Subject)
	if !res.OK() {
		return res
	}
	step, known := keySteps[b.Step]
	switch {
	case o.Kind != KindTarget || !known || !validID(PrefixRotation, b.ID) || len(b.Fields) == 0 || len(b.Fields) > MaxKeyFields || len(c.secrets) != len(b.Fields):
		return refuse(CodeInvalid, "The step of a key's rotation is not well formed.")
	case r.State != step[0] || r.State != RotationIdle && (r.ID != b.ID || c.now < r.AtMS):
		return refuse(CodeRotating, "%s is %s; its next step is not due.", b.Subject, r.State)
	}
	for i, f := range b.Fields {
		if c.secrets[i].Name != string(secretKey(o.Kind, o.Name, f)) || !slices.Contains(o.Secrets, f) || len(c.secrets[i].Value) > MaxSecretBytes {
			return refuse(CodeInvalid, "The field %q does not travel with its command, or is none of the target's.", f)
		}
	}
	for i, f := range b.Fields {
		s.put(bucketSecret, secretKey(o.Kind, o.Name, f), c.secrets[i].Value)
	}
	s.put(bucketRotated, []byte(r.Subject), beUint(c.seq))
	r.State, r.ID, r.Field, r.Tries, r.Problem = step[1], b.ID, b.Fields[0], 0, ""
	at := b.UntilMS
	switch b.Step {
	case KeyPublished:
		r.Reason, r.BegunMS, r.Wanted = b.Reason, c.now, ""
	case KeyRetired:
		r.Turns++
		r.DoneMS, r.DueMS = c.now, b.DueMS
		r.settle()
		at = r.rest(c.now)
	}
	s.saveRotation(r, at)
	return done(b.ID)
}
