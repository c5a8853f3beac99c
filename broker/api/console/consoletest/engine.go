package consoletest

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/api/console"
	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/secret"
)

// EnrolmentToken is the one that opens a session for [Me], as it is handed in; a
// person pastes [WholeToken], from which it derives.
const EnrolmentToken = "mfe_AQBbWu4IpbQCni1yt5yJE6DM4KcIzPHSvN4DkKnUMEFP5lIBAgMAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAESbWF5Zmx5LmV4YW1wbGU6NDQzPg061w"

// WholeToken is what an administrator sends.
const WholeToken = "mfe_AQBbAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8BAgMAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAESbWF5Zmx5LmV4YW1wbGU6NDQzk_SxqQ"

// Me is who the tests sign in as.
const Me = "human:kim"

// Engine is a broker in memory. Its fields may be changed before it serves.
type Engine struct {
	Clock   func() time.Time
	World   World
	Passkey *broker.Passkeys
	SignIn  *broker.SignIns
	// Providers are who else signs people in.
	Providers []Provider
	mu        sync.Mutex
	sessions  map[string]ledger.Session
	keys      []broker.RegisteredKey
	spent     bool
	// Ended is what was denied, cancelled or revoked, and with which reason.
	Ended map[string]string
}

// New returns an engine under an external URL, with the fixtures' world.
func New(url string, clock func() time.Time) *Engine {
	return &Engine{Clock: clock, World: Day(clock()), Passkey: broker.NewPasskeys([]string{url}, clock), SignIn: broker.NewSignIns([]string{url}, clock, &http.Client{Timeout: 10 * time.Second}), sessions: map[string]ledger.Session{}, Ended: map[string]string{}}
}

// Open makes a session and returns its token.
func (e *Engine) Open(principal, binding string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	token := "mfs_" + strings.ReplaceAll(principal, ":", "-") + "-" + binding
	e.sessions[token] = ledger.Session{ID: "ses_" + principal, Principal: principal, Binding: binding, Method: "passkey", ExpiresMS: e.Clock().Add(time.Hour).UnixMilli()}
	return token
}

// Session implements console.Engine.
func (e *Engine) Session(_ context.Context, token string) (ledger.Session, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s, ok := e.sessions[token]
	if !ok || s.ExpiresMS < e.Clock().UnixMilli() {
		return s, fault.New(fault.Unauthenticated, "session_ended", "The session is unknown or has ended. Log in again.")
	}
	return s, nil
}

// Logout implements console.Engine.
func (e *Engine) Logout(_ context.Context, c broker.Caller) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	for token, s := range e.sessions {
		if s.ID == c.Session.ID {
			delete(e.sessions, token)
		}
	}
	return nil
}

// PasskeyLogin implements console.Engine.
func (e *Engine) PasskeyLogin(context.Context) (json.RawMessage, error) {
	return e.Passkey.LoginOptions()
}

func (e *Engine) registered(principal string) ([]broker.RegisteredKey, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if principal != Me {
		return nil, nil
	}
	return slices.Clone(e.keys), nil
}

// LoginPasskey implements console.Engine.
func (e *Engine) LoginPasskey(_ context.Context, in broker.PasskeyLogin) (wire.LoginAnswer, error) {
	who, _, err := e.Passkey.Login(in.Response, e.registered)
	if err != nil {
		return wire.LoginAnswer{}, err
	}
	return wire.LoginAnswer{SessionToken: e.Open(who, "cookie"), Principal: who, ExpiresAt: e.Clock().Add(time.Hour)}, nil
}

// LoginEnrolled implements console.Engine.
func (e *Engine) LoginEnrolled(_ context.Context, token secret.Text, _ string) (wire.LoginAnswer, error) {
	e.mu.Lock()
	spent := e.spent || token.Reveal() != EnrolmentToken
	e.spent = e.spent || !spent
	e.mu.Unlock()
	if spent {
		return wire.LoginAnswer{}, fault.New(fault.Unauthenticated, "token_spent", "The enrolment token is unknown, spent or expired. Have a new one made with: mayfly principal enroll")
	}
	return wire.LoginAnswer{SessionToken: e.Open(Me, "cookie"), Principal: Me, ExpiresAt: e.Clock().Add(time.Hour)}, nil
}

