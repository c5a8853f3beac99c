package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/e2e/harness"
)

// leash holds a child of exec until it is let go: the child reads from a pipe.
type leash struct {
	env  string // where the child wrote its environment
	pipe *os.File
	name string
}

func newLeash(t *testing.T, dir string) *leash {
	t.Helper()
	l := &leash{env: filepath.Join(dir, "child.env"), name: filepath.Join(dir, "leash")}
	if err := syscall.Mkfifo(l.name, 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	if l.pipe, err = os.OpenFile(l.name, os.O_RDWR, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.pipe.Close() })
	return l
}

// command is the child: it writes its environment, and waits for a line.
func (l *leash) command(then string) []string {
	return []string{"/bin/sh", "-c", fmt.Sprintf("env > %[1]s.part && mv %[1]s.part %[1]s; read -r line < %[2]s; %[3]s", l.env, l.name, then)}
}

// release lets the child go on.
func (l *leash) release(t *testing.T) {
	t.Helper()
	if _, err := l.pipe.WriteString("go\n"); err != nil {
		t.Fatal(err)
	}
}

// environment waits for the child and returns what it sees.
func (l *leash) environment(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	harness.Within(t, 30*time.Second, "the child of exec writes its environment", func() error {
		b, err := os.ReadFile(l.env)
		if err != nil {
			return err
		}
		for _, line := range strings.Split(string(b), "\n") {
			if k, v, ok := strings.Cut(line, "="); ok {
				out[k] = v
			}
		}
		return nil
	})
	return out
}

func login(t *testing.T, env map[string]string) error {
	t.Helper()
	conn, err := harness.Login(t, fmt.Sprintf("host=%s port=%s user=%s password=%s dbname=%s sslmode=disable", env["PGHOST"], env["PGPORT"], env["PGUSER"], env["PGPASSWORD"], env["PGDATABASE"]))
	if err != nil {
		return err
	}
	return conn.Close(t.Context())
}

func TestExecExitCodes(t *testing.T) {
	h := newHouse(t)
	for _, c := range []struct {
		what string
		cli  harness.CLI
		want int
		args []string
	}{
		{"the child's own code", h.worker, 7, []string{"orders/readonly", "--", "/bin/sh", "-c", "exit 7"}},
		{"the child's own success", h.worker, 0, []string{"orders/readonly", "--", "/bin/true"}},
		{"a child killed by a signal", h.worker, 128 + 9, []string{"orders/readonly", "--", "/bin/sh", "-c", "kill -9 $$"}},
		{"no such command", h.worker, 121, []string{"orders/readonly", "--", "/no/such/command"}},
		{"usage", h.worker, 122, []string{"orders/readonly"}},
		{"denied", h.worker, 123, []string{"orders/readwrite", "--", "/bin/true"}},
		{"unavailable", h.worker.With("MAYFLY_ADDR", "127.0.0.1:1").With("MAYFLY_RETRY", "0"), 125, []string{"orders/readonly", "--", "/bin/true"}},
		{"not authenticated", h.worker.With("MAYFLY_HOME", filepath.Join(h.dir, "nobody")).With("MAYFLY_CACERT", h.operator.Getenv("MAYFLY_CACERT")), 126, []string{"orders/readonly", "--", "/bin/true"}},
	} {
		if r := h.worker.Run(t, "whoami"); r.Code != 0 {
			t.Fatalf("before %q: %s", c.what, r.Stderr)
		}
		if r := c.cli.Run(t, append([]string{"exec"}, c.args...)...); r.Code != c.want {
			t.Errorf("%s: exit code %d, want %d\n%s", c.what, r.Code, c.want, r.Stderr)
		}
	}
	harness.AllEnded(t, h.operator.Client(t, 30*time.Second), 30*time.Second)
	harness.NothingLeft(t, harness.Postgres{Server: h.pg}, 0)
}

