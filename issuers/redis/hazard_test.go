package redis_test

import (
	"context"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/redis"
	"github.com/mayfly-broker/mayfly/issuers/redis/redistest"
	"github.com/mayfly-broker/mayfly/secret"
)

// throughCutter is the fixture with a cutter before its server: a message that
// is stuck in the socket of a leader nobody hears of any more.
func throughCutter(t *testing.T, f *fixture, word string) (*fixture, *cutter) {
	t.Helper()
	p := newCutter(t, f.server.Address(), word)
	g := *f
	g.spec = map[string]any{}
	for k, v := range f.spec {
		g.spec[k] = v
	}
	g.spec["address"] = p.address()
	return &g, p
}

// The transaction arrives after the deadline, and after the last look: the server
// itself refuses it, because the gate has expired.
func TestHazard8RedisLateTransactionDoesNothing(t *testing.T) {
	f := newFixture(t, redistest.Start(t))
	slow, p := throughCutter(t, f, "MULTI")
	is := slow.open(1)
	ample := issuertest.Ample(func() { f.mint(f.open(1), lease(allow([]string{"read"}))) })
	l := lease(allow([]string{"read"}))
	l.MintDeadline = time.Now().Add(ample)
	_, err := is.Mint(t.Context(), l)
	wantKind(t, err, issuers.Unknown)
	p.waitHeld(t)
	eventually(t, "the deadline passes", func() bool { return time.Now().After(l.MintDeadline) })
	p.release()
	p.waitDelivered(t)
	if f.exists(l.Name) {
		t.Fatal("hazard 8: a transaction that arrived after the deadline made the user")
	}
}

// Within the deadline, a withdrawal takes the gate down: what is still on its way
// does nothing when it arrives.
func TestHazard8RedisWithdrawalOvertakesAMint(t *testing.T) {
	f := newFixture(t, redistest.Start(t))
	slow, p := throughCutter(t, f, "MULTI")
	old, successor := slow.open(1), f.open(2)
	l := lease(allow([]string{"read"}))
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	wg.Go(func() { _, _ = old.Mint(ctx, l) })
	p.waitHeld(t)
	f.withdraw(successor, l)
	p.release()
	p.waitDelivered(t)
	if f.exists(l.Name) {
		t.Fatal("hazard 8: a mint that was under way made the user after its withdrawal")
	}
	cancel()
	wg.Wait()
	f.withdraw(successor, l)
}

