package host_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/plugins/host"
	"github.com/mayfly-broker/mayfly/plugins/protocol"
)

// TestHazard6SameFileSameStory: a plugin that is started again cannot drop what
// would show what it has done.
func TestHazard6SameFileSameStory(t *testing.T) {
	s := newStage(t)
	generation := 1_000_000 + os.Getpid()
	note := filepath.Join(os.TempDir(), fmt.Sprint("rogue-", generation))
	t.Cleanup(func() { _ = os.Remove(note) })
	s.Set([]host.Spec{s.spec(t, "tells-another-story", generation)})
	k, i := s.target(t, "tells-another-story", "crashes")
	_, _ = i.Mint(t.Context(), lease(k))
	eventually(t, "the refusal", func() bool {
		return strings.Contains(s.status("tells-another-story").Problem, "other things of itself")
	})
}

// TestHazard6WhoRunsHasTheRightToItsUser: a plugin that is registered later, under
// the user of one that runs, does not run; whatever it is called.
func TestHazard6WhoRunsHasTheRightToItsUser(t *testing.T) {
	if os.Geteuid() != 0 {
		return // nobody else can give a process another user
	}
	s := newStage(t)
	late, early := s.spec(t, "a-late-one", 1), s.spec(t, "an-early-one", 1)
	late.User = early.User
	s.Set([]host.Spec{early})
	s.works(t, "an-early-one")
	s.Set([]host.Spec{early, late})
	eventually(t, "an answer", func() bool { st := s.status("a-late-one"); return st.Running || st.Problem != "it is starting" })
	if st := s.status("a-late-one"); st.Running || !strings.Contains(st.Problem, "a user of its own") {
		t.Errorf("%+v", st)
	}
	s.Set([]host.Spec{late}) // once the user is free, it may have it
	eventually(t, "its start", func() bool { return s.status("a-late-one").Running })
}

// TestHazard6LiesDoNotFillTheLog: they are counted.
func TestHazard6LiesDoNotFillTheLog(t *testing.T) {
	s := newStage(t)
	s.Set([]host.Spec{s.spec(t, "liar", 1)})
	k, i := s.target(t, "liar", "proves nothing")
	for range 10 {
		var leases []issuers.Lease
		for range 20 {
			leases = append(leases, lease(k))
		}
		i.Withdraw(t.Context(), leases)
	}
	if n := strings.Count(s.log.String(), "gave an answer that is not one"); n == 0 || n > 30 {
		t.Errorf("%d lines about 200 lies", n)
	}
	if n := s.status("liar").Lies; n != 200 {
		t.Errorf("%d lies are counted", n)
	}
}

// TestRevocationListsOutOfProcess: the plugin gets all that was withdrawn, or
// nothing is published.
func TestRevocationListsOutOfProcess(t *testing.T) {
	s := newStage(t)
	s.Set([]host.Spec{s.spec(t, "revokes", 1), s.spec(t, "plain", 1)})
	if _, i := s.target(t, "plain", ""); func() bool { _, ok := i.(issuers.RevocationPublisher); return ok }() {
		t.Error("a plugin without the ability has it")
	}
	_, i := s.target(t, "revokes", "")
	if _, ok := i.(issuers.Lister); !ok {
		t.Error("it can no longer list")
	}
	end := time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)
	many := func(n int) func(func(issuers.Lease) bool) {
		return func(yield func(issuers.Lease) bool) {
			for x := range n {
				if !yield(issuers.Lease{ID: fmt.Sprintf("%026d", x), NotAfter: end, Purpose: "not for the plugin"}) {
					return
				}
			}
		}
	}
	docs, err := i.(issuers.RevocationPublisher).PublishRevoked(t.Context(), many(2))
	if want := "00000000000000000000000000 until 2027-01-02T03:04:05Z\n00000000000000000000000001 until 2027-01-02T03:04:05Z"; err != nil || string(docs["krl"]) != want {
		t.Errorf("published: %s, %v", docs["krl"], err)
	}
	docs, err = i.(issuers.RevocationPublisher).PublishRevoked(t.Context(), many(protocol.MaxRevoked))
	if err != nil || len(slices.Collect(strings.Lines(string(docs["krl"])))) != protocol.MaxRevoked {
		t.Errorf("of as many as there may be: %d bytes, %v", len(docs["krl"]), err)
	}
	if docs, err := i.(issuers.RevocationPublisher).PublishRevoked(t.Context(), many(protocol.MaxRevoked+1)); err == nil || docs != nil {
		t.Errorf("of one more: %d documents", len(docs))
	}
	for _, fault := range []string{"hangs", "publishes too much"} {
		_, i := s.target(t, "revokes", fault)
		if docs, err := i.(issuers.RevocationPublisher).PublishRevoked(context.WithoutCancel(t.Context()), many(1)); err == nil || docs != nil {
			t.Errorf("a plugin that %s: %d documents", fault, len(docs))
		}
	}
}

// TestHazard17HangingMintsKeepNoLeaseFromEnding: of another target of the plugin.
func TestHazard17HangingMintsKeepNoLeaseFromEnding(t *testing.T) {
	s := newStage(t)
	s.Set([]host.Spec{s.spec(t, "busy", 1)})
	k, hanging := s.target(t, "busy", "waits for the caller", "file", "/dev/null")
	_, other := s.target(t, "busy", "")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for range 512 { // as many as there may be
		wg.Go(func() {
			for ctx.Err() == nil { // one that is refused comes again
				_, _ = hanging.Mint(ctx, lease(k))
			}
		})
	}
	l := lease(k)
	eventually(t, "the refusal of another mint", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := other.Mint(ctx, l)
		return err != nil && strings.Contains(err.Error(), "too much to do")
	})
	if out := other.Withdraw(t.Context(), []issuers.Lease{l}); out[0].Err != nil {
		t.Errorf("a withdrawal meanwhile: %v", out[0].Err)
	}
}
