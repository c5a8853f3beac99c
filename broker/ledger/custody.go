package ledger

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"

	"github.com/mayfly-broker/mayfly/broker/cosign"
)

// Dual control of administration (HAZARDS 1, ADR 11). Where the genesis record
// names a quorum, whatever decides who may get what changes only under it.

// custody lists the kinds under dual control.
var custody = []string{KindGroup, KindRole, KindTarget, KindZone, KindPolicy, KindAuthMethod, KindAccount, KindSink, KindPlugin, KindCluster}

// custodians are the quorum that the genesis record asks for; none: dual control is off.
func (v *view) custodians() []cosign.Need {
	var g Genesis
	v.load(bucketMeta, metaGenesis, &g)
	var out []cosign.Need
	for _, a := range g.Approvals {
		out = append(out, cosign.Need{Group: a.Group, Count: a.Count, By: "genesis"})
	}
	return out
}

// underCustody reports whether a change needs the custodians' approval.
func (v *view) underCustody(o ObjectChange) bool {
	if slices.Contains(custody, o.Kind) {
		return true
	}
	if o.Kind != KindPrincipal {
		return false
	}
	// A new workload or agent has no power yet. A human answers for others and may
	// break the glass; and who exists may become somebody's second self.
	return strings.HasPrefix(o.Name, "human:") || v.Get(bucketObject, objectKey(o.Kind, o.Name)) != nil
}

// checkCustody refuses changes that need approval and carry none.
func (s *state) checkCustody(changes []ObjectChange) Result {
	if len(s.custodians()) == 0 {
		return done("")
	}
	for _, o := range changes {
		if s.underCustody(o) {
			return refuse(CodeApprovalRequired, "%s %s is under dual control: the change must be approved.", o.Kind, o.Name)
		}
	}
	return done("")
}

// askChange checks a request for a change of configuration.
func (s *state) askChange(c *context, b *RequestGrant) (g Cosigned, res Result) {
	d := b.Change
	if g, res = s.checkCommon(c, cosign.DomainChange, &d.Common, d); !res.OK() {
		return g, res
	}
	g.Kind = GrantChange
	g.EndsByMS = g.CollectBeforeMS
	needs := s.custodians()
	switch {
	case b.ImplicitTask != nil || len(d.Objects)+len(d.Keys) == 0 || len(d.Objects) > MaxObjectsPut || len(d.Keys) > MaxKeys || len(d.Reason) > MaxReasonBytes:
		return g, refuse(CodeInvalid, "A change has 1 to %d objects.", MaxObjectsPut)
	case len(needs) == 0:
		return g, refuse(CodeInvalid, "This cluster has no dual control; changes are made at once.")
	case !slices.Equal(needs, d.Needs):
		return g, refuse(CodeApprovalRequired, "The change does not ask for the approvals that the genesis record names.")
	}
	if res := checkPlain(d); !res.OK() {
		return g, res
	}
	changes, res := s.changesOf(c, d)
	if !res.OK() {
		return g, res
	}
	if res := s.checkMade(c, changes, d); !res.OK() {
		return g, res
	}
	return g, s.checkPossible(c, g)
}

// changesOf are the changes of a document, whose secrets must travel with the
// command.
func (s *state) changesOf(c *context, d *cosign.ChangeDocument) ([]ObjectChange, Result) {
	var out []ObjectChange
	told := 0
	for _, o := range d.Objects {
		x := ObjectChange{Kind: o.Kind, Name: o.Name, Spec: o.Spec, Delete: o.Delete, Version: o.Version, Override: o.Override}
		for _, sec := range o.Secrets {
			i := slices.IndexFunc(c.Commitments, func(k Commitment) bool { return k.Name == sec.Name })
			if i < 0 || hex.EncodeToString(c.Commitments[i].SHA256) != sec.SHA256 {
				return nil, refuse(CodeInvalid, "The document commits to other secrets than the command carries.")
			}
			x.Secrets = append(x.Secrets, sec.Name)
			told++
		}
		out = append(out, x)
	}
	if told != len(c.secrets) {
		return nil, refuse(CodeInvalid, "The command carries secrets that the document does not name.")
	}
	return out, done("")
}

func keyOf(n cosign.NewKey) Key {
	thumb, err := cosign.Thumbprint(n.Key.JWK)
	if err != nil {
		return Key{Principal: n.Principal}
	}
	k := n.Key
	return Key{Thumbprint: thumb, Principal: n.Principal, Use: UseApprove, JWK: n.Key.JWK, Approve: &k}
}

// MakeChange makes a change that was approved, as its document says.
type MakeChange struct {
	GrantID string `json:"grant_id"`
}

// Type implements [Body].
func (*MakeChange) Type() string { return "make_change" }

func (b *MakeChange) apply(s *state, c *context) Result {
	g, ok := s.cosigned(b.GrantID)
	switch {
	case !ok || g.Kind != GrantChange:
		return refuse(CodeNotFound, "There is no change %s.", b.GrantID)
	case g.State != GrantApproved || g.CollectBeforeMS <= c.now:
		return refuse(CodeGrantOver, "Change %s is %s, or has expired.", g.ID, g.State)
	case !s.enough(c.now, g):
		return refuse(CodeApprovalRequired, "Change %s no longer has all the approvals it needs.", g.ID)
	}
	if why := s.stands(g); why != "" {
		return refuse(CodeGrantVoid, "Change %s is void: %s. Ask again.", g.ID, why)
	}
	d, err := g.Change()
	if err != nil || !sameNeeds(s.custodians(), d.Needs) {
		return refuse(CodeGrantVoid, "Change %s asks for other approvals than are needed now.", g.ID)
	}
	changes, res := s.heldChanges(c, g, &d)
	if !res.OK() {
		return res
	}
	if res := s.checkMade(c, changes, &d); !res.OK() {
		return res
	}
	for _, o := range changes {
		s.change(c, o)
	}
	for _, n := range d.Keys {
		s.addKey(c, keyOf(n))
	}
	s.unlist(g)
	g.State = GrantEnded
	s.keep(c, g)
	return done(g.ID)
}