// Fencing ends the older leader's connections, with what they still hold.
func TestHazard8RedisFenceEndsOlderLeaders(t *testing.T) {
	f := newFixture(t, redistest.Start(t))
	old, same, successor := f.open(3), f.open(7), f.open(7)
	for _, is := range []*redis.Issuer{old, same} {
		if _, err := is.List(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	l := lease(allow([]string{"read"}))
	r := f.as(f.mint(successor, l))
	if err := r.Do(t.Context(), "CLIENT", "SETNAME", "mayfly/1").Err(); err != nil { // a lease may call itself what it likes
		t.Fatal(err)
	}
	names := func() string {
		list, err := f.admin.ClientList(t.Context()).Result()
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	if !strings.Contains(names(), "name=mayfly/3 ") {
		t.Fatal("the older leader has no connection: this test proves nothing")
	}
	if err := successor.Fence(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := names(); strings.Contains(got, "name=mayfly/3 ") || !strings.Contains(got, "name=mayfly/7 ") || !strings.Contains(got, "name=mayfly/1 ") {
		t.Errorf("after fencing: %s", got)
	}
	f.withdraw(successor, l)
}

// A user without our mark is left alone, whatever its name; so is one that was
// marked with another target's key.
func TestHazard16RedisForeignUserIsLeftAlone(t *testing.T) {
	f := newFixture(t, shared)
	other := newFixture(t, shared)
	is, theirs := f.open(1), other.open(1)
	l := lease(allow([]string{"read"}))
	if err := f.admin.Do(t.Context(), "ACL", "SETUSER", l.Name, "on", ">a-password-of-somebody", "~*", "+@all").Err(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.admin.Do(context.Background(), "ACL", "DELUSER", l.Name) })
	m := lease(allow([]string{"read"}))
	other.mint(theirs, m)
	for _, x := range []issuers.Lease{l, m} {
		_, err := is.Mint(t.Context(), x)
		wantKind(t, err, issuers.Foreign)
		wantKind(t, is.Withdraw(t.Context(), []issuers.Lease{x})[0].Err, issuers.Foreign)
		if !f.exists(x.Name) {
			t.Errorf("%s was deleted", x.Name)
		}
	}
	found, err := is.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range found {
		if x.Name == l.Name || x.Name == m.Name {
			t.Errorf("List claims %s", x.Name)
		}
	}
	other.withdraw(theirs, m)
}

// A re-mint ends the sessions of the secret that it replaces.
func TestHazard9RedisReMintEndsTheOlderSecretsSessions(t *testing.T) {
	f := newFixture(t, shared)
	f.fill()
	is := f.open(1)
	l := lease(allow([]string{"read"}))
	older := f.as(f.mint(is, l)).Conn()
	if err := older.Ping(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	next := issuertest.Regenerate(redis.Kind{}, l)
	f.mint(is, next)
	if older.Ping(t.Context()).Err() == nil {
		t.Error("a session of generation 1 lives on beside generation 2")
	}
	f.withdraw(is, next)
}

// A server that hangs costs no more than the deadline, and what it does when it
// wakes up is nothing.
func TestLaw8HangingRedisDelaysNoLongerThanTheDeadline(t *testing.T) {
	f := newFixture(t, redistest.Start(t))
	is := f.open(1)
	warm := lease(allow([]string{"read"}))
	f.mint(is, warm)
	if err := f.server.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	l := lease(allow([]string{"read"}))
	l.MintDeadline = time.Now().Add(300 * time.Millisecond)
	start := time.Now()
	if _, err := is.Mint(t.Context(), l); err == nil {
		t.Error("a mint on a stopped server succeeded")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if out := is.Withdraw(ctx, []issuers.Lease{warm}); out[0].Err == nil {
		t.Error("a withdrawal on a stopped server has a receipt")
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("a stopped server held the caller up for %s", d)
	}
	if err := f.server.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := f.admin.Ping(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	if f.exists(l.Name) {
		t.Error("hazard 8: the server made the user when it woke up")
	}
	f.withdraw(is, warm)
}

func TestWrongAdminPasswordIsRefused(t *testing.T) {
	f := newFixture(t, shared)
	f.secrets[redis.SecretPassword] = secret.New("not-the-admin-password")
	is := f.open(1)
	_, err := is.Mint(t.Context(), lease(allow([]string{"read"})))
	wantKind(t, err, issuers.Refused)
	if _, err := is.Check(t.Context()); err == nil {
		t.Error("the check logs in with a wrong password")
	}
}

// Leases with every key may disturb a mint's gate; that costs the mint, and opens
// nothing.
func TestLeaseCannotKeepAGateOpen(t *testing.T) {
	f := newFixture(t, redistest.Start(t))
	slow, p := throughCutter(t, f, "MULTI")
	is := slow.open(1)
	var r *goredis.Client
	ample := issuertest.Ample(func() {
		r = f.as(f.mint(f.open(1), lease(allow([]string{"read", "write"}))))
		if err := r.Ping(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
	})
	l := lease(allow([]string{"read"}))
	l.MintDeadline = time.Now().Add(ample)
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = is.Mint(t.Context(), l) })
	p.waitHeld(t)
	if n, err := r.Persist(t.Context(), "mayfly:gate:"+l.ID).Result(); err != nil || !n {
		t.Fatalf("PERSIST: %t, %v", n, err)
	}
	wg.Wait()
	eventually(t, "the deadline passes", func() bool { return time.Now().After(l.MintDeadline) })
	p.release()
	p.waitDelivered(t)
	if f.exists(l.Name) {
		t.Fatal("hazard 8: a lease kept a gate open past the deadline")
	}
}

func TestCommandThatTheServerLacksIsABadScope(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	l := lease(allow([]string{"read", "cmd:nosuch.command"}))
	_, err := is.Mint(t.Context(), l)
	wantKind(t, err, issuers.BadScope)
	if f.exists(l.Name) {
		t.Error("a refused scope left a user behind")
	}
}
