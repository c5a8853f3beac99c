package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// child is CMD while it runs.
type child struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	kill *time.Timer   // SIGKILL after the grace, once it was asked to end
}

// start starts CMD with a credential. The standard streams are its own.
func (r *runner) start(h *holding) (*child, error) {
	cmd := exec.Command(r.path, r.argv[1:]...)
	cmd.Args[0] = r.argv[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = environment(os.Environ(), childEnv(h.AccessAnswer))
	if err := cmd.Start(); err != nil {
		return nil, failed("command_not_started", "%s cannot be run: %v", clean(r.argv[0]), err)
	}
	c := &child{cmd: cmd, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		_ = cmd.Wait() // its state tells how it ended
	}()
	return c, nil
}

// environment is base without anything of Mayfly's, then extra.
func environment(base []string, extra map[string]string) []string {
	var out []string
	for _, kv := range base {
		name, _, _ := strings.Cut(kv, "=")
		if _, replaced := extra[name]; replaced || strings.HasPrefix(name, "MAYFLY_") {
			continue
		}
		out = append(out, kv)
	}
	for i, list := 0, pairs(extra); i < len(list); i += 2 {
		out = append(out, list[i]+"="+extra[list[i]])
	}
	return out
}

// code is how CMD ended: its own code, or 128 and the signal.
func (c *child) code() int {
	st := c.cmd.ProcessState
	if ws, ok := st.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return st.ExitCode()
}

// tell sends a signal; one that has ended hears nothing.
func (c *child) tell(sig os.Signal) { _ = c.cmd.Process.Signal(sig) }

// terminate asks CMD to end and sees to it after the grace.
func (c *child) terminate(grace time.Duration) {
	c.tell(syscall.SIGTERM)
	c.killAfter(grace)
}

func (c *child) killAfter(grace time.Duration) {
	if c.kill == nil {
		c.kill = time.AfterFunc(grace, func() { c.tell(syscall.SIGKILL) })
	}
}

func (c *child) stopTimer() {
	if c.kill != nil {
		c.kill.Stop()
	}
}

// live runs CMD on its first holding until it ends for good, and ends every
// lease. The error is one that kept CMD from ever starting.
func (r *runner) live(ctx context.Context, first *holding) (code int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	open := &openHoldings{list: []*holding{first}}
	defer func() {
		cancel()
		work.Wait()
		r.endLast(open.take())
		if r.files != nil {
			r.files.remove()
		}
	}()
	if r.files != nil {
		if err := r.files.write(first.Credential); err != nil {
			return 0, failed("files", "--files: %v", err)
		}
	}
	c, err := r.start(first)
	if err != nil {
		return 0, err
	}
	k := &keeper{r: r, open: open, events: make(chan event), now: first}
	work.Go(func() { k.run(ctx) })
	return r.watch(ctx, &work, open, c, first, k.events), nil
}

// openHoldings are the leases that must not be left behind.
type openHoldings struct {
	mu   sync.Mutex
	list []*holding
}

func (o *openHoldings) add(h *holding) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.list = append(o.list, h)
}

// drop takes h out; false if somebody else has.
func (o *openHoldings) drop(h *holding) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, x := range o.list {
		if x == h {
			o.list = append(o.list[:i], o.list[i+1:]...)
			return true
		}
	}
	return false
}

func (o *openHoldings) take() []*holding {
	o.mu.Lock()
	defer o.mu.Unlock()
	list := o.list
	o.list = nil
	return list
}

