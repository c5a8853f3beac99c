package e2e_test

import (
	"cmp"
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
	patience     = time.Minute
	loginTimeout = 5 * time.Second
)

// received is a credential that somebody was given.
type received struct {
	harness.Given
	end time.Time // of its lease, as it was told first
}

// churn is a crowd of clients that ask for credentials of one role without end,
// and what they received.
type churn struct {
	kind   harness.Kind
	target string
	role   string
	server harness.Server
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	received []received // in their order
	since    int        // how many had been received when a process last died
	answers  int
	logins   int
	tolerant int   // answers that said "unavailable" in some way
	last     error // of them
	slowest  time.Duration
	wrong    []error
}

// startChurn runs one loop per client until stop.
func startChurn(t *testing.T, clients []*client.Client, kind harness.Kind, server harness.Server, role string) *churn {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	target, _, _ := strings.Cut(role, "/")
	kind.Shortest, kind.Longest, kind.Patience = cmp.Or(kind.Shortest, shortestLife), cmp.Or(kind.Longest, longestLife), cmp.Or(kind.Patience, patience)
	c := &churn{kind: kind, target: target, role: role, server: server, cancel: cancel}
	for i, cl := range clients {
		c.wg.Add(1)
		go func() {
			defer c.wg.Done()
			rng := rand.New(rand.NewPCG(uint64(i), 7))
			for ctx.Err() == nil {
				c.note(ctx, c.once(ctx, cl, rng))
				rest(ctx, c.kind.Pause)
			}
		}()
	}
	t.Cleanup(c.stop)
	return c
}

// rest waits, unless the test ends.
func rest(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (c *churn) stop() {
	c.cancel()
	c.wg.Wait()
}

// once takes one credential through one of four ends: expiry, revocation, its
// task's end, and expiry after a renewal where there is one.
func (c *churn) once(ctx context.Context, cl *client.Client, rng *rand.Rand) error {
	ttl := (c.kind.Shortest + time.Duration(rng.Int64N(int64(c.kind.Longest-c.kind.Shortest)))).Round(time.Millisecond)
	way := rng.IntN(4)
	if early := c.kind.EndedEarly; early > 0 && (way == 1 || way == 2) {
		ttl = early
	}
	ask := wire.AccessRequest{Role: c.role, Purpose: "churn", TTL: ttl.String()}
	if way == 2 {
		task, err := cl.StartTask(ctx, wire.StartTaskRequest{Name: fmt.Sprintf("churn-%d", rng.Uint64()), Purpose: "churn", TTL: (20*time.Second + max(ttl, c.kind.Longest)).String()})
		if err != nil {
			return fmt.Errorf("task start: %w", err)
		}
		ask.Task, ask.Purpose = task.ID, ""
	}
	began, keyed := time.Now(), client.WithIdempotencyKey(ctx, randomWord())
	a, err := cl.Request(keyed, ask)
	c.mu.Lock()
	c.slowest = max(c.slowest, time.Since(began))
	if err == nil {
		c.received = append(c.received, received{harness.Given{Lease: a.LeaseID, Credential: a.Credential}, a.ExpiresAt})
	}
	c.mu.Unlock()
	if err != nil {
		return fmt.Errorf("request: %w", err)
	}
	if rng.IntN(4) == 0 {
		c.login(ctx, a.Credential)
	}
	switch {
	case way == 1:
		if _, err = cl.Revoke(ctx, a.LeaseID, wire.RevokeRequest{Reason: "churn"}); err == nil && rng.IntN(4) == 0 {
			return c.again(keyed, cl, ask)
		}
	case way == 2:
		_, err = cl.EndTask(ctx, ask.Task, 0)
	case way == 3 && a.Renewable:
		_, err = cl.Renew(ctx, a.LeaseID, wire.RenewRequest{TTL: "4s"})
	}
	if err != nil {
		return fmt.Errorf("way %d: %w", way, err)
	}
	return nil
}

// again repeats a request whose lease has ended, as a client does that lost the
// answer: nothing may be given out any more, whoever leads by now.
func (c *churn) again(ctx context.Context, cl *client.Client, ask wire.AccessRequest) error {
	a, err := cl.Request(ctx, ask)
	if err == nil {
		return fmt.Errorf("lease %s has ended, and a repeated request is given a credential", a.LeaseID)
	}
	return err
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
		c.tolerant, c.last = c.tolerant+1, err
	// A lease may have ended by itself before its client came to end or renew it.
	case errors.As(err, &e) && e.Problem.Kind == client.KindConflict, errors.As(err, &e) && e.Problem.Code == "task_ended":
		c.tolerant, c.last = c.tolerant+1, err
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
	harness.Within(t, c.kind.Patience, "the clients of "+c.role+" go on receiving credentials", func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.received) < want {
			return fmt.Errorf("%d received, want %d; %d answers, %d unavailable (at last: %v), wrong: %v", len(c.received), want, c.answers, c.tolerant, c.last, errors.Join(c.wrong...))
		}
		return nil
	})
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
