package host_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/plugins/host"
	"github.com/mayfly-broker/mayfly/plugins/sdk/plugintest"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

// rogue is the misbehaving plugin, built once for all tests.
var rogue string

func TestMain(m *testing.M) {
	if dir := os.Getenv("TEST_HOST_PLUGINS"); dir != "" {
		hostUntilKilled(dir, os.Getenv("TEST_HOST_PLUGIN"))
	}
	os.Exit(withRogue(m))
}

func withRogue(m *testing.M) int {
	dir, err := os.MkdirTemp("", "rogue")
	if err != nil {
		panic(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	rogue = filepath.Join(dir, "rogue")
	cmd := exec.Command("go", "build", "-o", rogue, "./testdata/rogue")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		panic(fmt.Sprintf("%v: %s", err, out))
	}
	f, err := os.OpenFile(rogue, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		panic(err)
	}
	_, err = f.WriteString(ofThisRun())
	if err := errors.Join(err, f.Close()); err != nil {
		panic(err)
	}
	return m.Run()
}

// ofThisRun marks this run's rogues: others may run on the same machine.
func ofThisRun() string { return fmt.Sprintf(" run %d ", os.Getpid()) }

// log is what a host has logged.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// stage is a host with a plugin directory.
type stage struct {
	*host.Host
	dir string
	log *log
}

func newStage(t *testing.T) *stage {
	t.Helper()
	s := &stage{dir: t.TempDir(), log: &log{}}
	s.Host = host.New(host.Options{Dir: s.dir, SameUser: os.Geteuid() != 0, Log: slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	t.Cleanup(func() {
		s.Close()
		if t.Failed() {
			t.Logf("logged: %.8000s", s.log)
		}
	})
	return s
}

// users are numbers without names, one for each plugin of a test.
var users = map[string]string{}

// spec installs the rogue under a name, as its nth generation.
func (s *stage) spec(t *testing.T, name string, generation int) host.Spec {
	t.Helper()
	body, err := os.ReadFile(rogue)
	if err != nil {
		t.Fatal(err)
	}
	marked := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(marked, fmt.Appendf(body, "generation %d", generation), 0o755); err != nil {
		t.Fatal(err)
	}
	x := host.Spec{Name: name, File: name}
	x.SHA256 = plugintest.Install(t, s.dir, marked, name)
	if os.Geteuid() == 0 {
		if users[name] == "" {
			users[name] = strconv.Itoa(64_000 + len(users))
		}
		x.User = users[name]
	}
	return x
}

// target opens a target of a running plugin.
func (s *stage) target(t *testing.T, name, fault string, secrets ...string) (issuers.Kind, issuers.Issuer) {
	t.Helper()
	k := host.Direct(plugintest.Await(t, s.Host, name))
	spec, err := json.Marshal(map[string]string{"fault": fault})
	if err != nil {
		t.Fatal(err)
	}
	in := map[string]secret.Text{}
	for i := 0; i+1 < len(secrets); i += 2 {
		in[secrets[i]] = secret.New(secrets[i+1])
	}
	i, err := k.Open(issuers.Target{Name: "t", Spec: spec, Secrets: in})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = i.Close() })
	return k, i
}

func lease(k issuers.Kind) issuers.Lease {
	return issuertest.NewLease(k, scope.Scope{{Type: "rogue", Actions: []string{"use"}}})
}

// eventually waits for a condition that others bring about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(45 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("%s does not come about", what)
		case <-tick.C:
		}
	}
}

func (s *stage) status(name string) host.Status {
	for _, x := range s.Status() {
		if x.Name == name {
			return x
		}
	}
	return host.Status{}
}

// works mints and withdraws on a well-behaved target of the plugin.
func (s *stage) works(t *testing.T, name string) {
	t.Helper()
	k, i := s.target(t, name, "")
	l := lease(k)
	if _, err := i.Mint(t.Context(), l); err != nil {
		t.Fatalf("plugin %s does not mint: %v", name, err)
	}
	if o := i.Withdraw(t.Context(), []issuers.Lease{l}); o[0].Err != nil {
		t.Fatalf("plugin %s does not withdraw: %v", name, o[0].Err)
	}
}

