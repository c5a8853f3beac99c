package ledger_test

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/broker/cosign/cosigntest"
	"github.com/mayfly-broker/mayfly/broker/ledger"
)

// TestHazard20MintCountsAgain: two have signed; then something changes between the
// last signature and the mint.
func TestHazard20MintCountsAgain(t *testing.T) {
	leaves := func(members string) func(x *court) {
		return func(x *court) { x.put("Group", "dba", `{"members":[`+members+`]}`) }
	}
	for name, c := range map[string]struct {
		code   string
		change func(x *court)
	}{
		"nothing":                   {ledger.CodeOK, func(*court) {}},
		"an unrelated policy":       {ledger.CodeOK, func(x *court) { x.put("Policy", "q", `{"text":"other"}`) }},
		"an unrelated role":         {ledger.CodeOK, func(x *court) { x.put("Role", "db/both", courtRole+`}`) }},
		"the policy that permitted": {ledger.CodeGrantVoid, func(x *court) { x.put("Policy", "p", `{"text":"other"}`) }},
		"that policy put back":      {ledger.CodeGrantVoid, func(x *court) { x.drop("Policy", "p"); x.put("Policy", "p", `{"text":"permit"}`) }},
		"the role":                  {ledger.CodeStale, func(x *court) { x.put("Role", "db/two", courtRole+`}`) }},
		"the role put back":         {ledger.CodeStale, func(x *court) { x.drop("Role", "db/two"); x.put("Role", "db/two", courtRole+`}`) }},
		"the target":                {ledger.CodeStale, func(x *court) { x.put("Target", "db", `{"type":"memory"}`) }},
		"a signer leaves":           {ledger.CodeApprovalRequired, leaves(`{"name":"human:kim"},{"name":"human:ann"}`)},
		"a signer's time ends":      {ledger.CodeApprovalRequired, leaves(`{"name":"human:kim"},{"name":"human:bo","until":"1970-01-01T00:00:00Z"}`)},
		"the group is emptied":      {ledger.CodeApprovalRequired, leaves(``)},
		"the group is deleted":      {ledger.CodeApprovalRequired, func(x *court) { x.drop("Group", "dba") }},
		"another group of that name": {ledger.CodeApprovalRequired, func(x *court) {
			x.drop("Group", "dba")
			x.put("Group", "dba", `{"members":[{"name":"human:ann"},{"name":"human:eve"}]}`)
		}},
		"a signer leaves and is back":  {ledger.CodeOK, func(x *court) { leaves(``)(x); leaves(`{"name":"human:kim"},{"name":"human:bo"}`)(x) }},
		"a signer is contained":        {ledger.CodeApprovalRequired, func(x *court) { x.ok(ann, &ledger.Freeze{Kind: "Principal", Name: bo, Reason: "odd"}) }},
		"a signer is deleted":          {ledger.CodeApprovalRequired, func(x *court) { x.drop("Principal", bo) }},
		"a signer is made anew":        {ledger.CodeApprovalRequired, func(x *court) { x.drop("Principal", bo); x.put("Principal", bo, `{}`) }},
		"a signer's key is removed":    {ledger.CodeApprovalRequired, func(x *court) { x.ok(bo, &ledger.RemoveKey{Principal: bo, Thumbprint: x.keys[bo].Thumbprint()}) }},
		"the session has ended":        {ledger.CodeNotFound, func(x *court) { x.ok(app, &ledger.EndSession{ID: x.sessionID(app, "jkt-"+app)}) }},
		"the requester is contained":   {ledger.CodeFrozen, func(x *court) { x.ok(ann, &ledger.Freeze{Kind: "Principal", Name: app, Reason: "odd"}) }},
		"the target is contained":      {ledger.CodeFrozen, func(x *court) { x.ok(ann, &ledger.Freeze{Kind: "Target", Name: "db", Reason: "odd"}) }},
		"the last moment":              {ledger.CodeOK, func(x *court) { x.now += 59_999 }},
		"too late":                     {ledger.CodeGrantOver, func(x *court) { x.now += 100_000 }},
		"too late, clock set back":     {ledger.CodeGrantOver, func(x *court) { x.now += 100_000; x.ok("", &ledger.Sweep{}); x.now -= 100_000 }},
		"denied after all":             {ledger.CodeApprovalRequired, func(x *court) { x.end(kim, ledger.GrantDenied) }},
		"cancelled":                    {ledger.CodeApprovalRequired, func(x *court) { x.end(app, ledger.GrantCancelled) }},
		"revoked":                      {ledger.CodeApprovalRequired, func(x *court) { x.end(bo, ledger.GrantRevoked) }},
		"a signer starts to work here": {ledger.CodeApprovalRequired, func(x *court) { x.task(app, bo, "late", aid(ledger.PrefixTask, "work")) }},
	} {
		t.Run(name, func(t *testing.T) {
			x := newCourt(t, false)
			x.ok(app, x.ask(app, "db/two", "g", x.task(app, app, "work", "")))
			x.signs("g", bo, kim)
			cmd := x.collect(app, "g", "s")
			c.change(x)
			cmd.Read = ledger.Read{PolicyEpoch: x.q().PolicyEpoch(), TargetVersion: cmd.Read.TargetVersion} // the leader says it has read all
			x.refused(c.code, app, cmd)
		})
	}
}

