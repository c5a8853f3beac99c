package ledger_test

import (
	"fmt"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/broker/cosign/cosigntest"
	"github.com/mayfly-broker/mayfly/broker/ledger"
)

// attack is a command that must be refused on every replica, and what goes before it.
type attack struct {
	code string
	try  func(x *court) (actor string, b ledger.Body)
}

// mount plays each attack in a court of its own.
func mount(t *testing.T, dual bool, attacks map[string]attack) {
	for name, a := range attacks {
		t.Run(name, func(t *testing.T) {
			x := newCourt(t, dual)
			actor, b := a.try(x)
			x.refused(a.code, actor, b)
		})
	}
}

// asked is a court in which app has asked for db/two, and some have signed.
func (x *court) asked(name, role string, signers ...string) {
	x.t.Helper()
	x.ok(app, x.ask(app, role, name, ""))
	x.signs(name, signers...)
}

// TestLaw4OneGrantFromRequestToEnd: what attacks are measured against.
func TestLaw4OneGrantFromRequestToEnd(t *testing.T) {
	x := newCourt(t, false)
	x.asked("g", "db/two", bo)
	if g := x.grant("g"); g.State != ledger.GrantWaiting || len(g.Signed) != 1 {
		t.Fatalf("%+v", g)
	}
	x.refused(ledger.CodeApprovalRequired, app, x.collect(app, "g", "e"))
	x.signs("g", kim)
	if g := x.grant("g"); g.State != ledger.GrantApproved {
		t.Fatalf("%+v", g)
	}
	x.ok(app, x.collect(app, "g", "s"))
	x.refused(ledger.CodeGrantOver, app, x.collect(app, "g", "s2"))
	if left := x.left(); len(left) > 0 {
		t.Errorf("left in the indexes: %q", left)
	}
	x.ok(kim, &ledger.EndGrant{GrantID: aid(ledger.PrefixGrant, "g"), State: ledger.GrantRevoked, Note: "regret"})
	if l := x.lease("s"); l.State != ledger.LeaseEnding {
		t.Errorf("%+v", l)
	}
	x.refused(ledger.CodeGrantOver, kim, &ledger.EndGrant{GrantID: aid(ledger.PrefixGrant, "g"), State: ledger.GrantRevoked})
}

