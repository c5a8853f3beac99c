package client_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/clienttest"
	"github.com/mayfly-broker/mayfly/client/wire"
)

var waits = wire.AccessRequest{Role: "orders/waiting", Purpose: "p"}

// watching collects how many have signed at each version, and does something
// at the first.
func watching(have *[]int, first func(id string)) func(wire.Grant) {
	return func(g wire.Grant) {
		*have = append(*have, g.Needs[0].Have)
		if len(*have) == 1 {
			first(g.ID)
		}
	}
}

func TestRequestWaitsForApprovalsAndCollects(t *testing.T) {
	c := clienttest.New(t, 2)
	cl := asAnn(t, c, config(t, c))
	var have []int
	a, err := cl.RequestAndWait(t.Context(), waits, watching(&have, func(id string) {
		go func() {
			c.Approve(id, "human:bo")
			c.Approve(id, "human:kim")
		}()
	}))
	if err != nil || a.Status != client.StatusIssued || a.Credential["password"] == "" {
		t.Fatalf("%+v, %v", a, err)
	}
	if have[0] != 0 || have[len(have)-1] != 2 {
		t.Errorf("progress %v", have)
	}
	if got := len(c.Open()); got != 1 {
		t.Errorf("%d leases", got)
	}
}

// Nodes go away and another leads while people make up their minds.
func TestWaitingOutlivesNodesAndLeaders(t *testing.T) {
	c := clienttest.New(t, 2)
	cfg := config(t, c)
	cfg.Retry = 0
	var retries int
	cfg.OnRetry = func(error, time.Duration) {
		if retries++; retries == 1 {
			c.Heal()
			c.Lead(2)
			c.Approve("", "human:bo")
			c.Approve("", "human:kim")
		}
	}
	cl := asAnn(t, c, cfg)
	var have []int
	a, err := cl.RequestAndWait(t.Context(), waits, watching(&have, func(string) {
		c.Fail(clienttest.Failure{Method: "GET", Prefix: "/api/v1/grants", Problem: clienttest.Unavailable("no_leader")})
	}))
	if err != nil || a.Status != client.StatusIssued {
		t.Fatalf("%+v, %v", a, err)
	}
	if retries == 0 {
		t.Error("the nodes were never away")
	}
}

func TestALostAnswerToCollectingGivesTheSameLease(t *testing.T) {
	c := clienttest.New(t, 1)
	cl := asAnn(t, c, config(t, c))
	ctx := client.WithIdempotencyKey(t.Context(), "mine")
	c.Fail(clienttest.Failure{Method: "POST", Prefix: "/api/v1/grants", Times: 1, After: true})
	a, err := cl.RequestAndWait(ctx, waits, func(g wire.Grant) {
		if g.State == wire.GrantWaiting && len(g.Approvals) == 0 {
			go func() {
				c.Approve(g.ID, "human:bo")
				c.Approve(g.ID, "human:kim")
			}()
		}
	})
	if err != nil || a.LeaseID == "" || len(c.Open()) != 1 {
		t.Fatalf("%+v, %v, %d leases", a, err, len(c.Open()))
	}
	asked, collected := c.Calls("POST", "/api/v1/requests"), c.Calls("POST", "/api/v1/grants")
	other := slices.ContainsFunc(collected, func(k clienttest.Call) bool { return k.Idem != collected[0].Idem })
	if asked[0].Idem != "mine" || len(collected) < 2 || other || collected[0].Idem == "mine" {
		t.Errorf("idempotency keys: %q, %+v", asked[0].Idem, collected)
	}
}

func TestWaitingEndsWithItsContext(t *testing.T) {
	c := clienttest.New(t, 1)
	cl := asAnn(t, c, config(t, c))
	ctx, cancel := context.WithCancel(t.Context())
	a, err := cl.RequestAndWait(ctx, waits, func(wire.Grant) { cancel() })
	if !errors.Is(err, context.Canceled) || a.Status != client.StatusWaiting || a.GrantID == "" {
		t.Fatalf("%+v, %v", a, err)
	}
	g, err := cl.Grant(t.Context(), a.GrantID)
	if err != nil || g.State != wire.GrantWaiting {
		t.Errorf("the grant is %s, %v", g.State, err)
	}
}

func TestWaitingForAGrantThatEnds(t *testing.T) {
	for state, want := range map[string]string{wire.GrantDenied: client.CodeGrantOver, wire.GrantRevoked: client.CodeGrantOver, wire.GrantCancelled: client.CodeGrantOver,
		wire.GrantExpired: client.CodeGrantOver, wire.GrantVoid: client.CodeGrantVoid, wire.GrantEnded: client.CodeGrantOver} {
		c := clienttest.New(t, 1)
		cl := asAnn(t, c, config(t, c))
		_, err := cl.RequestAndWait(t.Context(), waits, func(g wire.Grant) {
			if g.State == wire.GrantWaiting {
				go c.End(g.ID, state, "human:bo", "not today")
			}
		})
		e := kind(t, err, client.KindDenied)
		if e.Problem.Code != want || e.Problem.DecisionID == "" {
			t.Errorf("%s: %+v", state, e.Problem)
		}
	}
}

