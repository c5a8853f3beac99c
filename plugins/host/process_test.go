package host_test

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/plugins/host"
	"github.com/mayfly-broker/mayfly/plugins/sdk/plugintest"
)

// findings are what the rogue says of its own process.
func findings(t *testing.T, i issuers.Issuer) map[string][]string {
	t.Helper()
	found, err := i.(issuers.Checker).Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]string{}
	for _, f := range found {
		out[f.Name] = append(out[f.Name], f.Detail)
	}
	return out
}

// TestHazard6SetApart: what a plugin's process has and has not.
func TestHazard6SetApart(t *testing.T) {
	s := newStage(t)
	// A file that this process has open and would pass on: not closed on exec.
	leak, err := syscall.Open("/etc/hosts", syscall.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Close(leak) }()
	t.Setenv("SECRET_OF_THE_NODE", "x")
	s.Set([]host.Spec{s.spec(t, "apart", 1)})
	_, i := s.target(t, "apart", "", "node", strconv.Itoa(os.Getpid()))
	f := findings(t, i)
	t.Logf("%v", f)
	for _, v := range strings.Fields(f["env"][0]) {
		if v != "MAYFLY_PLUGIN" && !strings.HasPrefix(v, "PLUGIN_") {
			t.Errorf("its environment has %s", v)
		}
	}
	for _, fd := range strings.Fields(f["fds"][0]) {
		if strings.Contains(fd, "hosts") || strings.Contains(fd, "memfd") {
			t.Errorf("it inherits %s", fd)
		}
	}
	self, pid := f["self"][0], s.status("apart").PID
	if os.Geteuid() == 0 {
		pid = "1" // of a namespace that ends with it
	}
	for _, want := range []string{"pid=" + pid, "pgid=" + pid, "sid=" + pid, "groups=[]", "exe=/memfd:plugin (deleted)", "dir=/"} {
		if !strings.Contains(self+" ", want+" ") && !(strings.HasPrefix(want, "groups") && os.Geteuid() != 0) && !strings.HasSuffix(self, want) {
			t.Errorf("it finds itself as %s; want %s", self, want)
		}
	}
	if got := f["status"]; !contains(got, "NoNewPrivs: 1") {
		t.Errorf("its status is %v", got)
	}
	for _, want := range []string{"Max core file size 1 1", "Max data size 536870912 536870912", "Max open files 256 256"} {
		if !contains(f["limit"], want) {
			t.Errorf("its limits are %v; want %s", f["limit"], want)
		}
	}
	if f["oom"][0] != "1000" {
		t.Errorf("when memory runs out it is as safe as the node: %s", f["oom"])
	}
	if root := os.Geteuid() == 0; root && (!strings.Contains(self, "uid="+users["apart"]+" gid="+users["apart"]) || !contains(f["status"], "CapEff: 0000000000000000") || !contains(f["limit"], "Max processes 128 128")) {
		t.Errorf("it runs as %s, %v, %v", self, f["status"], f["limit"])
	}
	// Also where it runs as the node's own user, who is not root.
	for _, what := range []string{"parent mem", "parent environ", "parent maps", "ptrace"} {
		if !strings.Contains(f[what][0], "denied") && !strings.Contains(f[what][0], "not permitted") && !strings.Contains(f[what][0], "no such process") {
			t.Errorf("%s of the node: %s", what, f[what][0])
		}
	}
}

func contains(lines []string, want string) bool {
	for _, l := range lines {
		if strings.HasPrefix(l, want) {
			return true
		}
	}
	return false
}

