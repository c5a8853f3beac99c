package ledger_test

import (
	"testing"

	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/ledger/ledgertest"
)

func newEmptyBook(t *testing.T) *book { return &book{t: t, mem: &ledgertest.Mem{}, now: 1_000_000} }

// TestHazard7WhoMayBreakTheGlass.
func TestHazard7WhoMayBreakTheGlass(t *testing.T) {
	try := func(who, role string, change ...func(*cosign.GrantDocument)) func(x *court) (string, ledger.Body) {
		return func(x *court) (string, ledger.Body) {
			return who, x.ask(who, role, "g", "", emergency(x), func(b *ledger.RequestGrant) {
				for _, f := range change {
					f(b.Access)
				}
			})
		}
	}
	mount(t, false, map[string]attack{
		"an agent":             {ledger.CodeEmergency, try(helper, "db/glass")},
		"a workload":           {ledger.CodeEmergency, try(app, "db/glass")},
		"a role that has none": {ledger.CodeEmergency, try(ann, "db/two")},
		"without a reason":     {ledger.CodeEmergency, try(ann, "db/glass", func(d *cosign.GrantDocument) { d.Reason = " \t" })},
		"longer than it may":   {ledger.CodeTTL, try(ann, "db/glass", func(d *cosign.GrantDocument) { d.TotalS = 301 })},
		"ending later than it may": {ledger.CodeTTL, func(x *court) (string, ledger.Body) {
			return ann, x.ask(ann, "db/glass", "g", "", emergency(x), func(b *ledger.RequestGrant) {
				b.Access.EndsByMS = x.now + 300_001
				b.Access.Task.DeadlineMS, b.ImplicitTask.DeadlineMS = b.Access.EndsByMS, b.Access.EndsByMS
			})
		}},
		"two leases":          {ledger.CodeInvalid, try(ann, "db/glass", func(d *cosign.GrantDocument) { d.MaxLeases = 2 })},
		"approvals beside it": {ledger.CodeInvalid, try(ann, "db/glass", func(d *cosign.GrantDocument) { d.Needs = []cosign.Need{{Group: "dba", Count: 1}} })},
		"in another's task": {ledger.CodeEmergency, func(x *court) (string, ledger.Body) {
			return ann, x.ask(ann, "db/glass", "g", x.task(app, ann, "low", x.task(app, app, "top", "")), emergency(x))
		}},
		"before the last was reviewed": {ledger.CodeEmergency, func(x *court) (string, ledger.Body) {
			x.ok(ann, x.ask(ann, "db/glass", "a", "", emergency(x)))
			x.now += 3_600_000
			x.ok("", &ledger.EndGrant{GrantID: aid(ledger.PrefixGrant, "a"), State: ledger.GrantExpired})
			return ann, x.ask(ann, "db/glass", "g", "", emergency(x))
		}},
		"signing it as if it waited": {ledger.CodeGrantOver, func(x *court) (string, ledger.Body) {
			x.ok(ann, x.ask(ann, "db/glass", "g", "", emergency(x)))
			return bo, x.sign(bo, "g")
		}},
		"a second credential": {ledger.CodeGrantOver, func(x *court) (string, ledger.Body) {
			x.ok(ann, x.ask(ann, "db/glass", "g", "", emergency(x)))
			x.ok(ann, x.collect(ann, "g", "a"))
			return ann, x.collect(ann, "g", "b")
		}},
		"when the role allows it no more": {ledger.CodeStale, func(x *court) (string, ledger.Body) {
			x.ok(ann, x.ask(ann, "db/glass", "g", "", emergency(x)))
			cmd := x.collect(ann, "g", "a")
			x.put("Role", "db/glass", courtRole+`,"approvals":[{"group":"dba","count":2}]}`)
			cmd.Read.PolicyEpoch = x.q().PolicyEpoch()
			return ann, cmd
		}},
	})
}

