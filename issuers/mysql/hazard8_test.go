package mysql_test

import (
	"context"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/mysql/mysqltest"
)

// blockCreateUser holds a lock that CREATE USER waits for, and logins do not. The
// returned function lets go.
func (f *fixture) blockCreateUser() (release func()) {
	f.t.Helper()
	db, err := f.server.Open(mysqltest.AdminUser, f.server.Password, "")
	if err != nil {
		f.t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	if _, err := db.ExecContext(f.t.Context(), "LOCK TABLES mysql.global_priv READ"); err != nil {
		f.t.Fatal(err)
	}
	return sync.OnceFunc(func() { _ = db.Close() })
}

func (f *fixture) waiting() int {
	return f.count("SELECT COUNT(*) FROM information_schema.processlist WHERE state LIKE 'Waiting for table%' AND info LIKE '%CREATE USER%'")
}

// throughProxy returns the fixture as reached through a proxy.
func (f *fixture) throughProxy() (*fixture, *mysqltest.Door) {
	f.t.Helper()
	p := f.server.Door(f.t)
	return f.with("address", p.Address), p
}

// A mint waits on a lock, its client dies without a word, the deadline passes,
// and only then is the lock free: the account must not appear.
func TestHazard8MySQLStuckMintOfADeadClientNeverAppears(t *testing.T) {
	f := newFixture(t, shared)
	g, proxy := f.throughProxy()
	dying, living := g.open(1), f.open(2)
	ample := issuertest.Ample(func() { f.mint(dying, f.lease(f.readonly())) }) // connected, pooled role made

	release := f.blockCreateUser()
	defer release()
	l := f.lease(f.readonly())
	l.MintDeadline = time.Now().Add(ample)
	minted := make(chan error, 1)
	go func() {
		_, err := dying.Mint(t.Context(), l)
		minted <- err
	}()
	eventually(t, "the mint waits for the lock", func() bool { return f.waiting() == 1 })
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
	eventually(t, "the mint ends on the server", func() bool { return f.waiting() == 0 })
	// its connection still holds the lease's lock, since the server has not
	// noticed the death: that is for the new leader's fence
	if err := living.Fence(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.withdraw(living, l) // the second look
	if f.exists(l.Name) {
		t.Error("the account appeared after the deadline")
	}
	proxy.Hold(false)
}

// A mint's message reaches the server only after the deadline.
func TestHazard8MySQLLateMessageIsRefusedByTheTargetsClock(t *testing.T) {
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
	if f.exists(l.Name) || f.count("SELECT COUNT(*) FROM mayfly.leases WHERE name = ?", l.Name) != 0 {
		t.Error("the account or its row appeared after the deadline")
	}
}

// The same lock, free again before the deadline: the account appears, and the
// withdrawal that waited meanwhile finds and ends it.
func TestHazard8MySQLWithdrawWaitsForAMintUnderWay(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	f.mint(is, f.lease(f.readonly()))
	release := f.blockCreateUser()
	defer release()
	l := f.lease(f.readonly())
	minted := make(chan error, 1)
	go func() {
		_, err := is.Mint(t.Context(), l)
		minted <- err
	}()
	eventually(t, "the mint waits for the lock", func() bool { return f.waiting() == 1 })
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

// The lock is held past the deadline while the client lives: the mint is refused
// and leaves nothing.
func TestHazard8MySQLWaitEndsWithTheDeadline(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	f.mint(is, f.lease(f.readonly()))
	release := f.blockCreateUser()
	defer release()
	l := f.lease(f.readonly())
	l.MintDeadline = time.Now().Add(700 * time.Millisecond)
	_, err := is.Mint(t.Context(), l)
	if kind := issuers.KindOf(err); err == nil || kind != issuers.TooLate && kind != issuers.Unknown {
		t.Fatalf("Mint behind a lock: %v", err) // Unknown: what there is to undo waits for the same lock
	}
	if late := time.Since(l.MintDeadline); late > undoPatience {
		t.Errorf("Mint came back %s after its deadline", late)
	}
	release()
	f.withdraw(is, l)
	if f.exists(l.Name) {
		t.Error("the account stands")
	}
}

// undoPatience is how long a failed mint may try to remove what it made.
const undoPatience = 15 * time.Second

// A new leader ends the deposed one's connections, stuck statements and all, and
// nobody else's.
func TestHazard8MySQLFenceEndsOlderTermsAlone(t *testing.T) {
	f := newFixture(t, shared)
	deposed, leader, same := f.open(6), f.open(7), f.open(7)
	kept := f.mint(deposed, f.lease(f.readonly()))
	f.mint(same, f.lease(f.readonly()))
	client := f.mustLogin(kept)

	release := f.blockCreateUser()
	defer release()
	l := f.lease(f.readonly())
	minted := make(chan error, 1)
	go func() {
		_, err := deposed.Mint(t.Context(), l)
		minted <- err
	}()
	eventually(t, "the mint waits for the lock", func() bool { return f.waiting() == 1 })
	const living = "SELECT COUNT(*) FROM mayfly.connections c JOIN information_schema.processlist p ON p.id = c.id AND p.host = c.address WHERE c.term = ?"
	sameTerm := f.count(living, 7)
	if err := leader.Fence(t.Context()); err != nil {
		t.Fatalf("Fence: %v", err)
	}
	if n := f.count(living, 6); n != 0 {
		t.Errorf("%d connections of the deposed leader outlive the fence", n)
	}
	if n := f.count(living, 7); n < sameTerm {
		t.Errorf("the fence ended connections of its own term: %d of %d are left", n, sameTerm)
	}
	wantKind(t, <-minted, issuers.Unknown)
	release()
	f.withdraw(leader, l)
	if f.exists(l.Name) {
		t.Error("the deposed leader's account appeared after the fence")
	}
	if err := client.PingContext(t.Context()); err != nil {
		t.Errorf("a client's session was ended: %v", err)
	}
}

// A server that hangs holds a mint no longer than its deadline and a moment.
func TestLaw8MySQLHangingServerDelaysNoLongerThanTheDeadline(t *testing.T) {
	f := newFixture(t, mysqltest.Start(t))
	is := f.open(1)
	live := f.lease(f.readonly())
	f.mint(is, live)
	signal := func(s syscall.Signal) {
		if err := f.server.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
	signal(syscall.SIGSTOP)
	t.Cleanup(func() { _ = f.server.Signal(syscall.SIGCONT) })
	l := f.lease(f.readonly())
	l.MintDeadline = time.Now().Add(300 * time.Millisecond)
	if _, err := is.Mint(t.Context(), l); err == nil {
		t.Error("a hanging server minted")
	}
	if late := time.Since(l.MintDeadline); late > 15*time.Second {
		t.Errorf("Mint came back %s after its deadline", late)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if out := is.Withdraw(ctx, []issuers.Lease{live}); out[0].Err == nil {
		t.Error("a hanging server's lease was called ended")
	}
	signal(syscall.SIGCONT)
	f.withdraw(is, live, l)
}

func TestStoppedServerIsUnreachableAndComesBack(t *testing.T) {
	f := newFixture(t, mysqltest.Start(t))
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

// TestSilentServerIsUnreachable: what takes connections and does not greet, such as
// another kind of server, is no reason to wait for as long as the caller would.
func TestSilentServerIsUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() }) // which ends what waits to be accepted, too
	f := newFixture(t, shared)
	f.spec["address"] = l.Addr().String()
	is := f.open(1)
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err = is.Check(ctx)
	if issuers.KindOf(err) != issuers.Unreachable || time.Since(began) > 30*time.Second {
		t.Errorf("after %s: %v", time.Since(began), err)
	}
}

func TestWrongAdminPasswordIsRefused(t *testing.T) {
	f := newFixture(t, shared)
	f.secrets = nil
	_, err := f.open(1).Mint(t.Context(), f.lease(f.readonly()))
	wantKind(t, err, issuers.Refused)
}
