package e2e_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/e2e/harness"
	"github.com/mayfly-broker/mayfly/issuers/postgres/pgtest"
)

const approvers = `kind: Principal
name: "human:bo"
---
kind: Principal
name: "human:kim"
---
kind: Principal
name: "human:lee"
---
kind: Group
name: dba
spec: {members: [{name: "human:bo"}, {name: "human:kim"}]}
---
kind: Group
name: security
spec: {members: [{name: "human:lee"}]}
---
kind: Role
name: orders/privileged
spec:
  scope: [{type: database, identifier: orders, actions: [select, update], tables: [{name: "public.*"}]}]
  ttl: {default: 10m, max: 1h}
  approvals: [{group: dba, count: 2}]
`

const mayAskPrivileged = `@id("may-ask") permit (principal, action == Action::"request", resource == Role::"orders/privileged");
@id("security-looks-too") @approvals("1") @approvers("security") @approval_ttl("30m")
permit (principal, action == Action::"request", resource == Role::"orders/privileged");
`

// people are those of a story about approvals, at their command lines.
type people struct {
	admin, worker, bo, kim, lee harness.CLI
}

// newPeople adds a database with a role that two of dba and one of security
// must agree to. Bo has a key file, Kim a key in a real ssh-agent, Lee a JWK.
func newPeople(t *testing.T, admin harness.CLI, dir string, pg *pgtest.Server) people {
	t.Helper()
	harness.Database(t, pg, admin, dir, "orders")
	admin.Apply(t, approvers)
	admin.ApplyPolicy(t, dir, "privileged", mayAskPrivileged)
	p := people{admin: admin}
	p.worker = admin.Enrol(t, dir, "workload:billing")
	p.bo = admin.Redeem(t, dir, "human:bo", strings.TrimSpace(admin.Must(t, "principal", "enroll", "human:bo", "--field", "token")))
	p.kim = admin.Redeem(t, dir, "human:kim", strings.TrimSpace(admin.Must(t, "principal", "enroll", "human:kim", "--field", "token")))
	p.lee = admin.Redeem(t, dir, "human:lee", strings.TrimSpace(admin.Must(t, "principal", "enroll", "human:lee", "--field", "token")))
	p.bo.Must(t, "key", "add", "--use", "approve")
	socket, public := startAgent(t)
	p.kim = p.kim.With("SSH_AUTH_SOCK", socket)
	p.kim.Must(t, "key", "add", "--use", "approve", "--ssh", public)
	p.lee.Must(t, "key", "add", "--use", "approve")
	return p
}

// startAgent runs a real ssh-agent that alone holds a private key; the public
// half is left in a file.
func startAgent(t *testing.T) (socket, public string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	private := filepath.Join(dir, "id")
	socket = filepath.Join(dir, "s")
	run := func(name string, args ...string) {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Env = append(os.Environ(), "SSH_AUTH_SOCK="+socket)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s (Debian's openssh-client): %v\n%s", name, err, out)
		}
	}
	run("ssh-keygen", "-q", "-t", "ecdsa", "-b", "256", "-N", "", "-f", private)
	agent := exec.Command("ssh-agent", "-D", "-a", socket)
	if err := agent.Start(); err != nil {
		t.Fatalf("ssh-agent (Debian's openssh-client): %v", err)
	}
	t.Cleanup(func() { _ = agent.Process.Kill(); _ = agent.Wait() })
	harness.Within(t, 10*time.Second, "ssh-agent listens", func() error { _, err := os.Stat(socket); return err })
	run("ssh-add", "-q", private)
	if err := os.Remove(private); err != nil {
		t.Fatal(err)
	}
	return socket, private + ".pub"
}

// ask requests the privileged role and returns the waiting grant.
func (p people) ask(t *testing.T, args ...string) (g wire.Grant) {
	t.Helper()
	r := p.worker.Run(t, append([]string{"request", "orders/privileged", "-o", "json", "--field", "grant_id"}, args...)...)
	if r.Code != 4 {
		t.Fatalf("exit %d: %s%s", r.Code, r.Stdout, r.Stderr)
	}
	id := strings.Trim(strings.TrimSpace(r.Stdout), `"`)
	p.worker.JSON(t, &g, "grant", "show", id)
	if g.State != "waiting" || len(g.Needs) != 2 || g.Needs[0].Required != 2 || g.Needs[1].Required != 1 {
		t.Fatalf("%+v", g)
	}
	return g
}

