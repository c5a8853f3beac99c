package cosign

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
)

// Verifier1 is the number of the one verifier there is. What it says of a key, a
// domain, a hash and a signature is frozen with the texts of its errors: whoever
// must change any of it writes Verifier2 beside it, and replicas go on judging
// old signatures by the old number.
const Verifier1 = 1

// maxDomain bounds a domain, in bytes.
const maxDomain = 64

// Verify says whether s is a signature of hash under domain by the key k, judged
// by the verifier that s names. It returns nil only then; otherwise an [*Error]
// that names the rule which s, or k itself (see [Key.Check]), breaks. It is pure and never panics.
//
// Whose key k is, and whether the hash is that of a document (see [Sum]), is the
// caller's to know. A signature that verifies is no name of anything: whoever
// sees an ECDSA signature (r, s) can write (r, n-s), which verifies as well.
// Approvals are therefore counted by person, never by signature.
func Verify(k Key, domain string, hash Hash, s Signature) error {
	if s.Verifier != Verifier1 {
		return refuse(ruleSigned, "verifier %d is unknown; this version knows 1", s.Verifier)
	}
	return verify1(k, domain, hash, s)
}

func verify1(k Key, domain string, hash Hash, s Signature) error {
	p, err := k.check()
	if err != nil {
		return err
	}
	if domain == "" || len(domain) > maxDomain || !printable(domain) {
		return refuse(ruleSigned, "a domain has 1 to %d printable ASCII characters, not %s", maxDomain, echo(domain))
	}
	if s.Kind != k.Kind {
		return refuse(ruleSigned, "the signature's kind is %s, the key's is %s", echo(s.Kind), k.Kind)
	}
	if subtle.ConstantTimeCompare([]byte(s.Key), []byte(p.thumbprint)) != 1 {
		return refuse(ruleSigned, "it names the key %s, which is another", echo(s.Key))
	}
	// What no check looks at would be stored unsigned and read by somebody.
	if s.Kind != KindPasskey && len(s.AuthenticatorData)+len(s.ClientDataJSON)+len(s.Assertion) > 0 ||
		s.Kind != KindSSH && len(s.SSHSIG) > 0 || s.Kind != KindJWS && s.JWS != "" {
		return refuse(ruleSigned, "a signature of kind %s has parts of another kind", s.Kind)
	}
	switch s.Kind {
	case KindPasskey:
		return verifyPasskey(k, p, hash, s)
	case KindSSH:
		return verifySSH(k, p, domain, hash, s.SSHSIG)
	}
	return verifyJWS(p, domain, hash, s.JWS)
}

// order is the order of P-256's group (SEC 2 §2.4.2), big-endian.
var order, _ = hex.DecodeString("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551")

// ecdsaSig is an ECDSA signature over P-256, both numbers big-endian.
type ecdsaSig struct{ r, s [32]byte }

// inRange says whether both numbers are between 1 and the group's order.
func (e *ecdsaSig) inRange() bool {
	var zero [32]byte
	return e.r != zero && e.s != zero && bytes.Compare(e.r[:], order) < 0 && bytes.Compare(e.s[:], order) < 0
}

// der is the signature in DER (RFC 3279 §2.2.3).
func (e *ecdsaSig) der() []byte {
	r, s := signed(e.r[:]), signed(e.s[:])
	out := []byte{0x30, byte(4 + len(r) + len(s)), 2, byte(len(r))}
	out = append(out, r...)
	out = append(out, 2, byte(len(s)))
	return append(out, s...)
}

// signed is a positive number in two's complement, as short as it can be.
func signed(n []byte) []byte {
	n = bytes.TrimLeft(n, "\x00")
	if len(n) == 0 || n[0]&0x80 != 0 {
		return append([]byte{0}, n...)
	}
	return n
}

// unsigned is the way back from [signed], in 32 bytes; false where n is not as
// [signed] would write it.
func unsigned(n []byte) (out [32]byte, ok bool) {
	if len(n) == 0 || len(n) > 33 || n[0]&0x80 != 0 {
		return out, false
	}
	short := bytes.TrimLeft(n, "\x00")
	if len(short) > 32 || !bytes.Equal(signed(short), n) {
		return out, false
	}
	copy(out[32-len(short):], short)
	return out, true
}

// parseDER reads a signature in strict DER: the one way to write it.
func parseDER(b []byte) (e ecdsaSig, ok bool) {
	if len(b) < 8 || len(b) > 72 || b[0] != 0x30 || b[2] != 2 {
		return e, false
	}
	n := int(b[3])
	if 4+n+2 > len(b) {
		return e, false
	}
	var okR, okS bool
	e.r, okR = unsigned(b[4 : 4+n])
	e.s, okS = unsigned(b[4+n+2:])
	return e, okR && okS && bytes.Equal(e.der(), b)
}

// signedECDSA says whether e signs SHA-256 of message.
func (p *public) signedECDSA(message []byte, e ecdsaSig) bool {
	sum := sha256.Sum256(message)
	return e.inRange() && ecdsa.VerifyASN1(p.p256, sum[:], e.der())
}

// signedEd25519 says whether sig signs message. crypto/ed25519 refuses numbers
// out of range, so nobody can write a second signature from the first.
func (p *public) signedEd25519(message, sig []byte) bool {
	return len(sig) == ed25519.SignatureSize && ed25519.Verify(p.ed25519, message, sig)
}
