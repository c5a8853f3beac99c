package identity

import (
	"context"
	"crypto"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
)

// A keySource finds the keys that a token may have been signed by. It fails
// with CodeUnknownKey or CodeIssuerDown.
type keySource interface {
	find(ctx context.Context, t *jws, now time.Time) ([]crypto.PublicKey, error)
}

// tokenAttestor verifies JWTs of one issuer: ID tokens (oidc, jwt) and
// JWT-SVIDs (spiffe) alike.
type tokenAttestor struct {
	method Method
	keys   keySource
	types  []string // accepted typ, lower case
}

// idTokenTypes: an ID token says JWT or nothing. Every other explicit type
// (RFC 8725 §3.11) is a token for another purpose: dpop+jwt, logout+jwt,
// secevent+jwt, client-authentication+jwt.
var idTokenTypes = []string{"", "jwt"}

// Attest implements [Attestor].
func (a *tokenAttestor) Attest(ctx context.Context, ev Evidence, now time.Time) (Attested, error) {
	if ferr := ev.check(a.method); ferr != nil {
		return Attested{}, ferr
	}
	t, err := a.verify(ctx, ev, now)
	if err != nil {
		return Attested{}, err
	}
	out, err := a.attest(t, ev, t.claims, now)
	if err != nil {
		return Attested{}, err
	}
	if out.AttestedKey {
		return out, nil
	}
	return a.onlyOnce(out, t, now)
}

// verify reads the token and checks type, signature and times.
func (a *tokenAttestor) verify(ctx context.Context, ev Evidence, now time.Time) (*jws, error) {
	if ev.Token.IsZero() {
		return nil, unauthenticated(CodeEvidenceMissing, "Auth method %q needs a token.", a.method.Name)
	}
	t, ferr := parseJWS(ev.Token.Reveal(), maxToken, tokenAlgorithms, false)
	if ferr != nil {
		return nil, ferr
	}
	if !slices.Contains(a.types, strings.ToLower(t.typ)) {
		return nil, unauthenticated(CodeTokenType, "The token has type %q; it was made for another purpose.", clip(t.typ))
	}
	// Another issuer's token asks this issuer for no keys. A JWT-SVID need not
	// have an issuer; its sub is checked against the trust domain.
	if a.method.Type != MethodSPIFFE && t.claims["iss"] != a.method.Issuer {
		return nil, errIssuer(t.claims, a.method.Issuer)
	}
	if err := a.signature(ctx, t, now); err != nil {
		return nil, err
	}
	return t, nil
}

func (a *tokenAttestor) signature(ctx context.Context, t *jws, now time.Time) error {
	keys, err := a.keys.find(ctx, t, now)
	if err != nil {
		return err
	}
	refused := errUnknownKey(t.kid)
	for _, key := range keys {
		ferr := t.verify(key)
		if ferr == nil {
			return nil
		}
		refused = ferr
	}
	return refused
}

// attest checks times, audience and key, and binds the claims.
func (a *tokenAttestor) attest(t *jws, ev Evidence, claims object, now time.Time) (Attested, error) {
	exp, ferr := checkTimes(t.claims, now)
	if ferr != nil {
		return Attested{}, ferr
	}
	audience, keyed, ferr := a.audience(t.claims, ev)
	if ferr != nil {
		return Attested{}, ferr
	}
	confirmed, ferr := confirmation(t.claims, ev)
	if ferr != nil {
		return Attested{}, ferr
	}
	subject, err := t.claims.text("sub")
	if err != nil || len(subject) > maxTokenID {
		return Attested{}, malformed("its sub is not a string of at most %d bytes", maxTokenID)
	}
	b, ferr := a.method.bindClaims(claims)
	if ferr != nil {
		return Attested{}, ferr
	}
	facts := newFacts(a.method)
	facts["subject"] = clipFact(subject)
	facts["audience"] = clipFact(audience)
	facts["issuer"] = clipFact(a.method.Issuer)
	if id, err := t.claims.text("jti"); err == nil && id != "" {
		facts["token_id"] = clipFact(id)
	}
	a.method.addClaims(facts, claims)
	return Attested{
		Principal: b.principal, Instance: b.instance, Method: a.method.Name,
		AttestedKey: keyed || confirmed, Facts: facts,
		ExpiresAt: a.method.sessionEnd(now, exp.Add(clockSkew)),
	}, nil
}

