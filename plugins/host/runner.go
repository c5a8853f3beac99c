package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/go-plugin/runner"
)

// child is one process of a plugin, as go-plugin runs it ([runner.Runner]). It
// keeps go-plugin from two things that a plugin could turn against the node: its
// reader of log lines, which panics on some, and its trust in the address that
// the plugin names.
type child struct {
	name    string
	binary  *os.File
	account account
	limits  Limits
	journal *journal
	env     []string
	dir     string // of its socket
	// apart says that the kernel ends whatever the child has started with it.
	apart bool

	outputs []*os.File     // what the child writes to, read here
	first   *io.PipeReader // the handshake's line, then EOF
	exited  chan struct{}
	err     error // of its end, once exited

	mu      sync.Mutex
	pid     int // 0 before the start
	stopped bool
	reaped  bool
	socket  string
}

var _ runner.Runner = (*child)(nil)

// Start implements [runner.Runner].
func (c *child) Start(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return errors.New("it was ended before it began")
	}
	if err := closeOnExec(); err != nil {
		return err
	}
	stdout, stdoutEnd, err := os.Pipe()
	if err != nil {
		return err
	}
	stderr, stderrEnd, err := os.Pipe()
	if err != nil {
		return errors.Join(err, stdout.Close(), stdoutEnd.Close())
	}
	c.outputs = []*os.File{stdout, stderr}
	started := make(chan begun)
	go c.own(stdoutEnd, stderrEnd, started)
	x := <-started
	_, _ = stdoutEnd.Close(), stderrEnd.Close()
	if x.err != nil {
		_, _ = stdout.Close(), stderr.Close()
		return x.err
	}
	c.pid, c.apart = x.pid, x.apart
	first, w := io.Pipe()
	c.first = first
	go c.readOut(stdout, w)
	go func() {
		defer func() { _ = stderr.Close() }()
		c.journal.stream().copy(stderr)
	}()
	return nil
}

// begun is how a start went.
type begun struct {
	pid   int
	apart bool
	err   error
}

// own starts the child and waits for it on one thread: the signal at the parent's
// end belongs to the thread that forked. The thread is not given back, because it
// has given up rights that others may need; it ends with this function.
func (c *child) own(stdout, stderr *os.File, started chan<- begun) {
	runtime.LockOSThread()
	cmd, apart, err := c.fork(stdout, stderr)
	if err != nil {
		c.err = err
		close(c.exited)
		started <- begun{err: err}
		return
	}
	pid := cmd.Process.Pid
	started <- begun{pid: pid, apart: apart}
	awaitExit(pid)
	c.mu.Lock()
	_ = killGroup(pid) // what it left behind; the number is still its own
	c.reaped = true
	c.mu.Unlock()
	c.err = cmd.Wait()
	close(c.exited)
	for _, f := range c.outputs { // what it left behind may hold the other end for ever
		_ = f.SetReadDeadline(time.Now().Add(lastWords))
	}
}

// fork starts the child, and has it stand still until its limits are set: what it
// forks before they are would have none.
func (c *child) fork(stdout, stderr *os.File) (cmd *exec.Cmd, apart bool, err error) {
	if err := pledgeThread(); err != nil {
		return nil, false, err
	}
	for _, apart = range []bool{true, false} {
		cmd = exec.Command(executable(c.binary))
		cmd.Args, cmd.Env, cmd.Dir = []string{"mayfly-plugin-" + c.name}, c.env, "/"
		cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = stdout, stderr, attributes(c.account, apart)
		if err = cmd.Start(); !errors.Is(err, os.ErrPermission) {
			break // only who may make namespaces can set it apart
		}
	}
	if errors.Is(err, os.ErrPermission) {
		err = fmt.Errorf("%w: either the node may not give a process another user, or this machine forbids to hold one still (kernel.yama.ptrace_scope is 3)", err)
	}
	if err != nil {
		return nil, false, err
	}
	if err = release(cmd.Process.Pid, func(pid int) error { return restrict(pid, c.account, c.limits) }); err != nil {
		_ = killGroup(cmd.Process.Pid)
		_ = cmd.Wait()
	}
	return cmd, apart, err
}

// readOut hands the first line to go-plugin, and makes log lines of the rest.
func (c *child) readOut(r io.ReadCloser, first *io.PipeWriter) {
	defer func() { _ = r.Close() }()
	var line []byte
	one := make([]byte, 1)
	for len(line) < maxStartup {
		n, err := r.Read(one)
		if n == 1 {
			line = append(line, one[0])
		}
		if err != nil || n == 1 && one[0] == '\n' {
			break
		}
	}
	_, _ = first.Write(line)
	_ = first.Close()
	c.journal.stream().copy(r)
}

// Stdout implements [runner.Runner]: the handshake's line and no more.
func (c *child) Stdout() io.ReadCloser { return c.first }

// Stderr implements [runner.Runner]: nothing. The journal reads what there is.
func (c *child) Stderr() io.ReadCloser { return io.NopCloser(eof{}) }

type eof struct{}

func (eof) Read([]byte) (int, error) { return 0, io.EOF }

// Wait implements [runner.AttachedRunner].
func (c *child) Wait(context.Context) error { <-c.exited; return c.err }

// Kill implements [runner.AttachedRunner]. Killing twice, or before the start, is
// no error.
func (c *child) Kill(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = true
	if c.pid == 0 || c.reaped {
		return nil
	}
	return killGroup(c.pid)
}

// ID implements [runner.AttachedRunner].
func (c *child) ID() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pid == 0 {
		return ""
	}
	return strconv.Itoa(c.pid)
}

// Name implements [runner.Runner].
func (c *child) Name() string { return c.name }

// Diagnose implements [runner.Runner].
func (c *child) Diagnose(context.Context) string { return "" }

// PluginToHost implements [runner.AddrTranslator]. The plugin names the socket; it
// must stand in the directory that was made for it.
func (c *child) PluginToHost(network, address string) (string, string, error) {
	if network != "unix" || filepath.Dir(address) != c.dir || filepath.Clean(address) != address {
		return "", "", errors.New("it does not listen where it was told to")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.socket = address
	return network, address, nil
}

// HostToPlugin implements [runner.AddrTranslator].
func (c *child) HostToPlugin(network, address string) (string, string, error) {
	return network, address, nil
}

// dial connects to the child, and to nobody else who may have taken its place.
func (c *child) dial(ctx context.Context, _ string) (net.Conn, error) {
	c.mu.Lock()
	socket, pid := c.socket, c.pid
	c.mu.Unlock()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	who, uid, err := peerOf(raw)
	if err != nil || who != pid || uid != c.account.uid {
		return nil, errors.Join(fmt.Errorf("process %d of user %d listens there, not the plugin", who, uid), err, conn.Close())
	}
	return conn, nil
}
