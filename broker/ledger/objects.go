package ledger

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/mayfly-broker/mayfly/broker/cosign"
)

// Genesis is the first command of a cluster: who it is and who administers it.
type Genesis struct {
	Cluster     string `json:"cluster"`     // random id
	Incarnation int    `json:"incarnation"` // 1; a restore is a new incarnation (HAZARDS 19)
	// VerifierKey is the note verifier key that checkpoints are signed for.
	VerifierKey string         `json:"verifier_key"`
	Objects     []ObjectChange `json:"objects"` // first admins, their group, first policies
	// Approvals is the quorum that changes of configuration need from now on;
	// none: one administrator suffices (HAZARDS 1, ADR 11).
	Approvals []Approval `json:"approvals,omitempty"`
	Founders  []Founder  `json:"founders,omitempty"`
}

// Type implements [Body].
func (*Genesis) Type() string { return "genesis" }

func (b *Genesis) apply(s *state, c *context) Result {
	if res := s.checkChanges(c, b.Objects); !res.OK() {
		return res
	}
	if err := checkApprovals("approvals", b.Approvals); err != nil {
		return refuse(CodeInvalid, "%v.", err)
	}
	if res := b.checkQuorum(); !res.OK() {
		return res
	}
	g := *b
	g.Objects = nil
	s.save(bucketMeta, metaGenesis, g)
	for _, o := range b.Objects {
		s.change(c, o)
	}
	return done(b.Cluster)
}

// checkQuorum: the people who must co-sign changes are there from the first, and
// founders can vouch.
func (b *Genesis) checkQuorum() Result {
	written := func(kind, name string) (ObjectChange, bool) {
		i := slices.IndexFunc(b.Objects, func(o ObjectChange) bool { return o.Kind == kind && o.Name == name && !o.Delete })
		if i < 0 {
			return ObjectChange{}, false
		}
		return b.Objects[i], true
	}
	for _, a := range b.Approvals {
		var spec GroupSpec
		o, ok := written(KindGroup, a.Group)
		if !ok || json.Unmarshal(o.Spec, &spec) != nil {
			return refuse(CodeInvalid, "Changes are to be approved by group %s, which the genesis record does not hold.", a.Group)
		}
		var people []string
		for _, m := range spec.Members {
			if _, ok := written(KindPrincipal, m.Name); ok && strings.HasPrefix(m.Name, "human:") && !slices.Contains(people, m.Name) {
				people = append(people, m.Name)
			}
		}
		if len(people) < a.Count {
			return refuse(CodeQuorum, "%d people of group %s are to approve changes, and it has %d.", a.Count, a.Group, len(people))
		}
	}
	for i, f := range b.Founders {
		_, ok := written(KindPrincipal, f.Principal)
		if _, err := cosign.Thumbprint(f.JWK); err != nil || !ok || slices.ContainsFunc(b.Founders[:i], func(x Founder) bool { return x.Principal == f.Principal }) {
			return refuse(CodeInvalid, "Founder %s needs one public key, and stands in the genesis record.", f.Principal)
		}
	}
	return done("")
}

// ChangeObjects writes and deletes objects, all or none.
type ChangeObjects struct {
	Changes []ObjectChange `json:"changes"`
}

// ObjectChange is one object to be written or deleted.
type ObjectChange struct {
	Kind   string          `json:"kind"`
	Name   string          `json:"name"`
	Spec   json.RawMessage `json:"spec,omitempty"`
	Delete bool            `json:"delete,omitempty"`
	// Version is the version the writer read; 0 means that it must not exist
	// yet. AnyVersion skips the comparison.
	Version    uint64 `json:"version,omitempty"`
	AnyVersion bool   `json:"any_version,omitempty"`
	// Secrets names the fields that travel as secrets with this command, as
	// kind/name/field; those not named keep their sealed value.
	Secrets []string `json:"secrets,omitempty"`
	// Override says that a secret that rotation owns is replaced by the one that
	// travels: a person has reset it on the target.
	Override bool `json:"override,omitempty"`
}

// Type implements [Body].
func (*ChangeObjects) Type() string { return "change_objects" }

func (b *ChangeObjects) apply(s *state, c *context) Result {
	if len(b.Changes) == 0 || len(b.Changes) > MaxObjectsPut {
		return refuse(CodeInvalid, "One change holds 1 to %d objects.", MaxObjectsPut)
	}
	if res := s.checkCustody(b.Changes); !res.OK() {
		return res
	}
	if res := s.checkChanges(c, b.Changes); !res.OK() {
		return res
	}
	for _, o := range b.Changes {
		s.change(c, o)
	}
	return done("")
}

