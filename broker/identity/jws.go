package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"strings"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-broker/mayfly/broker/fault"
)

// The algorithms Mayfly verifies. There is no none, and no HMAC: with a public
// key as its secret anybody could sign.
var (
	proofAlgorithms = []jose.SignatureAlgorithm{jose.ES256, jose.EdDSA}
	tokenAlgorithms = []jose.SignatureAlgorithm{jose.RS256, jose.PS256, jose.ES256, jose.EdDSA}
)

// strictBase64 refuses trailing bits, so that one token has one text.
var strictBase64 = base64.RawURLEncoding.Strict()

// jws is a compact JWS whose parts were decoded strictly; nothing in it is
// verified until verify has returned nil.
type jws struct {
	header object
	claims object
	signed *jose.JSONWebSignature
	digest [sha256.Size]byte // of header.payload: names this very token, whatever the signature's form
	alg    jose.SignatureAlgorithm
	typ    string
	kid    string
	jwk    *jose.JSONWebKey // only where embedded keys are allowed
}

// parseJWS reads a compact JWS of at most limit bytes whose alg is one of
// allowed. embedded says whether the header must hold the signer's public key
// (`jwk`) or must not: keys come from configuration, or are known by their
// thumbprint, and are never fetched from where a token says.
func parseJWS(text string, limit int, allowed []jose.SignatureAlgorithm, embedded bool) (*jws, *fault.Error) {
	if text == "" {
		return nil, malformed("it is empty")
	}
	if len(text) > limit {
		return nil, malformed("it is longer than %d bytes", limit)
	}
	parts := strings.Split(text, ".")
	if len(parts) != 3 {
		return nil, malformed("it has %d parts, not 3", len(parts))
	}
	var decoded [3][]byte
	for i, part := range parts {
		// The library's decoder skips line breaks; one token must have one text.
		if strings.ContainsAny(part, "\r\n") {
			return nil, malformed("it has line breaks")
		}
		raw, err := strictBase64.DecodeString(part)
		if err != nil {
			return nil, malformed("part %d is not base64url", i+1)
		}
		decoded[i] = raw
	}
	t := &jws{digest: sha256.Sum256([]byte(parts[0] + "." + parts[1]))}
	var err error
	if t.header, err = decodeObject(decoded[0], maxClaimDepth, maxClaims); err != nil {
		return nil, malformed("in its header, %v", err)
	}
	if ferr := t.readHeader(allowed, embedded); ferr != nil {
		return nil, ferr
	}
	if t.claims, err = decodeObject(decoded[1], maxClaimDepth, maxClaims); err != nil {
		return nil, malformed("in its claims, %v", err)
	}
	if t.signed, err = jose.ParseSignedCompact(text, allowed); err != nil {
		return nil, fault.Wrap(err, fault.Unauthenticated, CodeTokenMalformed, "The token cannot be read: its header holds what is not allowed.")
	}
	if embedded {
		if t.jwk = t.signed.Signatures[0].Protected.JSONWebKey; t.jwk == nil {
			return nil, malformed("its header lacks the public key (jwk)")
		}
	}
	return t, nil
}

// readHeader checks the header's members before any key is looked at.
func (t *jws) readHeader(allowed []jose.SignatureAlgorithm, embedded bool) *fault.Error {
	var fields [3]string
	for i, name := range []string{"alg", "typ", "kid"} {
		v, err := t.header.text(name)
		if err != nil || len(v) > maxKeyID {
			return malformed("its %s is not a short string", name)
		}
		fields[i] = v
	}
	t.alg, t.typ, t.kid = jose.SignatureAlgorithm(fields[0]), fields[1], fields[2]
	ok := false
	for _, a := range allowed {
		ok = ok || a == t.alg
	}
	if !ok {
		return unauthenticated(CodeAlgorithm, "The token's algorithm %q is not accepted; use one of %v.", clip(fields[0]), allowed)
	}
	for _, name := range []string{"jku", "x5u", "x5c", "crit", "b64"} {
		if _, there := t.header[name]; there {
			return malformed("its header has %s, which is not accepted", name)
		}
	}
	if _, there := t.header["jwk"]; there != embedded {
		if embedded {
			return malformed("its header lacks the public key (jwk)")
		}
		return malformed("its header has jwk, but keys come from the issuer only")
	}
	return nil
}

// verify checks the signature with key, which must be of the kind that the
// token's algorithm is for.
func (t *jws) verify(key crypto.PublicKey) *fault.Error {
	if !fits(key, t.alg) {
		return unauthenticated(CodeAlgorithm, "The token's algorithm %q is not that of the key.", t.alg)
	}
	if _, err := t.signed.Verify(key); err != nil {
		return fault.Wrap(err, fault.Unauthenticated, CodeSignature, "The token's signature does not verify.")
	}
	return nil
}

// fits reports whether key is of the kind and strength that alg needs.
func fits(key crypto.PublicKey, alg jose.SignatureAlgorithm) bool {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return (alg == jose.RS256 || alg == jose.PS256) && k.N != nil && k.N.BitLen() >= minRSABits
	case *ecdsa.PublicKey:
		return alg == jose.ES256 && k.Curve == elliptic.P256()
	case ed25519.PublicKey:
		return alg == jose.EdDSA && len(k) == ed25519.PublicKeySize
	default:
		return false
	}
}

// KeyThumbprint returns the RFC 7638 SHA-256 thumbprint of a public key
// (*ecdsa.PublicKey, ed25519.PublicKey or *rsa.PublicKey), base64url, 43
// characters.
func KeyThumbprint(key crypto.PublicKey) (string, error) {
	jwk := jose.JSONWebKey{Key: key}
	sum, err := jwk.Thumbprint(crypto.SHA256)
	if err != nil {
		return "", fault.Wrap(err, fault.Unauthenticated, CodeKeyBinding, "The client's key is of a kind that Mayfly does not use.")
	}
	return base64.RawURLEncoding.EncodeToString(sum), nil
}

// SameThumbprint compares two thumbprints in constant time. Empty ones are
// never the same: a session without a key is not bound to one.
func SameThumbprint(a, b string) bool {
	return a != "" && subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1
}
