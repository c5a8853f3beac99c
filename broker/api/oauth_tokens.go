package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/identity"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// introspection is the answer about a token (RFC 7662 §2.2, RFC 9449 §6.2, RFC
// 9396 §9.2). Only Active is set for what is not active.
type introspection struct {
	Active    bool              `json:"active"`
	Issuer    string            `json:"iss,omitempty"`
	Subject   string            `json:"sub,omitempty"`
	ClientID  string            `json:"client_id,omitempty"`
	Audience  json.RawMessage   `json:"aud,omitempty"`
	Actor     json.RawMessage   `json:"act,omitempty"`
	Confirm   map[string]string `json:"cnf,omitempty"`
	Scope     string            `json:"scope,omitempty"`
	Details   json.RawMessage   `json:"authorization_details,omitempty"`
	TokenType string            `json:"token_type,omitempty"`
	IssuedAt  int64             `json:"iat,omitempty"`
	NotBefore int64             `json:"nbf,omitempty"`
	Expires   int64             `json:"exp,omitempty"`
	ID        string            `json:"jti,omitempty"`
}

// introspect tells an authenticated caller what a token is worth now (RFC 7662):
// a session, or a JWT whose lease the caller may read.
func (s *Server) introspect(ctx context.Context, c *call, _ *http.Request) (any, error) {
	token, end, err := s.about(ctx, c)
	if err != nil {
		return nil, err
	}
	defer end()
	if strings.HasPrefix(token, identity.SessionPrefix) {
		ses, err := c.broker.Session(ctx, token)
		switch {
		case err != nil && s.mayBeNew(c, err):
			return nil, noLeader(err)
		case fault.KindOf(err) == fault.Unauthenticated:
			return introspection{}, nil
		case err != nil:
			return nil, err
		case ses.Binding != schemeDPoP && ses.Binding != schemeMTLS: // of a browser: no token for APIs
			return introspection{}, nil
		}
		return s.sessionState(ses), nil
	}
	claims, lease, err := s.leaseOf(ctx, c, token)
	if err != nil || lease == nil || lease.State != "open" || lease.Username != claims.ID {
		return introspection{}, err
	}
	claims.Active, claims.TokenType = true, "Bearer"
	if len(claims.Confirm) > 0 {
		claims.TokenType = "DPoP"
	}
	return claims, nil
}

func (s *Server) sessionState(ses ledger.Session) introspection {
	typ := "DPoP"
	if ses.Binding == schemeMTLS {
		typ = "mTLS"
	}
	return introspection{Active: true, Issuer: s.issuer(), Subject: ses.Principal, ClientID: ses.Principal, Confirm: confirmation(ses),
		TokenType: typ, IssuedAt: ses.CreatedMS / 1000, Expires: ses.ExpiresMS / 1000, ID: ses.ID}
}

// about authenticates the caller of introspection or revocation and returns the
// token in question.
func (s *Server) about(ctx context.Context, c *call) (token string, end func(), err error) {
	in, err := clientEvidence(c)
	if err != nil {
		return "", nil, err
	}
	if token = c.form["token"]; token == "" {
		return "", nil, oauthRefuse(oauthInvalidRequest, "The parameter token is missing.")
	}
	end, err = s.enter(ctx, c, in)
	return token, end, err
}

// jwtID is the jti of a JWT that was minted for a lease: its id and generation.
var jwtID = regexp.MustCompile(`^mf-([0-9a-hjkmnp-tv-z]{26})-[1-9][0-9]{0,9}$`)

// leaseOf finds the lease of a JWT that a target's key signed here, or of the
// id of a lease, if the caller may read it. A nil lease means that there is
// nothing to tell.
func (s *Server) leaseOf(ctx context.Context, c *call, token string) (claims introspection, lease *wire.Lease, err error) {
	id := token
	if !strings.HasPrefix(token, ledger.PrefixLease) {
		var ok bool
		if claims, ok, err = s.ownJWT(ctx, c, token); err != nil || !ok {
			return claims, nil, err
		}
		id = ledger.PrefixLease + jwtID.FindStringSubmatch(claims.ID)[1]
	}
	l, err := c.broker.Lease(ctx, c.caller, id)
	if isHidden(err) {
		return claims, nil, nil
	}
	return claims, &l, err
}

