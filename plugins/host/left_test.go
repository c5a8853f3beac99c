package host_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mayfly-broker/mayfly/plugins/host"
	"github.com/mayfly-broker/mayfly/plugins/sdk/plugintest"
)

// leftBehind returns the processes that a rogue of that name has left.
func leftBehind(name string) (pids []int) {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range all {
		if line, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(line), "left-behind-by-"+name) && strings.Contains(endOf(filepath.Dir(f)+"/exe"), ofThisRun()) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// endOf returns the last bytes of a file.
func endOf(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	b := make([]byte, 64)
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return ""
	}
	n, _ := f.ReadAt(b, max(0, size-int64(len(b))))
	return string(b[:n])
}

// TestHazard6NothingIsLeftBehind: a child in a session of its own ends with its
// plugin, also where the plugin is replaced or removed.
func TestHazard6NothingIsLeftBehind(t *testing.T) {
	if os.Geteuid() != 0 {
		return // nobody else can make a namespace
	}
	s := newStage(t)
	s.Set([]host.Spec{s.spec(t, "leaver", 1)})
	k, i := s.target(t, "leaver", "leaves a child")
	if _, err := i.Mint(t.Context(), lease(k)); err != nil {
		t.Fatal(err)
	}
	if len(leftBehind("leaver")) == 0 {
		t.Fatal("it has left no child, so this test proves nothing")
	}
	s.Set(nil)
	eventually(t, "the end of the child", func() bool { return len(leftBehind("leaver")) == 0 })
}

// closes runs a host in a process that may make no namespace, has it start a plugin
// that fails and leaves a child behind, and returns what it says once it has closed.
func closes(t *testing.T, plugin string) string {
	t.Helper()
	dir := t.TempDir()
	plugintest.Install(t, dir, rogue, plugin)
	node := exec.Command("/proc/self/exe")
	node.Env = append(os.Environ(), "TEST_HOST_PLUGINS="+dir, "TEST_HOST_PLUGIN="+plugin)
	node.Stderr = os.Stderr
	out, err := node.StdoutPipe()
	must(t, err)
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with what it gives up
		err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_ADMIN, 0, 0, 0)
		if os.Geteuid() != 0 {
			err = nil
		}
		if err == nil {
			err = node.Start()
		}
		started <- err
	}()
	must(t, <-started)
	defer func() { _ = node.Wait() }()
	t.Cleanup(func() {
		for _, pid := range leftBehind(plugin) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	said := make(chan string, 1)
	go func() {
		line, err := bufio.NewReader(out).ReadString('\n')
		said <- strings.TrimSpace(fmt.Sprint(line, err))
	}()
	select {
	case line := <-said:
		if len(leftBehind(plugin)) == 0 {
			t.Error("nothing was left behind, so this test proves nothing")
		}
		return line
	case <-time.After(50 * time.Second):
		_ = node.Process.Kill()
		return "nothing: it does not close"
	}
}

// TestHazard6AHeldPipeHoldsNobody: where the node may make no namespace, what a
// plugin has left behind still keeps neither the node from stopping nor its pipes.
func TestHazard6AHeldPipeHoldsNobody(t *testing.T) {
	if said := closes(t, "leaves-its-pipes"); !strings.HasPrefix(said, "closed: all") {
		t.Errorf("the node says %q", said)
	}
}

// TestHazard6WhatItMakesOfItsDirectory is not looked through by the node.
func TestHazard6WhatItMakesOfItsDirectory(t *testing.T) {
	s := newStage(t)
	s.Set([]host.Spec{s.spec(t, "litters", 1)})
	s.works(t, "litters")
	s.Set(nil)
	eventually(t, "the line", func() bool { return strings.Contains(s.log.String(), "is not removed") })
	_, dir, _ := strings.Cut(s.log.String(), "directory=")
	dir, _, _ = strings.Cut(dir, " ")
	if _, err := os.Stat(dir + "/d/d/d"); err != nil || !strings.Contains(dir, "mayfly-plugin-") {
		t.Fatalf("the node went through %q: %v", dir, err)
	}
	must(t, os.RemoveAll(dir))
}
