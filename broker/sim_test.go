package broker_test

import (
	"encoding/hex"
	"flag"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/mayfly-broker/mayfly/broker/brokertest"
)

var (
	simSeeds = flag.Int("seeds", 300, "how many seeds TestSim runs")
	simSeed  = flag.Uint64("seed", 0, "run this seed of TestSim alone and print what happens")
	simSteps = flag.Int("steps", 250, "steps of each seed before it is healed")
)

// outcome is what one seed came to.
type outcome struct {
	wrong   []string
	trace   []string
	sum     string
	entries int
	minted  int
	signed  int // leases on grants that people had signed
}

// simulate runs one seed in a bubble of its own.
func simulate(t *testing.T, seed uint64, keep bool, bugs brokertest.Bugs, tune ...func(*profile)) (out outcome) {
	synctest.Test(t, func(*testing.T) {
		w := newWorld(seed, keep, bugs)
		for _, f := range tune {
			f(&w.prof)
		}
		w.run(*simSteps)
		out = outcome{wrong: w.wrong, trace: w.trace, sum: hex.EncodeToString(w.sum.Sum(nil)), entries: len(w.log), signed: len(w.people.signed)}
		for _, tg := range w.targets {
			out.minted += len(tg.sys.Passwords())
		}
	})
	return out
}

func report(seed uint64, out outcome) string {
	return fmt.Sprintf("seed %d breaks %s\nreplay: go test ./broker -run 'TestSim$' -seed=%d -v", seed, strings.Join(out.wrong, "\n  "), seed)
}

// TestSim runs the simulation over many seeds; each checks every law.
func TestSim(t *testing.T) {
	if *simSeed != 0 {
		out := simulate(t, *simSeed, true, brokertest.Bugs{})
		for _, line := range out.trace {
			t.Log(line)
		}
		t.Logf("%d entries, %d mints, trace %s", out.entries, out.minted, out.sum)
		if len(out.wrong) > 0 {
			t.Fatal(report(*simSeed, out))
		}
		return
	}
	var next, entries, minted, signed atomic.Int64
	for i := range 2 {
		t.Run(fmt.Sprintf("lane%d", i), func(t *testing.T) {
			t.Parallel()
			for !t.Failed() {
				seed := next.Add(1)
				if seed > int64(*simSeeds) {
					return
				}
				out := simulate(t, uint64(seed), false, brokertest.Bugs{})
				entries.Add(int64(out.entries))
				minted.Add(int64(out.minted))
				signed.Add(int64(out.signed))
				if len(out.wrong) > 0 {
					t.Error(report(uint64(seed), out))
				}
			}
		})
	}
	t.Cleanup(func() {
		t.Logf("%d seeds, %d entries, %d mints, %d of them co-signed", *simSeeds, entries.Load(), minted.Load(), signed.Load())
		if !t.Failed() && minted.Load() < int64(*simSeeds) {
			t.Errorf("only %d mints in %d seeds: the simulation tries too little", minted.Load(), *simSeeds)
		}
		if !t.Failed() && signed.Load() < int64(*simSeeds)/10 {
			t.Errorf("only %d leases on grants that people signed in %d seeds", signed.Load(), *simSeeds)
		}
	})
}

// TestSimReplays: the same seed is the same run, to the last line of its trace.
func TestSimReplays(t *testing.T) {
	for seed := uint64(1); seed <= 25; seed++ {
		a, b := simulate(t, seed, true, brokertest.Bugs{}), simulate(t, seed, true, brokertest.Bugs{})
		if a.sum == b.sum {
			continue
		}
		for i := range min(len(a.trace), len(b.trace)) {
			if a.trace[i] != b.trace[i] {
				t.Fatalf("seed %d differs from line %d on:\n%s\n%s", seed, i, a.trace[i], b.trace[i])
			}
		}
		t.Fatalf("seed %d: %d lines, then %d", seed, len(a.trace), len(b.trace))
	}
}

// slowAndLossy is trouble in which statements act late, which is when a target's
// promises matter.
func slowAndLossy(p *profile) {
	*p = profile{slow: 500, unsent: 200, replyLost: 20, depose: 5, tempo: 14, skewMS: 500}
}

// TestSimNoticesBrokenTargets shows that the checks bite: each target breaks one
// promise, and some seed must say so.
func TestSimNoticesBrokenTargets(t *testing.T) {
	for name, c := range map[string]struct {
		bugs brokertest.Bugs
		law  string
		from uint64 // where to begin: some breaches need rare meetings
	}{
		"ignores the deadline":   {brokertest.Bugs{IgnoresDeadline: true}, "law 2", 50},
		"ignores the generation": {brokertest.Bugs{IgnoresGeneration: true}, "generation", 265},
		"keeps sessions":         {brokertest.Bugs{KeepsSessions: true}, "law 2", 1},
		"withdraws nothing":      {brokertest.Bugs{WithdrawsNothing: true}, "law 2", 1},
		"revives on extend":      {brokertest.Bugs{RevivesOnExtend: true}, "law 2", 10},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := c.from; seed < c.from+2000; seed++ {
				if out := simulate(t, seed, false, c.bugs, slowAndLossy); len(out.wrong) > 0 {
					if !strings.HasPrefix(out.wrong[0], c.law) {
						t.Fatalf("seed %d notices %q, wanted %q", seed, out.wrong[0], c.law)
					}
					t.Logf("seed %d notices: %s", seed, out.wrong[0])
					return
				}
			}
			t.Fatal("no seed noticed")
		})
	}
}
