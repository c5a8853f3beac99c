package broker_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-broker/mayfly/broker/brokertest"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/issuers"
)

// TestLaw5DenialIsRecordedBeforeTheAnswer: the answer says who, what and why,
// and names a decision that the ledger holds; where it cannot be recorded, no
// denial is told.
func TestLaw5DenialIsRecordedBeforeTheAnswer(t *testing.T) {
	r := newRig(t)
	in := wire.AccessRequest{Role: "t1/rw", Purpose: "p"}
	_, err := r.request(agentCaller, in)
	r.fails(err, fault.Denied, "")
	fe := fault.As(err)
	for _, word := range []string{"agent:c", "t1/rw", "no-agents", "mayfly policy explain " + fe.DecisionID} {
		if !strings.Contains(fe.Detail, word) {
			t.Errorf("the denial %q does not say %q", fe.Detail, word)
		}
	}
	r.log.Query(func(q ledger.Query) {
		seq, ok := q.DecisionSeq(fe.DecisionID)
		e, _ := q.Entry(seq)
		if !ok || !strings.Contains(string(e.Public), `"no-agents"`) {
			t.Errorf("decision %s stands in entry %s", fe.DecisionID, e.Public)
		}
	})
	if d, err := r.engine.Decision(t.Context(), callerOf(operator, ""), fe.DecisionID); err != nil || d.ID != fe.DecisionID {
		t.Errorf("explain: %+v %v", d, err)
	}
	r.before(func(d ledger.Decoded) error {
		if d.Type == "record_decision" {
			return fault.New(fault.Unavailable, "no_leader", "")
		}
		return nil
	})
	_, err = r.request(agentCaller, in)
	r.fails(err, fault.Unavailable, "no_leader")
}

// TestLaw5GrantCarriesItsDecision.
func TestLaw5GrantCarriesItsDecision(t *testing.T) {
	r := newRig(t)
	a := r.must(appCaller, wire.AccessRequest{Role: "t1/ro", Purpose: "p"})
	r.log.Query(func(q ledger.Query) {
		seq, ok := q.DecisionSeq(a.DecisionID)
		e, _ := q.Entry(seq)
		d, err := ledger.DecodePublic(e.Public)
		if !ok || err != nil || d.Type != "open_lease" || !strings.Contains(string(d.Header.Decision), `"everybody"`) {
			t.Errorf("decision %s: %s", a.DecisionID, e.Public)
		}
	})
}

// TestLaw1NothingIsMintedUnlessItsLeaseIsCommitted.
func TestLaw1NothingIsMintedUnlessItsLeaseIsCommitted(t *testing.T) {
	r := newRig(t)
	lost := fault.New(fault.Indeterminate, "indeterminate", "")
	r.before(func(d ledger.Decoded) error {
		if d.Type == "open_lease" {
			return lost
		}
		return nil
	})
	_, err := r.request(appCaller, wire.AccessRequest{Role: "t1/ro", Purpose: "p"})
	r.fails(err, fault.Indeterminate, "")
	if n := r.t1.Calls("mint"); n != 0 {
		t.Errorf("%d mints of a lease that is not committed", n)
	}
}

// TestHazard9RetryYieldsTheSameLeaseAndAFreshSecret.
func TestHazard9RetryYieldsTheSameLeaseAndAFreshSecret(t *testing.T) {
	r := newRig(t)
	who := withKey(appCaller, "k1")
	in := wire.AccessRequest{Role: "t1/ro", Purpose: "p"}
	first, second := r.must(who, in), r.must(who, in)
	if first.LeaseID != second.LeaseID || first.Credential["username"] != second.Credential["username"] || first.DecisionID != second.DecisionID {
		t.Errorf("two answers: %+v and %+v", first, second)
	}
	if first.Credential["password"] == second.Credential["password"] {
		t.Error("the secret was repeated: it must have been stored")
	}
	if l := r.lease(first.LeaseID); l.Generation != 2 {
		t.Errorf("generation %d", l.Generation)
	}
	if r.t1.Login(second.Credential["username"], first.Credential["password"]) == nil {
		t.Error("the lost secret still opens the account")
	}
	if err := r.t1.Login(second.Credential["username"], second.Credential["password"]); err != nil {
		t.Error(err)
	}
	who.Idem.Hash = "another request"
	_, err := r.request(who, in)
	r.fails(err, fault.Conflict, ledger.CodeIdemMismatch)
}

