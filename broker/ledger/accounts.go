package ledger

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/scope"
)

// MaxSlots is how many of an account's names on its target take turns.
const MaxSlots = 2

// AccountInitial is the sealed field of an Account that tells the broker the
// secret that the account has before its first rotation.
const AccountInitial = "initial_password"

// AccountSpec is an Account's spec: an account that lives on its target and whose
// secret the broker replaces.
type AccountSpec struct {
	Target string `json:"target"`
	// Usernames are its names on the target: one, or two that take turns, so that
	// what was given out before a turn goes on working for Grace.
	Usernames []string  `json:"usernames"`
	Rotation  *Schedule `json:"rotation,omitempty"`
	Grace     Duration  `json:"grace,omitempty"`
	// RotateAfterUse replaces the secret whenever a lease on the account has ended.
	RotateAfterUse bool              `json:"rotate_after_use,omitempty"`
	Labels         map[string]string `json:"labels,omitempty"`
}

// Schedule says when a secret is replaced.
type Schedule struct {
	// Cron has five fields (minute, hour, day of month, month, day of week), read in
	// TimeZone, an IANA name; UTC where it is empty.
	Cron     string `json:"cron"`
	TimeZone string `json:"time_zone,omitempty"`
	// Jitter spreads turns: each comes up to so much later than Cron says.
	Jitter Duration `json:"jitter,omitempty"`
}

func checkAccount(spec []byte) error {
	var a AccountSpec
	if err := strict(spec, &a); err != nil {
		return err
	}
	if a.Target == "" {
		return fmt.Errorf("target is missing: on which target does the account live?")
	}
	if len(a.Usernames) == 0 || len(a.Usernames) > MaxSlots {
		return fmt.Errorf("usernames has one name, or two that take turns")
	}
	for i, u := range a.Usernames {
		if u == "" || len(u) > MaxNameBytes || strings.ContainsFunc(u, func(r rune) bool { return r < ' ' || r == 0x7f }) || slices.Contains(a.Usernames[:i], u) {
			return fmt.Errorf("usernames are different names of 1 to %d characters, none of them a control character", MaxNameBytes)
		}
	}
	switch two := len(a.Usernames) == MaxSlots; {
	case two && (a.Grace < minGrace || a.Grace > maxGrace):
		return fmt.Errorf("grace says how long what was given out goes on working after a turn: %s to %s", time.Duration(minGrace), time.Duration(maxGrace))
	case !two && a.Grace != 0:
		return fmt.Errorf("grace needs two usernames that take turns: an account with one name has one secret at a time")
	case two && a.RotateAfterUse:
		return fmt.Errorf("rotate_after_use is for accounts with one name, which one holder at a time uses")
	}
	return checkSchedule(a.Rotation)
}

// checkSchedule checks what Apply relies on; whether Cron can be read was checked
// at the door.
func checkSchedule(s *Schedule) error {
	if s == nil {
		return nil
	}
	if s.Cron == "" || len(s.Cron) > MaxNameBytes || len(s.TimeZone) > MaxNameBytes {
		return fmt.Errorf("rotation.cron is missing or too long; write five fields like \"0 3 * * 0\"")
	}
	if s.Jitter > maxGrace {
		return fmt.Errorf("rotation.jitter is at most %s", time.Duration(maxGrace))
	}
	return nil
}

// accountPrefix begins the name of every lease on an account. No kind's
// CredentialName begins so.
const accountPrefix = "account/"

// AccountLease is the name that a lease on an account has in the ledger.
func AccountLease(account, bareID string) string { return accountPrefix + account + "/" + bareID }

// AccountOf returns the account that a lease is on; ok is false for the lease of a
// credential that was minted for it.
func AccountOf(l Lease) (account string, ok bool) {
	rest, ok := strings.CutPrefix(l.Name, accountPrefix)
	i := strings.LastIndexByte(rest, '/')
	if !ok || i < 0 {
		return "", false
	}
	return rest[:i], true
}

// AccountScope is the scope of every role on an account: all of it.
func AccountScope(account string) scope.Scope {
	return scope.Scope{{Type: "account", Identifier: account, Actions: []string{"use"}}}
}

// checkAccountLease: a lease on an account bears its name, no other lease does,
// and in two-slot mode it ends while its secret is sure to work.
func (s *state) checkAccountLease(c *context, role RoleSpec, l Lease) Result {
	if role.Account == "" {
		if strings.HasPrefix(l.Name, accountPrefix) {
			return refuse(CodeInvalid, "Role %s is on no account.", l.Grant.Role)
		}
		return done("")
	}
	var a AccountSpec
	if _, ok := s.spec(KindAccount, role.Account, &a); !ok || a.Target != l.Target {
		return refuse(CodeNotFound, "Role %s is on account %s, which does not exist on this target.", l.Grant.Role, role.Account)
	}
	switch {
	case l.Name != AccountLease(role.Account, BareID(l.ID)):
		return refuse(CodeInvalid, "A lease on account %s bears its name.", role.Account)
	case len(a.Usernames) == MaxSlots && l.NotAfterMS > c.now+a.Grace.MS():
		return refuse(CodeTTL, "The lease would outlive the grace of account %s: its secret might be replaced before.", role.Account)
	}
	if holders := s.holders(role.Account, 1); a.RotateAfterUse && len(holders) > 0 {
		// When either ends, the secret is replaced under the other.
		h, _ := s.lease(holders[0])
		return refuse(CodeAccountHeld, "Account %s has one holder at a time, since its secret is replaced after each use: %s.", role.Account, h.Holds())
	}
	return done("")
}

