package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

const buildTimeout = 10 * time.Minute // of a cold cache on a busy machine

// binary is where Main built the program. It is written once, before any test.
type binary struct{ path string }

var built binary

// Binary returns the path of the program under test.
func Binary(t testing.TB) string {
	t.Helper()
	if built.path == "" {
		t.Fatal("harness: call harness.Main in TestMain")
	}
	return built.path
}

// Main builds the program as it is released, runs the tests and removes it. Use
// it as os.Exit(harness.Main(m)).
func Main(m *testing.M) int {
	dir, err := os.MkdirTemp("", "mayfly-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code, err := buildAndRun(m, dir)
	if err = errors.Join(err, os.RemoveAll(dir)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func buildAndRun(m *testing.M, dir string) (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), buildTimeout)
	defer cancel()
	path := filepath.Join(dir, "mayfly")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", path, "github.com/mayfly-broker/mayfly/cmd/mayfly")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return 1, fmt.Errorf("harness: go build: %w\n%s", err, out)
	}
	built = binary{path}
	return m.Run(), nil
}