// watch passes signals on and does what the keeper's events ask for, until CMD
// has ended and is not to be restarted.
func (r *runner) watch(ctx context.Context, work *sync.WaitGroup, open *openHoldings, c *child, current *holding, events <-chan event) int {
	ending := false      // a signal, or the end of the credential, wants CMD gone
	var restart *holding // start again on this one when CMD has ended
	for {
		select {
		case sig := <-r.sigs:
			if r.passed(sig) {
				c.tell(sig)
			}
			if sig == syscall.SIGTERM {
				ending = true
				c.killAfter(r.grace)
			}
		case ev := <-events:
			if ev.next == nil {
				r.s.notice("%s; ending the command", ev.why)
				ending = true
				c.terminate(r.grace)
				continue
			}
			open.add(ev.next)
			old := current
			current = ev.next
			if r.replace(ctx, work, open, c, old, ev.next) {
				restart = ev.next
			}
			ending = ending || r.change.what == "exit"
		case <-c.done:
			c.stopTimer()
			if ending || restart == nil {
				return c.code()
			}
			next, err := r.start(restart)
			if err != nil {
				r.s.notice("%s", brief(err))
				return beforeChild + exitFailed
			}
			for _, h := range open.take() {
				if h == restart {
					open.add(h)
					continue
				}
				work.Go(func() { r.end(context.Background(), h) })
			}
			c, restart = next, nil
		}
	}
}

// passed reports whether a signal is sent on. What a terminal sends, it sends
// to CMD as well.
func (r *runner) passed(sig os.Signal) bool {
	fromKeys := sig == syscall.SIGINT || sig == syscall.SIGQUIT || sig == syscall.SIGWINCH
	return !fromKeys || !term.IsTerminal(int(os.Stdin.Fd()))
}

// replace tells CMD of its successor credential. It reports whether CMD is to
// be started again once it has ended.
func (r *runner) replace(ctx context.Context, work *sync.WaitGroup, open *openHoldings, c *child, old, next *holding) (again bool) {
	if r.files != nil {
		if err := r.files.write(next.Credential); err != nil {
			r.s.notice("the files could not be replaced: %v", err)
		}
	}
	switch r.change.what {
	case "signal":
		c.tell(r.change.signal)
		// CMD may still work on what it read before: the old lease ends after
		// the grace, in which it can finish.
		work.Go(func() {
			pause(ctx, r.grace)
			if open.drop(old) {
				r.end(context.Background(), old)
			}
		})
		return false
	case "restart":
		r.s.notice("the credential has a successor; restarting the command")
		c.terminate(r.grace)
		return true
	default:
		r.s.notice("the credential reaches its end and has a successor; ending the command (--on-change exit)")
		c.terminate(r.grace)
		return false
	}
}

// event is what the keeper has to say: a successor, or the end and why.
type event struct {
	next *holding
	why  string
}

// keeper keeps the credential alive while CMD runs: heartbeats, renewals, and
// at the hard end a successor.
type keeper struct {
	r      *runner
	open   *openHoldings
	events chan event
	now    *holding
	margin time.Duration // this long before its end, the lease is replaced
	fixed  bool          // the lease cannot be renewed any more
	sole   bool          // nobody gets a successor before the lease has ended
	silent bool          // the present outage was told
}

// jittered spreads d by a tenth to each side, so that a fleet that started
// together does not renew together.
func jittered(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.9 + 0.2*rand.Float64()))
}

// margin is how long before its end a lease is replaced.
func margin(left time.Duration) time.Duration { return max(min(left/4, time.Minute), 0) }

// run works until ctx ends or the credential is lost.
func (k *keeper) run(ctx context.Context) {
	beat := time.NewTicker(k.r.lapse / 4)
	defer beat.Stop()
	next := time.NewTimer(k.first())
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-beat.C:
			if why := k.heartbeat(ctx); why != "" {
				k.say(ctx, event{why: why})
				return
			}
		case <-next.C:
			wait, why := k.step(ctx)
			if why != "" {
				k.say(ctx, event{why: why})
				return
			}
			next.Reset(wait)
		}
	}
}

func (k *keeper) say(ctx context.Context, ev event) {
	select {
	case k.events <- ev:
	case <-ctx.Done():
		if ev.next != nil {
			k.r.end(context.Background(), ev.next) // nobody is left to take it
		}
	}
}

// first is how long until something is to be done about a new holding.
func (k *keeper) first() time.Duration {
	left := time.Until(k.now.expires())
	k.margin = margin(left)
	k.fixed = !k.now.Renewable || !k.now.NotAfter.IsZero() && !k.now.ExpiresAt.Before(k.now.NotAfter)
	if k.fixed {
		return left - k.margin
	}
	if until := time.Until(k.now.RenewAfter); until > 0 && until < left {
		return jittered(until)
	}
	return jittered(left / 2)
}

