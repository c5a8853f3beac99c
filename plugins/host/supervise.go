package host

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/time/rate"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// supervised is one plugin: the process that serves, and what keeps one serving.
type supervised struct {
	host *Host
	log  *slog.Logger
	loud *rate.Limiter // of lines about lies
	poke chan struct{}
	over chan struct{} // closed when it is no longer registered

	mu       sync.Mutex
	spec     Spec              // what shall run
	current  *process          // what runs; nil for none
	kindNow  *kind             // of the newest process, also after its end
	sha      [sha256.Size]byte // of the newest process
	problem  string            // of the last start, or of the last end
	restarts int
	failures int           // starts that failed, since the node began
	lies     int           // answers that were none, since the node began
	changed  chan struct{} // closed at the next change of the above
	secrets  map[string]int
}

func newSupervised(h *Host, spec Spec) *supervised {
	return &supervised{
		host: h, log: h.o.Log.With("plugin", spec.Name), loud: rate.NewLimiter(rate.Every(time.Minute/liesPerMin), liesAtOnce), spec: spec, poke: make(chan struct{}, 1), over: make(chan struct{}),
		changed: make(chan struct{}), secrets: map[string]int{},
	}
}

// want says what shall run from now on.
func (s *supervised) want(spec Spec) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.spec == spec {
		return
	}
	s.spec = spec
	if s.current == nil {
		s.problem = "" // of another file: whoever asks waits for this one's
	}
	select {
	case s.poke <- struct{}{}:
	default:
	}
}

func (s *supervised) wanted() Spec {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.spec
}

// note changes what others see, and tells those who wait.
func (s *supervised) note(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	close(s.changed)
	s.changed = make(chan struct{})
}

func newBackoff() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.RandomizationFactor = backoffFirst, backoffMost, 0.5
	return b
}

// run keeps the wanted plugin running until the host or its registration ends.
func (s *supervised) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.host.spawn(func(context.Context) { // a start in progress ends with the registration
		select {
		case <-s.over:
			cancel()
		case <-ctx.Done():
		}
	})
	var (
		pause  = newBackoff()
		binary *os.File // what ran last, to start it again
		misses int
	)
	retry, health := time.NewTimer(0), time.NewTicker(healthEvery)
	defer health.Stop()
	defer retry.Stop()
	defer func() {
		s.end()
		if binary != nil {
			_ = binary.Close()
		}
	}()
	for {
		var exited chan struct{}
		cur := s.running()
		if cur != nil {
			exited = cur.child.exited
		}
		select {
		case <-ctx.Done():
			return
		case <-s.poke:
			pause = newBackoff()
			retry.Reset(0)
		case <-retry.C:
			if next, err := s.renew(ctx, cur, binary); err != nil {
				retry.Reset(pause.NextBackOff())
			} else if next != nil {
				if binary != nil && binary != next {
					_ = binary.Close()
				}
				binary, misses = next, 0
			}
		case <-exited:
			if time.Since(cur.began) > steadyAfter {
				pause = newBackoff()
			}
			retry.Reset(pause.NextBackOff())
			s.ended(cur)
		case <-health.C:
			if misses = s.examine(ctx, cur, misses); misses >= healthMisses {
				s.log.Error("the plugin does not answer; it is ended and started again")
				_ = cur.child.Kill(ctx)
				misses = 0
			}
		}
	}
}

func (s *supervised) running() *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current
}

// renew starts what is wanted, unless it runs, and lets it take over. It returns
// the file that now runs. What runs goes on until its successor has shaken hands.
func (s *supervised) renew(ctx context.Context, cur *process, binary *os.File) (*os.File, error) {
	spec := s.wanted()
	if cur != nil && cur.spec == spec {
		return nil, nil
	}
	next, err := s.launch(ctx, spec, binary)
	if err != nil {
		if ctx.Err() == nil {
			s.log.Error("the plugin does not start; trying again", "sha256", hash(spec.SHA256), "error", err)
			s.note(func() { s.problem = err.Error(); s.failures++ })
		}
		return nil, err
	}
	if s.wanted() != spec { // another one was asked for meanwhile
		next.end()
		return nil, errors.New("superseded")
	}
	s.log.Info("the plugin runs", "sha256", hash(spec.SHA256), "pid", next.child.ID(), "user", next.child.account.uid, "ends_whole", next.child.apart)
	s.note(func() {
		if s.kindNow != nil {
			if lost := s.kindNow.lost(next.manifest); len(lost) > 0 {
				s.log.Warn("the plugin can no longer do what its predecessor could", "abilities", lost)
			}
		}
		s.current, s.problem, s.sha = next, "", spec.SHA256
		if s.kindNow == nil || !s.kindNow.fits(next.manifest) {
			s.kindNow = newKind(s, next.manifest)
		}
		s.kindNow.forget()
	})
	if cur != nil {
		s.host.spawn(func(context.Context) { s.drain(ctx, cur) })
	}
	return next.child.binary, nil
}

// launch starts a process of spec: from the copy that ran last, where that is the
// same, so that a file that was removed or replaced meanwhile stops no restart.
func (s *supervised) launch(ctx context.Context, spec Spec, last *os.File) (*process, error) {
	if !s.ran(spec) {
		last = nil
	}
	l, err := s.host.prepare(spec, last)
	if err != nil {
		return nil, err
	}
	l.log, l.redact = s.log, s.redact
	p, err := start(ctx, l)
	if err == nil {
		if err = s.replaces(p); err != nil {
			p.end()
		}
	}
	if err != nil {
		if l.binary != last {
			_ = l.binary.Close()
		}
		return nil, err
	}
	return p, nil
}

