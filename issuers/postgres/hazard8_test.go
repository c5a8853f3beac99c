package postgres_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/postgres/pgtest"
)

// blockCreateRole holds a lock that CREATE ROLE waits for, and logins do not.
// The returned function lets go.
func (f *fixture) blockCreateRole() (release func()) {
	f.t.Helper()
	conn := f.server.Admin(f.t, f.database)
	if _, err := conn.Exec(f.t.Context(), "BEGIN; LOCK TABLE pg_authid IN SHARE ROW EXCLUSIVE MODE"); err != nil {
		f.t.Fatal(err)
	}
	return sync.OnceFunc(func() { _ = conn.Close(context.Background()) })
}

const waitingSQL = `SELECT count(*) FROM pg_stat_activity WHERE starts_with(application_name, 'mayfly/') AND wait_event_type = 'Lock'`

// throughProxy returns the fixture as reached through a proxy.
func (f *fixture) throughProxy() (*fixture, *pgtest.Door) {
	f.t.Helper()
	p := f.server.Door(f.t)
	g := *f
	g.spec = map[string]any{}
	for k, v := range f.spec {
		g.spec[k] = v
	}
	g.spec["address"] = p.Address
	return &g, p
}

// A mint waits on a lock, its client dies without a word, the deadline passes,
// and only then is the lock free: the account must not appear.
func TestHazard8StuckMintOfADeadClientNeverAppears(t *testing.T) {
	f := newFixture(t, shared)
	g, proxy := f.throughProxy()
	dying, living := g.open(1), f.open(1)
	ample := issuertest.Ample(func() { f.mint(dying, f.lease(f.readonly())) }) // connected, pooled role made

	release := f.blockCreateRole()
	defer release()
	l := f.lease(f.readonly())
	l.MintDeadline = time.Now().Add(ample)
	minted := make(chan error, 1)
	go func() {
		_, err := dying.Mint(t.Context(), l)
		minted <- err
	}()
	eventually(t, "the mint waits for the lock", func() bool { return f.count(waitingSQL) == 1 })
	proxy.Hold(true)

	// While it hangs, nobody may say that the lease is ended.
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	if out := living.Withdraw(ctx, []issuers.Lease{l}); out[0].Err == nil {
		t.Error("the lease was called ended while its mint was under way")
	}
	cancel()
	wantKind(t, <-minted, issuers.Unknown) // the client saw no answer
	if time.Now().Before(l.MintDeadline) {
		t.Fatal("the client gave up before the deadline; the test proves nothing")
	}
	release()
	eventually(t, "the mint ends on the server", func() bool { return f.count(waitingSQL) == 0 })
	f.withdraw(living, l) // the second look
	if f.exists(l.Name) {
		t.Error("the account appeared after the deadline")
	}
	proxy.Hold(false) // or the driver waits 15 s for its cancel request to be taken
}

// A mint's message reaches the server only after the deadline.
func TestHazard8LateMessageIsRefusedByTheTargetsClock(t *testing.T) {
	f := newFixture(t, shared)
	g, proxy := f.throughProxy()
	is := g.open(1)
	f.mint(is, f.lease(f.readonly()))

	proxy.Hold(true)
	l := f.lease(f.readonly())
	l.MintDeadline = time.Now().Add(200 * time.Millisecond)
	minted := make(chan error, 1)
	go func() {
		_, err := is.Mint(t.Context(), l)
		minted <- err
	}()
	eventually(t, "the deadline passes", func() bool { return time.Now().After(l.MintDeadline.Add(100 * time.Millisecond)) })
	proxy.Hold(false)
	wantTooLate(t, <-minted, l.MintDeadline)
	if f.exists(l.Name) {
		t.Error("the account appeared after the deadline")
	}
}

// The same lock, free again before the deadline: the account appears, and the
// withdrawal that waited meanwhile finds and ends it.
func TestHazard8WithdrawWaitsForAMintUnderWay(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	f.mint(is, f.lease(f.readonly()))
	release := f.blockCreateRole()
	defer release()
	l := f.lease(f.readonly())
	minted := make(chan error, 1)
	go func() {
		_, err := is.Mint(t.Context(), l)
		minted <- err
	}()
	eventually(t, "the mint waits for the lock", func() bool { return f.count(waitingSQL) == 1 })
	ended := make(chan issuers.Outcome, 1)
	go func() { ended <- is.Withdraw(t.Context(), []issuers.Lease{l})[0] }()
	release()
	if err := <-minted; err != nil {
		t.Fatalf("Mint after the lock was free: %v", err)
	}
	if out := <-ended; out.Err != nil {
		t.Fatalf("Withdraw: %v", out.Err)
	}
	if f.exists(l.Name) {
		t.Error("the lease was called ended before its mint was done, and the account stands")
	}
}

