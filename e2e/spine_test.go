package e2e_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/e2e/harness"
	"github.com/mayfly-broker/mayfly/issuers/postgres/pgtest"
)

// house is a dev node with a database and one workload that may use it.
type house struct {
	dir      string
	pg       *pgtest.Server
	dev      *harness.Dev
	operator harness.CLI
	worker   harness.CLI // workload:billing, of group team
}

// newHouse sets the contract's usual scene through the command line.
func newHouse(t *testing.T) *house {
	t.Helper()
	h := &house{dir: t.TempDir(), pg: pgtest.Start(t), dev: harness.StartDev(t)}
	h.operator = h.dev.Operator
	harness.Database(t, h.pg, h.operator, h.dir, "orders")
	h.worker = h.operator.Enrol(t, h.dir, "workload:billing")
	h.operator.Apply(t, "kind: Group\nname: team\nspec: {members: [{name: \"workload:billing\"}]}\n")
	h.operator.ApplyPolicy(t, h.dir, "team", `@id("team")
permit (principal in Group::"team", action in [Action::"request", Action::"renew"], resource == Role::"orders/readonly")
when { context.session.bound };
`)
	return h
}

const twoColumns = `[{"type":"database","identifier":"orders","actions":["select"],"tables":[{"name":"public.people","columns":["id","name"]}]}]`

// request asks as the worker and returns the answer.
func (h *house) request(t *testing.T, args ...string) wire.AccessAnswer {
	t.Helper()
	var a wire.AccessAnswer
	h.worker.JSON(t, &a, append([]string{"request", "orders/readonly"}, args...)...)
	return a
}

// The whole life of a credential as a user types it.
func TestSpine(t *testing.T) {
	h := newHouse(t)
	h.worker.Must(t, "task", "start", "report", "--purpose", "monthly figures", "--ttl", "1h")
	a := h.request(t, "--task", "report", "--ttl", "10m")

	t.Run("login", func(t *testing.T) { h.spineLogin(t, a) })
	t.Run("narrow", h.spineNarrow)
	t.Run("denial", h.spineDenial)
	t.Run("renew", func(t *testing.T) { h.spineRenew(t, a) })
	t.Run("end", func(t *testing.T) { h.spineEnd(t, a) })
	t.Run("whohas", func(t *testing.T) { h.spineWhohas(t, a) })
	t.Run("audit", h.spineAudit)
}

// issuedFields are the contract's, to the letter.
var issuedFields = []string{"bounded_by", "credential", "decision_id", "expires_at", "grant_id", "lease_id", "not_after", "renew_after", "renewable", "replaced", "role", "scope", "status", "task_id"}

// The formats in which a request is answered, and the exact members of its JSON.
func TestRequestFormats(t *testing.T) {
	h := newHouse(t)
	var raw map[string]json.RawMessage
	h.worker.JSON(t, &raw, "request", "orders/readonly", "--purpose", "formats")
	for _, name := range issuedFields {
		if _, ok := raw[name]; !ok {
			t.Errorf("request -o json lacks %s", name)
		}
	}
	var cred map[string]string
	if err := json.Unmarshal(raw["credential"], &cred); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"username", "password", "host", "port", "database", "url"} {
		if cred[name] == "" {
			t.Errorf("credential lacks %s", name)
		}
	}
	if string(raw["status"]) != `"issued"` || string(raw["replaced"]) != "[]" {
		t.Errorf("status %s, replaced %s", raw["status"], raw["replaced"])
	}
	yaml := h.worker.Must(t, "request", "orders/readonly", "--purpose", "formats", "-o", "yaml")
	if !strings.Contains(yaml, "status: issued") || !strings.Contains(yaml, "credential:") {
		t.Errorf("-o yaml:\n%s", yaml)
	}
	table := h.worker.Must(t, "request", "orders/readonly", "--purpose", "formats")
	if !strings.Contains(table, "username") || !strings.Contains(table, "password") {
		t.Errorf("table:\n%s", table)
	}
	name := strings.TrimSpace(h.worker.Must(t, "request", "orders/readonly", "--purpose", "formats", "--field", "credential.username"))
	if !strings.HasPrefix(name, "mayfly_") {
		t.Errorf("--field credential.username: %q", name)
	}
	h.formatEnv(t)
	// Databases have no form for these two; the answer says so and issues nothing.
	for _, format := range []string{"credential-process", "exec-credential"} {
		if r := h.worker.Run(t, "request", "orders/readonly", "--purpose", "formats "+format, "-o", format); r.Code == 0 {
			t.Errorf("-o %s of a database: %s", format, r.Stdout)
		}
	}
	h.worker.Refused(t, 2, "usage", "request", "orders/readonly", "--task", "x", "--purpose", "y")
}

