package ledger_test

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/broker/cosign/cosigntest"
	"github.com/mayfly-broker/mayfly/broker/ledger"
)

const dbaOfThree = `{"members":[{"name":"human:ann"},{"name":"human:bo"},{"name":"human:kim"}]}`

// TestHazard1LeaderAddsAKey: each way to give somebody a key to approve with that
// is the leader's own.
func TestHazard1LeaderAddsAKey(t *testing.T) {
	evil := cosigntest.Seeded(cosign.KindJWS, "leader")
	plant := func(x *court, principal, use string) *ledger.OpenSession {
		key := x.addKey(principal, evil).Key
		key.Use = use
		hash := strings.Repeat("c", 64)
		x.ok(ann, &ledger.IssueEnrolment{TokenHash: hash, Principal: principal, ExpiresMS: x.now + 1000})
		return &ledger.OpenSession{Session: ledger.Session{ID: id(ledger.PrefixSession, "e"), TokenHash: hash, Principal: principal, ExpiresMS: x.now + 1000}, EnrolmentHash: hash, NewKey: &key}
	}
	for _, dual := range []bool{false, true} {
		mount(t, dual, map[string]attack{
			fmt.Sprintf("by an enrolment, dual=%v", dual): {ledger.CodeInvalid, func(x *court) (string, ledger.Body) { return bo, plant(x, bo, ledger.UseApprove) }},
			fmt.Sprintf("by an enrolment to log in, dual=%v", dual): {ledger.CodeInvalid, func(x *court) (string, ledger.Body) {
				return bo, plant(x, bo, ledger.UseSession)
			}},
			fmt.Sprintf("a second key, vouched by nobody, dual=%v", dual): {ledger.CodeVouch, func(x *court) (string, ledger.Body) { return bo, x.addKey(bo, evil) }},
			fmt.Sprintf("vouched by itself, dual=%v", dual): {ledger.CodeVouch, func(x *court) (string, ledger.Body) {
				b := x.addKey(bo, evil)
				b.Vouch = x.vouch(bo, evil, evil)
				return bo, b
			}},
			fmt.Sprintf("vouched by another person, dual=%v", dual): {ledger.CodeVouch, func(x *court) (string, ledger.Body) {
				b := x.addKey(bo, evil)
				b.Vouch = x.vouch(bo, evil, x.keys[kim])
				return bo, b
			}},
			fmt.Sprintf("vouched for another person, dual=%v", dual): {ledger.CodeVouch, func(x *court) (string, ledger.Body) {
				b := x.addKey(bo, evil)
				b.Vouch = x.vouch(kim, evil, x.keys[bo])
				return bo, b
			}},
			fmt.Sprintf("vouched by a removed key, dual=%v", dual): {ledger.CodeVouch, func(x *court) (string, ledger.Body) {
				second := cosigntest.Seeded(cosign.KindJWS, "bo 2")
				x.ok(bo, x.addVouched(bo, second))
				b := x.addVouched(bo, evil)
				x.ok(bo, &ledger.RemoveKey{Principal: bo, Thumbprint: x.keys[bo].Thumbprint()})
				return bo, b
			}},
			fmt.Sprintf("a removed key, with its old vouch, dual=%v", dual): {ledger.CodeVouch, func(x *court) (string, ledger.Body) {
				stolen := cosigntest.Seeded(cosign.KindJWS, "bo 2")
				b := x.addVouched(bo, stolen)
				x.ok(bo, b)
				x.ok(bo, &ledger.RemoveKey{Principal: bo, Thumbprint: stolen.Thumbprint()})
				return bo, b
			}},
			fmt.Sprintf("without its own signature, dual=%v", dual): {ledger.CodeSignature, func(x *court) (string, ledger.Body) {
				b := x.addVouched(bo, evil)
				b.Proof = nil
				return bo, b
			}},
			fmt.Sprintf("under another name, dual=%v", dual): {ledger.CodeInvalid, func(x *court) (string, ledger.Body) {
				b := x.addVouched(bo, evil)
				b.Key.Thumbprint = x.keys[bo].Thumbprint()
				return bo, b
			}},
			fmt.Sprintf("another's key, dual=%v", dual): {ledger.CodeExists, func(x *court) (string, ledger.Body) { return kim, x.addVouched(kim, x.keys[bo]) }},
			fmt.Sprintf("a key to log in with, dual=%v", dual): {ledger.CodeExists, func(x *court) (string, ledger.Body) {
				x.ok(bo, &ledger.AddKey{Key: ledger.Key{Thumbprint: evil.Thumbprint(), Principal: bo, Use: ledger.UseSession, JWK: evil.Key().JWK}})
				return bo, x.addVouched(bo, evil)
			}},
			fmt.Sprintf("a key to approve with, to log in with, dual=%v", dual): {ledger.CodeExists, func(x *court) (string, ledger.Body) {
				return bo, &ledger.AddKey{Key: ledger.Key{Thumbprint: x.keys[bo].Thumbprint(), Principal: bo, Use: ledger.UseSession, JWK: x.keys[bo].Key().JWK}}
			}},
		})
	}
	mount(t, true, map[string]attack{
		"a first key without approval": {ledger.CodeVouch, func(x *court) (string, ledger.Body) { return helper, x.addKey(helper, evil) }},
		"a founder's first key once more": {ledger.CodeVouch, func(x *court) (string, ledger.Body) {
			b := x.addKey(bo, x.keys[bo])
			b.Vouch = x.vouch(bo, x.keys[bo], founderKey(bo))
			x.ok(bo, &ledger.RemoveKey{Principal: bo, Thumbprint: x.keys[bo].Thumbprint()})
			return bo, b
		}},
		"a founder's token a second time": {ledger.CodeVouch, func(x *court) (string, ledger.Body) {
			x.ok(bo, &ledger.RemoveKey{Principal: bo, Thumbprint: x.keys[bo].Thumbprint()})
			b := x.addKey(bo, evil)
			b.Vouch = x.vouch(bo, evil, founderKey(bo))
			return bo, b
		}},
		"a founder's token beside a key": {ledger.CodeVouch, func(x *court) (string, ledger.Body) {
			b := x.addKey(bo, evil)
			b.Vouch = x.vouch(bo, evil, founderKey(bo))
			return bo, b
		}},
		"another founder's token": {ledger.CodeVouch, func(x *court) (string, ledger.Body) {
			b := x.addKey(helper, evil)
			b.Vouch = x.vouch(helper, evil, founderKey(bo))
			return helper, b
		}},
	})
}