// TestLaw4WhoMaySign: people who have a part in what is asked, who are not asked,
// or who have signed already.
func TestLaw4WhoMaySign(t *testing.T) {
	mount(t, false, map[string]attack{
		"the requester": {ledger.CodeSelfApproval, func(x *court) (string, ledger.Body) {
			x.ok(bo, x.ask(bo, "db/priv", "g", ""))
			return bo, x.sign(bo, "g")
		}},
		"the agent's owner": {ledger.CodeSelfApproval, func(x *court) (string, ledger.Body) {
			x.ok(helper, x.ask(helper, "db/two", "g", ""))
			return ann, x.sign(ann, "g")
		}},
		"the owner's other agent": {ledger.CodeSelfApproval, func(x *court) (string, ledger.Body) {
			x.ok(bo, x.ask(bo, "db/priv", "g", ""))
			return bobot, x.sign(bobot, "g")
		}},
		"who has given the agent away since": {ledger.CodeSelfApproval, func(x *court) (string, ledger.Body) {
			x.ok(helper, x.ask(helper, "db/two", "g", ""))
			x.put("Principal", helper, `{"owner":"human:eve"}`)
			return ann, x.sign(ann, "g")
		}},
		"who has taken the agent since": {ledger.CodeSelfApproval, func(x *court) (string, ledger.Body) {
			x.ok(helper, x.ask(helper, "db/two", "g", ""))
			x.put("Principal", helper, `{"owner":"human:bo"}`)
			return bo, x.sign(bo, "g")
		}},
		"who started the task": {ledger.CodeSelfApproval, func(x *court) (string, ledger.Body) {
			top := x.task(bo, bo, "top", "")
			x.ok(app, x.ask(app, "db/two", "g", x.task(bo, app, "low", top)))
			return bo, x.sign(bo, "g")
		}},
		"the owner of a child task's agent": {ledger.CodeSelfApproval, func(x *court) (string, ledger.Body) {
			top := x.task(app, app, "top", "")
			x.task(app, helper, "low", top)
			x.ok(app, x.ask(app, "db/two", "g", top))
			return ann, x.sign(ann, "g")
		}},
		"who works in a cousin task": {ledger.CodeSelfApproval, func(x *court) (string, ledger.Body) {
			top := x.task(app, app, "top", "")
			x.task(app, kim, "left", top)
			x.ok(other, x.ask(other, "db/two", "g", x.task(app, other, "right", top)))
			return kim, x.sign(kim, "g")
		}},
		"who works in a task that has ended": {ledger.CodeSelfApproval, func(x *court) (string, ledger.Body) {
			top := x.task(app, app, "top", "")
			x.ok(kim, &ledger.EndTask{ID: x.task(app, kim, "low", top), Reason: ledger.EndDone})
			x.ok(app, x.ask(app, "db/two", "g", top))
			return kim, x.sign(kim, "g")
		}},
		"one person, two keys": {ledger.CodeTwice, func(x *court) (string, ledger.Body) {
			x.asked("g", "db/two", bo)
			second := cosigntest.Seeded(cosign.KindJWS, "bo's second")
			cmd := x.addKey(bo, second)
			cmd.Vouch = x.vouch(bo, second, x.keys[bo])
			x.ok(bo, cmd)
			x.keys[bo] = second
			return bo, x.sign(bo, "g")
		}},
		"automation of somebody who has signed": {ledger.CodeTwice, func(x *court) (string, ledger.Body) {
			x.asked("g", "db/two", bo)
			return bobot, x.sign(bobot, "g")
		}},
		"somebody whose automation has signed": {ledger.CodeTwice, func(x *court) (string, ledger.Body) {
			x.asked("g", "db/two", bobot)
			return bo, x.sign(bo, "g")
		}},
		"automation of nobody": {ledger.CodeNotEligible, func(x *court) (string, ledger.Body) {
			x.asked("g", "db/two")
			return orphan, x.sign(orphan, "g")
		}},
		"somebody of another group": {ledger.CodeNotEligible, func(x *court) (string, ledger.Body) {
			x.asked("g", "db/two")
			return eve, x.sign(eve, "g")
		}},
		"a member whose time is over": {ledger.CodeNotEligible, func(x *court) (string, ledger.Body) {
			x.put("Group", "dba", `{"members":[{"name":"human:bo","until":"1970-01-01T00:17:00Z"},{"name":"human:ann"},{"name":"human:kim"}]}`)
			x.asked("g", "db/two")
			x.now = 1_020_000
			return bo, x.sign(bo, "g")
		}},
		"who is contained": {ledger.CodeFrozen, func(x *court) (string, ledger.Body) {
			x.asked("g", "db/two")
			x.ok(ann, &ledger.Freeze{Kind: "Principal", Name: bo, Reason: "odd"})
			return bo, x.sign(bo, "g")
		}},
		"automation whose owner is contained": {ledger.CodeNotEligible, func(x *court) (string, ledger.Body) {
			x.asked("g", "db/two")
			x.ok(ann, &ledger.Freeze{Kind: "Principal", Name: bo, Reason: "odd"})
			return bobot, x.sign(bobot, "g")
		}},
		"automation whose owner is gone": {ledger.CodeNotEligible, func(x *court) (string, ledger.Body) {
			x.asked("g", "db/two")
			x.drop("Principal", bo)
			return bobot, x.sign(bobot, "g")
		}},
	})
}

