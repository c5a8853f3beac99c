package vaulttest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"path/filepath"
	"time"

	"github.com/mayfly-broker/mayfly/e2e/servertest"
)

// authority is a CA of a server's own, and the files it reads.
type authority struct {
	pem           string
	ca, cert, key string // files
	parent        *x509.Certificate
	signer        *ecdsa.PrivateKey
	next          int64
}

// newAuthority makes a CA and a certificate for 127.0.0.1 and localhost.
func newAuthority(dir string, account servertest.Account) (*authority, error) {
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	parent := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "vaulttest"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, parent, parent, &signer.PublicKey, signer)
	if err != nil {
		return nil, err
	}
	a := &authority{
		pem: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), parent: parent, signer: signer, next: 2,
		ca: filepath.Join(dir, "ca.pem"), cert: filepath.Join(dir, "cert.pem"), key: filepath.Join(dir, "key.pem"),
	}
	cert, key, err := a.issue("vault")
	if err != nil {
		return nil, err
	}
	for path, text := range map[string]string{a.ca: a.pem, a.cert: cert, a.key: key} {
		if err := account.WriteFile(path, []byte(text)); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// issue makes a certificate for servers and clients.
func (a *authority) issue(commonName string) (cert, key string, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(a.next), Subject: pkix.Name{CommonName: commonName}, NotBefore: a.parent.NotBefore, NotAfter: a.parent.NotAfter,
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	a.next++
	der, err := x509.CreateCertificate(rand.Reader, leaf, a.parent, &k.PublicKey, a.signer)
	if err != nil {
		return "", "", err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return "", "", err
	}
	cert = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return cert, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})), nil
}

// client is the configuration of a client that trusts this CA alone, and has a
// certificate of it.
func (a *authority) client() (*tls.Config, error) {
	cert, key, err := a.issue("root")
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	if err != nil {
		return nil, err
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: x509.NewCertPool(), Certificates: []tls.Certificate{pair}}
	c.RootCAs.AppendCertsFromPEM([]byte(a.pem))
	return c, nil
}
