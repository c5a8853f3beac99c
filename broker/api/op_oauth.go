package api

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// Grant types (RFC 6749 §4.4, RFC 8693 §2.1,
// draft-ietf-oauth-deferred-token-response-01 §5).
const (
	grantClient   = "client_credentials"
	grantExchange = "urn:ietf:params:oauth:grant-type:token-exchange"
	grantDeferred = "urn:ietf:params:oauth:grant-type:deferred"
)

// Types of tokens (RFC 8693 §3). A credential is what is no token: an account
// on a database, a certificate with its key.
const (
	tokenAccess     = "urn:ietf:params:oauth:token-type:access_token"
	tokenJWT        = "urn:ietf:params:oauth:token-type:jwt"
	tokenID         = "urn:ietf:params:oauth:token-type:id_token"
	tokenDeferral   = "urn:ietf:params:oauth:token-type:deferral-code"
	tokenCredential = "urn:mayfly:params:oauth:token-type:credential"
)

// tokenAnswer is the answer of the token endpoint (RFC 6749 §5.1, RFC 8693
// §2.2.1, RFC 9396 §7).
type tokenAnswer struct {
	AccessToken     string            `json:"access_token"`
	IssuedTokenType string            `json:"issued_token_type"`
	TokenType       string            `json:"token_type"`
	ExpiresIn       int64             `json:"expires_in"`
	Details         []json.RawMessage `json:"authorization_details,omitempty"`
	Credential      map[string]string `json:"credential,omitempty"`
	LeaseID         string            `json:"lease_id,omitempty"`
	GrantID         string            `json:"grant_id,omitempty"`
	TaskID          string            `json:"task_id,omitempty"`
	DecisionID      string            `json:"decision_id,omitempty"`
}

// addOAuth registers the OAuth endpoints. They stand outside of the OpenAPI
// document: RFC 8414's document describes them.
func (f *surface) addOAuth() {
	s := f.server
	f.oauth("/oauth/token", atLeader, s.token)
	f.oauth("/oauth/introspect", anywhere, s.introspect)
	f.oauth("/oauth/revoke", atLeader, s.revoke)
}

// oauth registers one endpoint. A handler's nil answer is an empty one.
func (f *surface) oauth(path string, at place, do func(ctx context.Context, c *call, r *http.Request) (any, error)) {
	s := f.server
	rt := &route{method: http.MethodPost, path: path, access: needClient, place: at, timeout: longCall, maxBody: smallBody, form: true}
	f.mux.HandleFunc(rt.pattern(), func(w http.ResponseWriter, r *http.Request) {
		s.serve(rt, w, r, func(w http.ResponseWriter, r *http.Request) {
			c := callOf(r.Context())
			out, err := do(r.Context(), c, r)
			switch {
			case err != nil && s.leaderMust(c, err):
				c.elsewhere = true
			case err != nil:
				s.fail(w, r, err)
			case out == nil:
				w.WriteHeader(http.StatusOK)
			default:
				w.Header().Set("Pragma", "no-cache") // RFC 6749 §5.1; Cache-Control is on every answer
				if err := writeJSON(w, out); err != nil {
					s.fail(w, r, err)
				}
			}
		})
	})
}

// leaderMust reports whether err says that only the leader can answer, and the
// call may go on to there.
func (s *Server) leaderMust(c *call, err error) bool {
	e := fault.As(err)
	return e.Kind == fault.Unavailable && e.Code == CodeNoLeader && c.mayGoOn && !s.node.IsLeader()
}

// token is the token endpoint.
func (s *Server) token(ctx context.Context, c *call, r *http.Request) (any, error) {
	if c.caller.Idem != nil {
		c.caller.Idem.Hash = c.form.hash(c.route.path)
	}
	switch c.form["grant_type"] {
	case "":
		return nil, oauthRefuse(oauthInvalidRequest, "The parameter grant_type is missing.")
	case grantClient:
		return s.tokenFor(ctx, c, r, clientEvidence)
	case grantExchange:
		return s.tokenFor(ctx, c, r, exchangeEvidence)
	case grantDeferred:
		return s.poll(ctx, c, r)
	}
	return nil, oauthRefuse(oauthUnsupported, "This grant type is not served; use %s, %s or %s.", grantClient, grantExchange, grantDeferred)
}

