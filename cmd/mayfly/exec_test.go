package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/client/clienttest"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// bench is a cluster and a home to run exec against.
type bench struct {
	t    *testing.T
	c    *clienttest.Cluster
	env  []string
	dir  string
	file string // a file for CMD to write to
}

func newBench(t *testing.T) *bench {
	t.Helper()
	c := clienttest.New(t, 2)
	dir := t.TempDir()
	home(t, c, filepath.Join(dir, "home"))
	b := &bench{t: t, c: c, dir: dir, file: filepath.Join(dir, "out")}
	b.env = append(os.Environ(), "MAYFLY_ADDR="+c.Addr(), "MAYFLY_CACERT="+c.CAFile, "MAYFLY_HOME="+filepath.Join(dir, "home"), "MAYFLY_RETRY=3s",
		"OUT="+b.file, "DIR="+filepath.Join(dir, "files"), "KEEP=kept", "PGHOST=elsewhere", "MAYFLY_PURPOSE=from the environment")
	return b
}

// running is a mayfly that runs.
type running struct {
	b        *bench
	cmd      *exec.Cmd
	out, err lockedBuffer
	done     chan struct{}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (b *bench) start(args ...string) *running {
	b.t.Helper()
	r := &running{b: b, cmd: exec.Command("mayfly", args...), done: make(chan struct{})}
	r.cmd.Env, r.cmd.Stdout, r.cmd.Stderr = b.env, &r.out, &r.err
	// A pipe that a stray grandchild keeps open must not hang the test.
	r.cmd.WaitDelay = 5 * time.Second
	if err := r.cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	go func() {
		defer close(r.done)
		_ = r.cmd.Wait()
	}()
	b.t.Cleanup(func() {
		_ = r.cmd.Process.Kill()
		<-r.done
	})
	return r
}

// code waits for the end and returns the exit code.
func (r *running) code() int {
	r.b.t.Helper()
	select {
	case <-r.done:
	case <-time.After(30 * time.Second):
		r.b.t.Fatalf("mayfly did not end; stderr:\n%s", r.err.String())
	}
	return r.cmd.ProcessState.ExitCode()
}

func (r *running) want(code int) {
	r.b.t.Helper()
	if got := r.code(); got != code {
		r.b.t.Errorf("exit code %d, want %d; stderr:\n%s", got, code, r.err.String())
	}
}

func (r *running) signal(sig syscall.Signal) {
	r.b.t.Helper()
	if err := r.cmd.Process.Signal(sig); err != nil {
		r.b.t.Fatal(err)
	}
}

// until polls for what another process does.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// clean wants nothing left behind.
func (b *bench) clean() {
	b.t.Helper()
	if open, tasks := b.c.Open(), b.c.OpenTasks(); len(open) != 0 || len(tasks) != 0 {
		b.t.Errorf("%d leases and %d tasks were left behind", len(open), len(tasks))
	}
}

func (b *bench) lines() []string {
	data, err := os.ReadFile(b.file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		b.t.Fatal(err)
	}
	return strings.Fields(string(data))
}

func TestExecEndsWithTheCommandsCodeAndLeavesNothing(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.start("exec", "orders/readonly", "--", "sh", "-c", "exit 7").want(7)
	b.clean()
	ends := b.c.Calls("POST", "/api/v1/tasks/")
	if len(ends) != 1 || !strings.Contains(ends[0].Path, "wait=15s") {
		t.Errorf("the end did not wait for the target: %+v", ends)
	}
	b.start("exec", "orders/readonly", "--", "sh", "-c", "kill -KILL $$").want(137)
	b.clean()
	var start wire.StartTaskRequest
	if err := json.Unmarshal(b.c.Calls("POST", "/api/v1/tasks")[0].Body, &start); err != nil || start.Lapse != "2m0s" || start.Purpose != "from the environment" {
		t.Errorf("task %+v, %v: without a lapse, nobody ends it when exec is killed", start, err)
	}
}

func TestExecEnvironment(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := b.start("exec", "orders/readonly", "--", "env")
	r.want(0)
	var ours []string
	got := map[string]string{}
	for _, line := range strings.Split(r.out.String(), "\n") {
		name, value, _ := strings.Cut(line, "=")
		got[name] = value
		if strings.HasPrefix(name, "MAYFLY_") {
			ours = append(ours, name)
		}
	}
	slices.Sort(ours)
	if !slices.Equal(ours, []string{"MAYFLY_EXPIRES_AT", "MAYFLY_LEASE_ID", "MAYFLY_TASK_ID"}) {
		t.Errorf("the command sees %v", ours)
	}
	if got["PGHOST"] != "db.internal" || got["PGUSER"] == "" || got["KEEP"] != "kept" {
		t.Errorf("PGHOST=%s PGUSER=%s KEEP=%s", got["PGHOST"], got["PGUSER"], got["KEEP"])
	}
	if _, loaded := got["LD_PRELOAD"]; loaded {
		t.Error("the answer's LD_PRELOAD reached the command")
	}
	if _, err := time.Parse(time.RFC3339, got["MAYFLY_EXPIRES_AT"]); err != nil {
		t.Error(err)
	}
}

func TestExecFailuresBeforeTheCommand(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(*bench)
		args    []string
		want    int
	}{
		"command not found": {nil, []string{"exec", "orders/readonly", "--", "no-such-command"}, 121},
		"not executable":    {nil, []string{"exec", "orders/readonly", "--", "/etc/passwd"}, 121},
		"no command":        {nil, []string{"exec", "orders/readonly"}, 122},
		"empty command":     {nil, []string{"exec", "orders/readonly", "--"}, 122},
		"no role":           {nil, []string{"exec", "--", "true"}, 122},
		"unknown flag":      {nil, []string{"exec", "--nonsense", "orders/readonly", "--", "true"}, 122},
		"bad change":        {nil, []string{"exec", "orders/readonly", "--on-change", "signal=HUP", "--", "true"}, 122},
		"purpose and task":  {nil, []string{"-o", "json", "exec", "orders/readonly", "--task", "t", "--purpose", "p", "--", "true"}, 122},
		"denied":            {nil, []string{"exec", "orders/denied", "--", "true"}, 123},
		"waiting":           {nil, []string{"exec", "orders/waiting", "--", "true"}, 124},
		"unavailable": {func(b *bench) {
			b.c.Fail(clienttest.Failure{Prefix: "/api/v1/requests", Problem: clienttest.Unavailable("target_unavailable")})
		}, []string{"exec", "--retry", "100ms", "orders/readonly", "--", "true"}, 125},
		"nobody": {func(b *bench) { b.env = append(b.env, "MAYFLY_HOME="+filepath.Join(b.dir, "nobody")) }, []string{"exec", "orders/readonly", "--", "true"}, 126},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			if c.prepare != nil {
				c.prepare(b)
			}
			r := b.start(c.args...)
			r.want(c.want)
			b.clean()
			if r.out.String() != "" || r.err.String() == "" {
				t.Errorf("stdout %q, stderr %q", r.out.String(), r.err.String())
			}
			if c.want < 123 && len(b.c.Calls("POST", "/api/v1/requests")) != 0 {
				t.Error("a credential was asked for")
			}
		})
	}
}