// A new leader ends the deposed one's connections, stuck statements and all, and
// nobody else's.
func TestHazard8FenceEndsOlderTermsAlone(t *testing.T) {
	f := newFixture(t, shared)
	deposed, leader, same := f.open(6), f.open(7), f.open(7)
	kept := f.mint(deposed, f.lease(f.readonly()))
	f.mint(same, f.lease(f.readonly()))
	client := f.mustLogin(kept)
	if _, err := client.Exec(t.Context(), "SET application_name = 'mayfly/1'"); err != nil {
		t.Fatal(err)
	}

	release := f.blockCreateRole()
	defer release()
	l := f.lease(f.readonly())
	minted := make(chan error, 1)
	go func() {
		_, err := deposed.Mint(t.Context(), l)
		minted <- err
	}()
	eventually(t, "the mint waits for the lock", func() bool { return f.count(waitingSQL) == 1 })
	sameTerm := f.count("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mayfly/7'")
	if err := leader.Fence(t.Context()); err != nil {
		t.Fatalf("Fence: %v", err)
	}
	if n := f.count("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mayfly/6'"); n != 0 {
		t.Errorf("%d connections of the deposed leader outlive the fence", n)
	}
	if n := f.count("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mayfly/7'"); n < sameTerm {
		t.Errorf("the fence ended connections of its own term: %d of %d are left", n, sameTerm)
	}
	wantKind(t, <-minted, issuers.Unknown)
	release()
	f.withdraw(leader, l)
	if f.exists(l.Name) {
		t.Error("the deposed leader's account appeared after the fence")
	}
	if err := client.Ping(t.Context()); err != nil {
		t.Errorf("a client that calls itself mayfly/1 was ended: %v", err)
	}
}

// A server that hangs holds a mint no longer than its deadline and a moment.
func TestLaw8HangingServerDelaysNoLongerThanTheDeadline(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	live := f.lease(f.readonly())
	f.mint(is, live)
	freeze(t, f.server)
	l := f.lease(f.readonly())
	l.MintDeadline = time.Now().Add(300 * time.Millisecond)
	if _, err := is.Mint(t.Context(), l); err == nil {
		t.Error("a hanging server minted")
	}
	if late := time.Since(l.MintDeadline); late > 10*time.Second {
		t.Errorf("Mint came back %s after its deadline", late)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if out := is.Withdraw(ctx, []issuers.Lease{live}); out[0].Err == nil {
		t.Error("a hanging server's lease was called ended")
	}
	thaw(t, f.server)
	f.withdraw(is, live, l)
}

func TestStoppedServerIsUnreachableAndComesBack(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	live := f.lease(f.readonly())
	f.mint(is, live)
	if err := f.server.Stop(); err != nil {
		t.Fatal(err)
	}
	l := f.lease(f.readonly())
	// the pool may still hold a connection that is dead, so only later calls know
	eventually(t, "Mint says unreachable", func() bool {
		_, err := is.Mint(t.Context(), l)
		return issuers.KindOf(err) == issuers.Unreachable
	})
	eventually(t, "Withdraw says unreachable", func() bool {
		return issuers.KindOf(is.Withdraw(t.Context(), []issuers.Lease{live})[0].Err) == issuers.Unreachable
	})
	if _, err := is.Check(t.Context()); issuers.KindOf(err) != issuers.Unreachable {
		t.Errorf("Check of a stopped server: %v", err)
	}
	if err := f.server.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.mint(is, l)
	f.withdraw(is, live, l)
}

func TestWrongAdminPasswordIsRefused(t *testing.T) {
	f := newFixture(t, shared)
	f.secrets = nil
	_, err := f.open(1).Mint(t.Context(), f.lease(f.readonly()))
	wantKind(t, err, issuers.Refused)
}
