package identity

import (
	"context"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/mayfly-broker/mayfly/broker/fault"
)

// svidTypes: JWT-SVID §2.3.
var svidTypes = []string{"", "jwt", "jose"}

// spiffeAttestor verifies X.509-SVIDs and JWT-SVIDs of one trust domain against
// its bundle, which is configured, never fetched.
type spiffeAttestor struct {
	domain spiffeid.TrustDomain
	bundle *x509bundle.Bundle // nil: no X.509-SVIDs
	tokens *tokenAttestor     // nil: no JWT-SVIDs
	method Method
}

func newSPIFFE(m Method, deps Deps) (Attestor, error) {
	domain, err := spiffeid.TrustDomainFromString(m.TrustDomain)
	if err != nil {
		return nil, unusable(m, "it has no trust domain")
	}
	a := &spiffeAttestor{domain: domain, method: m}
	roots, err := rootsOf(m, deps)
	if err != nil {
		return nil, err
	}
	if len(roots) > 0 {
		a.bundle = x509bundle.FromX509Authorities(domain, roots)
	}
	if len(m.keys) > 0 || m.keysFile != "" {
		keys, err := configuredKeys(m, deps)
		if err != nil {
			return nil, err
		}
		a.tokens = &tokenAttestor{method: m, keys: keys, types: svidTypes}
	}
	if a.bundle == nil && a.tokens == nil {
		return nil, unusable(m, "its bundle holds no key")
	}
	return a, nil
}

// Attest implements [Attestor]. A token is taken before a certificate: a client
// with a self-signed certificate of its own may bring a JWT-SVID.
func (a *spiffeAttestor) Attest(ctx context.Context, ev Evidence, now time.Time) (Attested, error) {
	if ferr := ev.check(a.method); ferr != nil {
		return Attested{}, ferr
	}
	switch {
	case !ev.Token.IsZero() && a.tokens != nil:
		return a.byToken(ctx, ev, now)
	case ev.Token.IsZero() && len(ev.PeerCerts) > 0 && a.bundle != nil:
		return a.byCertificate(ev, now)
	default:
		return Attested{}, unauthenticated(CodeEvidenceMissing, "Auth method %q needs an SVID of a kind that its bundle has keys for.", a.method.Name)
	}
}

func (a *spiffeAttestor) byCertificate(ev Evidence, now time.Time) (Attested, error) {
	id, chains, err := x509svid.Verify(ev.PeerCerts, a.bundle, x509svid.WithTime(now))
	if err != nil {
		return Attested{}, fault.Wrap(err, fault.Unauthenticated, CodeCertificate, "The client certificate is not an X.509-SVID of trust domain %q.", a.domain.Name())
	}
	claims, ferr := a.claims(id)
	if ferr != nil {
		return Attested{}, ferr
	}
	b, ferr := a.method.bindClaims(claims)
	if ferr != nil {
		return Attested{}, ferr
	}
	out := certified(a.method, ev, b, claims, chains, now)
	out.Facts["spiffe_id"] = clipFact(id.String())
	return out, nil
}

// byToken verifies a JWT-SVID. SPIFFE's libraries cache and reuse them, so that
// they are not one-shot; unless the audience names the client's key, policy
// sees attested_key = false (STANDARDS, SPIFFE).
func (a *spiffeAttestor) byToken(ctx context.Context, ev Evidence, now time.Time) (Attested, error) {
	t, err := a.tokens.verify(ctx, ev, now)
	if err != nil {
		return Attested{}, err
	}
	subject, _ := t.claims["sub"].(string)
	id, err := spiffeid.FromString(subject)
	if err != nil {
		return Attested{}, unauthenticated(CodeIssuer, "The token's sub is not a SPIFFE ID.")
	}
	claims, ferr := a.claims(id)
	if ferr != nil {
		return Attested{}, ferr
	}
	out, err := a.tokens.attest(t, ev, claims, now)
	if err != nil {
		return Attested{}, err
	}
	out.Facts["spiffe_id"] = clipFact(id.String())
	out.Facts["issuer"] = clipFact(a.domain.Name())
	return out, nil
}

// claims are what rules may go by, the same for both kinds of SVID.
func (a *spiffeAttestor) claims(id spiffeid.ID) (object, *fault.Error) {
	if !id.MemberOf(a.domain) || id.Path() == "" {
		return nil, unauthenticated(CodeIssuer, "The SPIFFE ID %q is not a workload's of trust domain %q.", clip(id.String()), a.domain.Name())
	}
	return object{"spiffe_id": id.String(), "path": strings.TrimPrefix(id.Path(), "/")}, nil
}
