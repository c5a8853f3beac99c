package e2e_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/e2e/harness"
)

// rotatingObjects are of one target each; TARGET is its name.
const rotatingObjects = `
kind: Account
name: TARGET-billing
spec: {target: TARGET, usernames: [billing_a, billing_b], grace: 10s}
---
kind: Account
name: TARGET-report
spec: {target: TARGET, usernames: [report]}
---
kind: Role
name: TARGET/billing
spec: {account: TARGET-billing, ttl: {default: 8s, max: 10s}}
---
kind: Role
name: TARGET/report
spec: {account: TARGET-report, ttl: {default: 5s, max: 1m}}
`

const rotatingPolicy = `@id("rotating") permit (principal, action == Action::"request", resource);`

// rotatingUsers is how many clients use each target's account with two names.
const rotatingUsers = 3

// rotating is a target whose accounts' secrets, and whose own, are replaced, and
// the clients that request the account with two names in a loop and log in by what
// they get for as long as it was given to them.
type rotating struct {
	target string
	server harness.Rotating

	mu      sync.Mutex
	logins  int
	refused []string
}

// startRotating starts a server of a kind and adds target, accounts and roles.
func startRotating(t *testing.T, op harness.CLI, dir string, kinds []harness.Kind) (all []*rotating) {
	t.Helper()
	servers := harness.StartKinds(t, kinds)
	for _, k := range kinds {
		s, ok := servers[k.Name].(harness.Rotating)
		if !ok {
			t.Fatalf("%s rotates, and no account can be made there", k.Name)
		}
		r := &rotating{target: k.Name + "1", server: s}
		s.Add(t, op, dir, r.target)
		for _, name := range []string{"billing_a", "billing_b", "report"} {
			s.Account(t, r.target, name, "old")
		}
		op.Apply(t, strings.ReplaceAll(rotatingObjects, "TARGET", r.target))
		all = append(all, r)
	}
	return all
}

// what are the three things that turn.
func (r *rotating) what() []string {
	return []string{"account/" + r.target + "-billing", "account/" + r.target + "-report", "target/" + r.target}
}

func (r *rotating) loop(ctx context.Context, cl *client.Client) {
	for ctx.Err() == nil {
		a, err := cl.Request(ctx, wire.AccessRequest{Role: r.target + "/billing", Purpose: "loop"})
		for err == nil && ctx.Err() == nil && time.Until(a.ExpiresAt) > 200*time.Millisecond {
			r.login(ctx, a)
			select {
			case <-ctx.Done():
			case <-time.After(150 * time.Millisecond):
			}
		}
	}
}

// login counts only what the server refused before the lease's end: on a busy
// machine a login can arrive after it.
func (r *rotating) login(ctx context.Context, a client.Access) {
	in, err := r.server.Enters(ctx, a.Credential)
	left := time.Until(a.ExpiresAt)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case in && err == nil:
		r.logins++
	case !in && err == nil && ctx.Err() == nil && left > 0:
		r.refused = append(r.refused, fmt.Sprintf("%s, %s before its end", a.Credential["username"], left))
	}
}

// mustEnter fails the test unless the server lets a login in, or refuses it.
func (r *rotating) mustEnter(t *testing.T, credential map[string]string, want bool, what string) {
	t.Helper()
	if in, err := r.server.Enters(t.Context(), credential); err != nil || in != want {
		t.Errorf("%s: %s: let in %v, want %v: %v", r.target, what, in, want, err)
	}
}

