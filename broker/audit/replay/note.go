package replay

import (
	"fmt"
	"strings"

	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/broker/ledger"
)

// note looks at the entry at hand before it is executed, and returns what writes
// it into the result once it took effect.
func (a *auditor) note(before check) func(seq int64) {
	d := a.last
	by := d.Header.Actor.Principal
	switch b := d.Body.(type) {
	case *ledger.Genesis:
		return func(int64) { a.genesis(before, b) }
	case *ledger.RequestGrant:
		return func(int64) { a.asked(b) }
	case *ledger.ApproveGrant:
		was, _ := before.Cosigned(b.GrantID)
		return func(seq int64) { a.approved(before, seq, by, was, b) }
	case *ledger.ReviewGrant:
		return func(seq int64) { a.reviewed(before, seq, by, b) }
	case *ledger.OpenLease:
		role, ok := before.role(b.Lease.Grant.Role)
		floored := ok && len(role.Approvals) > 0
		return func(int64) { a.opened(b, floored) }
	case *ledger.MakeChange:
		g, _ := before.Cosigned(b.GrantID)
		return func(seq int64) { a.changed(before, seq, g) }
	case *ledger.AddKey:
		if b.Key.Use == ledger.UseApprove {
			who, _ := before.vouched(b)
			return func(seq int64) { a.key(before, seq, b.Key.Principal, b.Key.Thumbprint, b.Key.Approve, who) }
		}
	case *ledger.OpenSession:
		if k := b.NewKey; before.enrolsApprover(b) {
			return func(seq int64) { a.key(before, seq, k.Principal, k.Thumbprint, k.Approve, "") }
		}
	}
	return func(int64) {}
}

func (a *auditor) genesis(before check, b *ledger.Genesis) {
	g := &a.out.Genesis
	g.At, g.Cluster, g.Incarnation, g.VerifierKey = at(before.ms), b.Cluster, b.Incarnation, b.VerifierKey
	g.Approvals, g.Founders = append(g.Approvals, b.Approvals...), append(g.Founders, b.Founders...)
	for _, o := range b.Objects {
		g.Objects = append(g.Objects, o.Kind+"/"+o.Name)
	}
}

func (a *auditor) asked(b *ledger.RequestGrant) {
	g := &a.out.Grants
	g.Asked++
	switch {
	case b.Change != nil:
		g.Changes++
	case b.Access.Emergency:
		g.Emergencies++
		a.out.Reviews.Begun++
	default:
		g.Access++
	}
}

func (a *auditor) approved(before check, seq int64, by string, was ledger.Cosigned, b *ledger.ApproveGrant) {
	now, _ := a.replayer.Query().Cosigned(b.GrantID)
	row := a.row(before, seq, by, now, b.Signature)
	row.Domain, row.Hash = now.Domain, now.Hash
	if n := len(now.Signed); n > 0 {
		row.StepUp = now.Signed[n-1].StepUp
	}
	if row.Completed = was.State == ledger.GrantWaiting && now.State == ledger.GrantApproved; row.Completed {
		a.out.Grants.Approved++
	}
	a.out.approval(row)
}

func (a *auditor) reviewed(before check, seq int64, by string, b *ledger.ReviewGrant) {
	now, _ := a.replayer.Query().Cosigned(b.GrantID)
	row := a.row(before, seq, by, now, b.Signature)
	hash, _ := before.reviewHash(now, b) // what Apply verified has one
	row.Domain, row.Hash, row.Verdict = cosign.DomainReview, hash.String(), b.Verdict
	if row.Completed = now.Review != nil && now.Review.DoneMS != 0; row.Completed {
		a.out.Reviews.Reviewed++
	}
	a.out.approval(row)
}

func (a *auditor) row(before check, seq int64, by string, g ledger.Cosigned, sig cosign.Signature) Approval {
	return Approval{
		Seq: seq, At: at(before.ms), Grant: g.ID, Kind: g.Kind, What: what(g), For: g.Principal,
		By: by, Person: before.Person(by), Key: sig.Key, KeyKind: sig.Kind,
	}
}

// maxWhat is how many changed things are named in one row.
const maxWhat = 5

// what says what a grant is for.
func what(g ledger.Cosigned) string {
	if g.Kind != ledger.GrantChange {
		return g.Role
	}
	d, err := g.Change()
	if err != nil {
		return ""
	}
	var out []string
	for _, o := range d.Objects {
		if o.Delete {
			out = append(out, "delete "+o.Kind+" "+o.Name)
		} else {
			out = append(out, o.Kind+" "+o.Name)
		}
	}
	for _, k := range d.Keys {
		out = append(out, "key of "+k.Principal)
	}
	if n := len(out); n > maxWhat {
		out = append(out[:maxWhat], fmt.Sprintf("and %d more", n-maxWhat))
	}
	return strings.Join(out, ", ")
}

func (a *auditor) opened(b *ledger.OpenLease, floored bool) {
	l := &a.out.Leases
	l.Opened++
	if floored {
		l.Floored++
	}
	if g, ok := a.replayer.Query().Cosigned(b.Lease.Grant.ID); ok {
		if g.Kind == ledger.GrantEmergency {
			l.Emergency++
		} else {
			l.Cosigned++
		}
	}
}

func (a *auditor) changed(before check, seq int64, g ledger.Cosigned) {
	a.out.Changes++
	d, err := g.Change()
	if err != nil {
		return
	}
	var people []string
	for _, sg := range g.Signed {
		people = append(people, sg.Person)
	}
	for _, k := range d.Keys {
		thumb, err := cosign.Thumbprint(k.Key.JWK)
		if err == nil {
			a.key(before, seq, k.Principal, thumb, &k.Key, "change "+g.ID+", approved by "+strings.Join(people, ", "))
		}
	}
}

func (a *auditor) key(before check, seq int64, principal, thumb string, k *cosign.Key, by string) {
	row := Key{Seq: seq, At: at(before.ms), Principal: principal, Thumbprint: thumb, VouchedBy: by}
	if k != nil {
		row.Kind = k.Kind
	}
	a.out.key(row)
}