// addVouched registers a key with the vouch of one that the principal has.
func (x *court) addVouched(principal string, k *cosigntest.Person) *ledger.AddKey {
	cmd := x.addKey(principal, k)
	cmd.Vouch = x.vouch(principal, k, x.keys[principal])
	return cmd
}

func (x *court) end(who, how string) {
	x.t.Helper()
	x.ok(who, &ledger.EndGrant{GrantID: aid(ledger.PrefixGrant, "g"), State: how})
}

// TestHazard20RenewalCountsAgain: the same, once the lease lives.
func TestHazard20RenewalCountsAgain(t *testing.T) {
	for name, c := range map[string]struct {
		code   string
		change func(x *court)
	}{
		"nothing":             {ledger.CodeOK, func(*court) {}},
		"an unrelated policy": {ledger.CodeOK, func(x *court) { x.put("Policy", "q", `{"text":"other"}`) }},
		"a deciding policy":   {ledger.CodeGrantVoid, func(x *court) { x.put("Policy", "p", `{"text":"other"}`) }},
		"the role":            {ledger.CodeGrantVoid, func(x *court) { x.put("Role", "db/two", courtRole+`}`) }},
		"a signer leaves":     {ledger.CodeApprovalRequired, func(x *court) { x.put("Group", "dba", `{"members":[{"name":"human:bo"}]}`) }},
		"revoked":             {ledger.CodeLeaseEnded, func(x *court) { x.end(bo, ledger.GrantRevoked) }},
	} {
		t.Run(name, func(t *testing.T) {
			x := newCourt(t, false)
			x.asked("g", "db/two", bo, kim)
			x.ok(app, x.collect(app, "g", "s", func(b *ledger.OpenLease) { b.Lease.NotAfterMS = x.now + 120_000 }))
			c.change(x)
			lid := aid(ledger.PrefixLease, "s")
			x.refused(c.code, app, &ledger.RemintLease{ID: lid, Generation: 2, Name: "acc-s2"})
			x.refused(c.code, app, &ledger.ExtendLease{ID: lid, ExpiresMS: x.now + 110_000, Read: ledger.Read{PolicyEpoch: x.q().PolicyEpoch()}})
		})
	}
}

