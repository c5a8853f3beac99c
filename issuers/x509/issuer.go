package x509

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

// issuer signs certificates for one target.
type issuer struct {
	name   string
	draft  bool
	spec   spec
	ca     authority
	closed atomic.Bool
}

// Open implements [issuers.Kind]. It needs the target's [SecretKey] and
// [SecretCertificate]. An expired CA opens too, so that leases can be withdrawn;
// Mint then refuses.
func (Kind) Open(t issuers.Target) (issuers.Issuer, error) {
	sp, err := parseSpec(t.Spec)
	if err != nil {
		return nil, err
	}
	ca, err := readCA(t.Secrets)
	if err != nil {
		return nil, fmt.Errorf("x509: %w", err)
	}
	return &issuer{name: t.Name, draft: t.Draft, spec: sp, ca: ca}, nil
}

// Mint implements [issuers.Issuer]. The clock of the target is this machine's.
// With a CSR, minting the same lease again yields the same certificate to the
// byte: everything in it derives from the lease, and signing is deterministic.
// Without one, each mint makes a new private key, since the last one was never
// stored. There is no generation to compare with: a late re-mint has a serial of
// its own and the requester's same key (HAZARDS 9).
func (i *issuer) Mint(ctx context.Context, l issuers.Lease) (issuers.Credential, error) {
	var none issuers.Credential
	if i.closed.Load() {
		return none, refused(errors.New("the issuer is closed"))
	}
	now := time.Now()
	switch {
	case ctx.Err() != nil:
		return none, &issuers.Error{Kind: issuers.TooLate, Detail: "the caller no longer waits; nothing was signed", Err: ctx.Err()}
	case !now.Before(l.MintDeadline):
		return none, &issuers.Error{Kind: issuers.TooLate, Detail: "the mint deadline has passed; nothing was signed"}
	case now.After(i.ca.cert.NotAfter):
		return none, refused(errors.New("the target's CA has expired"))
	case !now.Before(i.notAfter(l)):
		return none, &issuers.Error{Kind: issuers.TooLate, Detail: "the lease, or the target's max_ttl from its start on, has ended; nothing was signed"}
	case l.Name != Kind{}.CredentialName(l.ID, l.Generation):
		return none, refused(errors.New("the lease's name is not the serial of its id and generation"))
	}
	detail, err := i.spec.compile(l.Scope)
	if err != nil {
		return none, refused(err)
	}
	var csr *request
	if len(l.CSR) > 0 {
		r, err := parseCSR(l.CSR)
		if err != nil {
			return none, badRequest(err)
		}
		csr = &r
	}
	who, err := i.spec.resolve(detail, csr)
	if err != nil {
		return none, badRequest(err)
	}
	c, err := i.issue(l, detail, who, csr)
	if err != nil {
		return none, refused(err)
	}
	return c, nil
}

// issue signs the certificate, for the CSR's key or for one made here.
func (i *issuer) issue(l issuers.Lease, d scope.Detail, who subject, csr *request) (issuers.Credential, error) {
	c := issuers.Credential{}
	var public crypto.PublicKey
	if csr != nil {
		public = csr.key
	} else {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return c, fmt.Errorf("make a private key: %w", err)
		}
		text, err := encodeKey(key)
		if err != nil {
			return c, err
		}
		public = key.Public()
		c.Secret = map[string]secret.Text{"private_key": text}
	}
	template := i.template(l, d, who)
	// Without a source of randomness the signature is deterministic (RFC 6979),
	// so one serial never stands on two certificates for one key.
	der, err := x509.CreateCertificate(nil, template, i.ca.cert, public, i.ca.key)
	if err != nil {
		return issuers.Credential{}, errors.New("the CA could not sign")
	}
	if err := i.verify(der, template); err != nil {
		return issuers.Credential{}, err
	}
	c.Public = map[string]string{
		"certificate": encodeCertificate(der),
		"ca_chain":    i.ca.chain(),
		"serial":      l.Name,
		"expires_at":  template.NotAfter.Format(time.RFC3339),
	}
	return c, nil
}