// step renews, or replaces what cannot be renewed. It returns when to come
// again, or why there is no credential any more.
func (k *keeper) step(ctx context.Context) (wait time.Duration, why string) {
	if !k.fixed {
		return k.renew(ctx), ""
	}
	left := time.Until(k.now.expires())
	if k.sole && left > 0 {
		return left, ""
	}
	if k.sole && k.open.drop(k.now) {
		k.r.end(context.Background(), k.now) // now its secret is replaced, and the next one given out
	}
	next, err := k.r.acquire(ctx)
	if err == nil {
		k.now = next
		k.silent, k.sole = false, false
		k.say(ctx, event{next: next})
		return k.first(), ""
	}
	if ctx.Err() != nil {
		return time.Hour, ""
	}
	if left <= 0 {
		return 0, "the credential has ended and cannot be replaced: " + brief(err)
	}
	if held(err) {
		return k.alone(left)
	}
	k.outage("the credential ends in %s and has no successor yet: %s", span(left), err)
	return max(min(left/4, 10*time.Second), 100*time.Millisecond), ""
}

// held reports that an account is not given out while somebody holds it.
func held(err error) bool {
	var e *client.Error
	return errors.As(err, &e) && e.Problem.Code == client.CodeAccountHeld
}

// alone is step for an account with one holder at a time, which is this lease: there
// is no successor before its end, and asking for one again changes nothing. CMD
// either ends with it, or goes on, without logins while the secret is replaced.
func (k *keeper) alone(left time.Duration) (wait time.Duration, why string) {
	const one = "the account has one holder at a time, so that the credential has no successor before it ends"
	if k.r.change.what == "exit" {
		return 0, one
	}
	k.sole = true
	k.r.s.notice("%s in %s; it is given back then, and logins are refused until the next one is there", one, span(left))
	return left, ""
}

// renew extends the lease and returns when to come again.
func (k *keeper) renew(ctx context.Context) time.Duration {
	l, err := k.r.cl.Renew(ctx, k.now.LeaseID, wire.RenewRequest{TTL: k.r.in.TTL})
	left := time.Until(k.now.expires())
	switch {
	case err == nil:
		k.silent = false
		extended := l.ExpiresAt.After(k.now.expires())
		k.now.until.Store(l.ExpiresAt.UnixMilli())
		left = time.Until(l.ExpiresAt)
		if extended && l.ExpiresAt.Before(l.NotAfter) {
			return jittered(left / 2)
		}
	case ctx.Err() != nil:
		return time.Hour
	case retryable(err) && left > k.margin:
		k.outage("the lease could not be renewed yet, %s are left: %s", span(left), err)
		return min(jittered(left/4), 10*time.Second)
	default:
		k.outage("the lease is not renewed any more, %s are left: %s", span(left), err)
	}
	k.fixed = true
	return left - margin(left)
}

func retryable(err error) bool {
	var e *client.Error
	return errors.As(err, &e) && (e.Retryable() || e.Problem.Kind == client.KindRateLimited || e.Problem.Kind == client.KindUpstream)
}

// heartbeat keeps the task from lapsing; it returns why the task is over, if
// it is.
func (k *keeper) heartbeat(ctx context.Context) (why string) {
	t, err := k.r.cl.HeartbeatTask(ctx, k.now.TaskID)
	switch {
	case ctx.Err() != nil:
		return ""
	case err == nil && t.State == "ended":
		return "task " + clean(t.ID) + " was ended (" + clean(t.EndReason) + ")"
	case err == nil:
		k.silent = false
		return ""
	case retryable(err), client.KindOf(err) == client.KindUnauthenticated:
		k.outage("no heartbeat for %s: %s", "the task", err)
		return ""
	default:
		return "the task is over: " + brief(err)
	}
}

// outage tells of a failure once, not with every attempt.
func (k *keeper) outage(format, part string, err error) {
	if !k.silent {
		k.silent = true
		k.r.s.notice(format, part, brief(err))
	}
}
