package api

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/identity"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// Deferred token responses (draft-ietf-oauth-deferred-token-response-01): a
// request that needs approvals is answered with a deferral code, and the client
// polls with it. The code is derived from the grant that waits, so that every
// node knows it and none stores it; it opens nothing without the key that asked.

const (
	deferralPrefix = "mfd_"
	// deferralMACLen is 27 characters of base64url, 162 bits: the draft (§5.3)
	// recommends 160 that cannot be guessed.
	deferralMACLen = 27
	// pollInterval is how long a client waits between polls. People take
	// minutes, and a poll that is authenticated by an assertion is two entries
	// in the ledger.
	pollInterval = 10 * time.Second
	// pollSlack allows for a network that delivered the poll before slowly.
	pollSlack = time.Second
	// deferralLife is told where a grant does not say until when it waits.
	deferralLife = 10 * time.Minute
)

// asked is what a grant's document says of who asked, and what makes its
// deferral code unguessable.
type asked struct {
	Nonce     string `json:"nonce"`
	Requester struct {
		Principal string `json:"principal"`
		Key       string `json:"key"`
	} `json:"requester"`
}

// deferralOf returns the deferral code of a grant and who asked for it.
func deferralOf(g wire.Grant) (code string, by asked, err error) {
	if err := json.Unmarshal(g.Document, &by); err != nil {
		return "", by, err
	}
	bare := ledger.BareID(g.ID)
	if len(by.Nonce) < 22 || len(bare) != ledger.BareIDLen { // 22 characters hold 128 bits
		return "", by, errors.New("the grant's document has no nonce")
	}
	sum := sha256.Sum256([]byte("mayfly.deferral.v1\x00" + g.ID + "\x00" + by.Nonce))
	return deferralPrefix + bare + base64.RawURLEncoding.EncodeToString(sum[:])[:deferralMACLen], by, nil
}

// grantOf reads the grant's id from a deferral code.
func grantOf(code string) (id string, ok bool) {
	rest, ok := strings.CutPrefix(code, deferralPrefix)
	if !ok || len(rest) != ledger.BareIDLen+deferralMACLen || strings.Trim(rest, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_") != "" {
		return "", false
	}
	return ledger.PrefixGrant + rest[:ledger.BareIDLen], true
}

// deferred is the answer to a request that needs approvals. Nobody is made to
// wait who did not ask to be (§4.3).
func (s *Server) deferred(ctx context.Context, c *call, a wire.AccessAnswer) error {
	e := fault.New(fault.ApprovalRequired, "approval_required",
		"%s needs approvals. Send the request again with completion_mode=deferred to get a deferral code and poll with it; grant %s waits until then, or can be collected by: mayfly grant collect", a.Role, a.GrantID)
	e.DecisionID = a.DecisionID
	if !slices.Contains(strings.Fields(c.form["completion_mode"]), "deferred") {
		return &oauthError{cause: e, word: oauthDenied, extra: map[string]any{"grant_id": a.GrantID}}
	}
	g, err := c.broker.Grant(ctx, c.caller, a.GrantID)
	if err != nil {
		return err
	}
	code, _, err := deferralOf(g)
	if err != nil {
		return err
	}
	until := s.clock().Add(deferralLife)
	if g.CollectBefore != nil {
		until = *g.CollectBefore
	}
	s.polls.soon(code, c.caller.Session.Thumbprint, s.clock())
	out := pending(g)
	out.cause.DecisionID = a.DecisionID
	out.extra["deferral_code"] = code
	out.extra["expires_in"] = s.secondsTo(until)
	out.extra["interval"] = int(pollInterval / time.Second)
	out.extra["grant_id"] = g.ID
	return out
}

// pending says that a grant waits. Where the requester's own person must sign
// first, it says where (§5.5).
func pending(g wire.Grant) *oauthError {
	have, required := 0, 0
	for _, n := range g.Needs {
		have, required = have+min(n.Have, n.Required), required+n.Required
	}
	word, extra := oauthPending, map[string]any{}
	if u, err := url.Parse(g.URL); err == nil && u.Scheme == "https" && u.Fragment == "" {
		extra["interaction_uri"] = g.URL
		signed := slices.ContainsFunc(g.Approvals, func(a wire.Approval) bool { return a.StepUp })
		if g.StepUp != "" && !signed {
			word = oauthInteraction
		}
	}
	return &oauthError{word: word, extra: extra,
		cause: fault.New(fault.ApprovalRequired, word, "The request waits for approvals; %d of %d are there. Poll again after the interval.", have, required)}
}

// pollTakes are the parameters of a poll: it changes nothing of the request
// that it continues (§5.4).
var pollTakes = []string{"grant_type", "deferral_code", "client_id", "client_assertion", "client_assertion_type", "mayfly_csr"}