// TestHazard6OnlyWhatWasHashedRuns: the process runs a sealed copy, so that neither
// a swap between check and start nor one before a restart puts other code in.
func TestHazard6OnlyWhatWasHashedRuns(t *testing.T) {
	s := newStage(t)
	good := s.spec(t, "pinned", 1)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() { // somebody swaps the file all the time
		defer close(done)
		for n := 2; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			from := filepath.Join(s.dir, fmt.Sprintf(".swap%d", n%2))
			body, err := os.ReadFile(rogue)
			if err == nil && n%2 == 0 {
				body = append(body, "generation 9"...)
			} else {
				body = append(body, "generation 1"...)
			}
			if os.WriteFile(from, body, 0o755) == nil {
				_ = os.Rename(from, filepath.Join(s.dir, "pinned"))
			}
		}
	}()
	s.Set([]host.Spec{good})
	ran := 0
	for range 4 {
		eventually(t, "a start", func() bool { return s.status("pinned").Running })
		pid := s.status("pinned").PID
		body, err := os.ReadFile("/proc/" + pid + "/exe")
		if err != nil {
			t.Fatal(err)
		}
		if sha256.Sum256(body) != good.SHA256 {
			t.Fatal("other code runs than was hashed")
		}
		ran++
		k, i := s.target(t, "pinned", "crashes")
		_, _ = i.Mint(t.Context(), lease(k))
		eventually(t, "its end", func() bool { return s.status("pinned").PID != pid })
	}
	close(stop)
	<-done
	if ran != 4 {
		t.Errorf("it ran %d times", ran)
	}
	// With the file gone, what runs can still start again.
	if err := os.Remove(filepath.Join(s.dir, "pinned")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a start without the file", func() bool { return s.status("pinned").Running })
}

