package identity

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// A verificationKey is one public key of an issuer.
type verificationKey struct {
	kid string
	alg jose.SignatureAlgorithm // the only one it is for; "" means any that fits
	key crypto.PublicKey
}

// keySet is what a JWK set holds for us. roots are the X.509 authorities of a
// SPIFFE bundle (SPIFFE Trust Domain and Bundle §4.2.2).
type keySet struct {
	keys  []verificationKey
	roots []*x509.Certificate
}

// private are the members that a published key must not have.
var private = []string{"d", "p", "q", "dp", "dq", "qi", "oth", "priv"}

// parseKeySet reads a JWK set (RFC 7517 §5) of bounded size.
func parseKeySet(data []byte, spiffe bool) (keySet, error) {
	if len(data) > maxKeySet {
		return keySet{}, fmt.Errorf("it is longer than %d bytes", maxKeySet)
	}
	o, err := decodeObject(data, maxSpecDepth, maxSpecNodes)
	if err != nil {
		return keySet{}, err
	}
	return readKeySet(o, spiffe)
}

// readKeySet takes the keys that can verify. Others (encryption keys, unknown
// kinds, symmetric or weak ones) are left out, as the RFC asks; a private key
// refuses the whole set: whoever could read it can sign.
func readKeySet(o object, spiffe bool) (keySet, error) {
	list, ok := o["keys"].([]any)
	if !ok {
		return keySet{}, errors.New("it has no list of keys")
	}
	if len(list) > maxKeys {
		return keySet{}, fmt.Errorf("it has more than %d keys", maxKeys)
	}
	var out keySet
	for _, item := range list {
		raw, ok := item.(object)
		if !ok {
			return keySet{}, errors.New("one of its keys is not an object")
		}
		for _, member := range private {
			if _, there := raw[member]; there {
				return keySet{}, errors.New("it has a private key, which everybody who saw it can sign with")
			}
		}
		text, err := json.Marshal(raw)
		if err != nil {
			return keySet{}, errors.New("one of its keys cannot be read")
		}
		var jwk jose.JSONWebKey
		if jwk.UnmarshalJSON(text) != nil {
			continue
		}
		out.add(jwk, spiffe)
	}
	return out, nil
}

func (s *keySet) add(jwk jose.JSONWebKey, spiffe bool) {
	use := []string{"", "sig"}
	if spiffe {
		if jwk.Use == "x509-svid" && len(jwk.Certificates) == 1 && jwk.Certificates[0].IsCA {
			s.roots = append(s.roots, jwk.Certificates[0])
		}
		use = []string{"jwt-svid"}
	}
	if !slices.Contains(use, jwk.Use) || len(jwk.KeyID) > maxKeyID {
		return
	}
	alg := jose.SignatureAlgorithm(jwk.Algorithm)
	if alg == "Ed25519" { // RFC 9864's name for the same
		alg = jose.EdDSA
	}
	usable := slices.ContainsFunc(tokenAlgorithms, func(a jose.SignatureAlgorithm) bool {
		return (alg == "" || alg == a) && fits(jwk.Key, a)
	})
	if usable {
		s.keys = append(s.keys, verificationKey{kid: jwk.KeyID, alg: alg, key: jwk.Key})
	}
}

// pick returns the keys that a token with this kid and alg may have been signed
// by. Without a kid there must be exactly one that fits: nobody's token is
// tried against every key.
func pick(keys []verificationKey, kid string, alg jose.SignatureAlgorithm) []crypto.PublicKey {
	var out []crypto.PublicKey
	for _, k := range keys {
		if (kid == "" || k.kid == kid) && (k.alg == "" || k.alg == alg) && fits(k.key, alg) {
			out = append(out, k.key)
		}
	}
	if kid == "" && len(out) > 1 {
		return nil
	}
	const most = 4 // one kid for several keys: rollovers, never more
	return out[:min(len(out), most)]
}

// staticKeys are configured keys.
type staticKeys []verificationKey

func (s staticKeys) find(_ context.Context, t *jws, _ time.Time) ([]crypto.PublicKey, error) {
	if found := pick(s, t.kid, t.alg); len(found) > 0 {
		return found, nil
	}
	return nil, errUnknownKey(t.kid)
}

func errUnknownKey(kid string) error {
	return unauthenticated(CodeUnknownKey, "The issuer has no key %q that fits the token's algorithm.", clip(kid))
}

// parseRoots reads CA certificates in PEM.
func parseRoots(data []byte) ([]*x509.Certificate, error) {
	if len(data) > maxCABundle {
		return nil, fmt.Errorf("it is longer than %d bytes", maxCABundle)
	}
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("it holds a %q; want certificates only", clip(block.Type))
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, errors.New("one of its certificates cannot be read")
		}
		if !cert.IsCA || !cert.BasicConstraintsValid {
			return nil, fmt.Errorf("the certificate of %q is not a CA's", clip(cert.Subject.String()))
		}
		if out = append(out, cert); len(out) > maxCACerts {
			return nil, fmt.Errorf("it has more than %d certificates", maxCACerts)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("it holds no certificate in PEM")
	}
	return out, nil
}