func TestExecPassesSignalsOn(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1} {
		b := newBench(t)
		r := b.start("exec", "orders/readonly", "--", "sh", "-c", `trap 'exit 9' TERM INT HUP USR1; echo up > "$OUT"; while :; do sleep 0.05; done`)
		until(t, "the command runs", func() bool { return len(b.lines()) > 0 })
		r.signal(sig)
		r.want(9)
		b.clean()
	}
}

func TestExecKillsWhatIgnoresTERM(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := b.start("exec", "--grace", "200ms", "orders/readonly", "--", "sh", "-c", `trap '' TERM; echo up > "$OUT"; while :; do sleep 0.05; done`)
	until(t, "the command runs", func() bool { return len(b.lines()) > 0 })
	r.signal(syscall.SIGTERM)
	r.want(137)
	b.clean()
}

func TestExecInterruptedBeforeTheCommand(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		b := newBench(t)
		b.c.Fail(clienttest.Failure{Prefix: "/api/v1/requests", Problem: clienttest.Unavailable("no_leader")})
		r := b.start("exec", "--retry", "60s", "orders/readonly", "--", "true")
		until(t, "the task is started, and known", func() bool { return len(b.c.OpenTasks()) == 1 && b.c.Failed() > 0 })
		r.signal(sig)
		r.want(121)
		b.clean()
	}
}

func TestExecRenews(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.c.LeaseTTL = 2 * time.Second
	r := b.start("exec", "orders/readonly", "--", "sleep", "60")
	until(t, "the lease is renewed twice", func() bool { return len(b.c.Calls("POST", "/api/v1/leases/")) >= 2 })
	if open := b.c.Open(); len(open) != 1 || time.Now().After(open[0].ExpiresAt) {
		t.Errorf("leases %+v", open)
	}
	if n := len(b.c.Calls("POST", "/api/v1/requests")); n != 1 {
		t.Errorf("%d mints, want 1", n)
	}
	r.signal(syscall.SIGTERM)
	r.want(143)
	b.clean()
}

