package issuertest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// patience bounds every call to a target: a call that hangs fails its test.
const patience = 60 * time.Second

// suite is one case's view of the target: an opened issuer that records what is
// said, so that the end of the case can look for secrets in it.
type suite struct {
	Harness
	ctx    context.Context
	issuer *recorder
	said   *transcript
}

// open opens the target for one case and closes it at the case's end.
func open(t *testing.T, h Harness) *suite {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	s := &suite{Harness: h, ctx: ctx, said: &transcript{}}
	for _, v := range h.Target.Secrets {
		s.said.addSecret(v)
	}
	s.issuer = s.open(t, 1)
	return s
}

// again is the suite with its patience anew, for a case of many rounds.
func (s *suite) again(t *testing.T) *suite {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	next := *s
	next.ctx = ctx
	return &next
}

// open opens another issuer on the same target with that term.
func (s *suite) open(t *testing.T, term uint64) *recorder {
	t.Helper()
	return s.openSpec(t, term, s.Target.Spec)
}

func (s *suite) openSpec(t *testing.T, term uint64, spec json.RawMessage) *recorder {
	t.Helper()
	target := s.Target
	target.Term, target.Spec = term, spec
	target.Log = slog.New(slog.NewJSONHandler(s.said, &slog.HandlerOptions{Level: slog.LevelDebug}))
	inner, err := s.Kind.Open(target)
	if err != nil {
		t.Fatalf("Open with term %d: %v", term, err)
	}
	r := &recorder{inner: inner, said: s.said}
	t.Cleanup(func() {
		if err := r.close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return r
}

// revocable says whether the harness's target can revoke.
func (s *suite) revocable() bool { return issuers.Revocable(s.Kind, s.Target.Spec) }

// lease makes a fresh lease for Harness.Scope.
func (s *suite) lease(t *testing.T) issuers.Lease {
	t.Helper()
	l := NewLease(s.Kind, s.Scope)
	if s.Prepare != nil {
		s.Prepare(t, &l)
	}
	return l
}

// leases makes n fresh leases.
func (s *suite) leases(t *testing.T, n int) []issuers.Lease {
	t.Helper()
	out := make([]issuers.Lease, n)
	for i := range out {
		out[i] = s.lease(t)
	}
	return out
}

// mint mints or ends the case, and withdraws at the case's end whatever happens.
func (s *suite) mint(t *testing.T, l issuers.Lease) issuers.Credential {
	t.Helper()
	s.withdrawAtEnd(t, l)
	c, err := s.issuer.Mint(s.ctx, l)
	if err != nil {
		t.Fatalf("Mint %s generation %d: %v", l.Name, l.Generation, err)
	}
	return c
}

func (s *suite) withdrawAtEnd(t *testing.T, leases ...issuers.Lease) {
	t.Helper()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), patience)
		defer cancel()
		target := s.Target
		target.Term, target.Log = 1, slog.New(slog.DiscardHandler)
		issuer, err := s.Kind.Open(target)
		if err != nil {
			t.Errorf("clean up: Open: %v", err)
			return
		}
		for _, o := range issuer.Withdraw(ctx, leases) {
			if o.Err != nil && !s.forgotten(o.Err) {
				t.Errorf("clean up: Withdraw: %v", o.Err)
			}
		}
		if err := issuer.Close(); err != nil {
			t.Errorf("clean up: Close: %v", err)
		}
	})
}

// mustWork fails the case unless the credential works now.
func (s *suite) mustWork(t *testing.T, c issuers.Credential, when string) {
	t.Helper()
	if err := s.Use(s.ctx, c); err != nil {
		t.Fatalf("%s, the credential is refused: %v", when, err)
	}
}