// A broker that says approved and then waits again, as when a signature ceased
// to count, is not asked without end.
func TestApprovalThatCeasesToCountIsWaitedFor(t *testing.T) {
	c := clienttest.New(t, 1)
	cl := asAnn(t, c, config(t, c))
	id := c.Ask(ann, "orders/waiting", "p", wire.GrantAccess, nil)
	c.Approve(id, "human:bo")
	c.Approve(id, "human:kim")
	c.Handle("POST /api/v1/grants/"+id+"/collect", func(k clienttest.Call) (int, any) {
		return 202, wire.AccessAnswer{Status: "waiting", GrantID: id}
	})
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	_, err := cl.AwaitAndCollect(ctx, id, wire.CollectRequest{}, nil)
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) < time.Second {
		t.Fatalf("%v after %s", err, time.Since(began))
	}
	if got := len(c.Calls("POST", "/api/v1/grants")); got > 3 {
		t.Errorf("%d calls in 1.5 s", got)
	}
}

func TestGrantCalls(t *testing.T) {
	c := clienttest.New(t, 1)
	cl := asAnn(t, c, config(t, c))
	ctx := t.Context()
	theirs := c.Ask("human:zoe", "orders/waiting", "p", wire.GrantAccess, nil)
	mine := c.Ask(ann, "orders/waiting", "p", wire.GrantAccess, nil)
	ids := func(f client.GrantFilter) []string {
		list, err := cl.Grants(ctx, f)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, g := range list {
			out = append(out, g.ID)
		}
		return out
	}
	if got := ids(client.GrantFilter{Mine: true}); !slices.Equal(got, []string{mine}) {
		t.Errorf("mine: %v", got)
	}
	if got := ids(client.GrantFilter{Pending: true, State: wire.GrantWaiting, Limit: 5}); !slices.Equal(got, []string{theirs}) {
		t.Errorf("pending: %v", got)
	}
	g, err := cl.Grant(ctx, theirs)
	if err != nil {
		t.Fatal(err)
	}
	if g, err = cl.ApproveGrant(ctx, theirs, wire.ApproveRequest{Hash: g.Hash}); err != nil || g.Needs[0].Have != 1 {
		t.Errorf("%+v, %v", g, err)
	}
	if _, err = cl.ApproveGrant(ctx, mine, wire.ApproveRequest{}); kind(t, err, client.KindDenied).Problem.Code != client.CodeSelfApproval {
		t.Errorf("%v", err)
	}
	if g, err = cl.DenyGrant(ctx, theirs, wire.EndGrantRequest{Reason: "no"}); err != nil || g.State != wire.GrantDenied || g.EndReason != "no" {
		t.Errorf("%+v, %v", g, err)
	}
	if g, err = cl.CancelGrant(ctx, mine, wire.EndGrantRequest{}); err != nil || g.State != wire.GrantCancelled {
		t.Errorf("%+v, %v", g, err)
	}
	if g, err = cl.RevokeGrant(ctx, mine, wire.EndGrantRequest{}); err != nil || g.State != wire.GrantRevoked {
		t.Errorf("%+v, %v", g, err)
	}
	c.Alter(mine, func(g *wire.Grant) { g.Review = &wire.Review{} })
	if g, err = cl.ReviewGrant(ctx, mine, wire.ReviewRequest{Verdict: "justified"}); err != nil || !g.Review.Done {
		t.Errorf("%+v, %v", g, err)
	}
	d, err := cl.KeyDocument(ctx, "", wire.ApproveKey{JWK: []byte(`{}`)})
	if err != nil || d.Domain != "mayfly.key.v1" || d.Hash == "" {
		t.Errorf("%+v, %v", d, err)
	}
}

// A change is made with its last approval: who collects it afterwards, or waits
// for it, hears that it is.
func TestAChangeThatIsMadeIsCollected(t *testing.T) {
	c := clienttest.New(t, 1)
	cl := asAnn(t, c, config(t, c))
	id := c.Ask(ann, "", "", wire.GrantChange, nil)
	a, err := cl.AwaitAndCollect(t.Context(), id, wire.CollectRequest{}, func(g wire.Grant) {
		if g.State == wire.GrantWaiting && len(g.Approvals) == 0 {
			go func() {
				c.Approve(id, "human:bo")
				c.Approve(id, "human:kim")
			}()
		}
	})
	if err != nil || a.Status != client.StatusIssued || a.GrantID != id {
		t.Fatalf("%+v, %v", a, err)
	}
	if a, err = cl.CollectGrant(t.Context(), id, wire.CollectRequest{}); err != nil || a.Status != client.StatusIssued {
		t.Errorf("%+v, %v", a, err)
	}
	c.End(id, wire.GrantDenied, "human:bo", "")
	if _, err = cl.CollectGrant(t.Context(), id, wire.CollectRequest{}); kind(t, err, client.KindDenied).Problem.Code != client.CodeGrantOver {
		t.Errorf("a denied change: %v", err)
	}
}
