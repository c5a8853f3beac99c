package ledger_test

import (
	"fmt"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/ledger"
)

// write writes and deletes objects of any version.
func (b *book) write(objects ...ledger.ObjectChange) {
	b.t.Helper()
	for i := range objects {
		objects[i].AnyVersion = true
	}
	b.ok(admin, &ledger.ChangeObjects{Changes: objects})
}

func object(kind, name, spec string) ledger.ObjectChange {
	return ledger.ObjectChange{Kind: kind, Name: name, Spec: rawJSON(spec)}
}

// beginTurn seals the next secret of a subject.
func (b *book) beginTurn(subject, name string, slot int) ledger.Result {
	cmd := &ledger.BeginRotation{Subject: subject, ID: id(ledger.PrefixRotation, name), Reason: ledger.RotateScheduled, Slot: slot}
	return b.apply(b.header(""), cmd, ledger.Secret{Name: "Rotation/" + subject + "/next", Salt: make([]byte, 16), Value: []byte("next " + name)})
}

// turnOnce takes a subject's secret through a whole replacement.
func (b *book) turnOnce(subject, name string, slot int) {
	b.t.Helper()
	if res := b.beginTurn(subject, name, slot); !res.OK() {
		b.t.Fatal(res)
	}
	b.ok("", &ledger.FinishRotation{Subject: subject, ID: id(ledger.PrefixRotation, name)})
}

// TestFewSecretsOfATargetAreInDoubt: whatever a leader has in hand, no replica lets
// more than the stated number of one target's secrets be replaced at a time.
func TestFewSecretsOfATargetAreInDoubt(t *testing.T) {
	b := newBook(t)
	b.write(object("Target", "other", `{"type":"memory"}`), object("Account", "elsewhere", `{"target":"other","usernames":["app"]}`))
	name := func(i int) string { return fmt.Sprintf("a%d", i) }
	for i := range ledger.MaxTurning + 1 {
		b.write(object("Account", name(i), fmt.Sprintf(`{"target":"db","usernames":["u%d"]}`, i)))
	}
	for i := range ledger.MaxTurning {
		if res := b.beginTurn("Account/"+name(i), name(i), 0); !res.OK() {
			t.Fatalf("secret %d of %d: %+v", i+1, ledger.MaxTurning, res)
		}
	}
	last := name(ledger.MaxTurning)
	if res := b.beginTurn("Account/"+last, "b0", 0); res.Code != ledger.CodeRotating {
		t.Errorf("one more than may be in doubt: %+v", res)
	}
	if res := b.beginTurn("Account/elsewhere", "b1", 0); !res.OK() {
		t.Errorf("another target's: %+v", res)
	}
	b.ok("", &ledger.FinishRotation{Subject: "Account/" + name(0), ID: id(ledger.PrefixRotation, name(0))})
	if res := b.beginTurn("Account/"+last, last, 0); !res.OK() {
		t.Errorf("when one has been replaced: %+v", res)
	}
}

// TestOnlyARefusedTurnOfAnAccountIsTakenBack: it makes room for others, and begins
// anew for the reason it had. A target's own next secret is never given up, since
// nobody might get in again.
func TestOnlyARefusedTurnOfAnAccountIsTakenBack(t *testing.T) {
	b := newBook(t)
	b.write(object("Account", "one", `{"target":"db","usernames":["u"]}`), object("Account", "two", `{"target":"db","usernames":["a","b"],"grace":"1m"}`))
	rotation := func(subject string) (r ledger.Rotation, next []byte) {
		r, _ = b.q().Rotation(subject)
		return r, b.q().NextSecret(subject)
	}
	no := func(subject, name string) *ledger.FailRotation {
		return &ledger.FailRotation{Subject: subject, ID: id(ledger.PrefixRotation, name), Problem: "no", RetryMS: b.now + 1000, Undone: true}
	}
	b.refused(ledger.CodeRotating, "", no("Account/one", "r1")) // it has not begun
	b.ok(admin, &ledger.WantRotation{Subject: "Account/one", Reason: ledger.RotateDemanded})
	for n, name := range []string{"r1", "r2"} {
		cmd := &ledger.BeginRotation{Subject: "Account/one", ID: id(ledger.PrefixRotation, name), Reason: ledger.RotateDemanded}
		if res := b.apply(b.header(""), cmd, ledger.Secret{Name: "Rotation/Account/one/next", Salt: make([]byte, 16), Value: []byte("next")}); !res.OK() {
			t.Fatal(res)
		}
		b.refused(ledger.CodeRotating, "", no("Account/one", "r9"))
		b.ok("", no("Account/one", name))
		r, next := rotation("Account/one")
		if r.State != ledger.RotationIdle || r.Wanted != ledger.RotateDemanded || r.Tries != n+1 || next != nil || r.AtMS != b.now+1000 {
			t.Errorf("%+v, next %q", r, next)
		}
	}
	b.turnOnce("Account/one", "r3", 0)
	if r, _ := rotation("Account/one"); r.Tries != 0 || r.Refused != 0 || r.Turns != 1 {
		t.Errorf("after success: %+v", r)
	}
	b.turnOnce("Account/two", "r4", 1)
	b.now += 120_000
	if res := b.beginTurn("Account/two", "r5", 0); !res.OK() {
		t.Fatal(res)
	}
	b.ok("", no("Account/two", "r5"))
	if r, _ := rotation("Account/two"); r.State != ledger.RotationGrace || r.Active != 1 || r.Turns != 1 {
		t.Errorf("the slot that was to be retired: %+v", r)
	}
}

