// Package plugintest tries a plugin as a node will run it: the built binary, in a
// process of its own, through the real protocol and all of the node's checks.
//
// A plugin's author writes one test with an [issuertest.Harness] around the real
// target, and `go test` is the whole conformance run:
//
//	func TestConformance(t *testing.T) {
//		plugintest.Run(t, plugintest.Build(t, "."), issuertest.Harness{…})
//	}
//
// The package must know nothing of any particular kind.
package plugintest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/plugins/host"
)

// Build builds the plugin of a Go package (a directory, "." for the test's own)
// and returns the binary's path.
func Build(t *testing.T, pkg string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "plugin")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build %s: %v\n%s", pkg, err, text)
	}
	return out
}

// Run runs the conformance suite against the plugin at binary, which must serve a
// kind of the name of h.Kind; the suite gets the plugin's own kind instead of it.
// Beyond the suite it looks for minted secrets in all that the plugin has logged.
func Run(t *testing.T, binary string, h issuertest.Harness) {
	t.Helper()
	if h.Kind == nil {
		t.Fatal("plugintest: Harness.Kind says which kind the plugin serves; any value with its Name and CredentialName will do")
	}
	p := Start(t, binary, h.Kind.Name())
	h.Kind = p.Kind
	var seen minted
	use := h.Use
	h.Use = func(ctx context.Context, c issuers.Credential) error {
		seen.add(c)
		return use(ctx, c)
	}
	issuertest.Run(t, h)
	if seen.in(p.Log()) {
		t.Error("law 6: the plugin's log holds a secret that it has minted")
	}
}

// Plugin is a plugin that runs for a test.
type Plugin struct {
	// Kind is what it serves; it waits for its answers, as a built-in kind does.
	Kind issuers.Kind
	// Host runs it.
	Host *host.Host
	// Spec is how it is registered there.
	Spec host.Spec
	// Dir is the plugin directory.
	Dir string

	log buffer
}

// Log returns what has been logged of the plugin and by it.
func (p *Plugin) Log() string { return p.log.String() }

// Start runs the plugin at binary until the test ends. As root it runs as the
// user "nobody", as it would on a node that is run by root.
func Start(t *testing.T, binary, name string) *Plugin {
	t.Helper()
	p := &Plugin{Dir: t.TempDir()}
	p.Spec = host.Spec{Name: name, File: name}
	p.Spec.SHA256 = Install(t, p.Dir, binary, name)
	if os.Geteuid() == 0 {
		p.Spec.User = "nobody"
	}
	p.Host = host.New(host.Options{Dir: p.Dir, SameUser: os.Geteuid() != 0, Log: slog.New(slog.NewJSONHandler(&p.log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	t.Cleanup(func() {
		p.Host.Close()
		if t.Failed() {
			t.Logf("what was logged:\n%s", p.Log())
		}
	})
	p.Host.Set([]host.Spec{p.Spec})
	p.Kind = host.Direct(Await(t, p.Host, name))
	return p
}

// Install copies a binary into a plugin directory, as an operator does, and
// returns its SHA-256.
func Install(t *testing.T, dir, binary, name string) (sum [sha256.Size]byte) {
	t.Helper()
	src, err := os.Open(binary)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = src.Close() }()
	h := sha256.New()
	tmp := filepath.Join(dir, "."+name+".new")
	dst, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(io.MultiWriter(dst, h), src)
	if err := dst.Close(); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// Await waits until a plugin has started, and returns its kind; it fails the test
// with the reason if the plugin does not start.
func Await(t *testing.T, h *host.Host, name string) issuers.Kind {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		k, found, err := h.Kind(name)
		if found && err == nil {
			return k
		}
		pending, ok := err.(*issuers.Pending)
		if !ok {
			t.Fatalf("the plugin does not start: %v", err)
		}
		if err := pending.Fetch(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

// buffer is a log that many write.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// minted are the secrets of the credentials that a test has used.
type minted struct {
	mu   sync.Mutex
	list []string
}

func (m *minted) add(c issuers.Credential) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, v := range c.Secret {
		m.list = append(m.list, v.Reveal())
	}
}

func (m *minted) in(text string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.ContainsFunc(m.list, func(s string) bool { return s != "" && strings.Contains(text, s) })
}