// TestRotationSurvivesKills: secrets of accounts and of the broker's own are
// replaced, on a target of each kind that rotates, while the broker is killed with
// -9 again and again. Nobody is ever locked out, and whoever uses an account with
// two names never sees a refused login.
func TestRotationSurvivesKills(t *testing.T) {
	kinds := slices.DeleteFunc(harness.Kinds(), func(k harness.Kind) bool { return !k.Rotates })
	isChosen := func(k harness.Kind) bool { return slices.Contains(strings.Split(*chosen, ","), k.Name) }
	if slices.ContainsFunc(kinds, isChosen) {
		kinds = slices.DeleteFunc(kinds, func(k harness.Kind) bool { return !isChosen(k) })
	}
	dev := harness.StartDev(t)
	dir := t.TempDir()
	dev.Operator.ApplyPolicy(t, dir, "rotating", rotatingPolicy)
	all := startRotating(t, dev.Operator, dir, kinds)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	for _, r := range all {
		awaitTurn(t, dev.Operator, r.what()[0], 1)
		for _, cl := range dev.Operator.EnrolClients(t, dir, "workload:"+r.target, rotatingUsers, 10*time.Second) {
			wg.Go(func() { r.loop(ctx, cl) })
		}
	}
	op := dev.Operator.Client(t, 0)
	var hit []string
	for i := range max(*kills/4, 6) {
		for j, r := range all {
			kind, name, _ := strings.Cut(r.what()[(i+j)%3], "/")
			// a command of its own would come when the node is dead; the answer dies with it
			go func() { _, _ = op.Rotate(ctx, wire.RotateRequest{Kind: kind, Name: name}) }()
		}
		randomInstant(time.Duration(len(all)) * 100 * time.Millisecond)
		killed := time.Now()
		dev.Kill(t)
		dev.Start(t)
		for _, r := range all {
			for _, what := range r.what() {
				if x := awaitTurn(t, dev.Operator, what, 0); x.BegunAt != nil && x.BegunAt.Before(killed) && (x.DoneAt == nil || x.DoneAt.After(killed)) {
					hit = append(hit, what)
				}
			}
			var a wire.AccessAnswer
			dev.Operator.JSON(t, &a, "request", r.target+"/report", "--purpose", "still there")
			r.mustEnter(t, a.Credential, true, fmt.Sprintf("after kill %d report", i+1))
			dev.Operator.Must(t, "request", r.target+"/readonly", "--purpose", "the broker's own secret still opens the target")
		}
	}
	cancel()
	wg.Wait()
	t.Logf("the broker died in the midst of %d rotations: %v", len(hit), hit)
	for _, r := range all {
		r.account(t, dev.Operator)
	}
	dev.Operator.Must(t, "audit", "verify")
}

// account says what the clients of one target met, and that what people knew of it
// opens nothing any more.
func (r *rotating) account(t *testing.T, op harness.CLI) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.refused) > 0 || r.logins < 50 {
		t.Errorf("%s: %d logins, %d refused: %v", r.target, r.logins, len(r.refused), r.refused)
	}
	harness.Within(t, 60*time.Second, r.target+": the last grace has ended", func() error {
		var o wire.Object
		op.JSON(t, &o, "get", "account", r.target+"-billing")
		if o.Rotation == nil || o.Rotation.State != "idle" {
			return fmt.Errorf("%+v", o.Rotation)
		}
		return nil
	})
	op.Must(t, "rotate", "target/"+r.target) // those that were asked for may have died with their node
	t.Logf("%s: %d logins, none refused; the account with two names turned %d times, that with one %d, the broker's own %d",
		r.target, r.logins, turnsOf(t, op, r.what()[0]), turnsOf(t, op, r.what()[1]), turnsOf(t, op, r.what()[2]))
	admin, first := r.server.Admin()
	for _, known := range [][2]string{{"billing_a", "old"}, {"billing_b", "old"}, {"report", "old"}, {admin, first}} {
		r.mustEnter(t, map[string]string{"username": known[0], "password": known[1]}, false, "the first secret of "+known[0]+", which people know")
	}
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
// its way; zero is of what has never turned.
func awaitTurn(t *testing.T, operator harness.CLI, what string, n uint64) (last wire.Rotation) {
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
			last = r
			return nil
		}
		if n > 0 {
			return fmt.Errorf("%s is not among %+v", what, list)
		}
		return nil
	})
	return last
}
