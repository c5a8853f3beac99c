package ledger_test

import (
	"encoding/base64"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/broker/cosign/cosigntest"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/ledger/ledgertest"
)

const (
	ann    = admin
	bo     = "human:bo"
	kim    = "human:kim"
	eve    = "human:eve"
	helper = "agent:helper" // ann's
	bobot  = "agent:bobot"  // bo's, and a dba too
	orphan = "workload:orphan"
)

// court is a book with people who co-sign. It stands on three replicas: one that
// forgets between commands, one that remembers, one that comes of a snapshot before
// each command. What they answer must be the same.
type court struct {
	*book
	warm    ledger.Machine
	second  *ledgertest.Mem
	third   *ledgertest.Mem
	keys    map[string]*cosigntest.Person
	dual    bool
	secrets []ledger.Secret
}

const courtRole = `{"scope":[{"type":"memory","actions":["read","write"]}],"ttl":{"default":"1m","max":"10m"}`

func courtObjects() []ledger.ObjectChange {
	obj := func(kind, name, spec string) ledger.ObjectChange {
		return ledger.ObjectChange{Kind: kind, Name: name, Spec: rawJSON(spec)}
	}
	return append(firstObjects(),
		obj("Principal", bo, `{}`), obj("Principal", kim, `{}`), obj("Principal", eve, `{}`), obj("Principal", orphan, `{}`),
		obj("Principal", helper, `{"owner":"human:ann","agent":{"model":"m1","version":"3"}}`),
		obj("Principal", bobot, `{"owner":"human:bo"}`),
		obj("Group", "dba", `{"members":[{"name":"human:ann"},{"name":"human:bo"},{"name":"human:kim"},{"name":"agent:bobot"},{"name":"workload:orphan"},{"name":"human:gone"}]}`),
		obj("Group", "security", `{"members":[{"name":"human:eve"},{"name":"human:bo"}]}`),
		obj("Group", "administrators", `{"members":[{"name":"human:ann"},{"name":"human:bo"},{"name":"human:kim"}]}`),
		obj("Role", "db/two", courtRole+`,"approvals":[{"group":"dba","count":2}]}`),
		obj("Role", "db/both", courtRole+`,"approvals":[{"group":"dba","count":2},{"group":"security","count":1}]}`),
		obj("Role", "db/glass", courtRole+`,"approvals":[{"group":"dba","count":2}],"emergency":{"max_ttl":"5m","review":[{"group":"security","count":2}]}}`),
		obj("Policy", "p", `{"text":"permit"}`), obj("Policy", "q", `{"text":"unrelated"}`),
	)
}

var courtKinds = map[string]string{ann: cosign.KindPasskey, bo: cosign.KindSSH, kim: cosign.KindJWS, eve: cosigntest.PasskeyEd25519, bobot: cosigntest.JWSEd25519, orphan: cosigntest.SSHECDSA}

// founderKey is what comes of a founder's enrolment token.
func founderKey(principal string) *cosigntest.Person {
	return cosigntest.Seeded(cosign.KindJWS, "token of "+principal)
}

// newCourt returns a court in which everybody has a session and a key; under dual
// control where two administrators must agree.
func newCourt(t *testing.T, dual bool) *court {
	t.Helper()
	x := &court{book: &book{t: t, mem: &ledgertest.Mem{}, now: 1_000_000}, second: &ledgertest.Mem{}, third: &ledgertest.Mem{}, keys: map[string]*cosigntest.Person{}, dual: dual}
	genesis := &ledger.Genesis{Cluster: "c", Incarnation: 1, Objects: courtObjects()}
	if dual {
		genesis.Approvals = []ledger.Approval{{Group: "administrators", Count: 2}}
		for _, p := range []string{ann, bo, kim, eve, bobot, orphan} {
			genesis.Founders = append(genesis.Founders, ledger.Founder{Principal: p, JWK: founderKey(p).Key().JWK})
		}
	}
	x.ok("", genesis)
	for _, p := range []string{ann, bo, kim, eve, helper, bobot, orphan, app, other} {
		x.login(p, "jkt-"+p)
	}
	for _, p := range []string{ann, bo, kim, eve, bobot, orphan} {
		x.keys[p] = cosigntest.Seeded(courtKinds[p], p)
		cmd := x.addKey(p, x.keys[p])
		if dual {
			cmd.Vouch = x.vouch(p, x.keys[p], founderKey(p))
		}
		x.ok(p, cmd)
	}
	t.Cleanup(x.same)
	return x
}