// Holds says who holds what a lease is on, and until when.
func (l Lease) Holds() string {
	if l.State != LeaseOpen {
		return fmt.Sprintf("%s held it, and its secret is not replaced yet (lease %s)", l.Grant.Principal, l.ID)
	}
	return fmt.Sprintf("%s holds it until %s, or gives it back before (lease %s)", l.Grant.Principal, time.UnixMilli(l.ExpiresMS).UTC().Format(time.RFC3339), l.ID)
}

// holders lists up to limit leases on an account that have not ended.
func (v *view) holders(account string, limit int) []string {
	if v.Get(bucketHolder, []byte(account)) != nil {
		return v.ids(bucketHolder, prefix(account), limit)
	}
	// None was opened since leases are entered there; the names of all that ever
	// were on it tell.
	var out []string
	v.Scan(bucketName, []byte(accountPrefix+account+"/"), nil, func(_, id []byte) bool {
		l, _ := v.lease(string(id))
		if on, _ := AccountOf(l); on == account && l.State != LeaseEnded {
			out = append(out, l.ID)
		}
		return len(out) < limit
	})
	return out
}

// promised is when the last lease on an account ends by itself. The grace may have
// been longer when it was opened than it is at the turn; what was given out works as
// long as it was said to.
func (v *view) promised(account string) (ms int64) {
	for _, id := range v.holders(account, 1<<20) {
		if l, _ := v.lease(id); l.State == LeaseOpen {
			ms = max(ms, l.ExpiresMS)
		}
	}
	return ms
}

// hold enters a lease that was opened on an account.
func (s *state) hold(l Lease) {
	account, on := AccountOf(l)
	if !on {
		return
	}
	if s.Get(bucketHolder, []byte(account)) == nil {
		for _, id := range s.holders(account, 1<<20) {
			s.put(bucketHolder, key(account, id), []byte{1})
		}
		s.put(bucketHolder, []byte(account), []byte{1})
	}
	s.put(bucketHolder, key(account, l.ID), []byte{1})
}

func accountTarget(spec []byte) string {
	var a AccountSpec
	if strict(spec, &a) != nil {
		return ""
	}
	return a.Target
}

// sameAccount: an account's secrets belong to its target and its names there.
func sameAccount(before, after []byte) bool {
	var a, b AccountSpec
	return strict(before, &a) == nil && strict(after, &b) == nil && a.Target == b.Target && slices.Equal(a.Usernames, b.Usernames)
}

// accountsOn lists the accounts on a target, those with two names twice.
func (v *view) accountsOn(target string) []string {
	var out []string
	v.Scan(bucketAccountOn, prefix(target), nil, func(_, account []byte) bool {
		out = append(out, string(account))
		return true
	})
	return out
}

// accountNamed is the Account that holds a name on a target; empty: none does.
func (v *view) accountNamed(target, username string) string {
	return string(v.Get(bucketAccountOn, key(target, username)))
}

// nameAccount enters an account's names on its target, or takes them out.
func (s *state) nameAccount(o Object, there bool) {
	var a AccountSpec
	if o.Kind != KindAccount || strict(o.Spec, &a) != nil {
		return
	}
	for _, u := range a.Usernames {
		if there {
			s.put(bucketAccountOn, key(a.Target, u), []byte(o.Name))
		} else if s.accountNamed(a.Target, u) == o.Name {
			s.del(bucketAccountOn, key(a.Target, u))
		}
	}
}

// checkAccountNames: two Accounts that replace one secret would lock out each
// other's holders, and neither could say that what it gave out is gone.
func (s *state) checkAccountNames(o ObjectChange, changes []ObjectChange) Result {
	var a AccountSpec
	if strict(o.Spec, &a) != nil {
		return done("")
	}
	for _, u := range a.Usernames {
		holder := s.accountNamed(a.Target, u)
		for _, x := range changes {
			var y AccountSpec
			switch {
			case x.Kind != KindAccount || x.Name == o.Name:
			case x.Delete && x.Name == holder:
				holder = ""
			case !x.Delete && strict(x.Spec, &y) == nil && y.Target == a.Target && slices.Contains(y.Usernames, u):
				holder = x.Name
			}
		}
		if holder != "" && holder != o.Name {
			return refuse(CodeExists, "Account %s: %s on target %s is account %s already.", o.Name, u, a.Target, holder)
		}
	}
	return done("")
}

