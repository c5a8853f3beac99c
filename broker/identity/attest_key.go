package identity

import (
	"context"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
)

// typeAssertion is the explicit type of a client assertion
// (draft-ietf-oauth-rfc7523bis): without it any JWT that the key ever signed,
// a DPoP proof among them, might pass for one.
const typeAssertion = "client-authentication+jwt"

// keyAttestor verifies assertions that a principal signed with its registered
// key (private_key_jwt, RFC 7523 §3).
type keyAttestor struct {
	method Method
	issuer string
	lookup func(jkt string) (principal string, ok bool)
}

func newKey(m Method, deps Deps) (Attestor, error) {
	if deps.Issuer == "" || deps.LookupKey == nil {
		return nil, unusable(m, "it lacks the broker's issuer or the registry of keys")
	}
	return &keyAttestor{method: m, issuer: deps.Issuer, lookup: deps.LookupKey}, nil
}

// Attest implements [Attestor]. The assertion must name the key that the
// session will be bound to, by being signed with it or in cnf.
func (a *keyAttestor) Attest(_ context.Context, ev Evidence, now time.Time) (Attested, error) {
	if ferr := ev.check(a.method); ferr != nil {
		return Attested{}, ferr
	}
	if ev.Token.IsZero() {
		return Attested{}, unauthenticated(CodeEvidenceMissing, "Auth method %q needs an assertion.", a.method.Name)
	}
	t, ferr := parseJWS(ev.Token.Reveal(), maxProof, proofAlgorithms, true)
	if ferr != nil {
		return Attested{}, ferr
	}
	if t.typ != typeAssertion {
		return Attested{}, unauthenticated(CodeTokenType, "The assertion's typ is %q, not %s.", clip(t.typ), typeAssertion)
	}
	if ferr := t.verify(t.jwk.Key); ferr != nil {
		return Attested{}, ferr
	}
	jkt, err := KeyThumbprint(t.jwk.Key)
	if err != nil {
		return Attested{}, err
	}
	principal, ok := a.lookup(jkt)
	if !ok || principal == "" || t.claims["iss"] != principal || t.claims["sub"] != principal {
		return Attested{}, unauthenticated(CodePrincipal, "The key is not registered, or not for the principal that the assertion names.")
	}
	exp, id, ferr := a.claims(t.claims, now)
	if ferr != nil {
		return Attested{}, ferr
	}
	if ferr := a.sameKey(t.claims, ev, jkt); ferr != nil {
		return Attested{}, ferr
	}
	facts := newFacts(a.method)
	facts["key"] = jkt
	facts["token_id"] = clipFact(id)
	return Attested{
		Principal: principal, Method: a.method.Name, AttestedKey: true, Facts: facts,
		ExpiresAt:    a.method.sessionEnd(now, time.Time{}),
		OneShot:      oneShot("assertion", jkt, id),
		OneShotUntil: exp.Add(clockSkew),
	}, nil
}

// claims checks times, jti, and the one audience.
func (a *keyAttestor) claims(claims object, now time.Time) (exp time.Time, id string, ferr *fault.Error) {
	if exp, ferr = checkTimes(claims, now); ferr != nil {
		return exp, "", ferr
	}
	if exp.Sub(now) > maxAssertionLife+clockSkew {
		return exp, "", unauthenticated(CodeLifetime, "The assertion is valid for more than %s.", maxAssertionLife)
	}
	audiences, ferr := audienceList(claims)
	if ferr != nil {
		return exp, "", ferr
	}
	// With the token endpoint, or a second audience, another server could hand
	// the assertion on to us.
	if len(audiences) != 1 || audiences[0] != a.issuer {
		return exp, "", unauthenticated(CodeAudience, "The assertion must have one audience, the issuer %q.", a.issuer)
	}
	id, err := claims.text("jti")
	if err != nil || len(id) < minProofID || len(id) > maxTokenID {
		return exp, "", malformed("its jti is not a string of %d to %d bytes", minProofID, maxTokenID)
	}
	return exp, id, nil
}

// sameKey sees to it that a stolen assertion opens nothing (HAZARDS 3).
func (a *keyAttestor) sameKey(claims object, ev Evidence, signer string) *fault.Error {
	confirmed, ferr := confirmation(claims, ev)
	if ferr != nil || confirmed {
		return ferr
	}
	jkt, ferr := ev.clientKey()
	if ferr != nil {
		return ferr
	}
	if !SameThumbprint(jkt, signer) {
		return unauthenticated(CodeKeyBinding, "The assertion does not name the key that this client holds; put it into cnf, or use the registered key for the session too.")
	}
	return nil
}
