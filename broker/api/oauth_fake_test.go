package api_test

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/api"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/identity"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/keys"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

const (
	ann   = "human:ann"
	grant = "grt_01jdz5x0000000000000000000"
	lease = "lse_01jdz5x0000000000000000000"
	jti   = "mf-01jdz5x0000000000000000000-1"
)

// world is what the engines of all fake nodes share for OAuth: who has which
// key, a clock that tests move, and one grant.
type world struct {
	c *cluster

	mu      sync.Mutex
	now     time.Time
	issuer  string
	keys    map[string]string // thumbprint to principal
	spent   map[string]string // evidence to the key that used it
	ci      identity.Attestor
	signer  jose.Signer // of a jwt target
	jwks    []byte
	answer  wire.AccessAnswer
	err     error // of Request, CollectGrant and Lease
	grant   *wire.Grant
	lease   wire.Lease
	asked   []wire.AccessRequest
	idems   []*ledger.Idem
	ended   int // sessions
	opened  int
	revoked []string
}

func (w *world) set(f func(w *world)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(w)
}

func (w *world) clock() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

// oauthBroker is one node's engine in that world.
type oauthBroker struct {
	*fakeBroker
	w *world
}

func (b *oauthBroker) Login(ctx context.Context, in broker.LoginInput) (wire.LoginAnswer, error) {
	att := b.w.ci
	method := in.Method
	if method == "" {
		method = "key"
		m, err := identity.ParseMethod("key", []byte(`{"type":"key"}`))
		if err != nil {
			return wire.LoginAnswer{}, err
		}
		att, err = identity.NewAttestor(m, identity.Deps{Issuer: b.w.issuer, LookupKey: func(jkt string) (string, bool) { p, ok := b.w.keys[jkt]; return p, ok }})
		if err != nil {
			return wire.LoginAnswer{}, err
		}
	} else if method != "ci" {
		return wire.LoginAnswer{}, fault.New(fault.Unauthenticated, "method_unknown", "There is no auth method %q.", in.Method)
	}
	w := b.w
	w.mu.Lock()
	defer w.mu.Unlock()
	who, err := att.Attest(ctx, identity.Evidence{Method: method, Token: secret.New(in.Token), ClientJKT: in.JKT, PeerCerts: in.PeerCerts}, w.now)
	if err != nil {
		return wire.LoginAnswer{}, err
	}
	binding, thumb, typ := "dpop", in.JKT, "DPoP"
	if thumb == "" {
		binding, thumb, typ = "mtls", in.X5T, "mTLS"
	}
	if by, ok := w.spent[who.OneShot]; ok && by != thumb {
		return wire.LoginAnswer{}, fault.New(fault.Unauthenticated, "token_spent", "This evidence was used before. Get a fresh one.")
	}
	w.spent[who.OneShot] = thumb
	w.opened++
	token, _ := identity.MintSession()
	end := w.now.Add(15 * time.Minute)
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	w.c.sessions[token.Reveal()] = ledger.Session{ID: "ses_" + rand.Text(), Principal: who.Principal, Binding: binding, Thumbprint: thumb, ExpiresMS: end.UnixMilli(), CreatedMS: w.now.UnixMilli()}
	return wire.LoginAnswer{SessionToken: token.Reveal(), TokenType: typ, Principal: who.Principal, ExpiresAt: end}, nil
}

func (b *oauthBroker) Logout(_ context.Context, c broker.Caller) error {
	b.w.set(func(w *world) { w.ended++ })
	b.c.mu.Lock()
	defer b.c.mu.Unlock()
	for token, s := range b.c.sessions {
		if s.ID == c.Session.ID {
			delete(b.c.sessions, token)
			return nil
		}
	}
	return fault.New(fault.NotFound, "", "no such session")
}

func (b *oauthBroker) Request(_ context.Context, c broker.Caller, in wire.AccessRequest) (wire.AccessAnswer, error) {
	if err := b.note(c, in); err != nil {
		return wire.AccessAnswer{}, err
	}
	b.w.mu.Lock()
	defer b.w.mu.Unlock()
	b.w.asked, b.w.idems = append(b.w.asked, in), append(b.w.idems, c.Idem)
	out := b.w.answer
	out.Role = in.Role
	return out, b.w.err
}

func (b *oauthBroker) Grant(_ context.Context, c broker.Caller, id string) (wire.Grant, error) {
	b.w.mu.Lock()
	defer b.w.mu.Unlock()
	if b.w.grant == nil || b.w.grant.ID != id {
		return wire.Grant{}, fault.New(fault.NotFound, "grant_not_found", "Grant %s does not exist, or is not yours to see.", id)
	}
	return *b.w.grant, nil
}

