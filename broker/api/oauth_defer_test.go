package api_test

import (
	"errors"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// deferring has asked for a role that needs approvals, and waits.
type deferring struct {
	tc   *testCluster
	w    *world
	n    *testNode
	c    *client
	code string
}

func startDeferring(t *testing.T, nodes int) *deferring {
	t.Helper()
	tc, w := oauthNodes(t, nodes)
	d := &deferring{tc: tc, w: w, n: tc.nodes[nodes-1], c: w.registered(tc, t)}
	w.wait(d.c, wire.GrantWaiting)
	out := oauthRefused(t, w.post(d.c, d.n, "/oauth/token", w.asClient(d.c, with("grant_type", clientCC, "audience", "orders/readonly", "completion_mode", "other deferred"))), 400, "authorization_pending")
	if out.Interval != 10 || out.ExpiresIn != 3600 || out.Grant != grant || out.Interaction != w.issuer+"/grants/"+grant {
		t.Fatalf("%+v", out)
	}
	d.code = out.Deferral
	return d
}

// form is a poll; poll sends it when the interval has passed.
func (d *deferring) form() url.Values {
	return d.w.asClient(d.c, with("grant_type", deferredGT, "deferral_code", d.code))
}

func (d *deferring) later() {
	d.w.set(func(w *world) { w.now = w.now.Add(10 * time.Second) })
}

func (d *deferring) poll() reply {
	d.later()
	return d.w.post(d.c, d.n, "/oauth/token", d.form())
}

func (d *deferring) turn(state string) {
	d.w.set(func(w *world) { w.grant.State, w.answer.Status = state, "issued" })
}

func TestDeferralCodeIsOpaqueAndBoundToItsGrant(t *testing.T) {
	d := startDeferring(t, 1)
	if !strings.HasPrefix(d.code, "mfd_") || len(d.code) != 4+26+27 {
		t.Fatalf("%q", d.code)
	}
	// The same on every node, and for the same request asked again.
	again := oauthRefused(t, d.w.post(d.c, d.n, "/oauth/token", d.w.asClient(d.c, with("grant_type", clientCC, "audience", "orders/readonly", "completion_mode", "deferred"))), 400, "authorization_pending")
	if again.Deferral != d.code {
		t.Fatalf("%q and %q", d.code, again.Deferral)
	}
	for _, code := range []string{d.code[:len(d.code)-1] + "!", d.code[:len(d.code)-1], d.code + "a", "mfd_" + strings.Repeat("0", 53), grant, "x", flip(d.code)} {
		d.code = code
		if out := oauthRefused(t, d.poll(), 400, "invalid_grant"); out.Description != "The deferral code is not known." {
			t.Fatalf("%s: %+v", code, out)
		}
	}
	if d.w.opened != d.w.ended {
		t.Fatalf("%d sessions opened, %d ended", d.w.opened, d.w.ended)
	}
}

// flip changes the last character.
func flip(code string) string {
	last := byte('A')
	if code[len(code)-1] == 'A' {
		last = 'B'
	}
	return code[:len(code)-1] + string(last)
}

func TestNobodyWaitsWhoDidNotAskTo(t *testing.T) {
	tc, w := oauthNodes(t, 1)
	n, c := tc.nodes[0], w.registered(tc, t)
	w.wait(c, wire.GrantWaiting)
	for _, mode := range []string{"", "other", "undeferred", "DEFERRED"} {
		out := oauthRefused(t, w.post(c, n, "/oauth/token", w.asClient(c, with("grant_type", clientCC, "audience", "orders/readonly", "completion_mode", mode))), 400, "access_denied")
		if out.Deferral != "" || out.Code != "approval_required" || out.Grant != grant || !strings.Contains(out.Description, "completion_mode=deferred") {
			t.Fatalf("%+v", out)
		}
	}
}

func TestPollsOfADeferralCode(t *testing.T) {
	d := startDeferring(t, 1)
	out := oauthRefused(t, d.poll(), 400, "authorization_pending")
	if out.Deferral != "" || out.Interval != 0 || !strings.Contains(out.Description, "1 of 2") {
		t.Fatalf("a poll repeats what the deferred response said: %+v", out)
	}
	d.turn(wire.GrantApproved)
	got := oauthOK(t, d.poll())
	if got.Credential["password"] != "sesame-password" || got.TokenType != "N_A" {
		t.Fatalf("%+v", got)
	}
	if last := d.w.asked[len(d.w.asked)-1]; len(last.PublicKey) == 0 {
		t.Fatal("the token would not be bound to the proof's key")
	}
	if out := oauthRefused(t, d.poll(), 400, "invalid_grant"); !strings.Contains(out.Description, "redeemed") {
		t.Fatalf("%+v", out)
	}
	if d.w.opened != d.w.ended {
		t.Fatalf("%d sessions opened, %d ended", d.w.opened, d.w.ended)
	}
}

func TestLostAnswerOfAPollIsGivenAgain(t *testing.T) {
	d := startDeferring(t, 1)
	d.turn(wire.GrantApproved)
	send := func(key string) reply {
		d.later()
		r := d.w.prove(d.c, d.n, d.c.formRequest(d.n, "/oauth/token", d.form().Encode()))
		r.Header.Set("Idempotency-Key", key)
		return d.c.send(r)
	}
	oauthOK(t, send("k1"))
	oauthOK(t, send("k1"))
	oauthRefused(t, send("k2"), 400, "invalid_grant")
	oauthRefused(t, d.poll(), 400, "invalid_grant")
	for _, idem := range d.w.idems[1:] {
		if idem.Key != "oauth-deferral:"+grant {
			t.Fatalf("%+v: a code could yield two leases", idem)
		}
	}
}

func TestWhatBecameOfADeferral(t *testing.T) {
	for state, word := range map[string]string{
		wire.GrantWaiting: "authorization_pending", wire.GrantDenied: "access_denied", wire.GrantCancelled: "access_denied", wire.GrantVoid: "access_denied",
		wire.GrantRevoked: "access_denied", wire.GrantExpired: "expired_token", wire.GrantEnded: "invalid_grant", "unheard of": "invalid_grant",
	} {
		d := startDeferring(t, 1)
		d.turn(state)
		d.w.set(func(w *world) { w.grant.EndReason = "sesame: an approver's own words" })
		oauthRefused(t, d.poll(), 400, word)
		if n := len(d.w.idems); n != 1 {
			t.Errorf("%s: collected", state)
		}
	}
	d := startDeferring(t, 1)
	d.turn(wire.GrantApproved)
	d.w.set(func(w *world) { w.now = w.now.Add(2 * time.Hour) })
	oauthRefused(t, d.poll(), 400, "expired_token")

	// What the engine says at the last moment.
	for _, x := range []struct {
		err    error
		status int
		word   string
	}{
		{fault.New(fault.Denied, "grant_void", "No."), 400, "access_denied"},
		{fault.New(fault.ApprovalRequired, "approval_required", "Somebody left."), 400, "authorization_pending"},
		{fault.New(fault.Conflict, "grant_over", "No."), 400, "invalid_grant"},
		{fault.New(fault.Upstream, "target_failed", "No."), 502, "temporarily_unavailable"},
		{errors.New("sesame"), 500, "server_error"},
	} {
		d := startDeferring(t, 1)
		d.turn(wire.GrantApproved)
		d.w.set(func(w *world) { w.err = x.err })
		oauthRefused(t, d.poll(), x.status, x.word)
	}
}

func TestStepUpIsAnInteraction(t *testing.T) {
	d := startDeferring(t, 1)
	d.w.set(func(w *world) { w.grant.StepUp = "passkey" })
	if out := oauthRefused(t, d.poll(), 400, "interaction_required"); out.Interaction == "" {
		t.Fatalf("%+v", out)
	}
	d.w.set(func(w *world) { w.grant.Approvals = []wire.Approval{{Principal: ann, StepUp: true}} })
	oauthRefused(t, d.poll(), 400, "authorization_pending")
	d.w.set(func(w *world) { w.grant.StepUp, w.grant.URL = "passkey", "http://plain.example/#x" })
	if out := oauthRefused(t, d.poll(), 400, "authorization_pending"); out.Interaction != "" {
		t.Fatalf("%+v", out)
	}
}

func TestLaw7StolenDeferralCodeOpensNothing(t *testing.T) {
	d := startDeferring(t, 1)
	d.turn(wire.GrantApproved)

	// Another principal learns nothing from the answer.
	bo := d.tc.newClient(t, "", "dpop")
	d.w.set(func(w *world) { w.keys[bo.key.Thumbprint()] = "human:bo" })
	a, err := bo.key.Assertion(d.w.issuer, "human:bo", "", d.w.clock())
	must(t, err)
	v := d.form()
	v.Set("client_assertion", a)
	if out := oauthRefused(t, d.w.post(bo, d.n, "/oauth/token", v), 400, "invalid_grant"); out.Description != "The deferral code is not known." {
		t.Fatalf("%+v", out)
	}
	// Nor does the same principal get on with another key, registered or not.
	second := d.w.registered(d.tc, t)
	v = d.w.asClient(second, d.form())
	oauthRefused(t, d.w.post(second, d.n, "/oauth/token", v), 400, "invalid_dpop_proof")
	other := d.tc.newClient(t, "", "dpop")
	a, err = d.c.key.Assertion(d.w.issuer, ann, other.key.Thumbprint(), d.w.clock())
	must(t, err)
	v.Set("client_assertion", a)
	oauthRefused(t, d.w.post(other, d.n, "/oauth/token", v), 400, "invalid_dpop_proof")
	// The code alone, and the code with a proof alone, are nobody.
	oauthRefused(t, d.c.send(d.c.formRequest(d.n, "/oauth/token", with("grant_type", deferredGT, "deferral_code", d.code).Encode())), 400, "invalid_dpop_proof")
	d.later()
	oauthRefused(t, d.w.post(d.c, d.n, "/oauth/token", with("grant_type", deferredGT, "deferral_code", d.code)), 401, "invalid_client")
	if len(d.w.idems) != 1 {
		t.Fatal("something was collected")
	}
	// None of it has disturbed the one whose it is.
	oauthOK(t, d.poll())
}

func TestPollsThatComeTooSoon(t *testing.T) {
	d := startDeferring(t, 1)
	early := func() reply { return d.w.post(d.c, d.n, "/oauth/token", d.form()) }
	oauthRefused(t, early(), 400, "slow_down")
	opened := d.w.opened
	oauthRefused(t, early(), 400, "slow_down")
	if d.w.opened != opened {
		t.Fatal("a poll that came too soon was written to the ledger")
	}
	oauthRefused(t, d.poll(), 400, "authorization_pending")
	oauthRefused(t, early(), 400, "slow_down")
	// Who has the code and not the key slows nobody.
	d.later()
	thief := d.tc.newClient(t, "", "dpop")
	oauthRefused(t, d.w.post(thief, d.n, "/oauth/token", d.form()), 401, "invalid_client")
	oauthRefused(t, early(), 400, "authorization_pending")
}

func TestPollsTakeNothingThatChangesTheRequest(t *testing.T) {
	d := startDeferring(t, 1)
	d.turn(wire.GrantApproved)
	for _, name := range []string{"completion_mode", "authorization_details", "audience", "resource", "scope", "subject_token", "mayfly_method", "anything"} {
		v := d.form()
		v.Set(name, "x")
		d.later()
		oauthRefused(t, d.w.post(d.c, d.n, "/oauth/token", v), 400, "invalid_request")
	}
	v := d.form()
	v.Del("deferral_code")
	oauthRefused(t, d.w.post(d.c, d.n, "/oauth/token", v), 400, "invalid_request")
	d.w.set(func(w *world) { w.grant.Kind = wire.GrantChange })
	oauthRefused(t, d.poll(), 400, "invalid_grant")
}

func TestPollWithASessionOfTheSameKey(t *testing.T) {
	d := startDeferring(t, 1)
	out := oauthOK(t, d.w.post(d.c, d.n, "/oauth/token", d.w.asClient(d.c, with("grant_type", clientCC))))
	d.c.token = out.AccessToken
	opened := d.w.opened
	d.turn(wire.GrantApproved)
	d.later()
	oauthOK(t, d.w.post(d.c, d.n, "/oauth/token", with("grant_type", deferredGT, "deferral_code", d.code)))
	if d.w.opened != opened {
		t.Fatal("a session was opened although there was one")
	}
}

func TestPollsGoToTheLeader(t *testing.T) {
	d := startDeferring(t, 2)
	oauthRefused(t, d.w.post(d.c, d.n, "/oauth/token", d.form()), 400, "slow_down")
	d.n = d.tc.nodes[0]
	oauthRefused(t, d.w.post(d.c, d.n, "/oauth/token", d.form()), 400, "slow_down")
	d.n = d.tc.nodes[1]
	d.turn(wire.GrantApproved)
	oauthOK(t, d.poll())
}

func TestDeferralIsCancelledByRevokingItsCode(t *testing.T) {
	d := startDeferring(t, 1)
	revoke := func(by *client, code string) reply {
		return d.w.post(by, d.n, "/oauth/revoke", d.w.asClient(by, with("token", code, "token_type_hint", "urn:ietf:params:oauth:token-type:deferral-code")))
	}
	for _, code := range []string{flip(d.code), "mfd_x"} {
		if r := revoke(d.c, code); r.status != 200 || len(r.body) != 0 {
			t.Fatalf("%d %s", r.status, r.body)
		}
	}
	second := d.w.registered(d.tc, t)
	oauthRefused(t, revoke(second, d.code), 400, "invalid_dpop_proof")
	if d.w.grant.State != wire.GrantWaiting {
		t.Fatal(d.w.grant.State)
	}
	for range 2 {
		if r := revoke(d.c, d.code); r.status != 200 || d.w.grant.State != wire.GrantCancelled {
			t.Fatalf("%d %s", r.status, r.body)
		}
	}
	oauthRefused(t, d.poll(), 400, "access_denied")
	if !slices.Equal(d.w.revoked, nil) {
		t.Fatal(d.w.revoked)
	}
}