// TestLaw4LeaseFitsItsGrant: a grant of somebody else, for something else, or used up.
func TestLaw4LeaseFitsItsGrant(t *testing.T) {
	fit := func(change func(*ledger.OpenLease)) func(x *court) (string, ledger.Body) {
		return func(x *court) (string, ledger.Body) {
			x.asked("g", "db/two", bo, kim)
			return app, x.collect(app, "g", "s", change)
		}
	}
	mount(t, false, map[string]attack{
		"another's grant": {ledger.CodeNotFound, func(x *court) (string, ledger.Body) {
			x.asked("g", "db/two", bo, kim)
			return other, x.open(other, "db/two", "s", "", func(b *ledger.OpenLease) { b.Lease.Grant.ID = aid(ledger.PrefixGrant, "g") })
		}},
		"another role's grant": {ledger.CodeNotFound, func(x *court) (string, ledger.Body) {
			x.asked("g", "db/two", bo, kim)
			return app, x.open(app, "db/both", "s", x.grant("g").TaskID, func(b *ledger.OpenLease) { b.Lease.Grant.ID = aid(ledger.PrefixGrant, "g") })
		}},
		"another task": {ledger.CodeNotFound, func(x *court) (string, ledger.Body) {
			x.asked("g", "db/two", bo, kim)
			return app, x.open(app, "db/two", "s", x.task(app, app, "t", ""), func(b *ledger.OpenLease) { b.Lease.Grant.ID = aid(ledger.PrefixGrant, "g") })
		}},
		"a task of its own": {ledger.CodeNotFound, func(x *court) (string, ledger.Body) {
			x.asked("g", "db/two", bo, kim)
			return app, x.open(app, "db/two", "s", "", func(b *ledger.OpenLease) { b.Lease.Grant.ID = aid(ledger.PrefixGrant, "g") })
		}},
		"a grant for a change": {ledger.CodeApprovalRequired, func(x *court) (string, ledger.Body) {
			return app, x.open(app, "db/two", "s", "", func(b *ledger.OpenLease) { b.Lease.Grant.ID = aid(ledger.PrefixGrant, "n") })
		}},
		"a wider scope":  {ledger.CodeNarrow, fit(func(b *ledger.OpenLease) { b.Lease.Grant.Scope = scopeBoth })},
		"another scope":  {ledger.CodeNarrow, fit(func(b *ledger.OpenLease) { b.Lease.Grant.Scope = scopeWrite })},
		"a longer life":  {ledger.CodeTTL, fit(func(b *ledger.OpenLease) { b.Lease.NotAfterMS += 61_000 })},
		"a later expiry": {ledger.CodeTTL, fit(func(b *ledger.OpenLease) { b.Lease.ExpiresMS++; b.Lease.NotAfterMS++ })},
		"another session's key": {ledger.CodeNotFound, func(x *court) (string, ledger.Body) {
			x.asked("g", "db/two", bo, kim)
			x.ok(app, &ledger.EndSession{ID: x.sessionID(app, "jkt-"+app)})
			n := ledger.Session{ID: x.sessionID(app, "jkt-"+app), TokenHash: strings.Repeat("b", 64), Principal: app, Binding: "dpop", Thumbprint: "another", ExpiresMS: x.now + 60_000}
			x.ok(app, &ledger.OpenSession{Session: n})
			return app, x.collect(app, "g", "s")
		}},
		"a fresh secret for another key": {ledger.CodeNotFound, func(x *court) (string, ledger.Body) {
			x.asked("g", "db/two", bo, kim)
			x.ok(app, x.collect(app, "g", "s"))
			x.ok(app, &ledger.EndSession{ID: x.sessionID(app, "jkt-"+app)})
			n := ledger.Session{ID: x.sessionID(app, "jkt-"+app), TokenHash: strings.Repeat("b", 64), Principal: app, Binding: "dpop", Thumbprint: "another", ExpiresMS: x.now + 60_000}
			x.ok(app, &ledger.OpenSession{Session: n})
			return app, &ledger.RemintLease{ID: aid(ledger.PrefixLease, "s"), Generation: 2, Name: "acc-s2"}
		}},
		"the second of one": {ledger.CodeGrantOver, func(x *court) (string, ledger.Body) {
			x.asked("g", "db/two", bo, kim)
			a, b := x.collect(app, "g", "s"), x.collect(app, "g", "m") // decided at the same time
			x.ok(app, a)
			return app, b
		}},
		// A lease older than its role's floor, under the id of a grant that others
		// sign later for another role: their names do not prolong it.
		"a lease that borrows a later grant": {ledger.CodeApprovalRequired, func(x *court) (string, ledger.Body) {
			x.ok(app, x.open(app, "db/rw", "s", x.task(app, app, "t", ""), func(b *ledger.OpenLease) { b.Lease.Grant.ID = aid(ledger.PrefixGrant, "g") }))
			x.put("Role", "db/rw", courtRole+`,"approvals":[{"group":"dba","count":2}]}`)
			x.asked("g", "db/two", bo, kim)
			return app, &ledger.RemintLease{ID: aid(ledger.PrefixLease, "s"), Generation: 2, Name: "acc-s2"}
		}},
	})
}

