package nats_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/nats-io/jwt/v2"
	natsgo "github.com/nats-io/nats.go"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/nats"
	"github.com/mayfly-broker/mayfly/issuers/nats/natstest"
	"github.com/mayfly-broker/mayfly/scope"
)

// tried is what one client tries, and whether the server lets it.
type tried struct {
	what string
	do   func(nc *natsgo.Conn) error
	ok   bool
}

func publishes(subject string, ok bool) tried {
	return tried{"publish on " + subject, func(nc *natsgo.Conn) error { return nc.Publish(subject, []byte("x")) }, ok}
}

func subscribes(subject string, ok bool) tried {
	return tried{"subscribe to " + subject, func(nc *natsgo.Conn) error { _, err := nc.SubscribeSync(subject); return err }, ok}
}

func (f *fixture) try(c issuers.Credential, all ...tried) {
	f.t.Helper()
	nc := f.as(c)
	for _, x := range all {
		if no := refused(f.t, nc, func() error { return x.do(nc) }); no == x.ok {
			f.t.Errorf("%s: allowed is %v; want %v", x.what, !no, x.ok)
		}
	}
}

// A client does what its scope says, nothing else, and nothing at all after the end.
func TestLaw3NATSUserDoesNoMoreThanItsScope(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	l := lease(append(allow([]string{"publish"}, "orders.eu.*", "jobs.+.done"), allow([]string{"subscribe"}, "news.*")...))
	c := f.mint(is, l)
	f.try(c,
		publishes("orders.eu.1", true), publishes("orders.eu.1.2", true), publishes("jobs.7.done", true),
		publishes("orders.eu", false), publishes("orders.us.1", false), publishes("jobs.7", false), publishes("jobs.7.8.done", false), publishes("news.1", false), publishes("orders", false),
		publishes("$SYS.REQ.USER.INFO", false), publishes("$SYS.REQ.SERVER.PING", false), publishes("$JS.API.INFO", false), publishes("_INBOX.x.y", false),
		subscribes("news.1", true), subscribes("news.>", true), subscribes("news.*", true),
		subscribes("orders.eu.1", false), subscribes(">", false), subscribes("*.1", false), subscribes("_INBOX.>", false), subscribes(c.Public["inbox_prefix"]+".>", false), subscribes("$SYS.>", false),
	)
	f.withdraw(is, l)
	if nc, err := f.dial(c); err == nil {
		nc.Close()
		t.Error("after the end the client logs in")
	}
}

// A scope with one direction alone leaves the other one shut: to NATS, an empty
// list is everything.
func TestNothingSaidIsNothingAllowed(t *testing.T) {
	f := newFixture(t, shared).offline()
	is := f.open(1)
	f.try(f.mint(is, lease(allow([]string{"publish"}, "a"))), publishes("a", true), subscribes("a", false), subscribes("b", false), subscribes(">", false))
	f.try(f.mint(is, lease(allow([]string{"subscribe"}, "a"))), subscribes("a", true), publishes("a", false), publishes("b", false))
	f.try(f.mint(is, lease(allow([]string{"request"}, "a"))), publishes("a", true), subscribes("a", false))
	f.try(f.mint(is, lease(allow([]string{"reply"}, "a"))), subscribes("a", true), publishes("a", false), publishes("_INBOX.x", false))
}

