package ledger_test

import (
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/ledger"
)

// TestHazard20ApplyReChecksEverything: each thing that the decision rested on is
// looked at again when the command is applied. The leader has read a world in
// which the lease was in order; then one thing changes.
func TestHazard20ApplyReChecksEverything(t *testing.T) {
	for name, c := range map[string]struct {
		code   string
		change func(b *book)
	}{
		"nothing":               {ledger.CodeOK, func(*book) {}},
		"a policy":              {ledger.CodeStale, func(b *book) { b.put("Policy", "p", `{"text":""}`) }},
		"the role":              {ledger.CodeStale, func(b *book) { b.put("Role", "db/rw", string(firstObjects()[5].Spec)) }},
		"the target":            {ledger.CodeStale, func(b *book) { b.put("Target", "db", `{"type":"memory","zone":"eu"}`) }},
		"a group":               {ledger.CodeStale, func(b *book) { b.put("Group", "g", `{"members":[]}`) }},
		"principal contained":   {ledger.CodeFrozen, freeze("Principal", app)},
		"target contained":      {ledger.CodeFrozen, freeze("Target", "db")},
		"zone contained":        {ledger.CodeFrozen, freeze("Zone", "eu")},
		"ancestor contained":    {ledger.CodeFrozen, freeze("Principal", admin)},
		"task ended":            {ledger.CodeTaskEnded, end("t3")},
		"parent ended":          {ledger.CodeTaskEnded, end("t2")},
		"grandparent ended":     {ledger.CodeTaskEnded, end("t1")},
		"grandparent lapsed":    {ledger.CodeTaskEnded, func(b *book) { b.now += 30_000 }},
		"past the task's end":   {ledger.CodeTaskEnded, func(b *book) { b.now += 600_000 }},
		"the cap is reached":    {ledger.CodeCapRate, func(b *book) { fillRate(b) }},
		"the name is taken":     {ledger.CodeExists, func(b *book) { take(b, "acc-a") }},
		"the lease is past":     {ledger.CodeTTL, func(b *book) { b.now += 25_000 }},
		"somebody else's doing": {ledger.CodeOK, func(b *book) { b.ok(other, b.open(other, "db/rw", "x", "")) }},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBook(t)
			top := b.start(admin, "t1", "", func(x *ledger.Task) { x.LapseMS = 30_000 })
			mid := ledger.Task{ID: id(ledger.PrefixTask, "t2"), Principal: app, Parent: top, DeadlineMS: b.now + 600_000}
			b.ok(admin, &ledger.StartTask{Task: mid})
			low := b.start(app, "t3", mid.ID)
			cmd := b.open(app, "db/rw", "a", low, func(c *ledger.OpenLease) { c.Lease.ExpiresMS = b.now + 25_000 })
			c.change(b)
			b.refused(c.code, app, cmd)
		})
	}
}

func freeze(kind, name string) func(*book) {
	return func(b *book) { b.ok(admin, &ledger.Freeze{Kind: kind, Name: name, Reason: "odd"}) }
}

func end(task string) func(*book) {
	return func(b *book) {
		b.ok(app, &ledger.EndTask{ID: id(ledger.PrefixTask, task), Reason: ledger.EndDone})
	}
}

func fillRate(b *book) {
	b.ok(app, b.open(app, "db/rw", "f", ""))
	for g := uint64(2); g <= ledger.DefaultMintsPerMinute; g++ {
		b.ok(app, &ledger.RemintLease{ID: id(ledger.PrefixLease, "f"), Generation: g, Name: "acc-f", MintDeadlineMS: b.now})
	}
}

func take(b *book, name string) {
	b.ok(other, b.open(other, "db/rw", "x", "", func(c *ledger.OpenLease) { c.Lease.Name = name }))
}

