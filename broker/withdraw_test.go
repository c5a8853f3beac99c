package broker_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/brokertest"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/issuers"
)

// TestHazard12PoisonLeaseParksAlone: one lease that cannot be ended is recorded
// with its problem, and the others end.
func TestHazard12PoisonLeaseParksAlone(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		poison := r.must(appCaller, wire.AccessRequest{Role: "t1/ro", TTL: "5s", Purpose: "p"})
		others := []wire.AccessAnswer{
			r.must(appCaller, wire.AccessRequest{Role: "t1/ro", TTL: "5s", Purpose: "p"}),
			r.must(appCaller, wire.AccessRequest{Role: "t1/ro", TTL: "60s", Purpose: "p"}),
		}
		r.t1.Stick(poison.Credential["username"], true)
		r.within(15*time.Second+gone, "the problem is recorded", func() bool { e := r.lease(poison.LeaseID).End; return e != nil && e.Problem != "" })
		if p := r.lease(poison.LeaseID).End.Problem; !strings.Contains(p, "prepared transaction") {
			t.Errorf("problem %q", p)
		}
		r.within(gone, "the other has ended", r.ended(others[0].LeaseID))
		r.within(60*time.Second+gone, "a later one too", r.ended(others[1].LeaseID))
		if r.lease(poison.LeaseID).State != ledger.LeaseEnding {
			t.Error("the poison lease has ended by itself")
		}
		if records := count(r, "record_withdrawals"); records > 6 {
			t.Errorf("%d records: the same problem is written again and again", records)
		}
		r.t1.Stick(poison.Credential["username"], false)
		r.within(2*time.Minute, "it ends once it is free", r.ended(poison.LeaseID))
		if e := r.lease(poison.LeaseID).End; e.Problem != "" {
			t.Errorf("the problem stays: %+v", e)
		}
	})
}

// TestLaw8SlowTargetDelaysNoOther: t1 answers nothing; requests and withdrawals
// on t2 take no time.
func TestLaw8SlowTargetDelaysNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		first := r.must(appCaller, wire.AccessRequest{Role: "t1/ro", TTL: "5s", Purpose: "p"})
		second := r.must(appCaller, wire.AccessRequest{Role: "t2/ro", TTL: "5s", Purpose: "p"})
		free := make(chan struct{})
		r.wire(func(ctx context.Context, c brokertest.Call, act func() error) error {
			if c.System == "t1" {
				select {
				case <-free:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			return act()
		})
		r.lead()
		defer r.stop()
		defer close(free)
		slow := make(chan error, 100)
		for range 100 { // more than a target has slots
			go func() {
				_, err := r.request(callerOf("workload:b", "i"), wire.AccessRequest{Role: "t1/rw", Purpose: "p"})
				slow <- err
			}()
		}
		synctest.Wait()
		began := time.Now()
		r.must(agentCaller, wire.AccessRequest{Role: "t2/ro", Purpose: "p"})
		if d := time.Since(began); d != 0 {
			t.Errorf("a request to t2 took %s", d)
		}
		r.within(5*time.Second+gone, "t2's lease has ended", r.ended(second.LeaseID))
		if r.ended(first.LeaseID)() {
			t.Error("t1's lease has ended without t1's word")
		}
		for range 100 { // each ends by a deadline of its own
			if err := <-slow; err == nil {
				t.Error("a request to a target that does not answer succeeded")
			}
		}
	})
}

// TestHazard17BreakerCountsConnectionFailuresOnly: a target that refuses is alive;
// one that cannot be reached is left alone for a while; withdrawal has its own way.
func TestHazard17BreakerCountsConnectionFailuresOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.stop()
		in := wire.AccessRequest{Role: "t1/rw", Purpose: "p"}
		sent := 0
		answer := &issuers.Error{Kind: issuers.Refused, Detail: "no"}
		r.wire(func(_ context.Context, c brokertest.Call, act func() error) error {
			if c.Verb != "mint" {
				return act()
			}
			sent++
			return answer
		})
		try := func(n int) (last error) {
			for range n {
				_, last = r.request(appCaller, in)
			}
			return last
		}
		r.fails(try(8), fault.Upstream, "target_refused")
		if sent != 8 {
			t.Fatalf("%d of 8 mints were sent to a target that refuses", sent)
		}
		answer, sent = &issuers.Error{Kind: issuers.Unreachable, Detail: "no route"}, 0
		r.fails(try(9), fault.Unavailable, "target_unavailable")
		if sent != 5 {
			t.Errorf("%d of 9 mints were sent to a target that cannot be reached, wanted 5", sent)
		}
		before := r.t1.Calls("withdraw")
		r.lead()
		r.within(5*time.Second, "withdrawals go on while the breaker is open", func() bool { return r.t1.Calls("withdraw") > before })
		r.wire(nil)
		wait(6 * time.Second)
		r.must(appCaller, in)
	})
}

