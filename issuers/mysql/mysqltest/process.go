package mysqltest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// findServer returns the server's program.
func findServer() (string, error) {
	for _, name := range []string{"mariadbd", "/usr/sbin/mariadbd"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("no MariaDB server is installed: apt-get update && apt-get install -y --no-install-recommends mariadb-server")
}

// account is the user a server runs as; MariaDB refuses to run as root.
type account struct {
	change   bool
	uid, gid int
}

func chooseAccount() (account, error) {
	if os.Getuid() != 0 {
		return account{}, nil
	}
	for _, name := range []string{"mysql", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.Atoi(u.Uid)
		gid, err2 := strconv.Atoi(u.Gid)
		if err1 == nil && err2 == nil && uid != 0 {
			return account{change: true, uid: uid, gid: gid}, nil
		}
	}
	return account{}, errors.New("MariaDB refuses to run as root, and there is no user mysql or nobody to run it as")
}

func (a account) own(path string) error {
	if !a.change {
		return nil
	}
	return os.Chown(path, a.uid, a.gid)
}

func (a account) writeFile(path string, content []byte) error {
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return err
	}
	return a.own(path)
}

// command prepares a program to run as the account, with an environment that
// holds nothing of the caller's MYSQL_* variables.
func (a account) command(ctx context.Context, dir, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "TZ=UTC", "TMPDIR=" + dir, "HOME=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if a.change {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}
	}
	return cmd
}

// process is a running server. One goroutine owns it from start to end: it stays
// on its thread, because the kernel's parent-death signal belongs to the thread
// that forked, and that signal is what ends the server if the caller is killed.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
	mu   sync.Mutex
	log  bytes.Buffer
}

// Write keeps the first 64 KiB of the server's output for error messages.
func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if room := 64<<10 - p.log.Len(); room > 0 {
		p.log.Write(b[:min(room, len(b))])
	}
	return len(b), nil
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.TrimSpace(p.log.String())
}

func (a account) start(dir, name string, args ...string) (*process, error) {
	p := &process{done: make(chan struct{})}
	p.cmd = a.command(context.Background(), dir, name, args...)
	p.cmd.Stdout, p.cmd.Stderr = p, p
	p.cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL // its data are of no use to anybody
	p.cmd.WaitDelay = time.Second
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(p.done)
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait()
		}
	}()
	return p, <-started
}

// stop asks for an orderly shutdown, then kills, and waits.
func (p *process) stop(timeout time.Duration) error {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		select {
		case <-p.done:
			return nil
		default:
		}
		if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		timer := time.NewTimer(timeout)
		select {
		case <-p.done:
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
	return fmt.Errorf("mariadbd (pid %d) does not end", p.cmd.Process.Pid)
}

// Signal sends a signal to the server: SIGSTOP makes it a target that hangs
// rather than fails, SIGCONT ends that.
func (s *Server) Signal(sig syscall.Signal) error { return s.proc.cmd.Process.Signal(sig) }
