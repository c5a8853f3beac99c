package broker_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/broker/cosign/cosigntest"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// people are a rig with approvers: bo and kim in dba, eve in security, ann in
// none; ann owns agent:helper.
type people struct {
	*rig
	who  map[string]broker.Caller
	keys map[string]*cosigntest.Person
}

func newPeople(t *testing.T) *people {
	p := &people{rig: newRig(t), who: map[string]broker.Caller{}, keys: map[string]*cosigntest.Person{}}
	for _, name := range []string{"human:ann", "human:bo", "human:kim", "human:eve"} {
		p.put("Principal", name, json.RawMessage(`{}`))
	}
	p.put("Principal", "agent:helper", json.RawMessage(`{"owner":"human:ann","agent":{"model":"m1"}}`))
	p.put("Group", "dba", json.RawMessage(`{"members":[{"name":"human:bo"},{"name":"human:kim"},{"name":"human:ann"}]}`))
	p.put("Group", "security", json.RawMessage(`{"members":[{"name":"human:eve"},{"name":"human:bo"}]}`))
	p.put("Role", "t2/priv", simRole(simScopeBoth, "20m", "1h", `{}`, `[{"group":"dba","count":2}]`))
	for _, name := range []string{"human:ann", "human:bo", "human:kim", "human:eve", "agent:helper", "workload:a", operator} {
		p.login(name)
	}
	for i, name := range []string{"human:ann", "human:bo", "human:kim", "human:eve"} {
		p.keys[name] = cosigntest.New([]string{cosign.KindSSH, cosign.KindJWS, cosign.KindPasskey, cosign.KindSSH}[i])
		p.addKey(name, p.keys[name], nil)
	}
	return p
}

// login records a session, as a real one would be.
func (p *people) login(principal string) {
	p.t.Helper()
	hash := sha256.Sum256([]byte(principal))
	s := ledger.Session{
		ID: ledger.SessionID(hash), TokenHash: hex.EncodeToString(hash[:]), Principal: principal, Binding: "dpop", Thumbprint: "jkt-" + principal,
		Method: "key", ExpiresMS: time.Now().Add(24 * time.Hour).UnixMilli(),
	}
	if res := p.propose(&ledger.OpenSession{Session: s}, ledger.Actor{Principal: principal}); !res.OK() {
		p.t.Fatal(res.Detail)
	}
	p.who[principal] = broker.Caller{Session: s, Address: "192.0.2.1"}
}

// propose commits a command past the engine, as a leader could.
func (p *people) propose(b ledger.Body, actor ledger.Actor, secrets ...ledger.Secret) ledger.Result {
	p.t.Helper()
	raw, err := ledger.Encode(ledger.Header{AtMS: time.Now().UnixMilli(), Actor: actor}, b, secrets...)
	if err != nil {
		p.t.Fatal(err)
	}
	res, err := p.log.Propose(p.t.Context(), raw, false)
	if err != nil {
		p.t.Fatal(err)
	}
	return res
}

// addKey registers a key to approve with, vouched for by another where given.
func (p *people) addKey(principal string, k, vouch *cosigntest.Person) ledger.Result {
	key := k.Key()
	text, err := cosign.Canonical(cosign.KeyDocument{Type: cosign.DomainKey, Cluster: "c", Principal: principal, Key: key})
	if err != nil {
		p.t.Fatal(err)
	}
	hash := cosign.Sum(cosign.DomainKey, text)
	cmd := &ledger.AddKey{Key: ledger.Key{Thumbprint: k.Thumbprint(), Principal: principal, Use: ledger.UseApprove, JWK: key.JWK, Approve: &key}}
	if key.Kind != cosign.KindPasskey {
		s := k.Sign(cosign.DomainKey, hash)
		cmd.Proof = &s
	}
	if vouch != nil {
		s := vouch.Sign(cosign.DomainKey, hash)
		cmd.Vouch = &s
	}
	return p.propose(cmd, ledger.Actor{Principal: principal})
}

