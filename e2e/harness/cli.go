package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/secret"
)

// commandTimeout is above the CLI's own patience (--retry 30s and an attempt).
const commandTimeout = 90 * time.Second

// CLI is the command line as one principal: the program and its environment.
type CLI struct {
	bin string
	env map[string]string
}

// NewCLI returns a command line with the given environment and no other
// MAYFLY_ variable.
func NewCLI(t testing.TB, env map[string]string) CLI {
	t.Helper()
	return CLI{Binary(t), env}
}

// With returns the same command line with one more variable.
func (c CLI) With(name, value string) CLI {
	env := map[string]string{name: value}
	for k, v := range c.env {
		if k != name {
			env[k] = v
		}
	}
	return CLI{c.bin, env}
}

// Getenv returns a variable of the command line's environment.
func (c CLI) Getenv(name string) string { return c.env[name] }

// Environ is the environment that commands run in: PATH, HOME and what was
// given.
func (c CLI) Environ() []string {
	home := c.env["MAYFLY_HOME"]
	out := []string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=" + home, "TZ=UTC", "LC_ALL=C.UTF-8"}
	for k, v := range c.env {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return out
}

// Result is what a command came to.
type Result struct {
	Args           []string
	Code           int
	Stdout, Stderr string
	Took           time.Duration
}

// Run runs a command to its end.
func (c CLI) Run(t testing.TB, args ...string) Result {
	t.Helper()
	return c.Feed(t, "", args...)
}

// Feed runs a command with something on stdin.
func (c CLI) Feed(t testing.TB, stdin string, args ...string) Result {
	t.Helper()
	r, err := c.run(stdin, args...)
	if err != nil {
		t.Fatalf("mayfly %s: %v\n%s", strings.Join(args, " "), err, r.Stderr)
	}
	return r
}

func (c CLI) run(stdin string, args ...string) (Result, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.bin, args...)
	cmd.WaitDelay = 5 * time.Second
	var out, problems bytes.Buffer
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Environ(), strings.NewReader(stdin), &out, &problems
	began := time.Now()
	err := cmd.Run()
	r := Result{Args: args, Stdout: out.String(), Stderr: problems.String(), Took: time.Since(began)}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return r, errors.New("it did not end in time")
	case errors.As(err, &exit):
		r.Code = exit.ExitCode()
		return r, nil
	default:
		return r, err
	}
}

// Start runs a command in the background, for exec and its like.
func (c CLI) Start(t testing.TB, log string, args ...string) *Process {
	t.Helper()
	return start(t, log, c.Environ(), c.bin, args...)
}

// Must runs a command that has to succeed and returns its stdout.
func (c CLI) Must(t testing.TB, args ...string) string {
	t.Helper()
	r := c.Run(t, args...)
	r.mustBe(t, 0)
	return r.Stdout
}

func (r Result) mustBe(t testing.TB, code int) {
	t.Helper()
	if r.Code != code {
		t.Fatalf("mayfly %s: exit code %d, want %d\nstdout: %s\nstderr: %s", strings.Join(r.Args, " "), r.Code, code, r.Stdout, r.Stderr)
	}
}

