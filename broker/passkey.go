package broker

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/identity"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/secret"
)

// How people's sessions in a browser are opened and bound.
const (
	methodPasskey = "passkey"
	bindCookie    = "cookie"
)

// cookieSession is how long a person may look on before the passkey is asked
// for again. What the person approves is signed by itself.
const cookieSession = time.Hour

// PasskeyLogin is a browser's answer to a sign-in.
type PasskeyLogin struct {
	Response json.RawMessage // PublicKeyCredential as JSON (WebAuthn §5.1)
	Address  string
}

// Passkey is a person's registered passkey.
type Passkey struct {
	Thumbprint   string    `json:"thumbprint"`
	CredentialID []byte    `json:"credential_id"`
	RPID         string    `json:"rp_id"`
	AddedAt      time.Time `json:"added_at"`
}

// PasskeyOffer says what must sign a new passkey before it counts.
type PasskeyOffer struct {
	// Ticket is the checked key, to be handed to [Engine.AddPasskey]; it is good
	// for two minutes, in this process.
	Ticket     string `json:"ticket"`
	Thumbprint string `json:"thumbprint"`
	// CredentialID is the new passkey's, and RPID for whom it was made.
	CredentialID []byte `json:"credential_id"`
	RPID         string `json:"rp_id"`
	// Hash is what both sign, 32 bytes.
	Hash []byte `json:"hash"`
	// Vouch is as in [wire.KeyDocument]; Others are the passkeys that may vouch.
	// Founder is the thumbprint of the key of the caller's enrolment token, where
	// that may vouch instead of the approvers.
	Vouch   string    `json:"vouch"`
	Others  []Passkey `json:"others,omitempty"`
	Founder string    `json:"founder,omitempty"`
}

// RegisteredKey is a key to approve with, and when it came.
type RegisteredKey struct {
	Thumbprint string
	Key        cosign.Key
	AddedAt    time.Time
}

// approveKeys lists the keys that a person may approve with.
func (e *Engine) approveKeys(principal string) (out []RegisteredKey, err error) {
	err = e.view(func(q ledger.Query) error {
		for _, k := range q.KeysOf(principal) {
			if k.Use == ledger.UseApprove && k.Approve != nil {
				out = append(out, RegisteredKey{Thumbprint: k.Thumbprint, Key: *k.Approve, AddedAt: at(k.AddedMS)})
			}
		}
		return nil
	})
	return out, err
}

// PasskeyLogin returns the options of a sign-in with a passkey that is already
// registered, whoever's it is.
func (e *Engine) PasskeyLogin(context.Context) (json.RawMessage, error) {
	return e.passkeys.LoginOptions()
}

// LoginPasskey opens a session, bound to a cookie, for whoever holds a
// registered passkey.
func (e *Engine) LoginPasskey(ctx context.Context, in PasskeyLogin) (wire.LoginAnswer, error) {
	principal, thumb, err := e.passkeys.Login(in.Response, e.approveKeys)
	if err != nil {
		return wire.LoginAnswer{}, err
	}
	return e.openCookie(ctx, ledger.OpenSession{Session: ledger.Session{Principal: principal, Method: methodPasskey, KeyThumbprint: thumb}}, in.Address)
}

