package cosign_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/cosign"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files under testdata")

// vector is one judgement that is frozen. Those of OpenSSH's ssh-keygen and of
// the Web Authentication specification keep what is judged; -rewrite renews
// their verdict alone.
type vector struct {
	Why       string           `json:"why"`
	Key       cosign.Key       `json:"key"`
	Domain    string           `json:"domain"`
	Hash      string           `json:"hash"`
	Signature cosign.Signature `json:"signature"`
	// Verdict is the error's text; "" where the signature verifies.
	Verdict string `json:"verdict"`
}

func (v *vector) judge(t *testing.T) string {
	t.Helper()
	raw, err := hex.DecodeString(v.Hash)
	if err != nil || len(raw) != len(cosign.Hash{}) {
		t.Fatalf("the vector's hash is no hash: %s", v.Hash)
	}
	return verdict(cosign.Verify(v.Key, v.Domain, cosign.Hash(raw), v.Signature))
}

func verdict(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func (v *vector) write(t *testing.T, file string) {
	t.Helper()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestHazard2VerdictsAreGolden: what one version of the broker says of a
// signature, every later one says under the same verifier's number, word for
// word. A vector that fails means that replicas of two versions would part.
func TestHazard2VerdictsAreGolden(t *testing.T) {
	if *rewrite {
		for _, a := range attempts(t) {
			v := a.vector()
			v.Verdict = v.judge(t)
			v.write(t, filepath.Join("testdata", "vectors", a.file()))
		}
	}
	files, err := filepath.Glob(filepath.Join("testdata", "vectors", "*.json"))
	if err != nil || len(files) < 60 {
		t.Fatalf("only %d vectors are left (%v)", len(files), err)
	}
	good := map[string]int{}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var v vector
		if err := json.Unmarshal(raw, &v); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		got := v.judge(t)
		if *rewrite {
			v.Verdict = got
			v.write(t, f)
		}
		if got != v.Verdict {
			t.Errorf("%s: %q is no longer the verdict, but %q", f, v.Verdict, got)
		}
		if got == "" {
			good[v.Key.Kind]++
		}
	}
	for _, kind := range []string{cosign.KindPasskey, cosign.KindSSH, cosign.KindJWS} {
		if good[kind] < 2 {
			t.Errorf("%d vectors of kind %s verify; at least 2 should", good[kind], kind)
		}
	}
}

// Each attempt of the table stands in a golden file.
func TestEveryAttemptHasItsVector(t *testing.T) {
	for _, a := range attempts(t) {
		if _, err := os.Stat(filepath.Join("testdata", "vectors", a.file())); err != nil {
			t.Errorf("%v; run: go test ./broker/cosign -run Golden -rewrite", err)
		}
	}
}

// golden compares with a file under testdata/documents.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", "documents", name)
	if *rewrite {
		if err := os.WriteFile(file, append(bytes.Clone(got), '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v; run: go test ./broker/cosign -run Golden -rewrite", err)
	}
	if !bytes.Equal(bytes.TrimSuffix(want, []byte{'\n'}), got) {
		t.Errorf("%s is no longer the form of that document, but\n%s", file, got)
	}
}
