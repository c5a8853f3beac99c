package x509_test

import (
	"crypto/elliptic"
	stdx509 "crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/x509"
	"github.com/mayfly-broker/mayfly/secret"
)

// firstShape is a target's secrets as the first version sealed them: a key, and a
// CA of path length 0.
func firstShape() map[string]secret.Text {
	return map[string]secret.Text{x509.SecretKey: secret.New(`-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgUG0rNQgBhNiDqxxY
tFGH3qbqjNE3cqcw0BxHIitY4PKhRANCAAQFRcN31/rdy3xB6hf5ejIYiRJBX4ia
BFKg6Uyxn8xEiW3wBWK6JUoAz8KFWP/swcZJaZXT+6QxPNateFe4ban4
-----END PRIVATE KEY-----
`), x509.SecretCertificate: secret.New(`-----BEGIN CERTIFICATE-----
MIIBazCCARGgAwIBAgIQNmIdxlPhmx6G4BiRhldwAzAKBggqhkjOPQQDAjAUMRIw
EAYDVQQDEwlNYXlmbHkgQ0EwHhcNMjYxMTIyMTAxMjM5WhcNMzYxMTE5MTAxMzA5
WjAUMRIwEAYDVQQDEwlNYXlmbHkgQ0EwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC
AAQFRcN31/rdy3xB6hf5ejIYiRJBX4iaBFKg6Uyxn8xEiW3wBWK6JUoAz8KFWP/s
wcZJaZXT+6QxPNateFe4ban4o0UwQzAOBgNVHQ8BAf8EBAMCAQYwEgYDVR0TAQH/
BAgwBgEB/wIBADAdBgNVHQ4EFgQU2Kr/yEkWFDLGfd66Mx5Hj20XabEwCgYIKoZI
zj0EAwIDSAAwRQIgZ+pja2MjGJvEMmSZ0AlSwVcIceY5ynQKZr+gusIK5JsCIQDu
0y9hB9XSzzMxzfknSIATa/Do90A40gOiJwOhuB5c3w==
-----END CERTIFICATE-----
`)}
}

func turned(t *testing.T, target issuers.Target, step issuers.KeyTurn) issuers.Target {
	t.Helper()
	var err error
	if target.Secrets, err = (x509.Kind{}).TurnKeys(t.Context(), target.Spec, target.Secrets, step); err != nil {
		t.Fatal(err)
	}
	return target
}

func certificatesOf(t *testing.T, text string) (out []*stdx509.Certificate) {
	t.Helper()
	for rest := []byte(text); len(rest) > 0; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			t.Fatal("not PEM to its end")
		}
		if len(block.Headers) > 0 {
			t.Errorf("a header of the sealed form is delivered: %v", block.Headers)
		}
		c, err := stdx509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, c)
	}
	return out
}

// judge verifies a credential with one root, at an instant.
func judge(t *testing.T, c issuers.Credential, root *stdx509.Certificate, at time.Time) error {
	t.Helper()
	roots, intermediates := stdx509.NewCertPool(), stdx509.NewCertPool()
	roots.AddCert(root)
	for _, x := range certificatesOf(t, c.Public["ca_chain"]) {
		intermediates.AddCert(x)
	}
	_, err := leafOf(t, c).Verify(stdx509.VerifyOptions{Roots: roots, Intermediates: intermediates, DNSName: "localhost", CurrentTime: at})
	return err
}