func sameNeeds(a, b []cosign.Need) bool { return slices.Equal(a, b) }

// heldChanges brings a change's secrets back from where they waited.
func (s *state) heldChanges(c *context, g Cosigned, d *cosign.ChangeDocument) ([]ObjectChange, Result) {
	var out []ObjectChange
	for _, o := range d.Objects {
		x := ObjectChange{Kind: o.Kind, Name: o.Name, Spec: o.Spec, Delete: o.Delete, Version: o.Version, Override: o.Override}
		for _, sec := range o.Secrets {
			value := s.Get(bucketSecret, heldSecret(g.ID, sec.Name))
			if value == nil {
				return nil, refuse(CodeNotFound, "Change %s has lost its secret %s. Ask again.", g.ID, sec.Name)
			}
			x.Secrets = append(x.Secrets, sec.Name)
			c.secrets = append(c.secrets, Secret{Name: sec.Name, Value: bytes.Clone(value)})
		}
		out = append(out, x)
	}
	return out, done("")
}

// checkApproveKey checks a key to approve with, wherever it comes from.
func (s *state) checkApproveKey(k Key) Result {
	if k.Approve == nil || k.Use != UseApprove || k.Approve.Check() != nil || !bytes.Equal(k.JWK, k.Approve.JWK) {
		return refuse(CodeInvalid, "A key to approve with is a passkey, an SSH key or a JWS key, P-256 or Ed25519.")
	}
	if thumb, err := cosign.Thumbprint(k.JWK); err != nil || thumb != k.Thumbprint {
		return refuse(CodeInvalid, "The key's thumbprint is not that of its public key.")
	}
	if s.Get(bucketKey, []byte(k.Thumbprint)) != nil {
		return refuse(CodeExists, "This key is registered already. A key to approve with is used for nothing else, by nobody else.")
	}
	return s.checkKey(k)
}

// checkVouched: a session alone gives a person no second way to approve, and
// under dual control not even a first (ADR 11).
func (s *state) checkVouched(b *AddKey) Result {
	k := b.Key
	text, err := cosign.Canonical(cosign.KeyDocument{Type: cosign.DomainKey, Cluster: s.clusterID(), Principal: k.Principal, Key: *k.Approve})
	if err != nil {
		return refuse(CodeInvalid, "The key cannot be written in canonical form.")
	}
	hash := cosign.Sum(cosign.DomainKey, text)
	if k.Approve.Kind != cosign.KindPasskey { // a passkey's registration proves it at the door
		if b.Proof == nil || cosign.Verify(*k.Approve, cosign.DomainKey, hash, *b.Proof) != nil {
			return refuse(CodeSignature, "The new key must sign its own document.")
		}
	}
	if s.Get(bucketKeyGone, []byte(k.Thumbprint)) != nil {
		return refuse(CodeVouch, "This key of %s was removed once; make a new one.", k.Principal)
	}
	own := 0
	for _, thumb := range s.ids(bucketKeyOf, prefix(k.Principal), MaxKeys) {
		var have Key
		if !s.load(bucketKey, []byte(thumb), &have) || have.Use != UseApprove || have.Approve == nil {
			continue
		}
		own++
		if b.Vouch != nil && b.Vouch.Key == thumb && cosign.Verify(*have.Approve, cosign.DomainKey, hash, *b.Vouch) == nil {
			return done("")
		}
	}
	if root, ok := s.founder(k.Principal); ok && own == 0 && b.Vouch != nil && cosign.Verify(root, cosign.DomainKey, hash, *b.Vouch) == nil {
		return done("")
	}
	switch {
	case own > 0:
		return refuse(CodeVouch, "%s has %d keys to approve with; one of them must sign for the new one.", k.Principal, own)
	case len(s.custodians()) > 0:
		return refuse(CodeVouch, "Under dual control the first key of %s to approve with is itself approved.", k.Principal)
	}
	return done("")
}

// Who must vouch for a person's next key to approve with.
const (
	VouchNobody    = ""
	VouchKey       = "key"       // one that the person has already
	VouchApprovers = "approvers" // the custodians, or a founder's enrolment token
)

func (v *view) voucher(principal string) string {
	for _, thumb := range v.ids(bucketKeyOf, prefix(principal), MaxKeys) {
		var have Key
		if v.load(bucketKey, []byte(thumb), &have) && have.Use == UseApprove && have.Approve != nil {
			return VouchKey
		}
	}
	if len(v.custodians()) > 0 {
		return VouchApprovers
	}
	return VouchNobody
}

// Founder is an administrator named at init, with the public key that comes of
// their enrolment token. It vouches for their first key to approve with.
type Founder struct {
	Principal string          `json:"principal"`
	JWK       json.RawMessage `json:"jwk"`
}

func (v *view) founder(principal string) (cosign.Key, bool) {
	var g Genesis
	v.load(bucketMeta, metaGenesis, &g)
	for _, f := range g.Founders {
		if f.Principal == principal && v.Get(bucketKeyGone, key("founder", principal)) == nil {
			return cosign.Key{Kind: cosign.KindJWS, JWK: f.JWK}, true
		}
	}
	return cosign.Key{}, false
}
