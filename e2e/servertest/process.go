package servertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// stopTimeout is how long a server gets to end before it is killed.
	stopTimeout = 15 * time.Second
	// maxOutput bounds what is kept of a server's output.
	maxOutput = 1 << 20
)

// Command is a server to run.
type Command struct {
	Path string
	Args []string
	// Dir is where it runs, and its HOME and TMPDIR.
	Dir string
	// Env is added to a bare environment: nothing of the caller's reaches it.
	Env     []string
	Account Account
	// Orphaned is the signal that ends the server when the caller is killed; 0 is
	// SIGKILL. A server with processes of its own may need a gentler one.
	Orphaned syscall.Signal
}

// Exec prepares the command as os/exec does, for programs that end by themselves.
func (c Command) Exec() *exec.Cmd {
	cmd := exec.Command(c.Path, c.Args...)
	cmd.Dir = c.Dir
	cmd.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"LC_ALL=C", "TZ=UTC", "TMPDIR=" + c.Dir, "HOME=" + c.Dir}, c.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if c.Account.change {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(c.Account.uid), Gid: uint32(c.Account.gid), Groups: c.Account.groups}
	}
	cmd.WaitDelay = time.Second
	return cmd
}

// Run runs a program that ends by itself, kills it when ctx ends, and returns what
// it printed.
func (c Command) Run(ctx context.Context) (string, error) {
	p, err := Start(c)
	if err != nil {
		return "", err
	}
	select {
	case <-p.done:
		if errors.Is(p.err, exec.ErrWaitDelay) { // it ended well; its output was not closed in time
			return p.Output(), nil
		}
		return p.Output(), p.err
	case <-ctx.Done():
		return p.Output(), errors.Join(ctx.Err(), p.Stop(syscall.SIGKILL))
	}
}

// Process is a running server, or one that has ended.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // of its end; read after done
	mu   sync.Mutex
	log  bytes.Buffer
}

// Write keeps the first MiB of the server's output.
func (p *Process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if room := maxOutput - p.log.Len(); room > 0 {
		p.log.Write(b[:min(room, len(b))])
	}
	return len(b), nil
}

// Output is the beginning of what the server printed.
func (p *Process) Output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.TrimSpace(p.log.String())
}

// Start starts a server in a process group of its own. One goroutine owns it from
// start to end: it stays on its thread, because the kernel's parent-death signal
// belongs to the thread that forked, and that signal ends the server if the caller
// is killed.
func Start(c Command) (*Process, error) {
	p := &Process{done: make(chan struct{}), cmd: c.Exec()}
	p.cmd.Stdout, p.cmd.Stderr = p, p
	if p.cmd.SysProcAttr.Pdeathsig = c.Orphaned; c.Orphaned == 0 {
		p.cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(p.done)
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
		}
	}()
	return p, <-started
}

// Done is closed when the server has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Ended says whether it has.
func (p *Process) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Signal sends the server a signal. SIGSTOP and SIGCONT reach what it started,
// too: a server that hangs does so whole.
func (p *Process) Signal(sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil || sig != syscall.SIGSTOP && sig != syscall.SIGCONT {
		return err
	}
	for _, child := range descendants(p.cmd.Process.Pid) { // once it starts no more
		if err := syscall.Kill(child, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	return nil
}

// descendants are the processes below one, whatever their group: PostgreSQL's, for
// one, leave that of their parent.
func descendants(pid int) []int {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil // it has ended
	}
	var all []int
	for _, task := range tasks {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, task.Name()))
		if err != nil {
			continue
		}
		for _, word := range strings.Fields(string(raw)) {
			if child, err := strconv.Atoi(word); err == nil {
				all = append(append(all, child), descendants(child)...)
			}
		}
	}
	return all
}

// Stop ends the server by a signal, and by SIGKILL if that is not heeded in time;
// then whatever it started and left. It waits for the end; ending twice is no
// error.
func (p *Process) Stop(first syscall.Signal) error {
	for _, sig := range []syscall.Signal{first, syscall.SIGKILL} {
		if p.Ended() {
			break
		}
		_ = p.Signal(syscall.SIGCONT) // a stopped server cannot end
		if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		timer := time.NewTimer(stopTimeout)
		select {
		case <-p.done:
		case <-timer.C:
		}
		timer.Stop()
	}
	if !p.Ended() {
		return fmt.Errorf("the server (pid %d) does not end", p.cmd.Process.Pid)
	}
	// Its group is its own (Setpgid), and lives on with any child it left.
	if err := syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return nil
}