func TestExecRestartsWithASuccessor(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.c.LeaseTTL, b.c.LeaseMax = 2*time.Second, 2*time.Second
	r := b.start("exec", "--on-change", "restart", "orders/readonly", "--", "sh", "-c", `echo $MAYFLY_LEASE_ID >> "$OUT"; while :; do sleep 0.05; done`)
	until(t, "the command has run on three leases", func() bool { return len(b.lines()) >= 3 })
	ids := b.lines()
	if ids[0] == ids[1] || ids[1] == ids[2] {
		t.Errorf("leases %v", ids)
	}
	until(t, "the first two leases are ended", func() bool {
		return !slices.ContainsFunc(b.c.Open(), func(l wire.Lease) bool { return l.ID == ids[0] || l.ID == ids[1] })
	})
	r.signal(syscall.SIGTERM)
	r.want(143)
	b.clean()
}

func TestExecMintsTheSuccessorBeforeItEndsTheOldLease(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.c.LeaseTTL, b.c.LeaseMax = 2*time.Second, 2*time.Second
	r := b.start("exec", "orders/readonly", "--", "sleep", "60")
	r.want(143) // --on-change exit: the command is asked to end
	b.clean()
	var order []string
	for _, k := range b.c.Calls("POST", "/api/v1/") {
		switch {
		case k.Path == "/api/v1/requests":
			order = append(order, "mint")
		case strings.Contains(k.Path, "/end"):
			order = append(order, "end")
		}
	}
	if !slices.Equal(order, []string{"mint", "mint", "end", "end"}) {
		t.Errorf("order %v", order)
	}
	if !strings.Contains(r.err.String(), "--on-change exit") {
		t.Errorf("stderr %q", r.err.String())
	}
}

// order is how an account with one holder went from lease to lease.
func (b *bench) order() (out []string) {
	for _, k := range b.c.Calls("POST", "/api/v1/") {
		switch {
		case k.Path == "/api/v1/requests":
			out = append(out, "request")
		case strings.Contains(k.Path, "/end"):
			out = append(out, "end")
		}
	}
	return out
}

// An account with one holder at a time is asked for once too early, and not again
// and again: without --on-change CMD ends before the lease, with a sentence that
// says why.
func TestExecEndsWithAnAccountThatHasOneHolder(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.c.LeaseTTL, b.c.LeaseMax = 3*time.Second, 3*time.Second
	r := b.start("exec", "orders/single", "--", "sh", "-c", `trap 'date +%s%N > "$OUT"; exit 143' TERM; while :; do sleep 0.05; done`)
	r.want(143)
	b.clean()
	if got := b.order(); !slices.Equal(got, []string{"request", "request", "end", "end"}) {
		t.Errorf("order %v", got)
	}
	if !strings.Contains(r.err.String(), "one holder at a time, so that the credential has no successor before it ends; ending the command") {
		t.Errorf("stderr %q", r.err.String())
	}
}

// Where CMD can take a change it goes on: the account is given back at the end of the
// lease, and asked for again after that.
func TestExecGivesBackAnAccountThatHasOneHolder(t *testing.T) {
	t.Parallel()
	for _, change := range []string{"restart", "signal=HUP"} {
		b := newBench(t)
		b.c.LeaseTTL, b.c.LeaseMax = 2*time.Second, 2*time.Second
		args := []string{"exec", "--on-change", change}
		if change != "restart" {
			args = append(args, "--files", filepath.Join(b.dir, "files"))
		}
		r := b.start(append(args, "orders/single", "--", "sh", "-c",
			`trap 'cat "$DIR/password" | tr -d " " >> "$OUT"; echo >> "$OUT"' HUP; echo $PGPASSWORD | tr -d " " >> "$OUT"; while :; do sleep 0.05; done`)...)
		until(t, "the command has had three secrets", func() bool { return len(b.lines()) >= 3 })
		if got := b.lines(); got[0] == got[1] || got[1] == got[2] {
			t.Errorf("%s: %v", change, got)
		}
		r.signal(syscall.SIGTERM)
		r.want(143)
		b.clean()
		// Asked for too early, and its empty task ended; given back; asked for again.
		turn := []string{"request", "end", "end"}
		want := slices.Concat([]string{"request"}, turn, []string{"request"}, turn, []string{"request"})
		if got := b.order(); len(got) < len(want) || !slices.Equal(got[:len(want)], want) {
			t.Errorf("%s: order %v", change, got)
		}
		if !strings.Contains(r.err.String(), "it is given back then") || strings.Count(r.err.String(), "no successor") > 3 {
			t.Errorf("%s: stderr %q", change, r.err.String())
		}
	}
}

