package main

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/clienttest"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// Pages are asked for until the range is done, and what they say of one
// principal, action and resource comes together.
func TestReplayJoinsPages(t *testing.T) {
	c := clienttest.New(t, 1)
	at := func(hour int) time.Time { return time.Date(2026, 1, 1, hour, 0, 0, 0, time.UTC) }
	group := func(who string, n, hour int) wire.PolicyReplayGroup {
		return wire.PolicyReplayGroup{Change: wire.ChangePermitToDeny, Principal: who, Action: "request", Resource: "Role/orders/x", Count: n, Already: 1, First: at(hour), Last: at(hour + 1), DecisionID: "dec_" + who}
	}
	page := func(next uint64, hash string, groups ...wire.PolicyReplayGroup) wire.PolicyReplayAnswer {
		first, last := groups[0].First, groups[0].Last
		a := wire.PolicyReplayAnswer{From: 1, To: 30, Next: next, First: &first, Last: &last, Entries: 10, PolicyHash: hash, Groups: groups}
		for _, g := range groups {
			a.PermitToDeny += g.Count
		}
		return a
	}
	pages := []wire.PolicyReplayAnswer{page(11, "h", group("human:a", 2, 1)), page(21, "h", group("human:b", 9, 3), group("human:a", 3, 3)), page(0, "h", group("human:a", 1, 5))}
	calls := 0
	c.Handle("POST /api/v1/policy/replay", func(clienttest.Call) (int, any) { calls++; return 200, pages[calls-1] })
	dir := filepath.Join(t.TempDir(), "home")
	home(t, c, dir)
	cl, err := client.New(client.Config{Addresses: client.SplitAddresses(c.Addr()), CAFile: c.CAFile, Home: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	s := testShell(nil)
	a, err := s.replay(t.Context(), cl, wire.PolicyReplayRequest{})
	if err != nil || calls != 3 || a.Entries != 30 || a.PermitToDeny != 15 || a.Next != 0 || len(a.Groups) != 2 || !a.First.Equal(at(1)) || !a.Last.Equal(at(6)) {
		t.Fatalf("%+v, %v, %d calls", a, err, calls)
	}
	if g := a.Groups[1]; a.Groups[0].Principal != "human:b" || g.Count != 6 || g.Already != 3 || !g.First.Equal(at(1)) || !g.Last.Equal(at(6)) {
		t.Errorf("%+v", a.Groups)
	}
	last := c.Calls("POST", "/api/v1/policy/replay")[2]
	if !strings.Contains(string(last.Body), `"from":21,"to":30`) {
		t.Errorf("%s", last.Body)
	}
	calls, pages = 0, []wire.PolicyReplayAnswer{page(11, "h", group("human:a", 2, 1)), page(0, "other", group("human:a", 2, 1))}
	if _, err := s.replay(t.Context(), cl, wire.PolicyReplayRequest{}); err == nil || !strings.Contains(err.Error(), "changed meanwhile") {
		t.Errorf("policies that change between pages: %v", err)
	}
}
