package identity

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"net"
	"strconv"
	"strings"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/secret"
)

// An EnrolToken is the one-time token of `principal enroll` and `operator
// init`: all that a machine needs to find the cluster, to know it is the right
// one, and to prove once whom it was made for. The ledger stores its hash and
// consumes it; this is the codec.
//
// The text is `mfe_` and base64url of
//
//	version (1) ‖ length of the whole (2) ‖ secret (32) ‖ CA hash (32) ‖
//	addresses: count (1), each length (1) and bytes ‖ checksum (4)
//
// The length tells a paste that lost its end from one that was garbled; the
// checksum (SHA-256, cut) is against accidents, not against forgery.
type EnrolToken struct {
	// Secret is 256 random bits; [NewEnrolToken] fills it.
	Secret [32]byte
	// CAHash is the SHA-256 of the cluster CA's certificate (DER), which the
	// client compares before it trusts the server.
	CAHash [32]byte
	// Addresses are `host:port`, one to eight, in the order to be tried.
	Addresses []string
}

const (
	enrolVersion  = 1
	enrolChecksum = 4
	enrolFixed    = 1 + 2 + 32 + 32 + 1 + enrolChecksum
)

// NewEnrolToken makes a token with a fresh secret. The error has kind invalid
// if an address is not `host:port` or there are none or too many.
func NewEnrolToken(caHash [32]byte, addresses []string) (EnrolToken, error) {
	t := EnrolToken{CAHash: caHash, Addresses: addresses}
	if len(addresses) == 0 || len(addresses) > maxAddresses {
		return EnrolToken{}, fault.New(fault.Invalid, CodeEnrolInvalid, "An enrolment token carries 1 to %d addresses, not %d.", maxAddresses, len(addresses))
	}
	for _, a := range addresses {
		if !validAddress(a) {
			return EnrolToken{}, fault.New(fault.Invalid, CodeEnrolInvalid, "%q is not an address host:port.", clip(a))
		}
	}
	_, _ = rand.Read(t.Secret[:]) // never fails: crypto/rand ends the process instead
	return t, nil
}

// Encode returns the token's text, to be shown once.
func (t EnrolToken) Encode() secret.Text {
	return secret.New(EnrolPrefix + strictBase64.EncodeToString(t.bytes()))
}

// Hash is what the ledger stores: it covers the whole token, so that one with
// other addresses or another CA is not the one that was made.
func (t EnrolToken) Hash() TokenHash {
	return sha256.Sum256(append([]byte("mayfly.enrol.v1\x00"), t.bytes()...))
}

// Presented is the token as a client hands it in: the same, with a secret that
// derives from the token's own. So no node that a token is handed to can make
// what else derives from it; see [EnrolToken.Founder].
func (t EnrolToken) Presented() EnrolToken {
	t.Secret = [32]byte(t.derive("mayfly.enrol.login.v1"))
	return t
}

// Founder is the key that derives from the token of somebody named at init. Its
// public half stands in the genesis record and vouches for their first key to
// approve with.
func (t EnrolToken) Founder() ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(t.derive("mayfly.enrol.approve.v1"))
}

// FounderJWK is the public half of [EnrolToken.Founder], with its required
// members only (RFC 8037).
func (t EnrolToken) FounderJWK() json.RawMessage {
	public := t.Founder()[ed25519.SeedSize:] // RFC 8032: seed ‖ public key
	return json.RawMessage(`{"crv":"Ed25519","kty":"OKP","x":"` + strictBase64.EncodeToString(public) + `"}`)
}

// derive is HMAC-SHA256 under the secret, which is random already.
func (t EnrolToken) derive(purpose string) []byte {
	mac := hmac.New(sha256.New, t.Secret[:])
	mac.Write([]byte(purpose))
	return mac.Sum(nil)
}