// checkRoleAccount: a role gives out an account of its own target.
func (s *state) checkRoleAccount(o ObjectChange, changes []ObjectChange) Result {
	var r RoleSpec
	if strict(o.Spec, &r) != nil || r.Account == "" {
		return done("")
	}
	spec := s.present(KindAccount, r.Account).Spec
	for _, x := range changes {
		if x.Kind == KindAccount && x.Name == r.Account {
			spec = x.Spec // none, where it is deleted
		}
	}
	if target := accountTarget(spec); target != RoleTarget(o.Name) {
		return refuse(CodeNotFound, "Role %s is on account %s, which does not exist on target %s.", o.Name, r.Account, RoleTarget(o.Name))
	}
	return done("")
}

// present is an object, or an empty one where it does not exist.
func (v *view) present(kind, name string) Object {
	o, _ := v.object(kind, name)
	return o
}

// checkDeleteAccount refuses to forget a secret that something still gives out.
func (s *state) checkDeleteAccount(o ObjectChange, deleted func(kind, name string) bool) Result {
	target := accountTarget(s.present(KindAccount, o.Name).Spec)
	var role string
	s.Scan(bucketObject, objectKey(KindRole, target+"/"), nil, func(_, raw []byte) bool {
		var x Object
		var r RoleSpec
		if json.Unmarshal(raw, &x) == nil && json.Unmarshal(x.Spec, &r) == nil && r.Account == o.Name && !deleted(KindRole, x.Name) {
			role = x.Name
		}
		return role == ""
	})
	if role != "" {
		return refuse(CodeInUse, "Account %s is given out by the role %s. Delete its roles with it.", o.Name, role)
	}
	for _, id := range s.ids(bucketLeaseOn, prefix(target), 1<<20) {
		l, _ := s.lease(id)
		if on, ok := AccountOf(l); ok && on == o.Name {
			return refuse(CodeInUse, "Account %s has leases that are not ended. Revoke them first.", o.Name)
		}
	}
	if r, ok := s.rotation(RotationSubject(KindAccount, o.Name)); ok && r.InFlight() {
		return refuse(CodeInUse, "The secret of account %s is being replaced. Wait for its end: mayfly get rotations", o.Name)
	}
	return done("")
}

// checkDeleteRotating refuses to delete a target whose own secret is on its way,
// or on which accounts live.
func (s *state) checkDeleteRotating(o ObjectChange, deleted func(kind, name string) bool) Result {
	if r, ok := s.rotation(RotationSubject(o.Kind, o.Name)); ok && r.InFlight() {
		return refuse(CodeInUse, "The secret of target %s is being replaced. Wait for its end: mayfly get rotations", o.Name)
	}
	for _, a := range s.accountsOn(o.Name) {
		if !deleted(KindAccount, a) {
			return refuse(CodeInUse, "Target %s still has the account %s. Delete its accounts with it.", o.Name, a)
		}
	}
	return done("")
}

// ownsSecret says whether a sealed field is rotation's: what people wrote there
// is out of date for good. The initial secret of an account counts until its
// first turn alone.
func (v *view) ownsSecret(kind, name, field string) bool {
	r, ok := v.rotation(RotationSubject(kind, name))
	switch {
	case !ok:
		return false
	case kind == KindAccount:
		return field == AccountInitial && (r.Turns > 0 || r.State != RotationIdle)
	}
	return r.Field == field && (r.Turns > 0 || r.State != RotationIdle)
}

// checkOverride: what is overridden is a target's own secret, which rotation owns,
// at a moment in which nothing else is put in its place.
func (s *state) checkOverride(o ObjectChange) Result {
	if !o.Override {
		return done("")
	}
	owned := slices.ContainsFunc(o.Secrets, func(name string) bool {
		return s.ownsSecret(o.Kind, o.Name, strings.TrimPrefix(name, o.Kind+"/"+o.Name+"/"))
	})
	if r, _ := s.rotation(RotationSubject(o.Kind, o.Name)); o.Kind != KindTarget || o.Delete || !owned || r.State != RotationIdle && !r.InFlight() {
		return refuse(CodeInvalid, "%s %s: what can be overridden is a target's own rotated secret.", o.Kind, o.Name)
	}
	return done("")
}

// override puts what a person reset on the target in the place of a rotated secret,
// and has it turned at once, so that nobody knows it again. A turn that is in
// flight goes on from it.
func (s *state) override(c *context, o ObjectChange, field string, value []byte) {
	r, _ := s.rotation(RotationSubject(o.Kind, o.Name))
	present := secretKey(o.Kind, o.Name, field)
	if before := s.Get(bucketSecret, present); before != nil {
		s.put(bucketSecret, secretKey(secretOwner, r.Subject, oldField(r.Slot)), slices.Clone(before))
	}
	s.put(bucketSecret, present, value)
	s.put(bucketRotated, []byte(r.Subject), beUint(c.seq))
	r.Tries, r.Refused, r.Problem = 0, 0, ""
	if r.State == RotationIdle {
		r.Wanted = RotateOverride
	}
	s.saveRotation(r, c.now)
}
