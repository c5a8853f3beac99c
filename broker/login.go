package broker

import (
	"bytes"
	"context"
	"crypto"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/identity"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/policy"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/secret"
)

// Names of the built-in methods; an AuthMethod object cannot take them.
const (
	methodKey    = "key"
	methodEnroll = "enroll" // and methodPasskey
)

// LoginInput is a login with what the connection has proven.
type LoginInput struct {
	wire.LoginRequest
	// JKT is the thumbprint that a DPoP proof in the same request has proven.
	JKT string
	// PeerCerts are the TLS client's certificates; X5T is the first one's
	// x5t#S256.
	PeerCerts []*x509.Certificate
	X5T       string
	Address   string
}

// binding returns how the session will be bound. A session without a key is
// never opened here (law 7).
func (in LoginInput) binding() (kind, thumbprint string, err error) {
	switch {
	case in.JKT != "":
		return "dpop", in.JKT, nil
	case in.X5T != "":
		return "mtls", in.X5T, nil
	default:
		return "", "", fault.New(fault.Unauthenticated, "proof_missing", "Prove a key with the login: a DPoP header (RFC 9449) or a TLS client certificate.")
	}
}

// keyThumbprint is the RFC 7638 thumbprint of the proven key, whichever way it
// was proven.
func (in LoginInput) keyThumbprint() (string, error) {
	if in.JKT != "" {
		return in.JKT, nil
	}
	if len(in.PeerCerts) == 0 {
		return "", nil
	}
	return identity.KeyThumbprint(crypto.PublicKey(in.PeerCerts[0].PublicKey))
}

// Login opens a key-bound session on evidence of who the client is.
func (e *Engine) Login(ctx context.Context, in LoginInput) (wire.LoginAnswer, error) {
	bind, thumb, err := in.binding()
	if err != nil {
		return wire.LoginAnswer{}, err
	}
	var cmd ledger.OpenSession
	if in.EnrolmentToken != "" {
		cmd, err = e.enrolmentSession(in)
	} else {
		cmd, err = e.attestedSession(ctx, in)
	}
	if err != nil {
		return wire.LoginAnswer{}, err
	}
	token, hash := identity.MintSession()
	s := &cmd.Session
	s.ID, s.TokenHash = ledger.SessionID(hash), hex.EncodeToString(hash[:])
	s.Binding, s.Thumbprint, s.Address = bind, thumb, in.Address
	h := e.header(Caller{Session: ledger.Session{Principal: s.Principal, ID: s.ID, Instance: s.Instance}, Address: in.Address})
	if _, err := e.commit(ctx, h, &cmd); err != nil {
		if fe := fault.As(err); fe.Kind == fault.NotFound {
			return wire.LoginAnswer{}, fault.New(fault.Unauthenticated, "principal_unknown", "%s is attested, but is no principal here. An operator can add it.", s.Principal)
		}
		return wire.LoginAnswer{}, err
	}
	typ := "DPoP"
	if bind == "mtls" {
		typ = "mTLS"
	}
	return wire.LoginAnswer{
		SessionToken: token.Reveal(), TokenType: typ, SessionID: s.ID, Principal: s.Principal,
		Instance: s.Instance, Method: s.Method, ExpiresAt: at(s.ExpiresMS), Founder: in.EnrolmentToken != "" && e.isFounder(s.Principal),
	}, nil
}

func (e *Engine) isFounder(principal string) (ok bool) {
	_ = e.view(func(q ledger.Query) error { // a hint to the client, nothing more
		g, _ := q.Genesis()
		ok = slices.ContainsFunc(g.Founders, func(f ledger.Founder) bool { return f.Principal == principal })
		return nil
	})
	return ok
}

// enrolmentSession spends a one-time token, which registers the proven key.
func (e *Engine) enrolmentSession(in LoginInput) (cmd ledger.OpenSession, err error) {
	tok, err := identity.ParseEnrolToken(secret.New(in.EnrolmentToken))
	if err != nil {
		return cmd, err
	}
	hash, rec, ok, err := e.enrolment(tok)
	if err != nil {
		return cmd, err
	}
	if !ok {
		return cmd, fault.New(fault.Unauthenticated, ledger.CodeTokenSpent, "The enrolment token is unknown, spent or expired. Have a new one made with: mayfly principal enroll")
	}
	thumb, err := in.keyThumbprint()
	if err != nil {
		return cmd, err
	}
	jwk, err := publicJWK(in.JWK, thumb)
	if err != nil {
		return cmd, err
	}
	cmd.EnrolmentHash = hash
	cmd.NewKey = &ledger.Key{Thumbprint: thumb, Principal: rec.Principal, Use: ledger.UseSession, JWK: jwk}
	cmd.Session = ledger.Session{Principal: rec.Principal, Method: methodEnroll, AttestedKey: true, KeyThumbprint: thumb,
		ExpiresMS: e.now().Add(e.cfg.Timing.Session).UnixMilli()}
	return cmd, nil
}

