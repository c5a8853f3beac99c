package ledger_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/mayfly-broker/mayfly/broker/audit/tree"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/ledger/ledgertest"
)

// names that random commands pick from: few, so that they meet.
var (
	someNames      = []string{"a", "b", "c", "d", "e"}
	somePrincipals = []string{app, other, admin, "agent:x", ""}
	someRoles      = []string{"db/rw", "db/few", "db/priv", "db/none", "other/rw"}
	someKinds      = []string{"Principal", "Target", "Zone", "Role", "Policy", "Group", "Nonsense"}
)

// randomCommand draws a command that often fits the state.
func randomCommand(t *rapid.T, b *book) (ledger.Header, ledger.Body) {
	pick := func(label string, from ...string) string { return rapid.SampledFrom(from).Draw(t, label) }
	name := func(prefix, label string) string { return id(prefix, pick(label, someNames...)) }
	actor := pick("actor", somePrincipals...)
	b.now += rapid.SampledFrom([]int64{0, 0, 1, 500, 20_000, -3_000}).Draw(t, "pass")
	h := b.header(actor)
	if rapid.IntRange(0, 3).Draw(t, "idem") == 0 {
		h.Idem = &ledger.Idem{Key: pick("key", "k1", "k2", ""), Hash: pick("hash", "h1", "h2")}
	}
	h.DecisionID = name(ledger.PrefixDecision, "decision")
	until := b.now + rapid.SampledFrom([]int64{-1, 1, 5_000, 60_000, 400_000}).Draw(t, "until")
	epoch := ledger.Read{PolicyEpoch: b.q().PolicyEpoch()}
	switch rapid.IntRange(0, 37).Draw(t, "type") {
	case 28, 29, 30, 31, 32, 33, 34, 35, 36, 37:
		return h, randomRotation(t, b, pick, until)
	case 22, 23, 24, 25: // what fits a lease that is there
		l, ok := b.q().Lease(name(ledger.PrefixLease, "lease"))
		if !ok {
			return h, &ledger.Sweep{}
		}
		h.Actor.Principal = l.Grant.Principal
		if rapid.Bool().Draw(t, "remint") {
			return h, &ledger.RemintLease{ID: l.ID, Generation: l.Generation + 1, Name: l.Name, MintDeadlineMS: until}
		}
		return h, &ledger.ExtendLease{ID: l.ID, ExpiresMS: l.NotAfterMS, Read: epoch}
	case 0, 1, 2, 3:
		return h, randomOpen(t, b, actor, h.DecisionID, until)
	case 4:
		return h, &ledger.RemintLease{ID: name(ledger.PrefixLease, "lease"), Generation: uint64(rapid.IntRange(1, 3).Draw(t, "gen")), Name: "acc-" + pick("acc", someNames...), MintDeadlineMS: until}
	case 5:
		return h, &ledger.ExtendLease{ID: name(ledger.PrefixLease, "lease"), ExpiresMS: until, Read: epoch}
	case 6:
		return h, &ledger.EndLeases{IDs: []string{name(ledger.PrefixLease, "lease"), name(ledger.PrefixLease, "lease2")}, Reason: pick("reason", ledger.EndExpired, ledger.EndRevoked, ledger.EndDone, ledger.EndMintFailed, ledger.EndContained, "bored")}
	case 7, 8:
		w := ledger.Withdrawal{LeaseID: name(ledger.PrefixLease, "lease"), LookedMS: until, Receipt: rawJSON(`{"proof":"absent"}`), Problem: pick("problem", "", "", "stuck")}
		return h, &ledger.RecordWithdrawals{Items: []ledger.Withdrawal{w}}
	case 9:
		return h, &ledger.ForceEnd{IDs: []string{name(ledger.PrefixLease, "lease")}, Reason: pick("why", "gone", "")}
	case 10, 11:
		task := ledger.Task{ID: name(ledger.PrefixTask, "task"), Name: pick("taskname", "", "n1", "n2"), Principal: pick("worker", somePrincipals...), DeadlineMS: until, LapseMS: rapid.SampledFrom([]int64{0, 0, 8_000, -1}).Draw(t, "lapse")}
		if rapid.Bool().Draw(t, "child") {
			task.Parent = name(ledger.PrefixTask, "parent")
		}
		return h, &ledger.StartTask{Task: task}
	case 12:
		return h, &ledger.HeartbeatTask{ID: name(ledger.PrefixTask, "task")}
	case 13:
		return h, &ledger.EndTask{ID: name(ledger.PrefixTask, "task"), Reason: pick("reason", ledger.EndDone, ledger.EndDeadline, ledger.EndLapsed, "bored")}
	case 14:
		return h, &ledger.Sweep{Max: rapid.IntRange(-1, 5).Draw(t, "max")}
	default:
		return h, randomOther(t, b, pick, until)
	}
}

