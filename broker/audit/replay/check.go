package replay

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/broker/ledger"
)

// What Apply checks of co-signatures is checked here once more, in other words
// and by reading alone, so that a fault of Apply's would show as well.

// check reads the state as it stood before an entry, at the entry's time.
type check struct {
	ledger.Query
	ms    int64
	roles map[string]*ledger.RoleSpec // read of this entry; nil where there is none
}

// role returns a role as of then.
func (c check) role(name string) (*ledger.RoleSpec, bool) {
	if known, ok := c.roles[name]; ok {
		return known, known != nil
	}
	var spec *ledger.RoleSpec
	r := new(ledger.RoleSpec)
	if _, ok := c.Spec(ledger.KindRole, name, r); ok {
		spec = r
	}
	c.roles[name] = spec
	return spec, spec != nil
}

// doubt is what should not be, in an entry that is recorded as done.
type doubt struct{ code, text string }

// entry looks at one entry that is recorded as done.
func (c check) entry(d ledger.Decoded) []doubt {
	var code, text string
	switch b := d.Body.(type) {
	case *ledger.OpenLease:
		code, text = "floor", c.mint("Lease "+b.Lease.ID, b.Lease.Grant)
	case *ledger.RemintLease:
		if l, ok := c.Lease(b.ID); ok {
			code, text = "floor", c.mint("The new secret of lease "+b.ID, l.Grant)
		}
	case *ledger.ExtendLease:
		if l, ok := c.Lease(b.ID); ok {
			code, text = "floor", c.mint("The renewal of lease "+b.ID, l.Grant)
		}
	case *ledger.MakeChange:
		code, text = "custody", c.change(b.GrantID)
	case *ledger.ChangeObjects:
		for _, o := range b.Changes {
			if c.UnderCustody(o) {
				code, text = "custody", fmt.Sprintf("%s %s was changed by one alone, and the genesis record wants approvals.", o.Kind, o.Name)
				break
			}
		}
	case *ledger.AddKey:
		if b.Key.Use == ledger.UseApprove {
			_, text = c.vouched(b)
			code = "vouch"
		}
	case *ledger.OpenSession:
		if c.enrolsApprover(b) {
			code, text = "vouch", fmt.Sprintf("An enrolment token gave %s the key %s to approve with, and nobody vouched for it.", b.NewKey.Principal, b.NewKey.Thumbprint)
		}
	case *ledger.ApproveGrant:
		code, text = "signature", c.approval(d.Header.Actor.Principal, b.GrantID, b.Signature)
	case *ledger.ReviewGrant:
		code, text = "signature", c.review(d.Header.Actor.Principal, b)
	}
	if text == "" {
		return nil
	}
	return []doubt{{code, text}}
}

// enrolsApprover reports whether opening a session registers a key to approve with.
func (c check) enrolsApprover(b *ledger.OpenSession) bool {
	if b.NewKey == nil || b.NewKey.Use != ledger.UseApprove {
		return false
	}
	e, ok := c.Enrolment(b.EnrolmentHash)
	return ok && e.SpentBy == ""
}

// mint says why a credential should not have been made or prolonged; "" if it
// may. what names it.
func (c check) mint(what string, by ledger.Grant) string {
	role, ok := c.role(by.Role)
	if !ok {
		return fmt.Sprintf("%s is on role %s, which did not exist.", what, by.Role)
	}
	g, ok := c.Cosigned(by.ID)
	switch {
	case !ok && len(role.Approvals) == 0:
		return ""
	case !ok:
		return fmt.Sprintf("%s is on role %s, which asks for %s; no grant that anybody could sign exists.", what, by.Role, floor(role.Approvals))
	case g.Principal != by.Principal || g.Role != by.Role || g.TaskID != by.TaskID:
		return fmt.Sprintf("%s stands on grant %s, which is another's, or for something else.", what, g.ID)
	case g.Kind == ledger.GrantEmergency && role.Emergency == nil:
		return fmt.Sprintf("%s stands on an emergency, and role %s allowed none.", what, by.Role)
	case g.Kind == ledger.GrantEmergency:
		return ""
	case g.State != ledger.GrantApproved && g.State != ledger.GrantOpen:
		return fmt.Sprintf("%s stands on grant %s, which was %s.", what, g.ID, g.State)
	}
	needs := slices.Clone(g.Needs)
	for _, a := range role.Approvals { // the larger of both, per group
		i := slices.IndexFunc(needs, func(n cosign.Need) bool { return n.Group == a.Group })
		if i < 0 {
			needs = append(needs, cosign.Need{Group: a.Group, Count: a.Count})
			continue
		}
		needs[i].Count = max(needs[i].Count, a.Count)
	}
	if lack := c.lack(g, needs); lack != "" {
		return fmt.Sprintf("%s stands on grant %s, which lacked approvals: %s.", what, g.ID, lack)
	}
	return ""
}

