package approve_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"golang.org/x/crypto/ssh"

	"github.com/mayfly-broker/mayfly/client/approve"
)

const domain = approve.DomainGrant

var hash = approve.Sum(domain, []byte(`{"what":"ever"}`))

// run runs one of OpenSSH's programs.
func run(t *testing.T, stdin []byte, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s(apt-get install openssh-client, or make setup)", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// keygen makes a key file with ssh-keygen and returns its path.
func keygen(t *testing.T, kind, passphrase string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "id")
	run(t, nil, "ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", "test", "-f", path)
	return path
}

// verified has ssh-keygen itself check a signature of the hash.
func verified(t *testing.T, s approve.Signer) {
	t.Helper()
	sig, err := s.Sign(domain, hash)
	if err != nil {
		t.Fatal(err)
	}
	if sig.Kind != approve.KindSSH || sig.Key != s.Key().Thumbprint {
		t.Errorf("signature of %s by %s", sig.Kind, sig.Key)
	}
	dir := t.TempDir()
	allowed, file := filepath.Join(dir, "allowed"), filepath.Join(dir, "sig")
	for path, text := range map[string]string{allowed: "ann " + s.Key().SSH + "\n", file: approve.Armour(sig.SSHSIG)} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out := run(t, hash[:], "ssh-keygen", "-Y", "verify", "-f", allowed, "-I", "ann", "-n", domain, "-s", file)
	if !strings.Contains(out, s.Key().Fingerprint) {
		t.Errorf("ssh-keygen says %q, the key is %s", out, s.Key().Fingerprint)
	}
	// Under another domain, or of another hash, it is no signature.
	cmd := exec.Command("ssh-keygen", "-Y", "verify", "-f", allowed, "-I", "ann", "-n", approve.DomainChange, "-s", file)
	cmd.Stdin = bytes.NewReader(hash[:])
	if cmd.Run() == nil {
		t.Error("the signature verifies under another domain")
	}
}

func TestSSHKeygenVerifiesWhatFilesSign(t *testing.T) {
	for _, kind := range []string{"ed25519", "ecdsa"} {
		t.Run(kind, func(t *testing.T) {
			s, err := approve.Open(keygen(t, kind, ""), nil)
			if err != nil {
				t.Fatal(err)
			}
			verified(t, s)
		})
	}
}

func TestPassphraseIsAskedFor(t *testing.T) {
	path := keygen(t, "ed25519", "correct horse")
	asked := 0
	ask := func(answer string) approve.Passphrase {
		return func(what string) ([]byte, error) {
			asked++
			if what != path {
				t.Errorf("asked for %q", what)
			}
			return []byte(answer), nil
		}
	}
	s, err := approve.Open(path, ask("correct horse"))
	if err != nil {
		t.Fatal(err)
	}
	verified(t, s)
	if _, err := approve.Open(path, ask("wrong")); code(err) != approve.CodeKey || strings.Contains(err.Error(), "wrong") {
		t.Errorf("with the wrong passphrase: %v", err)
	}
	if _, err := approve.Open(path, nil); code(err) != approve.CodeKey || !strings.Contains(err.Error(), "ssh-agent") {
		t.Errorf("with nobody to ask: %v", err)
	}
	if asked != 2 {
		t.Errorf("asked %d times", asked)
	}
	// A key that cannot approve is refused before anybody types anything.
	if _, err := approve.Open(keygen(t, "rsa", "x"), ask("x")); code(err) != approve.CodeKey || asked != 2 || !strings.Contains(err.Error(), "ssh-rsa") {
		t.Errorf("RSA: %v, asked %d times", err, asked)
	}
}

func code(err error) string {
	var e *approve.Error
	if !errors.As(err, &e) {
		return ""
	}
	return e.Code
}

