package broker_test

import (
	"encoding/json"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/issuers"
)

// previous asks what the requester had before a grant.
func (r *rig) previous(who broker.Caller, id string) wire.PreviousAccess {
	r.t.Helper()
	p, err := r.engine.PreviousAccess(r.t.Context(), who, id)
	if err != nil {
		r.t.Fatal(err)
	}
	return p
}

func TestPreviousAccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeople(t)
		p.lead()
		defer p.stop()
		p.put("Role", "t2/priv2", simRole(simScopeBoth, "20m", "1h", `{}`, ""))
		bo, read := p.who["human:bo"], json.RawMessage(simScopeRead)
		want := func(what, id string, check func(wire.PreviousAccess) bool, text string) {
			t.Helper()
			if got := p.previous(bo, id); !check(got) || got.Text != text || got.Cut || got.Days != 30 || got.Principal != "workload:a" || got.Target != "t2" {
				t.Errorf("%s: %+v, want %q", what, got, text)
			}
		}
		ask := func(purpose string, scope json.RawMessage) string {
			t.Helper()
			return p.ask("workload:a", wire.AccessRequest{Role: "t2/priv", Purpose: purpose, Scope: scope}).GrantID
		}
		use := func(id string) {
			t.Helper()
			for _, who := range []string{"human:bo", "human:kim"} {
				if _, err := p.approve(who, id); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := p.collect("workload:a", id); err != nil {
				t.Fatal(err)
			}
			wait(time.Hour)
		}
		first := ask("one", read)
		want("nothing before", first, func(a wire.PreviousAccess) bool {
			return a.Seen == wire.SeenNever && a.Count == 0 && a.OnTarget == 0 && a.Wider && a.Last == nil
		}, "first time on this role")
		use(first)
		want("its own lease is none before", first, func(a wire.PreviousAccess) bool { return a.Seen == wire.SeenNever }, "first time on this role")

		second := ask("two", nil)
		want("wider", second, func(a wire.PreviousAccess) bool {
			return a.Seen == wire.SeenRecently && a.Count == 1 && a.Wider && len(a.NewActions) == 1 && a.NewActions[0] == "write" && a.Last != nil && a.Scope.String() == simScopeRead && a.By != ""
		}, "once in 30 days, never with write")
		third := ask("three", read)
		want("no wider", third, func(a wire.PreviousAccess) bool { return a.Count == 1 && !a.Wider && a.By == "" && a.NewActions == nil }, "once in 30 days")
		use(third)

		// Other roles of the target count for what was had, not for how often.
		p.must(p.who["workload:a"], wire.AccessRequest{Role: "t2/priv2", Purpose: "beside"})
		wait(time.Minute)
		p.must(p.who["human:ann"], wire.AccessRequest{Role: "t2/priv2", Purpose: "somebody else"})
		wait(time.Minute)
		fourth := ask("four", nil)
		want("another role had it", fourth, func(a wire.PreviousAccess) bool { return a.Count == 2 && a.OnTarget == 3 && !a.Wider }, "2 times in 30 days, once with other roles of t2")

		// A mint that failed gave nothing.
		p.wire(fail("t2", "mint", &issuers.Error{Kind: issuers.Refused, Detail: "no"}))
		if _, err := p.request(p.who["workload:a"], wire.AccessRequest{Role: "t2/priv2", Purpose: "fails"}); err == nil {
			t.Fatal("the mint was to fail")
		}
		p.wire(nil)
		p.stop() // a leader's ticks of a month take long
		wait(31 * 24 * time.Hour)
		fifth := ask("five", read)
		want("long ago", fifth, func(a wire.PreviousAccess) bool { return a.Seen == wire.SeenEarlier && a.Count == 0 && a.OnTarget == 0 },
			"not in 30 days, but before")
	})
}

func TestPreviousAccessIsForWhoSeesTheGrant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeople(t)
		p.lead()
		defer p.stop()
		id := p.ask("workload:a", wire.AccessRequest{Role: "t2/priv", Purpose: "one"}).GrantID
		plain := p.must(p.who["workload:a"], wire.AccessRequest{Role: "t1/ro"}).GrantID
		for _, who := range []string{"workload:a", "human:bo", operator} {
			p.previous(p.who[who], id)
		}
		for _, who := range []string{"workload:a", operator} {
			if a := p.previous(p.who[who], plain); a.Role != "t1/ro" || a.Seen != wire.SeenNever {
				t.Errorf("%+v", a)
			}
		}
		for who, grant := range map[string]string{"human:eve": id, "agent:helper": id, "human:bo": plain, "human:kim": "grt_nothing"} {
			_, err := p.engine.PreviousAccess(t.Context(), p.who[who], grant)
			p.fails(err, fault.NotFound, "grant_not_found")
		}
	})
}

// Where there are too many leases the nearest are looked at, and it is said.
func TestPreviousAccessIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeople(t)
		p.lead()
		defer p.stop()
		who := p.who["workload:a"]
		p.put("Role", "t1/many", simRole(simScopeBoth, "20m", "1h", `{"per_principal":1000}`, ""))
		open := func(n int) (id string) {
			for range n {
				id = p.must(who, wire.AccessRequest{Role: "t1/many"}).GrantID
			}
			return id
		}
		open(200)
		wait(3 * time.Hour)
		open(3)
		wait(time.Minute)
		id := open(1)
		clock := time.Now()
		slow, err := broker.New(broker.Config{Log: p.log, Node: "n2", Issuer: "https://mayfly.example", Kinds: []issuers.Kind{p.kind},
			Clock: func() time.Time { clock = clock.Add(time.Second); return clock }})
		if err != nil {
			t.Fatal(err)
		}
		a, err := slow.PreviousAccess(t.Context(), who, id)
		if err != nil || !a.Cut || a.Count < 3 || a.Count > 150 || a.Since.IsZero() {
			t.Errorf("%+v, %v", a, err)
		}
		if age := time.Since(a.Since); age < time.Hour || age > 5*time.Hour {
			t.Errorf("all was looked at for %s", age)
		}
		if a := p.previous(who, id); a.Cut || a.Count != 203 {
			t.Errorf("with time enough: %+v", a)
		}
	})
}

func TestFirstIDSortsBelowWhatIsMadeThen(t *testing.T) {
	at := time.UnixMilli(1_700_000_000_123)
	id, err := ledger.NewID(ledger.PrefixLease, at, zeros{})
	if err != nil {
		t.Fatal(err)
	}
	if first := ledger.FirstID(ledger.PrefixLease, at); first != id {
		t.Errorf("%s, the least is %s", first, id)
	}
	if before := ledger.FirstID(ledger.PrefixLease, at.Add(-time.Millisecond)); before >= id {
		t.Errorf("%s is not before %s", before, id)
	}
	if zero := ledger.FirstID(ledger.PrefixLease, time.UnixMilli(-5)); zero != "lse_00000000000000000000000000" {
		t.Error(zero)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}
