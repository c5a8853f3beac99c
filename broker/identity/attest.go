package identity

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"net/http"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/secret"
)

// Evidence is what a client brought to log in. The zero value proves nothing.
type Evidence struct {
	// Method is the name of the method the client chose; it must be the
	// attestor's own.
	Method string
	// Token is a JWT: an ID token, a JWT-SVID, or a key's assertion.
	Token secret.Text
	// ClientJKT is the thumbprint of the key that a DPoP proof in the same
	// request has proven ([Verifier.Verify]); empty without a proof.
	ClientJKT string
	// PeerCerts are the connection's tls.ConnectionState.PeerCertificates: TLS
	// has proven the first one's key, and nothing has verified the chain.
	PeerCerts []*x509.Certificate
}

// Attested is what evidence proves. It says who, never what for.
type Attested struct {
	// Principal is `kind:name`. That it exists is the caller's to check.
	Principal string
	// Instance tells apart the runs of one principal (pod uid, run id); empty
	// where the method's rule names none.
	Instance string
	Method   string
	// AttestedKey: the evidence itself names the key that the session will be
	// bound to, or was given by its holder in person (mutual TLS). False means
	// that whoever stole the token could bind it to a key of theirs.
	AttestedKey bool
	// Facts go to policy and audit: at most 40, values of at most 256 bytes, no
	// secret. Claims have names that start with "claim.".
	Facts map[string]string
	// ExpiresAt is the latest end of a session on this evidence.
	ExpiresAt time.Time
	// OneShot, where not empty, names evidence that must be consumed through
	// the log before a session opens, and be remembered until OneShotUntil. The
	// caller may let the very same client key present it again.
	OneShot      string
	OneShotUntil time.Time
}

// An Attestor verifies the evidence of one method. Safe for concurrent use.
//
// Errors are *fault.Error: kind unauthenticated with one of this package's
// codes when the evidence does not stand; kind unavailable, [CodeIssuerDown],
// when the issuer's keys cannot be had now.
type Attestor interface {
	Attest(ctx context.Context, ev Evidence, now time.Time) (Attested, error)
}

// Deps are what attestors need of the outside; each method type needs some.
type Deps struct {
	// HTTP fetches discovery documents and keys (oidc). Redirects are not
	// followed and sizes and times are bounded, whatever the client allows. A
	// method with its own ca needs a client whose Transport is nil or an
	// *http.Transport.
	HTTP *http.Client
	// ReadFile reads a method's jwks_file and ca_file; nil means that this node
	// takes inline keys only.
	ReadFile func(name string) ([]byte, error)
	// Issuer is the broker's own issuer identifier, the one audience of
	// assertions (key).
	Issuer string
	// LookupKey finds the principal that has registered the key with this
	// thumbprint for sessions (key).
	LookupKey func(jkt string) (principal string, ok bool)
	// FetchTimeout bounds one fetch of an issuer's keys; default 5 s.
	FetchTimeout time.Duration
}

// NewAttestor returns the attestor of a method. The error has kind invalid and
// code [CodeMethodUnusable] where deps lack what the method needs, or for the
// type enroll, which the ledger redeems.
func NewAttestor(m Method, deps Deps) (Attestor, error) {
	switch m.Type {
	case MethodOIDC:
		return newOIDC(m, deps)
	case MethodJWT:
		return newJWT(m, deps)
	case MethodX509:
		return newX509(m, deps)
	case MethodSPIFFE:
		return newSPIFFE(m, deps)
	case MethodKey:
		return newKey(m, deps)
	case MethodEnroll:
		return nil, unusable(m, "enrolment tokens are redeemed through the ledger")
	default:
		return nil, unusable(m, "it has no type")
	}
}

func unusable(m Method, why string) *fault.Error {
	return fault.New(fault.Invalid, CodeMethodUnusable, "Auth method %q cannot be used on this node: %s.", clip(m.Name), why)
}

// check refuses evidence that was not meant for the method.
func (ev Evidence) check(m Method) *fault.Error {
	if ev.Method != m.Name {
		return fault.New(fault.Internal, "", "evidence for another method reached the attestor")
	}
	if len(ev.PeerCerts) > maxChain {
		return unauthenticated(CodeCertificate, "The certificate chain is longer than %d.", maxChain)
	}
	return nil
}

// clientKey returns the thumbprint of the key that the session will be bound
// to: the DPoP key, and without a proof that of the TLS certificate. Empty
// means that the client has proven no key.
func (ev Evidence) clientKey() (string, *fault.Error) {
	if ev.ClientJKT != "" {
		return ev.ClientJKT, nil
	}
	if len(ev.PeerCerts) == 0 {
		return "", nil
	}
	jkt, err := KeyThumbprint(crypto.PublicKey(ev.PeerCerts[0].PublicKey))
	if err != nil {
		return "", fault.As(err)
	}
	return jkt, nil
}

// sessionEnd is the earlier of the method's longest session and the evidence's
// own end.
func (m Method) sessionEnd(now, evidence time.Time) time.Time {
	end := now.Add(m.MaxTTL)
	if !evidence.IsZero() && evidence.Before(end) {
		return evidence
	}
	return end
}

// oneShot names evidence for the log without telling what it was.
func oneShot(parts ...string) string {
	h := sha256.New()
	h.Write([]byte("mayfly.oneshot.v1\x00"))
	for _, p := range parts {
		sum := sha256.Sum256([]byte(p)) // fixed size, so that parts cannot run together
		h.Write(sum[:])
	}
	return strictBase64.EncodeToString(h.Sum(nil))
}
