package keys

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	// typeProof is RFC 9449 §4.2's explicit type.
	typeProof jose.ContentType = "dpop+jwt"
	// typeAssertion is the explicit type that draft-ietf-oauth-rfc7523bis
	// gives to client assertions, so that no other JWT passes for one.
	typeAssertion jose.ContentType = "client-authentication+jwt"

	// AssertionLife is how long an assertion is valid: long enough for a slow
	// network and a retry, too short to be worth stealing.
	AssertionLife = time.Minute

	// certificateBackdate allows for a verifier whose clock is behind.
	certificateBackdate = 5 * time.Minute
	maxArgument         = 2048 // bytes; longer than any URL or name Mayfly has
	idBytes             = 16   // 128 random bits: never the same jti twice
)

// DPoP signs a proof of possession (RFC 9449 §4.2) for one HTTP request.
//
// url is the absolute URL the request goes to; its query and fragment are left
// out of the proof (`htu`). nonce is the last DPoP-Nonce that *this* server
// gave, or empty. accessToken is the session token the request carries, or
// empty when logging in. It returns [ErrInput] for arguments that no server
// would accept.
func (k *Key) DPoP(method, target, nonce, accessToken string, now time.Time) (string, error) {
	htu, err := proofURL(target)
	if err != nil {
		return "", err
	}
	if method == "" || len(method) > 32 || len(nonce) > maxArgument {
		return "", fmt.Errorf("%w: method or nonce", ErrInput)
	}
	claims := struct {
		ID     string `json:"jti"`
		Method string `json:"htm"`
		URL    string `json:"htu"`
		Issued int64  `json:"iat"`
		Hash   string `json:"ath,omitempty"`
		Nonce  string `json:"nonce,omitempty"`
	}{ID: newID(), Method: method, URL: htu, Issued: now.Unix(), Nonce: nonce}
	if accessToken != "" {
		sum := sha256.Sum256([]byte(accessToken))
		claims.Hash = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	return sign(k.proofs, claims)
}

// proofURL reduces target to what `htu` holds: no query, no fragment.
func proofURL(target string) (string, error) {
	if len(target) > maxArgument {
		return "", fmt.Errorf("%w: URL longer than %d bytes", ErrInput, maxArgument)
	}
	u, err := url.Parse(target)
	if err != nil || u.Host == "" || u.User != nil || (u.Scheme != "https" && u.Scheme != "http") {
		// The URL is not quoted: a user part could hold a password.
		return "", fmt.Errorf("%w: a proof needs an absolute http(s) URL without user", ErrInput)
	}
	u.RawQuery, u.ForceQuery, u.Fragment, u.RawFragment = "", false, "", ""
	return u.String(), nil
}

// Assertion signs a private_key_jwt (RFC 7523 §3) by which principal logs in
// with this registered key. issuer is the broker's issuer identifier and the
// one audience; it is never the token endpoint's URL.
//
// sessionKey is the thumbprint of the key that the session will be bound to,
// if that is another key than this one; it goes into `cnf`, so that a stolen
// assertion opens nothing for the thief's key. Empty means this key itself.
func (k *Key) Assertion(issuer, principal, sessionKey string, now time.Time) (string, error) {
	if issuer == "" || principal == "" || len(issuer) > maxArgument || len(principal) > maxArgument {
		return "", fmt.Errorf("%w: issuer or principal", ErrInput)
	}
	type confirmation struct {
		Thumbprint string `json:"jkt"`
	}
	if sessionKey == "" {
		sessionKey = k.thumbprint
	}
	return sign(k.assertions, struct {
		Issuer   string       `json:"iss"`
		Subject  string       `json:"sub"`
		Audience string       `json:"aud"`
		ID       string       `json:"jti"`
		Issued   int64        `json:"iat"`
		Expires  int64        `json:"exp"`
		Key      confirmation `json:"cnf"`
	}{principal, principal, issuer, newID(), now.Unix(), now.Add(AssertionLife).Unix(), confirmation{sessionKey}})
}

func sign(s jose.Signer, claims any) (string, error) {
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("keys: claims: %w", err)
	}
	jws, err := s.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("keys: sign: %w", err)
	}
	out, err := jws.CompactSerialize()
	if err != nil {
		return "", fmt.Errorf("keys: serialize: %w", err)
	}
	return out, nil
}

func newID() string {
	var b [idBytes]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// Certificate makes a self-signed client certificate of this key, for a
// session bound to mutual TLS (RFC 8705 §2.2). Nobody trusts its signature:
// the broker knows it by [CertificateThumbprint]. Each call makes another
// certificate, hence another thumbprint: keep one for as long as the session.
func (k *Key) Certificate(commonName string, now time.Time, ttl time.Duration) (tls.Certificate, error) {
	if ttl <= 0 || commonName == "" || len(commonName) > 64 {
		return tls.Certificate{}, fmt.Errorf("%w: common name (1 to 64 bytes) or ttl", ErrInput)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("keys: serial: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber:          serial.Add(serial, big.NewInt(1)),
		Subject:               pkix.Name{CommonName: commonName},
		NotBefore:             now.Add(-certificateBackdate),
		NotAfter:              now.Add(ttl),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k.private)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("keys: certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("keys: certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k.private, Leaf: leaf}, nil
}

// CertificateThumbprint returns a certificate's x5t#S256 (RFC 8705 §3.1):
// base64url of the SHA-256 of its DER, 43 characters.
func CertificateThumbprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}
