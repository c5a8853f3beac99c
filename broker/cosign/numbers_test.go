package cosign_test

import (
	"bytes"
	"encoding/asn1"
	"encoding/binary"
	"math/big"
	"strings"
	"testing"
)

// order is that of P-256's group.
var order, _ = new(big.Int).SetString("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551", 16)

// split takes a signature in DER apart.
func split(der []byte) (r, s *big.Int) {
	var n struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &n); err != nil {
		panic(err)
	}
	return n.R, n.S
}

// join puts one together.
func join(r, s *big.Int) []byte {
	der, err := asn1.Marshal(struct{ R, S *big.Int }{r, s})
	if err != nil {
		panic(err)
	}
	return der
}

// mpint is a positive number as in RFC 4251 §5, without its length.
func mpint(n *big.Int) []byte {
	b := n.Bytes()
	if len(b) > 0 && b[0]&0x80 != 0 {
		b = append([]byte{0}, b...)
	}
	return b
}

// pair is two strings of RFC 4251.
func pair(a, b []byte) []byte { return append(str(a), str(b)...) }

func str(b []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
}

// mpints returns the numbers of an ECDSA signature within an SSHSIG.
func mpints(t testing.TB, blob []byte) (r, s *big.Int) {
	t.Helper()
	i := bytes.LastIndex(blob, []byte("ecdsa-sha2-nistp256"))
	if i < 0 {
		t.Fatal("the blob has no ECDSA signature")
	}
	rest := blob[i+19+4:]
	n := binary.BigEndian.Uint32(rest)
	r = new(big.Int).SetBytes(rest[4 : 4+n])
	return r, new(big.Int).SetBytes(rest[4+n+4:])
}

// replaceInner replaces the two numbers at the end of an SSHSIG, and the lengths
// around them.
func replaceInner(t testing.TB, blob, from, to []byte) []byte {
	t.Helper()
	head, ok := bytes.CutSuffix(blob, from)
	if !ok {
		t.Fatal("the blob does not end on the numbers")
	}
	const format = "ecdsa-sha2-nistp256"
	head = head[:len(head)-4-len(format)-4-4] // without the inner signature
	return append(bytes.Clone(head), str(append(str([]byte(format)), str(to)...))...)
}

// loosen sets a bit of the last character that decodes to nothing.
func loosen(s string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, s[len(s)-1])
	return s[:len(s)-1] + string(alphabet[last^1])
}
