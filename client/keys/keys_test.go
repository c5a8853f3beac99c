package keys_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-broker/mayfly/client/keys"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func generate(t testing.TB, alg keys.Algorithm) *keys.Key {
	t.Helper()
	k, err := keys.Generate(alg)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// open verifies a compact JWS with k's public key and returns header and claims.
func open(t testing.TB, k *keys.Key, token string) (jose.Header, map[string]any) {
	t.Helper()
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256, jose.EdDSA})
	if err != nil {
		t.Fatal(err)
	}
	payload, err := jws.Verify(k.Public())
	if err != nil {
		t.Fatalf("the signature does not verify: %v", err)
	}
	claims := map[string]any{}
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	return jws.Signatures[0].Protected, claims
}

func TestDPoPProofSaysWhatTheRequestIs(t *testing.T) {
	for _, alg := range []keys.Algorithm{keys.P256, keys.Ed25519} {
		k := generate(t, alg)
		proof, err := k.DPoP("POST", "https://broker.example:8700/api/v1/request?x=1#y", "n-1", "mfs_token", noon)
		if err != nil {
			t.Fatal(err)
		}
		header, claims := open(t, k, proof)
		if header.ExtraHeaders["typ"] != "dpop+jwt" || header.JSONWebKey == nil || !header.JSONWebKey.IsPublic() {
			t.Fatalf("%s: header %+v", alg, header)
		}
		sum := sha256.Sum256([]byte("mfs_token"))
		want := map[string]any{
			"htm": "POST", "htu": "https://broker.example:8700/api/v1/request", "nonce": "n-1",
			"iat": float64(noon.Unix()), "ath": base64.RawURLEncoding.EncodeToString(sum[:]),
		}
		for name, value := range want {
			if claims[name] != value {
				t.Errorf("%s: %s = %v, want %v", alg, name, claims[name], value)
			}
		}
		again, err := k.DPoP("POST", "https://broker.example:8700/api/v1/request", "n-1", "mfs_token", noon)
		if err != nil {
			t.Fatal(err)
		}
		if _, second := open(t, k, again); second["jti"] == claims["jti"] || len(claims["jti"].(string)) != 22 {
			t.Errorf("%s: jti %v then %v", alg, claims["jti"], second["jti"])
		}
	}
}

func TestDPoPOmitsWhatThereIsNot(t *testing.T) {
	k := generate(t, "")
	proof, err := k.DPoP("GET", "https://broker.example/", "", "", noon)
	if err != nil {
		t.Fatal(err)
	}
	_, claims := open(t, k, proof)
	for _, name := range []string{"ath", "nonce"} {
		if v, ok := claims[name]; ok {
			t.Errorf("%s = %v in a proof without one", name, v)
		}
	}
}

func TestDPoPRefusesURLsNoServerHas(t *testing.T) {
	k := generate(t, "")
	for _, target := range []string{"", "/api", "ftp://h/", "https://", "https://u:hunter2@h/", "https://h/" + strings.Repeat("a", 3000), "https://h/\x00"} {
		_, err := k.DPoP("GET", target, "", "", noon)
		if !errors.Is(err, keys.ErrInput) {
			t.Errorf("%q: %v, want ErrInput", target, err)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error shows the password: %v", err)
		}
	}
}

func TestAssertionNamesOneAudienceAndItsKey(t *testing.T) {
	k := generate(t, keys.Ed25519)
	for session, want := range map[string]string{"": k.Thumbprint(), "another-key": "another-key"} {
		token, err := k.Assertion("https://broker.example", "agent:coder", session, noon)
		if err != nil {
			t.Fatal(err)
		}
		header, claims := open(t, k, token)
		if header.ExtraHeaders["typ"] != "client-authentication+jwt" {
			t.Errorf("typ %v", header.ExtraHeaders["typ"])
		}
		if claims["aud"] != "https://broker.example" || claims["iss"] != "agent:coder" || claims["sub"] != "agent:coder" {
			t.Errorf("claims %v", claims)
		}
		if claims["exp"].(float64)-claims["iat"].(float64) != keys.AssertionLife.Seconds() {
			t.Errorf("life %v to %v", claims["iat"], claims["exp"])
		}
		if got := claims["cnf"].(map[string]any)["jkt"]; got != want {
			t.Errorf("cnf.jkt = %v, want %v", got, want)
		}
	}
	if _, err := k.Assertion("", "agent:coder", "", noon); !errors.Is(err, keys.ErrInput) {
		t.Errorf("without issuer: %v", err)
	}
}

