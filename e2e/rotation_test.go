package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/e2e/harness"
	"github.com/mayfly-broker/mayfly/issuers/postgres/pgtest"
)

const (
	rotatingObjects = `
kind: Account
name: billing
spec: {target: orders, usernames: [billing_a, billing_b], grace: 10s}
---
kind: Account
name: report
spec: {target: orders, usernames: [report]}
---
kind: Role
name: orders/billing
spec: {account: billing, ttl: {default: 8s, max: 10s}}
---
kind: Role
name: orders/report
spec: {account: report, ttl: {default: 5s, max: 1m}}
`
	rotatingPolicy = `@id("rotating") permit (principal, action == Action::"request", resource);`
)

// user is a client that requests an account in a loop and logs in by what it gets,
// for as long as it was given it.
type user struct {
	sync.Mutex
	logins  int
	refused []string
}

func (u *user) loop(ctx context.Context, cl *client.Client, role string) {
	for ctx.Err() == nil {
		a, err := cl.Request(ctx, wire.AccessRequest{Role: role, Purpose: "loop"})
		for err == nil && ctx.Err() == nil && time.Until(a.ExpiresAt) > 200*time.Millisecond {
			u.login(ctx, a)
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}

func (u *user) login(ctx context.Context, a client.Access) {
	c, err := pgx.Connect(ctx, a.Credential["url"])
	u.Lock()
	defer u.Unlock()
	var pe *pgconn.PgError
	switch {
	case err == nil:
		u.logins++
		_ = c.Close(ctx)
	case errors.As(err, &pe) && ctx.Err() == nil:
		u.refused = append(u.refused, fmt.Sprintf("%s, %s before its end: %v", a.Credential["username"], time.Until(a.ExpiresAt), pe))
	}
}

// TestRotationSurvivesKills: secrets of accounts and of the broker's own are
// replaced while it is killed with -9 again and again. Nobody is ever locked out,
// and whoever uses an account with two names never sees a refused login.
func TestRotationSurvivesKills(t *testing.T) {
	pg := pgtest.Start(t)
	dev := harness.StartDev(t)
	dir := t.TempDir()
	harness.Database(t, pg, dev.Operator, dir, "orders")
	pg.Exec(t, "orders", "CREATE ROLE billing_a LOGIN PASSWORD 'old'; CREATE ROLE billing_b LOGIN PASSWORD 'old'; CREATE ROLE report LOGIN PASSWORD 'old'")
	dev.Operator.ApplyPolicy(t, dir, "rotating", rotatingPolicy)
	dev.Operator.Apply(t, rotatingObjects)
	awaitTurn(t, dev.Operator, "account/billing", 1)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var u user
	var wg sync.WaitGroup
	for _, cl := range dev.Operator.EnrolClients(t, dir, "workload:biller", 4, 10*time.Second) {
		wg.Go(func() { u.loop(ctx, cl, "orders/billing") })
	}
	for i := range max(*kills/4, 6) {
		what := []string{"account/billing", "account/report", "target/orders"}[i%3]
		go func() { _ = dev.Operator.Run(t, "rotate", what, "--retry", "1s") }() // the answer dies with the node
		randomInstant(150 * time.Millisecond)
		dev.Kill(t)
		dev.Start(t)
		for _, what := range []string{"account/billing", "account/report", "target/orders"} {
			awaitTurn(t, dev.Operator, what, 0)
		}
		var a wire.AccessAnswer
		dev.Operator.JSON(t, &a, "request", "orders/report", "--purpose", "still there")
		if c, err := harness.Login(t, a.Credential["url"]); err != nil {
			t.Fatalf("after kill %d report is locked out: %v", i+1, err)
		} else {
			_ = c.Close(t.Context())
		}
		dev.Operator.Must(t, "request", "orders/readonly", "--purpose", "the broker's own secret still opens the target")
	}
	cancel()
	wg.Wait()
	u.Lock()
	defer u.Unlock()
	if len(u.refused) > 0 || u.logins < 50 {
		t.Errorf("%d logins, %d refused: %v", u.logins, len(u.refused), u.refused)
	}
	t.Logf("%d logins, none refused", u.logins)
	harness.Within(t, 60*time.Second, "the last grace has ended", func() error {
		var o wire.Object
		dev.Operator.JSON(t, &o, "get", "account", "billing")
		if o.Rotation == nil || o.Rotation.State != "idle" {
			return fmt.Errorf("%+v", o.Rotation)
		}
		return nil
	})
	if c, err := harness.Login(t, pg.URL("billing_a", "old", "orders")); err == nil {
		_ = c.Close(t.Context())
		t.Error("the first secret of billing_a, which people know, still works")
	}
	dev.Operator.Must(t, "audit", "verify")
}

// TestHazard22BarrierKeySurvivesKills: the key that disks are sealed by turns while
// the leader is killed with -9. Every node opens its disk again, and comes to seal
// by the newest key.
func TestHazard22BarrierKeySurvivesKills(t *testing.T) {
	c := harness.StartCluster(t, harness.ClusterConfig{})
	for range *leaderKills {
		leader, _ := c.Leader(t)
		go func() { _ = c.Admin.Run(t, "rotate", "cluster", "barrier", "--retry", "1s") }() // the answer may die with the node
		randomInstant(300 * time.Millisecond)
		leader.Kill(t)
		c.Leader(t) // the two that are left go on alone
		leader.Start(t)
		awaitTurn(t, c.Admin, "cluster/barrier", 0)
	}
	before := turnsOf(t, c.Admin, "cluster/barrier")
	c.Admin.Must(t, "rotate", "cluster", "barrier")
	awaitTurn(t, c.Admin, "cluster/barrier", before+1)
	sealBy := func(key uint32) {
		t.Helper()
		for _, n := range c.Nodes {
			harness.Within(t, 30*time.Second, n.ID+" seals by the newest key", func() error {
				if s, err := c.Status(t, n); err != nil || s.Barrier < key {
					return fmt.Errorf("%+v, %w", s, err)
				}
				return nil
			})
		}
	}
	leader, _ := c.Leader(t)
	newest, err := c.Status(t, leader)
	if err != nil || newest.Barrier < 2 {
		t.Fatalf("%+v, %v", newest, err)
	}
	sealBy(newest.Barrier)
	for _, n := range c.Nodes {
		n.Kill(t)
	}
	for _, n := range c.Nodes {
		n.Start(t)
	}
	sealBy(newest.Barrier)
	c.Admin.Must(t, "audit", "verify")
}

// turnsOf is how often something has turned.
func turnsOf(t *testing.T, operator harness.CLI, what string) uint64 {
	t.Helper()
	var list []wire.Rotation
	operator.JSON(t, &list, "get", "rotations")
	for _, r := range list {
		if what == strings.ToLower(r.Kind)+"/"+r.Name {
			return r.Turns
		}
	}
	t.Fatalf("%s is not among %+v", what, list)
	return 0
}

// awaitTurn waits until a secret has been replaced n times and nothing of it is on
// its way.
func awaitTurn(t *testing.T, operator harness.CLI, what string, n uint64) {
	t.Helper()
	harness.Within(t, 90*time.Second, what+" rests", func() error {
		var list []wire.Rotation
		operator.JSON(t, &list, "get", "rotations")
		for _, r := range list {
			if what != strings.ToLower(r.Kind)+"/"+r.Name {
				continue
			}
			if r.State == "turning" || r.State == "retiring" || r.Wanted != "" || r.Turns < n {
				return fmt.Errorf("%+v", r)
			}
			return nil
		}
		if n > 0 {
			return fmt.Errorf("%s is not among %+v", what, list)
		}
		return nil
	})
}