// TestHazard6LiesAreRefused: whatever a plugin answers that cannot be, is an error
// of the most cautious kind and reaches nobody.
func TestHazard6LiesAreRefused(t *testing.T) {
	s := newStage(t)
	s.Set([]host.Spec{s.spec(t, "liar", 1)})
	for _, fault := range []string{"answers hugely", "has too many fields", "has too large a field", "has a field twice", "has nothing",
		"has control characters", "sets LD_PRELOAD", "sets LUA_INIT", "sets GOFLAGS", "sets SSH_ASKPASS", "sets XDG_CONFIG_HOME", "sets a variable of no field", "has a field with a strange name", "fails in an unknown way"} {
		k, i := s.target(t, "liar", fault)
		c, err := i.Mint(t.Context(), lease(k))
		if err == nil || issuers.KindOf(err) != issuers.Unknown || len(c.Public)+len(c.Secret) > 0 {
			t.Errorf("a plugin that %s: %v and %v; want an error of kind unknown", fault, c, err)
		}
		if err != nil && strings.ContainsAny(err.Error(), "\n\x1b") {
			t.Errorf("a plugin that %s forges lines: %q", fault, err)
		}
	}
	for _, fault := range []string{"ends too few", "ends too many", "says neither", "proves nothing", "proves what it cannot", "gives no detail", "ends minus one session", "ends more sessions than there are"} {
		k, i := s.target(t, "liar", fault)
		out := i.Withdraw(t.Context(), []issuers.Lease{lease(k), lease(k)})
		if len(out) != 2 || issuers.KindOf(out[0].Err) != issuers.Unknown || out[0].Err == nil {
			t.Errorf("a plugin that %s: %+v; want two outcomes, the first an error", fault, out)
		}
	}
	k, i := s.target(t, "liar", "forges lines")
	if out := i.Withdraw(t.Context(), []issuers.Lease{lease(k)}); out[0].Err != nil || strings.Contains(out[0].Receipt.Detail, "\n") {
		t.Errorf("a receipt of two lines: %+v", out[0])
	}
	for _, fault := range []string{"lists control characters", "lists one twice", "lists for ever"} {
		_, i := s.target(t, "liar", fault)
		if found, err := i.(issuers.Lister).List(t.Context()); err == nil {
			t.Errorf("a plugin that %s: %d found", fault, len(found))
		}
	}
	_, i = s.target(t, "liar", "")
	if docs, err := i.(issuers.Publisher).Publish(t.Context()); err == nil {
		t.Errorf("it publishes %v", docs)
	}
	if made, err := k.(issuers.SecretMaker).MakeSecrets(json.RawMessage(`{}`)); err == nil {
		t.Errorf("it makes the secrets %v", made)
	}
	if err := k.CheckSpec(json.RawMessage(`{"fault":"refuses the spec"}`)); err == nil || strings.ContainsAny(err.Error(), "\n\x1b") {
		t.Errorf("what it says of a spec: %q", err)
	}
	if err := k.CheckSpec(json.RawMessage(`{"fault":"proposes a thousand roles"}`)); err == nil {
		t.Error("a thousand roles are taken")
	}
	s.works(t, "liar")
}

// TestLaw8OnlyItsOwnTargetsFail: a plugin that crashes, hangs, stops or eats
// memory is ended and started again, and its neighbour notices nothing.
func TestLaw8OnlyItsOwnTargetsFail(t *testing.T) {
	s := newStage(t)
	bad := s.spec(t, "bad", 1)
	bad.Limits.MemoryMiB = 256
	s.Set([]host.Spec{bad, s.spec(t, "neighbour", 1)})
	s.works(t, "neighbour")
	pid := s.status("neighbour").PID
	for _, fault := range []string{"crashes", "eats memory"} {
		k, i := s.target(t, "bad", fault)
		before := s.status("bad").Restarts
		if _, err := i.Mint(t.Context(), lease(k)); err == nil || issuers.KindOf(err) != issuers.Unknown {
			t.Errorf("a plugin that %s while it mints: %v; want kind unknown", fault, err)
		}
		eventually(t, "the end of a plugin that "+fault, func() bool { return s.status("bad").Restarts > before })
		if _, err := i.Mint(t.Context(), lease(k)); err != nil && issuers.KindOf(err) != issuers.Unreachable && issuers.KindOf(err) != issuers.Unknown {
			t.Errorf("while it starts again: %v", err)
		}
		s.works(t, "neighbour")
		eventually(t, "a new start of a plugin that "+fault, func() bool { return s.status("bad").Running })
	}
	note := newNote(t)
	k, i := s.target(t, "bad", "hangs", "file", note)
	if err := mintUntilThere(t, k, i, note); issuers.KindOf(err) != issuers.Unknown || err == nil {
		t.Errorf("a mint that hangs: %v; want kind unknown", err)
	}
	s.works(t, "bad") // one call that hangs keeps no other
	s.works(t, "neighbour")
	if now := s.status("neighbour"); now.PID != pid || now.Restarts != 0 {
		t.Errorf("the neighbour was started again: %+v", now)
	}
}