// While exec runs, the child sees its credential and nothing of Mayfly's own,
// the lease is renewed beyond its first end and the task does not lapse; when
// the child has ended, so has everything.
func TestExecKeepsAliveAndEnds(t *testing.T) {
	h := newHouse(t)
	l := newLeash(t, h.dir)
	p := h.worker.Start(t, filepath.Join(h.dir, "exec.log"), append([]string{"exec", "orders/readonly", "--ttl", "4s", "--lapse", "10s", "--"}, l.command("exit 9")...)...)
	env := l.environment(t)
	for name := range env {
		switch {
		case name == "MAYFLY_TASK_ID", name == "MAYFLY_LEASE_ID", name == "MAYFLY_EXPIRES_AT":
		case strings.HasPrefix(name, "MAYFLY"):
			t.Errorf("the child sees %s", name)
		}
	}
	first, err := time.Parse(time.RFC3339, env["MAYFLY_EXPIRES_AT"])
	if err != nil {
		t.Fatalf("MAYFLY_EXPIRES_AT: %v", err)
	}
	if err := login(t, env); err != nil {
		t.Fatalf("the child's variables do not log in: %v", err)
	}
	var due time.Time
	harness.Within(t, 30*time.Second, "lease renewed, task kept alive", func() error {
		var lease wire.Lease
		h.worker.JSON(t, &lease, "lease", "show", env["MAYFLY_LEASE_ID"])
		var task wire.Task
		h.worker.JSON(t, &task, "task", "show", env["MAYFLY_TASK_ID"])
		if due.IsZero() {
			due = task.DueAt
		}
		if lease.State != "open" || task.State != "open" {
			t.Fatalf("lease %s (%s %s), task %s (%s)\n%s", lease.State, lease.EndReason, lease.Problem, task.State, task.EndReason, p.Tail())
		}
		if !time.Now().After(first.Add(time.Second)) || !task.DueAt.After(due) {
			return fmt.Errorf("lease until %s, task due %s", lease.ExpiresAt, task.DueAt)
		}
		return nil
	})
	if err := login(t, env); err != nil {
		t.Errorf("beyond the first end the account does not log in: %v", err)
	}
	l.release(t)
	if code := p.Wait(t); code != 9 {
		t.Errorf("exec ends with %d, its child with 9\n%s", code, p.Tail())
	}
	harness.NothingLeft(t, harness.Postgres{Server: h.pg}, 0) // exec waits for the target's word
	var task wire.Task
	h.worker.JSON(t, &task, "task", "show", env["MAYFLY_TASK_ID"])
	if task.State != "ended" {
		t.Errorf("the task is %s", task.State)
	}
}

func TestExecEndsOnSIGTERM(t *testing.T) {
	h := newHouse(t)
	l := newLeash(t, h.dir)
	p := h.worker.Start(t, filepath.Join(h.dir, "exec.log"), append([]string{"exec", "orders/readonly", "--"}, l.command("exit 0")...)...)
	l.environment(t)
	if code := p.Stop(t); code != 128+int(syscall.SIGTERM) {
		t.Errorf("exec ends with %d\n%s", code, p.Tail())
	}
	harness.NothingLeft(t, harness.Postgres{Server: h.pg}, 0)
}

// Nobody is left to end the task: it lapses, and takes its lease with it.
func TestExecKilledLapses(t *testing.T) {
	h := newHouse(t)
	l := newLeash(t, h.dir)
	p := h.worker.Start(t, filepath.Join(h.dir, "exec.log"), append([]string{"exec", "orders/readonly", "--ttl", "1h", "--lapse", "10s", "--"}, l.command("exit 0")...)...)
	env := l.environment(t)
	p.Kill(t)
	l.release(t) // the child has outlived exec
	if err := login(t, env); err != nil {
		t.Errorf("right after the kill the lease should still stand: %v", err)
	}
	harness.NothingLeft(t, harness.Postgres{Server: h.pg}, 40*time.Second)
	var task wire.Task
	h.worker.JSON(t, &task, "task", "show", env["MAYFLY_TASK_ID"])
	if task.State != "ended" || task.EndReason != "lapsed" {
		t.Errorf("the task is %s (%s)", task.State, task.EndReason)
	}
}
