package broker_test

import (
	"context"
	"errors"
	"iter"
	"slices"
	"strings"
	"sync"
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

// listing is the kind of the rig with a revocation list, "list": the names of
// the leases in it. To make one takes as long as takes says.
type listing struct {
	*brokertest.Kind
	takes time.Duration
	made  atomic.Int32
	atOne atomic.Int32 // how many are being made
	most  atomic.Int32
}

type listed struct {
	issuers.Issuer
	kind *listing
}

func (k *listing) Open(t issuers.Target) (issuers.Issuer, error) {
	i, err := k.Kind.Open(t)
	return &listed{i, k}, err
}

func (i *listed) PublishRevoked(_ context.Context, withdrawn iter.Seq[issuers.Lease]) (map[string][]byte, error) {
	i.kind.most.Store(max(i.kind.most.Load(), i.kind.atOne.Add(1)))
	defer i.kind.atOne.Add(-1)
	wait(i.kind.takes)
	var ids []string
	for l := range withdrawn {
		ids = append(ids, l.ID)
	}
	slices.Sort(ids)
	i.kind.made.Add(1)
	return map[string][]byte{"list": []byte(strings.Join(ids, " "))}, nil
}

// listings is a bubble whose targets publish lists.
func listings(t *testing.T, test func(t *testing.T, r *rig, k *listing)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r, k := newListing(t)
		defer r.engine.Close()
		defer r.stop()
		r.lead()
		test(t, r, k)
	})
}

func newListing(t *testing.T) (*rig, *listing) {
	t.Helper()
	r := newRig(t)
	k := &listing{Kind: r.kind}
	e, err := broker.New(broker.Config{Log: r.log, Node: "n1", Issuer: "https://mayfly.example", Kinds: []issuers.Kind{k}})
	if err != nil {
		t.Fatal(err)
	}
	r.engine = e
	return r, k
}

// fetch returns the list of target t1.
func (r *rig) fetch() string {
	r.t.Helper()
	doc, err := r.engine.PublishTarget(context.Background(), "t1", "list")
	if err != nil {
		r.t.Fatal(err)
	}
	return string(doc)
}

// revoke opens a lease and ends it.
func (r *rig) revoke() string {
	r.t.Helper()
	a := r.must(appCaller, wire.AccessRequest{Role: "t1/ro", Purpose: "p"})
	if _, err := r.engine.Revoke(context.Background(), appCaller, a.LeaseID, wire.RevokeRequest{}); err != nil {
		r.t.Fatal(err)
	}
	return strings.TrimPrefix(a.LeaseID, ledger.PrefixLease)
}

// TestHazard5StaleNodePublishesNoList: a node that is cut off does not know what
// was withdrawn meanwhile.
func TestHazard5StaleNodePublishesNoList(t *testing.T) {
	listings(t, func(t *testing.T, r *rig, _ *listing) {
		r.fetch()
		r.log.Stale = fault.New(fault.Unavailable, "stale", "cut off")
		if doc, err := r.engine.PublishTarget(t.Context(), "t1", "list"); !errors.Is(err, r.log.Stale) {
			t.Errorf("%q %v", doc, err)
		}
	})
}

// TestHazard5ListNamesWhatIsWithdrawn: at once, and although an earlier list is kept.
func TestHazard5ListNamesWhatIsWithdrawn(t *testing.T) {
	listings(t, namesWhatIsWithdrawn)
}

func namesWhatIsWithdrawn(t *testing.T, r *rig, k *listing) {
	var want []string
	for range 3 {
		want = append(want, r.revoke())
		slices.Sort(want)
		for range 5 {
			if got := r.fetch(); got != strings.Join(want, " ") {
				t.Fatalf("%q, wanted %q", got, want)
			}
		}
	}
	if got := k.made.Load(); got != 3 {
		t.Errorf("made %d times for three states of the ledger", got)
	}
	if doc, err := r.engine.PublishTarget(t.Context(), "t2", "list"); err != nil || len(doc) != 0 {
		t.Errorf("another target's list: %q %v", doc, err)
	}
}