// same: at the end the three replicas hold the same, to the last record.
func (x *court) same() {
	want := x.mem.Dump()
	if x.second.Dump() != want || x.third.Dump() != want {
		x.t.Error("the replicas differ")
	}
	size := x.q().Size()
	root, err := x.q().Root(size)
	if err != nil {
		x.t.Error(err)
	}
	for _, m := range []*ledgertest.Mem{x.second, x.third} {
		if other, err := ledger.NewQuery(m).Root(size); err != nil || other != root {
			x.t.Errorf("the roots differ: %v", err)
		}
	}
}

// login opens a session of a principal, bound to a key.
func (x *court) login(principal, key string) {
	x.t.Helper()
	n := ledger.Session{ID: x.sessionID(principal, key), TokenHash: strings.Repeat("a", 64), Principal: principal, Binding: "dpop", Thumbprint: key,
		Method: "key", Facts: map[string]string{"b": "2", "a": "1"}, ExpiresMS: x.now + 86_400_000}
	x.ok(principal, &ledger.OpenSession{Session: n})
}

func (x *court) sessionID(principal, key string) string {
	sum := cosign.Sum(principal, []byte(key))
	return ledger.SessionID(sum)
}

func (x *court) header(actor string) ledger.Header {
	h := x.book.header(actor)
	h.Actor.Session = x.sessionID(actor, "jkt-"+actor)
	return h
}

// apply commits a command on the three replicas.
func (x *court) apply(h ledger.Header, body ledger.Body, secrets ...ledger.Secret) ledger.Result {
	x.t.Helper()
	raw, err := ledger.Encode(h, body, secrets...)
	if err != nil {
		x.t.Fatalf("encode %s: %v", body.Type(), err)
	}
	x.third = x.third.Clone()
	var got [3]ledger.Result
	for i, f := range []func() (ledger.Result, error){
		func() (ledger.Result, error) { return ledger.Apply(x.mem, raw) },
		func() (ledger.Result, error) { return x.warm.Apply(x.second, raw) },
		func() (ledger.Result, error) { return ledger.Apply(x.third, raw) },
	} {
		if got[i], err = f(); err != nil {
			x.t.Fatalf("the node would stop at %s: %v", body.Type(), err)
		}
	}
	if !reflect.DeepEqual(got[0], got[1]) || !reflect.DeepEqual(got[0], got[2]) {
		x.t.Errorf("the replicas answer %+v", got)
	}
	return got[0]
}

func (x *court) do(actor string, body ledger.Body) ledger.Result {
	x.t.Helper()
	h := x.header(actor)
	if b, ok := body.(*ledger.RequestGrant); ok {
		switch {
		case b.Access != nil:
			h.DecisionID = b.Access.Decision
		case b.Change != nil:
			h.DecisionID = b.Change.Decision
		}
	}
	return x.apply(h, body, x.secrets...)
}

func (x *court) ok(actor string, body ledger.Body) ledger.Result {
	x.t.Helper()
	res := x.do(actor, body)
	if !res.OK() {
		x.t.Fatalf("%s by %q: %s %s", body.Type(), actor, res.Code, res.Detail)
	}
	return res
}

func (x *court) refused(code, actor string, body ledger.Body) {
	x.t.Helper()
	if res := x.do(actor, body); res.Code != code {
		x.t.Errorf("%s by %q: %s (%s), wanted %s", body.Type(), actor, res.Code, res.Detail, code)
	}
}

// put writes one object past all approval: the court must be without dual control.
func (x *court) put(kind, name, spec string) {
	x.t.Helper()
	x.ok(ann, &ledger.ChangeObjects{Changes: []ledger.ObjectChange{{Kind: kind, Name: name, Spec: rawJSON(spec), AnyVersion: true}}})
}

