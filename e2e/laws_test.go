package e2e_test

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/e2e/harness"
)

// Law 2: expiry, revocation, task end and containment each take the account
// and the live session it opened.
func TestLaw2NothingOutlivesItsLease(t *testing.T) {
	h := newHouse(t)
	for _, c := range []struct {
		how string
		ttl string
		end func(wire.AccessAnswer)
	}{
		{"expiry", "3s", func(wire.AccessAnswer) {}},
		{"revocation", "10m", func(a wire.AccessAnswer) { h.worker.Must(t, "lease", "revoke", a.LeaseID) }},
		{"task end", "10m", func(a wire.AccessAnswer) { h.worker.Must(t, "task", "end", a.TaskID) }},
		{"containment of the principal", "10m", func(wire.AccessAnswer) {
			h.operator.Must(t, "contain", "workload:billing", "--reason", "odd queries", "--yes")
		}},
		{"containment of the target", "10m", func(wire.AccessAnswer) {
			h.operator.Must(t, "contain", "target/orders", "--reason", "odd queries", "--yes")
		}},
	} {
		t.Run(c.how, func(t *testing.T) {
			a := h.request(t, "--purpose", "law 2", "--ttl", c.ttl)
			conn, err := harness.Login(t, a.Credential["url"])
			if err != nil {
				t.Fatal(err)
			}
			c.end(a)
			harness.NothingLeft(t, harness.Postgres{Server: h.pg}, 15*time.Second)
			if err := conn.Ping(t.Context()); err == nil {
				t.Error("the open session still works")
			}
			if _, err := harness.Login(t, a.Credential["url"]); err == nil {
				t.Error("the account still logs in")
			}
			switch c.how {
			case "containment of the principal":
				if r := h.worker.Run(t, "request", "orders/readonly", "--purpose", "contained"); r.Code != 3 && r.Code != 6 {
					t.Errorf("a contained principal's request: exit code %d\n%s", r.Code, r.Stderr)
				}
				h.operator.Must(t, "release", "workload:billing", "--reason", "false alarm", "--yes")
			case "containment of the target":
				if r := h.worker.Run(t, "request", "orders/readonly", "--purpose", "contained"); r.Code != 3 {
					t.Errorf("a request on a contained target: exit code %d\n%s", r.Code, r.Stderr)
				}
				h.operator.Must(t, "release", "target/orders", "--reason", "false alarm", "--yes")
			}
		})
	}
	h.request(t, "--purpose", "after the release", "--ttl", "2s")
	harness.NothingLeft(t, harness.Postgres{Server: h.pg}, 15*time.Second)
}

// Law 1 and HAZARDS 8: mints are on their way to a target that hangs when the
// broker dies. Once the target goes on, what was sent may still happen; the
// next broker fences it, and nothing stays.
func TestHazard8LateMintAfterACrashIsFenced(t *testing.T) {
	h := newHouse(t)
	clients := h.operator.EnrolClients(t, h.dir, "workload:late", 8, 0)
	h.operator.ApplyPolicy(t, h.dir, "churn", churnPolicy)
	ask := wire.AccessRequest{Role: "orders/readonly", Purpose: "late", TTL: "10s"}
	for _, cl := range clients { // connections to the target stand, and are used
		if _, err := cl.Request(t.Context(), ask); err != nil {
			t.Fatal(err)
		}
	}
	// Every mint waits for a lock, as behind a long migration: it is past the
	// client, the broker and the network, and cannot be called back.
	lock := h.pg.Admin(t, "postgres")
	tx, err := lock.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "LOCK TABLE pg_authid IN EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for _, cl := range clients {
		wg.Go(func() { _, _ = cl.Request(ctx, ask) }) // answered or not: the broker dies
	}
	harness.Within(t, 15*time.Second, "mints wait on the target", func() error {
		var n int
		if err := tx.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'mayfly/%' AND wait_event_type = 'Lock'").Scan(&n); err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("none waits yet")
		}
		return nil
	})
	h.dev.Kill(t)
	wg.Wait()
	h.dev.Start(t)
	if err := tx.Rollback(t.Context()); err != nil && err != pgx.ErrTxClosed {
		t.Fatal(err)
	}
	harness.AllEnded(t, h.operator.Client(t, 30*time.Second), 60*time.Second)
	harness.NothingLeft(t, harness.Postgres{Server: h.pg}, 0)
	h.operator.Must(t, "reconcile")
}

// The target hangs in the middle of withdrawals, and the broker dies too.
func TestBadDayHungWhileWithdrawing(t *testing.T) {
	h := newHouse(t)
	cl := h.worker.Client(t, 0)
	for range 12 {
		if _, err := cl.Request(t.Context(), wire.AccessRequest{Role: "orders/readonly", Purpose: "hang", TTL: "2s"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.pg.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	resume := sync.OnceValue(func() error { return h.pg.Signal(syscall.SIGCONT) })
	t.Cleanup(func() { _ = resume() })
	harness.Within(t, 20*time.Second, "leases wait for the target's word", func() error {
		var ending []wire.Lease
		h.operator.JSON(t, &ending, "lease", "list", "--state", "ending")
		if len(ending) == 0 {
			return fmt.Errorf("none is ending")
		}
		return nil
	})
	h.dev.Kill(t)
	h.dev.Start(t)
	if err := resume(); err != nil {
		t.Fatal(err)
	}
	harness.AllEnded(t, h.operator.Client(t, 30*time.Second), 90*time.Second)
	harness.NothingLeft(t, harness.Postgres{Server: h.pg}, 0)
}