// enrolment finds a token's record: the token comes as our client hands it in, or
// whole, as a person may paste it into a page.
func (e *Engine) enrolment(tok identity.EnrolToken) (hash string, rec ledger.Enrolment, ok bool, err error) {
	err = e.view(func(q ledger.Query) error {
		for _, t := range []identity.EnrolToken{tok, tok.Presented()} {
			sum := t.Hash()
			hash = hex.EncodeToString(sum[:])
			if rec, ok = q.Enrolment(hash); ok {
				break
			}
		}
		return nil
	})
	return hash, rec, ok, err
}

// publicJWK checks that raw is a public key with the proven thumbprint and
// returns it in canonical form. An empty thumb skips the comparison.
func publicJWK(raw json.RawMessage, thumb string) (json.RawMessage, error) {
	var k jose.JSONWebKey
	if len(raw) == 0 || len(raw) > 4096 || json.Unmarshal(raw, &k) != nil || !k.Valid() || !k.IsPublic() {
		return nil, fault.New(fault.Invalid, "jwk_malformed", "jwk must be the client's public key as a JWK (RFC 7517), P-256 or Ed25519.")
	}
	got, err := identity.KeyThumbprint(k.Key)
	if err != nil {
		return nil, fault.Wrap(err, fault.Invalid, "jwk_malformed", "jwk must be a P-256 or Ed25519 public key.")
	}
	if thumb != "" && !identity.SameThumbprint(got, thumb) {
		return nil, fault.New(fault.Invalid, "jwk_not_proven", "jwk is another key than the one that the request proves.")
	}
	return json.Marshal(jose.JSONWebKey{Key: k.Key})
}

// attestedSession verifies evidence by its method.
func (e *Engine) attestedSession(ctx context.Context, in LoginInput) (cmd ledger.OpenSession, err error) {
	name := in.Method
	if name == "" {
		name = methodKey
	}
	att, err := e.methods.attestor(e, name)
	if err != nil {
		return cmd, err
	}
	now := e.now()
	who, err := att.Attest(ctx, identity.Evidence{Method: name, Token: secret.New(in.Token), ClientJKT: in.JKT, PeerCerts: in.PeerCerts}, now)
	if err != nil {
		return cmd, err
	}
	end := now.Add(e.cfg.Timing.Session)
	if !who.ExpiresAt.IsZero() && who.ExpiresAt.Before(end) {
		end = who.ExpiresAt
	}
	cmd.Session = ledger.Session{Principal: who.Principal, Instance: who.Instance, Method: name, AttestedKey: who.AttestedKey,
		Facts: who.Facts, ExpiresMS: end.UnixMilli()}
	if name == methodKey {
		if cmd.Session.KeyThumbprint, err = in.keyThumbprint(); err != nil {
			return cmd, err
		}
	}
	if who.OneShot != "" {
		cmd.OneShot, cmd.OneShotUntilMS = who.OneShot, who.OneShotUntil.UnixMilli()
	}
	return cmd, nil
}

// methods keeps the attestor of each AuthMethod until its document changes.
type methods struct {
	mu sync.Mutex
	by map[string]methodEntry
}

type methodEntry struct {
	version  uint64
	attestor identity.Attestor
}