// TestHazard17OneLeaseTriesATargetThatWasAway: while it does, the others' requests are
// refused at the door. Each would write a lease that comes to nothing.
func TestHazard17OneLeaseTriesATargetThatWasAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.stop()
		in := wire.AccessRequest{Role: "t1/rw", Purpose: "p"}
		away := &issuers.Error{Kind: issuers.Unreachable, Detail: "no route"}
		var hang, sent atomic.Int64
		r.wire(func(_ context.Context, c brokertest.Call, act func() error) error {
			if c.Verb != "mint" {
				return act()
			}
			sent.Add(1)
			wait(time.Duration(hang.Load()))
			return away
		})
		for range 5 {
			_, err := r.request(appCaller, in)
			r.fails(err, fault.Unavailable, "target_unavailable")
		}
		wait(6 * time.Second)
		hang.Store(int64(3 * time.Second))
		sent.Store(0)
		opened := count(r, "open_lease")
		tries := make(chan error, 1)
		go func() { _, err := r.request(appCaller, in); tries <- err }()
		wait(time.Second)
		for range 20 {
			_, err := r.request(appCaller, in)
			r.fails(err, fault.Unavailable, "target_unavailable")
		}
		if n := count(r, "open_lease") - opened; n != 1 || sent.Load() != 1 {
			t.Errorf("%d leases were opened and %d mints sent while one tried", n, sent.Load())
		}
		r.fails(<-tries, fault.Unavailable, "target_unavailable")
		// One that the log does not take tells nothing of the target: the next may try.
		wait(6 * time.Second)
		hang.Store(0)
		r.before(func(d ledger.Decoded) error {
			if _, ok := d.Body.(*ledger.OpenLease); ok {
				return fault.New(fault.Unavailable, "no_leader", "not now")
			}
			return nil
		})
		_, err := r.request(appCaller, in)
		r.fails(err, fault.Unavailable, "no_leader")
		r.before(nil)
		r.wire(nil)
		r.must(appCaller, in)
	})
}

// count is how many commands of a type were committed.
func count(r *rig, typ string) (n int) {
	for _, x := range r.log.Types() {
		if x == typ {
			n++
		}
	}
	return n
}

// TestHazard17DenialFloodIsBounded: one principal's denials fill no disk; what is
// not written is counted.
func TestHazard17DenialFloodIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		in := wire.AccessRequest{Role: "t1/rw", Purpose: "p"}
		denied := func() int { return count(r, "record_decision") }
		limited := 0
		for range 1000 {
			if _, err := r.request(agentCaller, in); fault.KindOf(err) == fault.RateLimited {
				limited++
			}
		}
		if n := denied(); n > 25 || n+limited != 1000 {
			t.Errorf("%d records and %d limited of 1000", n, limited)
		}
		before := denied()
		_, err := r.request(callerOf("agent:c", "other-instance"), in)
		r.fails(err, fault.RateLimited, "")
		if _, err := r.request(appCaller, wire.AccessRequest{Role: "t1/ro", TTL: "5h", Purpose: "p"}); fault.KindOf(err) != fault.Denied || denied() != before+1 {
			t.Errorf("another principal is not heard: %v", err)
		}
		wait(time.Second)
		_, err = r.request(agentCaller, in)
		r.fails(err, fault.Denied, "")
		r.log.Query(func(q ledger.Query) {
			e, _ := q.Entry(q.Size() - 1)
			d, derr := ledger.DecodePublic(e.Public)
			if b, ok := d.Body.(*ledger.RecordDecision); derr != nil || !ok || b.Repeats != limited+1 {
				t.Errorf("the next record is %s", e.Public)
			}
		})
	})
}

