package secret_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/secret"
)

// Law 6: no secret reaches a log line or an error.
func TestLaw6NoFormatReveals(t *testing.T) {
	const plain = "hunter2-the-password"
	s := secret.New(plain)
	wrapped := struct {
		S  secret.Text
		P  *secret.Text
		In []secret.Text
	}{s, &s, []secret.Text{s}}

	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		fmt.Fprintf(&out, verb+verb+verb, s, &s, wrapped)
	}
	fmt.Fprintln(&out, fmt.Errorf("cannot log in with %v: %w", s, fmt.Errorf("%s", s)))
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "s", s, "w", wrapped)
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "s", s, "w", wrapped)
	if err := json.NewEncoder(&out).Encode(map[string]any{"s": s, "w": wrapped}); err != nil {
		t.Fatal(err)
	}
	hex := fmt.Sprintf("%x", plain)
	if got := out.String(); strings.Contains(got, plain) || strings.Contains(strings.ToLower(got), hex) {
		t.Fatalf("a format verb revealed the secret:\n%s", got)
	}
	if s.Reveal() != plain {
		t.Fatal("Reveal does not return the secret")
	}
}

func TestEqual(t *testing.T) {
	if !secret.New("a").Equal(secret.New("a")) || secret.New("a").Equal(secret.New("b")) || secret.New("a").Equal(secret.Text{}) {
		t.Fatal("Equal is wrong")
	}
}
