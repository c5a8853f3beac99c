package rabbitmq_test

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/rabbitmq"
	"github.com/mayfly-broker/mayfly/scope"
)

// stuckMint starts a mint whose first request that begins with word is held on its
// way. It returns when it is, and its leader gone.
func stuckMint(t *testing.T, f *fixture, l issuers.Lease, word string) *cutter {
	t.Helper()
	p := newCutter(t, f.server.API, word)
	is := f.at(p.address()).open(1)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer func() { cancel(); wg.Wait() }() // the leader is gone; what it sent is not
	wg.Go(func() { _, _ = is.Mint(ctx, l) })
	p.waitHeld(t)
	return p
}

// A permission that arrives after the last look is refused by the server: there
// is no user any more to whom it could be given.
func TestHazard8RabbitMQLatePermissionIsRefused(t *testing.T) {
	f := newFixture(t)
	for _, word := range []string{"PUT /api/permissions/", "PUT /api/topic-permissions/"} {
		l := lease(allow([]string{"read"}, "topic:events/eu.*"))
		p := stuckMint(t, f, l, word)
		if f.user(l.Name) == "" {
			t.Fatal("there was no user before its permissions: this test proves nothing")
		}
		f.withdraw(f.open(2), l)
		if line := p.deliver(t); !strings.Contains(line, " 400 ") && !strings.Contains(line, " 404 ") {
			t.Errorf("hazard 8: %s after the withdrawal: %s", word, line)
		}
		if err := f.gone(t.Context(), l); err != nil {
			t.Errorf("hazard 8: %v", err)
		}
	}
}

// The user itself can come late: RabbitMQ knows no deadline. It opens nothing,
// whoever knows its password, and it bears the mark by which reconcile finds it.
func TestHazard8RabbitMQLateUserOpensNothing(t *testing.T) {
	f := newFixture(t)
	l := lease(allow([]string{"read", "write"}))
	p := stuckMint(t, f, l, "PUT /api/users/")
	successor := f.open(2)
	f.withdraw(successor, l)
	if line := p.deliver(t); !strings.Contains(line, " 201 ") {
		t.Fatalf("the server answers %s: this test proves nothing", line)
	}
	const password = "known-to-a-thief-of-hashes"
	user := f.user(l.Name)
	for _, right := range []string{"administrator", "management", "monitoring", "policymaker"} {
		if strings.Contains(user, right) {
			t.Errorf("the late user has the tag %s: %s", right, user)
		}
	}
	// as if somebody had the password
	f.put("/api/users/"+l.Name, `{"password":"`+password+`","tags":"`+strings.Join(rabbitmq.Tags(f.secrets[rabbitmq.SecretMark].Reveal(), 1, 1), ",")+`"}`)
	for _, vhost := range []string{"/", bus, other} {
		if conn, err := dialAs(f, l.Name, password, vhost); err == nil {
			_ = conn.Close()
			t.Errorf("hazard 8: a late user enters the virtual host %q", vhost)
		}
	}
	if status, _, err := f.server.CallAs(t.Context(), l.Name, password, http.MethodGet, "/api/whoami", ""); err != nil || status != http.StatusUnauthorized {
		t.Errorf("hazard 8: the management API answers a late user %d, %v", status, err)
	}
	found, err := successor.List(t.Context())
	if err != nil || len(found) != 1 || found[0] != (issuers.Found{Name: l.Name, LeaseID: l.ID, Generation: 1}) {
		t.Errorf("List shows %+v, %v", found, err)
	}
	f.withdraw(successor, l)
	if err := f.gone(t.Context(), l); err != nil {
		t.Error(err)
	}
}