// TestHazard6FilesThatAreRefused: where somebody else could put a file, none runs.
func TestHazard6FilesThatAreRefused(t *testing.T) {
	for name, prepare := range map[string]struct {
		why  string
		make func(t *testing.T, dir string, spec *host.Spec)
	}{
		"a directory that others can write": {"written by others", func(t *testing.T, dir string, _ *host.Spec) { must(t, os.Chmod(dir, 0o777)) }},
		"a file that others can write":      {"written by others", func(t *testing.T, dir string, _ *host.Spec) { must(t, os.Chmod(filepath.Join(dir, "file"), 0o777)) }},
		"a symbolic link": {"symbolic link", func(t *testing.T, dir string, spec *host.Spec) {
			must(t, os.Symlink(filepath.Join(dir, "file"), filepath.Join(dir, "link")))
			spec.File = "link"
		}},
		"a path":               {"not the name of a file", func(_ *testing.T, _ string, spec *host.Spec) { spec.File = "../" + "file" }},
		"the directory itself": {"not the name of a file", func(_ *testing.T, _ string, spec *host.Spec) { spec.File = "." }},
		"a pipe": {"not a regular file", func(t *testing.T, dir string, spec *host.Spec) {
			must(t, syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
			spec.File = "pipe"
		}},
		"no file":             {"no such file", func(_ *testing.T, _ string, spec *host.Spec) { spec.File = "other" }},
		"another hash":        {"Nothing was run", func(_ *testing.T, _ string, spec *host.Spec) { spec.SHA256[0] ^= 1 }},
		"root":                {"", func(_ *testing.T, _ string, spec *host.Spec) { spec.User = "root" }},
		"the node's own user": {"own user", func(_ *testing.T, _ string, spec *host.Spec) { spec.User = "" }},
		"no user at all":      {"is no user", func(_ *testing.T, _ string, spec *host.Spec) { spec.User = "4294967295" }},
		"nobody that exists":  {"no user", func(_ *testing.T, _ string, spec *host.Spec) { spec.User = "no-such-user-here" }},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			spec := host.Spec{Name: "file", File: "file", User: "64999"}
			spec.SHA256 = plugintest.Install(t, dir, rogue, "file")
			if os.Geteuid() != 0 && !strings.Contains(name, "user") && name != "root" && !strings.HasPrefix(name, "nobody") {
				spec.User = ""
			}
			prepare.make(t, dir, &spec)
			h := host.New(host.Options{Dir: dir, SameUser: os.Geteuid() != 0 && spec.User == "" && name != "the node's own user"})
			defer h.Close()
			h.Set([]host.Spec{spec})
			eventually(t, "an answer", func() bool { return h.Status()[0].Problem != "it is starting" || h.Status()[0].Running })
			if st := h.Status()[0]; st.Running || !strings.Contains(st.Problem, prepare.why) {
				t.Errorf("%+v; want a problem that says %q", st, prepare.why)
			}
		})
	}
	dir := t.TempDir()
	link := filepath.Join(t.TempDir(), "plugins")
	must(t, os.Symlink(dir, link))
	spec := host.Spec{Name: "file", File: "file", User: "64999"}
	spec.SHA256 = plugintest.Install(t, dir, rogue, "file")
	h := host.New(host.Options{Dir: link, SameUser: true})
	defer h.Close()
	h.Set([]host.Spec{spec})
	eventually(t, "an answer", func() bool { return h.Status()[0].Problem != "it is starting" })
	if os.Geteuid() == 0 && !strings.Contains(h.Status()[0].Problem, "symbolic link") {
		t.Errorf("a directory that is a link: %+v", h.Status()[0])
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestHazard6TwoPluginsHaveTwoUsers: one user's processes can read each other.
func TestHazard6TwoPluginsHaveTwoUsers(t *testing.T) {
	if os.Geteuid() != 0 {
		return // nobody else can give a process another user
	}
	s := newStage(t)
	one, two := s.spec(t, "one", 1), s.spec(t, "two", 1)
	two.User = one.User
	s.Set([]host.Spec{one, two})
	s.works(t, "one")
	eventually(t, "the refusal", func() bool { return strings.Contains(s.status("two").Problem, "a user of its own") })
}

// hostUntilKilled is another process with a host, for the test below.
func hostUntilKilled(dir, name string) {
	body, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		panic(err)
	}
	before := runtime.NumGoroutine()
	h := host.New(host.Options{Dir: dir, SameUser: os.Geteuid() != 0})
	spec := host.Spec{Name: name, File: name, SHA256: sha256.Sum256(body)}
	if os.Geteuid() == 0 {
		spec.User = "64998"
	}
	h.Set([]host.Spec{spec})
	tick := time.NewTicker(10 * time.Millisecond)
	for range tick.C {
		st := h.Status()[0]
		if st.Running {
			fmt.Println(st.PID)
			select {}
		}
		if st.Problem != "it is starting" {
			h.Close()
			for end := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before && time.Now().Before(end); {
				<-tick.C
			}
			if n := runtime.NumGoroutine() - before; n > 0 {
				fmt.Println("closed:", n, "goroutines are left")
				os.Exit(0)
			}
			fmt.Println("closed: all are gone")
			os.Exit(0)
		}
	}
}

// TestLaw8PluginsEndWithTheirNode: also when it is killed.
func TestLaw8PluginsEndWithTheirNode(t *testing.T) {
	dir := t.TempDir()
	plugintest.Install(t, dir, rogue, "orphan")
	node := exec.Command("/proc/self/exe")
	node.Env = append(os.Environ(), "TEST_HOST_PLUGINS="+dir, "TEST_HOST_PLUGIN=orphan")
	node.Stderr = os.Stderr
	out, err := node.StdoutPipe()
	must(t, err)
	must(t, node.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	pid := strings.TrimSpace(line)
	if err != nil || !alive(pid) {
		t.Fatalf("it says %q: %v", line, err)
	}
	if len(leftBehind("orphan")) == 0 {
		t.Error("it has left no child, so this test proves nothing")
	}
	must(t, node.Process.Kill())
	_ = node.Wait()
	eventually(t, "the plugin's end", func() bool { return !alive(pid) })
	if os.Geteuid() == 0 { // nobody else can make a namespace
		eventually(t, "the end of its child", func() bool { return len(leftBehind("orphan")) == 0 })
	}
}
