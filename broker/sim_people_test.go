package broker_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/broker/cosign/cosigntest"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// The simulated people: who approves, denies and revokes, changes groups, loses
// keys; and law 4 as one would check it by hand, without the ledger's own counting.

// simApprovers are the people with keys; agent:p1bot is p1's and a dba as well.
var simApprovers = []string{"human:p1", "human:p2", "human:p3", "human:p4", "agent:p1bot"}

// simRosters are what the group dba may be changed to.
var simRosters = []string{
	`{"members":[{"name":"human:p1"},{"name":"human:p2"},{"name":"human:p3"},{"name":"agent:p1bot"},{"name":"human:op"}]}`,
	`{"members":[{"name":"human:p1"},{"name":"human:p2"},{"name":"human:p3"},{"name":"human:p4"},{"name":"agent:p1bot"}]}`,
	`{"members":[{"name":"human:p2"},{"name":"human:p3"},{"name":"agent:p1bot"}]}`,
	`{"members":[{"name":"human:p1"},{"name":"human:p4"}]}`,
}

const simWait = `@id("wait") @approvals("1") @approvers("dba") @approval_ttl("90s") permit (principal, action == Action::"request", resource == Role::"t2/priv");`

// simPeople are their objects. Grants wait a minute and a half, where policy can say so.
func simPeople() []ledger.ObjectChange {
	out := []ledger.ObjectChange{
		{Kind: "Group", Name: "dba", Spec: json.RawMessage(simRosters[0])},
		{Kind: "Policy", Name: "wait", Spec: mustJSON(ledger.PolicySpec{Text: simWait})},
		{Kind: "Policy", Name: "other", Spec: mustJSON(ledger.PolicySpec{Text: `@id("other") permit (principal == Human::"nobody", action == Action::"request", resource);`})},
	}
	for _, p := range simApprovers {
		spec := `{}`
		if strings.HasPrefix(p, "agent:") {
			spec = `{"owner":"human:p1"}`
		}
		out = append(out, ledger.ObjectChange{Kind: "Principal", Name: p, Spec: json.RawMessage(spec)})
	}
	return out
}

// people is what the world knows of them.
type simHumans struct {
	keys  map[string]*cosigntest.Person
	made  int // keys so far
	asked []waitingGrant
	// signed holds the leases that were opened on a floor, each with enough people.
	signed map[string]bool
}

type waitingGrant struct {
	who broker.Caller
	id  string
}

// record commits a command as an honest leader would whose client is not simulated.
func (w *world) record(actor string, b ledger.Body) {
	raw, err := ledger.Encode(ledger.Header{AtMS: time.Now().UnixMilli(), Actor: ledger.Actor{Principal: actor}}, b)
	if err != nil {
		panic(err)
	}
	res := w.commit(raw)
	w.tracef("recorded %d: %s by %s: %s", len(w.log)-1, b.Type(), actor, res.Code)
}

// present has a caller log in, where its session is gone: containment ends sessions.
func (w *world) present(who broker.Caller) {
	q := w.query()
	s := who.Session
	if _, ok := q.Session(s.ID); ok || q.IsFrozen(ledger.KindPrincipal, s.Principal) {
		return
	}
	s.ExpiresMS = time.Now().Add(1000 * time.Hour).UnixMilli()
	w.record(s.Principal, &ledger.OpenSession{Session: s})
}

// newKey gives an approver a key; a lost one is another's no more.
func (w *world) newKey(p string) {
	w.people.made++
	k := cosigntest.Seeded(cosign.KindSSH, fmt.Sprintf("%d %s %d", w.seed, p, w.people.made))
	key := k.Key()
	text, err := cosign.Canonical(cosign.KeyDocument{Type: cosign.DomainKey, Cluster: "sim", Principal: p, Key: key})
	if err != nil {
		panic(err)
	}
	proof := k.Sign(cosign.DomainKey, cosign.Sum(cosign.DomainKey, text))
	w.record(p, &ledger.AddKey{Key: ledger.Key{Thumbprint: k.Thumbprint(), Principal: p, Use: ledger.UseApprove, JWK: key.JWK, Approve: &key}, Proof: &proof})
	w.people.keys[p] = k
}

func (w *world) bringPeople() {
	w.people = simHumans{keys: map[string]*cosigntest.Person{}, signed: map[string]bool{}}
	for _, p := range simApprovers {
		w.newKey(p)
	}
}