// Every subject means those of people, also through a wildcard subscription.
func TestLaw3NATSEverySubjectLeavesTheServersOwnOut(t *testing.T) {
	f := newFixture(t, shared).offline()
	c := f.mint(f.open(1), lease(allow([]string{"publish", "subscribe"})))
	f.try(c, publishes("any.thing", true), publishes("$SYS.REQ.USER.INFO", false), publishes("$JS.API.INFO", false), publishes("$KV.x.y", false), publishes("_INBOX.x.y", false),
		subscribes("any.thing", true), subscribes("_INBOX.x", false), subscribes("$SYS.x", false), subscribes("$KV.x.y", false))
	nc := f.as(c)
	sub, err := nc.SubscribeSync(">")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	admin := shared.AccountConn(t)
	for _, s := range []string{"_INBOX.secret.1", "$KV.bucket.key", "$SRV.PING", "heard"} {
		if err := admin.Publish(s, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	m, err := sub.NextMsg(10 * time.Second)
	if err != nil || m.Subject != "heard" {
		t.Fatalf("heard %v, %v; want the subject heard alone", m, err)
	}
}

// Requests are answered in an inbox that no other lease can hear, and a service
// answers what it was asked and nothing else.
func TestLaw3NATSInboxesArePrivate(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	service := f.mint(is, lease(allow([]string{"reply"}, "svc.*")))
	client, other := f.mint(is, lease(allow([]string{"request"}, "svc.*"))), f.mint(is, lease(allow([]string{"request"}, "svc.*")))
	r := make(refusals, 8)
	srv := f.as(service, r.option())
	if _, err := srv.Subscribe("svc.*", func(m *natsgo.Msg) {
		_ = m.Respond([]byte("once"))
		_ = m.Respond([]byte("twice"))
	}); err != nil {
		t.Fatal(err)
	}
	if err := srv.Flush(); err != nil {
		t.Fatal(err)
	}
	nc := f.as(client)
	m, err := nc.Request("svc.add", nil, 10*time.Second)
	if err != nil || string(m.Data) != "once" {
		t.Fatalf("the answer is %v, %v", m, err)
	}
	if !strings.HasPrefix(m.Subject, client.Public["inbox_prefix"]+".") {
		t.Errorf("the answer came to %s; the lease's own inbox is below %s", m.Subject, client.Public["inbox_prefix"])
	}
	select {
	case <-r: // the second answer
	case <-time.After(time.Minute):
		t.Error("a service may answer a request twice")
	}
	f.try(other, subscribes(other.Public["inbox_prefix"]+".>", true), subscribes(client.Public["inbox_prefix"]+".>", false), subscribes(m.Subject, false), subscribes("_INBOX.>", false), subscribes("_INBOX.*", false))
}

// JetStream's own API is for those whose scope names it.
func TestJetStreamByName(t *testing.T) {
	s := natstest.Start(t, natstest.Config(`jetstream { store_dir: "jetstream", max_mem: 16M, max_file: 16M }`))
	f := newFixture(t, s).offline()
	admin, err := s.AccountConn(t).JetStream()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := admin.AddStream(&natsgo.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}}); err != nil {
		t.Fatal(err)
	}
	c := f.mint(f.open(1), lease(allow([]string{"jetstream"}, "$JS.API.STREAM.INFO.ORDERS", "$JS.API.STREAM.NAMES")))
	nc := f.as(c)
	m, err := nc.Request("$JS.API.STREAM.INFO.ORDERS", nil, 10*time.Second)
	if err != nil || !strings.Contains(string(m.Data), `"name":"ORDERS"`) {
		t.Fatalf("the stream's info: %v, %v", m, err)
	}
	f.try(c, publishes("$JS.API.STREAM.DELETE.ORDERS", false), publishes("$JS.API.STREAM.PURGE.ORDERS", false), publishes("$JS.API.INFO", false), publishes("orders.1", false))
}

// The widest scope that is accepted still fits the line by which clients log in.
func TestWidestScopeLogsIn(t *testing.T) {
	f := newFixture(t, shared).offline()
	f.spec["users"] = map[string]any{"source_networks": []string{"127.0.0.0/8", "10.0.0.0/8"}, "connection_types": []string{"STANDARD", "WEBSOCKET"}, "max_subscriptions": 1000, "max_payload": 65536}
	var widest scope.Scope
	for n := 1; n < 64; n++ {
		s := allow([]string{"publish", "request", "reply"}, long(n)...)
		if (nats.Kind{}).CheckScope(f.raw(), s) != nil {
			break
		}
		widest = s
	}
	if widest == nil || len(widest[0].Locations) == 63 {
		t.Fatal("no scope is too wide")
	}
	nc := f.as(f.mint(f.open(1), lease(widest)), natsgo.Name(strings.Repeat("n", 200)))
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
}