func (s *state) checkChanges(c *context, changes []ObjectChange) Result {
	writes := map[string]int{}
	for _, o := range changes {
		if !slices.Contains(Kinds, o.Kind) {
			return refuse(CodeInvalid, "%q is not a kind; kinds are %s.", o.Kind, strings.Join(Kinds, ", "))
		}
		if err := checkName(o.Name); err != nil {
			return refuse(CodeInvalid, "%s: %v.", o.Kind, err)
		}
		old, exists := s.object(o.Kind, o.Name)
		switch {
		case o.Delete && !exists:
			return refuse(CodeNotFound, "%s %s does not exist.", o.Kind, o.Name)
		case !o.AnyVersion && o.Version != old.Version:
			return refuse(CodeConflict, "%s %s is at version %d, not %d. Read it again.", o.Kind, o.Name, old.Version, o.Version)
		}
		if o.Delete {
			if res := s.checkDelete(o, changes); !res.OK() {
				return res
			}
			continue
		}
		if err := checkSpec(o.Kind, o.Name, o.Spec); err != nil {
			return refuse(CodeInvalid, "%s %s: %v.", o.Kind, o.Name, err)
		}
		if res := checkSecrets(c, o); !res.OK() {
			return res
		}
		if res := s.checkOverride(o); !res.OK() {
			return res
		}
		if res := s.checkReferences(o, changes); !res.OK() {
			return res
		}
		if o.Kind == KindSink {
			if res := s.checkSink(c, o, old); !res.OK() {
				return res
			}
		}
		if exists && o.Kind == KindTarget && typeOf(old.Spec) != typeOf(o.Spec) {
			return refuse(CodeInvalid, "Target %s: the type of a target cannot change; make a new target.", o.Name)
		}
		if exists && o.Kind == KindAccount && !sameAccount(old.Spec, o.Spec) {
			return refuse(CodeInvalid, "Account %s: target and usernames of an account cannot change, since its secrets belong to them; make a new account.", o.Name)
		}
		if !exists {
			writes[o.Kind]++
		}
	}
	for _, kind := range Kinds { // in order: maps are not ranged over here
		most := MaxObjects
		if kind == KindPlugin {
			most = MaxPlugins
		}
		if n := writes[kind]; n > 0 && s.countObjects(kind)+n > most {
			return refuse(CodeCapCount, "At most %d objects of kind %s are allowed.", most, kind)
		}
	}
	if slices.ContainsFunc(changes, func(o ObjectChange) bool { return o.Kind == KindSink }) {
		return s.checkWebhookCount(changes)
	}
	return done("")
}

// checkSecrets: each secret that an object names travels with the command, under
// the object's own name. What does not fit is refused: an error here would stop
// every node of the cluster.
func checkSecrets(c *context, o ObjectChange) Result {
	if o.Kind == KindCluster && len(o.Secrets) > 0 { // barrier keys lie under that name
		return refuse(CodeInvalid, "%s %s has no secrets of its own.", o.Kind, o.Name)
	}
	for _, name := range o.Secrets {
		i := slices.IndexFunc(c.secrets, func(x Secret) bool { return x.Name == name })
		field, ok := strings.CutPrefix(name, o.Kind+"/"+o.Name+"/")
		switch {
		case i < 0 || !ok || field == "":
			return refuse(CodeInvalid, "%s %s: the secret %s does not travel with its command.", o.Kind, o.Name, name)
		case len(c.secrets[i].Value) > MaxSecretBytes:
			return refuse(CodeInvalid, "%s %s: the secret %s has %d bytes; at most %d are allowed.", o.Kind, o.Name, field, len(c.secrets[i].Value), MaxSecretBytes)
		}
	}
	return done("")
}

func typeOf(spec json.RawMessage) string {
	t, _, err := SplitTarget(spec)
	if err != nil {
		return ""
	}
	return t.Type
}

// checkReferences: what an object names must exist already or be written by
// the same change.
func (s *state) checkReferences(o ObjectChange, changes []ObjectChange) Result {
	var kind, name string
	switch o.Kind {
	case KindRole:
		kind, name = KindTarget, RoleTarget(o.Name)
		if res := s.checkRoleAccount(o, changes); !res.OK() {
			return res
		}
	case KindAccount:
		kind, name = KindTarget, accountTarget(o.Spec)
		if res := s.checkAccountNames(o, changes); !res.OK() {
			return res
		}
	case KindPrincipal:
		var p PrincipalSpec
		if err := json.Unmarshal(o.Spec, &p); err == nil && p.Owner != "" {
			kind, name = KindPrincipal, p.Owner
		}
	case KindTarget:
		t, _, err := SplitTarget(o.Spec)
		if err == nil && t.Zone != "" {
			kind, name = KindZone, t.Zone
		}
	}
	if name == "" || s.Get(bucketObject, objectKey(kind, name)) != nil {
		return done("")
	}
	written := slices.ContainsFunc(changes, func(x ObjectChange) bool {
		return !x.Delete && x.Kind == kind && x.Name == name
	})
	if !written {
		return refuse(CodeNotFound, "%s %s names %s %s, which does not exist.", o.Kind, o.Name, kind, name)
	}
	return done("")
}

