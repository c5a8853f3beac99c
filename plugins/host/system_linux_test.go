package host

import (
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/plugins/protocol"
)

// TestHazard6StandsStillUntilItsLimitsAreSet: what it forked before would have none.
func TestHazard6StandsStillUntilItsLimitsAreSet(t *testing.T) {
	mark := t.TempDir() + "/mark"
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		cmd := exec.Command("/bin/sh", "-c", "ulimit -n > "+mark)
		cmd.SysProcAttr = attributes(account{uid: uint32(os.Geteuid()), gid: uint32(os.Getegid())}, false)
		if err := cmd.Start(); err != nil {
			done <- err
			return
		}
		err := release(cmd.Process.Pid, func(pid int) error {
			stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
			if _, state, _ := strings.Cut(string(stat), ") "); err != nil || !strings.HasPrefix(state, "t") {
				t.Errorf("it is %q while its limits are set: %v", state, err)
			}
			<-time.After(100 * time.Millisecond)
			if _, err := os.Stat(mark); err == nil {
				t.Error("it has run before its limits were set")
			}
			return restrict(pid, account{}, Limits{Files: 77})
		})
		if err != nil {
			_ = cmd.Process.Kill()
		}
		_ = cmd.Wait()
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(mark); err != nil || strings.TrimSpace(string(got)) != "77" {
		t.Errorf("it has %s files, %v", got, err)
	}
}

// TestHazard6NoGroupOfRoots: whoever is in root's group reads what root has opened to it.
func TestHazard6NoGroupOfRoots(t *testing.T) {
	for name, a := range map[string]account{"group": {uid: 64_001}, "user": {gid: 64_001}, "nobody at all": {uid: 1<<32 - 1, gid: 64_001}, "no group": {uid: 64_001, gid: 1<<32 - 1}} {
		a.own = true
		if a.check(name, false, 0) == nil {
			t.Errorf("a plugin runs as %+v", a)
		}
	}
	if err := (account{uid: 64_001, gid: 64_001, own: true}).check("x", false, 0); err != nil {
		t.Error(err)
	}
}

// TestIssuersCanWhatTheirPluginSays, and nothing else: there is a type for each
// combination.
func TestIssuersCanWhatTheirPluginSays(t *testing.T) {
	all := []protocol.Ability{protocol.AbleExtend, protocol.AbleList, protocol.AblePublish, protocol.AbleRevoked}
	for set := range 1 << len(all) {
		m := protocol.Manifest{Name: "x", CredentialName: "mf-{lease}"}
		for n, a := range all {
			if set&(1<<n) != 0 {
				m.Abilities = append(m.Abilities, a)
			}
		}
		i := newIssuer(newKind(newSupervised(New(Options{}), Spec{Name: "x"}), m), issuers.Target{})
		for _, a := range protocol.IssuerAbilities(i) {
			if always := a == protocol.AbleCheck || a == protocol.AbleFence || a == protocol.AbleSweep; !always && !m.Can(a) {
				t.Errorf("a plugin that can %v has issuers that can %s", m.Abilities, a)
			}
		}
		for _, a := range m.Abilities {
			if !slices.Contains(protocol.IssuerAbilities(i), a) {
				t.Errorf("a plugin that can %v has issuers that cannot %s", m.Abilities, a)
			}
		}
	}
}
