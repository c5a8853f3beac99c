package e2e_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/e2e/harness"
)

// fault is a way in which a target's server is away for a time.
type fault struct {
	name string
	down func(harness.Server) error
	up   func(*testing.T, harness.Server) error
	// refuses: a request is answered at once.
	refuses bool
}

var faults = []fault{
	{"hangs", func(s harness.Server) error { return s.Signal(syscall.SIGSTOP) }, func(_ *testing.T, s harness.Server) error { return s.Signal(syscall.SIGCONT) }, false},
	{"is killed", harness.Server.Kill, startAgain, true},
	{"restarts", harness.Server.Stop, startAgain, true},
}

func startAgain(t *testing.T, s harness.Server) error { return s.StartAgain(t.Context()) }

// A target of each kind goes away in the midst of mints and withdrawals, for
// longer than its leases live; in one case in three the broker dies meanwhile.
// The targets of all other kinds must not notice (law 8), and when it is back
// nothing stays on it (laws 1 and 2).
func TestBadDayTargetOutage(t *testing.T) {
	dev := harness.StartDev(t)
	crowds := startFleet(t, dev.Operator, t.TempDir(), time.Second)
	crowds.progress(t, 3)
	first := rand.IntN(3)
	for round := range 1 + *kills/100 {
		for i, victim := range crowds {
			if victim.kind.Apart {
				continue // it takes part as one of the others
			}
			// a short run has one fault of each kind, another in the next run
			some := faults[(first+i+round)%3:][:1]
			if long() {
				some = faults
			}
			for j, f := range some {
				t.Logf("%s %s", victim.target, f.name)
				crowds.outage(t, dev, victim, f, (first+i+j+round)%3 == 0)
			}
		}
	}
	crowds.account(t, dev.Operator)
}

// outage takes one target away and brings it back.
func (f fleet) outage(t *testing.T, dev *harness.Dev, victim *churn, by fault, crash bool) {
	t.Helper()
	up := sync.OnceValue(func() error { return by.up(t, victim.server) })
	if err := by.down(victim.server); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = up() }() // a server that hangs could not be ended
	if by.refuses {
		refused(t, dev, victim)
	}
	if crash {
		dev.Kill(t)
		dev.Start(t)
		f.reborn()
	}
	if !victim.kind.ExpiresOnly {
		awaitEnding(t, dev, victim)
	}
	f.others(t, victim)
	if err := up(); err != nil {
		t.Fatal(err)
	}
	victim.progress(t, 3)
}

// refused says that a request is answered at once that its target is away. The first
// may find a connection on which nobody knows yet what became of a question.
func refused(t *testing.T, dev *harness.Dev, victim *churn) {
	t.Helper()
	cl := dev.Operator.Client(t, 0)
	harness.Within(t, 5*time.Second, victim.target+" is away, and a request is told so", func() error {
		var e *client.Error
		_, err := cl.Request(t.Context(), wire.AccessRequest{Role: victim.role, Purpose: "in vain", TTL: "3s"})
		if errors.As(err, &e) && e.Problem.Kind == client.KindUnavailable && e.Problem.Code == "target_unavailable" {
			return nil
		}
		return fmt.Errorf("it gets %w", err)
	})
}

// awaitEnding waits until a lease is to end on a target that is away.
func awaitEnding(t *testing.T, dev *harness.Dev, victim *churn) {
	t.Helper()
	cl := dev.Operator.Client(t, 30*time.Second)
	harness.Within(t, victim.kind.Patience, "leases end while "+victim.target+" is away", func() error {
		list, err := cl.Leases(t.Context(), client.Filter{Target: victim.target, State: "ending", Limit: 1})
		if err == nil && len(list) == 0 {
			err = errors.New("none is ending")
		}
		return err
	})
}

// others checks that the other targets go on as if nothing had happened: none of
// their requests waits for what is away.
func (f fleet) others(t *testing.T, victim *churn) {
	t.Helper()
	var told []string
	for _, c := range f {
		if c == victim {
			continue
		}
		c.mu.Lock()
		c.slowest = 0
		c.mu.Unlock()
		c.progress(t, 10)
		c.mu.Lock()
		told = append(told, fmt.Sprintf("%s %s", c.target, c.slowest.Round(time.Millisecond)))
		if c.slowest > 5*time.Second {
			t.Errorf("%s is away, and a request to %s takes %s", victim.target, c.target, c.slowest)
		}
		c.mu.Unlock()
	}
	t.Log("the slowest of the others' requests meanwhile: " + strings.Join(told, ", "))
}