func (b *oauthBroker) CollectGrant(_ context.Context, c broker.Caller, id string, in wire.CollectRequest) (wire.AccessAnswer, error) {
	b.w.mu.Lock()
	defer b.w.mu.Unlock()
	w := b.w
	w.asked, w.idems = append(w.asked, wire.AccessRequest{CSR: in.CSR, PublicKey: in.PublicKey}), append(w.idems, c.Idem)
	if w.err != nil {
		return wire.AccessAnswer{}, w.err
	}
	for _, old := range w.idems[:len(w.idems)-1] {
		if old != nil && old.Key == c.Idem.Key && old.Hash != c.Idem.Hash {
			return wire.AccessAnswer{}, fault.New(fault.Conflict, "idempotency_key_reused", "Used for another request.")
		}
	}
	w.grant.State, w.grant.Leases = wire.GrantOpen, []string{lease}
	return w.answer, nil
}

func (b *oauthBroker) CancelGrant(_ context.Context, _ broker.Caller, _ string, _ wire.EndGrantRequest) (wire.Grant, error) {
	b.w.mu.Lock()
	defer b.w.mu.Unlock()
	b.w.grant.State = wire.GrantCancelled
	return *b.w.grant, nil
}

func (b *oauthBroker) Lease(_ context.Context, c broker.Caller, id string) (wire.Lease, error) {
	b.w.mu.Lock()
	defer b.w.mu.Unlock()
	if b.w.lease.ID != id || b.w.lease.Principal != c.Session.Principal {
		return wire.Lease{}, fault.New(fault.NotFound, "lease_not_found", "Lease %s does not exist or is not yours.", id)
	}
	return b.w.lease, b.w.err
}

func (b *oauthBroker) Revoke(_ context.Context, _ broker.Caller, id string, _ wire.RevokeRequest) (wire.Lease, error) {
	b.w.mu.Lock()
	defer b.w.mu.Unlock()
	b.w.revoked = append(b.w.revoked, id)
	b.w.lease.State = "ended"
	return b.w.lease, nil
}

func (b *oauthBroker) Publish(context.Context, string) ([]byte, error) {
	b.w.mu.Lock()
	defer b.w.mu.Unlock()
	return b.w.jwks, nil
}

// oauthNodes runs n nodes in one world.
func oauthNodes(t testing.TB, n int, options ...option) (*testCluster, *world) {
	t.Helper()
	w := &world{now: now, keys: map[string]string{}, spent: map[string]string{},
		answer: wire.AccessAnswer{Status: "issued", GrantID: grant, LeaseID: lease, TaskID: "tsk_1", DecisionID: "dec_1", ExpiresAt: now.Add(10 * time.Minute),
			Scope:      scope.Scope{{Type: "database", Identifier: "orders", Actions: []string{"select"}}},
			Credential: map[string]string{"username": "mf_x", "password": "sesame-password"}}}
	tc := start(t, n, append(options, func(cfg *api.Config) {
		inner := cfg.Engine
		cfg.Clock = w.clock
		w.issuer = cfg.ExternalURLs[0]
		cfg.Engine = func() (api.Broker, error) {
			b, err := inner()
			if err != nil {
				return nil, err
			}
			return &oauthBroker{b.(*fakeBroker), w}, nil
		}
	})...)
	w.c = tc.cluster
	w.prepareIssuers(t)
	return tc, w
}

// prepareIssuers gives the world a CI issuer whose tokens log in, and a jwt
// target. Both sign with the same key, since it is only a test's.
func (w *world) prepareIssuers(t testing.TB) {
	t.Helper()
	k, err := keys.Generate(keys.P256)
	must(t, err)
	cert, err := k.Certificate("issuer", now, time.Hour)
	must(t, err)
	private := jose.JSONWebKey{Key: cert.PrivateKey, KeyID: "k1", Algorithm: "ES256", Use: "sig"}
	w.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: private}, nil)
	must(t, err)
	w.jwks, err = json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{private.Public()}})
	must(t, err)
	spec, err := json.Marshal(map[string]any{"type": "jwt", "issuer": "https://ci.example", "jwks": json.RawMessage(w.jwks), "audience": "mayfly",
		"bind": []any{map[string]any{"when": map[string]string{"sub": "deploy"}, "as": "workload:deploy"}}})
	must(t, err)
	m, err := identity.ParseMethod("ci", spec)
	must(t, err)
	w.ci, err = identity.NewAttestor(m, identity.Deps{})
	must(t, err)
}

// sign makes a JWT with the issuers' key.
func (w *world) sign(t testing.TB, claims map[string]any) string {
	t.Helper()
	raw, err := json.Marshal(claims)
	must(t, err)
	jws, err := w.signer.Sign(raw)
	must(t, err)
	out, err := jws.CompactSerialize()
	must(t, err)
	return out
}

