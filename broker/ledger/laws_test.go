package ledger_test

import (
	"testing"

	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/scope"
)

// TestLaw1LeaseIsNamedBeforeAnythingElse: whoever finds a name on a target finds
// its lease, from the commit that opened it until long after its end.
func TestLaw1LeaseIsNamedBeforeAnythingElse(t *testing.T) {
	b := newBook(t)
	b.ok(app, b.open(app, "db/rw", "a", ""))
	named := func(when string) {
		t.Helper()
		if l, ok := b.q().LeaseNamed("acc-a"); !ok || l.ID != id(ledger.PrefixLease, "a") {
			t.Errorf("%s the name is unknown", when)
		}
	}
	named("once open")
	b.refused(ledger.CodeExists, other, b.open(other, "db/rw", "b", "", func(c *ledger.OpenLease) { c.Lease.Name = "acc-a" }))
	b.ok(app, &ledger.RemintLease{ID: id(ledger.PrefixLease, "a"), Generation: 2, Name: "serial-2", MintDeadlineMS: b.now + 15_000})
	named("after a mint under a second name")
	b.refused(ledger.CodeExists, other, b.open(other, "db/rw", "b", "", func(c *ledger.OpenLease) { c.Lease.Name = "serial-2" }))
	b.ok("", &ledger.EndLeases{IDs: []string{id(ledger.PrefixLease, "a")}, Reason: ledger.EndRevoked})
	named("while it ends")
	b.now += 60_000
	b.ok("", &ledger.RecordWithdrawals{Items: []ledger.Withdrawal{{LeaseID: id(ledger.PrefixLease, "a"), LookedMS: b.now, Receipt: rawJSON(`{}`)}}})
	b.now += 10 * ledger.IdempotencyMS
	b.ok("", &ledger.Sweep{Max: ledger.MaxSweepBatch})
	named("days after its end")
}

// TestLaw2OnlyALookAfterTheMintDeadlineEndsALease: before it, a mint may still
// be in flight (HAZARDS 8).
func TestLaw2OnlyALookAfterTheMintDeadlineEndsALease(t *testing.T) {
	b := newBook(t)
	b.ok(app, b.open(app, "db/rw", "a", ""))
	lid := id(ledger.PrefixLease, "a")
	// A second mint moves the deadline, never back.
	b.ok(app, &ledger.RemintLease{ID: lid, Generation: 2, Name: "acc-a", MintDeadlineMS: b.now + 20_000})
	b.ok(app, &ledger.RemintLease{ID: lid, Generation: 3, Name: "acc-a", MintDeadlineMS: b.now + 1})
	b.ok("", &ledger.EndLeases{IDs: []string{lid}, Reason: ledger.EndRevoked})
	last := b.now + 20_000 + ledger.WithdrawMarginMS
	for _, looked := range []int64{b.now, last - 1} {
		b.ok("", &ledger.RecordWithdrawals{Items: []ledger.Withdrawal{{LeaseID: lid, LookedMS: looked, Receipt: rawJSON(`{}`)}}})
		if l := b.lease("a"); l.State != ledger.LeaseEnding {
			t.Fatalf("a look %d ms before the last possible mint ends the lease", last-looked)
		}
	}
	var next int64
	b.q().Endings("db", func(e ledger.Ending) bool { next = e.NotBeforeMS; return true })
	if next != last {
		t.Errorf("the next look is due at %d, wanted %d", next, last)
	}
	b.ok("", &ledger.RecordWithdrawals{Items: []ledger.Withdrawal{{LeaseID: lid, LookedMS: last, Receipt: rawJSON(`{"proof":"absent"}`)}}})
	if l := b.lease("a"); l.State != ledger.LeaseEnded || string(l.End.Receipt) != `{"proof":"absent"}` {
		t.Errorf("the lease is %+v", l)
	}
}

