package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/e2e/harness"
)

// churnPolicy lets every workload take part.
const churnPolicy = `@id("churn")
permit (principal is Workload, action in [Action::"request", Action::"renew"], resource) when { context.session.bound };
`

const (
	churners     = 5 // of each kind
	shortestLife = 2 * time.Second
	longestLife  = 6 * time.Second
	loginTimeout = 5 * time.Second
)

// churn is a crowd of clients that ask for credentials of one role without end,
// and what they received.
type churn struct {
	target string
	role   string
	server harness.Server
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	received map[string]map[string]string // the credentials by name
	latest   []string                     // the names in their order
	answers  int
	logins   int
	tolerant int // answers that said "unavailable" in some way
	slowest  time.Duration
	wrong    []error
}

// startChurn runs one loop per client until stop.
func startChurn(t *testing.T, clients []*client.Client, server harness.Server, role string) *churn {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	target, _, _ := strings.Cut(role, "/")
	c := &churn{target: target, role: role, server: server, cancel: cancel, received: map[string]map[string]string{}}
	for i, cl := range clients {
		c.wg.Add(1)
		go func() {
			defer c.wg.Done()
			rng := rand.New(rand.NewPCG(uint64(i), 7))
			for ctx.Err() == nil {
				c.note(ctx, c.once(ctx, cl, rng))
			}
		}()
	}
	t.Cleanup(c.stop)
	return c
}

func (c *churn) stop() {
	c.cancel()
	c.wg.Wait()
}

// once takes one credential through one of four ends: expiry, revocation, its
// task's end, and expiry after a renewal.
func (c *churn) once(ctx context.Context, cl *client.Client, rng *rand.Rand) error {
	ttl := (shortestLife + time.Duration(rng.Int64N(int64(longestLife-shortestLife)))).Round(time.Millisecond)
	ask := wire.AccessRequest{Role: c.role, Purpose: "churn", TTL: ttl.String()}
	way := rng.IntN(4)
	if way == 2 {
		task, err := cl.StartTask(ctx, wire.StartTaskRequest{Name: fmt.Sprintf("churn-%d", rng.Uint64()), Purpose: "churn", TTL: "20s"})
		if err != nil {
			return fmt.Errorf("task start: %w", err)
		}
		ask.Task, ask.Purpose = task.ID, ""
	}
	began := time.Now()
	a, err := cl.Request(ctx, ask)
	c.mu.Lock()
	c.slowest = max(c.slowest, time.Since(began))
	if err == nil {
		name := c.server.Name(a.Credential)
		c.received[name], c.latest = a.Credential, append(c.latest, name)
	}
	c.mu.Unlock()
	if err != nil {
		return fmt.Errorf("request: %w", err)
	}
	if rng.IntN(4) == 0 {
		c.login(ctx, a.Credential)
	}
	switch way {
	case 1:
		_, err = cl.Revoke(ctx, a.LeaseID, wire.RevokeRequest{Reason: "churn"})
	case 2:
		_, err = cl.EndTask(ctx, ask.Task, 0)
	case 3:
		_, err = cl.Renew(ctx, a.LeaseID, wire.RenewRequest{TTL: "4s"})
	}
	if err != nil {
		return fmt.Errorf("way %d: %w", way, err)
	}
	return nil
}

// login uses a credential. Failing proves nothing: its lease may have ended, the
// server may be down.
func (c *churn) login(ctx context.Context, credential map[string]string) {
	ctx, cancel := context.WithTimeout(ctx, loginTimeout)
	defer cancel()
	if c.server.Login(ctx, credential) == nil {
		c.mu.Lock()
		c.logins++
		c.mu.Unlock()
	}
}

// note keeps what was no plain unavailability: that much a client must expect
// from a cluster whose nodes are being killed.
func (c *churn) note(ctx context.Context, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var e *client.Error
	switch {
	case err == nil:
		c.answers++
	case ctx.Err() != nil:
	case errors.As(err, &e) && (e.Retryable() || e.Problem.Kind == client.KindUpstream || e.Problem.Kind == client.KindRateLimited):
		c.tolerant++
	// A lease may have ended by itself before its client came to end or renew it.
	case errors.As(err, &e) && e.Problem.Kind == client.KindConflict, errors.As(err, &e) && e.Problem.Code == "task_ended":
		c.tolerant++
	default:
		c.wrong = append(c.wrong, err)
	}
}

// progress waits until n more credentials have been received.
func (c *churn) progress(t *testing.T, n int) {
	t.Helper()
	c.mu.Lock()
	want := len(c.received) + n
	c.mu.Unlock()
	harness.Within(t, 60*time.Second, "the clients of "+c.role+" go on receiving credentials", func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.received) < want {
			return fmt.Errorf("%d received, want %d; %d answers, %d unavailable, wrong: %v", len(c.received), want, c.answers, c.tolerant, errors.Join(c.wrong...))
		}
		return nil
	})
}

// account checks the laws after the crowds have stopped: nothing is left on any
// target, the ledger names every credential that anybody received, none of them
// opens anything, and the record is whole.
func account(t *testing.T, admin harness.CLI, crowds ...*churn) {
	t.Helper()
	cl := admin.Client(t, 30*time.Second)
	harness.AllEnded(t, cl, 90*time.Second)
	for _, c := range crowds {
		// From now on the ledger says that everything is gone: it must be so.
		harness.NothingLeft(t, c.server, 0)
		t.Logf("%s: %d credentials received in %d rounds, %d logins; %d rounds met an unavailable broker or target", c.role, len(c.received), c.answers, c.logins, c.tolerant)
		for _, err := range c.wrong {
			t.Errorf("%s: a client was told: %v", c.role, err)
		}
		if len(c.received) == 0 || c.logins == 0 {
			t.Errorf("%s: %d credentials received, %d logins: the test has shown nothing", c.role, len(c.received), c.logins)
		}
		c.named(t, cl)
		for _, name := range c.latest[max(0, len(c.latest)-10):] {
			if c.server.Login(t.Context(), c.received[name]) == nil {
				t.Errorf("%s: %s still logs in", c.role, name)
			}
		}
	}
	var verified wire.VerifyAnswer
	admin.JSON(t, &verified, "audit", "verify")
	if !verified.OK {
		t.Errorf("audit verify: %v", verified.Problems)
	}
	var drift []wire.Drift
	admin.JSON(t, &drift, "reconcile")
	for _, d := range drift {
		if d.Error != "" || len(d.Unknown)+len(d.Ended)+len(d.Missing) > 0 {
			t.Errorf("reconcile: %+v", d)
		}
	}
}

// named looks every credential up in the ledger.
func (c *churn) named(t *testing.T, cl *client.Client) {
	t.Helper()
	for name := range c.received {
		w, err := cl.Whohas(t.Context(), name)
		switch {
		case err != nil:
			t.Errorf("whohas %s: %v", name, err)
		case w.State != "ended" || w.Lease.Username != name || w.Lease.Target != c.target:
			t.Errorf("whohas %s: state %s, user name %s, target %s", name, w.State, w.Lease.Username, w.Lease.Target)
		}
	}
}

// decode reads one JSON document.
func decode(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%v:\n%s", err, text)
	}
}

// randomWord is a random word.
func randomWord() string { return fmt.Sprintf("%x", rand.Uint64()) }