// tokenFor answers with a session, or, where a role is asked for, with a
// credential of it.
func (s *Server) tokenFor(ctx context.Context, c *call, r *http.Request, evidence func(*call) (wire.LoginRequest, error)) (any, error) {
	want, err := s.wanted(c.form)
	if err != nil {
		return nil, err
	}
	in, err := evidence(c)
	if err != nil {
		return nil, err
	}
	if want == nil {
		if c.scheme != "" {
			return nil, oauthRefuse(oauthInvalidRequest, "You have a session already. Ask for a role in authorization_details.")
		}
		answer, err := s.login(ctx, c, in)
		if err != nil {
			return nil, err
		}
		return tokenAnswer{AccessToken: answer.SessionToken, IssuedTokenType: tokenAccess, TokenType: answer.TokenType, ExpiresIn: s.secondsTo(answer.ExpiresAt)}, nil
	}
	end, err := s.enter(ctx, c, in)
	if err != nil {
		return nil, err
	}
	defer end()
	want.PublicKey = proofKey(r.Header)
	answer, err := c.broker.Request(ctx, c.caller, want.AccessRequest)
	if err != nil {
		return nil, err
	}
	if answer.Status == "waiting" {
		return nil, s.deferred(ctx, c, answer)
	}
	return s.issued(answer)
}

// issued is the answer with a credential. What was granted stands in
// authorization_details as it was asked for: the role, and its effective scope.
func (s *Server) issued(a wire.AccessAnswer) (any, error) {
	details, err := grantedDetails(a)
	if err != nil {
		return nil, err
	}
	out := tokenAnswer{ExpiresIn: s.secondsTo(a.ExpiresAt), Details: details, LeaseID: a.LeaseID, GrantID: a.GrantID, TaskID: a.TaskID, DecisionID: a.DecisionID}
	if token := a.Credential["token"]; token != "" {
		out.AccessToken, out.IssuedTokenType, out.TokenType = token, tokenAccess, a.Credential["token_type"]
		if out.TokenType == "" {
			out.TokenType = "Bearer"
		}
		return out, nil
	}
	// RFC 8693 §2.2.1 wants access_token even of what is no token: there it is
	// the credential's JSON, which libraries hand on as they would a token.
	text, err := json.Marshal(a.Credential)
	if err != nil {
		return nil, err
	}
	out.AccessToken, out.IssuedTokenType, out.TokenType, out.Credential = string(text), tokenCredential, "N_A", a.Credential
	return out, nil
}

// secondsTo is how long until t, in whole seconds and never negative.
func (s *Server) secondsTo(t time.Time) int64 {
	return max(0, int64(t.Sub(s.clock())/time.Second))
}

// oauthMetadata is what this server's OAuth endpoints can do (RFC 8414 §2 and
// the registries that RFC 9449, RFC 9396 and the deferred token response add to).
func (s *Server) oauthMetadata() map[string]any {
	issuer := s.issuer()
	algs := []string{"ES256", "EdDSA"}
	methods := []string{"private_key_jwt"}
	return map[string]any{
		"issuer":                                issuer,
		"jwks_uri":                              issuer + "/oauth/jwks",
		"token_endpoint":                        issuer + "/oauth/token",
		"introspection_endpoint":                issuer + "/oauth/introspect",
		"revocation_endpoint":                   issuer + "/oauth/revoke",
		"grant_types_supported":                 []string{grantClient, grantExchange, grantDeferred},
		"token_endpoint_auth_methods_supported": append(methods, "none"), // none: a subject token speaks for itself
		"token_endpoint_auth_signing_alg_values_supported":         algs,
		"introspection_endpoint_auth_methods_supported":            methods,
		"introspection_endpoint_auth_signing_alg_values_supported": algs,
		"revocation_endpoint_auth_methods_supported":               methods,
		"revocation_endpoint_auth_signing_alg_values_supported":    algs,
		"dpop_signing_alg_values_supported":                        algs,
		"authorization_details_types_supported":                    []string{detailRole},
		"deferred_token_response_supported":                        true,
		"revocation_endpoint_token_type_values_supported":          []string{tokenAccess, tokenDeferral, tokenCredential},
		// There is no authorization endpoint; RFC 8414 wants the member all the same.
		"response_types_supported": []string{},
	}
}

// oauthDiscovery serves RFC 8414's document.
func (s *Server) oauthDiscovery(w http.ResponseWriter, _ *http.Request) error {
	body, err := json.Marshal(s.oauthMetadata())
	if err != nil {
		return err
	}
	return public(w, mediaJSON, body)
}

// issuer is the issuer identifier, the one audience of assertions.
func (s *Server) issuer() string { return strings.TrimSuffix(s.cfg.ExternalURLs[0], "/") }

// isHidden reports whether err says that something does not exist, or is not
// the caller's to know of.
func isHidden(err error) bool {
	kind := fault.KindOf(err)
	return kind == fault.NotFound || kind == fault.Denied
}