func randomOpen(t *rapid.T, b *book, actor, decision string, until int64) ledger.Body {
	role := rapid.SampledFrom(someRoles[:3]).Draw(t, "role")
	if _, ok := b.q().Object("Role", role); !ok {
		return &ledger.Sweep{}
	}
	task := ""
	if rapid.Bool().Draw(t, "intask") {
		task = id(ledger.PrefixTask, rapid.SampledFrom(someNames).Draw(t, "task"))
	}
	return b.open(actor, role, rapid.SampledFrom(someNames).Draw(t, "lease"), task, func(c *ledger.OpenLease) {
		c.Lease.Grant.DecisionID = decision
		c.Lease.ExpiresMS, c.Lease.NotAfterMS = until-rapid.SampledFrom([]int64{0, 500}).Draw(t, "shorter"), until
		if c.ImplicitTask != nil {
			c.ImplicitTask.ID = id(ledger.PrefixTask, rapid.SampledFrom(someNames).Draw(t, "implicit"))
			c.Lease.Grant.TaskID = c.ImplicitTask.ID
			c.ImplicitTask.DeadlineMS = until
		}
		if rapid.Bool().Draw(t, "instance") {
			instance("i1")(c)
		}
	})
}

func randomOther(t *rapid.T, b *book, pick func(string, ...string) string, until int64) ledger.Body {
	hash := fmt.Sprintf("%064d", rapid.IntRange(1, 3).Draw(t, "hash64"))
	principal := pick("principal", somePrincipals...)
	thumb := pick("thumb", "k1", "k2")
	key := ledger.Key{Thumbprint: thumb, Principal: principal, Use: pick("use", ledger.UseSession, ledger.UseApprove, "eat"), JWK: rawJSON(`{}`)}
	what := pick("kind", someKinds...)
	named := pick("name", app, other, "db", "eu", "us")
	switch rapid.IntRange(0, 12).Draw(t, "other") {
	case 0:
		return &ledger.AddKey{Key: key}
	case 1:
		return &ledger.RemoveKey{Principal: principal, Thumbprint: thumb}
	case 2:
		return &ledger.IssueEnrolment{TokenHash: hash, Principal: principal, ExpiresMS: until}
	case 3, 4:
		cmd := &ledger.OpenSession{Session: ledger.Session{ID: id(ledger.PrefixSession, pick("session", someNames...)), TokenHash: hash, Principal: principal, Thumbprint: thumb, KeyThumbprint: thumb, ExpiresMS: until}}
		if rapid.Bool().Draw(t, "enrols") {
			cmd.EnrolmentHash, cmd.NewKey = hash, &key
		}
		if rapid.Bool().Draw(t, "once") {
			cmd.OneShot, cmd.OneShotUntilMS = "jti", until
		}
		return cmd
	case 5:
		return &ledger.EndSession{ID: id(ledger.PrefixSession, pick("session", someNames...))}
	case 6:
		return &ledger.Freeze{Kind: what, Name: named, Reason: pick("why", "odd", "")}
	case 7:
		for _, f := range b.q().Frozen() {
			what, named = f.Kind, f.Name
		}
		return &ledger.Release{Kind: what, Name: named}
	case 8:
		return &ledger.IssueJoinToken{TokenHash: hash, ExpiresMS: until}
	case 9:
		return &ledger.AdmitNode{TokenHash: hash, NodeID: "n2"}
	case 10:
		return &ledger.RecordDecision{Action: "request", Resource: "Role/db/rw", Code: "denied", Repeats: 2}
	case 11:
		return &ledger.RecordDelivery{Items: []ledger.Delivery{{Sink: pick("sink", "chat", "other"), Seq: uint64(rapid.IntRange(0, 9).Draw(t, "told")), DueMS: until}}}
	default:
		return randomChange(t, b, pick)
	}
}