// LoginEnrolled opens a session, bound to a cookie, for a person's one-time
// enrolment token, so that a first passkey can be made. The token is spent. It
// comes as a client hands it in ([identity.EnrolToken.Presented]), never whole.
func (e *Engine) LoginEnrolled(ctx context.Context, token secret.Text, address string) (wire.LoginAnswer, error) {
	tok, err := identity.ParseEnrolToken(token)
	if err != nil {
		return wire.LoginAnswer{}, err
	}
	hash, rec, ok, err := e.enrolment(tok)
	if err != nil {
		return wire.LoginAnswer{}, err
	}
	if !ok || rec.SpentBy != "" {
		return wire.LoginAnswer{}, fault.New(fault.Unauthenticated, ledger.CodeTokenSpent, "The enrolment token is unknown, spent or expired. Have a new one made with: mayfly principal enroll")
	}
	if !strings.HasPrefix(rec.Principal, "human:") {
		return wire.LoginAnswer{}, fault.New(fault.Denied, "not_a_person", "The enrolment token is for %s, and only people use the console. Redeem it with: mayfly login --enroll-token-file -", rec.Principal)
	}
	// A token is spent by a key. This one's private half is forgotten before the
	// command is made, and the key goes as soon as it has served.
	key, thumb, err := forgottenKey(e.cfg.Random)
	if err != nil {
		return wire.LoginAnswer{}, err
	}
	out, err := e.openCookie(ctx, ledger.OpenSession{
		Session:       ledger.Session{Principal: rec.Principal, Method: methodEnroll},
		EnrolmentHash: hash,
		NewKey:        &ledger.Key{Thumbprint: thumb, Principal: rec.Principal, Use: ledger.UseSession, JWK: key},
	}, address)
	if err != nil {
		return out, err
	}
	h := e.header(Caller{Session: ledger.Session{Principal: rec.Principal, ID: out.SessionID}, Address: address})
	if _, err := e.commit(ctx, h, &ledger.RemoveKey{Principal: rec.Principal, Thumbprint: thumb}); err != nil {
		e.log.Warn("a spent token's key stays registered; nobody holds its private half", "principal", rec.Principal, "error", err)
	}
	return out, nil
}

// openCookie commits a session that a cookie will carry. It is bound to no key,
// and policy sees that.
func (e *Engine) openCookie(ctx context.Context, cmd ledger.OpenSession, address string) (wire.LoginAnswer, error) {
	token, hash := identity.MintSession()
	s := &cmd.Session
	s.ID, s.TokenHash = ledger.SessionID(hash), hex.EncodeToString(hash[:])
	s.Binding, s.Address = bindCookie, address
	if end := e.now().Add(cookieSession).UnixMilli(); s.ExpiresMS == 0 || s.ExpiresMS > end {
		s.ExpiresMS = end
	}
	h := e.header(Caller{Session: ledger.Session{Principal: s.Principal, ID: s.ID}, Address: address})
	if _, err := e.commit(ctx, h, &cmd); err != nil {
		return wire.LoginAnswer{}, err
	}
	return wire.LoginAnswer{SessionToken: token.Reveal(), TokenType: "Cookie", SessionID: s.ID, Principal: s.Principal, Method: s.Method, ExpiresAt: at(s.ExpiresMS)}, nil
}

// Passkeys lists the caller's passkeys.
func (e *Engine) Passkeys(_ context.Context, c Caller) ([]Passkey, error) {
	keys, err := e.approveKeys(c.Session.Principal)
	return passkeysOf(keys), err
}

func passkeysOf(keys []RegisteredKey) []Passkey {
	out := []Passkey{}
	for _, k := range keys {
		if k.Key.Kind == cosign.KindPasskey {
			out = append(out, Passkey{Thumbprint: k.Thumbprint, CredentialID: k.Key.CredentialID, RPID: k.Key.RPID, AddedAt: k.AddedAt})
		}
	}
	return out
}

// NewPasskey returns the options by which the caller, a person, makes a passkey.
// One of their own passkeys must be able to vouch for it, where a key has to.
func (e *Engine) NewPasskey(ctx context.Context, c Caller) (json.RawMessage, error) {
	have, err := e.Passkeys(ctx, c)
	if err != nil {
		return nil, err
	}
	var voucher string
	if err := e.view(func(q ledger.Query) error { voucher = q.Voucher(c.Session.Principal); return nil }); err != nil {
		return nil, err
	}
	if voucher == ledger.VouchKey && len(have) == 0 {
		return nil, fault.New(fault.Conflict, "no_passkey_to_vouch", "The key that you approve with must vouch for a passkey, and a browser cannot use it. "+
			"Remove that key at your command line (mayfly key list, mayfly key remove), then add the passkey. What the key has signed no longer counts then.")
	}
	return e.passkeys.NewOptions(c.Session.Principal, have)
}