// TestHazard1NothingChangesWithoutTwo: under dual control, what decides who may
// get what does not change by a plain command.
func TestHazard1NothingChangesWithoutTwo(t *testing.T) {
	for name, o := range map[string]ledger.ObjectChange{
		"a lowered floor":       {Kind: "Role", Name: "db/two", Spec: rawJSON(courtRole + `}`)},
		"a new role":            {Kind: "Role", Name: "db/new", Spec: rawJSON(courtRole + `}`)},
		"a role deleted":        {Kind: "Role", Name: "db/two", Delete: true},
		"a roster":              {Kind: "Group", Name: "dba", Spec: rawJSON(`{"members":[{"name":"human:eve"}]}`)},
		"the administrators":    {Kind: "Group", Name: "administrators", Delete: true},
		"a new group":           {Kind: "Group", Name: "friends", Spec: rawJSON(`{"members":[]}`)},
		"a policy":              {Kind: "Policy", Name: "p", Spec: rawJSON(`{"text":"permit all"}`)},
		"a new policy":          {Kind: "Policy", Name: "z", Spec: rawJSON(`{"text":"permit all"}`)},
		"a policy deleted":      {Kind: "Policy", Name: "p", Delete: true},
		"a target":              {Kind: "Target", Name: "db", Spec: rawJSON(`{"type":"memory","address":"evil"}`)},
		"a way to log in":       {Kind: "AuthMethod", Name: "m", Spec: rawJSON(`{}`)},
		"an agent's owner":      {Kind: "Principal", Name: helper, Spec: rawJSON(`{"owner":"human:eve"}`)},
		"a principal deleted":   {Kind: "Principal", Name: bo, Delete: true},
		"a plugin, once it can": {Kind: "Plugin", Name: "x", Spec: rawJSON(`{}`)},
		"a zone":                {Kind: "Zone", Name: "eu", Spec: rawJSON(`{"networks":["0.0.0.0/0"]}`)},
		"a sink":                {Kind: "Sink", Name: "s", Spec: rawJSON(`{"type":"file","path":"/dev/null"}`)},
		"a new person":          {Kind: "Principal", Name: "human:new", Spec: rawJSON(`{}`)},
	} {
		t.Run(name, func(t *testing.T) {
			x := newCourt(t, true)
			before := x.mem.Clone()
			o.AnyVersion = true
			x.refused(ledger.CodeApprovalRequired, ann, &ledger.ChangeObjects{Changes: []ledger.ObjectChange{o}})
			x.refused(ledger.CodeApprovalRequired, "", &ledger.ChangeObjects{Changes: []ledger.ObjectChange{{Kind: "Zone", Name: "us", Spec: rawJSON(`{}`)}, o}})
			for _, k := range []string{"Group/dba", "Policy/p", "Role/db/two", "Principal/" + helper} {
				if string(before.Get("object", []byte(k))) != string(x.mem.Get("object", []byte(k))) {
					t.Errorf("%s has changed", k)
				}
			}
			if x.q().UnderCustody(o) == false {
				t.Error("the engine would not ask for approvals")
			}
		})
	}
	x := newCourt(t, true)
	x.put("Principal", "workload:new", `{}`) // what has no power yet needs nobody
}

