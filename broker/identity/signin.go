package identity

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/secret"
)

// ConsoleClient is the client as which the console is registered at a provider.
type ConsoleClient struct {
	ClientID string
	Scopes   []string // openid is one of them
}

// console reads the part of a method that lets people sign in by the provider's
// own page.
func (p *specReader) console(m *Method) {
	v, there := p.spec["console"]
	if !there || m.Type != MethodOIDC {
		return
	}
	part, ok := v.(object)
	if !ok {
		p.problem("console: want {client_id, scopes}")
		return
	}
	if m.KeyInAudience {
		p.problem("console: does not go with key_in_audience; a browser has no key that a token could name")
	}
	inner := &specReader{spec: part}
	for _, key := range sortedKeys(part) {
		switch key {
		case "client_id", "scopes":
		case "client_secret":
			inner.problem("client_secret: holds a secret in the clear; write client_secret: {from_file: FILE}")
		default:
			inner.problem("%s: unknown key", clip(key))
		}
	}
	c := &ConsoleClient{ClientID: inner.text("client_id"), Scopes: []string{"openid"}}
	if c.ClientID == "" || len(c.ClientID) > maxTokenID || !printable(c.ClientID) {
		inner.problem("client_id: want 1 to %d printable characters", maxTokenID)
	}
	if inner.has("scopes") {
		c.Scopes = inner.texts("scopes", maxScopes, maxPath)
		if !slices.Contains(c.Scopes, "openid") {
			inner.problem("scopes: openid is missing; without it there is no ID token")
		}
		if slices.ContainsFunc(c.Scopes, func(s string) bool { return strings.ContainsAny(s, " \"\\") }) {
			inner.problem("scopes: write each scope as an entry of its own")
		}
	}
	for _, problem := range inner.problems {
		p.problem("console.%s", problem)
	}
	m.Console = c
}

// RelyingParty signs people in by the authorization code flow of one method's
// provider (OpenID Connect Core §3.1, PKCE, RFC 9207, RFC 9700). It keeps no
// state of a sign-in. It is safe for concurrent use.
type RelyingParty struct {
	method   Method // its audience is the client's id alone
	secret   secret.Text
	provider *discovery
	keys     *keyCache
	attestor *tokenAttestor
}

// AuthRequest is what one sign-in is made of. State goes to the provider and
// comes back; Nonce comes back in the ID token; Verifier goes to the token
// endpoint alone (RFC 7636 §4.1).
type AuthRequest struct {
	RedirectURI, State, Nonce, Verifier string
}

// AuthAnswer is what the provider sent the browser back with. Its state is the
// caller's to compare.
type AuthAnswer struct {
	Code, Issuer, Error string
}

// NewRelyingParty returns the relying party of a method with a [ConsoleClient].
// clientSecret is zero for a public client. The error is that of [NewAttestor].
func NewRelyingParty(m Method, clientSecret secret.Text, deps Deps) (*RelyingParty, error) {
	if m.Type != MethodOIDC || m.Console == nil {
		return nil, unusable(m, "it is not for browsers")
	}
	d, err := newDiscovery(m, deps)
	if err != nil {
		return nil, err
	}
	keys := newKeyCache(d.fetch)
	m.Audiences, m.KeyInAudience = []string{m.Console.ClientID}, false
	return &RelyingParty{method: m, secret: clientSecret, provider: d, keys: keys,
		attestor: &tokenAttestor{method: m, keys: keys, types: idTokenTypes}}, nil
}

// AuthURL returns where to send the browser. Errors are unavailable,
// [CodeIssuerDown], where the provider cannot be asked or says nothing usable.
func (p *RelyingParty) AuthURL(ctx context.Context, in AuthRequest, now time.Time) (string, error) {
	doc, err := p.document(ctx, now)
	if err != nil {
		return "", err
	}
	if methods, listed := doc["code_challenge_methods_supported"].([]any); listed && !slices.Contains(methods, any("S256")) {
		return "", p.misconfigured(errors.New("it offers PKCE, and not by S256"))
	}
	at, err := p.endpoint(doc, "authorization_endpoint")
	if err != nil {
		return "", err
	}
	challenge := sha256.Sum256([]byte(in.Verifier))
	q := at.Query()
	for name, value := range map[string]string{
		"response_type": "code", "client_id": p.method.Console.ClientID, "redirect_uri": in.RedirectURI, "scope": strings.Join(p.method.Console.Scopes, " "),
		"state": in.State, "nonce": in.Nonce, "code_challenge": strictBase64.EncodeToString(challenge[:]), "code_challenge_method": "S256",
	} {
		q.Set(name, value)
	}
	at.RawQuery = q.Encode()
	return at.String(), nil
}