func floor(list []ledger.Approval) string {
	var out []string
	for _, a := range list {
		out = append(out, fmt.Sprintf("%d of %s", a.Count, a.Group))
	}
	return strings.Join(out, " and ")
}

// change says why an approved change should not have been made.
func (c check) change(id string) string {
	g, ok := c.Cosigned(id)
	if !ok || g.Kind != ledger.GrantChange || g.State != ledger.GrantApproved {
		return fmt.Sprintf("Change %s was made, and was not approved.", id)
	}
	if lack := c.lack(g, c.Custodians()); lack != "" {
		return fmt.Sprintf("Change %s was made, and lacked approvals: %s.", id, lack)
	}
	return ""
}

// lack counts a grant's signatures against needs, as of c.ms: distinct persons,
// none of them involved, each in one place. By Hall's theorem all places can be
// filled exactly if, for every set of needs, as many people fit it as it has
// places; Apply finds the seats themselves.
func (c check) lack(g ledger.Cosigned, needs []cosign.Need) string {
	if len(needs) > ledger.MaxNeeds {
		return "more groups are named than a grant may have"
	}
	involved := c.Involved(g)
	fits := map[string]uint32{} // person → the needs that the person's signatures fit
	stepped := g.StepUp == ""
	for _, sg := range g.Signed {
		switch {
		case c.Counts(sg) != "":
		case sg.StepUp:
			stepped = stepped || sg.Person == c.Person(g.Principal)
		case !slices.Contains(involved, sg.Person):
			for i, n := range needs {
				if c.member(n.Group, sg.Principal) {
					fits[sg.Person] |= 1 << i
				}
			}
		}
	}
	if !stepped {
		return "the requester's own step-up"
	}
	for set := uint32(1); set < 1<<len(needs); set++ {
		places, people := 0, 0
		var groups []string
		for i, n := range needs {
			if set&(1<<i) != 0 {
				places += n.Count
				groups = append(groups, n.Group)
			}
		}
		for _, m := range fits {
			if m&set != 0 {
				people++
			}
		}
		if people < places {
			return fmt.Sprintf("%d of %s where %d were needed", people, strings.Join(groups, " and "), places)
		}
	}
	return ""
}

// member reports whether a principal was in a group then, and not contained.
func (c check) member(group, principal string) bool {
	var spec ledger.GroupSpec
	if _, ok := c.Spec(ledger.KindGroup, group, &spec); !ok || c.IsFrozen(ledger.KindPrincipal, principal) {
		return false
	}
	_, exists := c.Object(ledger.KindPrincipal, principal)
	return exists && slices.ContainsFunc(spec.Members, func(m ledger.Member) bool {
		return m.Name == principal && (m.Until == nil || m.Until.UnixMilli() > c.ms)
	})
}

// approval says why a signature on a grant should not have been taken.
func (c check) approval(actor, id string, sig cosign.Signature) string {
	g, ok := c.Cosigned(id)
	if !ok {
		return fmt.Sprintf("Grant %s, which was signed, does not exist.", id)
	}
	domain, hash, err := documentHash(g)
	if err != nil {
		return fmt.Sprintf("The document of grant %s is not the canonical one of its hash.", id)
	}
	if why := c.signature(actor, domain, hash, sig); why != "" {
		return fmt.Sprintf("The approval of grant %s by %s does not hold: %s.", id, actor, why)
	}
	if p := c.Person(actor); slices.Contains(c.Involved(g), p) && (g.StepUp == "" || actor != c.Person(g.Principal)) {
		return fmt.Sprintf("Grant %s was approved by %s, who has a part in it.", id, p)
	}
	return ""
}