// TestLaw4ForgedAndReplayedSignatures: a leader puts words into somebody's mouth.
func TestLaw4ForgedAndReplayedSignatures(t *testing.T) {
	resign := func(x *court, who string, change func(*cosign.GrantDocument)) *ledger.ApproveGrant {
		d, _ := x.grant("g").Access()
		change(&d)
		text, err := cosign.Canonical(d)
		if err != nil {
			x.t.Fatal(err)
		}
		return &ledger.ApproveGrant{GrantID: d.GrantID, Signature: x.keys[who].Sign(cosign.DomainGrant, cosign.Sum(cosign.DomainGrant, text))}
	}
	first := aid(ledger.PrefixGrant, "g")
	attacks := map[string]attack{
		"the leader's own key under another's name": {ledger.CodeSignature, func(x *court) (string, ledger.Body) {
			s := cosigntest.Seeded(cosign.KindSSH, "leader").Sign(cosign.DomainGrant, x.hash("g"))
			s.Key = x.keys[bo].Thumbprint()
			return bo, &ledger.ApproveGrant{GrantID: first, Signature: s}
		}},
		"a key that nobody registered": {ledger.CodeNotEligible, func(x *court) (string, ledger.Body) {
			return bo, &ledger.ApproveGrant{GrantID: first, Signature: cosigntest.Seeded(cosign.KindSSH, "leader").Sign(cosign.DomainGrant, x.hash("g"))}
		}},
		"another's key": {ledger.CodeNotEligible, func(x *court) (string, ledger.Body) { return bo, x.sign(kim, "g") }},
		"a key to log in with": {ledger.CodeNotEligible, func(x *court) (string, ledger.Body) {
			k := cosigntest.Seeded(cosign.KindJWS, "laptop")
			x.ok(bo, &ledger.AddKey{Key: ledger.Key{Thumbprint: k.Thumbprint(), Principal: bo, Use: ledger.UseSession, JWK: k.Key().JWK}})
			x.keys[bo] = k
			return bo, x.sign(bo, "g")
		}},
		"the same signature again": {ledger.CodeTwice, func(x *court) (string, ledger.Body) {
			x.signs("g", bo)
			return bo, x.sign(bo, "g")
		}},
		"a signature over another grant": {ledger.CodeSignature, func(x *court) (string, ledger.Body) {
			x.ok(app, x.ask(app, "db/two", "h", ""))
			b := x.sign(bo, "h")
			b.GrantID = first
			return bo, b
		}},
		"another domain": {ledger.CodeSignature, func(x *court) (string, ledger.Body) {
			return bo, &ledger.ApproveGrant{GrantID: first, Signature: x.keys[bo].Sign(cosign.DomainReview, x.hash("g"))}
		}},
		"another verifier": {ledger.CodeSignature, func(x *court) (string, ledger.Body) {
			b := x.sign(bo, "g")
			b.Signature.Verifier = 2
			return bo, b
		}},
		"no signature": {ledger.CodeSignature, func(x *court) (string, ledger.Body) {
			b := x.sign(bo, "g")
			b.Signature = cosign.Signature{Verifier: 1, Kind: cosign.KindSSH, Key: b.Signature.Key}
			return bo, b
		}},
		"after its time": {ledger.CodeGrantOver, func(x *court) (string, ledger.Body) {
			b := x.sign(bo, "g")
			x.now += 100_000
			return bo, b
		}},
		"after its time, by a clock set back": {ledger.CodeGrantOver, func(x *court) (string, ledger.Body) {
			b := x.sign(bo, "g")
			x.now += 100_000
			x.ok("", &ledger.Sweep{Max: 1})
			x.now -= 100_000
			return bo, b
		}},
	}
	for name, change := range map[string]func(*cosign.GrantDocument){
		"another scope":                func(d *cosign.GrantDocument) { d.Scope = rawJSON(`[{"type":"memory","actions":["write"]}]`) },
		"an older policy":              func(d *cosign.GrantDocument) { d.Policies[0].Version += 99 },
		"another incarnation":          func(d *cosign.GrantDocument) { d.Incarnation = 2 },
		"another cluster":              func(d *cosign.GrantDocument) { d.Cluster = "d" },
		"another requester":            func(d *cosign.GrantDocument) { d.Requester.Principal = other },
		"fewer approvals":              func(d *cosign.GrantDocument) { d.Needs[0].Count = 1 },
		"a longer life":                func(d *cosign.GrantDocument) { d.TotalS++ },
		"an emergency":                 func(d *cosign.GrantDocument) { d.Emergency = true },
		"the same but for its purpose": func(d *cosign.GrantDocument) { d.Purpose = "q" },
	} {
		attacks["a signature over "+name] = attack{ledger.CodeSignature, func(x *court) (string, ledger.Body) { return bo, resign(x, bo, change) }}
	}
	for name, a := range attacks {
		t.Run(name, func(t *testing.T) {
			x := newCourt(t, false)
			x.asked("g", "db/two")
			actor, b := a.try(x)
			x.refused(a.code, actor, b)
		})
	}
}

