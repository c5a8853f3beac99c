package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// binary is what this code builds to, not what lies in bin.
var binary string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "mayfly-demo-binary-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	root, err := repository()
	if err == nil {
		binary = filepath.Join(dir, "mayfly")
		err = compile(context.Background(), root, binary)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// scratch has the demo work under a directory that must be empty again when it
// is over.
func scratch(t *testing.T) {
	t.Helper()
	// Not t.TempDir: the database server runs as another user, who must pass.
	dir, err := os.MkdirTemp("", "mayfly-demo-test-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", dir)
	t.Cleanup(func() {
		defer func() { _ = os.RemoveAll(dir) }()
		left, err := os.ReadDir(dir)
		if err != nil || len(left) > 0 {
			t.Errorf("the demo left something behind: %v %v", left, err)
		}
	})
}

func TestDemoDoesAsItSays(t *testing.T) {
	scratch(t)
	t.Setenv("MAYFLY_HOME", "/nonexistent/production") // must not matter
	t.Setenv("MAYFLY_ADDR", "production.example:8700")
	var out bytes.Buffer
	if err := run(t.Context(), binary, newTeller(&out, false), (*stage).story); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	if strings.Contains(out.String(), "\x1b") {
		t.Error("colours without a terminal")
	}
	if !strings.Contains(out.String(), "every step behaved as described") {
		t.Errorf("no last line:\n%s", out.String())
	}
}

func TestApprovalDemoDoesAsItSays(t *testing.T) {
	scratch(t)
	var out bytes.Buffer
	if err := run(t.Context(), binary, newTeller(&out, false), (*stage).approval); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	if !strings.Contains(out.String(), "every step behaved as described") {
		t.Errorf("no last line:\n%s", out.String())
	}
}

// A demo that cannot fail shows nothing: here one command lies.
func TestDemoNoticesACommandThatDoesNothing(t *testing.T) {
	scratch(t)
	liar := filepath.Join(t.TempDir(), "mayfly")
	script := "#!/bin/sh\ncase \"$1 $2\" in 'task end') echo ended; exit 0;; esac\nexec '" + binary + "' \"$@\"\n"
	if err := os.WriteFile(liar, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err := run(t.Context(), liar, newTeller(&out, false), (*stage).story)
	if err == nil || !strings.Contains(err.Error(), "still answers") {
		t.Fatalf("err = %v\n%s", err, out.String())
	}
}

func TestDemoEndsEverythingWhenInterrupted(t *testing.T) {
	scratch(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w := &interrupter{at: "── 3.", cancel: cancel}
	if err := run(ctx, binary, newTeller(w, true), (*stage).story); err == nil || !strings.Contains(err.Error(), "interrupted") {
		t.Fatalf("err = %v\n%s", err, w.String())
	}
	if !strings.Contains(w.String(), "\x1b[1m── 1.") {
		t.Error("no colours where they are wanted")
	}
}

// interrupter interrupts the demo once it says something.
type interrupter struct {
	bytes.Buffer
	at     string
	cancel context.CancelFunc
}

func (w *interrupter) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte(w.at)) {
		w.cancel()
	}
	return w.Buffer.Write(b)
}