// unfinished returns a grant that waits, is approved or open, and is not used up.
func (w *world) unfinished(states ...string) (ledger.Cosigned, bool) {
	var all []ledger.Cosigned
	w.query().CosignedGrants("", func(g ledger.Cosigned) bool {
		if slices.Contains(states, g.State) {
			all = append(all, g)
		}
		return true
	})
	if len(all) == 0 {
		return ledger.Cosigned{}, false
	}
	return all[w.rng.IntN(len(all))], true
}

// approver has somebody sign, deny or revoke, whether they may or not.
func (w *world) approver(p *proc) {
	name := simApprovers[w.rng.IntN(len(simApprovers))]
	who := callerOf(name, "")
	w.present(who)
	states := []string{ledger.GrantWaiting, ledger.GrantWaiting, ledger.GrantApproved}
	how := w.rng.IntN(24)
	if how == 0 {
		states = append(states, ledger.GrantOpen)
	}
	g, ok := w.unfinished(states...)
	if !ok {
		return
	}
	sig := w.people.keys[name].Sign(g.Domain, cosign.Sum(g.Domain, g.Document))
	in := wire.Signature{Kind: sig.Kind, Key: sig.Key, SSHSIG: sig.SSHSIG}
	w.spawn(p, fmt.Sprintf("%s on %s, %d", name, g.ID, how), func(ctx context.Context) {
		var out wire.Grant
		var err error
		switch how {
		case 0:
			out, err = p.engine.RevokeGrant(ctx, who, g.ID, wire.EndGrantRequest{Reason: "simulated"})
		case 1:
			out, err = p.engine.DenyGrant(ctx, who, g.ID, wire.EndGrantRequest{Reason: "simulated"})
		default:
			out, err = p.engine.ApproveGrant(ctx, who, g.ID, wire.ApproveRequest{Hash: g.Hash, Signature: in})
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.tracef("%s on %s: %s %v", name, g.ID, out.State, err)
		w.checkError(err)
	})
}

// collect has a requester pick up what it asked for, or take it back.
func (w *world) collect(p *proc) {
	if len(w.people.asked) == 0 {
		return
	}
	a := w.people.asked[max(0, len(w.people.asked)-1-w.rng.IntN(6))]
	who := a.who
	who.Idem = nil
	w.present(who)
	if w.rng.IntN(10) == 0 {
		w.spawn(p, "cancel "+a.id, func(ctx context.Context) {
			_, err := p.engine.CancelGrant(ctx, who, a.id, wire.EndGrantRequest{})
			w.mu.Lock()
			defer w.mu.Unlock()
			w.checkError(err)
		})
		return
	}
	it := &intent{id: -1, who: who}
	w.spawn(p, "collect "+a.id, func(ctx context.Context) {
		answer, err := p.engine.CollectGrant(ctx, who, a.id, wire.CollectRequest{})
		w.answered(it, answer, err)
	})
}

// unsettle changes what approvals rest on.
func (w *world) unsettle(p *proc) {
	who := callerOf(operator, "")
	obj := wire.Object{Kind: "Group", Name: "dba", Spec: json.RawMessage(simRosters[w.rng.IntN(len(simRosters))])}
	switch w.rng.IntN(8) {
	case 0:
		name := simApprovers[w.rng.IntN(len(simApprovers))]
		w.record(name, &ledger.RemoveKey{Principal: name, Thumbprint: w.people.keys[name].Thumbprint()})
		w.newKey(name)
		return
	case 1:
		obj = wire.Object{Kind: "Policy", Name: "wait", Spec: mustJSON(ledger.PolicySpec{Text: fmt.Sprintf("// %d\n%s", w.steps, simWait)})}
	case 2:
		obj = wire.Object{Kind: "Policy", Name: "other", Spec: mustJSON(ledger.PolicySpec{Text: fmt.Sprintf("// %d\n@id(\"other\") permit (principal == Human::\"nobody\", action == Action::\"request\", resource);", w.steps)})}
	case 3:
		obj = wire.Object{Kind: "Principal", Name: "agent:c", Spec: json.RawMessage(fmt.Sprintf(`{"owner":"human:p%d"}`, 1+w.rng.IntN(4)))}
	}
	w.spawn(p, "apply "+obj.Kind+" "+obj.Name, func(ctx context.Context) {
		_, err := p.engine.Apply(ctx, who, wire.ApplyRequest{Objects: []wire.Object{obj}})
		w.mu.Lock()
		defer w.mu.Unlock()
		w.checkError(err)
	})
}

// checkSigned: a lease on a role with a floor has, at this instant, so many people
// of the group behind its very document, none of whom has a part in it (law 4).
func (w *world) checkSigned(q ledger.Query, l ledger.Lease, role ledger.RoleSpec) {
	if len(role.Approvals) == 0 {
		return
	}
	g, ok := q.Cosigned(l.Grant.ID)
	d, err := g.Access()
	if !ok || err != nil || !slices.Contains(g.Leases, l.ID) || d.Role != l.Grant.Role || d.Requester.Principal != l.Grant.Principal || d.Task.ID != l.Grant.TaskID {
		w.violated("law 4", "%s is issued on role %s, and the grant %s is not for it", l.ID, l.Grant.Role, l.Grant.ID)
		return
	}
	sum := sha256.Sum256([]byte("mayfly.grant.v1\x00" + string(g.Document)))
	if hex.EncodeToString(sum[:]) != g.Hash {
		w.violated("law 4", "%s: the document is not what was signed", g.ID)
	}
	for _, floor := range role.Approvals {
		var roster ledger.GroupSpec
		q.Spec("Group", floor.Group, &roster)
		people := map[string]bool{}
		for _, s := range g.Signed {
			member := slices.ContainsFunc(roster.Members, func(m ledger.Member) bool { return m.Name == s.Principal })
			k, there := q.Key(s.Signature.Key)
			person := w.personOf(q, s.Principal)
			if !member || !there || k.Principal != s.Principal || q.IsFrozen("Principal", s.Principal) || q.IsFrozen("Principal", person) || w.takesPart(q, d, person) {
				continue
			}
			if cosign.Verify(*k.Approve, "mayfly.grant.v1", sum, s.Signature) == nil {
				people[person] = true
			}
		}
		if len(people) < floor.Count {
			w.violated("law 4", "%s is issued on role %s with %d people of %s behind it, not %d", l.ID, l.Grant.Role, len(people), floor.Group, floor.Count)
		}
	}
	w.people.signed[l.ID] = true
}

func (w *world) personOf(q ledger.Query, principal string) string {
	var p ledger.PrincipalSpec
	if q.Spec("Principal", principal, &p); p.Owner != "" {
		return p.Owner
	}
	return principal
}

// takesPart looks through all tasks for those that hang together with the grant's.
func (w *world) takesPart(q ledger.Query, d cosign.GrantDocument, person string) bool {
	if person == w.personOf(q, d.Requester.Principal) || person == d.Requester.Owner {
		return true
	}
	top := func(t ledger.Task) string {
		for t.Parent != "" {
			t, _ = q.Task(t.Parent)
		}
		return t.ID
	}
	own, _ := q.Task(d.Task.ID)
	part := false
	q.Tasks("", func(t ledger.Task) bool {
		if top(t) == top(own) {
			part = part || w.personOf(q, t.Principal) == person || w.personOf(q, t.StartedBy) == person
		}
		return !part
	})
	return part
}

// giveUpWaiting cancels what would wait for a day.
func (w *world) giveUpWaiting() {
	var long []ledger.Cosigned
	w.query().CosignedGrants("", func(g ledger.Cosigned) bool {
		if (g.State == ledger.GrantWaiting || g.State == ledger.GrantApproved) && g.CollectBeforeMS > time.Now().Add(10*time.Minute).UnixMilli() {
			long = append(long, g)
		}
		return true
	})
	for _, g := range long {
		w.record(g.Principal, &ledger.EndGrant{GrantID: g.ID, State: ledger.GrantCancelled})
	}
	for _, n := range w.nodes {
		w.catchUp(n, len(w.log))
	}
}

// checkGrantsQuiet: nothing waits any more, and no index says that something does.
func (w *world) checkGrantsQuiet(q ledger.Query) {
	q.CosignedGrants("", func(g ledger.Cosigned) bool {
		if g.State == ledger.GrantWaiting || g.State == ledger.GrantApproved {
			w.violated("grants", "%s is %s at the end", g.ID, g.State)
		}
		return true
	})
	w.truth.Each(func(bucket, key string, _ []byte) {
		if slices.Contains([]string{"grant_of", "grant_due", "grant_task", "review"}, bucket) {
			w.violated("grants", "%s/%q is left at the end", bucket, key)
		}
	})
}