func (m *methods) attestor(e *Engine, name string) (identity.Attestor, error) {
	o := ledger.Object{Spec: json.RawMessage(`{"type":"key"}`)}
	found := name == methodKey
	if !found {
		err := e.view(func(q ledger.Query) error { o, found = q.Object(ledger.KindAuthMethod, name); return nil })
		if err != nil {
			return nil, err
		}
	}
	if !found {
		return nil, fault.New(fault.Unauthenticated, "method_unknown", "There is no auth method %q.", name)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if cur, ok := m.by[name]; ok && cur.version == o.Version {
		return cur.attestor, nil
	}
	method, err := identity.ParseMethod(name, o.Spec)
	if err != nil {
		return nil, err
	}
	att, err := identity.NewAttestor(method, identity.Deps{
		HTTP: e.cfg.HTTP, Issuer: e.cfg.Issuer, ReadFile: os.ReadFile,
		LookupKey: func(jkt string) (principal string, ok bool) {
			err := e.view(func(q ledger.Query) error {
				k, found := q.Key(jkt)
				principal, ok = k.Principal, found && k.Use == ledger.UseSession
				return nil
			})
			return principal, ok && err == nil
		},
	})
	if err != nil {
		return nil, err
	}
	if m.by == nil {
		m.by = map[string]methodEntry{}
	}
	m.by[name] = methodEntry{version: o.Version, attestor: att}
	return att, nil
}

// Session returns the live session of an opaque token. The caller must still
// prove the session's key.
func (e *Engine) Session(_ context.Context, token string) (ledger.Session, error) {
	var s ledger.Session
	if err := e.cfg.Log.Fresh(); err != nil {
		return s, err
	}
	hash, err := identity.HashSession(secret.New(token))
	if err != nil {
		return s, err
	}
	now := e.now().UnixMilli()
	err = e.view(func(q ledger.Query) error {
		var ok bool
		s, ok = q.Session(ledger.SessionID(hash))
		want, _ := hex.DecodeString(s.TokenHash)
		switch {
		case !ok || subtle.ConstantTimeCompare(want, hash[:]) != 1 || s.ExpiresMS <= max(now, q.Clock()):
			return fault.New(fault.Unauthenticated, "session_ended", "The session is unknown or has ended. Log in again.")
		case q.IsFrozen(ledger.KindPrincipal, s.Principal):
			return fault.New(fault.Unauthenticated, ledger.CodeFrozen, "%s is contained.", s.Principal)
		}
		return nil
	})
	return s, err
}

// Logout ends the caller's session.
func (e *Engine) Logout(ctx context.Context, c Caller) error {
	_, err := e.commit(ctx, e.header(c), &ledger.EndSession{ID: c.Session.ID})
	return err
}

// Whoami describes the caller.
func (e *Engine) Whoami(_ context.Context, c Caller) (wire.Whoami, error) {
	s := c.Session
	out := wire.Whoami{Principal: s.Principal, Instance: s.Instance, SessionID: s.ID, Binding: s.Binding, Method: s.Method,
		AttestedKey: s.AttestedKey, Facts: s.Facts, ExpiresAt: at(s.ExpiresMS)}
	err := e.view(func(q ledger.Query) error {
		on, err := e.decider.at(q)
		if err != nil {
			return err
		}
		out.Groups = append([]string{}, on.members.groups(s.Principal, e.now())...)
		var p ledger.PrincipalSpec
		q.Spec(ledger.KindPrincipal, s.Principal, &p)
		out.Owner = p.Owner
		g, _ := q.Genesis()
		out.Cluster = g.Cluster
		return nil
	})
	return out, err
}

// Keys lists the registered keys of a principal; "" is the caller.
func (e *Engine) Keys(ctx context.Context, c Caller, principal string) ([]wire.Key, error) {
	if err := e.overPrincipal(ctx, c, &principal, policy.ActionRead, e.allow, nil); err != nil {
		return nil, err
	}
	out := []wire.Key{}
	err := e.view(func(q ledger.Query) error {
		for _, k := range q.KeysOf(principal) {
			out = append(out, wireKey(k))
		}
		return nil
	})
	return out, err
}

func wireKey(k ledger.Key) wire.Key {
	out := wire.Key{Thumbprint: k.Thumbprint, Principal: k.Principal, Use: k.Use, JWK: k.JWK, AddedAt: at(k.AddedMS), AddedBy: k.AddedBy}
	if k.Approve != nil {
		out.Kind = k.Approve.Kind
		out.SSH, _ = k.Approve.SSH() // only an SSH key has that form
	}
	return out
}

// asks is one of the ways to ask policy: [Engine.allow] and its like.
type asks func(ctx context.Context, c Caller, ask question) (ruling, error)

// overPrincipal lets the caller act on itself; on others as policy says. It
// fills in an empty principal and the header's decision.
func (e *Engine) overPrincipal(ctx context.Context, c Caller, principal *string, action string, allow asks, h *ledger.Header) error {
	if *principal == "" {
		*principal = c.Session.Principal
	}
	if *principal == c.Session.Principal {
		return nil
	}
	r, err := allow(ctx, c, question{action: action, resource: policy.Resource{Kind: ledger.KindPrincipal, Name: *principal}})
	if err == nil && h != nil {
		h.DecisionID, h.Decision = r.ID, r.encode()
	}
	return err
}

// AddKey registers a public key.
func (e *Engine) AddKey(ctx context.Context, c Caller, in wire.AddKeyRequest) (wire.Key, error) {
	h := e.header(c)
	if in.Use == "" {
		in.Use = ledger.UseSession
	}
	if in.Use == ledger.UseApprove {
		return e.addKeyToApprove(ctx, c, in)
	}
	if err := e.overPrincipal(ctx, c, &in.Principal, policy.ActionAdminister, e.allow, &h); err != nil {
		return wire.Key{}, err
	}
	jwk, err := publicJWK(in.JWK, "")
	if err != nil {
		return wire.Key{}, err
	}
	var k jose.JSONWebKey
	if err := json.Unmarshal(jwk, &k); err != nil {
		return wire.Key{}, err
	}
	thumb, err := identity.KeyThumbprint(k.Key)
	if err != nil {
		return wire.Key{}, err
	}
	key := ledger.Key{Thumbprint: thumb, Principal: in.Principal, Use: in.Use, JWK: jwk}
	if _, err := e.commit(ctx, h, &ledger.AddKey{Key: key}); err != nil {
		return wire.Key{}, err
	}
	err = e.view(func(q ledger.Query) error { key, _ = q.Key(thumb); return nil })
	return wireKey(key), err
}

// RemoveKey removes a key and ends the sessions that it opened.
func (e *Engine) RemoveKey(ctx context.Context, c Caller, principal, thumbprint string) error {
	h := e.header(c)
	if err := e.overPrincipal(ctx, c, &principal, policy.ActionAdminister, e.allowTaking, &h); err != nil {
		return err
	}
	_, err := e.commit(ctx, h, &ledger.RemoveKey{Principal: principal, Thumbprint: thumbprint})
	return err
}

// Bounds on enrolment tokens.
const (
	defaultEnrolTTL = time.Hour
	maxEnrolTTL     = 7 * 24 * time.Hour
)

// Enrol makes a one-time token by which a principal registers its key.
func (e *Engine) Enrol(ctx context.Context, c Caller, principal string, in wire.EnrolRequest) (wire.EnrolAnswer, error) {
	h := e.header(c)
	r, err := e.allow(ctx, c, question{action: policy.ActionAdminister, resource: policy.Resource{Kind: ledger.KindPrincipal, Name: principal}})
	if err != nil {
		return wire.EnrolAnswer{}, err
	}
	h.DecisionID, h.Decision = r.ID, r.encode()
	ttl, err := parseTTL(in.TTL)
	if err != nil {
		return wire.EnrolAnswer{}, err
	}
	if ttl == 0 {
		ttl = defaultEnrolTTL
	}
	if ttl > maxEnrolTTL {
		return wire.EnrolAnswer{}, fault.New(fault.Invalid, "ttl_too_long", "An enrolment token lives at most %s.", maxEnrolTTL)
	}
	return e.enrol(ctx, h, principal, ttl, "")
}

// enrol makes a token under a header that says who lets it be made.
func (e *Engine) enrol(ctx context.Context, h ledger.Header, principal string, ttl time.Duration, why string) (wire.EnrolAnswer, error) {
	tok, err := e.NewEnrolToken()
	if err != nil {
		return wire.EnrolAnswer{}, err
	}
	return e.record(ctx, h, tok, principal, ttl, why)
}

// NewEnrolToken makes a token that leads to this cluster. Nothing knows of it yet.
func (e *Engine) NewEnrolToken() (identity.EnrolToken, error) {
	return identity.NewEnrolToken(e.cfg.Hint.CAHash, e.cfg.Hint.Addresses)
}

func (e *Engine) record(ctx context.Context, h ledger.Header, tok identity.EnrolToken, principal string, ttl time.Duration, why string) (wire.EnrolAnswer, error) {
	sum := tok.Presented().Hash()
	end := e.now().Add(ttl)
	h.Idem = nil // the token is not stored, so that the answer cannot be repeated
	_, err := e.commit(ctx, h, &ledger.IssueEnrolment{TokenHash: hex.EncodeToString(sum[:]), Principal: principal, ExpiresMS: end.UnixMilli(), Why: why})
	if err != nil {
		return wire.EnrolAnswer{}, err
	}
	return wire.EnrolAnswer{Principal: principal, Token: tok.Encode().Reveal(), ExpiresAt: end.UTC(),
		Command: "mayfly login --enroll-token-file -"}, nil
}

// EnrolByQuorum makes an enrolment token for an administrator whose identity
// a quorum of unseal shares vouches for (`operator recover`). The caller has
// checked the shares, has just made them, or is a development node; it logs
// which. The ledger names the way the token was made, and why.
func (e *Engine) EnrolByQuorum(ctx context.Context, principal, why string) (wire.EnrolAnswer, error) {
	tok, err := e.NewEnrolToken()
	if err != nil {
		return wire.EnrolAnswer{}, err
	}
	return e.EnrolWith(ctx, tok, principal, why)
}

// EnrolWith is EnrolByQuorum with a token that was made before, because the
// genesis record names what derives from it.
func (e *Engine) EnrolWith(ctx context.Context, tok identity.EnrolToken, principal, why string) (wire.EnrolAnswer, error) {
	h := e.header(Caller{Session: ledger.Session{Principal: "quorum:unseal-shares"}})
	return e.record(ctx, h, tok, principal, defaultEnrolTTL, why)
}

// sameJSON compares two documents but for white space and member order.
func sameJSON(a, b json.RawMessage) bool {
	var x, y any
	if json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
		return false
	}
	return bytes.Equal(rawMessage(x), rawMessage(y))
}