// A verifier with either root, and that one alone, accepts chains by either key
// while both are honoured.
func TestEitherRootAcceptsEither(t *testing.T) {
	for _, spec := range []string{`{}`, constrained} {
		old := newTarget(t, spec)
		published := turned(t, old, issuers.KeyPublish)
		used := turned(t, published, issuers.KeyUse)
		var roots []*stdx509.Certificate
		for _, target := range []issuers.Target{old, turned(t, used, issuers.KeyRetire)} {
			docs, err := mustOpen(t, target).(issuers.Publisher).Publish(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			roots = append(roots, certificatesOf(t, string(docs["ca"]))...)
		}
		if len(roots) != 2 || roots[0].Equal(roots[1]) || roots[0].Subject.String() != roots[1].Subject.String() {
			t.Fatalf("there should be two roots of one name: %d", len(roots))
		}
		for name, target := range map[string]issuers.Target{"published": published, "used": used} {
			c, err := mintCSR(t, mustOpen(t, target), grant(both, "dns:localhost"), nil)
			if err != nil {
				t.Fatal(err)
			}
			// a verifier that takes the first issuer that fits must not run into a root that
			// it does not know
			if first := certificatesOf(t, c.Public["ca_chain"])[0]; first.CheckSignatureFrom(first) == nil || len(first.AuthorityKeyId) == 0 {
				t.Errorf("%s: the chain begins with a root, or with what passes for one", name)
			}
			for i, root := range roots {
				if err := judge(t, c, root, time.Now()); err != nil {
					t.Errorf("%s, by root %d alone: %v", name, i, err)
				}
			}
		}
	}
}

// The certificate by which the new CA vouches for the old ends with the rotation:
// after that, whoever has the old key, and that certificate, certifies nothing.
func TestOldKeyCertifiesNothingAfterTheRotation(t *testing.T) {
	old := newTarget(t, `{"max_ttl":"1h","key_publish":"2h"}`)
	published := turned(t, old, issuers.KeyPublish)
	retired := turned(t, turned(t, published, issuers.KeyUse), issuers.KeyRetire)
	c, err := mintCSR(t, mustOpen(t, published), grant(both, "dns:localhost"), nil)
	if err != nil {
		t.Fatal(err)
	}
	docs, err := mustOpen(t, retired).(issuers.Publisher).Publish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	newRoot := certificatesOf(t, string(docs["ca"]))[0]
	block, _ := pem.Decode([]byte(old.Secrets[x509.SecretKey].Reveal()))
	key, err := stdx509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	oldRoot := certificatesOf(t, c.Public["ca_chain"])[0]
	template := &stdx509.Certificate{
		SerialNumber: big.NewInt(7), DNSNames: []string{"localhost"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(100 * time.Hour),
		ExtKeyUsage: []stdx509.ExtKeyUsage{stdx509.ExtKeyUsageServerAuth},
	}
	der, err := stdx509.CreateCertificate(nil, template, oldRoot, mustEC(t, elliptic.P256()).Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	forged := c
	forged.Public = map[string]string{"certificate": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), "ca_chain": c.Public["ca_chain"]}
	publish, honour := x509.Kind{}.KeyTimes(old.Spec)
	if publish != 2*time.Hour || honour != 70*time.Minute {
		t.Errorf("KeyTimes are %s and %s", publish, honour)
	}
	if err := judge(t, forged, newRoot, time.Now()); err != nil {
		t.Errorf("while the old key is honoured, the new root should know it: %v", err)
	}
	if judge(t, forged, newRoot, time.Now().Add(publish+honour+time.Minute)) == nil {
		t.Error("after the rotation, the new root still accepts what the old key signs")
	}
}

// A CA that stands below another cannot be rotated here: that one alone certifies.
func TestImportedIntermediateIsNotTurned(t *testing.T) {
	secrets, _ := imported(t, nil)
	if _, err := (x509.Kind{}).TurnKeys(t.Context(), json.RawMessage(`{}`), secrets, issuers.KeyPublish); err == nil || !strings.Contains(err.Error(), "was brought") {
		t.Errorf("%v", err)
	}
}

// Secrets of two different steps, or of two targets, do not open.
func TestMixedStepsDoNotOpen(t *testing.T) {
	old := newTarget(t, `{}`)
	published := turned(t, old, issuers.KeyPublish)
	used := turned(t, published, issuers.KeyUse)
	another := turned(t, old, issuers.KeyPublish)
	for name, c := range map[string][2]issuers.Target{
		"key of before":         {old, published},
		"certificate of before": {published, old},
		"key of after":          {used, published},
		"another turn's key":    {another, published},
	} {
		target := old
		target.Secrets = map[string]secret.Text{x509.SecretKey: c[0].Secrets[x509.SecretKey], x509.SecretCertificate: c[1].Secrets[x509.SecretCertificate]}
		if _, err := (x509.Kind{}).Open(target); err == nil {
			t.Errorf("%s: it opens", name)
		}
	}
}