// TestHazard5ListNamesWhatWasOpenAtTheLastOne: a list does not read all leases
// again, and misses none that was open when the last one was made.
func TestHazard5ListNamesWhatWasOpenAtTheLastOne(t *testing.T) {
	listings(t, func(t *testing.T, r *rig, _ *listing) {
		r.put("Role", "t1/ro", simRole(simScopeRead, "1m", "8h", `{}`, ""))
		long := r.must(appCaller, wire.AccessRequest{Role: "t1/ro", Purpose: "p", TTL: "6h"}).LeaseID
		short := r.must(appCaller, wire.AccessRequest{Role: "t1/ro", Purpose: "p", TTL: "10m"}).LeaseID
		if got := r.fetch(); got != "" {
			t.Fatalf("%q before anything was withdrawn", got)
		}
		for range 2 { // a second look, which begins long after both were opened
			wait(2 * time.Hour)
			r.revoke()
			r.fetch()
		}
		wait(time.Hour)
		if _, err := r.engine.Revoke(t.Context(), appCaller, long, wire.RevokeRequest{}); err != nil {
			t.Fatal(err)
		}
		got := r.fetch()
		if !strings.Contains(got, strings.TrimPrefix(long, ledger.PrefixLease)) || strings.Contains(got, strings.TrimPrefix(short, ledger.PrefixLease)) {
			t.Errorf("%q, wanted %s and not %s, which ended by itself", got, long, short)
		}
		wait(3 * time.Hour)
		r.revoke() // the ledger's clock goes on
		if got := r.fetch(); strings.Contains(got, strings.TrimPrefix(long, ledger.PrefixLease)) {
			t.Errorf("%q names a lease whose time was up long ago", got)
		}
	})
}

// TestHazard17StrangersFetchListsWithoutEnd: in a ledger that never rests, one
// list is made at a time, for all who wait, and seldom; who would wait as one of
// too many is told so, and nobody gets a list older than the question.
func TestHazard17StrangersFetchListsWithoutEnd(t *testing.T) {
	listings(t, func(t *testing.T, r *rig, k *listing) {
		k.takes = time.Second
		const strangers, span = 1100, 40 * time.Second
		over := time.Now().Add(span)
		var busy, old atomic.Int32
		var wg sync.WaitGroup
		var mu sync.Mutex
		var known []string
		for range strangers {
			wg.Go(func() {
				for time.Now().Before(over) {
					wait(100 * time.Millisecond)
					mu.Lock()
					want := slices.Clone(known)
					mu.Unlock()
					doc, err := r.engine.PublishTarget(context.Background(), "t1", "list")
					if err != nil {
						if fault.As(err).StableCode() != "busy" {
							t.Error(err)
						}
						busy.Add(1)
					}
					for _, id := range want {
						if err == nil && !strings.Contains(string(doc), id) {
							old.Add(1)
						}
					}
				}
			})
		}
		for time.Now().Before(over) {
			id := r.revoke()
			mu.Lock()
			known = append(known, id)
			mu.Unlock()
			wait(2 * time.Second)
		}
		wg.Wait()
		if made := k.made.Load(); made > 10 || k.most.Load() != 1 {
			t.Errorf("%d lists in 40 s, of one second each, %d at once", made, k.most.Load())
		}
		if busy.Load() == 0 || old.Load() > 0 {
			t.Errorf("%d were told to come back; %d got an old list", busy.Load(), old.Load())
		}
	})
}

// TestStrangersLearnNothingOfTargets: what there is not, what publishes nothing
// and what does not work look the same from outside.
func TestStrangersLearnNothingOfTargets(t *testing.T) {
	r, _ := newListing(t)
	var said []string
	for _, name := range []string{"t1", "nowhere"} {
		_, err := r.engine.PublishTarget(t.Context(), name, "other")
		fe := fault.As(err)
		if fe == nil || fe.Kind != fault.NotFound {
			t.Fatal(err)
		}
		said = append(said, fe.Code+strings.ReplaceAll(fe.Detail, name, "X"))
	}
	delete(r.kind.Systems, "t1")
	r.log.SetTerm(r.log.Term() + 1) // it is opened anew
	_, err := r.engine.PublishTarget(t.Context(), "t1", "list")
	fe := fault.As(err)
	if fe == nil {
		t.Fatal("a target that does not open publishes")
	}
	said = append(said, fe.Code+strings.ReplaceAll(strings.ReplaceAll(fe.Detail, "t1", "X"), "list", "other"))
	if said[0] != said[1] || said[0] != said[2] {
		t.Errorf("%q", said)
	}
}
