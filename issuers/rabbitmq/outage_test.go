package rabbitmq_test

import (
	"context"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/rabbitmq"
	"github.com/mayfly-broker/mayfly/secret"
)

// A server that hangs costs no more than the deadline, and what it does when it
// wakes up opens nothing.
func TestLaw8HangingRabbitMQDelaysNoLongerThanTheDeadline(t *testing.T) {
	f := newFixture(t)
	is := f.open(1)
	warm := lease(allow([]string{"read"}))
	conn := f.login(f.mint(is, warm))
	if err := f.server.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	awake := false
	wake := func() {
		if !awake {
			awake = true
			if err := f.server.Signal(syscall.SIGCONT); err != nil {
				t.Error(err)
			}
		}
	}
	defer wake()
	l := lease(allow([]string{"read"}))
	l.MintDeadline = time.Now().Add(300 * time.Millisecond)
	start := time.Now()
	// Unreachable, where the first question hangs; unknown, where the server answered
	// it before the signal had stopped it whole; too late, where this machine was
	// slower than the deadline.
	if _, err := is.Mint(t.Context(), l); err == nil || issuers.KindOf(err) == issuers.Refused || issuers.KindOf(err) == issuers.BadScope {
		t.Errorf("%v; the server was stopped and said nothing", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if out := is.Withdraw(ctx, []issuers.Lease{warm}); out[0].Err == nil {
		t.Error("a withdrawal on a stopped server has a receipt")
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("a stopped server held the caller up for %s", d)
	}
	wake()
	f.withdraw(is, warm, l)
	if canRead(conn, "orders") == nil {
		t.Error("law 2: the session outlives the withdrawal")
	}
	if err := f.gone(t.Context(), l); err != nil {
		t.Error(err)
	}
}

// The server dies between mint and withdrawal, and right after a withdrawal: what
// has a receipt does not come back with it.
func TestLaw2RabbitMQKilledServerBringsNothingBack(t *testing.T) {
	f := newFixture(t)
	is := f.open(1)
	live, ended := lease(allow([]string{"read"})), lease(allow([]string{"read"}))
	f.mint(is, live)
	f.mint(is, ended)
	f.withdraw(is, ended)
	if err := f.server.Kill(); err != nil {
		t.Fatal(err)
	}
	wantKind(t, is.Withdraw(t.Context(), []issuers.Lease{live})[0].Err, issuers.Unreachable)
	_, err := is.Mint(t.Context(), lease(allow([]string{"read"})))
	wantKind(t, err, issuers.Unreachable)
	if err := f.server.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if f.user(live.Name) == "" {
		t.Error("the live lease's user did not survive: the withdrawal below proves little")
	}
	if err := f.gone(t.Context(), ended); err != nil {
		t.Errorf("law 2: %v", err)
	}
	f.withdraw(is, live)
	if err := f.gone(t.Context(), live); err != nil {
		t.Error(err)
	}
}

func TestWrongAdminPasswordIsRefused(t *testing.T) {
	f := newFixture(t)
	f.secrets[rabbitmq.SecretPassword] = secret.New("not-the-admin-password")
	is := f.open(1)
	_, err := is.Mint(t.Context(), lease(allow([]string{"read"})))
	wantKind(t, err, issuers.Refused)
	_, err = is.Check(t.Context())
	wantKind(t, err, issuers.Refused)
	wantKind(t, is.Withdraw(t.Context(), []issuers.Lease{lease(allow([]string{"read"}))})[0].Err, issuers.Refused)
}