// JSON runs a command with -o json and decodes its stdout, which must be one
// document and nothing else.
func (c CLI) JSON(t testing.TB, into any, args ...string) {
	t.Helper()
	out := c.Must(t, append([]string{"-o", "json"}, args...)...)
	if err := json.Unmarshal([]byte(out), into); err != nil {
		t.Fatalf("mayfly %s: stdout is not the JSON expected: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// Refused runs a command with -o json that has to fail with an exit code and a
// problem document of the given code ("" is any), and returns the document.
// Nothing may stand on stdout.
func (c CLI) Refused(t testing.TB, exit int, code string, args ...string) wire.Problem {
	t.Helper()
	r := c.Run(t, append([]string{"-o", "json"}, args...)...)
	return r.Problem(t, exit, code)
}

// Problem checks that the command failed so, and returns its problem document.
func (r Result) Problem(t testing.TB, exit int, code string) wire.Problem {
	t.Helper()
	r.mustBe(t, exit)
	if r.Stdout != "" {
		t.Errorf("mayfly %s: failed, but stdout says:\n%s", strings.Join(r.Args, " "), r.Stdout)
	}
	lines := strings.Split(strings.TrimSpace(r.Stderr), "\n")
	var p wire.Problem
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &p); err != nil {
		t.Fatalf("mayfly %s: no problem document on stderr: %v\n%s", strings.Join(r.Args, " "), err, r.Stderr)
	}
	if code != "" && p.Code != code {
		t.Fatalf("mayfly %s: code %q, want %q: %s", strings.Join(r.Args, " "), p.Code, code, p.Detail)
	}
	return p
}

// Enrol registers a principal as this administrator and returns the principal's
// own command line, with a home under dir.
func (c CLI) Enrol(t testing.TB, dir, principal string) CLI {
	t.Helper()
	c.Apply(t, "kind: Principal\nname: "+principal+"\nspec: {}\n")
	return c.Redeem(t, dir, principal, c.Must(t, "principal", "enroll", principal, "--field", "token"))
}

// Redeem logs a new home in with an enrolment token.
func (c CLI) Redeem(t testing.TB, dir, principal, token string) CLI {
	t.Helper()
	home := filepath.Join(dir, "home-"+strings.ReplaceAll(principal, ":", "-"))
	own := CLI{c.bin, map[string]string{"MAYFLY_HOME": home, "MAYFLY_ADDR": c.env["MAYFLY_ADDR"]}}
	own.Feed(t, token, "login", "--enroll-token-file", "-").mustBe(t, 0)
	return own
}

// Apply writes YAML documents.
func (c CLI) Apply(t testing.TB, documents string) {
	t.Helper()
	c.Feed(t, documents, "apply", "-f", "-").mustBe(t, 0)
}

// ApplyPolicy writes one Cedar policy file.
func (c CLI) ApplyPolicy(t testing.TB, dir, name, text string) {
	t.Helper()
	file := filepath.Join(dir, name+".cedar")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c.Must(t, "apply", "-f", file)
}

// Client opens the Go client with the same identity. retry is how long each
// call goes on trying.
func (c CLI) Client(t testing.TB, retry time.Duration) *client.Client {
	t.Helper()
	cl, err := client.New(c.Config(retry))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

// Config is the Go client's configuration for the same identity.
func (c CLI) Config(retry time.Duration) client.Config {
	return client.Config{Addresses: client.SplitAddresses(c.env["MAYFLY_ADDR"]), CAFile: c.env["MAYFLY_CACERT"], Home: c.env["MAYFLY_HOME"], Retry: retry}
}

// EnrolClients makes n principals kind:name-0… and their Go clients.
func (c CLI) EnrolClients(t testing.TB, dir, name string, n int, retry time.Duration) []*client.Client {
	t.Helper()
	admin := c.Client(t, retry)
	var out []*client.Client
	for i := range n {
		principal := name + "-" + string(rune('a'+i))
		if _, err := admin.Apply(t.Context(), wire.ApplyRequest{Objects: []wire.Object{{Kind: "Principal", Name: principal, Spec: json.RawMessage(`{}`)}}}); err != nil {
			t.Fatal(err)
		}
		token, err := admin.EnrolPrincipal(t.Context(), principal, wire.EnrolRequest{})
		if err != nil {
			t.Fatal(err)
		}
		home := filepath.Join(dir, "home-"+strings.ReplaceAll(principal, ":", "-"))
		cfg := c.Config(retry)
		cfg.Home = home
		if _, err := client.Enrol(t.Context(), cfg, secret.New(token.Token)); err != nil {
			t.Fatal(err)
		}
		own := CLI{c.bin, map[string]string{"MAYFLY_HOME": home, "MAYFLY_ADDR": c.env["MAYFLY_ADDR"]}}
		out = append(out, own.Client(t, retry))
	}
	return out
}