// mustBeRefused fails the case unless the credential is refused within Grace.
func (s *suite) mustBeRefused(t *testing.T, c issuers.Credential, when string) {
	t.Helper()
	err := eventually(s.ctx, s.Grace, func() error {
		if s.Use(s.ctx, c) == nil {
			return errors.New("it still works")
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%s, the credential should be refused: %v", when, err)
	}
}

// mustBeGone fails the case if the target still shows anything of the leases.
func (s *suite) mustBeGone(t *testing.T, when string, leases ...issuers.Lease) {
	t.Helper()
	for _, l := range leases {
		if err := eventually(s.ctx, s.Grace, func() error { return s.Gone(s.ctx, l) }); err != nil {
			t.Fatalf("%s, %s should be gone: %v", when, l.Name, err)
		}
	}
}

// withdraw ends the leases or fails the case.
func (s *suite) withdraw(t *testing.T, leases ...issuers.Lease) []issuers.Outcome {
	t.Helper()
	out := s.issuer.Withdraw(s.ctx, leases)
	s.checkEnded(t, leases, out)
	return out
}

// forgotten asks the harness's Kind about an error, if it is [Forgetful].
func (s *suite) forgotten(err error) bool {
	k, ok := s.Kind.(Forgetful)
	return ok && err != nil && k.Forgotten(err)
}

// checkEnded fails the case unless there is one receipt for each lease.
func (s *suite) checkEnded(t *testing.T, leases []issuers.Lease, out []issuers.Outcome) {
	t.Helper()
	if len(out) != len(leases) {
		t.Fatalf("Withdraw of %d leases gave %d outcomes", len(leases), len(out))
	}
	for i, o := range out {
		if s.forgotten(o.Err) {
			continue
		}
		if o.Err != nil {
			t.Fatalf("Withdraw %s (%d of %d): %v", leases[i].Name, i, len(leases), o.Err)
		}
		if err := checkReceipt(s.revocable(), o.Receipt); err != nil {
			t.Fatalf("receipt for %s: %v", leases[i].Name, err)
		}
	}
}

// checkNothingLeaked looks for every secret that the case has seen in all that
// was logged and answered.
func (s *suite) checkNothingLeaked(t *testing.T) {
	t.Helper()
	if found := s.said.leaked(); found != "" {
		t.Errorf("law 6: a secret stands in what was said: %s", found)
	}
}

// eventually calls try until it returns nil, for at most d (once if 0).
func eventually(ctx context.Context, d time.Duration, try func() error) error {
	err := try()
	if err == nil || d == 0 {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("after %s: %w", d, err)
		case <-tick.C:
			if err = try(); err == nil {
				return nil
			}
		}
	}
}

// transcript collects what an issuer says (logs, errors, receipts) and the
// secrets that must not be in it. It is an io.Writer for the log handler.
type transcript struct {
	mu      sync.Mutex
	text    bytes.Buffer
	secrets []string
}

func (r *transcript) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(p)
}

// addSecret remembers a secret, and of a private key in PEM each line of the
// body. Certificates are kept among a target's secrets, but are none.
func (r *transcript) addSecret(v secret.Text) {
	r.mu.Lock()
	defer r.mu.Unlock()
	plain := v.Reveal()
	if strings.HasPrefix(plain, "-----BEGIN CERTIFICATE-----") {
		return
	}
	if !strings.HasPrefix(plain, "-----BEGIN") {
		r.secrets = append(r.secrets, plain)
		return
	}
	for line := range strings.Lines(plain) {
		if line = strings.TrimSpace(line); len(line) >= 16 && !strings.HasPrefix(line, "-----") {
			r.secrets = append(r.secrets, line)
		}
	}
}

// sayError keeps an error in every form in which it could be printed.
func (r *transcript) sayError(err error) {
	if err != nil {
		fmt.Fprintf(r, "error %v %+v %#v\n", err, err, err)
	}
}

func (r *transcript) leaked() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	text := r.text.String()
	for _, s := range r.secrets {
		if i := strings.Index(text, s); s != "" && i >= 0 {
			start := max(0, i-80)
			return fmt.Sprintf("…%s[a secret of %d bytes]…", text[start:i], len(s))
		}
	}
	return ""
}

// recorder passes calls on and keeps what is answered.
type recorder struct {
	inner issuers.Issuer
	said  *transcript
	once  sync.Once
}

func (r *recorder) close() (err error) {
	r.once.Do(func() { err = r.inner.Close() })
	return err
}

// Mint also refuses an error that is not an *issuers.Error: the broker decides
// by its kind.
func (r *recorder) Mint(ctx context.Context, l issuers.Lease) (issuers.Credential, error) {
	c, err := r.inner.Mint(ctx, l)
	for _, v := range c.Secret {
		r.said.addSecret(v)
	}
	if err == nil {
		fmt.Fprintf(r.said, "credential %v %+v %#v\n", c, c, c)
		return c, nil
	}
	fmt.Fprintf(r.said, "mint error %v %+v %#v\n", err, err, err)
	var typed *issuers.Error
	if !errors.As(err, &typed) {
		return c, fmt.Errorf("Mint returned %T, which is not an *issuers.Error: %w", err, err)
	}
	if len(c.Secret)+len(c.Public) > 0 {
		return c, fmt.Errorf("Mint returned a credential beside its error: %w", err)
	}
	return c, err
}

func (r *recorder) Withdraw(ctx context.Context, leases []issuers.Lease) []issuers.Outcome {
	out := r.inner.Withdraw(ctx, leases)
	for _, o := range out {
		fmt.Fprintf(r.said, "outcome %+v %v\n", o.Receipt, o.Err)
	}
	return out
}