func (t EnrolToken) bytes() []byte {
	size := enrolFixed
	for _, a := range t.Addresses {
		size += 1 + len(a)
	}
	out := make([]byte, 0, size)
	out = append(out, enrolVersion)
	out = binary.BigEndian.AppendUint16(out, uint16(size))
	out = append(out, t.Secret[:]...)
	out = append(out, t.CAHash[:]...)
	out = append(out, byte(len(t.Addresses)))
	for _, a := range t.Addresses {
		out = append(out, byte(len(a)))
		out = append(out, a...)
	}
	return append(out, enrolSum(out)...)
}

func enrolSum(body []byte) []byte {
	sum := sha256.Sum256(body)
	return sum[:enrolChecksum]
}

// ParseEnrolToken reads what a person pasted; white space anywhere is ignored.
// Errors, all of kind unauthenticated: [CodeEnrolTruncated] when the end is
// missing, [CodeEnrolCorrupt] when characters were changed, [CodeEnrolInvalid]
// when it is no enrolment token or of a later version.
func ParseEnrolToken(token secret.Text) (EnrolToken, error) {
	text := token.Reveal()
	if len(text) > maxEnrolText {
		return EnrolToken{}, unauthenticated(CodeEnrolInvalid, "This is longer than any enrolment token.")
	}
	text = strings.Join(strings.Fields(text), "")
	body, ok := strings.CutPrefix(text, EnrolPrefix)
	if !ok {
		return EnrolToken{}, unauthenticated(CodeEnrolInvalid, "An enrolment token starts with %s.", EnrolPrefix)
	}
	// Whole groups of four characters are enough for version and length.
	if len(body) < 4 {
		return EnrolToken{}, errTruncated()
	}
	head, err := strictBase64.DecodeString(body[:4])
	if err != nil {
		return EnrolToken{}, errCorrupt()
	}
	if head[0] != enrolVersion {
		return EnrolToken{}, unauthenticated(CodeEnrolInvalid, "The enrolment token has version %d; this build reads %d.", head[0], enrolVersion)
	}
	size := int(binary.BigEndian.Uint16(head[1:3]))
	switch want := strictBase64.EncodedLen(size); {
	case len(body) < want:
		return EnrolToken{}, errTruncated()
	case len(body) > want || size < enrolFixed:
		return EnrolToken{}, errCorrupt()
	}
	raw, err := strictBase64.DecodeString(body)
	if err != nil {
		return EnrolToken{}, errCorrupt()
	}
	cut := len(raw) - enrolChecksum
	if !bytes.Equal(enrolSum(raw[:cut]), raw[cut:]) {
		return EnrolToken{}, errCorrupt()
	}
	return readEnrol(raw[3:cut])
}

// readEnrol reads the checked body after version and length.
func readEnrol(b []byte) (EnrolToken, error) {
	var t EnrolToken
	b = b[copy(t.Secret[:], b):]
	b = b[copy(t.CAHash[:], b):]
	count := int(b[0])
	b = b[1:]
	if count == 0 || count > maxAddresses {
		return EnrolToken{}, errCorrupt()
	}
	for range count {
		if len(b) == 0 || len(b) < 1+int(b[0]) {
			return EnrolToken{}, errCorrupt()
		}
		a := string(b[1 : 1+int(b[0])])
		if !validAddress(a) {
			return EnrolToken{}, errCorrupt()
		}
		t.Addresses, b = append(t.Addresses, a), b[1+len(a):]
	}
	if len(b) != 0 {
		return EnrolToken{}, errCorrupt()
	}
	return t, nil
}

func errTruncated() error {
	return unauthenticated(CodeEnrolTruncated, "The enrolment token is cut short; copy all of it.")
}

func errCorrupt() error {
	return unauthenticated(CodeEnrolCorrupt, "The enrolment token was changed in copying; copy it again.")
}

// validAddress accepts host:port with a plain name or address and a port.
func validAddress(a string) bool {
	if len(a) > maxAddress {
		return false
	}
	host, port, err := net.SplitHostPort(a)
	if err != nil || host == "" {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
		return false
	}
	if strings.Contains(host, ":") {
		return net.ParseIP(host) != nil
	}
	return !strings.ContainsFunc(host, func(r rune) bool {
		return r >= 0x80 || !unreserved(byte(r)) || r == '~'
	})
}