// TestRetryAfterAFailedMintGetsANewLease: found by the simulation. The client's
// retries all bear one key; a mint that failed must not use it up.
func TestRetryAfterAFailedMintGetsANewLease(t *testing.T) {
	r := newRig(t)
	who := withKey(appCaller, "k1")
	in := wire.AccessRequest{Role: "t1/ro", Purpose: "p"}
	r.wire(fail("t1", "mint", &issuers.Error{Kind: issuers.Unreachable, Detail: "down"}))
	_, err := r.request(who, in)
	r.fails(err, fault.Unavailable, "target_unavailable")
	r.wire(nil)
	a := r.must(who, in)
	if b := r.must(who, in); b.LeaseID != a.LeaseID {
		t.Errorf("the key now answers with %s, then %s", a.LeaseID, b.LeaseID)
	}
}

// TestOlderMintThatFailsEndsNoNewerOne: found by the simulation. Two calls with
// one key overlap; the first one's mint fails after the second one's is made.
func TestOlderMintThatFailsEndsNoNewerOne(t *testing.T) {
	r := newRig(t)
	who := withKey(appCaller, "k1")
	in := wire.AccessRequest{Role: "t1/ro", Purpose: "p"}
	var second wire.AccessAnswer
	r.wire(func(_ context.Context, c brokertest.Call, act func() error) error {
		if c.Verb != "mint" || c.Leases[0].Generation > 1 {
			return act()
		}
		second = r.must(who, in)
		return &issuers.Error{Kind: issuers.Unknown, Detail: "the connection broke"}
	})
	if _, err := r.request(who, in); err == nil {
		t.Fatal("the first mint was to fail")
	}
	if l := r.lease(second.LeaseID); l.State != ledger.LeaseOpen || l.Generation != 2 {
		t.Errorf("the second call's lease is %s (%+v)", l.State, l.End)
	}
}

// TestHazard20StaleDecisionIsTakenAgain: a role changes between the decision and
// the commit; the lease that is opened is the new role's.
func TestHazard20StaleDecisionIsTakenAgain(t *testing.T) {
	r := newRig(t)
	changed := false
	r.before(func(d ledger.Decoded) error {
		if d.Type == "open_lease" && !changed {
			changed = true
			r.put("Role", "t1/rw", simRole(simScopeRead, "30s", "90s", "{}", ""))
		}
		return nil
	})
	a := r.must(appCaller, wire.AccessRequest{Role: "t1/rw", Purpose: "p"})
	if len(a.Scope) != 1 || len(a.Scope[0].Actions) != 1 {
		t.Errorf("the lease has the old role's scope: %s", a.Scope)
	}
}

