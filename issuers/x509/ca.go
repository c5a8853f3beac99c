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
	"math/big"
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

// backdate lets a verifier whose clock is a little behind accept a certificate
// at once.
const backdate = 30 * time.Second

// MakeSecrets makes the target's CA: a P-256 key and a self-signed certificate
// for end entities only (path length 0), bounded by the name constraints. To
// have an intermediate of an existing CA instead, the target is written with
// both secrets given.
func (Kind) MakeSecrets(raw json.RawMessage) (map[string]secret.Text, error) {
	sp, err := parseSpec(raw)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the CA key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make the CA serial: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial.Add(serial, big.NewInt(1)),
		Subject:               pkix.Name{CommonName: sp.CAName},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(sp.caTTL),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	sp.NameConstraints.constrain(template)
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make the CA certificate: %w", err)
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
	chain string // PEM: cert, then what stands above it
	roots *x509.CertPool
}

// readCA reads and checks the target's secrets. Its errors never quote them.
func readCA(secrets map[string]secret.Text) (authority, error) {
	var ca authority
	var err error
	if ca.key, err = decodeKey(secrets[SecretKey]); err != nil {
		return ca, err
	}
	certs, err := decodeChain(secrets[SecretCertificate])
	if err != nil {
		return ca, err
	}
	ca.cert = certs[0]
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
	for i, c := range certs {
		if i > 0 {
			if err := certs[i-1].CheckSignatureFrom(c); err != nil {
				return ca, fmt.Errorf("certificate %d in ca_certificate is not signed by the one after it", i)
			}
		}
		ca.chain += encodeCertificate(c.Raw)
	}
	return ca, nil
}

func decodeKey(text secret.Text) (crypto.Signer, error) {
	block, rest := pem.Decode([]byte(text.Reveal()))
	if block == nil || block.Type != "PRIVATE KEY" || len(bytes.TrimSpace(rest)) > 0 {
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

func decodeChain(text secret.Text) ([]*x509.Certificate, error) {
	rest := []byte(text.Reveal())
	var certs []*x509.Certificate
	for len(bytes.TrimSpace(rest)) > 0 {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil || block.Type != "CERTIFICATE" || len(certs) == maxChain {
			return nil, fmt.Errorf("the secret ca_certificate is not 1 to %d PEM blocks CERTIFICATE", maxChain)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d in ca_certificate is not readable", len(certs)+1)
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New("the secret ca_certificate is missing")
	}
	return certs, nil
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
