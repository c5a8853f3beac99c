package x509

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/mayfly-broker/mayfly/secret"
)

// Names of the target's secrets. Both are PEM: a PKCS#8 private key, and the
// CA's certificate followed by those above it, up to the root or below it.
const (
	SecretKey         = "ca_key"
	SecretCertificate = "ca_certificate"
)

// maxChain bounds the certificates of an imported CA, its own included.
const maxChain = 5

// maxTurned bounds what a rotation adds to them: the other CA, and the two by which
// they vouch for each other.
const maxTurned = 3

// backdate lets a verifier whose clock is a little behind accept a certificate
// at once.
const backdate = 30 * time.Second

// MakeSecrets makes the target's CA: a P-256 key and a self-signed certificate
// bounded by the name constraints. Its path length is 1, for the one certificate by
// which it vouches for its successor ([Kind.TurnKeys]); it signs no other CA. To
// have an intermediate of an existing CA instead, the target is written with both
// secrets given.
func (Kind) MakeSecrets(raw json.RawMessage) (map[string]secret.Text, error) {
	sp, err := parseSpec(raw)
	if err != nil {
		return nil, err
	}
	key, der, err := sp.makeCA(nil)
	if err != nil {
		return nil, err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return map[string]secret.Text{
		SecretKey:         keyPEM,
		SecretCertificate: secret.New(encodeCertificate(der)),
	}, nil
}

// makeCA makes a CA, by the name of the one before it if there is one.
func (sp spec) makeCA(before *x509.Certificate) (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make the CA key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: sp.CAName},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(sp.caTTL),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            1,
	}
	if before != nil {
		template.RawSubject = before.RawSubject
	}
	sp.NameConstraints.constrain(template)
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, fmt.Errorf("make the CA certificate: %w", err)
	}
	return key, der, nil
}

// constrain puts the constraints into a CA's template; a nil c puts none.
func (c *constraints) constrain(template *x509.Certificate) {
	if c == nil {
		return
	}
	template.PermittedDNSDomainsCritical = true // the extension is; RFC 5280 §4.2.1.10
	template.PermittedDNSDomains = c.DNS
	template.PermittedEmailAddresses = c.Email
	template.PermittedURIDomains = c.SPIFFE
	for _, p := range c.prefixes {
		template.PermittedIPRanges = append(template.PermittedIPRanges, &net.IPNet{
			IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
		})
	}
}

// authority is an opened CA.
type authority struct {
	key   crypto.Signer
	cert  *x509.Certificate
	certs []*x509.Certificate // cert, then what stands above it
	roots *x509.CertPool

	// of a rotation; nil and empty outside one. See the headers in turn.go.
	phase            string
	otherKey         crypto.Signer
	other            *x509.Certificate
	cross, crossNext *x509.Certificate
}

// chain is what is delivered beside a certificate: what leads from it to a root,
// that one included, in PEM. During a rotation the way to the other root comes
// first: OpenSSL takes the first issuer that fits from what a peer sends, and turns
// back from no root that it does not trust. Those that it trusts it tries before.
func (ca authority) chain() string {
	return encodeAll([]*x509.Certificate{ca.cross, ca.other}) + encodeAll(ca.certs)
}

// trusted is what verifiers are to trust, the signing CA first. PEM.
func (ca authority) trusted() string {
	return encodeAll(ca.certs) + encodeAll([]*x509.Certificate{ca.other})
}

func encodeAll(certs []*x509.Certificate) (out string) {
	for _, c := range certs {
		if c != nil {
			out += encodeCertificate(c.Raw)
		}
	}
	return out
}

// readCA reads and checks the target's secrets. Its errors never quote them.
func readCA(secrets map[string]secret.Text) (authority, error) {
	var ca authority
	key, other, err := decodeKeys(secrets[SecretKey])
	if err != nil {
		return ca, err
	}
	if ca.key, err = parseKey(key); err != nil {
		return ca, err
	}
	var turned []*pem.Block
	if ca.certs, turned, err = decodeChain(secrets[SecretCertificate]); err != nil {
		return ca, err
	}
	ca.cert = ca.certs[0]
	public, ok := ca.cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	switch {
	case !ok || !public.Equal(ca.key.Public()):
		return ca, errors.New("the secret ca_key is not the key of the first certificate in ca_certificate")
	case !ca.cert.BasicConstraintsValid || !ca.cert.IsCA:
		return ca, errors.New("the first certificate in ca_certificate is not a CA")
	case ca.cert.KeyUsage != 0 && ca.cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return ca, errors.New("the key usage of the first certificate in ca_certificate does not allow signing certificates")
	}
	ca.roots = x509.NewCertPool()
	ca.roots.AddCert(ca.cert)
	for i, c := range ca.certs[1:] {
		if err := ca.certs[i].CheckSignatureFrom(c); err != nil {
			return ca, fmt.Errorf("certificate %d in ca_certificate is not signed by the one after it", i+1)
		}
	}
	return ca, ca.readTurned(turned, other)
}

// decodeKeys takes ca_key apart: the signing key and, during a rotation, another.
func decodeKeys(text secret.Text) (key, other *pem.Block, err error) {
	key, rest := pem.Decode([]byte(text.Reveal()))
	if len(bytes.TrimSpace(rest)) > 0 {
		if other, rest = pem.Decode(rest); other == nil || other.Headers[turnHeader] == "" {
			rest = []byte("no key of a rotation")
		}
	}
	if key == nil || key.Headers[turnHeader] != "" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, nil, errors.New("the secret ca_key is not one PEM block PRIVATE KEY (PKCS#8)")
	}
	return key, other, nil
}

func parseKey(block *pem.Block) (crypto.Signer, error) {
	if block.Type != "PRIVATE KEY" {
		return nil, errors.New("the secret ca_key is not one PEM block PRIVATE KEY (PKCS#8)")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("the secret ca_key is not a PKCS#8 key")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("the secret ca_key cannot sign")
	}
	if err := checkKey(signer.Public()); err != nil {
		return nil, fmt.Errorf("the secret ca_key: %w", err)
	}
	return signer, nil
}

// decodeChain takes ca_certificate apart: the signing CA's chain, and what a
// rotation has put beside it.
func decodeChain(text secret.Text) (certs []*x509.Certificate, turned []*pem.Block, err error) {
	rest := []byte(text.Reveal())
	for len(bytes.TrimSpace(rest)) > 0 {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		switch {
		case block == nil || block.Type != "CERTIFICATE" || len(certs) == maxChain && block.Headers[turnHeader] == "" || len(turned) == maxTurned:
			return nil, nil, fmt.Errorf("the secret ca_certificate is not 1 to %d PEM blocks CERTIFICATE", maxChain)
		case block.Headers[turnHeader] != "":
			turned = append(turned, block)
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, nil, fmt.Errorf("certificate %d in ca_certificate is not readable", len(certs)+1)
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, nil, errors.New("the secret ca_certificate is missing")
	}
	return certs, turned, nil
}

func encodeCertificate(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func encodeKey(key crypto.Signer) (secret.Text, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return secret.Text{}, fmt.Errorf("encode a private key: %w", err)
	}
	return secret.New(string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))), nil
}