// poll answers a client that waits (§5.4).
func (s *Server) poll(ctx context.Context, c *call, r *http.Request) (any, error) {
	for name := range c.form {
		if !slices.Contains(pollTakes, name) {
			return nil, oauthRefuse(oauthInvalidRequest, "A poll does not take %s; what was asked for stands. It takes %s.", shown(name), strings.Join(pollTakes, ", "))
		}
	}
	code := c.form["deferral_code"]
	id, ok := grantOf(code)
	if code == "" {
		return nil, oauthRefuse(oauthInvalidRequest, "The parameter deferral_code is missing.")
	}
	if !ok {
		return nil, noDeferral()
	}
	if s.polls.soon(code, c.provenKey(), s.clock()) {
		return nil, oauthRefuse(oauthSlowDown, "Polls of one deferral code are at least %d seconds apart; add 5 seconds to your interval.", pollInterval/time.Second)
	}
	in, err := clientEvidence(c)
	if err != nil {
		return nil, err
	}
	end, err := s.enter(ctx, c, in)
	if err != nil {
		return nil, err
	}
	defer end()
	g, err := s.deferral(ctx, c, id, code)
	if err != nil {
		return nil, err
	}
	if err := s.standing(g, c.caller.Idem != nil); err != nil {
		return nil, err
	}
	return s.collect(ctx, c, r, g)
}

// deferral finds the grant of a code, for its own client with its own key alone.
// A code that is nobody's and another's look the same.
func (s *Server) deferral(ctx context.Context, c *call, id, code string) (wire.Grant, error) {
	g, err := c.broker.Grant(ctx, c.caller, id)
	if isHidden(err) {
		return g, noDeferral()
	}
	if err != nil {
		return g, err
	}
	want, by, err := deferralOf(g)
	ses := c.caller.Session
	if err != nil || g.Kind == wire.GrantChange || by.Requester.Principal != ses.Principal || g.Principal != ses.Principal ||
		subtle.ConstantTimeCompare([]byte(code), []byte(want)) != 1 {
		return g, noDeferral()
	}
	if !identity.SameThumbprint(by.Requester.Key, ses.Thumbprint) {
		return g, oauthRefuse(oauthBadProof, "The deferral code is bound to another key of yours: poll with the key, or the certificate, that asked.")
	}
	return g, nil
}

func noDeferral() error {
	return oauthRefuse(oauthInvalidGrant, "The deferral code is not known.")
}

// standing says what became of a grant; nil means that it may be collected.
// again: the client repeats a poll whose answer it has lost.
func (s *Server) standing(g wire.Grant, again bool) error {
	late := g.CollectBefore != nil && !s.clock().Before(*g.CollectBefore)
	over := func(why string) error {
		return &oauthError{word: oauthDenied, cause: fault.New(fault.Denied, "grant_over", "The request %s. Its grant, %s, says more: mayfly grant show", why, g.ID)}
	}
	switch g.State {
	case wire.GrantWaiting, wire.GrantApproved:
		if late {
			return expiredDeferral()
		}
		if g.State == wire.GrantWaiting {
			return pending(g)
		}
		return nil
	case wire.GrantExpired:
		return expiredDeferral()
	case wire.GrantDenied:
		return over("was denied")
	case wire.GrantCancelled:
		return over("was cancelled")
	case wire.GrantVoid:
		return over("is void: what was approved has changed since")
	case wire.GrantRevoked:
		return over("was approved, and the approval was taken back")
	case wire.GrantOpen:
		if len(g.Leases) == 0 || again {
			return nil
		}
	}
	return redeemed()
}

func expiredDeferral() error {
	return oauthRefuse(oauthExpired, "The request was not approved, or not collected, in time. Ask again if it is still needed.")
}

func redeemed() error {
	return oauthRefuse(oauthInvalidGrant, "The deferral code has been redeemed. Where the answer was lost, repeat the poll with the Idempotency-Key that the first one had.")
}

// collect picks up what was approved. All polls of a code are one request to
// the engine, so that a code yields one lease however often it is sent.
func (s *Server) collect(ctx context.Context, c *call, r *http.Request, g wire.Grant) (any, error) {
	by := ""
	if c.caller.Idem != nil {
		by = c.caller.Idem.Key
	}
	sum := sha256.Sum256([]byte(by))
	c.caller.Idem = &ledger.Idem{Key: "oauth-deferral:" + g.ID, Hash: hex.EncodeToString(sum[:])}
	a, err := c.broker.CollectGrant(ctx, c.caller, g.ID, wire.CollectRequest{CSR: c.form["mayfly_csr"], PublicKey: proofKey(r.Header)})
	switch kind := fault.KindOf(err); {
	case err == nil && a.Status != "waiting":
		return s.issued(a)
	case err == nil, kind == fault.ApprovalRequired: // an approval counts no longer
		return nil, pending(g)
	case kind == fault.Conflict:
		return nil, redeemed()
	}
	return nil, err
}

// polls paces the polling of deferral codes, by code and proven key: who has
// learnt a code but lacks its key slows nobody. Outside of the ledger, as all
// rate limits are. Safe for concurrent use.
type polls struct {
	mu   sync.Mutex
	last map[[sha256.Size]byte]time.Time
}

// soon reports whether this poll comes too soon after the last one that did not.
func (p *polls) soon(code, thumbprint string, now time.Time) bool {
	id := sha256.Sum256([]byte(thumbprint + "\x00" + code))
	p.mu.Lock()
	defer p.mu.Unlock()
	old := func(at time.Time) bool { return now.Sub(at) >= pollInterval-pollSlack }
	if at, ok := p.last[id]; ok && !old(at) {
		return true
	}
	if p.last == nil {
		p.last = map[[sha256.Size]byte]time.Time{}
	}
	if len(p.last) >= maxAddresses {
		for k, at := range p.last {
			if old(at) {
				delete(p.last, k)
			}
		}
	}
	if len(p.last) < maxAddresses { // beyond, the limit of the address is all there is
		p.last[id] = now
	}
	return false
}
