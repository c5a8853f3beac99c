package x509

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	cryptobyte_asn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-broker/mayfly/scope"
)

// maxCSRBytes bounds a request; RSA 4096 with a page of names takes about 4 KiB.
const maxCSRBytes = 16 << 10

// request is what is taken from a CSR: the key, and the names that it asks for.
// Extensions that it asks for otherwise (a CA flag, key usages) are not read.
type request struct {
	key        crypto.PublicKey
	names      []name
	commonName string
}

// parseCSR reads PKCS#10 (RFC 2986). The signature proves that the requester
// holds the key; the key is judged first, so that checking costs little.
func parseCSR(der []byte) (request, error) {
	var r request
	if len(der) > maxCSRBytes {
		return r, fmt.Errorf("csr: %d bytes; at most %d are allowed", len(der), maxCSRBytes)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return r, errors.New("csr: not a PKCS#10 request in DER")
	}
	if err := checkKey(csr.PublicKey); err != nil {
		return r, fmt.Errorf("csr: %w", err)
	}
	switch csr.SignatureAlgorithm {
	case x509.MD5WithRSA, x509.SHA1WithRSA, x509.ECDSAWithSHA1:
		return r, fmt.Errorf("csr: signed with %s; use SHA-256", csr.SignatureAlgorithm)
	}
	if err := csr.CheckSignature(); err != nil {
		return r, errors.New("csr: its signature is not by its own key")
	}
	r.key, r.commonName = csr.PublicKey, csr.Subject.CommonName
	r.names, err = requestedNames(csr)
	return r, err
}

// checkKey accepts keys of at least 112 bits of strength (NIST SP 800-57), and
// none so large that using them is an attack.
func checkKey(key crypto.PublicKey) error {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
			return nil
		}
		return errors.New("EC keys are allowed on P-256, P-384 and P-521")
	case ed25519.PublicKey:
		return nil
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < 2048 || bits > 4096 {
			return fmt.Errorf("an RSA key of %d bits; allowed are 2048 to 4096", bits)
		}
		if k.N.Bit(0) == 0 || k.E < 65537 || k.E%2 == 0 {
			return errors.New("an RSA key with a weak modulus or exponent")
		}
		return nil
	default:
		return errors.New("keys are allowed of kind EC, Ed25519 and RSA")
	}
}

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// requestedNames reads the CSR's subject alternative names into canonical form.
func requestedNames(csr *x509.CertificateRequest) ([]name, error) {
	for _, e := range csr.Extensions {
		if e.Id.Equal(oidSubjectAltName) {
			if err := checkNameForms(e.Value); err != nil {
				return nil, err
			}
		}
	}
	var locations []string
	for _, d := range csr.DNSNames {
		locations = append(locations, prefixDNS+strings.ToLower(d))
	}
	for _, ip := range csr.IPAddresses {
		addr, _ := netip.AddrFromSlice(ip) // crypto/x509 yields 4 or 16 bytes only
		locations = append(locations, prefixIP+addr.Unmap().String())
	}
	for _, e := range csr.EmailAddresses {
		locations = append(locations, prefixEmail+e)
	}
	for _, u := range csr.URIs {
		locations = append(locations, u.String())
	}
	if len(locations) > scope.MaxMembers {
		return nil, fmt.Errorf("csr: %d names; at most %d are allowed", len(locations), scope.MaxMembers)
	}
	names := make([]name, 0, len(locations))
	for _, l := range locations {
		n, err := parseName(l)
		if err != nil {
			return nil, fmt.Errorf("csr: %w", err)
		}
		names = append(names, n)
	}
	return names, nil
}

// checkNameForms refuses general names that crypto/x509 passes over in silence
// (otherName, directoryName, …): the requester would believe it had got them.
func checkNameForms(der []byte) error {
	input := cryptobyte.String(der)
	var names cryptobyte.String
	if !input.ReadASN1(&names, cryptobyte_asn1.SEQUENCE) || !input.Empty() {
		return errors.New("csr: the subject alternative names are not readable")
	}
	for !names.Empty() {
		var value cryptobyte.String
		var tag cryptobyte_asn1.Tag
		if !names.ReadAnyASN1(&value, &tag) {
			return errors.New("csr: the subject alternative names are not readable")
		}
		const email, dns, uri, ip = 1, 2, 6, 7 // RFC 5280 §4.2.1.6
		switch tag {
		case cryptobyte_asn1.Tag(email).ContextSpecific(), cryptobyte_asn1.Tag(dns).ContextSpecific(),
			cryptobyte_asn1.Tag(uri).ContextSpecific(), cryptobyte_asn1.Tag(ip).ContextSpecific():
		default:
			return errors.New("csr: a name of a form that is not issued; " + allowedNames)
		}
	}
	return nil
}

// subject is what a certificate says of its holder.
type subject struct {
	names      []name
	commonName string
}

// resolve decides the names of a certificate from the effective scope and the
// CSR (nil without one):
//
//   - a CSR that asks for names gets exactly those, if the scope covers each;
//   - otherwise the certificate gets every name of the scope, which must all be
//     exact. A pattern is never written into a certificate.
//
// A certificate holds at most one SPIFFE ID (X.509-SVID §2).
func (sp spec) resolve(d scope.Detail, csr *request) (subject, error) {
	var s subject
	asked := d
	if csr != nil && len(csr.names) > 0 {
		s.names = csr.names
		asked.Locations = nil
		for _, n := range csr.names {
			asked.Locations = append(asked.Locations, n.text())
		}
	} else {
		for _, l := range d.Locations {
			n, err := parseName(l)
			if err != nil {
				return s, fmt.Errorf("locations: %q is open; send a CSR that chooses the names, or ask for an exact scope", l)
			}
			s.names = append(s.names, n)
		}
	}
	if csr != nil && strings.HasSuffix(d.Identifier, "*") && csr.commonName != "" {
		asked.Identifier = csr.commonName
	}
	if err := scope.Covers(scope.Scope{d}, scope.Scope{asked}); err != nil {
		return s, fmt.Errorf("the names that the CSR asks for: %w", err)
	}
	if err := sp.checkNames(s.names); err != nil {
		return s, err
	}
	if s.commonName = asked.Identifier; s.commonName == "" {
		return s, nil
	}
	if err := checkCommonName(s.commonName); err != nil {
		return s, fmt.Errorf("identifier: %q: %w; send a CSR whose subject chooses, or ask for an exact scope", s.commonName, err)
	}
	return s, nil
}

// checkNames checks what holds for a certificate's names together.
func (sp spec) checkNames(names []name) error {
	ids := 0
	for _, n := range names {
		if err := sp.permitted(n); err != nil {
			return err
		}
		if !n.id.IsZero() {
			ids++
		}
	}
	if ids > 1 {
		return fmt.Errorf("%d SPIFFE IDs; a certificate has one, so send a CSR that chooses, or ask for a narrower scope", ids)
	}
	return nil
}