// TestLaw4SeveralLeasesOnOneGrant: as many as were approved, each counted anew, and
// nothing is left when the grant's time is over.
func TestLaw4SeveralLeasesOnOneGrant(t *testing.T) {
	x := newCourt(t, false)
	task := x.task(app, app, "work", "")
	x.ok(app, x.ask(app, "db/two", "g", task, func(b *ledger.RequestGrant) { b.Access.MaxLeases = 3 }))
	x.signs("g", bo, kim)
	x.ok(app, x.collect(app, "g", "a"))
	x.now += 150_000 // long past collect_before: it is open
	x.ok(app, x.collect(app, "g", "b"))
	x.put("Group", "dba", `{"members":[{"name":"human:bo"}]}`)
	x.refused(ledger.CodeApprovalRequired, app, x.collect(app, "g", "c"))
	x.refused(ledger.CodeStale, "", &ledger.EndGrant{GrantID: aid(ledger.PrefixGrant, "g"), State: ledger.GrantExpired})
	x.now += 150_000
	x.refused(ledger.CodeGrantOver, app, x.collect(app, "g", "c"))
	x.ok("", &ledger.EndGrant{GrantID: aid(ledger.PrefixGrant, "g"), State: ledger.GrantExpired})
	if left := x.left(); len(left) > 0 || x.grant("g").State != ledger.GrantEnded {
		t.Errorf("%s; left in the indexes: %q", x.grant("g").State, left)
	}
}

// TestLaw4QuorumIsAMatching: two dba and one of security; bo is in both, and takes
// one place, whichever helps.
func TestLaw4QuorumIsAMatching(t *testing.T) {
	for name, c := range map[string]struct {
		signers []string
		enough  bool
	}{
		"bo counts once":             {[]string{bo, kim}, false},
		"bo and his agent, once":     {[]string{bobot, kim}, false},
		"bo for the dba":             {[]string{bo, kim, eve}, true},
		"bo for security":            {[]string{bo, kim, ann}, true},
		"bo first for dba, then not": {[]string{bo, ann, kim}, true},
		"three, none of security":    {[]string{eve, bo}, false},
	} {
		t.Run(name, func(t *testing.T) {
			x := newCourt(t, false)
			x.asked("g", "db/both", c.signers...)
			if got := x.grant("g").State == ledger.GrantApproved; got != c.enough {
				t.Errorf("approved: %v", got)
			}
		})
	}
}

// TestLaw4StepUpIsThePersonsOwn: the requester's person signs too; it counts for
// no approval, and another's does not count for it.
func TestLaw4StepUpIsThePersonsOwn(t *testing.T) {
	ask := func(x *court, who, role string) {
		x.ok(who, x.ask(who, role, "g", "", func(b *ledger.RequestGrant) { b.Access.StepUp = "passkey" }))
	}
	x := newCourt(t, false)
	ask(x, helper, "db/priv")
	x.signs("g", bo)
	x.refused(ledger.CodeApprovalRequired, helper, x.collect(helper, "g", "s"))
	x.signs("g", ann)
	x.refused(ledger.CodeTwice, ann, x.sign(ann, "g"))
	cmd := x.collect(helper, "g", "s")
	x.put("Principal", helper, `{"owner":"human:eve"}`) // ann's word was ann's
	cmd.Read.PolicyEpoch = x.q().PolicyEpoch()
	x.refused(ledger.CodeApprovalRequired, helper, cmd)

	x = newCourt(t, false)
	ask(x, ann, "db/priv")
	x.signs("g", ann)
	x.refused(ledger.CodeApprovalRequired, ann, x.collect(ann, "g", "s"))
	x.signs("g", kim)
	x.ok(ann, x.collect(ann, "g", "s"))

	x = newCourt(t, false)
	ask(x, bo, "db/priv") // bo's key is an SSH key
	x.refused(ledger.CodeStepUp, bo, x.sign(bo, "g"))
	x.refused(ledger.CodeSelfApproval, bobot, x.sign(bobot, "g"))
}

