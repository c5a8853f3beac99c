package ledger

import (
	"slices"
	"strings"

	"github.com/mayfly-broker/mayfly/broker/cosign"
)

// Break-glass (HAZARDS 7): the role allows it, a human asks and says why, it is
// short, and nobody gets a second one before the first was reviewed.

// GrantReview is the second look at an emergency.
type GrantReview struct {
	Needs    []cosign.Need `json:"needs"`
	DueMS    int64         `json:"due_ms"`
	Verdicts []Verdict     `json:"verdicts,omitempty"`
	DoneMS   int64         `json:"done_ms,omitempty"`
}

// Verdict is one reviewer's signed word.
type Verdict struct {
	Signed  `json:"signed"`
	Verdict string `json:"verdict"`
	Note    string `json:"note,omitempty"`
}

// Verdicts of a review.
const (
	Justified   = "justified"
	Unjustified = "unjustified"
)

func (s *state) beginEmergency(c *context, d *cosign.GrantDocument, role RoleSpec) (*GrantReview, Result) {
	who := d.Requester.Principal
	switch {
	case role.Emergency == nil:
		return nil, refuse(CodeEmergency, "Role %s allows no emergencies. Ask without --emergency.", d.Role)
	case !strings.HasPrefix(who, "human:") || len(d.Requester.Chain) > 0:
		return nil, refuse(CodeEmergency, "Only a human, in a task of their own, may break the glass.")
	case strings.TrimSpace(d.Reason) == "":
		return nil, refuse(CodeEmergency, "An emergency needs a reason.")
	case d.TotalS*1000 > role.Emergency.MaxTTL.MS() || d.EndsByMS > c.now+role.Emergency.MaxTTL.MS():
		return nil, refuse(CodeTTL, "An emergency grant on %s lasts at most %d seconds.", d.Role, role.Emergency.MaxTTL.MS()/1000)
	case d.MaxLeases != 1 || len(d.Needs) != 0:
		return nil, refuse(CodeInvalid, "An emergency grant has one lease and waits for nobody.")
	}
	if open := s.ids(bucketReview, prefix(who), 1); len(open) > 0 {
		return nil, refuse(CodeEmergency, "%s has an emergency grant that is not reviewed yet (%s). It comes first.", who, open[0])
	}
	review := &GrantReview{DueMS: c.now + ReviewMS}
	for _, a := range role.Emergency.Review {
		review.Needs = append(review.Needs, cosign.Need{Group: a.Group, Count: a.Count, By: "role"})
	}
	slices.SortFunc(review.Needs, func(a, b cosign.Need) int { return strings.Compare(a.Group, b.Group) })
	s.put(bucketReview, key(who, d.GrantID), []byte{1})
	return review, done("")
}

// ReviewGrant records a reviewer's signed word on an emergency.
type ReviewGrant struct {
	GrantID   string           `json:"grant_id"`
	Verdict   string           `json:"verdict"`
	Note      string           `json:"note,omitempty"`
	Signature cosign.Signature `json:"signature"`
}

// Type implements [Body].
func (*ReviewGrant) Type() string { return "review_grant" }

func (b *ReviewGrant) apply(s *state, c *context) Result {
	g, ok := s.cosigned(b.GrantID)
	switch {
	case !ok:
		return refuse(CodeNotFound, "Grant %s does not exist.", b.GrantID)
	case g.Review == nil:
		return refuse(CodeInvalid, "Grant %s was no emergency; there is nothing to review.", g.ID)
	case g.Review.DoneMS != 0:
		return refuse(CodeGrantOver, "Grant %s has been reviewed.", g.ID)
	case b.Verdict != Justified && b.Verdict != Unjustified || len(b.Note) > MaxReasonBytes:
		return refuse(CodeInvalid, "A verdict is %s or %s; a note has at most %d bytes.", Justified, Unjustified, MaxReasonBytes)
	}
	k, res := s.approvalKey(c, b.Signature)
	if !res.OK() {
		return res
	}
	hash, err := reviewHash(s.clusterID(), g, b.Verdict, b.Note)
	if err != nil {
		return refuse(CodeInvalid, "The review cannot be written in canonical form.")
	}
	if res := verify(k, cosign.DomainReview, hash, b.Signature); !res.OK() {
		return res
	}
	asked := g
	asked.Needs, asked.StepUp, asked.Signed = g.Review.Needs, "", g.Review.signed()
	sg := Signed{Principal: k.Principal, Person: s.person(k.Principal), AtMS: c.now, Seq: c.seq, Signature: b.Signature}
	if res := s.checkSigner(c, asked, &sg); !res.OK() {
		return res
	}
	g.Review.Verdicts = append(g.Review.Verdicts, Verdict{Signed: sg, Verdict: b.Verdict, Note: b.Note})
	asked.Signed = g.Review.signed()
	if s.enough(c.now, asked) {
		g.Review.DoneMS = c.now
		s.del(bucketReview, key(g.Principal, g.ID))
	}
	s.keep(c, g)
	return done(g.ID)
}

func (r *GrantReview) signed() []Signed {
	var out []Signed
	for _, v := range r.Verdicts {
		out = append(out, v.Signed)
	}
	return out
}

func reviewHash(cluster string, g Cosigned, verdict, note string) (string, error) {
	text, err := cosign.Canonical(cosign.ReviewDocument{
		Type: cosign.DomainReview, Cluster: cluster, GrantID: g.ID, Grant: g.Hash, Verdict: verdict, Note: note,
	})
	return cosign.Sum(cosign.DomainReview, text).String(), err
}

func (v *view) clusterID() string {
	var g Genesis
	v.load(bucketMeta, metaGenesis, &g)
	return g.Cluster
}
