package e2e_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/e2e/harness"
)

// pluginUser is whom the plugin runs as, where the nodes run as root.
const pluginUser = 64900

// realm is a password file that the plugin's user may write.
type realm struct{ path string }

func newRealm(t *testing.T) realm {
	t.Helper()
	dir, err := os.MkdirTemp("", "realm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	r := realm{filepath.Join(dir, "intranet")}
	if err := os.WriteFile(r.path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		for _, p := range []string{dir, r.path} {
			if err := os.Chown(p, pluginUser, pluginUser); err != nil {
				t.Fatal(err)
			}
		}
	}
	return r
}

// verify looks a user's password up as a web server does.
func (r realm) verify(user, password string) error {
	text, err := os.ReadFile(r.path)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		if hash, ok := strings.CutPrefix(strings.TrimSpace(line), user+":"); ok {
			return bcrypt.CompareHashAndPassword([]byte("$2a"+strings.TrimPrefix(hash, "$2y")), []byte(password))
		}
	}
	return fmt.Errorf("there is no user %q", user)
}

// empty waits until no account is left.
func (r realm) empty(t *testing.T) {
	t.Helper()
	harness.Within(t, time.Minute, "every account is withdrawn", func() error {
		text, err := os.ReadFile(r.path)
		if err == nil && strings.Contains(string(text), "mf-") {
			err = fmt.Errorf("the file holds:\n%s", text)
		}
		return err
	})
}

// buildPlugin builds the example.
func buildPlugin(t *testing.T) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "htpasswd")
	cmd := exec.Command("go", "build", "-o", out, "../plugins/example")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	body, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// install puts a version of the plugin into the directory, and returns its document.
func install(t *testing.T, dir, file string, body []byte) string {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, file), body, 0o755); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(body)
	user := ""
	if os.Geteuid() == 0 {
		user = fmt.Sprintf("\n  user: %q", fmt.Sprint(pluginUser))
	}
	return fmt.Sprintf("kind: Plugin\nname: htpasswd\nspec:\n  file: %s\n  sha256: %s%s\n", file, hex.EncodeToString(sum[:]), user)
}

// pluginOf returns the plugin's process on a node, 0 for none.
func pluginOf(node *harness.Process) int {
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		cmdline, _ := os.ReadFile(p + "/cmdline")
		status, _ := os.ReadFile(p + "/status")
		if strings.HasPrefix(string(cmdline), "mayfly-plugin-htpasswd") && strings.Contains(string(status), fmt.Sprintf("\nPPid:\t%d\n", node.PID())) {
			var pid int
			_, _ = fmt.Sscan(filepath.Base(p), &pid)
			return pid
		}
	}
	return 0
}

