package api_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/api"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/identity"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// leaderAndFollower are two real servers with a cluster port between them.
func leaderAndFollower(t testing.TB, options ...option) (tc *testCluster, leader, follower *testNode) {
	tc = start(t, 2, options...)
	return tc, tc.nodes[0], tc.nodes[1]
}

func TestFollowerPassesOnWhatOnlyTheLeaderMayDo(t *testing.T) {
	tc, leader, follower := leaderAndFollower(t)
	c := tc.newClient(t, sesame, "dpop").fresh(follower)
	r := c.sign(c.request("POST", follower.url+"/api/v1/requests", `{"role":"orders/readonly"}`))
	r.Header.Set("Idempotency-Key", "k1")
	r.Header.Set("Mayfly-Forwarded-Address", "203.0.113.9")
	r.Header.Set("Mayfly-Forwarded", "1")
	ans := c.send(r)
	var out wire.AccessAnswer
	okay(t, ans, &out)
	calls, last, _ := leader.broker.seen()
	if out.Role != "orders/readonly" || calls != 1 || last.Idem == nil || last.Idem.Key != "k1" || last.Session.Principal != "human:ann" {
		t.Fatalf("%+v %d %+v", out, calls, last)
	}
	if last.Address != "127.0.0.1" {
		t.Fatalf("a client chose its own address: %q", last.Address)
	}
	if calls, _, _ := follower.broker.seen(); calls != 0 {
		t.Fatalf("the follower's engine was called %d times", calls)
	}
	for name, v := range ans.header {
		if len(v) != 1 {
			t.Errorf("%s stands there %d times", name, len(v))
		}
	}
	if c.nonce != ans.header.Get("DPoP-Nonce") {
		t.Error("the nonce is not the follower's")
	}
	id := ans.header.Get("X-Request-Id")
	eventually(t, "both nodes log the request under one id", func() bool {
		return strings.Contains(leader.logs.String(), id) && strings.Contains(follower.logs.String(), id)
	})
	// Reads stay.
	okay(t, c.do(follower, "GET", "/whoami", ""), nil)
	if calls, _, _ := follower.broker.seen(); calls != 1 {
		t.Fatal("the follower did not serve a read")
	}
}

func TestLoginIsPassedOn(t *testing.T) {
	tc, leader, follower := leaderAndFollower(t)
	c := tc.newClient(t, "", "dpop")
	okay(t, c.do(follower, "POST", "/login", `{"token":"x"}`), nil)
	if in := leader.broker.login; in.JKT != c.key.Thumbprint() || in.Address != "127.0.0.1" || in.X5T != "" || in.PeerCerts != nil {
		t.Fatalf("the leader took the other node's certificate for the client's: %+v", in)
	}
	m := tc.newClient(t, "", "mtls")
	ans := m.send(m.request("POST", follower.url+"/api/v1/login", `{}`))
	refused(t, ans, 421, api.CodeNotLeader)
	if got := ans.header.Get("Location"); got != leader.url+"/api/v1/login" {
		t.Fatalf("Location %q", got)
	}
}

func TestCertificateCallersAreSentToTheLeader(t *testing.T) {
	tc, leader, follower := leaderAndFollower(t)
	c := tc.newClient(t, "mfs_two", "mtls")
	r := c.request("POST", follower.url+"/api/v1/tasks/t/end?wait=1s", "")
	r.Header.Set("Authorization", "mTLS mfs_two")
	ans := c.send(r)
	refused(t, ans, 421, api.CodeNotLeader)
	if got := ans.header.Get("Location"); got != leader.url+"/api/v1/tasks/t/end?wait=1s" {
		t.Fatalf("Location %q", got)
	}
	r = c.request("POST", ans.header.Get("Location"), "")
	r.Header.Set("Authorization", "mTLS mfs_two")
	okay(t, c.send(r), nil)
	// A read that turns out to need the leader ends the same way.
	follower.broker.set(func(b *fakeBroker) { b.err = fault.New(fault.Unavailable, api.CodeNoLeader, "Not here.") })
	r = c.request("GET", follower.url+"/api/v1/whoami", "")
	r.Header.Set("Authorization", "mTLS mfs_two")
	refused(t, c.send(r), 421, api.CodeNotLeader)
}

func TestReadThatMustBeRecordedGoesToTheLeader(t *testing.T) {
	tc, leader, follower := leaderAndFollower(t)
	c := tc.newClient(t, sesame, "dpop")
	follower.broker.set(func(b *fakeBroker) { b.err = fault.New(fault.Unavailable, api.CodeNoLeader, "Not here.") })
	leader.broker.set(func(b *fakeBroker) { b.err = fault.New(fault.Denied, "", "You may not read this.") })
	refused(t, c.do(follower, "GET", "/leases/lease_1", ""), 403, "denied")
	refused(t, c.do(follower, "GET", "/audit/export", ""), 403, "denied")
	leader.broker.set(func(b *fakeBroker) { b.err, b.lines = nil, 3 })
	if r := c.do(follower, "GET", "/audit/export", ""); r.status != 200 || strings.Count(string(r.body), "\n") != 3 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	okay(t, c.do(follower, "GET", "/whoami", ""), nil)
}