// Users without permissions do not pile up. A mint that is under way is no such.
func TestHazard8RabbitMQLateUserIsSweptAway(t *testing.T) {
	f := newFixture(t)
	late, live := lease(allow([]string{"read"})), lease(allow([]string{"read"}))
	p := stuckMint(t, f, late, "PUT /api/users/")
	is := f.open(2)
	f.withdraw(is, late)
	p.deliver(t)
	f.mint(is, live)
	theirs := lease(allow([]string{"read"}))
	f.put("/api/users/"+theirs.Name, `{"password":"a-password-of-somebody","tags":""}`)
	t.Cleanup(func() { f.remove("/api/users/" + theirs.Name) })
	sweep := func() {
		t.Helper()
		if err := is.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	sweep()
	sweep()
	if f.user(late.Name) == "" {
		t.Error("a user is swept away that a mint may still be making")
	}
	rabbitmq.SetPatience(is, 0)
	sweep()
	if f.user(late.Name) != "" {
		t.Error("hazard 8: the late user stays")
	}
	if f.user(live.Name) == "" || f.user(theirs.Name) == "" {
		t.Error("a user was swept away that has permissions, or is not ours")
	}
	f.withdraw(is, live)
}

// What a deposed leader sent makes no user where a newer one stands, so it cannot
// bring an older secret back.
func TestHazard9RabbitMQLateWriteReplacesNoSecret(t *testing.T) {
	f := newFixture(t)
	l := lease(allow([]string{"read", "write"}))
	next := issuertest.Regenerate(rabbitmq.Kind{}, l)
	for _, word := range []string{"PUT /api/users/", "PUT /api/permissions/"} {
		p := stuckMint(t, f, l, word)
		successor := f.open(2)
		c := f.mint(successor, next)
		before := f.user(l.Name)
		line := p.deliver(t)
		if word == "PUT /api/users/" && !strings.Contains(line, " 412 ") {
			t.Errorf("the server answers %s", line)
		}
		if after := f.user(l.Name); after != before || before == "" {
			t.Errorf("hazard 9: %s changed the user\nfrom %s\nto %s", word, before, after)
		}
		if err := canRead(f.login(c), "orders"); err != nil {
			t.Errorf("the newer secret does not work: %v", err)
		}
		f.withdraw(successor, next)
	}
}

// A re-mint ends the sessions of the secret that it replaces.
func TestHazard9RabbitMQReMintEndsTheOlderSecretsSessions(t *testing.T) {
	f := newFixture(t)
	is := f.open(1)
	l := lease(allow([]string{"read"}))
	older := f.login(f.mint(is, l))
	if err := canRead(older, "orders"); err != nil {
		t.Fatal(err)
	}
	next := issuertest.Regenerate(rabbitmq.Kind{}, l)
	f.mint(is, next)
	if canRead(older, "orders") == nil {
		t.Error("a session of generation 1 lives on beside generation 2")
	}
	f.withdraw(is, next)
}

// A user without our mark is left alone, whatever its name; so is another
// target's.
func TestHazard16RabbitMQForeignUserIsLeftAlone(t *testing.T) {
	f, theirs := newFixture(t), newFixture(t)
	is, other := f.open(1), theirs.open(1)
	l, m := lease(allow([]string{"read"})), lease(allow([]string{"read"}))
	f.put("/api/users/"+l.Name, `{"password":"a-password-of-somebody","tags":"mayfly,mayfly-g1,mayfly-t1"}`)
	t.Cleanup(func() { f.remove("/api/users/" + l.Name) })
	theirs.mint(other, m)
	for _, x := range []issuers.Lease{l, m} {
		before := f.user(x.Name)
		_, err := is.Mint(t.Context(), x)
		wantKind(t, err, issuers.Foreign)
		wantKind(t, is.Withdraw(t.Context(), []issuers.Lease{x})[0].Err, issuers.Foreign)
		wantKind(t, is.Extend(t.Context(), x), issuers.Foreign)
		if after := f.user(x.Name); after != before || before == "" {
			t.Errorf("%s was touched: %s, then %s", x.Name, before, after)
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
	theirs.withdraw(other, m)
}

// One that is foreign holds up nobody else of its batch.
func TestHazard12RabbitMQForeignUserParksAlone(t *testing.T) {
	f := newFixture(t)
	is := f.open(1)
	batch := []issuers.Lease{lease(allow([]string{"read"})), lease(allow([]string{"read"})), lease(allow([]string{"read"}))}
	f.mint(is, batch[0])
	f.mint(is, batch[2])
	f.put("/api/users/"+batch[1].Name, `{"password":"a-password-of-somebody","tags":""}`)
	t.Cleanup(func() { f.remove("/api/users/" + batch[1].Name) })
	out := is.Withdraw(t.Context(), batch)
	wantKind(t, out[1].Err, issuers.Foreign)
	if out[0].Err != nil || out[2].Err != nil {
		t.Errorf("hazard 12: %v, %v", out[0].Err, out[2].Err)
	}
}

// RabbitMQ refuses a whole request to delete users, or stops half-way, if one of
// them is gone: then each is deleted by itself.
func TestHazard12RabbitMQUserThatIsGoneHoldsUpNobody(t *testing.T) {
	f := newFixture(t)
	p := newCutter(t, f.server.API, "POST /api/users/bulk-delete")
	is := f.at(p.address()).open(1)
	batch := []issuers.Lease{lease(allow([]string{"read"})), lease(allow([]string{"read"})), lease(allow([]string{"read"}))}
	for _, l := range batch {
		f.mint(is, l)
	}
	var out []issuers.Outcome
	var wg sync.WaitGroup
	wg.Go(func() { out = is.Withdraw(t.Context(), batch) })
	p.waitHeld(t)
	f.remove("/api/users/" + batch[0].Name)
	p.release()
	wg.Wait()
	for i, o := range out {
		if o.Err != nil {
			t.Errorf("lease %d: %v", i, o.Err)
		}
		if err := f.gone(t.Context(), batch[i]); err != nil {
			t.Errorf("lease %d: %v", i, err)
		}
	}
}

// Mints that hang take no connection from withdrawals.
func TestHazard17RabbitMQMintsStarveNoWithdrawal(t *testing.T) {
	f := newFixture(t)
	f.spec["max_connections"] = 1
	p := newCutter(t, f.server.API, "PUT /api/users/")
	is := f.at(p.address()).open(1)
	live := lease(allow([]string{"read"}))
	f.mint(f.open(1), live)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { _, _ = is.Mint(ctx, lease(allow([]string{"read"}))) })
	}
	p.waitHeld(t)
	f.withdraw(is, live)
	cancel()
	wg.Wait()
}

// A virtual host that is not there costs the mint, and leaves nothing.
func TestUnknownVirtualHostIsABadScope(t *testing.T) {
	f := newFixture(t)
	is := f.open(1)
	l := lease(append(allow([]string{"read"}), scope.Detail{Type: "rabbitmq", Identifier: "nosuch", Actions: []string{"read"}}))
	_, err := is.Mint(t.Context(), l)
	wantKind(t, err, issuers.BadScope)
	wantText(t, err, `"nosuch"`)
	if err := f.gone(t.Context(), l); err != nil {
		t.Errorf("a refused scope left something behind: %v", err)
	}
}

// Topics bind nobody on an exchange of another type.
func TestTopicsNeedATopicExchange(t *testing.T) {
	f := newFixture(t)
	is := f.open(1)
	for _, exchange := range []string{"plain", "nosuch"} {
		l := lease(allow([]string{"read"}, "topic:"+exchange+"/eu.*"))
		_, err := is.Mint(t.Context(), l)
		wantKind(t, err, issuers.BadScope)
		if err := f.gone(t.Context(), l); err != nil {
			t.Errorf("a refused scope left something behind: %v", err)
		}
	}
}

func TestTooManyGenerationsAreRefused(t *testing.T) {
	f := newFixture(t)
	l := lease(allow([]string{"read"}))
	l.Generation = 100_001
	_, err := f.open(1).Mint(t.Context(), l)
	wantKind(t, err, issuers.Refused)
	if f.user(l.Name) != "" {
		t.Error("a user was made")
	}
}

// A node that answers nobody is passed over; which one answers does not matter.
func TestAnotherNodeAnswers(t *testing.T) {
	f := newFixture(t)
	f.spec["address"], f.spec["addresses"] = "127.0.0.1:1", []string{"127.0.0.1:2", f.server.API}
	is := f.open(1)
	l := lease(allow([]string{"read"}))
	start := time.Now()
	f.mint(is, l)
	f.withdraw(is, l)
	t.Logf("with two dead nodes: %s", time.Since(start))
}