// TestDeletingATargetLeavesOthersSecrets: an account may have a target's name.
func TestDeletingATargetLeavesOthersSecrets(t *testing.T) {
	b := newBook(t)
	b.write(object("Target", "billing", `{"type":"memory","rotation":{"cron":"0 0 * * *"}}`), object("Account", "billing", `{"target":"db","usernames":["app"]}`))
	b.turnOnce("Account/billing", "a", 0)
	b.write(ledger.ObjectChange{Kind: "Target", Name: "billing", Delete: true})
	if got := string(b.q().SlotSecret("billing", 0)); got != "next a" {
		t.Errorf("the account's secret has become %q", got)
	}
}

// TestLaw2OneAccountHoldsAName: of two, neither could say that what it gave out is
// gone.
func TestLaw2OneAccountHoldsAName(t *testing.T) {
	one, two := object("Account", "one", `{"target":"db","usernames":["a","b"],"grace":"1m"}`), object("Account", "two", `{"target":"db","usernames":["b"]}`)
	gone := ledger.ObjectChange{Kind: "Account", Name: "one", Delete: true}
	refused := func(b *book, changes ...ledger.ObjectChange) {
		t.Helper()
		for i := range changes {
			changes[i].AnyVersion = true
		}
		b.refused(ledger.CodeExists, admin, &ledger.ChangeObjects{Changes: changes})
	}
	b := newBook(t)
	refused(b, one, two)
	b.write(one)
	refused(b, two)
	b.write(object("Target", "db2", `{"type":"memory"}`), object("Account", "two", `{"target":"db2","usernames":["b"]}`), one) // elsewhere, and once more
	for _, changes := range [][]ledger.ObjectChange{{gone, two}, {two, gone}} {
		b := newBook(t)
		b.write(one)
		b.write(changes...)
		if got := b.q().AccountNamed("db", "a") + "," + b.q().AccountNamed("db", "b"); got != ",two" {
			t.Errorf("the names are held by %s", got)
		}
		b.write(ledger.ObjectChange{Kind: "Account", Name: "two", Delete: true})
		b.write(one)
		b.refused(ledger.CodeInUse, admin, &ledger.ChangeObjects{Changes: []ledger.ObjectChange{{Kind: "Target", Name: "db", Delete: true, AnyVersion: true},
			{Kind: "Role", Name: "db/rw", Delete: true, AnyVersion: true}, {Kind: "Role", Name: "db/few", Delete: true, AnyVersion: true}, {Kind: "Role", Name: "db/priv", Delete: true, AnyVersion: true}}})
	}
}

// TestNoRoleIsLeftOnADeletedAccount, though one change writes and deletes.
func TestNoRoleIsLeftOnADeletedAccount(t *testing.T) {
	b := newBook(t)
	b.write(object("Account", "one", `{"target":"db","usernames":["a"]}`))
	role := object("Role", "db/one", `{"account":"one","scope":[{"type":"account","identifier":"one","actions":["use"]}],"ttl":{"default":"1m","max":"1m"}}`)
	role.AnyVersion = true
	b.refused(ledger.CodeNotFound, admin, &ledger.ChangeObjects{Changes: []ledger.ObjectChange{{Kind: "Account", Name: "one", Delete: true, AnyVersion: true}, role}})
	b.write(role)
}