func randomChange(t *rapid.T, b *book, pick func(string, ...string) string) ledger.Body {
	chat := ledger.ObjectChange{Kind: "Sink", Name: "chat", Spec: rawJSON(`{"type":"webhook","format":"slack","url":"https://hooks.example/x"}`)}
	some := rapid.SampledFrom(append(append(firstObjects(), chat), someAccounts...)).Draw(t, "object")
	some.AnyVersion = rapid.Bool().Draw(t, "any")
	some.Version = uint64(rapid.IntRange(0, 3).Draw(t, "version"))
	some.Delete = rapid.Bool().Draw(t, "delete")
	if some.Delete {
		some.Spec = nil
	} else if rapid.IntRange(0, 3).Draw(t, "bad") == 0 {
		some.Spec = rawJSON(pick("spec", `{"unknown":1}`, `[]`, `{"type":"memory","zone":"nowhere"}`))
	}
	return &ledger.ChangeObjects{Changes: []ledger.ObjectChange{some}}
}

// someAccounts meet: two hold one name, one has a target's name.
var someAccounts = []ledger.ObjectChange{
	object("Target", "db", `{"type":"memory","zone":"eu","rotation":{"cron":"0 0 * * *"}}`),
	object("Account", "db", `{"target":"db","usernames":["x","y"],"grace":"10s"}`),
	object("Account", "one", `{"target":"db","usernames":["one"],"rotate_after_use":true}`),
	object("Account", "two", `{"target":"db","usernames":["one"]}`),
	object("Cluster", "barrier", `{"rotation":{"cron":"0 0 * * 0"}}`),
	object("Role", "db/one", `{"account":"one","scope":[{"type":"account","identifier":"one","actions":["use"]}],"ttl":{"default":"1m","max":"10m"}}`),
}

// randomRotation draws a step of a rotation that often fits.
func randomRotation(t *rapid.T, b *book, pick func(string, ...string) string, until int64) ledger.Body {
	subject := pick("subject", "Account/db", "Account/db", "Account/one", "Account/one", "Account/two", "Target/db", "Role/db/rw", "Cluster/barrier", "Cluster/certificates")
	r, ok := b.q().Rotation(subject)
	if !ok && rapid.IntRange(0, 3).Draw(t, "make") > 0 {
		some := rapid.SampledFrom(someAccounts).Draw(t, "account")
		some.AnyVersion = true
		return &ledger.ChangeObjects{Changes: []ledger.ObjectChange{some}}
	}
	fresh := id(ledger.PrefixRotation, pick("rotation", someNames...))
	if r.InFlight() && rapid.Bool().Draw(t, "finish") {
		return &ledger.FinishRotation{Subject: subject, ID: r.ID, DueMS: until}
	}
	kind, name := ledger.SplitSubject(subject)
	o, _ := b.q().Object(kind, name)
	if strings.HasPrefix(subject, "Cluster/") && rapid.Bool().Draw(t, "turn") {
		turn := &ledger.TurnCluster{Subject: subject, ID: fresh, Reason: ledger.RotateDemanded, Turn: r.Turns + 1, DueMS: until}
		if subject == ledger.SubjectBarrier {
			turn.Number = r.Number + rapid.Uint64Range(0, 3).Draw(t, "number")
		}
		return turn
	}
	switch rapid.IntRange(0, 7).Draw(t, "step") {
	case 0:
		return &ledger.WantRotation{Subject: subject, Reason: pick("want", ledger.RotateDemanded, ledger.RotateUsed, ledger.RotateWithdrawn, "bored"), Urgent: rapid.Bool().Draw(t, "urgent")}
	case 1:
		return &ledger.ScheduleRotation{Subject: subject, Version: o.Version, DueMS: until}
	case 2:
		return &ledger.FailRotation{Subject: subject, ID: pick("failed", "", r.ID, fresh), Problem: "away", RetryMS: until, Undone: rapid.Bool().Draw(t, "undone")}
	case 3, 4:
		return &ledger.FinishRotation{Subject: subject, ID: r.ID, DueMS: until}
	case 5:
		return &ledger.TurnKeys{Subject: subject, ID: fresh, Step: ledger.KeyPublished, Fields: []string{"key"}}
	default:
		return &ledger.BeginRotation{Subject: subject, ID: fresh, Reason: ledger.RotateScheduled, Slot: rapid.SampledFrom([]int{0, 0, 1, 1, -1, 2}).Draw(t, "slot")}
	}
}

// secretsOf are what travels beside a random command.
func secretsOf(body ledger.Body) []ledger.Secret {
	switch x := body.(type) {
	case *ledger.BeginRotation:
		return []ledger.Secret{{Name: "Rotation/" + x.Subject + "/next", Salt: make([]byte, 16), Value: []byte("next " + x.ID)}}
	case *ledger.TurnCluster:
		if x.Number > 0 {
			return []ledger.Secret{{Name: ledger.BarrierSecret(x.Number), Salt: make([]byte, 16), Value: []byte("key")}}
		}
	}
	return nil
}