// TestBoundsOfALease: each bound sets the hard end, and the answer names it.
func TestBoundsOfALease(t *testing.T) {
	for name, c := range map[string]struct {
		role, ttl      string
		task, longest  time.Duration
		expires, after time.Duration
		by             string
	}{
		"role's default":     {role: "t1/ro", expires: 40 * time.Second, after: 120 * time.Second, by: "role"},
		"asked for":          {role: "t1/ro", ttl: "7s", expires: 7 * time.Second, after: 120 * time.Second, by: "role"},
		"asked for the most": {role: "t1/ro", ttl: "120s", expires: 120 * time.Second, after: 120 * time.Second, by: "role"},
		"policy":             {role: "t2/ro", ttl: "100s", expires: 60 * time.Second, after: 60 * time.Second, by: "policy:short"},
		"task":               {role: "t1/ro", task: 15 * time.Second, expires: 15 * time.Second, after: 15 * time.Second, by: "task"},
		"target":             {role: "t1/ro", longest: 5 * time.Second, expires: 5 * time.Second, after: 5 * time.Second, by: "target"},
		"shortest of all":    {role: "t2/ro", task: 50 * time.Second, longest: 55 * time.Second, expires: 20 * time.Second, after: 50 * time.Second, by: "task"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				r.kind.Longest = c.longest
				in := wire.AccessRequest{Role: c.role, TTL: c.ttl, Purpose: "p"}
				if c.task > 0 {
					task, err := r.engine.StartTask(t.Context(), appCaller, wire.StartTaskRequest{Name: "t", Purpose: "p", TTL: c.task.String()})
					if err != nil {
						t.Fatal(err)
					}
					in.Task, in.Purpose = task.ID, ""
				}
				now := time.Now()
				a := r.must(appCaller, in)
				if a.ExpiresAt.Sub(now) != c.expires || a.NotAfter.Sub(now) != c.after || a.BoundedBy != c.by {
					t.Errorf("expires after %s, at most %s, by %s", a.ExpiresAt.Sub(now), a.NotAfter.Sub(now), a.BoundedBy)
				}
				if acc, _ := r.kind.Systems[strings.Split(c.role, "/")[0]].Account(a.Credential["username"]); !acc.Until.Equal(a.ExpiresAt) {
					t.Errorf("the account lives until %s, the lease until %s", acc.Until, a.ExpiresAt)
				}
			})
		})
	}
}

// TestRequestRefusals: each is a problem of a kind that the caller can act on.
func TestRequestRefusals(t *testing.T) {
	r := newRig(t)
	for name, c := range map[string]struct {
		in   wire.AccessRequest
		kind fault.Kind
		code string
	}{
		"no role":             {wire.AccessRequest{}, fault.Invalid, "role_missing"},
		"unknown role":        {wire.AccessRequest{Role: "t1/none", Purpose: "p"}, fault.NotFound, "role_not_found"},
		"purpose beside task": {wire.AccessRequest{Role: "t1/ro", Task: "x", Purpose: "p"}, fault.Invalid, "purpose_beside_task"},
		"unknown task":        {wire.AccessRequest{Role: "t1/ro", Task: "nope"}, fault.NotFound, "task_not_found"},
		"ttl":                 {wire.AccessRequest{Role: "t1/ro", TTL: "never"}, fault.Invalid, "ttl_malformed"},
		"negative ttl":        {wire.AccessRequest{Role: "t1/ro", TTL: "-1s"}, fault.Invalid, "ttl_malformed"},
		"ttl over the role's": {wire.AccessRequest{Role: "t1/ro", TTL: "1h"}, fault.Denied, "ttl_exceeds_role"},
		"scope":               {wire.AccessRequest{Role: "t1/ro", Scope: json.RawMessage(`[{"x":1}]`)}, fault.Invalid, "invalid_authorization_details"},
		"wider scope":         {wire.AccessRequest{Role: "t1/ro", Scope: json.RawMessage(simScopeBoth)}, fault.Denied, "scope_exceeds_role"},
	} {
		_, err := r.request(appCaller, c.in)
		if fe := fault.As(err); fe == nil || fe.Kind != c.kind || fe.StableCode() != c.code {
			t.Errorf("%s: %v, wanted %s", name, err, c.code)
		}
	}
	if n := r.t1.Calls("mint") + r.t2.Calls("mint"); n != 0 {
		t.Errorf("%d mints", n)
	}
}