// TestLaw2WithdrawalIsRetriedUntilTheTargetConfirms: an outage of minutes, and a
// ledger that loses proposals.
func TestLaw2WithdrawalIsRetriedUntilTheTargetConfirms(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		a := r.must(appCaller, wire.AccessRequest{Role: "t1/ro", TTL: "5s", Purpose: "p"})
		r.wire(fail("t1", "withdraw", &issuers.Error{Kind: issuers.Unreachable, Detail: "down"}))
		lost := 3
		wait(5 * time.Minute)
		r.before(func(d ledger.Decoded) error {
			if d.Type == "record_withdrawals" && lost > 0 {
				lost--
				return fault.New(fault.Indeterminate, "indeterminate", "")
			}
			return nil
		})
		if l := r.lease(a.LeaseID); l.State != ledger.LeaseEnding {
			t.Fatalf("the lease is %s while its target is down", l.State)
		}
		r.wire(nil)
		r.within(2*time.Minute, "the lease has ended", r.ended(a.LeaseID))
	})
}

// TestHazard24ClockThatStepsBackDoesNotSpin: between the look at the index and
// the commit the clock goes back, so that the ledger ends nothing. The leader
// must not try again and again in the same instant.
func TestHazard24ClockThatStepsBackDoesNotSpin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		a := r.must(appCaller, wire.AccessRequest{Role: "t1/ro", TTL: "5s", Purpose: "p"})
		var tries atomic.Int64
		r.before(func(d ledger.Decoded) error {
			if d.Type != "end_leases" {
				return nil
			}
			if tries.Add(1) > 100 {
				return fault.New(fault.Unavailable, "no_leader", "") // let the test end
			}
			return nil
		})
		r.log.Skew.Store(int64(-10 * time.Second))
		r.lead()
		defer r.stop()
		wait(7 * time.Second)
		if n := tries.Load(); n == 0 || n > 20 {
			t.Errorf("%d commands that end nothing in two seconds", n)
		}
		r.log.Skew.Store(0)
		r.within(gone, "the lease ends when the clock is right", r.ended(a.LeaseID))
	})
}

// TestHazard8ClocksOfTwoLeadersDiffer: a deposed leader whose clock is 2 s behind
// has a mint in flight, on a connection that was made after the fence; the next
// leader's clock is 2 s ahead. The receipt must come after the last instant in
// which the mint can act.
func TestHazard8ClocksOfTwoLeadersDiffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &brokertest.Log{}
		sys := brokertest.NewSystem("t1")
		at := func(skew time.Duration, wire func(context.Context, brokertest.Call, func() error) error) *broker.Engine {
			clock := func() time.Time { return time.Now().Add(skew) }
			kind := &brokertest.Kind{Systems: map[string]*brokertest.System{"t1": sys, "t2": brokertest.NewSystem("t2")}, Clock: clock, Wire: wire}
			e, err := broker.New(broker.Config{Log: log, Node: "n", Issuer: "https://mayfly.example", Clock: clock, Kinds: []issuers.Kind{kind}})
			if err != nil {
				t.Fatal(err)
			}
			return e
		}
		var late func() error
		old := at(-2*time.Second, func(_ context.Context, c brokertest.Call, act func() error) error {
			if c.Verb == "mint" {
				late = act
				return &issuers.Error{Kind: issuers.Unknown, Detail: "no answer"}
			}
			return act()
		})
		if err := old.Begin(t.Context(), ledger.Genesis{Cluster: "c", Incarnation: 1, Objects: simObjects()}); err != nil {
			t.Fatal(err)
		}
		if _, err := old.Request(t.Context(), appCaller, wire.AccessRequest{Role: "t1/ro", Purpose: "p"}); err == nil || late == nil {
			t.Fatal("the mint was to be in flight")
		}
		var id string
		log.Query(func(q ledger.Query) { id = q.LeasesOn("t1", 1)[0] })
		log.SetTerm(2)
		next := at(2*time.Second, nil)
		r := &rig{t: t, log: log, engine: next}
		r.lead()
		defer r.stop()
		r.within(time.Minute, "the lease has ended", r.ended(id))
		if err := late(); err == nil {
			t.Errorf("%s appears on its target after its receipt", sys.Accounts()[0].Name)
		}
	})
}