// checkRotations: what is in flight has a next secret, what is not has none, and
// each waits under its target once at most.
func checkRotations(t fatal, q ledger.Query) {
	due := map[string]bool{}
	q.DueRotations(1<<60, func(subject, target string) bool {
		if r, ok := q.Rotation(subject); !ok || r.Target != target || due[subject] {
			t.Fatalf("%s on %s is due, and is %+v", subject, target, r)
		}
		due[subject] = true
		return true
	})
	q.Rotations(func(r ledger.Rotation) bool {
		if next := q.NextSecret(r.Subject); (next != nil) != r.InFlight() || r.InFlight() && string(next) != "next "+r.ID || (r.AtMS > 0) != due[r.Subject] {
			t.Fatalf("%+v has the next secret %q, due %t", r, next, due[r.Subject])
		}
		return true
	})
	for _, u := range []string{"x", "y", "one"} {
		if a := q.AccountNamed("db", u); a != "" {
			if _, ok := q.Object("Account", a); !ok {
				t.Fatalf("%s is held by %s, which does not exist", u, a)
			}
		}
	}
}

// onlyTheRecord says whether two states differ in nothing but the record of a
// command: clock, size, entry, tree, and where its decision stands.
func onlyTheRecord(before, after *ledgertest.Mem) (diff string) {
	record := func(bucket, key string) bool {
		return bucket == "entry" || bucket == "tree" || bucket == "decision" || bucket == "meta" && (key == "clock" || key == "size")
	}
	after.Each(func(bucket, key string, value []byte) {
		if !record(bucket, key) && !bytes.Equal(before.Get(bucket, []byte(key)), value) {
			diff += fmt.Sprintf("%s/%q is new or changed\n", bucket, key)
		}
	})
	before.Each(func(bucket, key string, _ []byte) {
		if !record(bucket, key) && after.Get(bucket, []byte(key)) == nil {
			diff += fmt.Sprintf("%s/%q is gone\n", bucket, key)
		}
	})
	return diff
}

// TestHazard2ReplicasAgree feeds two replicas the same random commands, one of
// them through a snapshot in the middle. They must be equal to the byte, no
// command may stop them, and a refused one leaves nothing but its record.
func TestHazard2ReplicasAgree(t *testing.T) {
	took := map[string]int{}
	check := func(rt *rapid.T) {
		b := newBook(t)
		twin := b.mem.Clone()
		var clock int64
		n := rapid.IntRange(20, 120).Draw(rt, "commands")
		for i := range n {
			h, body := randomCommand(rt, b)
			raw, err := ledger.Encode(h, body, secretsOf(body)...)
			if err != nil {
				rt.Fatal(err)
			}
			before := b.mem.Clone()
			one, err := ledger.Apply(b.mem, raw)
			if err != nil {
				rt.Fatalf("the node stops at %s %+v: %v", body.Type(), body, err)
			}
			two, err := ledger.Apply(twin, raw)
			if err != nil || fmt.Sprint(one) != fmt.Sprint(two) {
				rt.Fatalf("replicas answer %+v and %+v (%v)", one, two, err)
			}
			if i == n/2 {
				twin = twin.Clone() // a follower takes a snapshot
			}
			if !one.OK() || one.Replayed {
				if diff := onlyTheRecord(before, b.mem); diff != "" {
					rt.Fatalf("%s %+v is refused (%s) and leaves\n%s", body.Type(), body, one.Code, diff)
				}
			} else {
				took[body.Type()]++
			}
			if now := b.q().Clock(); now < clock {
				rt.Fatalf("ledger time goes from %d to %d", clock, now)
			} else {
				clock = now
			}
		}
		if !b.mem.Equal(twin) {
			rt.Fatalf("the replicas differ:\n%s\n\n%s", b.mem.Dump(), twin.Dump())
		}
		checkBook(rt, b)
	}
	rare := []string{"open_lease", "remint_lease", "extend_lease", "end_leases", "record_withdrawals", "start_task", "end_task", "open_session", "change_objects", "freeze", "want_rotation", "begin_rotation", "fail_rotation", "finish_rotation", "turn_cluster"}
	missing := func(typ string) bool { return took[typ] == 0 }
	rapid.Check(t, check)
	for range 4 { // chance may leave one out of a round
		if !testing.Short() && slices.ContainsFunc(rare, missing) {
			rapid.Check(t, check)
		}
	}
	for _, typ := range rare {
		if missing(typ) && !testing.Short() { // twenty short runs may miss one
			t.Errorf("no random %s ever took effect: the test tries too little", typ)
		}
	}
}