func TestKeysThatCannotApproveAreRefused(t *testing.T) {
	write := func(data []byte, mode os.FileMode) string {
		path := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good, err := os.ReadFile(keygen(t, "ed25519", ""))
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ path, want string }{
		"p384":         {write(openSSH(t, p384), 0o600), "ecdsa-sha2-nistp384"},
		"rsa":          {write(openSSH(t, rsaKey), 0o600), "ssh-rsa"},
		"p384 jwk":     {write(jwk(t, p384), 0o600), "P-256"},
		"rsa jwk":      {write(jwk(t, rsaKey), 0o600), "ed25519 or ECDSA"},
		"secret jwk":   {write([]byte(`{"kty":"oct","k":"c2VjcmV0"}`), 0o600), "no JWK"},
		"public jwk":   {write(jwk(t, p384.Public()), 0o600), "public JWK"},
		"open to all":  {write(good, 0o644), "chmod 0600"},
		"no key":       {write([]byte("hello"), 0o600), "neither"},
		"cut":          {write(good[:len(good)/2], 0o600), "neither"},
		"too long":     {write(make([]byte, 70<<10), 0o600), "more than"},
		"directory":    {t.TempDir(), "plain file"},
		"security key": {write(skFile(), 0o600), "ssh-agent"},
	} {
		_, err := approve.Open(c.path, nil)
		if code(err) != approve.CodeKey || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want a sentence with %q", name, err, c.want)
		}
	}
	if _, err := approve.Open(filepath.Join(t.TempDir(), "none"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

func openSSH(t *testing.T, key any) []byte {
	t.Helper()
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(block)
}

// skFile is a file as ssh-keygen -t ed25519-sk writes it, without a real handle.
func skFile() []byte {
	public := ssh.Marshal(struct {
		Type        string
		Key         []byte
		Application string
	}{ssh.KeyAlgoSKED25519, ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey), "ssh:"})
	body := ssh.Marshal(struct {
		Cipher, KDF, Options string
		Keys                 uint32
		Public, Private      []byte
	}{"none", "none", "", 1, public, make([]byte, 64)})
	return pem.EncodeToMemory(&pem.Block{Type: "OPENSSH PRIVATE KEY", Bytes: append([]byte("openssh-key-v1\x00"), body...)})
}

func jwk(t *testing.T, key any) []byte {
	t.Helper()
	out, err := json.Marshal(jose.JSONWebKey{Key: key, KeyID: "k"})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// jwkFile writes a private JWK and opens it.
func jwkFile(t *testing.T, key any) approve.Signer {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key.jwk")
	if err := os.WriteFile(path, jwk(t, key), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := approve.Open(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestJWSHoldsTheHashAndItsDomain(t *testing.T) {
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for alg, key := range map[jose.SignatureAlgorithm]any{jose.ES256: p256, jose.EdDSA: ed} {
		s := jwkFile(t, key)
		sig, err := s.Sign(domain, hash)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := jose.ParseSignedCompact(sig.JWS, []jose.SignatureAlgorithm{alg})
		if err != nil {
			t.Fatal(err)
		}
		var public jose.JSONWebKey
		if err := json.Unmarshal(s.Key().JWK, &public); err != nil {
			t.Fatal(err)
		}
		payload, err := parsed.Verify(public.Key)
		if err != nil || !bytes.Equal(payload, hash[:]) {
			t.Errorf("%s: payload %x, %v", alg, payload, err)
		}
		if typ := parsed.Signatures[0].Header.ExtraHeaders[jose.HeaderType]; typ != domain+"+jws" {
			t.Errorf("%s: typ %v", alg, typ)
		}
		if strings.Contains(string(s.Key().JWK), "kid") || strings.Contains(string(s.Key().JWK), `"d"`) {
			t.Errorf("registered as %s", s.Key().JWK)
		}
	}
}

func TestGeneratedKeyIsKeptAndPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "approve_key")
	first, made, err := approve.OpenOrGenerate(path, "human:ann", nil)
	if err != nil || !made {
		t.Fatal(made, err)
	}
	again, made, err := approve.OpenOrGenerate(path, "human:ann", nil)
	if err != nil || made || again.Key().Thumbprint != first.Key().Thumbprint {
		t.Errorf("opened again it is another: %v, %v", made, err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Errorf("%v, %v", left, err)
	}
	verified(t, first)
	// OpenSSH reads it too.
	if out := run(t, nil, "ssh-keygen", "-l", "-f", path); !strings.Contains(out, first.Key().Fingerprint) {
		t.Errorf("%s, want %s", out, first.Key().Fingerprint)
	}
}

func TestPublicKeyForms(t *testing.T) {
	path := keygen(t, "ed25519", "")
	line, err := os.ReadFile(path + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	k, err := approve.PublicKey(line, path)
	s, err2 := approve.Open(path, nil)
	if err != nil || err2 != nil || k.Thumbprint != s.Key().Thumbprint || k.SSH != s.Key().SSH {
		t.Errorf("%+v, %v, %v", k, err, err2)
	}
	if _, err := approve.PublicKey([]byte("nonsense"), "x"); code(err) != approve.CodeKey {
		t.Errorf("%v", err)
	}
}

func FuzzOpen(f *testing.F) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "c")
	if err != nil {
		f.Fatal(err)
	}
	text, err := json.Marshal(jose.JSONWebKey{Key: private})
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range [][]byte{pem.EncodeToMemory(block), text, skFile(), []byte("{}"), []byte("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n")} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "k")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := approve.Open(path, func(string) ([]byte, error) { return []byte("x"), nil })
		if err != nil && code(err) == "" {
			t.Fatalf("an error of no code: %v", err)
		}
		if err == nil && len(s.Key().Thumbprint) != 43 {
			t.Fatal(fmt.Sprint(s.Key()))
		}
		if _, err := approve.PublicKey(data, "x"); err != nil && code(err) == "" {
			t.Fatalf("an error of no code: %v", err)
		}
	})
}

// publicJWK is an SSH public key as a document has it.
func publicJWK(t *testing.T, line string) string {
	t.Helper()
	public, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(jose.JSONWebKey{Key: public.(ssh.CryptoPublicKey).CryptoPublicKey()})
	if err != nil {
		t.Fatal(err)
	}
	var members map[string]string
	if err := json.Unmarshal(out, &members); err != nil {
		t.Fatal(err)
	}
	if out, err = json.Marshal(members); err != nil { // in the order of their names
		t.Fatal(err)
	}
	return string(out)
}
