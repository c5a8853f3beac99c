package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
)

const (
	defaultGrace = 10 * time.Second
	defaultLapse = 2 * time.Minute
	// ownTaskTTL is the deadline of exec's own tasks: far off, because the lapse
	// ends them when exec itself is gone.
	ownTaskTTL = 7 * 24 * time.Hour
)

func execCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "exec", Category: forWorkloads, ArgsUsage: "ROLE -- CMD …",
		Usage: "run a command with a credential that ends with it",
		Description: `CMD gets the credential in the variables that its target's clients read
(PGHOST, …), and of Mayfly's own only MAYFLY_TASK_ID, MAYFLY_LEASE_ID and
MAYFLY_EXPIRES_AT. The lease is renewed while CMD runs. When it cannot be
extended any more, a successor is minted and --on-change says what CMD hears of
it; variables cannot change in a running process, so what reads them is ended or
restarted, and what reads --files can be told by a signal. An account with one
holder at a time has no successor before its lease ends: CMD is ended shortly
before, or, with another --on-change, goes on while the account is given back and
asked for again, and is refused logins until that is done.

Ends with CMD's own code, 128 + the signal that killed it, or 120 + mayfly's
code when CMD was never started.

Examples:
  mayfly exec orders/readonly -- psql
  mayfly exec orders/readwrite --purpose "migration 42" --ttl 30m -- ./migrate up
  mayfly exec orders/readonly --on-change restart -- ./server
  mayfly exec orders/readonly --files /run/orders -- ./server   # HUP when they change`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "task", Usage: "an open task of yours instead of one of its own (`T`)"},
			&cli.StringFlag{Name: "purpose", Usage: "what it is for, without --task (`P`; the command's name)"},
			&cli.DurationFlag{Name: "ttl", Usage: "life of each lease between renewals (`D`; the role's default)"},
			&cli.StringFlag{Name: "scope", Usage: "authorization_details: a file, - or the JSON itself (`F|JSON`)"},
			waitFlag(),
			&cli.StringFlag{Name: "files", Usage: "write the credential's fields to files here, replaced all at once (`DIR`)"},
			&cli.StringFlag{Name: "on-change", Usage: "what CMD hears of a successor: `exit|restart|signal=HUP` (exit; with --files signal=HUP)"},
			&cli.DurationFlag{Name: "grace", Value: defaultGrace, Usage: "from SIGTERM to SIGKILL, and from a signalled change to the old lease's end (`D`)"},
			&cli.DurationFlag{Name: "lapse", Value: defaultLapse, Usage: "if exec itself is killed, its task ends after so long (`D`)"},
		},
		Action: func(c *cli.Context) error {
			if err := s.formats(); err != nil {
				return err
			}
			r, err := s.newRunner(c)
			if err != nil {
				return err
			}
			defer r.cl.Close()
			return r.run(c)
		},
	}
}

// childExit ends exec with its child's own code.
type childExit struct{ code int }

func (childExit) Error() string { return "the command ended" }

// runner runs one exec from the first request to the last withdrawal.
type runner struct {
	s  *shell
	cl *client.Client
	// finish is a client that gives up sooner: CMD has ended, somebody waits.
	finish *client.Client

	in     wire.AccessRequest // Task only when it was given
	wait   time.Duration
	argv   []string
	path   string // CMD's, found
	files  *fileSet
	change change
	grace  time.Duration
	lapse  time.Duration
	sigs   chan os.Signal
}

// change is what --on-change says.
type change struct {
	what   string // exit, restart or signal
	signal syscall.Signal
}

