package cosign

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"math/big"
)

// maxJWK bounds a public key, in bytes: the largest has under 200.
const maxJWK = 512

// public is a public key: one of its two is set.
type public struct {
	p256    *ecdsa.PublicKey
	point   []byte // of p256, uncompressed (SEC 1 §2.3.3)
	ed25519 ed25519.PublicKey
	// thumbprint is that of RFC 7638, base64url.
	thumbprint string
}

// Thumbprint returns a public key's name (RFC 7638 with SHA-256, base64url
// without padding). The key is P-256 or Ed25519 and has the required members of
// its type only. Its point is on the curve; an Ed25519 key of small order, for
// which anybody can sign, is refused. Errors are [*Error] of rule "key".
func Thumbprint(jwk json.RawMessage) (string, error) {
	p, err := parseJWK(jwk)
	if err != nil {
		return "", err
	}
	return p.thumbprint, nil
}

func parseJWK(jwk []byte) (*public, error) {
	members, err := readObject(jwk, maxJWK)
	if err != nil {
		return nil, refuse(ruleKey, "the JWK: %s", err)
	}
	var p *public
	switch kty := find(members, "kty"); kty {
	case quoted("EC"):
		p, err = parseP256(members)
	case quoted("OKP"):
		p, err = parseEd25519(members)
	default:
		return nil, refuse(ruleKey, "the JWK's kty is %s; \"EC\" and \"OKP\" are known", echoJSON(kty))
	}
	if err != nil {
		return nil, err
	}
	// The members that are left are the required ones, in their canonical form
	// and in the order of their names, which is what RFC 7638 §3.3 hashes.
	sum := sha256.Sum256(appendObject(nil, members))
	p.thumbprint = base64.RawURLEncoding.EncodeToString(sum[:])
	return p, nil
}

func parseP256(members []member) (*public, error) {
	if len(members) != 4 || find(members, "crv") != quoted("P-256") {
		return nil, refuse(ruleKey, "a JWK of kty \"EC\" has exactly the members crv, kty, x and y, and its crv is \"P-256\"")
	}
	point := []byte{4}
	for _, name := range []string{"x", "y"} {
		b, err := coordinate(members, name)
		if err != nil {
			return nil, err
		}
		point = append(point, b...)
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		return nil, refuse(ruleKey, "the JWK's x and y are no point of P-256")
	}
	return &public{p256: key, point: point}, nil
}

func parseEd25519(members []member) (*public, error) {
	if len(members) != 3 || find(members, "crv") != quoted("Ed25519") {
		return nil, refuse(ruleKey, "a JWK of kty \"OKP\" has exactly the members crv, kty and x, and its crv is \"Ed25519\"")
	}
	b, err := coordinate(members, "x")
	if err != nil {
		return nil, err
	}
	if !onEdwards(b) {
		return nil, refuse(ruleKey, "the JWK's x is no point of Ed25519, or one for which anybody can sign")
	}
	return &public{ed25519: b}, nil
}

// coordinate decodes one of a key's numbers of 32 bytes.
func coordinate(members []member, name string) ([]byte, error) {
	form := find(members, name)
	if len(form) < 2 || form[0] != '"' {
		return nil, refuse(ruleKey, "the JWK's %s is missing or no text", name)
	}
	b, ok := decode64(form[1 : len(form)-1])
	if !ok || len(b) != 32 {
		return nil, refuse(ruleKey, "the JWK's %s is not 32 bytes in base64url without padding", name)
	}
	return b, nil
}

// decode64 decodes base64url without padding where it is the one way to write
// those bytes. Go's decoder passes over line ends, hence the way back.
func decode64(s string) ([]byte, bool) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	return b, err == nil && base64.RawURLEncoding.EncodeToString(b) == s
}

// The field and the constant of Ed25519 (RFC 8032 §5.1).
var (
	edwardsP, _ = new(big.Int).SetString("7fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffed", 16)
	edwardsD, _ = new(big.Int).SetString("52036cee2b6ffe738cc740797779e89800700a4d4141d8ab75eb4dca135978a3", 16)
)

// onEdwards says whether 32 bytes are the one encoding of a point of Ed25519
// whose order is not small. crypto/ed25519 checks neither: it takes a point of
// small order, under which one signature fits every message.
func onEdwards(key []byte) bool {
	big1 := big.NewInt(1)
	reversed := make([]byte, 32)
	for i, c := range key {
		reversed[31-i] = c
	}
	reversed[0] &= 0x7f // the sign of x
	y := new(big.Int).SetBytes(reversed)
	if y.Cmp(edwardsP) >= 0 {
		return false
	}
	yy := mulmod(y, y)
	dyy := mulmod(edwardsD, yy)
	// x² = (y²-1)/(dy²+1) has a root just where the product of the two has one.
	// It is 0 for y = 1 and y = -1, the points of order 1 and 2.
	over, under := new(big.Int).Sub(yy, big1), new(big.Int).Add(dyy, big1)
	if big.Jacobi(mulmod(over, under), edwardsP) != 1 {
		return false
	}
	// Order 4 is y = 0. A point of order 8 doubles to one, where x² = -y², so
	// that dy⁴ + 2y² - 1 = 0.
	eighth := new(big.Int).Add(mulmod(dyy, yy), yy)
	eighth.Add(eighth, yy).Sub(eighth, big1)
	return y.Sign() != 0 && eighth.Mod(eighth, edwardsP).Sign() != 0
}

func mulmod(a, b *big.Int) *big.Int {
	c := new(big.Int).Mul(a, b)
	return c.Mod(c, edwardsP)
}