// checkDelete refuses to delete what something live or written still names.
func (s *state) checkDelete(o ObjectChange, changes []ObjectChange) Result {
	deleted := func(kind, name string) bool {
		return slices.ContainsFunc(changes, func(x ObjectChange) bool { return x.Delete && x.Kind == kind && x.Name == name })
	}
	switch o.Kind {
	case KindTarget:
		if n := len(s.ids(bucketLeaseOn, prefix(o.Name), 1)); n > 0 {
			return refuse(CodeInUse, "Target %s has leases that are not ended. Revoke them first; the target's word that they are gone needs the target.", o.Name)
		}
		var role string
		s.Scan(bucketObject, objectKey(KindRole, o.Name+"/"), nil, func(k, _ []byte) bool {
			role = strings.TrimPrefix(string(k), KindRole+"/")
			return deleted(KindRole, role)
		})
		if role != "" && !deleted(KindRole, role) {
			return refuse(CodeInUse, "Target %s still has the role %s. Delete its roles with it.", o.Name, role)
		}
		if res := s.checkDeleteRotating(o, deleted); !res.OK() {
			return res
		}
	case KindRole:
		for _, id := range s.ids(bucketLeaseOn, prefix(RoleTarget(o.Name)), 1<<20) {
			if l, ok := s.lease(id); ok && l.Grant.Role == o.Name {
				return refuse(CodeInUse, "Role %s has leases that are not ended. Revoke them first.", o.Name)
			}
		}
	case KindAccount:
		if res := s.checkDeleteAccount(o, deleted); !res.OK() {
			return res
		}
	case KindPlugin:
		if target := s.servedBy(o.Name, deleted); target != "" {
			return refuse(CodeInUse, "Plugin %s serves the target %s. Delete its targets first; nothing else can end what lives on them.", o.Name, target)
		}
	case KindPrincipal:
		if len(s.ids(bucketLeaseOf, prefix(o.Name), 1)) > 0 {
			return refuse(CodeInUse, "Principal %s has live leases. Contain or revoke them first.", o.Name)
		}
	}
	return done("")
}

func (v *view) object(kind, name string) (Object, bool) {
	var o Object
	ok := v.load(bucketObject, objectKey(kind, name), &o)
	return o, ok
}

func (v *view) countObjects(kind string) int {
	n := 0
	v.Scan(bucketObject, []byte(kind+"/"), nil, func(_, _ []byte) bool { n++; return true })
	return n
}

// change writes or deletes one checked object.
func (s *state) change(c *context, o ObjectChange) {
	s.put(bucketMeta, metaEpoch, beUint(c.seq))
	old, exists := s.object(o.Kind, o.Name)
	if o.Kind == KindSink {
		s.beginDelivery(c, o, old)
	}
	if o.Delete {
		s.deleteObject(old)
		return
	}
	rec := Object{Kind: o.Kind, Name: o.Name, Version: c.seq, Spec: o.Spec, CreatedMS: c.now, ChangedMS: c.now, ChangedBy: c.Actor.Principal, Secrets: old.Secrets}
	if exists {
		rec.CreatedMS = old.CreatedMS
	}
	for _, name := range o.Secrets {
		i := slices.IndexFunc(c.secrets, func(x Secret) bool { return x.Name == name }) // checked by checkSecrets
		field := strings.TrimPrefix(name, o.Kind+"/"+o.Name+"/")
		if s.ownsSecret(o.Kind, o.Name, field) {
			if o.Override {
				s.override(c, o, field, c.secrets[i].Value)
			}
			continue // else a rotated secret is never put back
		}
		s.put(bucketSecret, []byte(name), c.secrets[i].Value)
		if !slices.Contains(rec.Secrets, field) {
			rec.Secrets = append(rec.Secrets, field)
			slices.Sort(rec.Secrets)
		}
	}
	s.save(bucketObject, objectKey(o.Kind, o.Name), rec)
	s.nameAccount(rec, true)
	s.touchRotation(c, rec)
}

func (s *state) deleteObject(o Object) {
	s.del(bucketObject, objectKey(o.Kind, o.Name))
	s.nameAccount(o, false)
	s.dropRotation(o)
	for _, f := range o.Secrets {
		s.del(bucketSecret, []byte(o.Kind+"/"+o.Name+"/"+f))
	}
	if o.Kind != KindPrincipal {
		return
	}
	for _, jkt := range s.ids(bucketKeyOf, prefix(o.Name), MaxKeys) {
		s.dropKey(o.Name, jkt)
	}
	for _, id := range s.sessionIDs(o.Name) {
		s.dropSession(id)
	}
}

// spec decodes an object's spec; a missing object is false.
func (v *view) spec(kind, name string, out any) (Object, bool) {
	o, ok := v.object(kind, name)
	if !ok {
		return o, false
	}
	if err := json.Unmarshal(o.Spec, out); err != nil {
		v.corrupt(bucketObject, objectKey(kind, name), err)
		return o, false
	}
	return o, true
}
