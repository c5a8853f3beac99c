package harness

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/e2e/servertest"
)

// readyTimeout is for a node to become ready on a busy machine.
const readyTimeout = 60 * time.Second

// Dev is a node started by `mayfly dev`.
type Dev struct {
	// Operator is the command line as human:operator.
	Operator CLI
	// Dir holds the node's home and its log.
	Dir string
	URL string
	// Flags are added to the command.
	Flags []string
	proc  *Process
}

// StartDev starts a node on a free port and waits until it is ready.
func StartDev(t testing.TB) *Dev {
	t.Helper()
	d := &Dev{Dir: t.TempDir()}
	d.Start(t)
	return d
}

// Home is the node's --home.
func (d *Dev) Home() string { return filepath.Join(d.Dir, "dev") }

// Log is the file with everything the node wrote.
func (d *Dev) Log() string { return filepath.Join(d.Dir, "dev.log") }

// Process is the node as it runs now.
func (d *Dev) Process() *Process { return d.proc }

// Kill ends the node with SIGKILL.
func (d *Dev) Kill(t testing.TB) {
	t.Helper()
	d.proc.Kill(t)
}

// Start starts the node, again on its old address, and waits until it is ready.
// It returns how long that took.
func (d *Dev) Start(t testing.TB) time.Duration {
	t.Helper()
	began := time.Now()
	d.Launch(t)
	d.AwaitReady(t)
	return time.Since(began)
}

// Launch starts the node and does not wait.
func (d *Dev) Launch(t testing.TB) {
	t.Helper()
	listen := "127.0.0.1:0"
	if u, err := url.Parse(d.URL); err == nil && u.Host != "" {
		listen = u.Host
	}
	if err := os.Remove(filepath.Join(d.Home(), "env")); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	// The environment of another node must not leak in: dev ignores it.
	env := []string{"PATH=/usr/bin:/bin", "HOME=" + d.Dir, "MAYFLY_HOME=" + filepath.Join(d.Dir, "not-this-one"), "TZ=UTC"}
	d.proc = start(t, d.Log(), env, Binary(t), append([]string{"dev", "--home", d.Home(), "--listen", listen}, d.Flags...)...)
}

// AwaitReady waits for the env file, which a node renames into place when it is
// ready, and reads it.
func (d *Dev) AwaitReady(t testing.TB) {
	t.Helper()
	Within(t, readyTimeout, "mayfly dev becomes ready", func() error {
		if !d.proc.Running() {
			t.Fatalf("mayfly dev ended:\n%s", d.proc.Tail())
		}
		vars, err := ReadEnv(filepath.Join(d.Home(), "env"))
		if err != nil {
			return err
		}
		d.URL = vars["MAYFLY_ADDR"]
		d.Operator = NewCLI(t, vars)
		return nil
	})
}

// ReadEnv reads a file of shell exports as `mayfly dev` writes them.
func ReadEnv(path string) (map[string]string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, line := range strings.Split(strings.TrimSpace(string(b)), "\n") {
		name, value, ok := strings.Cut(strings.TrimPrefix(line, "export "), "=")
		if !ok || !strings.HasPrefix(name, "MAYFLY_") {
			return nil, fmt.Errorf("%s: %q is not an export of ours", path, line)
		}
		out[name] = strings.Trim(value, "'")
	}
	return out, nil
}

// freeAddress chooses a free port on loopback.
func freeAddress(t testing.TB) string {
	t.Helper()
	at, err := servertest.Address()
	if err != nil {
		t.Fatal(err)
	}
	return at
}