// onAccount makes the lease that is opened one on an account.
func onAccount(name string) func(*ledger.OpenLease) {
	return func(c *ledger.OpenLease) {
		c.Lease.Name = ledger.AccountLease(name, ledger.BareID(c.Lease.ID))
		c.Lease.Grant.Scope = ledger.AccountScope(name)
	}
}

// TestLaw2AccountIsNotForgottenWhileALeaseIsOnIt: its role may give out something
// else by now.
func TestLaw2AccountIsNotForgottenWhileALeaseIsOnIt(t *testing.T) {
	b := newBook(t)
	b.write(object("Account", "one", `{"target":"db","usernames":["a"]}`), object("Role", "db/one", `{"account":"one","scope":[{"type":"account","identifier":"one","actions":["use"]}],"ttl":{"default":"1m","max":"1m"}}`))
	b.ok(app, b.open(app, "db/one", "a", "", onAccount("one")))
	b.write(object("Role", "db/one", string(firstObjects()[5].Spec)))
	forget := &ledger.ChangeObjects{Changes: []ledger.ObjectChange{{Kind: "Account", Name: "one", Delete: true, AnyVersion: true}}}
	b.refused(ledger.CodeInUse, admin, forget)
	b.ok(admin, &ledger.ForceEnd{IDs: []string{id(ledger.PrefixLease, "a")}, Reason: "the target is gone"})
	b.ok(admin, forget)
}

// TestLaw2NoRemintMakesALeaseAnAccounts: a kind that names its credential so would
// have its lease end without a withdrawal.
func TestLaw2NoRemintMakesALeaseAnAccounts(t *testing.T) {
	b := newBook(t)
	b.ok(app, b.open(app, "db/rw", "a", ""))
	l := id(ledger.PrefixLease, "a")
	b.refused(ledger.CodeInvalid, app, &ledger.RemintLease{ID: l, Generation: 2, Name: ledger.AccountLease("one", ledger.BareID(l)), MintDeadlineMS: b.now})
}

const useOnce = `{"target":"db","usernames":["a"],"rotate_after_use":true}`

func useRole(account string) ledger.ObjectChange {
	return object("Role", "db/"+account, `{"account":"`+account+`","scope":[{"type":"account","identifier":"`+account+`","actions":["use"]}],"ttl":{"default":"1m","max":"1m"}}`)
}

// closed ends a lease and has its withdrawal recorded.
func (b *book) closed(lease string) {
	b.t.Helper()
	b.ok(admin, &ledger.EndLeases{IDs: []string{lease}, Reason: ledger.EndRevoked})
	b.ok("", &ledger.RecordWithdrawals{Items: []ledger.Withdrawal{{LeaseID: lease, LookedMS: b.now, Settled: true, Receipt: rawJSON(`{"proof":"rotated"}`)}}})
}

// TestAccountThatTurnsAfterUseHasOneHolder: the end of either of two would take the
// secret from the other. No leader can open the second, whatever role it is by.
func TestAccountThatTurnsAfterUseHasOneHolder(t *testing.T) {
	b := newBook(t)
	other := useRole("one")
	other.Name = "db/other"
	b.write(object("Account", "one", useOnce), useRole("one"), other)
	b.ok(app, b.open(app, "db/one", "a", "", onAccount("one")))
	b.refused(ledger.CodeAccountHeld, app, b.open(app, "db/one", "b", "", onAccount("one")))
	b.refused(ledger.CodeAccountHeld, app, b.open(app, "db/other", "b", "", onAccount("one")))
	a := id(ledger.PrefixLease, "a")
	b.ok(admin, &ledger.EndLeases{IDs: []string{a}, Reason: ledger.EndRevoked})
	b.refused(ledger.CodeAccountHeld, app, b.open(app, "db/one", "b", "", onAccount("one"))) // its secret is yet to be replaced
	b.ok("", &ledger.RecordWithdrawals{Items: []ledger.Withdrawal{{LeaseID: a, LookedMS: b.now, Settled: true, Receipt: rawJSON(`{"proof":"rotated"}`)}}})
	b.ok(app, b.open(app, "db/one", "b", "", onAccount("one")))
}

