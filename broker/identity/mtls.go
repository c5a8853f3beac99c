package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
)

// CertThumbprint returns a certificate's x5t#S256 (RFC 8705 §3.1): what a
// session bound to mutual TLS stores. A nil certificate gives "".
func CertThumbprint(cert *x509.Certificate) string {
	if cert == nil {
		return ""
	}
	sum := sha256.Sum256(cert.Raw)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// CertMatches reports whether the connection's peer certificate is the one the
// session is bound to. peers is tls.ConnectionState.PeerCertificates, whose
// first member's key TLS has proven; none, or an empty thumbprint, never match.
// The certificate need not be trusted, nor be valid still: the session has its
// own end.
func CertMatches(peers []*x509.Certificate, thumbprint string) bool {
	return len(peers) > 0 && SameThumbprint(CertThumbprint(peers[0]), thumbprint)
}