// RFC 7638 and RFC 8037 appendix A.3: the thumbprint of the published key.
func TestThumbprintIsRFC7638(t *testing.T) {
	var jwk jose.JSONWebKey
	published := `{"kty":"OKP","crv":"Ed25519","d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`
	if err := json.Unmarshal([]byte(published), &jwk); err != nil {
		t.Fatal(err)
	}
	k, err := keys.FromSigner(jwk.Key.(keySigner))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := k.Thumbprint(), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"; got != want {
		t.Fatalf("thumbprint %s, want %s", got, want)
	}
}

func TestPublicJWKHasNoPrivatePart(t *testing.T) {
	for _, alg := range []keys.Algorithm{keys.P256, keys.Ed25519} {
		k := generate(t, alg)
		text, err := k.PublicJWK()
		if err != nil {
			t.Fatal(err)
		}
		var jwk jose.JSONWebKey
		if err := json.Unmarshal(text, &jwk); err != nil || !jwk.IsPublic() || bytes.Contains(text, []byte(`"d"`)) {
			t.Errorf("%s: %s, %v", alg, text, err)
		}
	}
}

func TestOtherKindsOfKeyAreRefused(t *testing.T) {
	if _, err := keys.Generate("rsa"); !errors.Is(err, keys.ErrAlgorithm) {
		t.Errorf("Generate(rsa): %v", err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keys.FromSigner(p384); !errors.Is(err, keys.ErrAlgorithm) {
		t.Errorf("P-384: %v", err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keys.FromSigner(rsaKey); !errors.Is(err, keys.ErrAlgorithm) {
		t.Errorf("RSA: %v", err)
	}
}

func TestCertificateIsOfTheKey(t *testing.T) {
	for _, alg := range []keys.Algorithm{keys.P256, keys.Ed25519} {
		k := generate(t, alg)
		cert, err := k.Certificate("agent:coder", noon, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		leaf := cert.Leaf
		if err := leaf.CheckSignature(leaf.SignatureAlgorithm, leaf.RawTBSCertificate, leaf.Signature); err != nil {
			t.Errorf("%s: not self-signed: %v", alg, err)
		}
		if pub := leaf.PublicKey.(interface{ Equal(x keyPublic) bool }); !pub.Equal(k.Public()) {
			t.Errorf("%s: another key's certificate", alg)
		}
		if leaf.IsCA || !leaf.NotAfter.Equal(noon.Add(time.Hour)) || leaf.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth {
			t.Errorf("%s: CA %v, until %v, usage %v", alg, leaf.IsCA, leaf.NotAfter, leaf.ExtKeyUsage)
		}
		sum := sha256.Sum256(cert.Certificate[0])
		if got := keys.CertificateThumbprint(leaf); got != base64.RawURLEncoding.EncodeToString(sum[:]) {
			t.Errorf("%s: x5t#S256 %s", alg, got)
		}
		if err := (&tls.CertificateRequestInfo{Version: tls.VersionTLS13, SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256, tls.Ed25519}}).SupportsCertificate(&cert); err != nil {
			t.Errorf("%s: TLS cannot use it: %v", alg, err)
		}
	}
	k := generate(t, "")
	if _, err := k.Certificate("x", noon, 0); !errors.Is(err, keys.ErrInput) {
		t.Errorf("no ttl: %v", err)
	}
}

// Law 6: no secret reaches a log line.
func TestLaw6PrintingAKeyShowsItsThumbprintOnly(t *testing.T) {
	k := generate(t, "")
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&out, verb+" "+verb+"\n", k, struct{ K *keys.Key }{k})
	}
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "key", k)
	if err := json.NewEncoder(&out).Encode(map[string]any{"k": k}); err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(out.String(), k.Thumbprint()); lines < 9 {
		t.Errorf("the thumbprint appears %d times", lines)
	}
	for _, private := range []string{"PrivateKey", "Curve", "big.Int"} {
		if strings.Contains(out.String(), private) {
			t.Fatalf("printed %q:\n%s", private, out.String())
		}
	}
}

func BenchmarkDPoP(b *testing.B) {
	for _, alg := range []keys.Algorithm{keys.P256, keys.Ed25519} {
		b.Run(string(alg), func(b *testing.B) {
			k := generate(b, alg)
			for b.Loop() {
				if _, err := k.DPoP("POST", "https://broker.example:8700/api/v1/request", "nonce", "mfs_x", noon); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