func TestUsersLimits(t *testing.T) {
	f := newFixture(t, shared).offline()
	f.spec["users"] = map[string]any{"source_networks": []string{"10.0.0.0/8"}}
	if nc, err := f.dial(f.mint(f.open(1), lease(allow([]string{"publish"}, "a")))); err == nil {
		nc.Close()
		t.Error("a client outside users.source_networks logs in")
	}
	f.spec["users"] = map[string]any{"connection_types": []string{"MQTT"}}
	if nc, err := f.dial(f.mint(f.open(1), lease(allow([]string{"publish"}, "a")))); err == nil {
		nc.Close()
		t.Error("a client with a connection type that is not allowed logs in")
	}
	f.spec["users"] = map[string]any{"max_payload": 10, "max_subscriptions": 1}
	nc := f.as(f.mint(f.open(1), lease(allow([]string{"publish", "subscribe"}, "a"))))
	if err := errors.Join(nc.Publish("a", make([]byte, 100)), nc.FlushTimeout(5*time.Second)); err == nil {
		t.Error("a message larger than users.max_payload is taken")
	}
}

func jwk(t *testing.T, key any) json.RawMessage {
	t.Helper()
	out, err := json.Marshal(jose.JSONWebKey{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// The requester's own key never leaves it: what is delivered is of no use without.
func TestRequestersOwnKey(t *testing.T) {
	f := newFixture(t, shared).offline()
	f.spec["requester_keys"] = true
	is := f.open(1)
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	l := lease(allow([]string{"publish"}, "a"))
	l.PublicKey = jwk(t, public)
	c := f.mint(is, l)
	for _, field := range []string{"seed", "creds"} {
		if _, there := c.Secret[field]; there {
			t.Errorf("%s is delivered beside the requester's own key", field)
		}
	}
	login := func(key ed25519.PrivateKey) error {
		nc, err := f.server.Dial(natsgo.UserJWT(func() (string, error) { return c.Secret["jwt"].Reveal(), nil }, func(nonce []byte) ([]byte, error) { return ed25519.Sign(key, nonce), nil }))
		if err == nil {
			nc.Close()
		}
		return err
	}
	if err := login(private); err != nil {
		t.Errorf("the requester cannot log in by its key: %v", err)
	}
	_, stranger, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if login(stranger) == nil {
		t.Error("another key logs in with the requester's JWT")
	}
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]json.RawMessage{"P-256": jwk(t, &p256.PublicKey), "a private key": jwk(t, private), "no JWK": json.RawMessage(`"x"`), "too long": json.RawMessage(`"` + strings.Repeat("x", 5000) + `"`)} {
		bad := lease(allow([]string{"publish"}, "a"))
		bad.PublicKey = key
		if _, err := is.Mint(t.Context(), bad); issuers.KindOf(err) != issuers.Refused {
			t.Errorf("%s: %v; want refused", name, err)
		}
	}
	delete(f.spec, "requester_keys")
	if c := f.mint(f.open(1), l); c.Secret["creds"].IsZero() {
		t.Error("where requesters' keys are not asked for, the broker makes one")
	}
}

// What is delivered says what it is, and what a client needs besides.
func TestCredential(t *testing.T) {
	f := newFixture(t, shared)
	l := lease(allow([]string{"request"}, "a"))
	c := f.mint(f.open(1), l)
	u, err := jwt.DecodeUserClaims(c.Secret["jwt"].Reveal())
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case u.Name != l.Name, u.Subject != c.Public["user_key"], u.IssuerAccount != shared.Account, u.BearerToken, u.Expires > l.NotAfter.Unix()-1, u.NotBefore > l.NotBefore.Unix():
		t.Errorf("the claims: %s", u)
	case c.Public["url"] != "nats://"+shared.Address(), c.Public["inbox_prefix"] != "_INBOX."+l.ID, c.Env["NATS_URL"] != "url":
		t.Errorf("the credential: %v", c.Public)
	}
	vr := jwt.CreateValidationResults()
	u.Validate(vr)
	if !vr.IsEmpty() {
		t.Errorf("the claims are not valid: %v", vr.Issues)
	}
}