// fatal is what a test and a rapid check have in common.
type fatal interface {
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// checkBook checks what must hold in every state: the tree's root is that of its
// entries, and indexes and counters say what the records say.
func checkBook(t fatal, b *book) {
	q := b.q()
	var leaves []tlog.Hash
	for seq := range q.Size() {
		e, ok := q.Entry(seq)
		if !ok {
			t.Fatalf("entry %d is missing", seq)
		}
		leaves = append(leaves, tree.LeafHash(tree.LeafData(e.Outcome(), e.Public)))
	}
	if root, err := tree.Root(q.HashReader(), int64(q.Size())); err != nil || root != merkle(leaves) {
		t.Fatalf("the root is not the entries' (%v)", err)
	}
	live, open := map[string]int{}, map[string]bool{}
	q.Leases("", func(l ledger.Lease) bool {
		if l.State == ledger.LeaseOpen {
			live[l.Grant.Principal+" "+l.Grant.Role]++
			open[l.ID] = true
			if task, ok := q.Task(l.Grant.TaskID); !ok || l.NotAfterMS > task.DeadlineMS || l.ExpiresMS > l.NotAfterMS {
				t.Fatalf("lease %+v exceeds its task %+v", l, task)
			}
		}
		return true
	})
	for _, p := range somePrincipals {
		for _, r := range someRoles {
			if n := q.LiveCount(p, r); n != live[p+" "+r] {
				t.Fatalf("%s counts %d leases on %s; there are %d", p, n, r, live[p+" "+r])
			}
		}
	}
	due, _ := q.DueLeases(1<<60, 1<<20)
	for _, id := range due {
		if !open[id] {
			t.Fatalf("%s is due and not open", id)
		}
		delete(open, id)
	}
	if len(open) > 0 {
		t.Fatalf("open leases that never come due: %v", open)
	}
	checkRotations(t, q)
	if err := q.Err(); err != nil {
		t.Fatal(err)
	}
}

// merkle is RFC 6962 §2.1, written from the text.
func merkle(leaves []tlog.Hash) tlog.Hash {
	if len(leaves) == 1 {
		return leaves[0]
	}
	k := 1
	for k*2 < len(leaves) {
		k *= 2
	}
	return tlog.NodeHash(merkle(leaves[:k]), merkle(leaves[k:]))
}

// TestRefusedCommandsLeaveOnlyTheirRecord: every type can be refused, if by
// nothing else then by an idempotency key that belongs to another request.
func TestRefusedCommandsLeaveOnlyTheirRecord(t *testing.T) {
	for typ, body := range samples() {
		t.Run(typ, func(t *testing.T) {
			b := newBook(t)
			h := b.header(app)
			h.Idem = &ledger.Idem{Key: "k", Hash: "first"}
			if res := b.apply(h, &ledger.Sweep{Max: 1}); !res.OK() {
				t.Fatal(res)
			}
			h.Idem = &ledger.Idem{Key: "k", Hash: "second"}
			b.now += 1000
			h.AtMS = b.now
			before := b.mem.Clone()
			if res := b.apply(h, body); res.Code != ledger.CodeIdemMismatch {
				t.Errorf("code %s", res.Code)
			}
			if diff := onlyTheRecord(before, b.mem); diff != "" {
				t.Error(diff)
			}
			if q := b.q(); q.Clock() != b.now || q.Size() != 3 {
				t.Errorf("clock %d, size %d", q.Clock(), q.Size())
			}
			// The same without the key: whatever it comes to, it does not stop the node.
			h.Idem = nil
			before = b.mem.Clone()
			if res := b.apply(h, body); !res.OK() {
				if diff := onlyTheRecord(before, b.mem); diff != "" {
					t.Errorf("refused as %s, and leaves %s", res.Code, diff)
				}
			}
		})
	}
}

// TestGenesisIsFirstAndOnce.
func TestGenesisIsFirstAndOnce(t *testing.T) {
	b := &book{t: t, mem: &ledgertest.Mem{}, now: 1}
	b.refused(ledger.CodeInvalid, app, &ledger.Sweep{})
	b = newBook(t)
	b.refused(ledger.CodeNotGenesis, "", &ledger.Genesis{Cluster: "other"})
}
