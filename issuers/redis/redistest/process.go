package redistest

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// stopTimeout is how long a server gets to end before it is killed.
const stopTimeout = 10 * time.Second

// find returns a program's path.
func find(program string) (string, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return "", fmt.Errorf("no %s is installed: apt-get update && apt-get install -y --no-install-recommends redis-server redis-sentinel", program)
	}
	return path, nil
}

// ordinary returns the user to run as when the caller is root.
func ordinary() (uid, gid int, change bool, err error) {
	if os.Getuid() != 0 {
		return 0, 0, false, nil
	}
	for _, name := range []string{"redis", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.Atoi(u.Uid)
		gid, err2 := strconv.Atoi(u.Gid)
		if err1 == nil && err2 == nil && uid != 0 {
			return uid, gid, true, nil
		}
	}
	return 0, 0, false, errors.New("there is no user redis or nobody to run a server as")
}

// process is a running server. One goroutine owns it from start to end: it stays
// on its thread, because the kernel's parent-death signal belongs to the thread
// that forked, and that signal ends the server if the caller is killed.
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

// start runs a program on a configuration file, in the file's directory.
func start(program, config string) (*process, error) {
	path, err := find(program)
	if err != nil {
		return nil, err
	}
	uid, gid, change, err := ordinary()
	if err != nil {
		return nil, err
	}
	p := &process{done: make(chan struct{}), cmd: exec.Command(path, config)}
	dir := filepath.Dir(config)
	p.cmd.Dir, p.cmd.Env = dir, []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "TZ=UTC", "HOME=" + dir}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if change {
		p.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	p.cmd.Stdout, p.cmd.Stderr = p, p
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

// stop ends the process and waits.
func (p *process) stop(first syscall.Signal) error {
	for _, sig := range []syscall.Signal{first, syscall.SIGKILL} {
		select {
		case <-p.done:
			return nil
		default:
		}
		_ = p.cmd.Process.Signal(syscall.SIGCONT) // a stopped server cannot end
		if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		timer := time.NewTimer(stopTimeout)
		select {
		case <-p.done:
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
	return fmt.Errorf("the server (pid %d) does not end", p.cmd.Process.Pid)
}

// prepareDir makes a directory that the server may write.
func prepareDir() (string, error) {
	dir, err := os.MkdirTemp("", "redistest-")
	if err != nil {
		return "", err
	}
	return dir, own(dir)
}

func own(path string) error {
	uid, gid, change, err := ordinary()
	if err != nil || !change {
		return err
	}
	return os.Chown(path, uid, gid)
}

func writeFile(path, text string) error {
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return err
	}
	return own(path)
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port, nil
}
