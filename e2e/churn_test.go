package e2e_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
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
	lease      string
	credential map[string]string
	end        time.Time // of its lease, as it was told first
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
	answers  int
	logins   int
	tolerant int // answers that said "unavailable" in some way
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
// task's end, and expiry after a renewal where there is one.
func (c *churn) once(ctx context.Context, cl *client.Client, rng *rand.Rand) error {
	ttl := (c.kind.Shortest + time.Duration(rng.Int64N(int64(c.kind.Longest-c.kind.Shortest)))).Round(time.Millisecond)
	ask := wire.AccessRequest{Role: c.role, Purpose: "churn", TTL: ttl.String()}
	way := rng.IntN(4)
	if way == 2 {
		task, err := cl.StartTask(ctx, wire.StartTaskRequest{Name: fmt.Sprintf("churn-%d", rng.Uint64()), Purpose: "churn", TTL: (20*time.Second + c.kind.Longest).String()})
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
		c.received = append(c.received, received{a.LeaseID, a.Credential, a.ExpiresAt})
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
		_, err = cl.Revoke(ctx, a.LeaseID, wire.RevokeRequest{Reason: "churn"})
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
	harness.Within(t, c.kind.Patience, "the clients of "+c.role+" go on receiving credentials", func() error {
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
		began := time.Now()
		harness.NothingLeft(t, c.server, c.kind.Late)
		t.Logf("nothing is left on %s after %s", c.target, time.Since(began).Round(time.Millisecond))
		t.Logf("%s: %d credentials received in %d rounds, %d logins; %d rounds met an unavailable broker or target", c.role, len(c.received), c.answers, c.logins, c.tolerant)
		for _, err := range c.wrong {
			t.Errorf("%s: a client was told: %v", c.role, err)
		}
		if len(c.received) == 0 || c.logins == 0 {
			t.Errorf("%s: %d credentials received, %d logins: the test has shown nothing", c.role, len(c.received), c.logins)
		}
		c.named(t, cl)
		c.useless(t)
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
	for _, r := range c.received {
		name := c.server.Name(r.credential)
		if name == "" {
			l, err := cl.Lease(t.Context(), r.lease)
			if err != nil || l.Username == "" {
				t.Errorf("lease %s, as %q: %v", r.lease, l.Username, err)
				continue
			}
			name = l.Username
		}
		w, err := cl.Whohas(t.Context(), name)
		switch {
		case err != nil:
			t.Errorf("whohas %s: %v", name, err)
		case w.State != "ended" || w.LeaseID != r.lease || w.Lease.Username != name || w.Lease.Target != c.target:
			t.Errorf("whohas %s: state %s, lease %s of %s, user name %s, target %s", name, w.State, w.LeaseID, r.lease, w.Lease.Username, w.Lease.Target)
		}
	}
}

// useless tries credentials whose leases have ended: those of the last moments, and
// all where nothing but a try can tell.
func (c *churn) useless(t *testing.T) {
	t.Helper()
	few := c.received[max(0, len(c.received)-10):]
	if c.kind.Unlisted {
		few = c.received
	}
	if c.kind.ExpiresOnly {
		last := slices.MaxFunc(few, func(a, b received) int { return a.end.Compare(b.end) })
		<-time.After(time.Until(last.end))
	}
	for _, r := range few {
		ctx, cancel := context.WithTimeout(t.Context(), loginTimeout)
		if c.server.Login(ctx, r.credential) == nil {
			t.Errorf("%s: %s still logs in, %s after its end", c.role, r.lease, time.Since(r.end))
		}
		cancel()
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
