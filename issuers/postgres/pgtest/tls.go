package pgtest

import (
	"crypto/tls"
	"path/filepath"
	"time"

	"github.com/mayfly-broker/mayfly/e2e/servertest"
)

// enableTLS gives the server a CA and a certificate of its own.
func (s *Server) enableTLS(settings map[string]string) error {
	ca, err := servertest.NewAuthority()
	if err != nil {
		return err
	}
	files, err := ca.Write(s.as, filepath.Dir(s.DataDir))
	if err != nil {
		return err
	}
	settings["ssl"], settings["ssl_ca_file"] = "on", files.CA
	settings["ssl_cert_file"], settings["ssl_key_file"] = files.Cert, files.Key
	s.tls, s.caFile, s.CAPEM = ca, files.CA, ca.PEM
	return nil
}

// ClientCertificate returns a certificate and key (PEM) with which a client logs
// in as the account named commonName, where pg_hba.conf says `cert`. Only for
// servers started with [TLS].
func (s *Server) ClientCertificate(commonName string, notAfter time.Time) (certPEM, keyPEM []byte, err error) {
	cert, key, err := s.tls.ForClient(commonName, notAfter)
	return []byte(cert), []byte(key), err
}

// ClientTLS returns a client's TLS configuration that trusts the server's CA and
// presents a certificate.
func (s *Server) ClientTLS(certPEM, keyPEM []byte) (*tls.Config, error) {
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, err
	}
	c := s.tls.Client()
	c.Certificates = []tls.Certificate{pair}
	return c, nil
}