// TestLaw8AStoppedPluginIsReplaced: one that answers nothing at all is noticed.
func TestLaw8AStoppedPluginIsReplaced(t *testing.T) {
	s := newStage(t)
	s.Set([]host.Spec{s.spec(t, "stopper", 1)})
	k, i := s.target(t, "stopper", "")
	pid, err := strconv.Atoi(s.status("stopper").PID)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := i.Mint(ctx, lease(k)); err == nil {
		t.Fatal("it minted")
	}
	eventually(t, "the end of the stopped plugin", func() bool { return s.status("stopper").Restarts == 1 })
	eventually(t, "its new start", func() bool { return s.status("stopper").Running })
	s.works(t, "stopper")
}

// TestDeadlinesAndCancellationTravel: the plugin sees when a call must be done, and
// that nobody waits any more.
func TestDeadlinesAndCancellationTravel(t *testing.T) {
	s := newStage(t)
	s.Set([]host.Spec{s.spec(t, "good", 1)})
	k, i := s.target(t, "good", "says when it must be done")
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	c, err := i.Mint(ctx, lease(k))
	if err != nil || !strings.HasPrefix(c.Public["deadline"], "true ") || strings.Contains(c.Public["deadline"], "h") {
		t.Fatalf("the deadline there is %v, %v", c, err)
	}
	note := newNote(t)
	k, i = s.target(t, "good", "waits for the caller", "file", note)
	if err := mintUntilThere(t, k, i, note); err == nil {
		t.Fatal("it minted")
	}
	eventually(t, "the news of the cancellation", func() bool { return says(note, context.Canceled.Error()) })
}

// newNote is where a rogue writes how far a call has come; it runs as another user.
func newNote(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o777))
	must(t, os.Chmod(filepath.Dir(dir), 0o755))
	return filepath.Join(dir, "note")
}

func says(note, text string) bool {
	b, err := os.ReadFile(note)
	return err == nil && string(b) == text
}

// mintUntilThere mints until the call is at the plugin, then gives it up.
func mintUntilThere(t *testing.T, k issuers.Kind, i issuers.Issuer, note string) error {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { _, err := i.Mint(ctx, lease(k)); done <- err }()
	eventually(t, "the call's arrival at the plugin", func() bool { return says(note, "arrived") })
	cancel()
	return <-done
}

// TestUpgradeKeepsWhatIsInFlight: a newer file takes over without a gap; a call in
// flight ends where it began, and what is registered wrongly leaves the old one.
func TestUpgradeKeepsWhatIsInFlight(t *testing.T) {
	s := newStage(t)
	s.Set([]host.Spec{s.spec(t, "renewed", 1)})
	k, i := s.target(t, "renewed", "")
	first, err := i.Mint(t.Context(), lease(k))
	if err != nil || first.Public["generation"] != "1." {
		t.Fatalf("%v, %v", first, err)
	}
	old := s.status("renewed").PID

	note := newNote(t)
	slowKind, slow := s.target(t, "renewed", "waits for the caller", "file", note)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { _, err := slow.Mint(ctx, lease(slowKind)); done <- err }()
	eventually(t, "the call's arrival at the old one", func() bool { return says(note, "arrived") })

	wrong := s.spec(t, "renewed", 2)
	wrong.SHA256 = sha256.Sum256([]byte("another"))
	s.Set([]host.Spec{wrong})
	eventually(t, "the refusal of the wrong file", func() bool { return strings.Contains(s.status("renewed").Problem, "SHA-256") })
	if st := s.status("renewed"); !st.Running || st.PID != old {
		t.Fatalf("a wrong registration has ended what ran: %+v", st)
	}
	s.Set([]host.Spec{s.spec(t, "renewed", 2)})
	eventually(t, "the newer one", func() bool { return s.status("renewed").PID != old && s.status("renewed").Running })
	for range 20 { // the target that was open goes on in the new process
		c, err := i.Mint(t.Context(), lease(k))
		if err != nil || c.Public["generation"] != "2." {
			t.Fatalf("after the upgrade: %v, %v", c, err)
		}
	}
	select {
	case err := <-done:
		t.Fatalf("the call in flight was cut off: %v", err)
	default:
	}
	cancel()
	<-done
	eventually(t, "the end of the old process", func() bool { return !alive(old) })
}

// TestUpgradeMayNotRename: live credentials bear the old names.
func TestUpgradeMayNotRename(t *testing.T) {
	s := newStage(t)
	s.Set([]host.Spec{s.spec(t, "renames", 1)})
	s.works(t, "renames")
	s.Set([]host.Spec{s.spec(t, "renames", 2)})
	eventually(t, "the refusal", func() bool { return strings.Contains(s.status("renames").Problem, "names credentials") })
	s.works(t, "renames")
}