// TestLaw3BoundsOfALease: scope and time only narrow, whatever the proposer says.
func TestLaw3BoundsOfALease(t *testing.T) {
	for name, c := range map[string]struct {
		code   string
		change func(*book, *ledger.OpenLease)
	}{
		"within":               {ledger.CodeOK, func(*book, *ledger.OpenLease) {}},
		"wider than the role":  {ledger.CodeNarrow, func(_ *book, c *ledger.OpenLease) { c.Lease.Grant.Scope[0].Actions = []string{"read", "drop"} }},
		"no scope at all":      {ledger.CodeNarrow, func(_ *book, c *ledger.OpenLease) { c.Lease.Grant.Scope = nil }},
		"an empty scope":       {ledger.CodeNarrow, func(_ *book, c *ledger.OpenLease) { c.Lease.Grant.Scope = scope.Scope{} }},
		"another type":         {ledger.CodeNarrow, func(_ *book, c *ledger.OpenLease) { c.Lease.Grant.Scope[0].Type = "database" }},
		"ends before it opens": {ledger.CodeTTL, func(b *book, c *ledger.OpenLease) { c.Lease.ExpiresMS = b.now }},
		"expiry past hard end": {ledger.CodeTTL, func(_ *book, c *ledger.OpenLease) { c.Lease.ExpiresMS = c.Lease.NotAfterMS + 1 }},
		"hard end past role": {ledger.CodeTTL, func(b *book, c *ledger.OpenLease) {
			c.Lease.NotAfterMS = b.now + 600_001
			c.ImplicitTask.DeadlineMS = c.Lease.NotAfterMS
		}},
		"hard end past task":           {ledger.CodeTTL, func(_ *book, c *ledger.OpenLease) { c.ImplicitTask.DeadlineMS = c.Lease.NotAfterMS - 1 }},
		"wider than the implicit task": {ledger.CodeNarrow, func(_ *book, c *ledger.OpenLease) { c.ImplicitTask.Scope = scopeWrite }},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBook(t)
			b.refused(c.code, app, b.open(app, "db/rw", "a", "", func(o *ledger.OpenLease) {
				o.Lease.Grant.Scope = scope.Scope{{Type: "memory", Actions: []string{"read"}}}
				c.change(b, o)
			}))
		})
	}
}

// TestLaw3ChildTaskInheritsAndNarrows.
func TestLaw3ChildTaskInheritsAndNarrows(t *testing.T) {
	b := newBook(t)
	top := b.start(app, "t1", "", func(x *ledger.Task) { x.Scope = scopeRead })
	child := b.start(app, "t2", top)
	got, _ := b.q().Task(child)
	if scope.Covers(scopeRead, got.Scope) != nil || len(got.Scope) == 0 {
		t.Errorf("a child that names no scope has %s", got.Scope)
	}
	grandchild := b.start(app, "t3", child)
	for _, task := range []string{child, grandchild} {
		b.refused(ledger.CodeNarrow, app, b.open(app, "db/rw", "a", task, func(c *ledger.OpenLease) { c.Lease.Grant.Scope = scopeBoth }))
	}
	bad := func(code string, change func(*ledger.Task)) {
		t.Helper()
		x := ledger.Task{ID: id(ledger.PrefixTask, "tx"), Principal: app, Parent: child, DeadlineMS: b.now + 600_000}
		change(&x)
		b.refused(code, app, &ledger.StartTask{Task: x})
	}
	bad(ledger.CodeNarrow, func(x *ledger.Task) { x.Scope = scopeBoth })
	bad(ledger.CodeTTL, func(x *ledger.Task) { x.DeadlineMS++ })
}

// TestLaw3DepthOfTasksIsBounded.
func TestLaw3DepthOfTasksIsBounded(t *testing.T) {
	b := newBook(t)
	parent := ""
	for i := range ledger.MaxTaskDepth + 1 {
		parent = b.start(app, "t"+string("abcdefghjkmn"[i]), parent)
	}
	b.refused(ledger.CodeTaskTree, app, &ledger.StartTask{Task: ledger.Task{ID: id(ledger.PrefixTask, "tz"), Principal: app, Parent: parent, DeadlineMS: b.now + 1000}})
	if res := b.do(app, b.open(app, "db/rw", "a", parent)); !res.OK() {
		t.Errorf("a lease in the deepest task: %s %s", res.Code, res.Detail)
	}
}