// TestApplyRefusesALockOut: after it nobody could administer.
func TestApplyRefusesALockOut(t *testing.T) {
	r := newRig(t)
	op := callerOf(operator, "")
	for name, in := range map[string]wire.ApplyRequest{
		"policy deleted":   {Delete: []wire.Ref{{Kind: "Policy", Name: "sim"}}},
		"policy emptied":   {Objects: []wire.Object{{Kind: "Policy", Name: "sim", Spec: mustJSON(ledger.PolicySpec{Text: `@id("x") permit (principal, action == Action::"read", resource);`})}}},
		"forbidden to all": {Objects: []wire.Object{{Kind: "Policy", Name: "no", Spec: mustJSON(ledger.PolicySpec{Text: `@id("x") forbid (principal, action == Action::"administer", resource);`})}}},
		"pruned away":      {Objects: []wire.Object{{Kind: "Principal", Name: "human:new", Spec: json.RawMessage(`{}`)}}, Prune: true},
	} {
		if _, err := r.engine.Apply(t.Context(), op, in); fault.As(err) == nil || fault.As(err).StableCode() != ledger.CodeLastAdmin {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := r.engine.Apply(t.Context(), appCaller, wire.ApplyRequest{Objects: []wire.Object{{Kind: "Zone", Name: "z9"}}}); fault.KindOf(err) != fault.Denied {
		t.Errorf("a workload administers: %v", err)
	}
}

// TestApplyRefusesASecretThatIsTooLarge: found on the way. It stopped every node.
func TestApplyRefusesASecretThatIsTooLarge(t *testing.T) {
	r := newRig(t)
	_, err := r.engine.Apply(t.Context(), callerOf(operator, ""), wire.ApplyRequest{Objects: []wire.Object{{
		Kind: "Target", Name: "t1", Spec: json.RawMessage(`{"type":"memory","system":"t1"}`),
		Secrets: map[string]string{"password": strings.Repeat("x", ledger.MaxSecretBytes+1)},
	}}})
	r.fails(err, fault.Invalid, "")
}

// FuzzAccessRequest: a request from outside is answered or refused in a way that
// the caller can act on, and never gets more than its role.
func FuzzAccessRequest(f *testing.F) {
	for _, s := range []string{
		`{"role":"t1/ro","purpose":"p"}`, `{"role":"t1/rw","scope":[{"type":"memory","actions":["read"]}],"ttl":"5s"}`, `{"role":"t2/priv"}`,
		`{"role":"t1/ro","task":"tsk_0"}`, `{"role":"\u0000/x"}`, `{"role":"t1/ro","csr":"-----BEGIN CERTIFICATE REQUEST-----\nAA==\n-----END CERTIFICATE REQUEST-----\n"}`,
		`{"role":"t1/ro","public_key":{"kty":"EC"},"purpose":"\u0000\ud800"}`, `{"role":"t1/rw","scope":[{"type":"memory","actions":["drop"]}]}`, `{"role":"/","ttl":"9999999h"}`,
	} {
		f.Add([]byte(s), "k")
	}
	f.Fuzz(func(t *testing.T, raw []byte, key string) {
		var in wire.AccessRequest
		if json.Unmarshal(raw, &in) != nil {
			return
		}
		r := newRig(t)
		who := appCaller
		who.Idem = &ledger.Idem{Key: key, Hash: "h"}
		a, err := r.request(who, in)
		if err != nil {
			if k := fault.KindOf(err); k == fault.Internal || k == fault.Upstream || k == fault.Unavailable || k == fault.Indeterminate {
				t.Fatalf("%s: %v", raw, err)
			}
			return
		}
		l := r.lease(a.LeaseID)
		var role ledger.RoleSpec
		r.log.Query(func(q ledger.Query) { q.Spec("Role", in.Role, &role) })
		if len(role.Approvals) > 0 || l.NotAfterMS > l.OpenedMS+role.TTL.Max.MS() || l.Grant.Principal != "workload:a" {
			t.Fatalf("%s got %+v", raw, l)
		}
	})
}