// Passkeys implements console.Engine.
func (e *Engine) Passkeys(_ context.Context, c broker.Caller) ([]broker.Passkey, error) {
	keys, err := e.registered(c.Session.Principal)
	out := []broker.Passkey{}
	for _, k := range keys {
		out = append(out, broker.Passkey{Thumbprint: k.Thumbprint, CredentialID: k.Key.CredentialID, RPID: k.Key.RPID, AddedAt: k.AddedAt})
	}
	return out, err
}

// AddFixedPasskey registers a passkey that nobody holds, for pictures.
func (e *Engine) AddFixedPasskey() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.keys = append(e.keys, broker.RegisteredKey{Thumbprint: "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs", AddedAt: e.Clock().Add(-90 * 24 * time.Hour),
		Key: cosign.Key{Kind: cosign.KindPasskey, CredentialID: []byte("a credential's id"), RPID: "mayfly.example"}})
}

// NewPasskey implements console.Engine.
func (e *Engine) NewPasskey(ctx context.Context, c broker.Caller) (json.RawMessage, error) {
	have, err := e.Passkeys(ctx, c)
	if err != nil {
		return nil, err
	}
	return e.Passkey.NewOptions(c.Session.Principal, have)
}

// keySum is what stands for the hash of a new key's document.
func keySum(key cosign.Key) [32]byte { return sha256.Sum256(append([]byte("new key "), key.JWK...)) }

// OfferPasskey implements console.Engine.
func (e *Engine) OfferPasskey(ctx context.Context, c broker.Caller, response json.RawMessage) (broker.PasskeyOffer, error) {
	key, thumb, err := e.Passkey.Made(c.Session.Principal, response)
	if err != nil {
		return broker.PasskeyOffer{}, err
	}
	ticket, err := e.Passkey.Ticket(c.Session.Principal, key)
	if err != nil {
		return broker.PasskeyOffer{}, err
	}
	others, err := e.Passkeys(ctx, c)
	sum := keySum(key)
	out := broker.PasskeyOffer{Ticket: ticket, Thumbprint: thumb, CredentialID: key.CredentialID, RPID: key.RPID, Hash: sum[:], Others: others}
	if len(others) > 0 {
		out.Vouch = "key"
	}
	return out, err
}

// AddPasskey implements console.Engine.
func (e *Engine) AddPasskey(_ context.Context, c broker.Caller, ticket string, proof, vouch *wire.Signature) (wire.Key, error) {
	key, err := e.Passkey.Redeem(c.Session.Principal, ticket)
	if err != nil {
		return wire.Key{}, err
	}
	sum := keySum(key)
	if !verified(key, sum, *proof) {
		return wire.Key{}, fault.New(fault.Denied, "signature", "The new key has not signed its document.")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.keys) > 0 && (vouch == nil || !slices.ContainsFunc(e.keys, func(k broker.RegisteredKey) bool { return k.Thumbprint == vouch.Key && verified(k.Key, sum, *vouch) })) {
		return wire.Key{}, fault.New(fault.Denied, "vouch", "No key of yours vouches for the new one.")
	}
	e.keys = append(e.keys, broker.RegisteredKey{Thumbprint: proof.Key, Key: key, AddedAt: e.Clock()})
	return wire.Key{Thumbprint: proof.Key, Principal: c.Session.Principal, Use: "approve", Kind: "passkey"}, nil
}

// verified checks a passkey's signature over 32 bytes as WebAuthn §7.2 has it,
// for keys on P-256.
func verified(key cosign.Key, sum [32]byte, s wire.Signature) bool {
	var client struct {
		Type, Challenge, Origin string
		CrossOrigin             bool
	}
	if json.Unmarshal(s.ClientDataJSON, &client) != nil || client.Type != "webauthn.get" || client.CrossOrigin ||
		client.Challenge != base64.RawURLEncoding.EncodeToString(sum[:]) || !slices.Contains(key.Origins, client.Origin) {
		return false
	}
	rp, hashed := sha256.Sum256([]byte(key.RPID)), sha256.Sum256(s.ClientDataJSON)
	const present, checked = 1, 4
	if len(s.AuthenticatorData) < 37 || string(s.AuthenticatorData[:32]) != string(rp[:]) || s.AuthenticatorData[32]&(present|checked) != present|checked {
		return false
	}
	var jwk jose.JSONWebKey
	if json.Unmarshal(key.JWK, &jwk) != nil {
		return false
	}
	pub, ok := jwk.Key.(*ecdsa.PublicKey)
	signed := sha256.Sum256(append(slices.Clone(s.AuthenticatorData), hashed[:]...))
	return ok && ecdsa.VerifyASN1(pub, signed[:], s.Assertion)
}

