package ssh

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"
)

// Numbers of OpenSSH's PROTOCOL.krl.
const (
	krlMagic         = "SSHKRL\n\x00"
	krlFormatVersion = 1
	krlCertificates  = 1    // a section: certificates of one CA
	krlSerialList    = 0x20 // in it: serials, one by one
)

// maxRevoked bounds a list: 8 bytes an entry, so 8 MiB, where OpenSSH reads up to
// 128. A server reads all of it at each login, which takes it about 0.1 s at
// 100 000 entries and some seconds at the bound: slow, but safer than a list that
// stops growing.
const maxRevoked = 1 << 20

// krl writes a key revocation list: those serials of each of the CA's keys. An
// empty list revokes nothing and is still a list. The serials may come in any
// order and more than once; none may be 0. generated is also the list's version,
// in milliseconds: it grows, whichever node writes it.
func krl(keys []ssh.PublicKey, serials []uint64, generated time.Time) ([]byte, error) {
	serials = slices.Compact(slices.Sorted(slices.Values(serials)))
	if len(serials) > maxRevoked {
		return nil, fmt.Errorf("%d certificates are to be revoked; a list holds at most %d: shorten the target's max_ttl", len(serials), maxRevoked)
	}
	if len(serials) > 0 && serials[0] == 0 {
		return nil, fmt.Errorf("a list cannot hold the serial 0")
	}
	out := make([]byte, 0, 64+len(keys)*(256+8*len(serials)))
	out = append(out, krlMagic...)
	out = binary.BigEndian.AppendUint32(out, krlFormatVersion)
	out = binary.BigEndian.AppendUint64(out, uint64(generated.UnixMilli()))
	out = binary.BigEndian.AppendUint64(out, uint64(generated.Unix()))
	out = binary.BigEndian.AppendUint64(out, 0) // flags
	out = appendString(out, nil)                // reserved
	out = appendString(out, nil)                // comment
	if len(serials) == 0 {
		return out, nil
	}
	list := make([]byte, 0, 8*len(serials))
	for _, n := range serials {
		list = binary.BigEndian.AppendUint64(list, n)
	}
	for _, k := range keys {
		var section []byte
		section = appendString(section, k.Marshal())
		section = appendString(section, nil) // reserved
		section = append(section, krlSerialList)
		section = appendString(section, list)
		out = append(out, krlCertificates)
		out = appendString(out, section)
	}
	return out, nil
}

// appendString appends a string as SSH writes it (RFC 4251 §5).
func appendString(to, s []byte) []byte {
	return append(binary.BigEndian.AppendUint32(to, uint32(len(s))), s...)
}