// TestOverdueHeartbeatsHideNoDeadline: after a failover, tasks whose heartbeats
// nobody could take are not ended at once; one whose deadline has passed is.
func TestOverdueHeartbeatsHideNoDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.stop()
		start := func(in wire.StartTaskRequest) wire.Task {
			in.Purpose = "p"
			task, err := r.engine.StartTask(t.Context(), appCaller, in)
			if err != nil {
				t.Fatal(err)
			}
			return task
		}
		for i := range 100 {
			start(wire.StartTaskRequest{Name: fmt.Sprintf("lapsing-%d", i), TTL: "10h", Lapse: "10m"})
		}
		past := start(wire.StartTaskRequest{Name: "past", TTL: "12m"})
		state := func(id string) (s string) {
			r.log.Query(func(q ledger.Query) { x, _ := q.Task(id); s = x.State })
			return s
		}
		wait(15 * time.Minute) // nobody leads
		r.lead()
		r.within(2*time.Second, "the task past its deadline has ended", func() bool { return state(past.ID) == ledger.TaskEnded })
		open := 0
		r.log.Query(func(q ledger.Query) {
			q.Tasks("", func(x ledger.Task) bool {
				if x.State == ledger.TaskOpen {
					open++
				}
				return true
			})
		})
		if open != 100 {
			t.Errorf("%d of 100 tasks are open: their lapse clock did not stand still", open)
		}
		wait(11 * time.Minute)
		for i := range 100 {
			r.log.Query(func(q ledger.Query) {
				if q.TaskNamed("workload:a", fmt.Sprintf("lapsing-%d", i)) != "" {
					t.Errorf("task %d has not lapsed", i)
				}
			})
		}
	})
}

// TestHeartbeatInTheLastInstantDelaysNothingElse: an end that the ledger refuses
// because a heartbeat came first holds up no lease that is due.
func TestHeartbeatInTheLastInstantDelaysNothingElse(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		task, err := r.engine.StartTask(t.Context(), appCaller, wire.StartTaskRequest{Name: "t", Purpose: "p", Lapse: "10s"})
		if err != nil {
			t.Fatal(err)
		}
		a := r.must(agentCaller, wire.AccessRequest{Role: "t2/ro", TTL: "10s", Purpose: "p"})
		beaten := false
		r.before(func(d ledger.Decoded) error {
			if d.Type == "end_task" && !beaten {
				beaten = true
				r.log.Skew.Store(int64(-time.Second)) // it was made before the task was due
				defer func() { r.log.Skew.Store(0) }()
				_, err := r.engine.HeartbeatTask(context.Background(), appCaller, task.ID)
				return err
			}
			return nil
		})
		r.within(10*time.Second+100*time.Millisecond, "the lease is ended or ending", func() bool { return r.lease(a.LeaseID).State != ledger.LeaseOpen })
		if !beaten {
			t.Error("no end was tried")
		}
	})
}

// TestLaw2RemintOnItsWayIsNotSettled: a second generation is committed, and
// before its mint is sent the lease is revoked and looked for. That look must
// not be the last one.
func TestLaw2RemintOnItsWayIsNotSettled(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		who := withKey(appCaller, "k1")
		in := wire.AccessRequest{Role: "t1/ro", Purpose: "p"}
		first := r.must(who, in)
		r.after(func(d ledger.Decoded, _ ledger.Result) error {
			if d.Type != "remint_lease" {
				return nil
			}
			r.after(nil)
			_, err := r.engine.Revoke(context.Background(), appCaller, first.LeaseID, wire.RevokeRequest{})
			return err
		})
		_, _ = r.request(who, in) // whatever it comes to
		if _, there := r.t1.Account(first.Credential["username"]); there && r.ended(first.LeaseID)() {
			t.Errorf("the account is on its target after the receipt %s", r.lease(first.LeaseID).End.Receipt)
		}
		r.within(time.Minute, "the lease has ended", r.ended(first.LeaseID))
		if _, there := r.t1.Account(first.Credential["username"]); there {
			t.Error("the account is left on its target for good")
		}
	})
}