// ApproveGrant implements console.Engine; the signature is checked.
func (e *Engine) ApproveGrant(ctx context.Context, c broker.Caller, id string, in wire.ApproveRequest) (wire.Grant, error) {
	g, err := e.Grant(ctx, c, id)
	if err != nil {
		return g, err
	}
	raw, err := hex.DecodeString(g.Hash)
	if err != nil || in.Hash != g.Hash {
		return g, fault.New(fault.Conflict, "hash", "The document has another hash.")
	}
	keys, _ := e.registered(c.Session.Principal)
	if !slices.ContainsFunc(keys, func(k broker.RegisteredKey) bool {
		return k.Thumbprint == in.Signature.Key && verified(k.Key, [32]byte(raw), in.Signature)
	}) {
		return g, fault.New(fault.Denied, "signature", "The signature is not one of yours over this document.")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range e.World.Grants {
		if g := &e.World.Grants[i]; g.ID == id {
			g.Approvals = append(g.Approvals, wire.Approval{Principal: c.Session.Principal, Key: in.Signature.Key, Kind: "passkey", At: e.Clock(), Counts: true})
			g.Needs[0].Have++
			g.MayApprove, g.WhyNot = false, "You have signed it."
			if g.Needs[0].Have >= g.Needs[0].Required {
				g.State = wire.GrantApproved
			}
			e.World.Size++
		}
	}
	return g, nil
}

func (e *Engine) end(id, state, by, reason string) (wire.Grant, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range e.World.Grants {
		if g := &e.World.Grants[i]; g.ID == id {
			now := e.Clock()
			g.State, g.EndedAt, g.EndedBy, g.EndReason = state, &now, by, reason
			e.Ended[id] = reason
			e.World.Size++
			return *g, nil
		}
	}
	return wire.Grant{}, missing("grant", id)
}

func missing(kind, name string) error {
	return fault.New(fault.NotFound, "not_found", "There is no %s %s.", kind, name)
}

// DenyGrant implements console.Engine.
func (e *Engine) DenyGrant(_ context.Context, c broker.Caller, id string, in wire.EndGrantRequest) (wire.Grant, error) {
	return e.end(id, wire.GrantDenied, c.Session.Principal, in.Reason)
}

// CancelGrant implements console.Engine.
func (e *Engine) CancelGrant(_ context.Context, c broker.Caller, id string, in wire.EndGrantRequest) (wire.Grant, error) {
	return e.end(id, wire.GrantCancelled, c.Session.Principal, in.Reason)
}

// RevokeGrant implements console.Engine.
func (e *Engine) RevokeGrant(_ context.Context, c broker.Caller, id string, in wire.EndGrantRequest) (wire.Grant, error) {
	return e.end(id, wire.GrantRevoked, c.Session.Principal, in.Reason)
}

// ReviewHash implements console.Engine.
func (e *Engine) ReviewHash(_ context.Context, _ broker.Caller, id, verdict, note string) (string, error) {
	sum := sha256.Sum256([]byte(id + "\x00" + verdict + "\x00" + note))
	return hex.EncodeToString(sum[:]), nil
}

// ReviewGrant implements console.Engine; the signature is checked.
func (e *Engine) ReviewGrant(ctx context.Context, c broker.Caller, id string, in wire.ReviewRequest) (wire.Grant, error) {
	sum := sha256.Sum256([]byte(id + "\x00" + in.Verdict + "\x00" + in.Note))
	keys, _ := e.registered(c.Session.Principal)
	if !slices.ContainsFunc(keys, func(k broker.RegisteredKey) bool {
		return k.Thumbprint == in.Signature.Key && verified(k.Key, sum, in.Signature)
	}) {
		return wire.Grant{}, fault.New(fault.Denied, "signature", "The signature is not one of yours over this review.")
	}
	e.mu.Lock()
	for i := range e.World.Grants {
		if g := &e.World.Grants[i]; g.ID == id && g.Review != nil {
			g.Review.Done, g.Review.Overdue = true, false
			g.Review.Verdicts = append(g.Review.Verdicts, wire.Verdict{Principal: c.Session.Principal, Verdict: in.Verdict, Note: in.Note, At: e.Clock()})
		}
	}
	e.mu.Unlock()
	return e.Grant(ctx, c, id)
}

var _ console.Engine = (*Engine)(nil)