// TestHazard20TreeTooLargeToLookThrough: beyond so many tasks nobody can tell who
// has a part, and then nothing is approved.
func TestHazard20TreeTooLargeToLookThrough(t *testing.T) {
	x := newCourt(t, false)
	top := x.task(app, app, "top", "")
	low := x.task(app, other, "zzz", top)
	work := x.task(other, other, "zzw", low)
	x.ok(other, x.ask(other, "db/two", "g", work))
	x.signs("g", kim)
	for i := range ledger.MaxTaskTree - 2 {
		x.task(app, app, fmt.Sprintf("k%04d", i), top)
	}
	x.refused(ledger.CodeTaskTree, bo, x.sign(bo, "g"))
	x.refused(ledger.CodeTaskTree, other, x.ask(other, "db/two", "h", work))
	x.refused(ledger.CodeApprovalRequired, other, x.collect(other, "g", "s"))
}

// TestHazard17SignaturesAreBounded: a large group does not write a record that
// grows for ever.
func TestHazard17SignaturesAreBounded(t *testing.T) {
	x := newCourt(t, false)
	var members []string
	for i := range ledger.MaxSignatures + 1 {
		p := fmt.Sprintf("human:m%d", i)
		x.put("Principal", p, `{}`)
		x.keys[p] = cosigntest.Seeded(cosign.KindSSH, p)
		x.ok(p, x.addKey(p, x.keys[p]))
		members = append(members, `{"name":"`+p+`"}`)
	}
	x.put("Group", "dba", `{"members":[`+strings.Join(members, ",")+`]}`)
	x.asked("g", "db/two")
	for i := range ledger.MaxSignatures {
		x.signs("g", fmt.Sprintf("human:m%d", i))
	}
	last := fmt.Sprintf("human:m%d", ledger.MaxSignatures)
	x.refused(ledger.CodeCapCount, last, x.sign(last, "g"))
}

// TestLaw4DocumentIsTheBytesUnderTheHash: also where JSON for HTML would escape.
func TestLaw4DocumentIsTheBytesUnderTheHash(t *testing.T) {
	x := newCourt(t, false)
	x.ok(app, x.ask(app, "db/two", "g", "", func(b *ledger.RequestGrant) { b.Access.Purpose = "a<b && c>d \u2028 \u00e9" }))
	x.signs("g", bo, kim)
	g := x.grant("g")
	if h := cosign.Sum(g.Domain, g.Document); hex.EncodeToString(h[:]) != g.Hash || !strings.Contains(string(g.Document), "a<b && c>d") {
		t.Errorf("%s", g.Document)
	}
}