// TestHazard1ChangeUnderTwoSignatures: each kind, with them, is made as its document says.
func TestHazard1ChangeUnderTwoSignatures(t *testing.T) {
	for name, o := range map[string]func(x *court) cosign.ObjectChange{
		"Role":      func(x *court) cosign.ObjectChange { return x.object("Role", "db/two", courtRole+`}`) },
		"Group":     func(x *court) cosign.ObjectChange { return x.object("Group", "dba", dbaOfThree) },
		"Policy":    func(x *court) cosign.ObjectChange { return x.object("Policy", "p", `{"text":"a && b < c"}`) },
		"Target":    func(x *court) cosign.ObjectChange { return x.object("Target", "db", `{"type":"memory","n":2}`) },
		"Principal": func(x *court) cosign.ObjectChange { return x.object("Principal", helper, `{"owner":"human:eve"}`) },
		"deletion":  func(x *court) cosign.ObjectChange { return x.object("Policy", "q", "") },
		"AuthMethod": func(x *court) cosign.ObjectChange {
			return x.object("AuthMethod", "m", `{"type":"oidc"}`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			x := newCourt(t, true)
			want := o(x)
			x.ok(ann, x.changeOf(ann, "g", want))
			x.refused(ledger.CodeSelfApproval, ann, x.sign(ann, "g"))
			x.signs("g", bo)
			x.refused(ledger.CodeGrantOver, bo, &ledger.MakeChange{GrantID: aid(ledger.PrefixGrant, "g")})
			x.refused(ledger.CodeNotEligible, eve, x.sign(eve, "g"))
			x.signs("g", kim)
			x.ok(kim, &ledger.MakeChange{GrantID: aid(ledger.PrefixGrant, "g")})
			x.refused(ledger.CodeGrantOver, kim, &ledger.MakeChange{GrantID: aid(ledger.PrefixGrant, "g")})
			got, exists := x.q().Object(want.Kind, want.Name)
			if exists == want.Delete || exists && !sameText(got.Spec, want.Spec) {
				t.Errorf("%s, wanted %s", got.Spec, want.Spec)
			}
			if left := x.left(); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
}

// TestHazard1ChangeThatMustNotBe: asked for in a way that would fool the people
// who sign, or lock everybody out.
func TestHazard1ChangeThatMustNotBe(t *testing.T) {
	ask := func(objects func(x *court) []cosign.ObjectChange, change ...func(x *court, d *cosign.ChangeDocument)) func(x *court) (string, ledger.Body) {
		return func(x *court) (string, ledger.Body) {
			b := x.changeOf(ann, "g", objects(x)...)
			for _, f := range change {
				f(x, b.Change)
			}
			return ann, b
		}
	}
	one := func(kind, name, spec string) func(x *court) []cosign.ObjectChange {
		return func(x *court) []cosign.ObjectChange { return []cosign.ObjectChange{x.object(kind, name, spec)} }
	}
	group := one("Group", "dba", dbaOfThree)
	newKey := cosign.NewKey{Principal: helper, Key: cosigntest.Seeded(cosign.KindJWS, "h").Key()}
	mount(t, true, map[string]attack{
		"fewer approvals": {ledger.CodeApprovalRequired, ask(group, func(_ *court, d *cosign.ChangeDocument) {
			d.Needs = []cosign.Need{{Group: "administrators", Count: 1, By: "genesis"}}
		})},
		"another quorum": {ledger.CodeApprovalRequired, ask(group, func(_ *court, d *cosign.ChangeDocument) {
			d.Needs = []cosign.Need{{Group: "dba", Count: 2, By: "genesis"}}
		})},
		"nobody":  {ledger.CodeApprovalRequired, ask(group, func(_ *court, d *cosign.ChangeDocument) { d.Needs = nil })},
		"nothing": {ledger.CodeInvalid, ask(func(*court) []cosign.ObjectChange { return nil })},
		"an object twice": {ledger.CodeInvalid, ask(func(x *court) []cosign.ObjectChange {
			return append(group(x), one("Group", "dba", `{"members":[]}`)(x)...)
		})},
		"two faces":         {ledger.CodeInvalid, ask(one("Role", "db/two", courtRole+`,"approvals":[{"group":"dba","count":2}],"Approvals":[]}`))},
		"a long s":          {ledger.CodeInvalid, ask(one("Role", "db/two", courtRole+`,"approvals":[{"group":"dba","count":2}],"approval`+"\u017f"+`":[]}`))},
		"the kelvin":        {ledger.CodeInvalid, ask(one("Target", "db", `{"type":"memory","k":1,"`+"\u212a"+`":2}`))},
		"two faces within":  {ledger.CodeInvalid, ask(one("Group", "dba", `{"members":[{"name":"human:bo","Name":"human:eve"}]}`))},
		"an older version":  {ledger.CodeConflict, ask(group, func(_ *court, d *cosign.ChangeDocument) { d.Objects[0].Version += 7 })},
		"a wrong spec":      {ledger.CodeInvalid, ask(one("Role", "db/two", `{"scope":[]}`))},
		"no administrators": {ledger.CodeLastAdmin, ask(one("Group", "administrators", `{"members":[]}`))},
		"one administrator": {ledger.CodeLastAdmin, ask(one("Group", "administrators", `{"members":[{"name":"human:bo"},{"name":"agent:bobot"}]}`))},
		"the group deleted": {ledger.CodeLastAdmin, ask(one("Group", "administrators", ""))},
		"administrators without keys": {ledger.CodeLastAdmin, ask(func(x *court) []cosign.ObjectChange {
			return []cosign.ObjectChange{x.object("Principal", "human:n1", `{}`), x.object("Principal", "human:n2", `{}`), x.object("Group", "administrators", `{"members":[{"name":"human:n1"},{"name":"human:n2"}]}`)}
		})},
		"administrators for a day": {ledger.CodeLastAdmin, ask(one("Group", "administrators", `{"members":[{"name":"human:bo"},{"name":"human:kim","until":"2999-01-01T00:00:00Z"}]}`))},
		"the people deleted": {ledger.CodeLastAdmin, ask(func(x *court) []cosign.ObjectChange {
			return []cosign.ObjectChange{x.object("Principal", bo, ""), x.object("Principal", kim, "")}
		})},
		"a key twice, for two people": {ledger.CodeInvalid, ask(group, func(_ *court, d *cosign.ChangeDocument) {
			d.Keys = []cosign.NewKey{newKey, {Principal: eve, Key: newKey.Key}}
		})},
		"a key of another": {ledger.CodeExists, ask(group, func(x *court, d *cosign.ChangeDocument) {
			d.Keys = []cosign.NewKey{{Principal: helper, Key: x.keys[bo].Key()}}
		})},
		"a key for nobody": {ledger.CodeNotFound, ask(group, func(_ *court, d *cosign.ChangeDocument) {
			d.Keys = []cosign.NewKey{{Principal: "human:z", Key: newKey.Key}}
		})},
		"a key for whom it deletes": {ledger.CodeInvalid, ask(one("Principal", helper, ""), func(_ *court, d *cosign.ChangeDocument) { d.Keys = []cosign.NewKey{newKey} })},
		"seventeen keys": {ledger.CodeCapCount, ask(group, func(_ *court, d *cosign.ChangeDocument) {
			for i := range ledger.MaxKeys {
				d.Keys = append(d.Keys, cosign.NewKey{Principal: eve, Key: cosigntest.Seeded(cosign.KindJWS, fmt.Sprint(i)).Key()})
			}
		})},
		"a secret that is not told": {ledger.CodeInvalid, func(x *court) (string, ledger.Body) {
			x.secrets = []ledger.Secret{{Name: "Target/db/password", Salt: make([]byte, 16), Value: []byte("x")}}
			return ann, x.changeOf(ann, "g", group(x)...)
		}},
		"another secret than is told": {ledger.CodeInvalid, func(x *court) (string, ledger.Body) {
			x.secrets = []ledger.Secret{{Name: "Target/db/password", Salt: make([]byte, 16), Value: []byte("x")}}
			o := x.object("Target", "db", `{"type":"memory"}`)
			o.Secrets = []cosign.SecretChange{{Name: "Target/db/password", SHA256: strings.Repeat("0", 64)}}
			return ann, x.changeOf(ann, "g", o)
		}},
		"a task beside it": {ledger.CodeInvalid, func(x *court) (string, ledger.Body) {
			b := x.changeOf(ann, "g", group(x)...)
			b.ImplicitTask = &ledger.Task{ID: aid(ledger.PrefixTask, "t"), Principal: ann, Implicit: true, DeadlineMS: x.now + 1000}
			return ann, b
		}},
		"a lease on it": {ledger.CodeInvalid, func(x *court) (string, ledger.Body) {
			x.ok(ann, x.changeOf(ann, "g", group(x)...))
			x.signs("g", bo, kim)
			return ann, x.open(ann, "db/two", "s", "", func(b *ledger.OpenLease) { b.Lease.Grant.ID = aid(ledger.PrefixGrant, "g") })
		}},
		"two who are one": {ledger.CodeTwice, func(x *court) (string, ledger.Body) {
			x.made("a", x.object("Group", "administrators", `{"members":[{"name":"human:ann"},{"name":"human:bo"},{"name":"human:kim"},{"name":"agent:bobot"}]}`))
			x.ok(ann, x.changeOf(ann, "g", group(x)...))
			x.signs("g", bo)
			return bobot, x.sign(bobot, "g")
		}},
	})
	x := newCourt(t, false)
	x.refused(ledger.CodeInvalid, ann, x.changeOf(ann, "g", group(x)...))
}

// TestHazard20ChangeIsCheckedAgain: between the last signature and the making.
func TestHazard20ChangeIsCheckedAgain(t *testing.T) {
	for name, c := range map[string]struct {
		code   string
		change func(x *court)
	}{
		"nothing":             {ledger.CodeOK, func(*court) {}},
		"another change":      {ledger.CodeOK, func(x *court) { x.made("b", x.object("Policy", "q", `{"text":"z"}`)) }},
		"the same object":     {ledger.CodeConflict, func(x *court) { x.made("b", x.object("Group", "dba", dbaOfThree)) }},
		"the deciding policy": {ledger.CodeGrantVoid, func(x *court) { x.made("b", x.object("Policy", "p", `{"text":"z"}`)) }},
		"a signer leaves": {ledger.CodeApprovalRequired, func(x *court) {
			x.made("b", x.object("Group", "administrators", `{"members":[{"name":"human:ann"},{"name":"human:kim"}]}`))
		}},
		"a signer's key goes": {ledger.CodeApprovalRequired, func(x *court) { x.ok(bo, &ledger.RemoveKey{Principal: bo, Thumbprint: x.keys[bo].Thumbprint()}) }},
		"denied":              {ledger.CodeGrantOver, func(x *court) { x.end(kim, ledger.GrantDenied) }},
		"too late":            {ledger.CodeGrantOver, func(x *court) { x.now += 100_000 }},
	} {
		t.Run(name, func(t *testing.T) {
			x := newCourt(t, true)
			x.ok(ann, x.changeOf(ann, "g", x.object("Group", "dba", `{"members":[{"name":"human:bo"}]}`)))
			x.signs("g", bo, kim)
			c.change(x)
			x.refused(c.code, kim, &ledger.MakeChange{GrantID: aid(ledger.PrefixGrant, "g")})
		})
	}
}

// TestLaw6SecretsOfAChange: they wait sealed beside it, in no document and no
// record that is shown; they arrive whole, and are gone from where they waited.
func TestLaw6SecretsOfAChange(t *testing.T) {
	const word = "correct horse battery"
	waiting := func(x *court) {
		x.secrets = []ledger.Secret{{Name: "Target/db/password", Salt: []byte("0123456789abcdef"), Value: []byte(word)}}
		o := x.object("Target", "db", `{"type":"memory","n":1}`)
		o.Secrets = []cosign.SecretChange{{Name: "Target/db/password", SHA256: hex.EncodeToString(x.secrets[0].Commitment().SHA256)}}
		x.ok(ann, x.changeOf(ann, "g", o))
		x.secrets = nil
	}
	places := func(x *court) (out []string) {
		x.mem.Each(func(bucket, key string, value []byte) {
			if strings.Contains(string(value), word) {
				out = append(out, bucket)
			}
		})
		return out
	}
	x := newCourt(t, true)
	waiting(x)
	if got := places(x); len(got) != 1 || got[0] != "secret" {
		t.Fatalf("it waits in %q", got)
	}
	if x.q().Secret("Target", "db", "password") != nil {
		t.Error("the target has it before anybody approved")
	}
	x.signs("g", bo, kim)
	x.ok(kim, &ledger.MakeChange{GrantID: aid(ledger.PrefixGrant, "g")})
	if got := string(x.q().Secret("Target", "db", "password")); got != word || len(places(x)) != 1 || len(x.left()) != 0 {
		t.Errorf("%q; in %q; left %q", got, places(x), x.left())
	}
	for _, how := range []string{ledger.GrantDenied, ledger.GrantCancelled, ledger.GrantExpired} {
		x := newCourt(t, true)
		waiting(x)
		if how == ledger.GrantExpired {
			x.now += 100_000
		}
		x.end(ann, how)
		if got := places(x); len(got) > 0 {
			t.Errorf("%s: it is left in %q", how, got)
		}
	}
}

// TestHazard1KeyByApproval: the custodians give a person their first key.
func TestHazard1KeyByApproval(t *testing.T) {
	x := newCourt(t, true)
	k := cosigntest.Seeded(cosign.KindSSH, "new")
	person := x.changeOf(ann, "p")
	person.Change.Objects = []cosign.ObjectChange{{Kind: "Principal", Name: "human:new", Spec: rawJSON(`{}`)}}
	x.ok(ann, person)
	x.signs("p", bo, kim)
	x.ok(kim, &ledger.MakeChange{GrantID: aid(ledger.PrefixGrant, "p")})
	b := x.changeOf(ann, "g")
	b.Change.Keys = []cosign.NewKey{{Principal: "human:new", Key: k.Key()}}
	x.ok(ann, b)
	x.signs("g", bo, kim)
	x.ok(kim, &ledger.MakeChange{GrantID: aid(ledger.PrefixGrant, "g")})
	if got, ok := x.q().Key(k.Thumbprint()); !ok || got.Principal != "human:new" || got.Use != ledger.UseApprove {
		t.Errorf("%+v", got)
	}
	if got := x.q().Voucher("human:new"); got != ledger.VouchKey {
		t.Errorf("vouched by %q", got)
	}
}

// TestHazard1GenesisThatLocksOut: a quorum that nobody could ever fill is refused
// before the cluster exists.
func TestHazard1GenesisThatLocksOut(t *testing.T) {
	for name, change := range map[string]func(*ledger.Genesis){
		"a group that is not": func(g *ledger.Genesis) { g.Approvals = []ledger.Approval{{Group: "ghosts", Count: 1}} },
		"more than there are": func(g *ledger.Genesis) { g.Approvals = []ledger.Approval{{Group: "administrators", Count: 4}} },
		"automation":          func(g *ledger.Genesis) { g.Approvals = []ledger.Approval{{Group: "dba", Count: 4}} },
		"zero":                func(g *ledger.Genesis) { g.Approvals = []ledger.Approval{{Group: "dba"}} },
		"a founder of no key": func(g *ledger.Genesis) { g.Founders = []ledger.Founder{{Principal: ann, JWK: rawJSON(`{}`)}} },
		"a founder who is not": func(g *ledger.Genesis) {
			g.Founders = []ledger.Founder{{Principal: "human:z", JWK: founderKey("z").Key().JWK}}
		},
		"a founder of two keys": func(g *ledger.Genesis) {
			g.Founders = []ledger.Founder{{Principal: ann, JWK: founderKey("y").Key().JWK}, {Principal: ann, JWK: founderKey("z").Key().JWK}}
		},
	} {
		g := &ledger.Genesis{Cluster: "c", Incarnation: 1, Objects: courtObjects(), Approvals: []ledger.Approval{{Group: "administrators", Count: 2}}}
		change(g)
		b := newEmptyBook(t)
		if res := b.do("", g); res.OK() {
			t.Errorf("%s: the cluster begins", name)
		}
	}
}

// sameText compares JSON, however it is escaped.
func sameText(a, b []byte) bool {
	x, err := cosign.CanonicalJSON(a)
	y, err2 := cosign.CanonicalJSON(b)
	return err == nil && err2 == nil && string(x) == string(y)
}