func TestExecReplacesFilesAndSignals(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.c.LeaseTTL, b.c.LeaseMax = 2*time.Second, 2*time.Second
	files := filepath.Join(b.dir, "files")
	r := b.start("exec", "--files", files, "--grace", "100ms", "orders/readonly", "--", "sh", "-c",
		`trap 'cat "$DIR/username" "$DIR/..data/host" >> "$OUT"; echo >> "$OUT"' HUP; cat "$DIR/username" >> "$OUT"; echo >> "$OUT"; while :; do sleep 0.05; done`)
	until(t, "the command was told of two successors", func() bool { return len(b.lines()) >= 3 })
	got := b.lines()
	first, second := got[0], strings.TrimSuffix(got[1], "db.internal")
	if first == second || second == got[1] {
		t.Errorf("users %v", got)
	}
	if link, err := os.Readlink(filepath.Join(files, "password")); err != nil || link != "..data/password" {
		t.Errorf("%s, %v", link, err)
	}
	info, err := os.Stat(filepath.Join(files, "password"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	until(t, "only the present lease and its successor are open", func() bool { return len(b.c.Open()) <= 2 })
	r.signal(syscall.SIGTERM)
	r.want(143)
	b.clean()
	if left, err := os.ReadDir(files); err == nil {
		t.Errorf("left behind: %v", left)
	}
}

func TestExecLeavesForeignFilesAlone(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	files := filepath.Join(b.dir, "files")
	if err := os.Mkdir(files, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(files, "password"), []byte("theirs"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := b.start("exec", "--files", files, "orders/readonly", "--", "true")
	r.want(121)
	b.clean()
	if data, err := os.ReadFile(filepath.Join(files, "password")); err != nil || string(data) != "theirs" {
		t.Errorf("%q, %v", data, err)
	}
}

func TestExecSaysWhenTheBrokerIsGoneAtTheEnd(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := b.start("exec", "orders/readonly", "--", "sh", "-c", `echo up > "$OUT"; until [ -e "$OUT.go" ]; do sleep 0.05; done; exit 3`)
	until(t, "the command runs", func() bool { return len(b.lines()) > 0 })
	b.c.Stop(1)
	b.c.Stop(2)
	if err := os.WriteFile(b.file+".go", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r.want(3)
	if !strings.Contains(r.err.String(), "ends by itself at") {
		t.Errorf("stderr %q", r.err.String())
	}
}

func TestExecGoesOnThroughAnOutage(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.c.LeaseTTL = 3 * time.Second
	r := b.start("exec", "--retry", "100ms", "orders/readonly", "--", "sh", "-c", `echo up > "$OUT"; sleep 60`)
	until(t, "the command runs", func() bool { return len(b.lines()) > 0 })
	b.c.Fail(clienttest.Failure{Prefix: "/api/v1/leases", Problem: clienttest.Unavailable("no_leader")})
	until(t, "the outage is told", func() bool { return strings.Contains(r.err.String(), "could not be renewed yet") })
	b.c.Heal()
	until(t, "the lease is renewed", func() bool { return len(b.c.Calls("POST", "/api/v1/leases/")) >= 1 })
	r.signal(syscall.SIGTERM)
	r.want(143)
	b.clean()
	if n := len(b.c.Calls("POST", "/api/v1/requests")); n != 1 {
		t.Errorf("%d mints, want 1", n)
	}
}

func TestExecEndsTheCommandWhenItsTaskIsOver(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := b.start("exec", "--lapse", "400ms", "orders/readonly", "--", "sh", "-c", `echo up > "$OUT"; exec sleep 60`)
	until(t, "the command runs", func() bool { return len(b.lines()) > 0 })
	b.c.EndTask(b.c.OpenTasks()[0].ID)
	r.want(143)
	if !strings.Contains(r.err.String(), "the task is over") {
		t.Errorf("stderr %q", r.err.String())
	}
	b.clean()
	if n := len(b.c.Calls("POST", "/api/v1/requests")); n != 1 {
		t.Errorf("what an operator ended was asked for again: %d requests", n)
	}
}

func TestExecInAGivenTaskEndsItsLeaseOnly(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.start("task", "start", "mine", "--purpose", "p").want(0)
	b.env = append(b.env, "MAYFLY_PURPOSE=")
	b.start("exec", "orders/readonly", "--task", "mine", "--", "true").want(0)
	if open, tasks := b.c.Open(), b.c.OpenTasks(); len(open) != 0 || len(tasks) != 1 {
		t.Errorf("%d leases, %d tasks; want none and the one given", len(open), len(tasks))
	}
}