// wait puts a grant of c's into the world, and makes requests wait for it.
func (w *world) wait(c *client, state string) {
	until := w.clock().Add(time.Hour)
	doc, err := json.Marshal(map[string]any{"type": "mayfly.grant.v1", "grant_id": grant, "nonce": strings.Repeat("n", 43),
		"requester": map[string]string{"principal": ann, "key": c.key.Thumbprint()}})
	must(c.t, err)
	w.set(func(w *world) {
		w.grant = &wire.Grant{ID: grant, Kind: wire.GrantAccess, State: state, Principal: ann, CollectBefore: &until, Document: doc,
			GrantWay: wire.GrantWay{URL: w.issuer + "/grants/" + grant}, Needs: []wire.Need{{Group: "dba", Required: 2, Have: 1}}}
		w.answer.Status = "waiting"
	})
}

// registered is a client whose key is ann's, and that is not logged in.
func (w *world) registered(tc *testCluster, t testing.TB) *client {
	t.Helper()
	c := tc.newClient(t, "", "dpop")
	w.set(func(w *world) { w.keys[c.key.Thumbprint()] = ann })
	return c
}

// assertion is c's own, valid now.
func (w *world) assertion(c *client) string {
	c.t.Helper()
	a, err := c.key.Assertion(w.issuer, ann, "", w.clock())
	must(c.t, err)
	return a
}

// with returns a form of names and values in turn.
func with(pairs ...string) url.Values {
	v := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		v.Add(pairs[i], pairs[i+1])
	}
	return v
}

// asClient adds c's authentication to a form.
func (w *world) asClient(c *client, v url.Values) url.Values {
	v.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
	v.Set("client_assertion", w.assertion(c))
	return v
}

// formRequest is an unsigned call of an OAuth endpoint.
func (c *client) formRequest(n *testNode, path, body string) *http.Request {
	r := c.request("POST", n.url+path, body)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return r
}

// prove adds a proof with n's nonce at the world's time, and the session.
func (w *world) prove(c *client, n *testNode, r *http.Request) *http.Request {
	c.t.Helper()
	c.fresh(n)
	proof, err := c.key.DPoP(r.Method, r.URL.String(), c.nonce, c.token, w.clock())
	must(c.t, err)
	if c.token != "" {
		r.Header.Set("Authorization", "DPoP "+c.token)
	}
	r.Header.Set("DPoP", proof)
	return r
}

// post sends a form to n with a proof.
func (w *world) post(c *client, n *testNode, path string, v url.Values) reply {
	c.t.Helper()
	return c.send(w.prove(c, n, c.formRequest(n, path, v.Encode())))
}

// oauthAnswer is what the token endpoint says.
type oauthAnswer struct {
	AccessToken     string            `json:"access_token"`
	IssuedTokenType string            `json:"issued_token_type"`
	TokenType       string            `json:"token_type"`
	ExpiresIn       int64             `json:"expires_in"`
	Details         json.RawMessage   `json:"authorization_details"`
	Credential      map[string]string `json:"credential"`
	LeaseID         string            `json:"lease_id"`

	Error       string `json:"error"`
	Description string `json:"error_description"`
	Code        string `json:"code"`
	Decision    string `json:"decision_id"`
	Deferral    string `json:"deferral_code"`
	Interval    int    `json:"interval"`
	Interaction string `json:"interaction_uri"`
	Grant       string `json:"grant_id"`
}

// oauthOK checks a success in full.
func oauthOK(t testing.TB, r reply) (out oauthAnswer) {
	t.Helper()
	okay(t, r, &out)
	if r.header.Get("Cache-Control") != "no-store" || r.header.Get("Content-Type") != "application/json" {
		t.Fatalf("headers %v", r.header)
	}
	return out
}

// oauthRefused checks a refusal in full (RFC 6749 §5.2).
func oauthRefused(t testing.TB, r reply, status int, word string) (out oauthAnswer) {
	t.Helper()
	must(t, json.Unmarshal(r.body, &out))
	if r.status != status || out.Error != word || out.Description == "" || out.Code == "" {
		t.Fatalf("%d %s; want %d %s with a description and a code", r.status, r.body, status, word)
	}
	if r.header.Get("Cache-Control") != "no-store" || r.header.Get("Content-Type") != "application/json" {
		t.Fatalf("headers %v", r.header)
	}
	if (status == 401) != (r.header.Get("WWW-Authenticate") != "") {
		t.Fatalf("%d with WWW-Authenticate %q", status, r.header.Get("WWW-Authenticate"))
	}
	if strings.ContainsFunc(out.Description, func(r rune) bool { return r < ' ' || r > '~' || r == '"' || r == '\\' }) {
		t.Fatalf("error_description has characters that RFC 6749 does not allow: %q", out.Description)
	}
	if out.AccessToken != "" || strings.Contains(string(r.body), "sesame") {
		t.Fatalf("a refusal holds a secret: %s", r.body)
	}
	return out
}

// part decodes one part of a JWT.
func part(t testing.TB, jwt string, n int) (out map[string]any) {
	t.Helper()
	raw, err := base64.RawURLEncoding.DecodeString(strings.Split(jwt, ".")[n])
	must(t, err)
	must(t, json.Unmarshal(raw, &out))
	return out
}
