package audit_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-broker/mayfly/broker/audit"
)

// memSink keeps what it got. refuse, while set, answers Deliver.
type memSink struct {
	mu     sync.Mutex
	got    []audit.Entry
	calls  int
	refuse func(ctx context.Context) error
	closed bool
}

func (s *memSink) Next(context.Context) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int64(len(s.got)), nil
}

func (s *memSink) Deliver(ctx context.Context, entries []audit.Entry) error {
	s.mu.Lock()
	refuse := s.refuse
	s.calls++
	s.mu.Unlock()
	if refuse != nil {
		if err := refuse(ctx); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, entries...)
	return nil
}

func (s *memSink) Close() error { s.closed = true; return nil }

func (s *memSink) repair() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = nil
}

func (s *memSink) seen(t testing.TB) (n, calls int) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, e := range s.got {
		if e.Seq != int64(i) {
			t.Fatalf("entry %d came in place %d", e.Seq, i)
		}
	}
	return len(s.got), s.calls
}

func start(t *testing.T, r *audit.Runner) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// Laws 5 and 8: a sink that is stuck and one that is broken lose nothing, and
// neither the ledger nor the healthy sink waits for them.
func TestLaw8DeadSinksBlockNobodyAndLoseNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog(t, 0)
		good := &memSink{}
		stuck := &memSink{refuse: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}
		unstick := make(chan struct{})
		slow := &memSink{refuse: func(context.Context) error { <-unstick; return nil }}
		broken := &memSink{refuse: func(context.Context) error { return errors.New("no route") }}
		var logged bytes.Buffer
		r := audit.NewRunner(l, []audit.NamedSink{{"good", good}, {"stuck", stuck}, {"slow", slow}, {"broken", broken}},
			audit.RunnerOptions{Log: slog.New(slog.NewTextHandler(&logged, nil))})
		stop := start(t, r)
		for range 1000 {
			l.add(t, "") // the ledger: commits, marks, goes on
			r.Wake()
		}
		synctest.Wait()
		if n, _ := good.seen(t); n != 1000 {
			t.Fatalf("the healthy sink has %d of 1000 while others are dead", n)
		}
		st, err := r.Status(t.Context())
		if err != nil || len(st) != 4 || st[0].Behind != 0 || st[0].Failures != 0 || st[1].Behind != 1000 || st[2].Behind != 1000 {
			t.Fatalf("%+v %v", st, err)
		}
		if st[3].Name != "broken" || st[3].Behind != 1000 || st[3].Failures == 0 || st[3].Error != "no route" {
			t.Fatalf("%+v", st[3])
		}
		close(unstick)
		broken.repair()
		time.Sleep(2 * time.Minute) // the bubble's clock: past any backoff
		synctest.Wait()
		for name, s := range map[string]*memSink{"slow": slow, "broken": broken} {
			if n, _ := s.seen(t); n != 1000 {
				t.Fatalf("the %s sink has %d of 1000 after its repair", name, n)
			}
		}
		stop()
		if !good.closed || !stuck.closed {
			t.Fatal("a sink was not closed")
		}
		if !strings.Contains(logged.String(), "audit sink works again") {
			t.Fatalf("the repair was not logged:\n%s", &logged)
		}
	})
}

// A busy ledger does not turn a broken sink's backoff into a hot loop.
func TestBackoffHoldsAgainstWakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog(t, 1)
		broken := &memSink{refuse: func(context.Context) error { return errors.New("no route") }}
		r := audit.NewRunner(l, []audit.NamedSink{{"broken", broken}}, audit.RunnerOptions{MinBackoff: time.Second, MaxBackoff: time.Minute})
		stop := start(t, r)
		defer stop()
		for range 600 {
			time.Sleep(time.Second)
			r.Wake()
		}
		synctest.Wait()
		if _, calls := broken.seen(t); calls < 8 || calls > 30 {
			t.Fatalf("%d attempts in ten minutes", calls)
		}
	})
}

// Whatever Wake misses, the idle look finds; and a wake is served at once.
func TestRunnerFollowsWithAndWithoutWakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog(t, 3)
		s := &memSink{}
		r := audit.NewRunner(l, []audit.NamedSink{{"s", s}}, audit.RunnerOptions{})
		defer start(t, r)()
		synctest.Wait()
		l.add(t, "")
		r.Wake()
		synctest.Wait()
		if n, _ := s.seen(t); n != 4 {
			t.Fatalf("%d of 4 after a wake", n)
		}
		l.add(t, "")
		time.Sleep(6 * time.Second)
		synctest.Wait()
		if n, _ := s.seen(t); n != 5 {
			t.Fatalf("%d of 5 without a wake", n)
		}
	})
}

// Large commands make small batches.
func TestBatchesAreBoundedInBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog(t, 0)
		for range 20 {
			l.append(t, audit.Entry{Result: "ok", Command: make([]byte, 400_000)})
		}
		s := &memSink{}
		r := audit.NewRunner(l, []audit.NamedSink{{"s", s}}, audit.RunnerOptions{})
		defer start(t, r)()
		synctest.Wait()
		if n, calls := s.seen(t); n != 20 || calls != 7 {
			t.Fatalf("%d entries in %d batches; want 20 in 7", n, calls)
		}
	})
}

// A sink whose cursor is beyond the ledger followed another one: that is said, not waited out.
func TestSinkAheadOfTheLedgerIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog(t, 2)
		s := &memSink{got: newLog(t, 5).entries}
		r := audit.NewRunner(l, []audit.NamedSink{{"s", s}}, audit.RunnerOptions{})
		defer start(t, r)()
		synctest.Wait()
		st, err := r.Status(t.Context())
		if err != nil || st[0].Failures == 0 || !strings.Contains(st[0].Error, "another ledger") || st[0].Behind != 0 {
			t.Fatalf("%+v %v", st, err)
		}
	})
}