// Redeem checks what the provider answered, has its code turned into an ID
// token, and says whom that names. A token's own end bounds nothing here: it
// says until when it may be handed in, and it was.
func (p *RelyingParty) Redeem(ctx context.Context, in AuthRequest, answer AuthAnswer, now time.Time) (Attested, error) {
	doc, err := p.document(ctx, now)
	if err != nil {
		return Attested{}, err
	}
	// Who answers is checked before what is answered (RFC 9207 §2.4): another
	// provider's code must never reach this one's token endpoint.
	if (answer.Issuer != "" || doc["authorization_response_iss_parameter_supported"] == true) && answer.Issuer != p.method.Issuer {
		return Attested{}, unauthenticated(CodeIssuer, "The answer comes from another provider than %q. Start again.", p.method.Issuer)
	}
	if answer.Error != "" {
		return Attested{}, unauthenticated(CodeProvider, "The provider did not sign you in: %s.", clip(answer.Error))
	}
	if answer.Code == "" || len(answer.Code) > maxCode || !printable(answer.Code) {
		return Attested{}, unauthenticated(CodeProvider, "The provider's answer has no code that could be used. Start again.")
	}
	token, err := p.redeem(ctx, doc, in, answer.Code)
	if err != nil {
		return Attested{}, err
	}
	ev := Evidence{Method: p.method.Name, Token: token}
	t, err := p.attestor.verify(ctx, ev, now)
	if err != nil {
		return Attested{}, err
	}
	if ferr := p.ours(t.claims, in.Nonce); ferr != nil {
		return Attested{}, ferr
	}
	out, err := p.attestor.attest(t, ev, t.claims, now)
	if err != nil {
		return Attested{}, err
	}
	out.ExpiresAt = p.method.sessionEnd(now, time.Time{})
	return out, nil
}

// ours checks that the token was made for this sign-in of this client (OpenID
// Connect Core §3.1.3.7).
func (p *RelyingParty) ours(claims object, nonce string) *fault.Error {
	got, err := claims.text("nonce")
	if err != nil || nonce == "" || subtle.ConstantTimeCompare([]byte(got), []byte(nonce)) != 1 {
		return unauthenticated(CodeNonce, "The provider's token is of another sign-in. Start again.")
	}
	list, ferr := audienceList(claims)
	if ferr != nil {
		return ferr
	}
	if _, there := claims["azp"]; (there || len(list) > 1) && claims["azp"] != p.method.Console.ClientID {
		return unauthenticated(CodeAudience, "The provider's token was made for another client (azp).")
	}
	return nil
}

// document returns the provider's discovery document, as old as its keys.
func (p *RelyingParty) document(ctx context.Context, now time.Time) (object, error) {
	if err := p.keys.ready(ctx, now); err != nil {
		return nil, err
	}
	return *p.provider.latest.Load(), nil // ready: it was read before
}

func (p *RelyingParty) endpoint(doc object, name string) (*url.URL, error) {
	text, err := doc.text(name)
	if err == nil {
		_, err = parseEndpoint(text)
	}
	var u *url.URL
	if err == nil {
		u, err = url.Parse(text)
	}
	if err != nil {
		return nil, p.misconfigured(fmt.Errorf("its %s: %w", name, err))
	}
	u.Fragment = ""
	return u, nil
}

func (p *RelyingParty) misconfigured(err error) *fault.Error {
	return fault.Wrap(err, fault.Unavailable, CodeIssuerDown, "The provider of auth method %q cannot sign anybody in now. Try again, or another way.", p.method.Name)
}

// redeem asks the token endpoint for the ID token (RFC 6749 §4.1.3).
func (p *RelyingParty) redeem(ctx context.Context, doc object, in AuthRequest, code string) (secret.Text, error) {
	at, err := p.endpoint(doc, "token_endpoint")
	if err != nil {
		return secret.Text{}, err
	}
	form := url.Values{"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {in.RedirectURI}, "code_verifier": {in.Verifier}}
	if p.secret.IsZero() {
		form.Set("client_id", p.method.Console.ClientID)
	}
	ctx, cancel := context.WithTimeout(ctx, p.provider.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, at.String(), strings.NewReader(form.Encode()))
	if err != nil {
		return secret.Text{}, p.misconfigured(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if !p.secret.IsZero() {
		// Both are encoded as forms are, and then as RFC 7617 has it (RFC 6749 §2.3.1).
		req.SetBasicAuth(url.QueryEscape(p.method.Console.ClientID), url.QueryEscape(p.secret.Reveal()))
	}
	status, body, err := p.provider.do(req, maxTokenAnswer)
	if err != nil {
		return secret.Text{}, p.misconfigured(err)
	}
	answer, err := decodeObject(body, maxClaimDepth, maxClaims)
	switch {
	case status >= 400 && status < 500:
		why, _ := answer.text("error") // a nil object has no members
		return secret.Text{}, unauthenticated(CodeProvider, "The provider did not take the code: %q. Start again.", clip(why))
	case status != http.StatusOK:
		return secret.Text{}, p.misconfigured(fmt.Errorf("its token endpoint answers %d", status))
	case err != nil:
		return secret.Text{}, p.misconfigured(fmt.Errorf("its token endpoint's answer: %w", err))
	}
	token, err := answer.text("id_token")
	if err != nil || token == "" {
		return secret.Text{}, p.misconfigured(errors.New("its token endpoint gives no ID token"))
	}
	return secret.New(token), nil
}