// TestGrantsLeaveNothingInTheIndexes: however a grant ends.
func TestGrantsLeaveNothingInTheIndexes(t *testing.T) {
	for name, end := range map[string]func(x *court){
		"denied": func(x *court) {
			x.end(bo, ledger.GrantDenied)
			x.now += ledger.CoolingMS
			x.ok("", &ledger.Sweep{Max: 99})
		},
		"cancelled":     func(x *court) { x.end(app, ledger.GrantCancelled) },
		"revoked":       func(x *court) { x.signs("g", bo, kim); x.end(bo, ledger.GrantRevoked) },
		"expired":       func(x *court) { x.now += 100_000; x.end("", ledger.GrantExpired) },
		"void":          func(x *court) { x.put("Policy", "p", `{"text":"x"}`); x.end("", ledger.GrantVoid) },
		"its task ends": func(x *court) { x.ok(app, &ledger.EndTask{ID: x.grant("g").TaskID, Reason: ledger.EndDone}) },
		"used":          func(x *court) { x.signs("g", bo, kim); x.ok(app, x.collect(app, "g", "s")) },
	} {
		t.Run(name, func(t *testing.T) {
			x := newCourt(t, false)
			x.asked("g", "db/two")
			end(x)
			if left := x.left(); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
			task, _ := x.q().Task(x.grant("g").TaskID)
			if over := task.State == ledger.TaskEnded; over != (name != "used") {
				t.Errorf("the implicit task is %s", task.State)
			}
			for _, state := range []string{ledger.GrantDenied, ledger.GrantCancelled, ledger.GrantExpired, ledger.GrantVoid, ledger.GrantEnded, "x"} {
				if res := x.do(app, &ledger.EndGrant{GrantID: aid(ledger.PrefixGrant, "g"), State: state}); res.OK() {
					t.Errorf("it ends again, as %s", state)
				}
			}
		})
	}
}

// TestDenialsCoolDownFromTheLast: forgetting the first denial must not forget the
// second.
func TestDenialsCoolDownFromTheLast(t *testing.T) {
	x := newCourt(t, false)
	x.asked("g", "db/two")
	x.asked("h", "db/two")
	x.end(bo, ledger.GrantDenied)
	x.now += 60_000
	x.ok(bo, &ledger.EndGrant{GrantID: aid(ledger.PrefixGrant, "h"), State: ledger.GrantDenied})
	x.now += ledger.CoolingMS - 60_000
	x.ok("", &ledger.Sweep{Max: 99})
	x.refused(ledger.CodeCooling, app, x.ask(app, "db/two", "j", ""))
	x.now += 60_000
	x.ok("", &ledger.Sweep{Max: 99})
	x.ok(app, x.ask(app, "db/two", "j", ""))
	if left := x.left(); slices.Contains(left, "cooling/"+app+"\x00db/two") {
		t.Errorf("left: %q", left)
	}
}

// TestFailedMintGivesTheApprovalBack: people approved a credential, and none came
// of it. What came of it and was lost later is gone with its approval.
func TestFailedMintGivesTheApprovalBack(t *testing.T) {
	lid := aid(ledger.PrefixLease, "a")
	fails := func(x *court) {
		x.ok("", &ledger.EndLeases{IDs: []string{lid}, Reason: ledger.EndMintFailed})
	}
	for name, c := range map[string]struct {
		code string
		end  func(x *court)
	}{
		"at once":             {ledger.CodeOK, fails},
		"said twice":          {ledger.CodeOK, func(x *court) { fails(x); fails(x) }},
		"too late to collect": {ledger.CodeGrantOver, func(x *court) { x.now += 100_000; fails(x) }},
		"a signer left meanwhile": {ledger.CodeApprovalRequired, func(x *court) {
			fails(x)
			x.put("Group", "dba", `{"members":[{"name":"human:bo"}]}`)
		}},
		"the task was over": {ledger.CodeGrantOver, func(x *court) {
			x.ok(app, &ledger.EndTask{ID: x.grant("g").TaskID, Reason: ledger.EndDone})
			fails(x)
		}},
		"the grant was revoked": {ledger.CodeApprovalRequired, func(x *court) { x.end(bo, ledger.GrantRevoked); fails(x) }},
		"it lived and was revoked": {ledger.CodeGrantOver, func(x *court) {
			x.ok(app, &ledger.EndLeases{IDs: []string{lid}, Reason: ledger.EndRevoked})
			fails(x)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			x := newCourt(t, false)
			x.ok(app, x.ask(app, "db/two", "g", x.task(app, app, "work", "")))
			x.signs("g", bo, kim)
			x.ok(app, x.collect(app, "g", "a"))
			c.end(x)
			cmd := x.collect(app, "g", "b")
			if c.code != ledger.CodeOK {
				x.refused(c.code, app, cmd)
				return
			}
			x.ok(app, cmd)
			x.refused(ledger.CodeGrantOver, app, x.collect(app, "g", "c"))
			if left := x.left(); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
}
