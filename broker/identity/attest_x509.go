package identity

import (
	"context"
	"crypto/x509"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
)

// x509Attestor verifies the client certificate of a mutual-TLS connection
// against the method's own CA bundle. It does not ask for revocation: give the
// certificates short lives, or contain the principal.
type x509Attestor struct {
	method Method
	roots  *x509.CertPool
}

func newX509(m Method, deps Deps) (Attestor, error) {
	roots, err := rootsOf(m, deps)
	if err != nil {
		return nil, err
	}
	if len(roots) == 0 {
		return nil, unusable(m, "it has no CA")
	}
	return &x509Attestor{method: m, roots: pool(roots)}, nil
}

// Attest implements [Attestor].
func (a *x509Attestor) Attest(_ context.Context, ev Evidence, now time.Time) (Attested, error) {
	if ferr := ev.check(a.method); ferr != nil {
		return Attested{}, ferr
	}
	if len(ev.PeerCerts) == 0 {
		return Attested{}, unauthenticated(CodeEvidenceMissing, "Auth method %q needs a client certificate.", a.method.Name)
	}
	leaf := ev.PeerCerts[0]
	if leaf.IsCA {
		return Attested{}, unauthenticated(CodeCertificate, "The client certificate is a CA's.")
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: a.roots, Intermediates: pool(ev.PeerCerts[1:]), CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return Attested{}, fault.Wrap(err, fault.Unauthenticated, CodeCertificate, "The client certificate does not verify against the CA of auth method %q.", a.method.Name)
	}
	claims := certificateClaims(leaf)
	b, ferr := a.method.bindClaims(claims)
	if ferr != nil {
		return Attested{}, ferr
	}
	return certified(a.method, ev, b, claims, chains, now), nil
}

// certified is the outcome of a verified chain. The key is attested: the
// certificate's holder is at the other end of the connection, so that a DPoP
// key that came along is its own.
func certified(m Method, ev Evidence, b binding, claims object, chains [][]*x509.Certificate, now time.Time) Attested {
	leaf := ev.PeerCerts[0]
	facts := newFacts(m)
	facts["issuer"] = clipFact(leaf.Issuer.String())
	facts["subject"] = clipFact(leaf.Subject.String())
	facts["serial"] = clipFact(leaf.SerialNumber.Text(16))
	facts["x5t#S256"] = CertThumbprint(leaf)
	m.addClaims(facts, claims)
	return Attested{
		Principal: b.principal, Instance: b.instance, Method: m.Name, AttestedKey: true, Facts: facts,
		ExpiresAt: m.sessionEnd(now, chainEnd(chains)),
	}
}

// chainEnd is when the longest-lived chain stops being valid.
func chainEnd(chains [][]*x509.Certificate) time.Time {
	var best time.Time
	for _, chain := range chains {
		end := chain[0].NotAfter
		for _, c := range chain {
			if c.NotAfter.Before(end) {
				end = c.NotAfter
			}
		}
		if end.After(best) {
			best = end
		}
	}
	return best
}

// certificateClaims are the fields of a certificate that rules may go by. One
// value stands alone and several are a list, so that only an unambiguous field
// can name a principal.
func certificateClaims(leaf *x509.Certificate) object {
	claims := object{"serial": leaf.SerialNumber.Text(16)}
	var uris []string
	for _, u := range leaf.URIs {
		uris = append(uris, u.String())
	}
	var names []string
	if leaf.Subject.CommonName != "" {
		names = []string{leaf.Subject.CommonName}
	}
	for field, values := range map[string][]string{
		"uri": uris, "dns": leaf.DNSNames, "cn": names, "o": leaf.Subject.Organization, "ou": leaf.Subject.OrganizationalUnit,
	} {
		switch len(values) {
		case 0:
		case 1:
			claims[field] = values[0]
		default:
			list := make([]any, len(values))
			for i, v := range values {
				list[i] = v
			}
			claims[field] = list
		}
	}
	return claims
}