func (p *people) approve(who, id string) (wire.Grant, error) {
	g, err := p.engine.Grant(p.t.Context(), p.who[who], id)
	if err != nil {
		return g, err
	}
	return p.engine.ApproveGrant(p.t.Context(), p.who[who], id, wire.ApproveRequest{Hash: g.Hash, Signature: p.sign(who, g)})
}

func (p *people) sign(who string, g wire.Grant) wire.Signature {
	p.t.Helper()
	sum := cosign.Sum(g.Domain, g.Document)
	if sum.String() != g.Hash {
		p.t.Fatalf("the document's hash is %s, not %s", sum, g.Hash)
	}
	s := p.keys[who].Sign(g.Domain, sum)
	return wire.Signature{Kind: s.Kind, Key: s.Key, AuthenticatorData: s.AuthenticatorData, ClientDataJSON: s.ClientDataJSON, Assertion: s.Assertion, SSHSIG: s.SSHSIG, JWS: s.JWS}
}

func (p *people) ask(who string, in wire.AccessRequest) wire.AccessAnswer {
	p.t.Helper()
	a, err := p.request(p.who[who], in)
	if err != nil {
		p.t.Fatal(err)
	}
	return a
}

func (p *people) collect(who, id string) (wire.AccessAnswer, error) {
	return p.engine.CollectGrant(p.t.Context(), p.who[who], id, wire.CollectRequest{})
}

func wantCode(t testing.TB, what string, err error, code string) {
	t.Helper()
	if fe := fault.As(err); err == nil || fe.StableCode() != code {
		t.Errorf("%s: %v, wanted %s", what, err, code)
	}
}

// TestLaw4TwoPeopleCosign: the whole life of a privileged grant.
func TestLaw4TwoPeopleCosign(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeople(t)
		p.lead()
		defer p.stop()
		ask := wire.AccessRequest{Role: "t2/priv", Purpose: "incident 7"}
		a := p.ask("workload:a", ask)
		if a.Status != "waiting" || len(a.Needs) != 1 || a.Needs[0].Required != 2 || a.Needs[0].Eligible != 3 || a.Hash == "" || a.URL == "" || a.Credential != nil {
			t.Fatalf("%+v", a)
		}
		if again := p.ask("workload:a", ask); again.GrantID != a.GrantID {
			t.Fatalf("asked again: %s and %s", a.GrantID, again.GrantID)
		}
		if n := p.t2.Calls("mint"); n != 0 {
			t.Fatalf("%d mints", n)
		}
		if _, err := p.approve("human:bo", a.GrantID); err != nil {
			t.Fatal(err)
		}
		_, err := p.approve("human:bo", a.GrantID)
		wantCode(t, "twice", err, ledger.CodeTwice)
		_, err = p.approve("human:eve", a.GrantID)
		wantCode(t, "another group", err, "grant_not_found")
		if w, err := p.collect("workload:a", a.GrantID); err != nil || w.Status != "waiting" || w.Needs[0].Have != 1 {
			t.Fatalf("%+v, %v", w, err)
		}
		g, err := p.approve("human:kim", a.GrantID)
		if err != nil || g.State != wire.GrantApproved {
			t.Fatalf("%+v, %v", g, err)
		}
		_, err = p.collect("human:bo", a.GrantID)
		wantCode(t, "another's", err, "grant_not_found")
		got, err := p.collect("workload:a", a.GrantID)
		if err != nil || got.Status != "issued" || got.GrantID != a.GrantID || got.TaskID != a.TaskID || got.Credential["password"] == "" {
			t.Fatalf("%+v, %v", got, err)
		}
		_, err = p.collect("workload:a", a.GrantID)
		wantCode(t, "a second lease", err, ledger.CodeGrantOver)
		if _, err := p.engine.RevokeGrant(t.Context(), p.who["human:kim"], a.GrantID, wire.EndGrantRequest{Reason: "regret"}); err != nil {
			t.Fatal(err)
		}
		p.within(time.Minute, "the lease is withdrawn", func() bool { return len(p.t2.Accounts()) == 0 })
		if l := p.lease(got.LeaseID); l.State != ledger.LeaseEnded {
			t.Fatalf("%+v", l)
		}
	})
}