var signalNames = map[string]syscall.Signal{"HUP": syscall.SIGHUP, "INT": syscall.SIGINT, "TERM": syscall.SIGTERM, "QUIT": syscall.SIGQUIT, "USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2}

func parseChange(text string, files bool) (change, error) {
	if text == "" {
		text = "exit"
		if files {
			text = "signal=HUP"
		}
	}
	what, name, _ := strings.Cut(text, "=")
	switch {
	case text == "exit", text == "restart":
		return change{what: text}, nil
	case what == "signal":
		sig, ok := signalNames[strings.TrimPrefix(strings.ToUpper(name), "SIG")]
		if ok && files {
			return change{what, sig}, nil
		}
		if ok {
			return change{}, usage("--on-change %s needs --files DIR: a running process's variables cannot change", text)
		}
	}
	return change{}, usage("--on-change %q: want exit, restart or signal=HUP (INT, TERM, QUIT, USR1, USR2)", text)
}

// newRunner reads the command line. CMD is looked for before anything is minted.
func (s *shell) newRunner(c *cli.Context) (*runner, error) {
	args := c.Args().Slice()
	at := slices.Index(args, "--")
	if at < 1 || at > 2 || at == len(args)-1 {
		return nil, usage("usage: mayfly exec [flags] ROLE -- CMD …")
	}
	role, err := named("Role", args[:at])
	if err != nil {
		return nil, err
	}
	r := &runner{s: s, argv: args[at+1:], grace: c.Duration("grace"), lapse: c.Duration("lapse"), wait: c.Duration("wait"), sigs: make(chan os.Signal, 32)}
	if r.grace < 0 || r.lapse <= 0 {
		return nil, usage("--grace and --lapse cannot be negative, nor --lapse nothing")
	}
	if r.change, err = parseChange(c.String("on-change"), c.String("files") != ""); err != nil {
		return nil, err
	}
	if r.path, err = exec.LookPath(r.argv[0]); err != nil {
		return nil, failed("command_not_found", "%s cannot be run: %v", clean(r.argv[0]), err)
	}
	if r.in, err = s.accessRequest(c, role); err != nil {
		return nil, err
	}
	if r.in.Task == "" && r.in.Purpose == "" {
		r.in.Purpose = "exec " + r.argv[0]
	}
	if dir := c.String("files"); dir != "" {
		r.files = &fileSet{dir: dir}
	}
	cfg, err := s.config(c)
	if err != nil {
		return nil, err
	}
	if r.cl, err = client.New(cfg); err != nil {
		return nil, err
	}
	cfg.Retry, cfg.OnRetry = min(cfg.Retry, 3*time.Second), nil
	r.finish, err = client.New(cfg)
	return r, err
}

// forwarded are the signals that go on to CMD.
var forwarded = []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH}

// run mints, runs CMD, and withdraws, whatever happens in between.
func (r *runner) run(c *cli.Context) error {
	defer r.finish.Close()
	signal.Notify(r.sigs, forwarded...)
	defer signal.Stop(r.sigs)
	ctx, cancel := context.WithCancel(context.WithoutCancel(c.Context))
	defer cancel()
	r.s.releaseSignals() // from here on they are CMD's

	first, err := r.first(ctx, cancel)
	if err != nil {
		return err
	}
	code, err := r.live(ctx, first)
	if err != nil {
		return err
	}
	return childExit{code}
}

// first gets the credential that CMD starts with. A signal that comes before
// CMD exists ends the attempt, and what was opened for it.
func (r *runner) first(ctx context.Context, cancel context.CancelFunc) (*holding, error) {
	type result struct {
		h   *holding
		err error
	}
	done := make(chan result, 1)
	go func() {
		h, err := r.acquire(ctx)
		done <- result{h, err}
	}()
	interrupted := false
	for {
		select {
		case sig := <-r.sigs:
			if sig == syscall.SIGINT || sig == syscall.SIGTERM || sig == syscall.SIGQUIT || sig == syscall.SIGHUP {
				interrupted = true
				cancel()
			}
		case got := <-done:
			if interrupted && got.err == nil {
				r.endLast([]*holding{got.h})
			}
			if interrupted {
				return nil, context.Canceled
			}
			return got.h, got.err
		}
	}
}

// holding is one lease and the task it lives in. The answer stays as it came.
type holding struct {
	wire.AccessAnswer
	own   bool         // the task is exec's, and ends with the lease
	until atomic.Int64 // Unix milliseconds: its end, renewals included
}

func newHolding(a wire.AccessAnswer, own bool) *holding {
	h := &holding{AccessAnswer: a, own: own}
	h.until.Store(a.ExpiresAt.UnixMilli())
	return h
}

// expires is when the lease ends, as far as we know.
func (h *holding) expires() time.Time { return time.UnixMilli(h.until.Load()) }

// acquire starts a task of our own, unless one was given, and asks for the
// credential in it. On failure nothing stays open.
func (r *runner) acquire(ctx context.Context) (*holding, error) {
	in := r.in
	own := in.Task == ""
	if own {
		name := "exec-" + strings.ReplaceAll(in.Role, "/", "-") + "-" + randomWord(8)
		t, err := r.cl.StartTask(ctx, wire.StartTaskRequest{Name: name, Purpose: in.Purpose, TTL: ownTaskTTL.String(), Lapse: r.lapse.String()})
		if err != nil {
			return nil, err
		}
		in.Task, in.Purpose = t.ID, ""
	}
	a, err := r.obtain(ctx, in, own)
	if err != nil {
		if own {
			r.endTask(in.Task)
		}
		return nil, err
	}
	if a.TaskID == "" {
		a.TaskID = in.Task
	}
	return newHolding(a.AccessAnswer, own), nil
}