// documentHash computes the hash that is signed from the document itself.
func documentHash(g ledger.Cosigned) (domain string, hash cosign.Hash, err error) {
	var doc any
	if g.Kind == ledger.GrantChange {
		domain = cosign.DomainChange
		doc, err = g.Change()
	} else {
		domain = cosign.DomainGrant
		doc, err = g.Access()
	}
	if err != nil {
		return "", hash, err
	}
	text, err := cosign.Canonical(doc)
	if err != nil {
		return "", hash, err
	}
	if hash = cosign.Sum(domain, text); !bytes.Equal(text, g.Document) || hash.String() != g.Hash {
		return "", hash, fmt.Errorf("another document")
	}
	return domain, hash, nil
}

// signature says why a signature is not the actor's over a hash.
func (c check) signature(actor, domain string, hash cosign.Hash, sig cosign.Signature) string {
	k, ok := c.Key(sig.Key)
	switch {
	case !ok || k.Use != ledger.UseApprove || k.Approve == nil:
		return "its key is not registered to approve with"
	case k.Principal != actor:
		return "its key is " + k.Principal + "'s"
	}
	if err := cosign.Verify(*k.Approve, domain, hash, sig); err != nil {
		return err.Error()
	}
	return ""
}

func (c check) review(actor string, b *ledger.ReviewGrant) string {
	g, ok := c.Cosigned(b.GrantID)
	if !ok || g.Review == nil {
		return fmt.Sprintf("Grant %s, which was reviewed, is no emergency.", b.GrantID)
	}
	hash, err := c.reviewHash(g, b)
	if err != nil {
		return fmt.Sprintf("The review of grant %s has no canonical form.", g.ID)
	}
	if why := c.signature(actor, cosign.DomainReview, hash, b.Signature); why != "" {
		return fmt.Sprintf("The review of grant %s by %s does not hold: %s.", g.ID, actor, why)
	}
	if p := c.Person(actor); slices.Contains(c.Involved(g), p) {
		return fmt.Sprintf("The emergency %s was reviewed by %s, who has a part in it.", g.ID, p)
	}
	return ""
}

func (c check) reviewHash(g ledger.Cosigned, b *ledger.ReviewGrant) (cosign.Hash, error) {
	genesis, _ := c.Genesis()
	text, err := cosign.Canonical(cosign.ReviewDocument{
		Type: cosign.DomainReview, Cluster: genesis.Cluster, GrantID: g.ID, Grant: g.Hash, Verdict: b.Verdict, Note: b.Note,
	})
	return cosign.Sum(cosign.DomainReview, text), err
}

// vouched says who vouched for a person's key to approve with, or why nobody did.
func (c check) vouched(b *ledger.AddKey) (by, why string) {
	if b.Key.Approve == nil {
		return "", fmt.Sprintf("The key %s of %s to approve with is not whole.", b.Key.Thumbprint, b.Key.Principal)
	}
	genesis, _ := c.Genesis()
	text, err := cosign.Canonical(cosign.KeyDocument{Type: cosign.DomainKey, Cluster: genesis.Cluster, Principal: b.Key.Principal, Key: *b.Key.Approve})
	if err != nil {
		return "", fmt.Sprintf("The key %s of %s has no canonical form.", b.Key.Thumbprint, b.Key.Principal)
	}
	hash := cosign.Sum(cosign.DomainKey, text)
	voucher := c.Voucher(b.Key.Principal)
	switch {
	case voucher == ledger.VouchNobody:
		return "a session alone: the first key, without dual control", ""
	case b.Vouch == nil:
	case voucher == ledger.VouchKey:
		if c.signature(b.Key.Principal, cosign.DomainKey, hash, *b.Vouch) == "" {
			return "their own key " + b.Vouch.Key, ""
		}
	default:
		for _, f := range genesis.Founders {
			if f.Principal == b.Key.Principal && cosign.Verify(cosign.Key{Kind: cosign.KindJWS, JWK: f.JWK}, cosign.DomainKey, hash, *b.Vouch) == nil {
				return "the enrolment token of the genesis record", ""
			}
		}
	}
	return "", fmt.Sprintf("Nobody vouched for the key %s of %s to approve with.", b.Key.Thumbprint, b.Key.Principal)
}