// The leader dies between the first and the second approval; the one that asked
// collects through another node. Kim's key never leaves a real ssh-agent.
func TestLaw4LeaderDiesBetweenTwoApprovals(t *testing.T) {
	pg := pgtest.Start(t)
	c := harness.StartCluster(t, harness.ClusterConfig{})
	p := newPeople(t, c.Admin, c.Dir, pg)
	g := p.ask(t, "--purpose", "quarter's end")

	p.bo.Must(t, "grant", "approve", g.ID, "--hash", g.Hash[:12])
	leader, others := c.Leader(t)
	leader.Kill(t)
	p.kim.Must(t, "grant", "approve", g.ID, "--hash", g.Hash[:12], "--agent")
	if r := p.worker.Run(t, "grant", "collect", g.ID); r.Code != 4 {
		t.Fatalf("two of dba are not one of security: exit %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	p.lee.Must(t, "grant", "approve", g.ID, "--hash", g.Hash[:12])

	var a wire.AccessAnswer
	p.worker.With("MAYFLY_ADDR", others[1].URL).JSON(t, &a, "grant", "collect", g.ID)
	conn, err := harness.Login(t, a.Credential["url"])
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Error(err)
	}
	var who wire.Whohas
	c.Admin.JSON(t, &who, "whohas", a.Credential["username"])
	if len(who.Approvals) != 3 {
		t.Errorf("whohas names %v", who.Approvals)
	}
	leader.Start(t)
	p.kim.Must(t, "grant", "revoke", g.ID, "--reason", "done with it")
	harness.NothingLeft(t, harness.Postgres{Server: pg}, 30*time.Second)
}

// Attacks that end at the door or in the ledger, by whoever sits at a terminal.
func TestLaw4NobodyApprovesAlone(t *testing.T) {
	pg := pgtest.Start(t)
	dev := harness.StartDev(t)
	dir := t.TempDir()
	p := newPeople(t, dev.Operator, dir, pg)
	g := p.ask(t, "--purpose", "first")
	other := p.ask(t, "--purpose", "second")

	p.bo.Must(t, "grant", "approve", g.ID, "--hash", g.Hash[:12])
	p.bo.Refused(t, 1, "already_approved", "grant", "approve", g.ID, "--hash", g.Hash[:12])
	if r := p.bo.Run(t, "grant", "approve", g.ID, "--hash", other.Hash[:12]); r.Code == 0 {
		t.Error("another grant's hash was taken")
	}
	if r := p.bo.Run(t, "grant", "approve", g.ID); r.Code != 2 {
		t.Errorf("without a hash and a terminal: exit %d", r.Code)
	}
	// A second key of one's own does not make a second person.
	second := filepath.Join(dir, "second")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", second).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	p.bo.Must(t, "key", "add", "--use", "approve", "--ssh", second+".pub")
	p.bo.Refused(t, 1, "already_approved", "grant", "approve", g.ID, "--hash", g.Hash[:12], "--key", second)
	// Somebody else's key is not theirs to use, and who is not asked is not told.
	p.kim.Must(t, "grant", "approve", other.ID, "--hash", other.Hash[:12], "--agent")
	if r := p.worker.Run(t, "grant", "approve", g.ID, "--hash", g.Hash[:12]); r.Code == 0 {
		t.Error("the requester approved its own grant")
	}
	// One edit of the role makes it void; nobody needs to notice for that.
	dev.Operator.Apply(t, strings.Replace(approvers, "max: 1h", "max: 2h", 1))
	var void wire.Grant
	p.worker.JSON(t, &void, "grant", "show", g.ID)
	if void.State != "void" || !strings.Contains(void.EndReason, "orders/privileged") {
		t.Errorf("%s: %s", void.State, void.EndReason)
	}
	if r := p.kim.Run(t, "grant", "approve", g.ID, "--hash", g.Hash[:12], "--agent"); r.Code == 0 {
		t.Error("a void grant was approved")
	}
	fresh := p.ask(t, "--purpose", "third")
	p.lee.Must(t, "grant", "deny", fresh.ID, "--reason", "not today")
	r := p.worker.Run(t, "request", "orders/privileged", "--purpose", "third", "--retry", "0s")
	if r.Code != 5 || !strings.Contains(r.Stderr, "cooling_down") {
		t.Errorf("after a denial: exit %d, %s", r.Code, r.Stderr)
	}
	harness.NothingLeft(t, harness.Postgres{Server: pg}, 10*time.Second)
}

// Dual control: what decides who may get what changes with a second person.
func TestHazard1ChangesWaitForASecondPerson(t *testing.T) {
	pg := pgtest.Start(t)
	dev := &harness.Dev{Dir: t.TempDir(), Flags: []string{"--dual-control"}}
	dev.Start(t)
	vars, err := harness.ReadEnv(filepath.Join(dev.Home(), "approver.env"))
	if err != nil {
		t.Fatal(err)
	}
	approver := harness.NewCLI(t, vars)
	group := "kind: Group\nname: mayfly-approvers\nspec: {members: [{name: \"human:approver\"}, {name: \"human:operator\"}]}\n"
	r := dev.Operator.Feed(t, group, "apply", "-f", "-", "-o", "json")
	if r.Code != 4 {
		t.Fatalf("the roster: exit %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	var pending []wire.Grant
	approver.JSON(t, &pending, "grant", "list", "--pending")
	if len(pending) != 1 || pending[0].Kind != "change" {
		t.Fatalf("%+v", pending)
	}
	if r := dev.Operator.Run(t, "grant", "approve", pending[0].ID, "--hash", pending[0].Hash[:12]); r.Code == 0 {
		t.Fatal("the operator approved their own change")
	}
	approver.Must(t, "grant", "deny", pending[0].ID, "--reason", "no")

	// A target, with its secret, waits and then works.
	harness.Tables(t, pg, "orders")
	r = dev.Operator.Run(t, harness.TargetArgs(t, pg, dev.Dir, "orders", "orders")...)
	if r.Code != 4 {
		t.Fatalf("target add: exit %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	approver.JSON(t, &pending, "grant", "list", "--pending")
	if len(pending) != 1 || strings.Contains(string(pending[0].Document), pg.Password) {
		t.Fatalf("%+v", pending)
	}
	approver.Must(t, "grant", "approve", pending[0].ID, "--hash", pending[0].Hash[:12])
	dev.Operator.Must(t, "target", "check", "orders")
	var a wire.AccessAnswer
	dev.Operator.JSON(t, &a, "request", "orders/readonly", "--purpose", "look")
	conn, err := harness.Login(t, a.Credential["url"])
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// A dev node belongs to whoever runs it: it starts although they have contained
// or deleted its second person, says so, and does not bring them back.
func TestDevStartsWithoutItsSecondPerson(t *testing.T) {
	dev := harness.StartDev(t)
	env := filepath.Join(dev.Home(), "approver.env")
	said := 0
	again := func(what string) {
		t.Helper()
		said++
		dev.Kill(t)
		dev.Start(t)
		if _, err := os.Stat(env); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: approver.env is there: %v", what, err)
		}
		log, err := os.ReadFile(dev.Log())
		if err != nil || strings.Count(string(log), "nobody can approve as human:approver") != said {
			t.Errorf("%s: not said once at each such start: %v\n%s", what, err, log)
		}
	}
	dev.Operator.Must(t, "contain", "human:approver", "--reason", "trying it", "--yes")
	again("contained")
	dev.Operator.Must(t, "release", "human:approver", "--reason", "tried", "--yes")
	dev.Kill(t)
	dev.Start(t)
	if _, err := harness.ReadEnv(env); err != nil {
		t.Errorf("released: %v", err)
	}
	dev.Operator.Must(t, "delete", "Principal", "human:approver", "--reason", "no need", "--yes")
	again("deleted")
	if r := dev.Operator.Run(t, "get", "Principal", "human:approver"); r.Code == 0 {
		t.Errorf("they are back:\n%s", r.Stdout)
	}
}