func (i *issuer) template(l issuers.Lease, d scope.Detail, who subject) *x509.Certificate {
	t := &x509.Certificate{
		SerialNumber:          serialNumber(l.ID, l.Generation),
		Subject:               pkix.Name{CommonName: who.commonName},
		NotBefore:             l.NotBefore.Add(-backdate).UTC().Truncate(time.Second),
		NotAfter:              i.notAfter(l),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true, // and not a CA
	}
	for _, a := range d.Actions {
		switch a {
		case actionClient:
			t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
		case actionServer:
			t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		}
	}
	for _, n := range who.names {
		switch {
		case n.dns != "":
			t.DNSNames = append(t.DNSNames, n.dns)
		case n.ip.IsValid():
			t.IPAddresses = append(t.IPAddresses, net.IP(n.ip.AsSlice()))
		case n.email != "":
			t.EmailAddresses = append(t.EmailAddresses, n.email)
		default:
			t.URIs = append(t.URIs, n.id.URL())
		}
	}
	return t
}

// notAfter is when a lease's certificate ends: never after its lease nor its CA.
// The last second counts as valid (RFC 5280 §4.1.2.5), so it is one earlier.
func (i *issuer) notAfter(l issuers.Lease) time.Time {
	end := l.NotAfter
	for _, limit := range []time.Time{l.NotBefore.Add(i.spec.maxTTL), i.ca.cert.NotAfter} {
		if limit.Before(end) {
			end = limit
		}
	}
	return end.UTC().Truncate(time.Second).Add(-time.Second)
}

// verify looks at a new certificate as a stranger would who trusts the CA: an
// imported CA may have constraints of its own, which only show here.
func (i *issuer) verify(der []byte, template *x509.Certificate) error {
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return errors.New("the signed certificate is not readable")
	}
	usages := template.ExtKeyUsage
	if len(i.ca.cert.ExtKeyUsage) == 0 {
		usages = usages[:1] // the CA restricts no use, so one check stands for all
	}
	for _, usage := range usages {
		_, err := leaf.Verify(x509.VerifyOptions{
			Roots: i.ca.roots, KeyUsages: []x509.ExtKeyUsage{usage},
			CurrentTime: template.NotAfter, // within both validities, whatever the clock
		})
		if err != nil {
			return fmt.Errorf("the CA does not allow this certificate: %w", err)
		}
	}
	return nil
}

// Withdraw has nothing to ask: the package comment says why. It never fails, also
// on a lease that was never minted.
func (i *issuer) Withdraw(_ context.Context, leases []issuers.Lease) []issuers.Outcome {
	out := make([]issuers.Outcome, len(leases))
	for n, l := range leases {
		out[n].Receipt = issuers.Receipt{
			Proof: issuers.ProofExpiresOnly,
			Detail: "nothing to ask: a certificate that was delivered verifies until its notAfter, at the latest " +
				i.notAfter(l).Format(time.RFC3339),
		}
	}
	return out
}

// Publish returns "ca": the CA's certificate and those above it, in PEM; during a
// rotation the other CA's too. There is no "crl"; the package comment says why.
func (i *issuer) Publish(context.Context) (map[string][]byte, error) {
	return map[string][]byte{"ca": []byte(i.ca.trusted())}, nil
}

// Close implements [issuers.Issuer]; it may be called again.
func (i *issuer) Close() error {
	i.closed.Store(true)
	return nil
}

// badRequest is what the requester alone can mend, and so must hear: the CSR, or a
// scope that leaves a name open.
func badRequest(err error) error {
	return &issuers.Error{Kind: issuers.BadScope, Detail: err.Error()}
}

func refused(err error) error {
	return &issuers.Error{Kind: issuers.Refused, Detail: err.Error()}
}
