package api

import (
	"crypto/tls"
	"fmt"
	"sync/atomic"
)

// Certificates holds a server's certificate, which can be exchanged while
// connections are served. Safe for concurrent use.
type Certificates struct {
	load    func() (tls.Certificate, error)
	current atomic.Pointer[tls.Certificate]
}

// NewCertificates calls load for the first certificate. [Certificates.Reload]
// calls it again.
func NewCertificates(load func() (tls.Certificate, error)) (*Certificates, error) {
	c := &Certificates{load: load}
	if err := c.Reload(); err != nil {
		return nil, err
	}
	return c, nil
}

// CertificateFiles loads a PEM certificate chain and its key from files.
func CertificateFiles(cert, key string) (*Certificates, error) {
	return NewCertificates(func() (tls.Certificate, error) { return tls.LoadX509KeyPair(cert, key) })
}

// Reload loads the certificate anew. When that fails, the one in use stays.
func (c *Certificates) Reload() error {
	cert, err := c.load()
	if err != nil {
		return fmt.Errorf("api: server certificate: %w", err)
	}
	c.current.Store(&cert)
	return nil
}

// TLS returns a server's configuration: TLS 1.3, and a client certificate asked
// for but trusted by nobody here. TLS proves that the client holds its key; what
// it is good for, the session or the auth method says (RFC 8705 §2.2).
func (c *Certificates) TLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ClientAuth: tls.RequestClientCert,
		NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return c.current.Load(), nil
		},
	}
}