// TestHazard20RenewalAndRemintReCheckToo.
func TestHazard20RenewalAndRemintReCheckToo(t *testing.T) {
	for name, c := range map[string]struct {
		code   string
		change func(b *book)
	}{
		"nothing":             {ledger.CodeOK, func(*book) {}},
		"principal contained": {ledger.CodeFrozen, freeze("Principal", app)},
		"target contained":    {ledger.CodeFrozen, freeze("Target", "db")},
		"zone contained":      {ledger.CodeFrozen, freeze("Zone", "eu")},
		"task ended":          {ledger.CodeTaskEnded, end("t1")},
		"expired":             {ledger.CodeLeaseEnded, func(b *book) { b.now += 30_000 }},
		"ended": {ledger.CodeLeaseEnded, func(b *book) {
			b.ok("", &ledger.EndLeases{IDs: []string{id(ledger.PrefixLease, "a")}, Reason: ledger.EndRevoked})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBook(t)
			task := b.start(app, "t1", "")
			b.ok(app, b.open(app, "db/rw", "a", task, func(c *ledger.OpenLease) { c.Lease.ExpiresMS = b.now + 30_000 }))
			lid := id(ledger.PrefixLease, "a")
			extend := &ledger.ExtendLease{ID: lid, ExpiresMS: b.now + 50_000, Read: ledger.Read{PolicyEpoch: b.q().PolicyEpoch()}}
			c.change(b)
			b.refused(c.code, app, extend)
			b.refused(c.code, app, &ledger.RemintLease{ID: lid, Generation: 2, Name: "acc-a", MintDeadlineMS: b.now})
		})
	}
	b := newBook(t)
	b.ok(app, b.open(app, "db/rw", "a", ""))
	extend := &ledger.ExtendLease{ID: id(ledger.PrefixLease, "a"), ExpiresMS: b.now + 60_000, Read: ledger.Read{PolicyEpoch: b.q().PolicyEpoch()}}
	b.put("Policy", "p", `{"text":""}`)
	b.refused(ledger.CodeStale, app, extend)
}

// TestHazard20DeletedPrincipalGetsNothing: a session of a principal that has been
// deleted may still be on its way.
func TestHazard20DeletedPrincipalGetsNothing(t *testing.T) {
	b := newBook(t)
	task := b.start(app, "t1", "")
	b.ok(admin, &ledger.ChangeObjects{Changes: []ledger.ObjectChange{{Kind: "Principal", Name: app, Delete: true, AnyVersion: true}}})
	b.refused(ledger.CodeNotFound, app, b.open(app, "db/rw", "a", task))
	b.refused(ledger.CodeNotFound, app, b.open(app, "db/rw", "b", ""))
}

// TestHazard24LedgerTimeNeverDecreases: a leader whose clock is behind revives
// nothing.
func TestHazard24LedgerTimeNeverDecreases(t *testing.T) {
	b := newBook(t)
	b.ok(app, b.open(app, "db/rw", "a", ""))
	b.now += 60_000
	b.ok("", &ledger.Sweep{Max: 1})
	high := b.now
	b.now -= 3_600_000
	b.refused(ledger.CodeLeaseEnded, app, &ledger.RemintLease{ID: id(ledger.PrefixLease, "a"), Generation: 2, Name: "acc-a"})
	if got := b.q().Clock(); got != high {
		t.Errorf("ledger time is %d, was %d", got, high)
	}
	e, _ := b.q().Entry(b.q().Size() - 1)
	if e.TimeMS != high {
		t.Errorf("the entry says %d", e.TimeMS)
	}
	b.ok("", &ledger.EndLeases{IDs: []string{id(ledger.PrefixLease, "a")}, Reason: ledger.EndExpired})
	if l := b.lease("a"); l.End == nil || l.End.SinceMS != high {
		t.Errorf("the lease is %+v", l)
	}
	b.now = -5
	b.ok("", &ledger.Sweep{Max: 1})
}

// TestHazard24WithdrawalDoesNotWaitForTheLedgersClock: ledger time may be ahead
// of the leader's, after a leader that was; what ends is due at once by any clock.
func TestHazard24WithdrawalDoesNotWaitForTheLedgersClock(t *testing.T) {
	b := newBook(t)
	b.ok(app, b.open(app, "db/rw", "a", ""))
	b.now += 59_000
	b.ok("", &ledger.Sweep{Max: 1})
	b.now -= 59_000
	b.ok("", &ledger.EndLeases{IDs: []string{id(ledger.PrefixLease, "a")}, Reason: ledger.EndRevoked})
	due := false
	b.q().Endings("db", func(e ledger.Ending) bool { due = e.NotBeforeMS <= b.now; return true })
	if !due {
		t.Error("the withdrawal waits for the leader's clock to catch up with the ledger's")
	}
}