func TestSessionThatThisFollowerHasNotHeardOf(t *testing.T) {
	tc, leader, follower := leaderAndFollower(t, func(c *api.Config) { c.Limits.Failures = 0.15 })
	c := tc.newClient(t, sesame, "dpop")
	follower.broker.set(func(b *fakeBroker) { b.lagging = true })
	okay(t, c.do(follower, "GET", "/whoami", ""), nil)
	if calls, _, _ := leader.broker.seen(); calls != 1 {
		t.Fatalf("%d calls", calls)
	}
	m := tc.newClient(t, "mfs_two", "mtls")
	r := m.request("GET", follower.url+"/api/v1/whoami", "")
	r.Header.Set("Authorization", "mTLS mfs_two")
	refused(t, m.send(r), 421, api.CodeNotLeader)
	// The leader compares the key with the session's, not the follower's word.
	thief := tc.newClient(t, "", "")
	thief.token = sesame
	refused(t, thief.do(follower, "GET", "/whoami", ""), 401, api.CodeWrongKey)
	thief.token = "mfs_guess"
	refused(t, thief.do(follower, "GET", "/whoami", ""), 401, "session_unknown")
	refused(t, thief.do(follower, "GET", "/whoami", ""), 429, api.CodeRateLimited)
}

func TestHazard4LeaderChecksForwardedProofsAgain(t *testing.T) {
	tc, leader, follower := leaderAndFollower(t)
	c := tc.newClient(t, sesame, "dpop").fresh(follower)
	url := leader.url + "/api/v1/requests"
	pass := func(r *http.Request) reply { // as a follower that was broken into would
		t.Helper()
		r.Header.Set("Mayfly-Forwarded", "1")
		r.Header.Set("Mayfly-Forwarded-Address", "203.0.113.9")
		resp, err := leader.node.transport.RoundTrip(r)
		must(t, err)
		defer resp.Body.Close()
		body := make([]byte, 4096)
		n, _ := resp.Body.Read(body)
		return reply{resp.StatusCode, resp.Header, body[:n]}
	}
	fresh := func() *http.Request { return c.sign(c.request("POST", url, `{"role":"a/b"}`)) }

	okay(t, pass(fresh()), nil)
	if _, last, _ := leader.broker.seen(); last.Address != "203.0.113.9" {
		t.Fatalf("address %q", last.Address)
	}
	once := fresh()
	again := c.request("POST", url, `{"role":"a/b"}`)
	again.Header = once.Header.Clone()
	okay(t, pass(once), nil)
	refused(t, pass(again), 401, identity.CodeProofReplayed)

	// What came over the cluster port cannot come again at the front door: there
	// the nonce is of another process.
	direct := fresh()
	refused(t, c.send(direct), 401, identity.CodeProofNonce)

	other := fresh()
	other.URL.Path = "/api/v1/contain"
	refused(t, pass(other), 401, identity.CodeProofInvalid)

	unsigned := fresh()
	unsigned.Header.Del("DPoP")
	refused(t, pass(unsigned), 401, api.CodeNoProof)

	c.nonce = ""
	refused(t, pass(fresh()), 401, identity.CodeProofInvalid)

	certCaller := tc.newClient(t, "mfs_two", "mtls")
	r := certCaller.request("POST", url, `{"role":"a/b"}`)
	r.Header.Set("Authorization", "mTLS mfs_two")
	refused(t, pass(r), 401, api.CodeNoProof)
}

func TestOneHopOnly(t *testing.T) {
	tc, leader, follower := leaderAndFollower(t)
	c := tc.newClient(t, sesame, "dpop")
	tc.mu.Lock()
	tc.leader = "nobody"
	tc.mu.Unlock()
	// node0 gets what it passed on before it lost leadership.
	ans := c.do(follower, "POST", "/requests", `{"role":"a/b"}`)
	refused(t, ans, 503, api.CodeNoLeader)
	if ans.header.Get("Retry-After") != "1" {
		t.Fatalf("Retry-After %q", ans.header.Get("Retry-After"))
	}
	if calls, _, _ := leader.broker.seen(); calls != 0 {
		t.Fatal("the deposed leader served it")
	}
	for _, hops := range []string{"", "2", "x"} {
		r := c.request("GET", leader.url+"/api/v1/whoami", "")
		r.Header.Set("Mayfly-Forwarded", hops)
		r.Header.Set("Mayfly-Forwarded-Address", "203.0.113.9")
		resp, err := leader.node.transport.RoundTrip(r)
		must(t, err)
		if resp.StatusCode != 400 {
			t.Fatalf("hops %q: %d", hops, resp.StatusCode)
		}
		must(t, resp.Body.Close())
	}
}

type failing struct{ err error }

func (f failing) RoundTrip(*http.Request) (*http.Response, error) { return nil, f.err }

func TestLostLeaderIsToldApartFromUnknownOutcome(t *testing.T) {
	tc, leader, follower := leaderAndFollower(t)
	c := tc.newClient(t, sesame, "dpop")
	working := follower.node.transport

	follower.node.transport = failing{errors.New("connection refused")}
	refused(t, c.do(follower, "POST", "/requests", `{"role":"a/b"}`), 503, api.CodeNoLeader)

	follower.node.transport = failing{fault.New(fault.Unavailable, "sealed", "Sealed.")}
	refused(t, c.do(follower, "POST", "/requests", `{"role":"a/b"}`), 503, "sealed")

	follower.node.transport = working
	leader.broker.set(func(b *fakeBroker) {
		b.hold = func(context.Context) error { panic(http.ErrAbortHandler) } // the connection breaks
	})
	refused(t, c.do(follower, "POST", "/tasks/t/end", ""), 503, "indeterminate")
}

func TestWhatConcernsThisNodeStaysHere(t *testing.T) {
	tc, _, follower := leaderAndFollower(t)
	c := tc.newClient(t, sesame, "dpop")
	if r := c.do(follower, "POST", "/sys/seal", ""); r.status != 204 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	if !follower.node.isSealed() || tc.nodes[0].node.isSealed() {
		t.Fatal("another node than the one that was asked was sealed")
	}
}