// TestHazard1LeaderAsksForLess: what a leader writes into the request, or leaves out.
func TestHazard1LeaderAsksForLess(t *testing.T) {
	doc := func(role string, change func(*cosign.GrantDocument)) func(x *court) (string, ledger.Body) {
		return func(x *court) (string, ledger.Body) {
			return app, x.ask(app, role, "g", "", func(b *ledger.RequestGrant) { change(b.Access) })
		}
	}
	mount(t, false, map[string]attack{
		"no grant at all":     {ledger.CodeApprovalRequired, func(x *court) (string, ledger.Body) { return app, x.open(app, "db/two", "s", "") }},
		"nobody":              {ledger.CodeApprovalRequired, doc("db/two", func(d *cosign.GrantDocument) { d.Needs = nil })},
		"one of two":          {ledger.CodeApprovalRequired, doc("db/two", func(d *cosign.GrantDocument) { d.Needs[0].Count = 1 })},
		"one group of two":    {ledger.CodeApprovalRequired, doc("db/both", func(d *cosign.GrantDocument) { d.Needs = d.Needs[:1] })},
		"another group":       {ledger.CodeApprovalRequired, doc("db/two", func(d *cosign.GrantDocument) { d.Needs[0].Group = "administrators" })},
		"a step-up instead":   {ledger.CodeApprovalRequired, doc("db/two", func(d *cosign.GrantDocument) { d.Needs, d.StepUp = nil, "passkey" })},
		"nobody, on no floor": {ledger.CodeInvalid, doc("db/rw", func(d *cosign.GrantDocument) { d.Needs = nil })},
		"zero of a group":     {ledger.CodeInvalid, doc("db/rw", func(d *cosign.GrantDocument) { d.Needs = []cosign.Need{{Group: "dba", Count: 0}} })},
		"a group twice": {ledger.CodeInvalid, doc("db/rw", func(d *cosign.GrantDocument) {
			d.Needs = []cosign.Need{{Group: "dba", Count: 1}, {Group: "dba", Count: 1}}
		})},
		"a hundred people":      {ledger.CodeInvalid, doc("db/rw", func(d *cosign.GrantDocument) { d.Needs = []cosign.Need{{Group: "dba", Count: 100}} })},
		"an overflow of people": {ledger.CodeInvalid, doc("db/rw", func(d *cosign.GrantDocument) { d.Needs = []cosign.Need{{Group: "dba", Count: 1 << 62}} })},
		"more than there are":   {ledger.CodeQuorum, doc("db/two", func(d *cosign.GrantDocument) { d.Needs[0].Count = 4 })},
		"a group that is not":   {ledger.CodeQuorum, doc("db/rw", func(d *cosign.GrantDocument) { d.Needs = []cosign.Need{{Group: "ghosts", Count: 1}} })},
		"two of two when one asks": {ledger.CodeQuorum, func(x *court) (string, ledger.Body) {
			return bo, x.ask(bo, "db/two", "g", "", func(b *ledger.RequestGrant) { b.Access.Needs[0].Count = 3 })
		}},
		"one person for two groups": {ledger.CodeQuorum, func(x *court) (string, ledger.Body) {
			x.put("Group", "security", `{"members":[{"name":"human:bo"}]}`)
			x.put("Group", "dba", `{"members":[{"name":"human:bo"},{"name":"human:kim"}]}`)
			return app, x.ask(app, "db/both", "g", "")
		}},
		"a wider scope": {ledger.CodeNarrow, doc("db/two", func(d *cosign.GrantDocument) { d.Scope = rawJSON(`[{"type":"memory","actions":["drop"]}]`) })},
		"a scope of two faces": {ledger.CodeNarrow, doc("db/two", func(d *cosign.GrantDocument) {
			d.Scope = rawJSON(`[{"type":"memory","actions":["read"],"action` + "\u017f" + `":["read","write"]}]`)
		})},
		"a longer life":        {ledger.CodeTTL, doc("db/two", func(d *cosign.GrantDocument) { d.TotalS = 601 })},
		"an endless life":      {ledger.CodeTTL, doc("db/two", func(d *cosign.GrantDocument) { d.TotalS = 1<<53 - 1 })},
		"past the task":        {ledger.CodeTTL, doc("db/two", func(d *cosign.GrantDocument) { d.EndsByMS++ })},
		"waiting for ever":     {ledger.CodeTTL, doc("db/two", func(d *cosign.GrantDocument) { d.CollectBeforeMS = 1 << 50 })},
		"many leases":          {ledger.CodeInvalid, doc("db/two", func(d *cosign.GrantDocument) { d.MaxLeases = ledger.MaxGrantLeases + 1 })},
		"another target":       {ledger.CodeNotFound, doc("db/two", func(d *cosign.GrantDocument) { d.Target = "other" })},
		"an older role":        {ledger.CodeStale, doc("db/two", func(d *cosign.GrantDocument) { d.RoleVersion += 99 })},
		"an older policy":      {ledger.CodeGrantVoid, doc("db/two", func(d *cosign.GrantDocument) { d.Policies[0].Version += 99 })},
		"a policy that is not": {ledger.CodeGrantVoid, doc("db/two", func(d *cosign.GrantDocument) { d.Policies[0].Object = "z" })},
		"no policy":            {ledger.CodeInvalid, doc("db/two", func(d *cosign.GrantDocument) { d.Policies = nil })},
		"another cluster":      {ledger.CodeInvalid, doc("db/two", func(d *cosign.GrantDocument) { d.Cluster = "d" })},
		"another incarnation":  {ledger.CodeInvalid, doc("db/two", func(d *cosign.GrantDocument) { d.Incarnation = 2 })},
		"another domain":       {ledger.CodeInvalid, doc("db/two", func(d *cosign.GrantDocument) { d.Type = cosign.DomainChange })},
		"another decision":     {ledger.CodeInvalid, doc("db/two", func(d *cosign.GrantDocument) { d.Requester.Principal = other })},
		"a better attestation": {ledger.CodeInvalid, doc("db/two", func(d *cosign.GrantDocument) { d.Requester.AttestedKey = true })},
		"an invented owner":    {ledger.CodeInvalid, doc("db/two", func(d *cosign.GrantDocument) { d.Requester.Owner = eve })},
		"invented facts":       {ledger.CodeInvalid, doc("db/two", func(d *cosign.GrantDocument) { d.Requester.Facts["a"] = "9" })},
		"a chain left out": {ledger.CodeStale, func(x *court) (string, ledger.Body) {
			low := x.task(bo, app, "low", x.task(bo, bo, "top", ""))
			return app, x.ask(app, "db/two", "g", low, func(b *ledger.RequestGrant) { b.Access.Requester.Chain = nil })
		}},
		"an implicit task of another": {ledger.CodeTaskForeign, func(x *court) (string, ledger.Body) {
			return app, x.ask(app, "db/two", "g", "", func(b *ledger.RequestGrant) { b.ImplicitTask.Principal = other })
		}},
		"an implicit task below another's": {ledger.CodeInvalid, func(x *court) (string, ledger.Body) {
			top := x.task(bo, bo, "top", "")
			return app, x.ask(app, "db/two", "g", "", func(b *ledger.RequestGrant) { b.ImplicitTask.Parent = top })
		}},
		"an implicit task that exists": {ledger.CodeInvalid, func(x *court) (string, ledger.Body) {
			tid := x.task(bo, bo, "top", "")
			return app, x.ask(app, "db/two", "g", "", func(b *ledger.RequestGrant) { b.ImplicitTask.ID, b.Access.Task.ID = tid, tid })
		}},
		"a grant that exists": {ledger.CodeExists, func(x *court) (string, ledger.Body) {
			x.asked("g", "db/two")
			return app, x.ask(app, "db/two", "g", "", func(b *ledger.RequestGrant) {
				b.ImplicitTask.ID = aid(ledger.PrefixTask, "z")
				b.Access.Task.ID = b.ImplicitTask.ID
			})
		}},
		"thirty-three at once": {ledger.CodeCapCount, func(x *court) (string, ledger.Body) {
			for i := range ledger.MaxWaiting {
				x.ok(app, x.ask(app, "db/two", fmt.Sprintf("%02d", i), ""))
			}
			return app, x.ask(app, "db/two", "g", "")
		}},
		"with a secret on board": {ledger.CodeInvalid, func(x *court) (string, ledger.Body) {
			x.secrets = []ledger.Secret{{Name: "Target/db/password", Salt: make([]byte, 16), Value: []byte("x")}}
			return app, x.ask(app, "db/two", "g", "")
		}},
		"a moment after a denial": {ledger.CodeCooling, func(x *court) (string, ledger.Body) {
			x.asked("g", "db/two")
			x.ok(bo, &ledger.EndGrant{GrantID: aid(ledger.PrefixGrant, "g"), State: ledger.GrantDenied})
			x.now += ledger.CoolingMS - 1
			return app, x.ask(app, "db/two", "h", "")
		}},
	})
}