// obtain asks for the credential, waiting for approvals as long as --wait says.
// A task of our own is kept from lapsing meanwhile.
func (r *runner) obtain(ctx context.Context, in wire.AccessRequest, own bool) (client.Access, error) {
	if own && r.wait > 0 {
		beating, stop := context.WithCancel(ctx)
		var work sync.WaitGroup
		work.Go(func() { r.beat(beating, in.Task) })
		defer work.Wait()
		defer stop()
	}
	a, err := r.s.insist(client.WithIdempotencyKey(ctx, randomWord(26)), r.cl, in, r.wait)
	if err == nil && ctx.Err() != nil { // interrupted while it waited
		return a, ctx.Err()
	}
	if err != nil || a.Status != client.StatusWaiting {
		return a, err
	}
	text := fmt.Sprintf("grant %s needs %s; %s was not started", clean(a.GrantID), needsText(a.Needs), clean(r.argv[0]))
	next := "mayfly exec --wait 30m …, so that it is there when they have approved"
	if own {
		text += ", and the request is withdrawn with the task that exec had opened for it"
	}
	return a, &failure{code: exitWaiting, kind: client.KindApprovalRequired, word: client.CodeApprovalRequired, detail: text, next: next}
}

// beat keeps a task from lapsing while nothing runs in it yet. One that is over
// shows by the grant that ends with it.
func (r *runner) beat(ctx context.Context, task string) {
	tick := time.NewTicker(r.lapse / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			_, _ = r.cl.HeartbeatTask(ctx, task)
		}
	}
}

// endTask ends a task in which nothing was issued, as far as we know.
func (r *runner) endTask(id string) {
	ctx, cancel := context.WithTimeout(context.Background(), endPatience)
	defer cancel()
	if _, err := r.finish.EndTask(ctx, id, 0); err != nil {
		r.s.notice("task %s could not be ended (%s); it lapses by itself within %s", clean(id), brief(err), r.lapse)
	}
}

const (
	endWait     = 15 * time.Second // for the target to confirm
	endPatience = 15 * time.Second
)

// endLast is end when nothing else is left to do: a signal then means that
// somebody does not want to wait. The request is on its way, and the lapse is
// behind it.
func (r *runner) endLast(holdings []*holding) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stop := r.impatient(cancel)
	defer stop()
	for _, h := range holdings {
		r.end(ctx, h)
	}
}

// end withdraws a holding, and tells when the broker cannot be told.
func (r *runner) end(ctx context.Context, h *holding) {
	ctx, cancel := context.WithTimeout(ctx, endPatience)
	defer cancel()
	var err error
	confirmed := true
	if h.own {
		var a wire.EndTaskAnswer
		a, err = r.finish.EndTask(ctx, h.TaskID, endWait)
		confirmed = a.Withdrawn || a.Leases == 0
	} else {
		_, err = r.finish.Revoke(ctx, h.LeaseID, wire.RevokeRequest{Reason: "exec ended"})
	}
	var e *client.Error
	switch {
	case err == nil && confirmed:
	case err == nil:
		r.s.notice("lease %s is being withdrawn; the target has not confirmed it yet", clean(h.LeaseID))
	case errors.As(err, &e) && (e.Problem.Kind == client.KindNotFound || e.Problem.Kind == client.KindConflict || e.Problem.Code == "task_ended"): // over already
	default:
		r.s.notice("the broker could not be told that the work is over (%s); lease %s ends by itself at %s", brief(err), clean(h.LeaseID), h.expires().Local().Format(time.DateTime+" MST"))
	}
}

// impatient cancels when a signal asks for it, until it is stopped.
func (r *runner) impatient(cancel context.CancelFunc) (stop func()) {
	done := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case sig := <-r.sigs:
				if sig == syscall.SIGINT || sig == syscall.SIGTERM || sig == syscall.SIGQUIT {
					cancel()
					return
				}
			case <-done:
				return
			}
		}
	}()
	return func() { close(done); <-ended }
}
