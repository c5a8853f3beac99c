package api

import (
	"context"
	"crypto"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
)

const (
	assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
	// logoutWait bounds the ending of a session that served one call.
	logoutWait = 5 * time.Second
)

// clientEvidence is a client's authentication by private_key_jwt (RFC 7523
// §2.2); empty where the call has a session.
func clientEvidence(c *call) (in wire.LoginRequest, err error) {
	f := c.form
	if _, ok := f.first("client_secret"); ok {
		return in, badClient("Client secrets open nothing here. Authenticate by private_key_jwt: client_assertion, signed with a registered key.")
	}
	assertion, typ := f["client_assertion"], f["client_assertion_type"]
	switch {
	case c.scheme != "" && (assertion != "" || typ != ""):
		return in, oauthRefuse(oauthInvalidRequest, "Authenticate in one way: by the session in the Authorization header, or by client_assertion.")
	case c.scheme != "":
		return in, nil
	case assertion == "":
		return in, badClient("The client is not authenticated. Send client_assertion and client_assertion_type (private_key_jwt, RFC 7523), with the issuer as the one audience.")
	case typ != assertionType:
		return in, badClient("client_assertion_type must be %s.", assertionType)
	}
	return wire.LoginRequest{Token: assertion}, nil
}

// exchangeEvidence is the subject token of a token exchange (RFC 8693 §2.1):
// evidence for an auth method, and the caller's one authentication.
func exchangeEvidence(c *call) (in wire.LoginRequest, err error) {
	f := c.form
	if name, ok := f.first("actor_token", "actor_token_type"); ok {
		return in, oauthRefuse(oauthInvalidRequest, "%s is not supported yet: who works for somebody else does so in a child task (mayfly task start --for).", name)
	}
	if name, ok := f.first("client_assertion", "client_assertion_type", "client_secret"); ok || c.scheme != "" {
		if name == "" {
			name = "the Authorization header"
		}
		return in, oauthRefuse(oauthInvalidRequest, "A token exchange is authenticated by its subject token alone; leave out %s.", name)
	}
	switch typ := f["subject_token_type"]; {
	case f["subject_token"] == "":
		return in, oauthRefuse(oauthInvalidRequest, "The parameter subject_token is missing.")
	case typ != tokenJWT && typ != tokenID:
		return in, oauthRefuse(oauthInvalidRequest, "subject_token_type must be %s or %s.", tokenJWT, tokenID)
	case f["mayfly_method"] == "":
		return in, oauthRefuse(oauthInvalidRequest, "The parameter mayfly_method is missing: the name of the AuthMethod that knows the subject token's issuer.")
	}
	return wire.LoginRequest{Method: f["mayfly_method"], Token: f["subject_token"]}, nil
}

func badClient(detail string, args ...any) error {
	return fault.New(fault.Unauthenticated, oauthInvalidClient, detail, args...)
}

// login opens a session on evidence and on the key that the connection or the
// proof has shown.
func (s *Server) login(ctx context.Context, c *call, in wire.LoginRequest) (wire.LoginAnswer, error) {
	c.login.LoginRequest = in
	answer, err := c.broker.Login(ctx, c.login)
	if e := fault.As(err); e != nil && e.Kind == fault.Unauthenticated && c.form["grant_type"] == grantExchange {
		// RFC 8693 §2.2.2: a bad subject token is a bad request.
		return answer, &oauthError{cause: e, word: oauthInvalidRequest}
	}
	if err != nil {
		return answer, err
	}
	if err := s.sameClient(c, answer.Principal); err != nil {
		s.logout(ctx, c, answer.SessionToken)
		return answer, err
	}
	return answer, nil
}

// sameClient compares client_id, where there is one, with who was proven
// (RFC 7521 §4.2).
func (s *Server) sameClient(c *call, principal string) error {
	if id := c.form["client_id"]; id != "" && id != principal {
		return badClient("client_id is not the principal that the evidence proves. Leave it out, or write it as kind:name.")
	}
	return nil
}

// enter makes c.caller the session to work in: the one that the call brought,
// or one that is opened on evidence and that end closes again.
func (s *Server) enter(ctx context.Context, c *call, in wire.LoginRequest) (end func(), err error) {
	if c.scheme != "" {
		return func() {}, s.sameClient(c, c.caller.Session.Principal)
	}
	answer, err := s.login(ctx, c, in)
	if err != nil {
		return nil, err
	}
	end = func() { s.logout(ctx, c, answer.SessionToken) }
	if c.caller.Session, err = c.broker.Session(ctx, answer.SessionToken); err != nil {
		end()
		return nil, err
	}
	return end, nil
}

// logout ends a session that served one call, also when the client is gone. If
// it cannot be ended it expires: nobody was told its token.
func (s *Server) logout(ctx context.Context, c *call, token string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), logoutWait)
	defer cancel()
	ses, err := c.broker.Session(ctx, token)
	if err == nil {
		err = c.broker.Logout(ctx, broker.Caller{Session: ses, Address: c.address})
	}
	if err != nil {
		s.log.WarnContext(ctx, "a session for one call was not ended; it will expire", "request", c.id, "error", err)
	}
}

// proofKey returns the public key of the request's DPoP proof, which was
// verified before: tokens that are issued are bound to it (RFC 9449 §5). Nil
// without a proof.
func proofKey(h http.Header) json.RawMessage {
	head, _, _ := strings.Cut(h.Get("DPoP"), ".")
	raw, err := base64.RawURLEncoding.DecodeString(head)
	if err != nil {
		return nil
	}
	var proof struct {
		JWK jose.JSONWebKey `json:"jwk"`
	}
	if json.Unmarshal(raw, &proof) != nil || !proof.JWK.Valid() || !proof.JWK.IsPublic() {
		return nil
	}
	// Not more than the key: whatever else a client writes there is not kept.
	out, err := json.Marshal(jose.JSONWebKey{Key: crypto.PublicKey(proof.JWK.Key)})
	if err != nil {
		return nil
	}
	return out
}

// provenKey is the thumbprint of the key or certificate that this call has
// shown to hold, whichever session it will work in.
func (c *call) provenKey() string {
	switch {
	case c.scheme != "":
		return c.caller.Session.Thumbprint
	case c.login.JKT != "":
		return c.login.JKT
	}
	return c.login.X5T
}

// confirmation is a session's cnf (RFC 9449 §6.1, RFC 8705 §3.1).
func confirmation(ses ledger.Session) map[string]string {
	if ses.Binding == schemeMTLS {
		return map[string]string{"x5t#S256": ses.Thumbprint}
	}
	return map[string]string{"jkt": ses.Thumbprint}
}