// TestHoldersAreKnownHoweverTheyCame: where others may hold it at once they are
// counted, too, in case the spec asks for one holder later.
func TestHoldersAreKnownHoweverTheyCame(t *testing.T) {
	b := newBook(t)
	shared := object("Account", "one", `{"target":"db","usernames":["a"]}`)
	b.write(shared, useRole("one"), object("Account", "one/b", `{"target":"db","usernames":["b"]}`))
	b.ok(app, b.open(app, "db/one", "a", "", onAccount("one")))
	b.ok(app, b.open(app, "db/one", "b", "", onAccount("one")))
	b.write(object("Account", "one", useOnce))
	b.refused(ledger.CodeAccountHeld, app, b.open(app, "db/one", "c", "", onAccount("one")))
	b.forget("holder") // as in a state from before leases were entered there
	if got := b.q().Holders("one", 10); len(got) != 2 {
		t.Errorf("holders: %v", got)
	}
	b.closed(id(ledger.PrefixLease, "a"))
	b.refused(ledger.CodeAccountHeld, app, b.open(app, "db/one", "c", "", onAccount("one")))
	b.closed(id(ledger.PrefixLease, "b"))
	b.ok(app, b.open(app, "db/one", "c", "", onAccount("one")))
	if got := b.q().Holders("one", 10); len(got) != 1 || len(b.q().Holders("one/b", 10)) != 0 {
		t.Errorf("holders: %v", got)
	}
}

// forget empties a bucket, as in a state of a build that did not know it.
func (b *book) forget(bucket string) {
	var keys []string
	b.mem.Each(func(name, key string, _ []byte) {
		if name == bucket {
			keys = append(keys, key)
		}
	})
	for _, k := range keys {
		b.mem.Delete(bucket, []byte(k))
	}
}

// TestOverrideIsForATargetsOwnRotatedSecret alone, and says so in the command.
func TestOverrideIsForATargetsOwnRotatedSecret(t *testing.T) {
	b := newBook(t)
	write := func(kind, name, spec, field string, override bool) ledger.Result {
		full := kind + "/" + name + "/" + field
		cmd := &ledger.ChangeObjects{Changes: []ledger.ObjectChange{{Kind: kind, Name: name, Spec: rawJSON(spec), AnyVersion: true, Secrets: []string{full}, Override: override}}}
		return b.apply(b.header(admin), cmd, ledger.Secret{Name: full, Salt: make([]byte, 16), Value: []byte("handed in")})
	}
	const target, acct = `{"type":"memory","rotation":{"cron":"0 0 * * *"}}`, `{"target":"own","usernames":["a"]}`
	if res := write("Target", "own", target, "pw", false); !res.OK() {
		t.Fatal(res)
	}
	if res := write("Target", "own", target, "pw", true); res.Code != ledger.CodeInvalid { // people's yet
		t.Error(res)
	}
	begin := &ledger.BeginRotation{Subject: "Target/own", ID: id(ledger.PrefixRotation, "a"), Reason: ledger.RotateScheduled, Field: "pw"}
	if res := b.apply(b.header(""), begin, ledger.Secret{Name: "Rotation/Target/own/next", Salt: make([]byte, 16), Value: []byte("next")}); !res.OK() {
		t.Fatal(res)
	}
	secret := func() string { return string(b.q().Secret("Target", "own", "pw")) }
	b.ok("", &ledger.FinishRotation{Subject: "Target/own", ID: begin.ID})
	if res := write("Target", "own", target, "pw", false); !res.OK() || secret() != "next" {
		t.Errorf("%v; the secret is %q", res, secret())
	}
	if res := write("Target", "own", target, "other", true); res.Code != ledger.CodeInvalid {
		t.Error(res)
	}
	if res := write("Target", "own", target, "pw", true); !res.OK() || secret() != "handed in" {
		t.Errorf("%v; the secret is %q", res, secret())
	}
	if r, _ := b.q().Rotation("Target/own"); r.Wanted != ledger.RotateOverride || string(b.q().OldSecret(r)) != "next" {
		t.Errorf("%+v", r)
	}
	b.write(object("Account", "app", acct))
	b.turnOnce("Account/app", "b", 0)
	if res := write("Account", "app", acct, ledger.AccountInitial, true); res.Code != ledger.CodeInvalid {
		t.Error(res)
	}
}