// ownJWT verifies that a JWT was signed by a key that this broker publishes,
// names it as issuer and is valid now. What it says can then be believed.
func (s *Server) ownJWT(ctx context.Context, c *call, token string) (claims introspection, ok bool, err error) {
	jws, perr := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256, jose.EdDSA})
	if perr != nil {
		return claims, false, nil
	}
	doc, err := c.broker.Publish(ctx, "jwks")
	if err != nil {
		return claims, false, err
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(doc, &set); err != nil {
		return claims, false, err
	}
	head := jws.Signatures[0].Protected
	at := slices.IndexFunc(set.Keys, func(k jose.JSONWebKey) bool {
		return k.KeyID != "" && k.KeyID == head.KeyID && k.Algorithm == head.Algorithm
	})
	if at < 0 {
		return claims, false, nil
	}
	payload, perr := jws.Verify(set.Keys[at].Key)
	if perr != nil || json.Unmarshal(payload, &claims) != nil {
		return introspection{}, false, nil
	}
	now := s.clock().Unix()
	claims.Active = false // ours to say
	if claims.Issuer != s.issuer() || claims.Expires <= now || claims.NotBefore > now || !jwtID.MatchString(claims.ID) {
		return introspection{}, false, nil
	}
	return claims, true, nil
}

// revoke ends a session, the lease behind a credential, or a request that waits
// (RFC 7009; §7 of the deferred token response). A token that is not known is
// as good as revoked.
func (s *Server) revoke(ctx context.Context, c *call, _ *http.Request) (any, error) {
	switch hint := c.form["token_type_hint"]; hint {
	case "", "access_token", tokenAccess, tokenDeferral, tokenCredential:
	default:
		return nil, oauthRefuse(oauthBadTokenType, "Tokens of that type cannot be revoked here; leave token_type_hint out.")
	}
	token, end, err := s.about(ctx, c)
	if err != nil {
		return nil, err
	}
	defer end()
	switch {
	case strings.HasPrefix(token, identity.SessionPrefix):
		return nil, s.revokeSession(ctx, c, token)
	case strings.HasPrefix(token, deferralPrefix):
		return nil, s.revokeDeferral(ctx, c, token)
	}
	_, lease, err := s.leaseOf(ctx, c, token)
	if err != nil || lease == nil || lease.State == "ended" {
		return nil, err
	}
	c.caller.Idem = nil // to end what has ended changes nothing
	_, err = c.broker.Revoke(ctx, c.caller, lease.ID, wire.RevokeRequest{})
	return nil, err
}

// revokeSession ends a session of the caller's.
func (s *Server) revokeSession(ctx context.Context, c *call, token string) error {
	ses, err := c.broker.Session(ctx, token)
	if err != nil {
		if fault.KindOf(err) == fault.Unauthenticated {
			return nil
		}
		return err
	}
	if ses.Principal != c.caller.Session.Principal {
		return oauthRefuse("unauthorized_client", "The session is another principal's. To stop somebody, contain them: mayfly contain")
	}
	return c.broker.Logout(ctx, broker.Caller{Session: ses, Address: c.address})
}

// revokeDeferral cancels a request of the caller's that waits or was not
// collected yet.
func (s *Server) revokeDeferral(ctx context.Context, c *call, code string) error {
	id, ok := grantOf(code)
	if !ok {
		return nil
	}
	g, err := s.deferral(ctx, c, id, code)
	var e *oauthError
	switch {
	case errors.As(err, &e) && e.word == oauthInvalidGrant:
		return nil
	case err != nil:
		return err
	case g.State != wire.GrantWaiting && g.State != wire.GrantApproved:
		return nil
	}
	c.caller.Idem = nil
	_, err = c.broker.CancelGrant(ctx, c.caller, id, wire.EndGrantRequest{Reason: "The client revoked its deferral code."})
	if fault.KindOf(err) == fault.Conflict { // it ended meanwhile
		return nil
	}
	return err
}