// formatEnv has a shell read -o env, and a program log in with what it read.
func (h *house) formatEnv(t *testing.T) {
	t.Helper()
	exports := h.worker.Must(t, "request", "orders/readonly", "--purpose", "env", "-o", "env")
	if again := h.worker.Must(t, "request", "orders/readonly", "--purpose", "env", "-o", "env"); again != exports {
		t.Error("-o env is not kept until renew_after: a second call got another credential")
	}
	script := exports + "\nprintf '%s\\n' \"$PGUSER\" \"$PGPASSWORD\" \"$PGHOST\" \"$PGPORT\" \"$PGDATABASE\""
	out, err := exec.CommandContext(t.Context(), "/bin/sh", "-euc", script).Output()
	if err != nil {
		t.Fatalf("a shell cannot read -o env: %v\n%s", err, exports)
	}
	v := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(v) != 5 {
		t.Fatalf("-o env gave %d of 5 variables", len(v))
	}
	conn, err := harness.Login(t, fmt.Sprintf("user=%s password=%s host=%s port=%s dbname=%s sslmode=disable", v[0], v[1], v[2], v[3], v[4]))
	if err != nil {
		t.Fatalf("login with -o env: %v", err)
	}
	_ = conn.Close(t.Context())
}

func (h *house) spineLogin(t *testing.T, a wire.AccessAnswer) {
	conn, err := harness.Login(t, a.Credential["url"])
	if err != nil {
		t.Fatalf("the minted account cannot log in: %v", err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	var n int
	if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM people").Scan(&n); err != nil || n != 2 {
		t.Errorf("select: %d, %v", n, err)
	}
	if _, err := conn.Exec(t.Context(), "DELETE FROM people"); err == nil {
		t.Error("readonly may delete")
	}
}

func (h *house) spineNarrow(t *testing.T) {
	a := h.request(t, "--purpose", "two columns", "--scope", twoColumns)
	conn, err := harness.Login(t, a.Credential["url"])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	if _, err := conn.Exec(t.Context(), "SELECT id, name FROM people"); err != nil {
		t.Errorf("the granted columns: %v", err)
	}
	for _, q := range []string{"SELECT salary FROM people", "SELECT * FROM people", "SELECT body FROM notes", "SELECT count(*) FROM people WHERE salary > 1"} {
		if _, err := conn.Exec(t.Context(), q); err == nil {
			t.Errorf("two columns were granted, but this works: %s", q)
		}
	}
}

func (h *house) spineDenial(t *testing.T) {
	p := h.worker.Refused(t, 3, "", "request", "orders/readwrite", "--purpose", "more than my due")
	if p.DecisionID == "" || p.Kind != "denied" {
		t.Fatalf("a denial names its decision: %+v", p)
	}
	// The decision stands in the record, for those who may read it.
	var d wire.Decision
	h.operator.JSON(t, &d, "policy", "explain", p.DecisionID)
	if d.ID != p.DecisionID || d.Actor != "workload:billing" || d.Text == "" || len(d.Decision) == 0 {
		t.Errorf("explain: %+v", d)
	}
	// And a permit's does too, naming its policy.
	a := h.request(t, "--purpose", "mine")
	h.operator.JSON(t, &d, "policy", "explain", a.DecisionID)
	if !strings.Contains(string(d.Decision), `"team"`) {
		t.Errorf("explain of a permit does not name the policy: %s", d.Decision)
	}
}

func (h *house) spineRenew(t *testing.T, a wire.AccessAnswer) {
	var l wire.Lease
	h.worker.JSON(t, &l, "lease", "renew", a.LeaseID, "--ttl", "20m")
	if !l.ExpiresAt.After(a.ExpiresAt) || l.ExpiresAt.After(l.NotAfter) {
		t.Errorf("renewed from %s to %s, not after %s", a.ExpiresAt, l.ExpiresAt, l.NotAfter)
	}
	var until time.Time
	err := h.pg.Admin(t, "postgres").QueryRow(t.Context(), "SELECT rolvaliduntil FROM pg_roles WHERE rolname = $1", l.Username).Scan(&until)
	if err != nil || until.Before(l.ExpiresAt.Add(-2*time.Second)) || until.After(l.ExpiresAt.Add(2*time.Second)) {
		t.Errorf("the account is valid until %s, the lease until %s (%v)", until, l.ExpiresAt, err)
	}
}

// spineEnd is law 2: the task's end takes the account and its open session.
func (h *house) spineEnd(t *testing.T, a wire.AccessAnswer) {
	open, err := harness.Login(t, a.Credential["url"])
	if err != nil {
		t.Fatal(err)
	}
	var end wire.EndTaskAnswer
	h.worker.JSON(t, &end, "task", "end", "report", "--wait", "30s")
	if end.Leases != 1 || !end.Withdrawn {
		t.Errorf("task end: %+v", end)
	}
	if err := open.Ping(t.Context()); err == nil {
		t.Error("the session that was open when the task ended still works")
	}
	if _, err := harness.Login(t, a.Credential["url"]); err == nil {
		t.Error("the account of an ended task can still log in")
	}
	var name string
	err = h.pg.Admin(t, "postgres").QueryRow(t.Context(), "SELECT rolname FROM pg_roles WHERE rolname = $1", a.Credential["username"]).Scan(&name)
	if err != pgx.ErrNoRows {
		t.Errorf("pg_roles after the end: %q, %v", name, err)
	}
	var l wire.Lease
	h.worker.JSON(t, &l, "lease", "show", a.LeaseID)
	if l.State != "ended" || len(l.Receipt) == 0 || string(l.Receipt) == "null" {
		t.Errorf("the ended lease: state %s, receipt %s", l.State, l.Receipt)
	}
	h.worker.Refused(t, 3, "task_ended", "request", "orders/readonly", "--task", end.Task.ID)
}

func (h *house) spineWhohas(t *testing.T, a wire.AccessAnswer) {
	var w map[string]any
	h.operator.JSON(t, &w, "whohas", a.Credential["username"])
	want := map[string]any{"lease_id": a.LeaseID, "principal": "workload:billing", "task_id": a.TaskID, "decision_id": a.DecisionID, "state": "ended"}
	for k, v := range want {
		if w[k] != v {
			t.Errorf("whohas: %s is %v, want %v", k, w[k], v)
		}
	}
	if list, ok := w["approvals"].([]any); !ok || len(list) != 0 {
		t.Errorf("whohas: approvals is %v", w["approvals"])
	}
	h.operator.Refused(t, 1, "", "whohas", "mayfly_nobody")
}

func (h *house) spineAudit(t *testing.T) {
	export := h.operator.Must(t, "audit", "export")
	file := filepath.Join(h.dir, "ledger.jsonl")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// No broker is asked: there is none in this environment.
	offline := harness.NewCLI(t, map[string]string{"MAYFLY_ADDR": "127.0.0.1:1", "MAYFLY_HOME": filepath.Join(h.dir, "offline")})
	write(export)
	offline.Must(t, "audit", "verify", file)

	lines := strings.SplitAfter(strings.TrimRight(export, "\n")+"\n", "\n")
	at := slices.IndexFunc(lines, func(l string) bool { return strings.Contains(l, "workload:billing") })
	if at < 1 {
		t.Fatal("the export does not name the workload")
	}
	tampered := map[string]string{
		"a name changed":  strings.Join(slices.Concat(lines[:at], []string{strings.Replace(lines[at], "workload:billing", "workload:drilling", 1)}, lines[at+1:]), ""),
		"a line dropped":  strings.Join(slices.Concat(lines[:at], lines[at+1:]), ""),
		"a line doubled":  strings.Join(slices.Concat(lines[:at+1], lines[at:]), ""),
		"two swapped":     strings.Join(slices.Concat(lines[:at-1], []string{lines[at], lines[at-1]}, lines[at+1:]), ""),
		"the end cut off": strings.Join(lines[:len(lines)-3], ""),
		"empty":           "",
	}
	for what, text := range tampered {
		write(text)
		if r := offline.Run(t, "audit", "verify", file); r.Code != 1 {
			t.Errorf("%s: audit verify ends with %d\n%s%s", what, r.Code, r.Stdout, r.Stderr)
		}
	}
	h.operator.Must(t, "audit", "verify")
}