// onlyOnce marks a bearer token as one-shot (HAZARDS 3): it names no key, so
// the first to bring it gets the session and the second learns of the theft.
func (a *tokenAttestor) onlyOnce(out Attested, t *jws, now time.Time) (Attested, error) {
	exp, _, _ := t.claims.seconds("exp")
	until := time.Unix(exp, 0).Add(clockSkew)
	if until.Sub(now) > maxOneShotLife+clockSkew {
		return Attested{}, unauthenticated(CodeLifetime, "The token is valid for more than %s and names no key, so it cannot be remembered as used; ask for a shorter one.", maxOneShotLife)
	}
	id, err := t.claims.text("jti")
	if err != nil || len(id) > maxTokenID {
		return Attested{}, malformed("its jti is not a string of at most %d bytes", maxTokenID)
	}
	if id != "" {
		out.OneShot = oneShot("jti", a.method.Issuer, id)
	} else {
		out.OneShot = oneShot("token", a.method.Issuer, string(t.digest[:]))
	}
	out.OneShotUntil = until
	return out, nil
}

func errIssuer(claims object, want string) *fault.Error {
	got, _ := claims["iss"].(string)
	return unauthenticated(CodeIssuer, "The token's issuer is %q; the method's is %q.", clip(got), want)
}

// checkTimes checks exp, nbf and iat with a small allowance for clocks, and
// returns exp, without which no token is accepted.
func checkTimes(claims object, now time.Time) (time.Time, *fault.Error) {
	var at [3]time.Time
	for i, name := range []string{"exp", "nbf", "iat"} {
		unix, there, err := claims.seconds(name)
		switch {
		case err != nil:
			return time.Time{}, malformed("its %v", err)
		case there:
			at[i] = time.Unix(unix, 0)
		case name == "exp":
			return time.Time{}, unauthenticated(CodeLifetime, "The token has no end (exp).")
		}
	}
	exp, nbf, iat := at[0], at[1], at[2]
	if !now.Before(exp.Add(clockSkew)) {
		return time.Time{}, unauthenticated(CodeExpired, "The token expired at %s.", exp.UTC().Format(time.RFC3339))
	}
	if now.Add(clockSkew).Before(nbf) || now.Add(clockSkew).Before(iat) {
		return time.Time{}, unauthenticated(CodeNotYetValid, "The token is of the future; compare the issuer's clock with this node's.")
	}
	return exp, nil
}

// audienceList reads aud: one string or a list of them (RFC 7519 §4.1.3).
func audienceList(claims object) ([]string, *fault.Error) {
	var out []string
	switch v := claims["aud"].(type) {
	case string:
		out = []string{v}
	case []any:
		for _, item := range v {
			s, ok := item.(string)
			if !ok {
				return nil, malformed("its aud is not a string or a list of strings")
			}
			out = append(out, s)
		}
	}
	if len(out) == 0 || len(out) > maxAudiences {
		return nil, unauthenticated(CodeAudience, "The token names no audience, or more than %d.", maxAudiences)
	}
	return out, nil
}

// audience returns which of the token's audiences is ours, and whether it names
// the client's key.
func (a *tokenAttestor) audience(claims object, ev Evidence) (string, bool, *fault.Error) {
	got, ferr := audienceList(claims)
	if ferr != nil {
		return "", false, ferr
	}
	for _, ours := range a.method.Audiences {
		if !a.method.KeyInAudience {
			if slices.Contains(got, ours) {
				return ours, false, nil
			}
			continue
		}
		jkt, ferr := ev.clientKey()
		if ferr != nil {
			return "", false, ferr
		}
		for _, aud := range got {
			named, ok := strings.CutPrefix(aud, ours+"#")
			if !ok {
				continue
			}
			if SameThumbprint(named, jkt) {
				return ours, true, nil
			}
			return "", false, unauthenticated(CodeKeyBinding, "The token was made for another key than the one this client holds.")
		}
	}
	want := fmt.Sprintf("%q", a.method.Audiences)
	if a.method.KeyInAudience {
		want += " followed by # and the thumbprint of the client's key"
	}
	return "", false, unauthenticated(CodeAudience, "The token was made for another audience; this method takes %s.", want)
}

// confirmation checks cnf (RFC 7800): a token that names a key is good with
// that key only, and one that names it in a way we cannot check is not good.
func confirmation(claims object, ev Evidence) (bool, *fault.Error) {
	v, there := claims["cnf"]
	if !there {
		return false, nil
	}
	cnf, ok := v.(object)
	if !ok || len(cnf) == 0 {
		return false, malformed("its cnf is not an object")
	}
	jkt, ferr := ev.clientKey()
	if ferr != nil {
		return false, ferr
	}
	for member, value := range cnf {
		want, ok := value.(string)
		same := false
		switch member {
		case "jkt":
			same = SameThumbprint(want, jkt)
		case "x5t#S256":
			same = CertMatches(ev.PeerCerts, want)
		}
		if !ok || !same {
			return false, unauthenticated(CodeKeyBinding, "The token was made for another key than the one this client holds (cnf).")
		}
	}
	return true, nil
}
