package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// Follow runs a named block of commands of a kind's page in a shell, to the letter:
// mayfly is the program under test, tools is a directory with other programs that the
// block calls (empty: none), and more is added to its last command.
func (c CLI) Follow(t testing.TB, kind, name, tools, more string) Result {
	t.Helper()
	text, err := pageBlock(kind, "sh", name)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", text+" "+more)
	cmd.WaitDelay = 5 * time.Second
	var out, problems bytes.Buffer
	path := strings.Join([]string{filepath.Dir(c.bin), tools, "/usr/bin", "/bin"}, ":")
	for _, kv := range c.Environ() {
		if !strings.HasPrefix(kv, "PATH=") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, "PATH="+path)
	cmd.Stdout, cmd.Stderr = &out, &problems
	err = cmd.Run()
	r := Result{Args: []string{"as the page says:", text}, Stdout: out.String(), Stderr: problems.String()}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		r.Code = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	return r
}

// pageBlock reads a named block of the page of a kind, as its operators do: the
// broker has the rights that stand there, and no others.
func pageBlock(kind, language, name string) (string, error) {
	_, here, _, _ := runtime.Caller(0)
	page, err := os.ReadFile(filepath.Join(filepath.Dir(here), "..", "..", "docs", "issuers", kind+".md"))
	if err != nil {
		return "", err
	}
	_, rest, ok := strings.Cut(string(page), "```"+language+" "+name+"\n")
	text, _, closed := strings.Cut(rest, "\n```")
	if !ok || !closed {
		return "", fmt.Errorf("the page of %s has no block %s", kind, name)
	}
	return text, nil
}
