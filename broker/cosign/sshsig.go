package cosign

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
)

// maxSSHSIG bounds a signature's blob, in bytes: an sk-ecdsa one with the longest
// application and domain stays under 700.
const maxSSHSIG = 2 << 10

// sshMagic begins the blob and what is signed (PROTOCOL.sshsig §2, §3).
const sshMagic = "SSHSIG"

// flagTouched says that somebody touched the security key (PROTOCOL.u2f). That it
// also asked for a PIN (0x04) is not required: the owner chose that when the key
// was made, most did not, and a plain SSH key, which counts as much, never does. A
// role that wants more of a person asks for a passkey.
const flagTouched = 0x01

// wire reads the encoding of SSH (RFC 4251 §5).
type wire []byte

// text takes a string off the front.
func (w *wire) text() (out []byte, ok bool) {
	if len(*w) < 4 {
		return nil, false
	}
	n := binary.BigEndian.Uint32(*w)
	if uint64(n) > uint64(len(*w)-4) {
		return nil, false
	}
	out, *w = (*w)[4:4+n], (*w)[4+n:]
	return out, true
}

// texts takes len(into) strings off the front, after which nothing may follow
// but extra bytes, which stay.
func (w *wire) texts(extra int, into ...*[]byte) bool {
	for _, t := range into {
		var ok bool
		if *t, ok = w.text(); !ok {
			return false
		}
	}
	return len(*w) == extra
}

// appendWire appends s as a string of RFC 4251.
func appendWire[T ~string | ~[]byte](out []byte, s T) []byte {
	out = binary.BigEndian.AppendUint32(out, uint32(len(s)))
	return append(out, s...)
}

// sshPublic is the key as it stands in an SSH signature and, in base64, in an
// authorized_keys file (RFC 5656 §3.1, RFC 8709 §4, PROTOCOL.u2f).
func (k Key) sshPublic(p *public) []byte {
	out := appendWire(nil, k.SSHType)
	if p.p256 != nil {
		out = appendWire(out, "nistp256")
		out = appendWire(out, p.point)
	} else {
		out = appendWire(out, p.ed25519)
	}
	if k.hardware() {
		out = appendWire(out, k.Application)
	}
	return out
}

// verifySSH checks the blob that `ssh-keygen -Y sign -n DOMAIN` writes for a file
// that holds the 32 bytes of the hash.
func verifySSH(k Key, p *public, domain string, hash Hash, blob []byte) error {
	if len(blob) > maxSSHSIG {
		return refuse(ruleSSH, "the signature has %d bytes; at most %d are allowed", len(blob), maxSSHSIG)
	}
	rest, ok := bytes.CutPrefix(blob, []byte(sshMagic+"\x00\x00\x00\x01"))
	if !ok {
		return refuse(ruleSSH, "it does not begin as an SSHSIG of version 1 does")
	}
	var key, namespace, reserved, algorithm, signature []byte
	w := wire(rest)
	if !w.texts(0, &key, &namespace, &reserved, &algorithm, &signature) {
		return refuse(ruleSSH, "the signature is cut, or something follows it")
	}
	if !bytes.Equal(key, k.sshPublic(p)) {
		return refuse(ruleSSH, "the signature was made with another key")
	}
	if string(namespace) != domain {
		return refuse(ruleSSH, "the signature's namespace is %s; sign with -n and the domain", echo(namespace))
	}
	if len(reserved) != 0 {
		return refuse(ruleSSH, "the signature's reserved part is not empty")
	}
	message := appendWire([]byte(sshMagic), namespace)
	message = appendWire(message, reserved)
	message = appendWire(message, algorithm)
	switch string(algorithm) {
	case "sha256":
		sum := sha256.Sum256(hash[:])
		message = appendWire(message, sum[:])
	case "sha512":
		sum := sha512.Sum512(hash[:])
		message = appendWire(message, sum[:])
	default:
		return refuse(ruleSSH, "the signature's hash algorithm is %s; sha256 and sha512 are known", echo(algorithm))
	}
	return k.verifySSHInner(p, message, signature)
}

// verifySSHInner checks the signature within the blob (RFC 4253 §6.6).
func (k Key) verifySSHInner(p *public, message, signature []byte) error {
	extra := 0
	if k.hardware() {
		extra = 1 + 4 // flags and counter
	}
	var format, sig []byte
	w := wire(signature)
	if !w.texts(extra, &format, &sig) {
		return refuse(ruleSSH, "the inner signature is cut, or something follows it")
	}
	if string(format) != k.SSHType {
		return refuse(ruleSSH, "the inner signature's format is %s, the key's type is %s", echo(format), k.SSHType)
	}
	if k.hardware() {
		if w[0]&flagTouched == 0 {
			return refuse(ruleSSH, "user presence is missing: nobody touched the security key")
		}
		application, sum := sha256.Sum256([]byte(k.Application)), sha256.Sum256(message)
		message = append(application[:], w...)
		message = append(message, sum[:]...)
	}
	if p.p256 == nil {
		if !p.signedEd25519(message, sig) {
			return refuse(ruleSSH, "it is not the key's Ed25519 signature of the hash")
		}
		return nil
	}
	e, ok := parseMpints(sig)
	if !ok {
		return refuse(ruleSSH, "the ECDSA signature is not two canonical mpints")
	}
	if !p.signedECDSA(message, e) {
		return refuse(ruleSSH, "it is not the key's ECDSA signature of the hash")
	}
	return nil
}

// parseMpints reads an ECDSA signature (RFC 5656 §3.1.2).
func parseMpints(sig []byte) (e ecdsaSig, ok bool) {
	var r, s []byte
	w := wire(sig)
	if !w.texts(0, &r, &s) {
		return e, false
	}
	var okR, okS bool
	e.r, okR = unsigned(r)
	e.s, okS = unsigned(s)
	return e, okR && okS
}
