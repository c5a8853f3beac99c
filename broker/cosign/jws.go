package cosign

import (
	"bytes"
	"strings"
)

// Bounds of a JWS, in bytes: a header of three short members, 32 bytes, a signature.
const (
	maxJWS       = 1024
	maxJWSHeader = 512
)

// verifyJWS checks a compact JWS (RFC 7515 §7.1) whose payload is the hash.
func verifyJWS(p *public, domain string, hash Hash, compact string) error {
	if len(compact) > maxJWS {
		return refuse(ruleJWS, "it has %d bytes; at most %d are allowed", len(compact), maxJWS)
	}
	parts := strings.Split(compact, ".")
	if len(parts) != 3 {
		return refuse(ruleJWS, "it has not the three parts of a compact JWS")
	}
	header, ok1 := decode64(parts[0])
	payload, ok2 := decode64(parts[1])
	sig, ok3 := decode64(parts[2])
	if !ok1 || !ok2 || !ok3 {
		return refuse(ruleJWS, "a part is not canonical base64url without padding")
	}
	if err := checkHeader(p, domain, header); err != nil {
		return err
	}
	if !bytes.Equal(payload, hash[:]) {
		return refuse(ruleJWS, "the payload is not the 32 bytes of the hash")
	}
	if len(sig) != 64 {
		return refuse(ruleJWS, "the signature has %d bytes, not 64", len(sig))
	}
	message := []byte(parts[0] + "." + parts[1])
	signed := false
	if p.p256 == nil {
		signed = p.signedEd25519(message, sig)
	} else {
		signed = p.signedECDSA(message, ecdsaSig{r: [32]byte(sig[:32]), s: [32]byte(sig[32:])})
	}
	if !signed {
		return refuse(ruleJWS, "it is not the key's signature of header and payload")
	}
	return nil
}

// checkHeader allows alg, kid and typ alone: every other member asks for a
// behaviour (crit, b64) or brings a key of its own (jwk, x5c, jku).
func checkHeader(p *public, domain string, raw []byte) error {
	members, err := readObject(raw, maxJWSHeader)
	if err != nil {
		return refuse(ruleJWS, "the header: %s", err)
	}
	alg := "EdDSA"
	if p.p256 != nil {
		alg = "ES256"
	}
	if got := find(members, "alg"); got != quoted(alg) {
		return refuse(ruleJWS, "the header's alg is %s; the key signs with %s", echoJSON(got), alg)
	}
	for _, m := range members {
		switch m.name {
		case "alg":
		case "kid":
			if string(m.value) != quoted(p.thumbprint) {
				return refuse(ruleJWS, "the header's kid is %s, not the key's thumbprint", echoJSON(string(m.value)))
			}
		case "typ":
			if string(m.value) != quoted(domain+"+jws") {
				return refuse(ruleJWS, "the header's typ is %s, not the domain and \"+jws\"", echoJSON(string(m.value)))
			}
		default:
			return refuse(ruleJWS, "the header has the member %s; alg, kid and typ are allowed", echo(m.name))
		}
	}
	return nil
}
