package e2e_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/e2e/harness"
	"github.com/mayfly-broker/mayfly/issuers/postgres/pgtest"
)

// Law 8: one broken target breaks nothing else. The first target hangs, as a
// machine does whose disk has stalled; the second must not notice.
func TestLaw8HungTargetLeavesOthersAlone(t *testing.T) {
	hung, sound := pgtest.Start(t), pgtest.Start(t)
	dev := harness.StartDev(t)
	dir := t.TempDir()
	harness.Database(t, hung, dev.Operator, dir, "hung")
	harness.Database(t, sound, dev.Operator, dir, "sound")
	cl := dev.Operator.Client(t, 0)
	ask := func(ctx context.Context, target, ttl string) (client.Access, error) {
		return cl.Request(ctx, wire.AccessRequest{Role: target + "/readonly", Purpose: "law 8", TTL: ttl})
	}
	for _, target := range []string{"hung", "sound"} {
		if _, err := ask(t.Context(), target, "3s"); err != nil {
			t.Fatal(err)
		}
	}
	if err := hung.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	resume := sync.OnceValue(func() error { return hung.Signal(syscall.SIGCONT) })
	t.Cleanup(func() { _ = resume() })
	// More askers than the hung target's pool has places.
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := ask(ctx, "hung", "3s"); err == nil {
				t.Error("a stopped target minted")
			}
		})
	}
	var slowest time.Duration
	for range 30 {
		began := time.Now()
		a, err := ask(t.Context(), "sound", "3s")
		if err != nil {
			t.Fatalf("the sound target: %v", err)
		}
		slowest = max(slowest, time.Since(began))
		if _, err := cl.Revoke(t.Context(), a.LeaseID, wire.RevokeRequest{}); err != nil {
			t.Fatalf("the sound target: %v", err)
		}
	}
	t.Logf("beside a hung target the slowest of 30 requests took %s", slowest)
	if slowest > 3*time.Second {
		t.Errorf("a request to the sound target took %s", slowest)
	}
	harness.NothingLeft(t, harness.Postgres{Server: sound}, 20*time.Second)
	wg.Wait()
	if err := resume(); err != nil {
		t.Fatal(err)
	}
	harness.AllEnded(t, dev.Operator.Client(t, 30*time.Second), 90*time.Second)
	harness.NothingLeft(t, harness.Postgres{Server: hung}, 0)
}

// A nearly full disk refuses what would fill it, and still ends what is there.
func TestBadDayDiskLow(t *testing.T) {
	pg := pgtest.Start(t)
	c := harness.StartCluster(t, harness.ClusterConfig{Nodes: 1})
	harness.Database(t, pg, c.Admin, c.Dir, "orders")
	var a wire.AccessAnswer
	c.Admin.JSON(t, &a, "request", "orders/readonly", "--purpose", "before", "--ttl", "1h")
	var brief wire.AccessAnswer
	c.Admin.JSON(t, &brief, "request", "orders/readonly", "--purpose", "before", "--ttl", "5s")
	// The same node with a reserve that no disk has free.
	c.Reconfigure(t, `"disk": {"reserve_mib": 1000000000, "floor_mib": 1}`)
	c.Nodes[0].Kill(t)
	c.Nodes[0].Start(t)
	c.Leader(t)
	c.Admin.Refused(t, 5, "disk_low", "request", "orders/readonly", "--purpose", "no room", "--retry", "0")
	c.Admin.Must(t, "lease", "revoke", a.LeaseID)
	harness.AllEnded(t, c.Admin.Client(t, 10*time.Second), 30*time.Second)
	harness.NothingLeft(t, harness.Postgres{Server: pg}, 0)
	c.Admin.Must(t, "whohas", brief.Credential["username"])
}

// Law 6: no secret at rest or in a log. Everything that was ever minted is
// looked for, in several encodings, in every file that the broker wrote.
func TestLaw6NoSecretAtRestOrInLogs(t *testing.T) {
	h := newHouse(t)
	h.operator.ApplyPolicy(t, h.dir, "churn", churnPolicy)
	crowd := startChurn(t, h.operator.EnrolClients(t, h.dir, "workload:churn", 4, 5*time.Second), harness.Kind{}, harness.Postgres{Server: h.pg}, "orders/readonly")
	crowd.progress(t, 30)
	h.dev.Kill(t)
	h.dev.Start(t)
	crowd.progress(t, 10)
	crowd.stop()
	needles := map[string][]byte{"the target's admin password": []byte(h.pg.Password)}
	for _, r := range crowd.received {
		needles["the password of "+r.Lease] = []byte(r.Credential["password"])
	}
	export := h.operator.Must(t, "audit", "export")
	seen := 0
	look := func(where string, content []byte) {
		seen++
		for what, n := range needles {
			for how, form := range map[string][]byte{"clear": n, "base64": []byte(base64.StdEncoding.EncodeToString(n)), "hex": []byte(hex.EncodeToString(n))} {
				if bytes.Contains(content, form) {
					t.Errorf("%s holds %s (%s)", where, what, how)
				}
			}
		}
	}
	look("the audit export", []byte(export))
	client := filepath.Join(h.dev.Home(), "client") // the operator's own home, not the broker's
	err := filepath.WalkDir(h.dev.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasPrefix(path, client) {
			return err
		}
		content, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) { // a segment that was dropped meanwhile
			return nil
		}
		look(path, content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen < 5 || len(needles) < 40 {
		t.Fatalf("looked for %d secrets in %d files: that shows nothing", len(needles), seen)
	}
}

// Law 5: no answer before its record: what a client was told stands in the
// ledger even if the broker dies in the same instant.
func TestLaw5NoAnswerBeforeItsRecord(t *testing.T) {
	h := newHouse(t)
	cl := h.worker.Client(t, 0)
	for i := range 3 {
		a, err := cl.Request(t.Context(), wire.AccessRequest{Role: "orders/readonly", Purpose: "law 5", TTL: "5s"})
		if err != nil {
			t.Fatal(err)
		}
		_, denied := cl.Request(t.Context(), wire.AccessRequest{Role: "orders/readwrite", Purpose: "law 5"})
		h.dev.Kill(t)
		h.dev.Start(t)
		var e *client.Error
		if !errors.As(denied, &e) || e.Problem.DecisionID == "" {
			t.Fatalf("round %d: want a denial: %v", i, denied)
		}
		for _, id := range []string{a.DecisionID, e.Problem.DecisionID} {
			var d wire.Decision
			h.operator.JSON(t, &d, "policy", "explain", id)
			if d.Actor != "workload:billing" {
				t.Errorf("decision %s is %s's", id, d.Actor)
			}
		}
		var w wire.Whohas
		h.operator.JSON(t, &w, "whohas", a.Credential["username"])
		if w.LeaseID != a.LeaseID {
			t.Errorf("whohas: %s, want %s", w.LeaseID, a.LeaseID)
		}
	}
}