// TestHazard7EmergencyIsReviewed: by others, signed over this grant and this word.
func TestHazard7EmergencyIsReviewed(t *testing.T) {
	x := newCourt(t, false)
	x.put("Group", "security", `{"members":[{"name":"human:ann"},{"name":"human:eve"},{"name":"human:bo"}]}`)
	x.ok(ann, x.ask(ann, "db/glass", "g", "", emergency(x)))
	x.ok(ann, x.collect(ann, "g", "a"))
	x.ok(kim, x.ask(kim, "db/glass", "h", "", emergency(x)))
	if got := x.q().Unreviewed(9); len(got) != 2 {
		t.Errorf("%q wait for their review", got)
	}
	word := func(who, about, said string) *ledger.ReviewGrant {
		g := x.grant(about)
		text, err := cosign.Canonical(cosign.ReviewDocument{Type: cosign.DomainReview, Cluster: "c", GrantID: g.ID, Grant: g.Hash, Verdict: said, Note: "n"})
		if err != nil {
			t.Fatal(err)
		}
		return &ledger.ReviewGrant{GrantID: g.ID, Verdict: said, Note: "n", Signature: x.keys[who].Sign(cosign.DomainReview, cosign.Sum(cosign.DomainReview, text))}
	}
	x.refused(ledger.CodeSelfApproval, ann, word(ann, "g", ledger.Justified))
	x.refused(ledger.CodeNotEligible, kim, word(kim, "g", ledger.Justified))
	x.refused(ledger.CodeNotEligible, bo, word(eve, "g", ledger.Justified))
	x.refused(ledger.CodeInvalid, eve, word(eve, "g", "fine"))
	moved := word(eve, "h", ledger.Justified)
	moved.GrantID = aid(ledger.PrefixGrant, "g")
	x.refused(ledger.CodeSignature, eve, moved)
	turned := word(eve, "g", ledger.Unjustified)
	turned.Verdict = ledger.Justified
	x.refused(ledger.CodeSignature, eve, turned)
	edited := word(eve, "g", ledger.Unjustified)
	edited.Note = "all was well"
	x.refused(ledger.CodeSignature, eve, edited)
	x.refused(ledger.CodeSignature, eve, &ledger.ReviewGrant{GrantID: aid(ledger.PrefixGrant, "g"), Verdict: ledger.Justified, Signature: x.keys[eve].Sign(cosign.DomainGrant, x.hash("g"))})
	x.ok(ann, &ledger.Freeze{Kind: "Principal", Name: eve, Reason: "odd"})
	x.refused(ledger.CodeFrozen, eve, word(eve, "g", ledger.Justified))

	x.ok(ann, &ledger.Release{Kind: "Principal", Name: eve, Reason: "it was not"})
	x.ok(eve, word(eve, "g", ledger.Justified))
	x.refused(ledger.CodeTwice, eve, word(eve, "g", ledger.Justified))
	if g := x.grant("g"); g.Review.DoneMS != 0 {
		t.Error("one word is enough")
	}
	x.ok(bo, word(bo, "g", ledger.Unjustified))
	x.refused(ledger.CodeGrantOver, bo, word(bo, "g", ledger.Justified))
	if g := x.grant("g"); g.Review.DoneMS != x.now || len(g.Review.Verdicts) != 2 || g.Review.Verdicts[1].Verdict != ledger.Unjustified {
		t.Errorf("%+v", g.Review)
	}
	x.ok(ann, x.ask(ann, "db/glass", "j", "", emergency(x)))
	if got := x.q().Unreviewed(9); len(got) != 2 {
		t.Errorf("%q wait for their review", got)
	}
	x.refused(ledger.CodeInvalid, bo, func() *ledger.ReviewGrant {
		x.ok(app, x.ask(app, "db/two", "k", ""))
		return word(bo, "k", ledger.Justified)
	}())
}

// TestHazard7ReviewBecomesDue: what nobody reviews stays in sight, past its time.
func TestHazard7ReviewBecomesDue(t *testing.T) {
	x := newCourt(t, false)
	x.ok(ann, x.ask(ann, "db/glass", "g", "", emergency(x)))
	x.now += ledger.ReviewMS
	x.ok("", &ledger.Sweep{Max: ledger.MaxSweepBatch})
	x.ok("", &ledger.EndGrant{GrantID: aid(ledger.PrefixGrant, "g"), State: ledger.GrantExpired})
	if g := x.grant("g"); g.Review.DoneMS != 0 || g.Review.DueMS > x.now || len(x.q().Unreviewed(9)) != 1 {
		t.Errorf("%+v", g.Review)
	}
}
