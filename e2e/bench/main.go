// The bench measures the built binary as its users meet it: real nodes, TLS,
// key-bound sessions, real servers. Beside every
// figure stands the raw limit of the same machine, measured in the same run,
// and the budget of the design. Repeats on a shared machine vary by a quarter
// or more; the ratios vary less.
//
// It speaks to nodes through the client package alone. What it measures in its
// own process (bare commits, decisions) is named so.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are the command line's.
type options struct {
	quick    bool
	markdown bool
	only     *regexp.Regexp
	cell     time.Duration // of one measurement
	live     int           // leases of the large restart
	binary   string
}

// bench is one run: its directory, its results, and what was measured of the
// machine itself.
type bench struct {
	options
	dir    string
	rows   []row
	limits limits
}

// section is a group of measurements that share a set-up.
type section struct {
	name string
	run  func(context.Context, *bench, section) error
	// steps are its parts in order; a section without any is one step itself.
	steps []step
}

type step struct {
	name string
	run  func(context.Context, *bench, *place) error
}

// wanted keeps the steps that -only names.
func (b *bench) wanted(s section) (section, bool) {
	if len(s.steps) == 0 {
		return s, b.only.MatchString(s.name)
	}
	s.steps = slices.DeleteFunc(slices.Clone(s.steps), func(st step) bool { return !b.only.MatchString(s.name + "/" + st.name) })
	return s, len(s.steps) > 0
}

// sections in the order in which they run: the machine's own limits first.
func sections() []section {
	idle, database := step{"idle", measureIdle}, step{"database", measureDatabase}
	fast, ledger := step{"fast", measureFast}, step{"ledger", measureLedger}
	return []section{
		{name: "machine", run: measureMachine},
		{name: "decision", run: measureDecision},
		{name: "one-node", run: measureNodes(1), steps: []step{idle, database, fast, ledger, {"reads", measureReads}, {"withdrawal", measureWithdrawal},
			{"mysql", measureSystem(startMariaDB)}, {"redis", measureSystem(startRedis)}}},
		{name: "restart", run: measureRestart},
		{name: "three-nodes", run: measureNodes(3), steps: []step{
			idle, database, fast, ledger, {"follower", measureFollowerReads}, {"containment", measureContainment}, {"cut-off", measureCutOff}, {"failover", measureFailover},
		}},
	}
}

func main() {
	var o options
	echo := flag.String("echo", "", "serve the HTTPS echo with this directory's certificates; the bench calls itself so")
	seconds := flag.Float64("seconds", 5, "how long each cell is measured")
	only := flag.String("only", "", "what to measure, a regular expression over section/step, as in one-node/ledger|restart")
	flag.BoolVar(&o.quick, "quick", false, "a fifth of the time and of the leases, for a look")
	flag.BoolVar(&o.markdown, "markdown", false, "print a Markdown table")
	flag.IntVar(&o.live, "live", 200_000, "live leases of the large restart")
	flag.StringVar(&o.binary, "mayfly", "", "the binary to measure (default: built from the sources)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if *echo != "" {
		exit(serveEcho(ctx, *echo))
	}
	o.cell = time.Duration(*seconds * float64(time.Second))
	if o.quick {
		o.cell, o.live = o.cell/5, o.live/20
	}
	var err error
	if o.only, err = regexp.Compile(*only); err != nil {
		exit(err)
	}
	exit(run(ctx, o))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// run measures every section that was asked for, prints what there is even if
// one fails, and removes what it made.
func run(ctx context.Context, o options) (err error) {
	b := &bench{options: o}
	if b.dir, err = os.MkdirTemp("", "mayfly-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	if b.binary == "" {
		if err := b.build(ctx); err != nil {
			return err
		}
	}
	began := time.Now()
	for _, s := range sections() {
		s, ok := b.wanted(s)
		if !ok {
			continue
		}
		b.progress("== %s", s.name)
		if serr := s.run(ctx, b, s); serr != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", s.name, serr))
			b.progress("   %v", serr)
			if ctx.Err() != nil {
				break
			}
		}
	}
	b.print(os.Stdout, fmt.Sprintf("%d cores, load %s, %s, %s a cell, %s in all", runtime.NumCPU(), load(), runtime.Version(), o.cell, time.Since(began).Round(time.Second)))
	return err
}

// load is the machine's load average when the run ended: neighbours show in it.
func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(b))[:3], " ")
}

// build makes the binary as it is released.
func (b *bench) build(ctx context.Context) error {
	b.binary = filepath.Join(b.dir, "mayfly")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", b.binary, "github.com/mayfly-broker/mayfly/cmd/mayfly")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}

// progress says on stderr what is going on.
func (b *bench) progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
}
