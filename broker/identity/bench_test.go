package identity

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/client/keys"
	"github.com/mayfly-broker/mayfly/secret"
)

func BenchmarkDPoPVerify(b *testing.B) {
	for _, alg := range []keys.Algorithm{keys.P256, keys.Ed25519} {
		b.Run(string(alg), func(b *testing.B) {
			k, err := keys.Generate(alg)
			if err != nil {
				b.Fatal(err)
			}
			v := newVerifier(b, NewNonces("n"))
			token, _ := MintSession()
			// Every proof is used once, as in life; making them is not measured.
			proofs := make([]string, 0, 4096)
			for b.Loop() {
				if len(proofs) == 0 {
					b.StopTimer()
					for range cap(proofs) {
						p, err := k.DPoP("POST", external+path, v.Nonce(noon), token.Reveal(), noon)
						if err != nil {
							b.Fatal(err)
						}
						proofs = append(proofs, p)
					}
					b.StartTimer()
				}
				p := proofs[len(proofs)-1]
				proofs = proofs[:len(proofs)-1]
				if _, err := v.Verify(p, "POST", path, token, noon); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkJWTAttest(b *testing.B) {
	key := newP256(b)
	k8s := shapes[0]
	body := k8s.claims.with("iss", "https://k8s.example").with("aud", "a").with("exp", noon.Add(time.Hour).Unix()).with("iat", noon.Unix())
	spec := claims{
		"type": "jwt", "issuer": "https://k8s.example", "audience": "a", "require": k8s.spec["require"], "bind": k8s.spec["bind"],
		"jwks": claims{"keys": []any{jwkOf(b, key.Public(), "ec", "", ""), jwkOf(b, rsaKey().Public(), "rsa", "", "")}},
	}
	a := attestor(b, spec, Deps{})
	for name, token := range map[string]string{
		"ES256": forge(b, key, claims{"alg": "ES256", "kid": "ec"}, body),
		"RS256": forge(b, rsaKey(), claims{"alg": "RS256", "kid": "rsa"}, body),
	} {
		b.Run(name, func(b *testing.B) {
			ev := Evidence{Method: "m", Token: secret.New(token)}
			for b.Loop() {
				if _, err := a.Attest(b.Context(), ev, noon); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkReplayCache(b *testing.B) {
	c := newReplayCache(1 << 26)
	var id [16]byte
	for i := 0; b.Loop(); i++ {
		for n := range 8 {
			id[n] = byte(i >> (8 * n))
		}
		// Ten thousand a second of the test's own time.
		now := noon.Add(time.Duration(i) * 100 * time.Microsecond)
		if err := c.claim("k", string(id[:]), now.Add(time.Minute), now); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRawVerify is the floor under the two above: the signature alone.
func BenchmarkRawVerify(b *testing.B) {
	sum := sha256.Sum256([]byte("x"))
	p256 := newP256(b)
	sig, err := ecdsa.SignASN1(rand.Reader, p256, sum[:])
	if err != nil {
		b.Fatal(err)
	}
	b.Run("p256", func(b *testing.B) {
		for b.Loop() {
			if !ecdsa.VerifyASN1(&p256.PublicKey, sum[:], sig) {
				b.Fatal("no")
			}
		}
	})
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	signed := ed25519.Sign(private, sum[:])
	b.Run("ed25519", func(b *testing.B) {
		for b.Loop() {
			if !ed25519.Verify(public, sum[:], signed) {
				b.Fatal("no")
			}
		}
	})
}
