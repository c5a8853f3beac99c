package cosign_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"golang.org/x/crypto/ssh"

	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/broker/cosign/cosigntest"
)

// What every replica runs is ours or the standard library's, and of that only
// what computes: keys are neither made nor used here.
func TestHazard2VerifierIsOfTheStandardLibraryAlone(t *testing.T) {
	may := []string{
		"bytes", "crypto/ecdsa", "crypto/ed25519", "crypto/elliptic", "crypto/sha256", "crypto/sha512", "crypto/subtle", "encoding/base64",
		"encoding/binary", "encoding/hex", "encoding/json", "fmt", "math/big", "slices", "strings", "unicode/utf16", "unicode/utf8",
	}
	verifying := map[string][]string{
		"ecdsa":    {"PublicKey", "ParseUncompressedPublicKey", "VerifyASN1"},
		"ed25519":  {"PublicKey", "SignatureSize", "Verify"},
		"elliptic": {"P256"},
		"json":     {"RawMessage", "NewEncoder"},
	}
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			s, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			x, ok := s.X.(*ast.Ident)
			if allowed := verifying[fmt.Sprint(s.X)]; ok && allowed != nil && !slices.Contains(allowed, s.Sel.Name) {
				t.Errorf("%s uses %s.%s", file, x.Name, s.Sel.Name)
			}
			return true
		})
		for _, i := range f.Imports {
			if name := strings.Trim(i.Path.Value, `"`); !slices.Contains(may, name) {
				t.Errorf("%s imports %s", file, name)
			}
		}
	}
}

// TestHazard2UnknownVerifierIsRefused: a number that this version does not know
// is no weaker judge, but none.
func TestHazard2UnknownVerifierIsRefused(t *testing.T) {
	p := cosigntest.New(cosign.KindJWS)
	for _, n := range []int{-1, 0, 2, 1 << 40} {
		s := p.Sign(domain, hash)
		s.Verifier = n
		refused(t, cosign.Verify(p.Key(), domain, hash, s), "is unknown")
	}
}

// The tests' software keys sign as others understand it, or the tests would
// prove only that we agree with ourselves.
func TestSoftwareKeysSignAsOthersVerify(t *testing.T) {
	for _, v := range cosigntest.Variants() {
		t.Run(v, func(t *testing.T) {
			p := cosigntest.New(v)
			s := p.Sign(domain, hash)
			switch s.Kind {
			case cosign.KindSSH:
				verifyAsSSH(t, p, s)
			case cosign.KindJWS:
				verifyAsJOSE(t, p, s)
			}
		})
	}
}

func verifyAsSSH(t *testing.T, p *cosigntest.Person, s cosign.Signature) {
	t.Helper()
	public, err := ssh.ParsePublicKey(p.SSHPublic())
	if err != nil || public.Type() != p.Key().SSHType {
		t.Fatal(public, err)
	}
	rest := s.SSHSIG[len("SSHSIG")+4:]
	var parts [][]byte
	for len(rest) > 0 {
		n := 4 + binary.BigEndian.Uint32(rest)
		parts, rest = append(parts, rest[4:n]), rest[n:]
	}
	var sig ssh.Signature
	if err := ssh.Unmarshal(parts[4], &sig); err != nil {
		t.Fatal(err)
	}
	m := cosigntest.SSHMessage(domain, "", "sha512", hash[:])
	message := bytes.Join([][]byte{[]byte("SSHSIG"), str(m.Namespace), str(m.Reserved), str(m.Algorithm), str(m.Message)}, nil)
	if err := public.Verify(message, &sig); err != nil {
		t.Error(err)
	}
}

func verifyAsJOSE(t *testing.T, p *cosigntest.Person, s cosign.Signature) {
	t.Helper()
	var key jose.JSONWebKey
	if err := key.UnmarshalJSON(p.Key().JWK); err != nil {
		t.Fatal(err)
	}
	jws, err := jose.ParseSignedCompact(s.JWS, []jose.SignatureAlgorithm{jose.ES256, jose.EdDSA})
	if err != nil {
		t.Fatal(err)
	}
	payload, err := jws.Verify(&key)
	if err != nil || !bytes.Equal(payload, hash[:]) {
		t.Error(payload, err)
	}
}

// The seeds of fuzzing: the documents, and what is nearly one.
func documents(t testing.TB) (out [][]byte) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "*", "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b)
	}
	for _, s := range []string{`{"a":1,"\u0061":2}`, `[1.0,-0,9007199254740993]`, `"\ud83d\ude00\ud83d"`, "\"\xff\u2028\"", fmt.Sprintf(`{"%s":{}}`, "\U0001f600\ue000")} {
		out = append(out, []byte(s))
	}
	return out
}
