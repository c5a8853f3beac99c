package ledger_test

import (
	"encoding/json"
	"flag"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/ledger/ledgertest"
	"github.com/mayfly-broker/mayfly/scope"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files and transcripts under testdata")

// book is a ledger in memory with a clock that the test moves.
type book struct {
	t   *testing.T
	mem *ledgertest.Mem
	now int64
}

// id returns prefix and 26 characters that end in name.
func id(prefix, name string) string {
	return prefix + strings.Repeat("0", ledger.BareIDLen-len(name)) + name
}

func rawJSON(s string) json.RawMessage { return json.RawMessage(s) }

var (
	scopeRead  = scope.Scope{{Type: "memory", Actions: []string{"read"}}}
	scopeWrite = scope.Scope{{Type: "memory", Actions: []string{"write"}}}
	scopeBoth  = scope.Scope{{Type: "memory", Actions: []string{"read", "write"}}}
)

const (
	app   = "workload:app"
	other = "workload:other"
	admin = "human:ann"
)

// firstObjects is the small world in which most tests play.
func firstObjects() []ledger.ObjectChange {
	obj := func(kind, name, spec string) ledger.ObjectChange {
		return ledger.ObjectChange{Kind: kind, Name: name, Spec: rawJSON(spec)}
	}
	both := `[{"type":"memory","actions":["read","write"]}]`
	return []ledger.ObjectChange{
		obj("Zone", "eu", `{}`),
		obj("Principal", admin, `{}`),
		obj("Principal", app, `{}`),
		obj("Principal", other, `{}`),
		obj("Target", "db", `{"type":"memory","zone":"eu"}`),
		obj("Role", "db/rw", `{"scope":`+both+`,"ttl":{"default":"1m","max":"10m"}}`),
		obj("Role", "db/few", `{"scope":`+both+`,"ttl":{"default":"1m","max":"10m"},"caps":{"per_instance":1,"per_principal":2,"mints_per_minute":3}}`),
		obj("Role", "db/priv", `{"scope":`+both+`,"ttl":{"default":"1m","max":"10m"},"approvals":[{"group":"dba","count":1}]}`),
	}
}

// newBook returns a ledger after genesis, at ms 1,000,000.
func newBook(t *testing.T) *book {
	t.Helper()
	b := &book{t: t, mem: &ledgertest.Mem{}, now: 1_000_000}
	b.ok("", &ledger.Genesis{Cluster: "c", Incarnation: 1, Objects: firstObjects()})
	return b
}

func (b *book) header(actor string) ledger.Header {
	return ledger.Header{AtMS: b.now, Node: "n1", Term: 1, Actor: ledger.Actor{Principal: actor}}
}

// apply commits a command with a header of one's own.
func (b *book) apply(h ledger.Header, body ledger.Body, secrets ...ledger.Secret) ledger.Result {
	b.t.Helper()
	raw, err := ledger.Encode(h, body, secrets...)
	if err != nil {
		b.t.Fatalf("encode %s: %v", body.Type(), err)
	}
	res, err := ledger.Apply(b.mem, raw)
	if err != nil {
		b.t.Fatalf("the node would stop at %s: %v", body.Type(), err)
	}
	return res
}

func (b *book) do(actor string, body ledger.Body) ledger.Result {
	b.t.Helper()
	return b.apply(b.header(actor), body)
}

func (b *book) ok(actor string, body ledger.Body) ledger.Result {
	b.t.Helper()
	res := b.do(actor, body)
	if !res.OK() {
		b.t.Fatalf("%s by %q: %s %s", body.Type(), actor, res.Code, res.Detail)
	}
	return res
}

// refused commits a command that must be refused with a code.
func (b *book) refused(code, actor string, body ledger.Body) {
	b.t.Helper()
	if res := b.do(actor, body); res.Code != code {
		b.t.Errorf("%s by %q: %s (%s), wanted %s", body.Type(), actor, res.Code, res.Detail, code)
	}
}

func (b *book) q() ledger.Query { return ledger.NewQuery(b.mem) }

// version is an object's present version.
func (b *book) version(kind, name string) uint64 {
	o, ok := b.q().Object(kind, name)
	if !ok {
		b.t.Fatalf("no %s %s", kind, name)
	}
	return o.Version
}

// open composes the command that opens a lease named name, in an implicit task
// of its own unless task is given; change may alter it.
func (b *book) open(actor, role, name, task string, change ...func(*ledger.OpenLease)) *ledger.OpenLease {
	end := b.now + 60_000
	cmd := &ledger.OpenLease{
		Lease: ledger.Lease{
			ID: id(ledger.PrefixLease, name), Target: "db", Name: "acc-" + name, ExpiresMS: end, NotAfterMS: end, MintDeadlineMS: b.now + 15_000, Revocable: true,
			Grant: ledger.Grant{ID: id(ledger.PrefixGrant, name), TaskID: task, Principal: actor, Role: role, RoleVersion: b.version("Role", role), Scope: scopeRead, BoundedBy: "role"},
		},
		Read: ledger.Read{PolicyEpoch: b.q().PolicyEpoch(), TargetVersion: b.version("Target", "db")},
	}
	if task == "" {
		tid := id(ledger.PrefixTask, "t"+name)
		cmd.Lease.Grant.TaskID = tid
		cmd.ImplicitTask = &ledger.Task{ID: tid, Principal: actor, Role: role, Implicit: true, DeadlineMS: end}
	}
	for _, f := range change {
		f(cmd)
	}
	return cmd
}

// instance makes the lease one of an instance of its principal.
func instance(name string) func(*ledger.OpenLease) {
	return func(c *ledger.OpenLease) {
		c.Lease.Grant.Instance = name
		if c.ImplicitTask != nil {
			c.ImplicitTask.Instance = name
		}
	}
}

// start opens a task of the actor's.
func (b *book) start(actor, name, parent string, change ...func(*ledger.Task)) string {
	b.t.Helper()
	t := ledger.Task{ID: id(ledger.PrefixTask, name), Name: name, Purpose: "p", Principal: actor, Parent: parent, DeadlineMS: b.now + 600_000}
	for _, f := range change {
		f(&t)
	}
	b.ok(actor, &ledger.StartTask{Task: t})
	return t.ID
}

// put writes one object, whatever its version is.
func (b *book) put(kind, name, spec string) {
	b.t.Helper()
	b.ok(admin, &ledger.ChangeObjects{Changes: []ledger.ObjectChange{{Kind: kind, Name: name, Spec: rawJSON(spec), AnyVersion: true}}})
}

// lease returns a lease that must exist.
func (b *book) lease(name string) ledger.Lease {
	b.t.Helper()
	l, ok := b.q().Lease(id(ledger.PrefixLease, name))
	if !ok {
		b.t.Fatalf("no lease %s", name)
	}
	return l
}