// ran says whether the newest process was of the same file.
func (s *supervised) ran(spec Spec) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sha == spec.SHA256
}

// replaces refuses a successor that would name credentials otherwise: those that
// live bear the old names. And one that says of itself, started from the same file,
// what it did not say before: it could drop whatever shows what it has done.
func (s *supervised) replaces(p *process) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k := s.kindNow; k != nil && s.sha == p.spec.SHA256 && !k.fits(p.manifest) {
		return errors.New("it says other things of itself than before, and is the same file")
	}
	if k := s.kindNow; k != nil && (k.manifest.CredentialName != p.manifest.CredentialName || k.manifest.Revocable != p.manifest.Revocable) {
		return fmt.Errorf("it names credentials %s (revocable: %t), its predecessor %s (revocable: %t): register it under another name", p.manifest.CredentialName, p.manifest.Revocable, k.manifest.CredentialName, k.manifest.Revocable)
	}
	return nil
}

// drain ends a process that was replaced, once its calls are done.
func (s *supervised) drain(ctx context.Context, p *process) {
	p.retire()
	timer := time.NewTimer(drainTime)
	defer timer.Stop()
	select {
	case <-p.idle:
	case <-timer.C:
	case <-p.child.exited:
	case <-ctx.Done():
	}
	p.end()
	s.log.Info("the plugin's predecessor has ended", "sha256", hash(p.spec.SHA256))
}

// ended notes that the process that served is gone.
func (s *supervised) ended(p *process) {
	p.retire()
	p.end()
	why := "it ended by itself"
	if p.child.err != nil {
		why = "it ended: " + p.child.err.Error()
	}
	s.log.Error("the plugin has ended; it is started again", "pid", p.child.ID(), "error", why)
	s.note(func() { s.current, s.problem = nil, why; s.restarts++ })
}

// end ends what runs, with the host or the registration.
func (s *supervised) end() {
	cur := s.running()
	s.note(func() { s.current, s.problem = nil, "it is no longer registered, or the node stops" })
	if cur != nil {
		cur.retire()
		cur.end()
	}
}

// examine asks whether the process answers, and counts the misses in a row.
func (s *supervised) examine(ctx context.Context, cur *process, misses int) int {
	if cur == nil {
		return 0
	}
	if err := cur.healthy(ctx); err != nil && ctx.Err() == nil {
		s.log.Warn("the plugin does not answer", "misses", misses+1, "error", clean(err.Error(), maxReceipt))
		return misses + 1
	}
	return 0
}

// kind returns the newest process's kind, also while none runs: names and known
// answers need none, and calls fail one by one.
func (s *supervised) kind() (*kind, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kindNow != nil {
		return s.kindNow, nil
	}
	if s.problem != "" {
		return nil, fmt.Errorf("plugin %s does not run on this node: %s", s.spec.Name, s.problem)
	}
	return nil, &issuers.Pending{What: "plugin " + s.spec.Name, Fetch: s.settle}
}

// settle waits until a first start has succeeded or failed.
func (s *supervised) settle(ctx context.Context) error {
	for {
		s.mu.Lock()
		done, changed := s.kindNow != nil || s.problem != "", s.changed
		s.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("plugin %s is still starting", s.spec.Name)
		}
	}
}

// enter counts a call, one of most, in at the process that serves, and returns it; nil where
// none does. One that was replaced in this very moment has a successor.
func (s *supervised) enter(most int) *process {
	for {
		p := s.running()
		if p == nil || p.enter(most) {
			return p
		}
		if s.running() == p {
			return nil
		}
	}
}

// absent is why no process takes a call, for errors.
func (s *supervised) absent() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current != nil {
		return "plugin " + s.spec.Name + " has too much to do"
	}
	return fmt.Sprintf("plugin %s does not run on this node: %s", s.spec.Name, s.problem)
}

func (s *supervised) status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := Status{Name: s.spec.Name, SHA256: hash(s.spec.SHA256), Wanted: hash(s.spec.SHA256), Problem: s.problem, Restarts: s.restarts, Failures: s.failures, Lies: s.lies}
	if p := s.current; p != nil {
		out.Running, out.SHA256, out.PID, out.Since = true, hash(p.spec.SHA256), p.child.ID(), p.began
	} else if out.Problem == "" {
		out.Problem = "it is starting"
	}
	return out
}

// lied counts an answer that cannot be true, and says so in the log; not each time,
// for a plugin may lie as often as it is asked.
func (s *supervised) lied(target, text string) {
	s.mu.Lock()
	s.lies++
	s.mu.Unlock()
	if s.loud.Allow() {
		s.log.Error("the plugin gave an answer that is not one", "target", target, "answer", text)
	}
}

// shortestSecret is the shortest text that is taken out of what a plugin says.
const shortestSecret = 8

// keep remembers a target's secrets for as long as it is open, to take them out
// of what the plugin says; the result forgets them.
func (s *supervised) keep(in map[string]secret.Text) (forget func()) {
	var words []string
	for _, v := range in {
		for _, line := range strings.Split(v.Reveal(), "\n") { // a key in PEM is many lines
			if line = strings.TrimSpace(line); len(line) >= shortestSecret && !strings.HasPrefix(line, "-----") {
				words = append(words, line)
			}
		}
	}
	count := func(by int) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, w := range words {
			if s.secrets[w] += by; s.secrets[w] <= 0 {
				delete(s.secrets, w)
			}
		}
	}
	count(1)
	return sync.OnceFunc(func() { count(-1) })
}

// redact takes the secrets of open targets out of a text.
func (s *supervised) redact(text string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.secrets {
		text = strings.ReplaceAll(text, w, secret.Redacted)
	}
	return text
}