// OfferPasskey checks a passkey that the caller has just made, and says what
// must sign it.
func (e *Engine) OfferPasskey(_ context.Context, c Caller, response json.RawMessage) (PasskeyOffer, error) {
	me := c.Session.Principal
	key, thumb, err := e.passkeys.Made(me, response)
	if err != nil {
		return PasskeyOffer{}, err
	}
	out := PasskeyOffer{Thumbprint: thumb, CredentialID: key.CredentialID, RPID: key.RPID}
	err = e.view(func(q ledger.Query) error {
		_, hash, err := keyDocument(q, me, key)
		if err != nil {
			return fault.Wrap(err, fault.Invalid, "passkey_unfit", "The passkey cannot be registered: %v.", err)
		}
		out.Hash, out.Vouch = hash[:], q.Voucher(me)
		g, _ := q.Genesis()
		for _, f := range g.Founders {
			if f.Principal == me && out.Vouch == ledger.VouchApprovers {
				out.Founder, err = cosign.Thumbprint(f.JWK)
			}
		}
		return err
	})
	if err != nil {
		return PasskeyOffer{}, err
	}
	keys, err := e.approveKeys(me)
	if err != nil {
		return PasskeyOffer{}, err
	}
	out.Others = passkeysOf(keys)
	out.Ticket, err = e.passkeys.Ticket(me, key)
	return out, err
}

// AddPasskey registers a passkey that [Engine.OfferPasskey] has checked. Where
// the approvers must agree to it, the answer names the grant that waits for them.
func (e *Engine) AddPasskey(ctx context.Context, c Caller, ticket string, proof, vouch *wire.Signature) (wire.Key, error) {
	key, err := e.passkeys.Redeem(c.Session.Principal, ticket)
	if err != nil {
		return wire.Key{}, err
	}
	// An attestation of "none" signs nothing: this is where the holder proves the
	// key, for Apply takes the door's word for it.
	err = e.view(func(q ledger.Query) error {
		_, hash, err := keyDocument(q, c.Session.Principal, key)
		if err == nil && (proof == nil || cosign.Verify(key, cosign.DomainKey, hash, signature(*proof)) != nil) {
			err = fault.New(fault.Denied, ledger.CodeSignature, "The new passkey has not signed its own document. Add it again.")
		}
		return err
	})
	if err != nil {
		return wire.Key{}, err
	}
	return e.addApproveKey(ctx, c, c.Session.Principal, key, optional(proof), optional(vouch))
}

// Ticket keeps a checked key with the browser until the browser has had it
// signed. Only this process can have made it, and not for another person.
func (p *Passkeys) Ticket(principal string, key cosign.Key) (string, error) {
	body, err := json.Marshal(ticket{Principal: principal, Key: key, Until: p.clock().Add(challengeFor).UnixMilli()})
	if err != nil {
		return "", err
	}
	return encode64(body) + "." + encode64(p.mac("ticket", body)), nil
}

type ticket struct {
	Principal string     `json:"principal"`
	Key       cosign.Key `json:"key"`
	Until     int64      `json:"until_ms"`
}

// Redeem returns the key of a ticket that was made for principal.
func (p *Passkeys) Redeem(principal, text string) (cosign.Key, error) {
	late := fault.New(fault.Conflict, "passkey_late", "The passkey was not signed in time. Add it again.")
	if len(text) > maxPasskeyResponse {
		return cosign.Key{}, late
	}
	head, tail, _ := strings.Cut(text, ".")
	body, err1 := decode64(head)
	sum, err2 := decode64(tail)
	if err1 != nil || err2 != nil || !hmac.Equal(sum, p.mac("ticket", body)) {
		return cosign.Key{}, late
	}
	var t ticket
	if json.NewDecoder(bytes.NewReader(body)).Decode(&t) != nil || t.Principal != principal || t.Until < p.clock().UnixMilli() {
		return cosign.Key{}, late
	}
	return t.Key, nil
}

// mac authenticates parts under a word that says what for.
func (p *Passkeys) mac(what string, parts ...[]byte) []byte {
	m := hmac.New(sha256.New, p.secret[:])
	m.Write([]byte(what))
	for _, part := range parts {
		m.Write([]byte{0})
		m.Write(part)
	}
	return m.Sum(nil)
}