// TestLaw8PluginFromRegistrationToItsEnd: a plugin is registered, mints, is
// upgraded under live leases, killed, outlived by its cluster, and removed.
func TestLaw8PluginFromRegistrationToItsEnd(t *testing.T) {
	files := t.TempDir()
	c := harness.StartCluster(t, harness.ClusterConfig{Extra: fmt.Sprintf(`"plugins": {"dir": %q, "same_user": %t}`, files, os.Geteuid() != 0)})
	body, r := buildPlugin(t), newRealm(t)
	spec := filepath.Join(t.TempDir(), "site.yaml")
	if err := os.WriteFile(spec, []byte("realms: {intranet: "+r.path+"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.Admin.Refused(t, 2, "unknown_target_type", "target", "add", "htpasswd", "--name", "site", "--spec", spec)
	c.Admin.Apply(t, install(t, files, "htpasswd-1", body))
	c.Admin.Refused(t, 2, "name_reserved", "apply", "-f", write(t, strings.ReplaceAll(install(t, files, "htpasswd-1", body), "name: htpasswd", "name: postgres")))
	c.Admin.Must(t, "target", "add", "htpasswd", "--name", "site", "--spec", spec)
	if got := c.Admin.Must(t, "get", "plugins"); !strings.Contains(got, "htpasswd-1 sha256:") {
		t.Errorf("get plugins shows %q", got)
	}
	c.Admin.Refused(t, 1, "in_use", "delete", "plugin/htpasswd", "--yes", "--reason", "too early")

	request := func() wire.AccessAnswer {
		var a wire.AccessAnswer
		c.Admin.JSON(t, &a, "request", "site/login", "--purpose", "work")
		if err := r.verify(a.Credential["username"], a.Credential["password"]); err != nil {
			t.Errorf("the credential does not work: %v", err)
		}
		return a
	}
	first := request()

	var wg sync.WaitGroup
	wg.Go(func() { c.Admin.Apply(t, install(t, files, "htpasswd-2", append(body, "2"...))) })
	for range 10 {
		request()
	}
	wg.Wait()
	leader, _ := c.Leader(t)
	harness.Within(t, time.Minute, "the newer plugin runs", func() error {
		got, err := os.ReadFile(fmt.Sprintf("/proc/%d/exe", pluginOf(leader.Process())))
		if err == nil && len(got) != len(body)+1 {
			err = fmt.Errorf("it has %d bytes", len(got))
		}
		return err
	})
	if err := r.verify(first.Credential["username"], first.Credential["password"]); err != nil {
		t.Errorf("a live lease was lost in the upgrade: %v", err)
	}

	if err := syscall.Kill(pluginOf(leader.Process()), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	request() // the client tries again until the plugin is back

	plugin := pluginOf(leader.Process())
	leader.Kill(t)
	request() // at the next leader
	harness.Within(t, 10*time.Second, "the dead node's plugin has ended", func() error {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", plugin)); err == nil {
			return fmt.Errorf("process %d is there", plugin)
		}
		return nil
	})
	if err := r.verify(first.Credential["username"], first.Credential["password"]); err != nil {
		t.Errorf("a live lease was lost with its leader: %v", err)
	}
	var leases []wire.Lease
	c.Admin.JSON(t, &leases, "lease", "list")
	for _, l := range leases {
		c.Admin.Must(t, "lease", "revoke", l.ID, "--reason", "done")
	}
	r.empty(t)
	missing(t, c, leader, files)
}

// missing starts the dead node again without the plugin's file: it says so, refuses
// clearly while it leads, and goes on once the file is there.
func missing(t *testing.T, c *harness.Cluster, n *harness.Node, files string) {
	t.Helper()
	held, err := os.ReadFile(filepath.Join(files, "htpasswd-2"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(files, "htpasswd-2")); err != nil {
		t.Fatal(err)
	}
	n.Start(t)
	harness.Within(t, time.Minute, "it says so before it leads", func() error {
		p := c.Admin.Run(t, "operator", "diagnose")
		if want := "FAIL  " + n.ID + " plugin htpasswd: does not run: htpasswd-2 cannot be opened"; !strings.Contains(p.Stdout, want) {
			return fmt.Errorf("diagnose says:\n%s", p.Stdout)
		}
		return nil
	})
	harness.Within(t, time.Minute, n.ID+" leads", func() error {
		leader, _ := c.Leader(t)
		if leader == n {
			return nil
		}
		c.Admin.Run(t, "operator", "step-down")
		return fmt.Errorf("%s leads", leader.ID)
	})
	p := c.Admin.Refused(t, 5, "plugin_unavailable", "request", "site/login", "--purpose", "work", "--retry", "0s")
	if !strings.Contains(p.Detail, "htpasswd") || !strings.Contains(p.Detail, "does not run on this node") {
		t.Errorf("the refusal says %q", p.Detail)
	}
	install(t, files, "htpasswd-2", held)
	c.Admin.Must(t, "request", "site/login", "--purpose", "work", "--retry", "90s")
	c.Admin.Must(t, "target", "check", "site")
}

func write(t *testing.T, text string) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), "document.yaml")
	if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}