// TestHazard16NamesAreNeverAdopted: ids are as long as they are made, and a taken
// id or name opens nothing.
func TestHazard16NamesAreNeverAdopted(t *testing.T) {
	b := newBook(t)
	b.ok(app, b.open(app, "db/rw", "a", ""))
	for name, change := range map[string]func(*ledger.OpenLease){
		"the same id":    func(c *ledger.OpenLease) { c.Lease.ID = id(ledger.PrefixLease, "a") },
		"the same name":  func(c *ledger.OpenLease) { c.Lease.Name = "acc-a" },
		"a short id":     func(c *ledger.OpenLease) { c.Lease.ID = "lse_b" },
		"another prefix": func(c *ledger.OpenLease) { c.Lease.ID = id(ledger.PrefixTask, "b") },
		"strange letters": func(c *ledger.OpenLease) {
			c.Lease.ID = ledger.PrefixLease + strings.Repeat("U", ledger.BareIDLen)
		},
		"no name":           func(c *ledger.OpenLease) { c.Lease.Name = "" },
		"the task's id":     func(c *ledger.OpenLease) { c.ImplicitTask.ID = "tsk_x" },
		"another task":      func(c *ledger.OpenLease) { c.Lease.Grant.TaskID = id(ledger.PrefixTask, "zz") },
		"another principal": func(c *ledger.OpenLease) { c.Lease.Grant.Principal = other },
		"another target":    func(c *ledger.OpenLease) { c.Lease.Target = "elsewhere" },
		"another decision":  func(c *ledger.OpenLease) { c.Lease.Grant.DecisionID = "dec_x" },
	} {
		if res := b.do(app, b.open(app, "db/rw", "b", "", change)); res.OK() {
			t.Errorf("%s: a lease was opened", name)
		}
	}
}

// TestHazard17BatchesAreBounded.
func TestHazard17BatchesAreBounded(t *testing.T) {
	b := newBook(t)
	many := make([]string, ledger.MaxEndBatch+1)
	b.refused(ledger.CodeInvalid, "", &ledger.EndLeases{IDs: many, Reason: ledger.EndRevoked})
	b.refused(ledger.CodeInvalid, "", &ledger.EndLeases{Reason: ledger.EndRevoked})
	b.refused(ledger.CodeInvalid, "", &ledger.RecordWithdrawals{Items: make([]ledger.Withdrawal, ledger.MaxEndBatch+1)})
	b.refused(ledger.CodeInvalid, "", &ledger.ForceEnd{IDs: many, Reason: "x"})
	b.refused(ledger.CodeInvalid, admin, &ledger.ChangeObjects{Changes: make([]ledger.ObjectChange, ledger.MaxObjectsPut+1)})
}

// TestSecretThatDoesNotFitIsRefused: it must not stop every node of the cluster.
func TestSecretThatDoesNotFitIsRefused(t *testing.T) {
	b := newBook(t)
	change := func(secrets ...string) *ledger.ChangeObjects {
		return &ledger.ChangeObjects{Changes: []ledger.ObjectChange{{Kind: "Target", Name: "db", Spec: rawJSON(`{"type":"memory"}`), AnyVersion: true, Secrets: secrets}}}
	}
	salt := []byte("0123456789abcdef")
	for name, c := range map[string]struct {
		named  string
		secret ledger.Secret
	}{
		"too large":             {"Target/db/password", ledger.Secret{Name: "Target/db/password", Salt: salt, Value: make([]byte, ledger.MaxSecretBytes+1)}},
		"does not travel":       {"Target/db/password", ledger.Secret{Name: "Target/db/other", Salt: salt, Value: []byte("v")}},
		"another object's name": {"Target/x/password", ledger.Secret{Name: "Target/x/password", Salt: salt, Value: []byte("v")}},
	} {
		if res := b.apply(b.header(admin), change(c.named), c.secret); res.Code != ledger.CodeInvalid {
			t.Errorf("%s: %s %s", name, res.Code, res.Detail)
		}
	}
}

// TestJoinTokenIsNoEnrolment: the two kinds of tokens share a bucket, and neither
// opens the other's door nor stops the node.
func TestJoinTokenIsNoEnrolment(t *testing.T) {
	b := newBook(t)
	hash := strings.Repeat("a", 64)
	b.ok(admin, &ledger.IssueJoinToken{TokenHash: hash, ExpiresMS: b.now + 1000})
	login := &ledger.OpenSession{Session: ledger.Session{ID: id(ledger.PrefixSession, "s"), TokenHash: strings.Repeat("b", 64), Principal: app, ExpiresMS: b.now + 1000},
		EnrolmentHash: "join:" + hash, NewKey: &ledger.Key{Thumbprint: "k", Principal: app, Use: ledger.UseSession, JWK: rawJSON(`{}`)}}
	b.refused(ledger.CodeTokenSpent, app, login)
	b.ok(admin, &ledger.IssueEnrolment{TokenHash: hash, Principal: app, ExpiresMS: b.now + 1000})
	b.refused(ledger.CodeTokenSpent, app, &ledger.AdmitNode{TokenHash: strings.Repeat("c", 64)})
}