func (x *court) drop(kind, name string) {
	x.t.Helper()
	x.ok(ann, &ledger.ChangeObjects{Changes: []ledger.ObjectChange{{Kind: kind, Name: name, Delete: true, AnyVersion: true}}})
}

// task opens a task of the actor's, for whom it may be.
func (x *court) task(actor, worker, name, parent string) string {
	x.t.Helper()
	tid := aid(ledger.PrefixTask, name)
	x.ok(actor, &ledger.StartTask{Task: ledger.Task{ID: tid, Name: name, Principal: worker, Parent: parent, DeadlineMS: x.now + 600_000}})
	return tid
}

// keyHash is what a new key and who vouches for it sign.
func keyHash(t *testing.T, principal string, key cosign.Key) cosign.Hash {
	text, err := cosign.Canonical(cosign.KeyDocument{Type: cosign.DomainKey, Cluster: "c", Principal: principal, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	return cosign.Sum(cosign.DomainKey, text)
}

func (x *court) addKey(principal string, k *cosigntest.Person) *ledger.AddKey {
	key := k.Key()
	cmd := &ledger.AddKey{Key: ledger.Key{Thumbprint: k.Thumbprint(), Principal: principal, Use: ledger.UseApprove, JWK: key.JWK, Approve: &key}}
	if key.Kind != cosign.KindPasskey {
		s := k.Sign(cosign.DomainKey, keyHash(x.t, principal, key))
		cmd.Proof = &s
	}
	return cmd
}

func (x *court) vouch(principal string, k, by *cosigntest.Person) *cosign.Signature {
	s := by.Sign(cosign.DomainKey, keyHash(x.t, principal, k.Key()))
	return &s
}

// common is what a document of the actor begins with, as an honest leader writes it.
func (x *court) common(actor, domain, name string) cosign.Common {
	var p ledger.PrincipalSpec
	x.q().Spec("Principal", actor, &p)
	d := cosign.Common{
		Type: domain, Cluster: "c", Incarnation: 1, GrantID: aid(ledger.PrefixGrant, name), Nonce: base64.RawURLEncoding.EncodeToString(make([]byte, 32)),
		RequestedMS: x.now, CollectBeforeMS: x.now + 100_000, Decision: aid(ledger.PrefixDecision, name),
		Requester: cosign.Requester{Principal: actor, Owner: p.Owner, Method: "key", Binding: "dpop", Key: "jkt-" + actor, Facts: map[string]string{"a": "1", "b": "2"}},
		Policies:  []cosign.Policy{{ID: "everybody", Object: "p", Version: x.version("Policy", "p"), Hash: "h"}},
	}
	if p.Agent != nil {
		d.Requester.Model, d.Requester.Version = p.Agent.Model, p.Agent.Version
	}
	return d
}

// ask composes a request, in an implicit task of its own unless task is given.
func (x *court) ask(actor, role, name, task string, change ...func(*ledger.RequestGrant)) *ledger.RequestGrant {
	var spec ledger.RoleSpec
	o, _ := x.q().Spec("Role", role, &spec)
	d := &cosign.GrantDocument{
		Common: x.common(actor, cosign.DomainGrant, name), Role: role, RoleVersion: o.Version, Target: "db", TargetVersion: x.version("Target", "db"),
		Scope: rawJSON(`[{"type":"memory","actions":["read"]}]`), Purpose: "p", TTLS: 60, TotalS: 120, EndsByMS: x.now + 300_000, MaxLeases: 1,
	}
	for _, a := range spec.Approvals {
		d.Needs = append(d.Needs, cosign.Need{Group: a.Group, Count: a.Count, By: "role"})
	}
	cmd := &ledger.RequestGrant{Access: d, PolicyEpoch: x.q().PolicyEpoch()}
	if task == "" {
		d.Task = cosign.Task{ID: aid(ledger.PrefixTask, "i"+name), DeadlineMS: d.EndsByMS}
		cmd.ImplicitTask = &ledger.Task{ID: d.Task.ID, Principal: actor, Role: role, Implicit: true, DeadlineMS: d.EndsByMS}
	} else {
		t, _ := x.q().Task(task)
		d.Task = cosign.Task{ID: t.ID, Name: t.Name, Parent: t.Parent, DeadlineMS: t.DeadlineMS}
		own := t.Principal
		for _, a := range x.q().Ancestors(t) {
			if a.Principal != own {
				d.Requester.Chain = append(d.Requester.Chain, a.Principal)
			}
		}
	}
	for _, f := range change {
		f(cmd)
	}
	return cmd
}

// emergency makes a request one that breaks the glass.
func emergency(x *court) func(*ledger.RequestGrant) {
	return func(b *ledger.RequestGrant) {
		b.Access.Emergency, b.Access.Reason, b.Access.Needs = true, "all is on fire", nil
		b.Access.EndsByMS = x.now + 200_000
	}
}

// grant is a grant that must exist.
func (x *court) grant(name string) ledger.Cosigned {
	x.t.Helper()
	g, ok := x.q().Cosigned(aid(ledger.PrefixGrant, name))
	if !ok {
		x.t.Fatalf("no grant %s", name)
	}
	return g
}

func (x *court) hash(name string) (h cosign.Hash) {
	x.t.Helper()
	g := x.grant(name)
	h = cosign.Sum(g.Domain, g.Document)
	if h.String() != g.Hash {
		x.t.Fatalf("the document of %s hashes to %s, the record says %s", name, h, g.Hash)
	}
	return h
}

func (x *court) sign(who, name string) *ledger.ApproveGrant {
	x.t.Helper()
	g := x.grant(name)
	return &ledger.ApproveGrant{GrantID: g.ID, Signature: x.keys[who].Sign(g.Domain, x.hash(name))}
}

// signs has people sign a grant.
func (x *court) signs(name string, who ...string) {
	x.t.Helper()
	for _, p := range who {
		x.ok(p, x.sign(p, name))
	}
}

// collect composes the lease named as its grant, or otherwise.
func (x *court) collect(actor, grant, lease string, change ...func(*ledger.OpenLease)) *ledger.OpenLease {
	x.t.Helper()
	g := x.grant(grant)
	return x.open(actor, g.Role, lease, g.TaskID, append([]func(*ledger.OpenLease){func(c *ledger.OpenLease) { c.Lease.Grant.ID = g.ID }}, change...)...)
}

// changeOf composes a request for a change of configuration.
func (x *court) changeOf(actor, name string, objects ...cosign.ObjectChange) *ledger.RequestGrant {
	d := &cosign.ChangeDocument{Common: x.common(actor, cosign.DomainChange, name), Reason: "because", Objects: objects}
	d.Needs = x.q().Custodians()
	return &ledger.RequestGrant{Change: d, PolicyEpoch: x.q().PolicyEpoch()}
}

// object is a change of an object as it stands.
func (x *court) object(kind, name, spec string) cosign.ObjectChange {
	o, _ := x.q().Object(kind, name)
	c := cosign.ObjectChange{Kind: kind, Name: name, Version: o.Version}
	if spec == "" {
		c.Delete = true
	} else {
		c.Spec = rawJSON(spec)
	}
	return c
}

// made asks for a change, has it signed by two and made.
func (x *court) made(name string, objects ...cosign.ObjectChange) {
	x.t.Helper()
	x.ok(ann, x.changeOf(ann, name, objects...))
	x.signs(name, bo, kim)
	x.ok(kim, &ledger.MakeChange{GrantID: aid(ledger.PrefixGrant, name)})
}

// left lists what the state holds in the indexes of unfinished grants.
func (x *court) left() (out []string) {
	x.mem.Each(func(bucket, key string, _ []byte) {
		if slices.Contains([]string{"grant_of", "grant_due", "grant_task", "review", "cooling"}, bucket) || bucket == "secret" && strings.HasPrefix(key, "grant/") {
			out = append(out, bucket+"/"+key)
		}
	})
	return out
}

// aid is id for any name: ids have no i, l, o or u.
func aid(prefix, name string) string {
	return id(prefix, strings.NewReplacer("i", "1", "l", "7", "o", "0", "u", "v").Replace(name))
}