// TestLaw3NarrowedRoleIsNotMintedAgain: found by the simulation. A lease that is
// wider than its role has become is neither minted again nor prolonged.
func TestLaw3NarrowedRoleIsNotMintedAgain(t *testing.T) {
	b := newBook(t)
	b.ok(app, b.open(app, "db/rw", "a", "", func(c *ledger.OpenLease) {
		c.Lease.Grant.Scope = scopeBoth
		c.Lease.ExpiresMS -= 1000
	}))
	b.put("Role", "db/rw", `{"scope":[{"type":"memory","actions":["read"]}],"ttl":{"default":"1m","max":"10m"}}`)
	lid := id(ledger.PrefixLease, "a")
	b.refused(ledger.CodeNarrow, app, &ledger.RemintLease{ID: lid, Generation: 2, Name: "acc-a", MintDeadlineMS: b.now})
	b.refused(ledger.CodeNarrow, app, &ledger.ExtendLease{ID: lid, ExpiresMS: b.now + 60_000, Read: ledger.Read{PolicyEpoch: b.q().PolicyEpoch()}})
}

// TestLaw4ApprovalFloorStandsInApply: a leader that decides that no approval is
// needed is refused by every replica (HAZARDS 1), also for a lease that is older
// than the floor.
func TestLaw4ApprovalFloorStandsInApply(t *testing.T) {
	b := newBook(t)
	b.refused(ledger.CodeApprovalRequired, app, b.open(app, "db/priv", "a", ""))
	task := b.start(app, "t1", "")
	b.refused(ledger.CodeApprovalRequired, app, b.open(app, "db/priv", "a", task))

	b.ok(app, b.open(app, "db/rw", "b", task, func(c *ledger.OpenLease) { c.Lease.ExpiresMS -= 1000 }))
	b.put("Role", "db/rw", `{"scope":[{"type":"memory","actions":["read","write"]}],"ttl":{"default":"1m","max":"10m"},"approvals":[{"group":"dba","count":1}]}`)
	lid := id(ledger.PrefixLease, "b")
	b.refused(ledger.CodeApprovalRequired, app, &ledger.RemintLease{ID: lid, Generation: 2, Name: "acc-b", MintDeadlineMS: b.now})
	b.refused(ledger.CodeApprovalRequired, app, &ledger.ExtendLease{ID: lid, ExpiresMS: b.now + 60_000, Read: ledger.Read{PolicyEpoch: b.q().PolicyEpoch()}})
	b.ok("", &ledger.EndLeases{IDs: []string{lid}, Reason: ledger.EndRevoked})
}

// TestCapsAreLiveAndDefaulted: a role without caps has the defaults, which a
// crash loop meets long before 84,000 accounts.
func TestCapsAreLiveAndDefaulted(t *testing.T) {
	b := newBook(t)
	names := "0123456789abcdefghjkmnpqrstvwxyz"
	at := func(i int) string { return string([]byte{names[i/1024%32], names[i/32%32], names[i%32]}) }
	opened := 0
	for i := range 2 * ledger.DefaultPerPrincipal {
		if i%500 == 499 {
			b.now += 60_000 // the rate is not what is tested here
		}
		res := b.do(app, b.open(app, "db/rw", at(i), "", func(c *ledger.OpenLease) {
			c.Lease.ExpiresMS, c.Lease.NotAfterMS, c.ImplicitTask.DeadlineMS = b.now+600_000, b.now+600_000, b.now+600_000
		}))
		if !res.OK() {
			if res.Code != ledger.CodeCapRole {
				t.Fatal(res)
			}
			break
		}
		opened++
	}
	if opened != ledger.DefaultPerPrincipal {
		t.Errorf("%d leases were opened, wanted %d", opened, ledger.DefaultPerPrincipal)
	}
	if res := b.do(other, b.open(other, "db/rw", "zzzz", "")); !res.OK() {
		t.Errorf("another principal is locked out: %s", res.Code)
	}
}