func alive(pid string) bool {
	_, err := os.Stat("/proc/" + pid)
	return err == nil
}

// TestEndsWithItsRegistration: and with the host.
func TestEndsWithItsRegistration(t *testing.T) {
	s := newStage(t)
	s.Set([]host.Spec{s.spec(t, "one", 1), s.spec(t, "two", 1)})
	s.works(t, "one")
	s.works(t, "two")
	one, two := s.status("one").PID, s.status("two").PID
	s.Set([]host.Spec{s.spec(t, "two", 1)})
	eventually(t, "the end of what is no longer registered", func() bool { return !alive(one) })
	if _, found, _ := s.Kind("one"); found {
		t.Error("its kind is still there")
	}
	if !alive(two) {
		t.Error("the other has ended too")
	}
	s.Close()
	if alive(two) {
		t.Error("it outlives its host")
	}
}

// TestHazard6StartsThatAreRefused: each says why, and goes on being tried.
func TestHazard6StartsThatAreRefused(t *testing.T) {
	s := newStage(t)
	want := map[string]string{
		"crashes-at-start":       "plugin", // that it has ended, in one of two ways: the pipe or the process is noticed first
		"listens-elsewhere":      "does not listen where it was told to",
		"listens-on-tcp":         "does not listen where it was told to",
		"never-ends-its-line":    "Unrecognized",
		"speaks-another-version": "incompatible API version",
		"serves-another":         `it serves the kind "postgres"`,
		"names-others":           "whole id of the lease",
	}
	var specs []host.Spec
	for name := range want {
		specs = append(specs, s.spec(t, name, 1))
	}
	s.Set(specs)
	for name, why := range want {
		eventually(t, "an answer about "+name, func() bool { return s.status(name).Problem != "it is starting" && s.status(name).Problem != "" })
		if st := s.status(name); st.Running || !strings.Contains(st.Problem, why) || strings.Contains(st.Problem, "\n") || len(st.Problem) > 4096 {
			t.Errorf("%s: %+v; want a problem that says %q", name, st, why)
		}
		if _, found, err := s.Kind(name); !found || err == nil {
			t.Errorf("%s gives a kind: %v", name, err)
		}
	}
}

// TestHazard6LogIsBounded: lines are bounded, cleaned and named; floods are cut;
// what would make go-plugin's own reader panic does nothing.
func TestHazard6LogIsBounded(t *testing.T) {
	s := newStage(t)
	s.Set([]host.Spec{s.spec(t, "loud", 1)})
	k, i := s.target(t, "loud", "shouts")
	if _, err := i.Mint(t.Context(), lease(k)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the lines", func() bool { return strings.Contains(s.log.String(), "line 40") })
	s.works(t, "loud")
	text := s.log.String()
	// how many is for the limit and the flood's own time to say: any single line may pass
	if n := strings.Count(text, `line="line `); n > 10_000 {
		t.Errorf("%d lines of a flood of 20,000 are logged", n)
	}
	if len(text) > 1_000_000 || strings.ContainsAny(text, "\x1b\x00\u202e") {
		t.Errorf("the log has %d bytes, or what must not be in it", len(text))
	}
	if !strings.Contains(text, "level=ERROR msg=\"plugin says\" plugin=loud line=\"bad\\\\u001b") {
		t.Errorf("its own line is not there: %.2000s", text)
	}
	for _, line := range strings.Split(text, "\n") {
		if len(line) > 6<<10 {
			t.Errorf("a line of %d bytes", len(line))
		}
	}
}

// TestLaw6ATargetsSecretIsTakenOut of what the plugin prints and answers.
func TestLaw6ATargetsSecretIsTakenOut(t *testing.T) {
	s := newStage(t)
	s.Set([]host.Spec{s.spec(t, "leaky", 1)})
	const password = "correct-horse-battery"
	k, i := s.target(t, "leaky", "tells its secret", "admin_password", password)
	_, err := i.Mint(t.Context(), lease(k))
	if err == nil || issuers.KindOf(err) != issuers.Refused || strings.Contains(err.Error(), password) || !strings.Contains(err.Error(), secret.Redacted) {
		t.Errorf("the error says %v", err)
	}
	eventually(t, "the lines", func() bool {
		text := s.log.String()
		return strings.Contains(text, "on stdout") && strings.Contains(text, "on stderr") && strings.Contains(text, "straight")
	})
	if strings.Contains(s.log.String(), password) {
		t.Error("the log holds the secret")
	}
}
