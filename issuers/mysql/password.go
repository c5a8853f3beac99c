package mysql

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha1" // what mysql_native_password is made of
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"

	"filippo.io/edwards25519"

	"github.com/mayfly-broker/mayfly/secret"
)

// verifier is what the server stores of a password. The password itself never
// reaches the server in a statement, nor its logs.
type verifier struct {
	plugin string
	text   string
}

var passwordEncoding = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// newPassword returns 160 random bits as 32 characters. The length is also an
// Ed25519 seed's, so that the key that MariaDB derives from a password is one
// that the standard library makes.
func newPassword() secret.Text {
	var b [20]byte
	_, _ = rand.Read(b[:]) // never fails; see crypto/rand
	return secret.New(passwordEncoding.EncodeToString(b[:]))
}

// newVerifier hashes a password as the plugin does; "" means the server's own.
func newVerifier(d dialect, plugin string, p secret.Text) (verifier, error) {
	if plugin == "" {
		plugin = authNative
		if d.mysql {
			plugin = authSHA2
		}
	}
	switch {
	case plugin == authNative:
		return verifier{plugin, nativeHash(p)}, nil
	case plugin == authEd25519 && !d.mysql:
		key := ed25519.NewKeyFromSeed([]byte(p.Reveal())).Public().(ed25519.PublicKey)
		return verifier{plugin, base64.RawStdEncoding.EncodeToString(key)}, nil
	case plugin == authSHA2 && d.mysql:
		return verifier{plugin, cachingSHA2(p, rand.Text()[:20])}, nil
	}
	return verifier{}, fmt.Errorf("auth: this server (%s) has no %s", d.text, plugin)
}

// ed25519Key is the public key that MariaDB's ed25519 derives from a password of
// any length: Ed25519 (RFC 8032 §5.1.5) with the password for a seed.
func ed25519Key(p secret.Text) string {
	sum := sha512.Sum512([]byte(p.Reveal()))
	s, err := new(edwards25519.Scalar).SetBytesWithClamping(sum[:32])
	if err != nil {
		return "" // never: it has 32 bytes
	}
	return base64.RawStdEncoding.EncodeToString(new(edwards25519.Point).ScalarBaseMult(s).Bytes())
}

// nativeHash is SHA1(SHA1(password)), as mysql_native_password stores it. It is
// unsalted: a password of 160 random bits needs no salt.
func nativeHash(p secret.Text) string {
	first := sha1.Sum([]byte(p.Reveal()))
	second := sha1.Sum(first[:])
	return "*" + strings.ToUpper(hex.EncodeToString(second[:]))
}

// cachingSHA2 is what caching_sha2_password stores: SHA-crypt (Drepper, "Unix
// crypt using SHA-256 and SHA-512") with 5000 rounds, the least that MySQL takes,
// and a salt of 20 characters.
func cachingSHA2(p secret.Text, salt string) string {
	return "$A$005$" + salt + shaCrypt([]byte(p.Reveal()), []byte(salt), 5000)
}

func shaCrypt(password, salt []byte, rounds int) string {
	b := sha256.Sum256(concat(password, salt, password))
	a := concat(password, salt, stretch(b[:], len(password)))
	for n := len(password); n > 0; n >>= 1 {
		if n&1 == 1 {
			a = append(a, b[:]...)
		} else {
			a = append(a, password...)
		}
	}
	sum := sha256.Sum256(a)
	dp := sha256.Sum256(repeat(password, len(password)))
	p := stretch(dp[:], len(password))
	ds := sha256.Sum256(repeat(salt, 16+int(sum[0])))
	s := stretch(ds[:], len(salt))
	for i := range rounds {
		var in []byte
		if i&1 == 1 {
			in = append(in, p...)
		} else {
			in = append(in, sum[:]...)
		}
		if i%3 != 0 {
			in = append(in, s...)
		}
		if i%7 != 0 {
			in = append(in, p...)
		}
		if i&1 == 1 {
			in = append(in, sum[:]...)
		} else {
			in = append(in, p...)
		}
		sum = sha256.Sum256(in)
	}
	return cryptBase64(sum)
}

func concat(parts ...[]byte) (out []byte) {
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

// stretch repeats a digest to n bytes.
func stretch(digest []byte, n int) []byte {
	out := make([]byte, 0, n+len(digest))
	for len(out) < n {
		out = append(out, digest...)
	}
	return out[:n]
}

func repeat(b []byte, n int) []byte {
	out := make([]byte, 0, n*len(b))
	for range n {
		out = append(out, b...)
	}
	return out
}

// cryptBase64 writes a digest in the order and alphabet of SHA-crypt.
func cryptBase64(d [32]byte) string {
	const alphabet = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	var out strings.Builder
	put := func(b2, b1, b0 byte, n int) {
		w := uint(b2)<<16 | uint(b1)<<8 | uint(b0)
		for range n {
			out.WriteByte(alphabet[w&63])
			w >>= 6
		}
	}
	i, j, k := 0, 10, 20
	for range 10 {
		put(d[i], d[j], d[k], 4)
		i, j, k = k+1, i+1, j+1
	}
	put(0, d[31], d[30], 3)
	return out.String()
}
