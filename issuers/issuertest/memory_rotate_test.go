package issuertest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/secret"
)

// adminSecret is how the broker enters the system in memory.
const adminSecret = "admin_password"

// lasting is an account of the system that is no lease's.
type lasting struct {
	password string
	// others are further passwords, which a broken Replace leaves there.
	others []string
}

func (k kind) Admin(json.RawMessage) (username, secretName string, err error) {
	return "admin", adminSecret, nil
}

// entered says whether the issuer's own secret still opens the system.
func (i *issuer) entered() error {
	sys := i.kind.sys
	sys.mu.Lock()
	defer sys.mu.Unlock()
	if sys.fault != "admin is never asked" && !slices.Contains(sys.lasting["admin"].all(), i.target.Secrets[adminSecret].Reveal()) {
		return &issuers.Error{Kind: issuers.Refused, Detail: "the admin's login is refused"}
	}
	return nil
}

func (a *lasting) all() []string {
	if a == nil {
		return nil
	}
	return append([]string{a.password}, a.others...)
}

// answering waits while the system is frozen.
func (s *system) answering(ctx context.Context) error {
	s.mu.Lock()
	frozen := s.frozen
	s.mu.Unlock()
	if frozen == nil {
		return nil
	}
	select {
	case <-frozen:
		return nil
	case <-ctx.Done():
		if s.fault == "hang is refused" {
			return &issuers.Error{Kind: issuers.Refused, Detail: "no"}
		}
		return &issuers.Error{Kind: issuers.Unknown, Detail: "no answer", Err: ctx.Err()}
	}
}

func (i *issuer) Replace(ctx context.Context, r issuers.Replacement) error {
	sys := i.kind.sys
	if err := i.usable(ctx); err != nil {
		return err
	}
	if err := i.entered(); err != nil {
		return err
	}
	waiting, cancel := context.WithDeadline(ctx, r.Deadline)
	defer cancel()
	if err := sys.answering(waiting); err != nil {
		return err
	}
	sys.mu.Lock()
	defer sys.mu.Unlock()
	if time.Now().After(r.Deadline) && sys.fault != "replaces after the deadline" {
		return &issuers.Error{Kind: issuers.TooLate, Detail: "past the deadline"}
	}
	if l := sys.accounts[r.Username]; l != nil {
		if sys.fault == "replaces a lease's secret" {
			l.password = r.Next.Reveal()
		}
		return &issuers.Error{Kind: issuers.Foreign, Detail: "a lease's"}
	}
	a := sys.lasting[r.Username]
	if a == nil && sys.fault == "replace makes accounts" {
		a = &lasting{}
		sys.lasting[r.Username] = a
	}
	if a == nil {
		return &issuers.Error{Kind: issuers.Gone, Detail: "no such account"}
	}
	switch sys.fault {
	case "replace does nothing":
		return nil
	case "replace leaves a second secret":
		a.others = append(a.others, a.password)
	case "replace quotes the secret":
		i.target.Log.Info("replaced", "next", r.Next.Reveal())
	case "replace ends sessions":
		for _, s := range a.sessions(sys) {
			s.dead = true
		}
	case "replace says done when cancelled":
		if ctx.Err() == nil && time.Until(r.Deadline) < 10*time.Second {
			return nil
		}
	}
	a.password = r.Next.Reveal()
	return nil
}

func (a *lasting) sessions(s *system) []*session { return s.open[a] }

func (i *issuer) TryLogin(ctx context.Context, username string, candidate secret.Text) error {
	sys := i.kind.sys
	if strings.Contains(string(i.target.Spec), "nowhere") {
		return &issuers.Error{Kind: issuers.Unreachable, Detail: "nobody answers"}
	}
	if err := sys.answering(ctx); err != nil {
		return err
	}
	sys.mu.Lock()
	defer sys.mu.Unlock()
	a := sys.lasting[username]
	switch {
	case a == nil:
		return &issuers.Error{Kind: issuers.Unknown, Detail: "no such account"}
	case slices.Contains(a.all(), candidate.Reveal()) || sys.fault == "any secret is taken":
		return nil
	}
	return &issuers.Error{Kind: issuers.Refused, Detail: "wrong"}
}

func (s *system) rotation() *issuertest.Rotation {
	login := func(username string, v secret.Text) (*lasting, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		a := s.lasting[username]
		if !slices.Contains(a.all(), v.Reveal()) {
			return nil, errors.New("login refused")
		}
		return a, nil
	}
	return &issuertest.Rotation{
		Account: func(t *testing.T, name string) secret.Text {
			first := issuertest.NewSecret()
			s.mu.Lock()
			defer s.mu.Unlock()
			s.lasting[name] = &lasting{password: first.Reveal()}
			return first
		},
		Login: func(_ context.Context, username string, v secret.Text) error {
			_, err := login(username, v)
			return err
		},
		Hold: func(_ context.Context, username string, v secret.Text) (issuertest.Session, error) {
			a, err := login(username, v)
			if err != nil {
				return nil, err
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			session := &session{sys: s}
			s.open[a] = append(s.open[a], session)
			return session, nil
		},
		Freeze: func(*testing.T) func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.frozen = make(chan struct{})
			return func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				close(s.frozen)
				s.frozen = nil
			}
		},
		Names: []string{`a"b`, "two\nlines"},
	}
}

// The memory kind's keys are names, the signing one first: "k1,k2 published".
const keysSecret = "keys"

func (k kind) MakeSecrets(json.RawMessage) (map[string]secret.Text, error) {
	return map[string]secret.Text{keysSecret: secret.New(newKeyName() + " -"), adminSecret: secret.New(adminPassword)}, nil
}

func newKeyName() string { return "key" + issuertest.NewLeaseID() }

func (k kind) MaxTTL(json.RawMessage) time.Duration { return time.Hour }

func (k kind) KeyTimes(json.RawMessage) (publish, honour time.Duration) {
	if k.sys.fault == "an old key is forgotten early" {
		return time.Minute, time.Hour
	}
	return time.Minute, time.Hour + time.Minute
}

func (k kind) TurnKeys(_ context.Context, spec json.RawMessage, secrets map[string]secret.Text, turn issuers.KeyTurn) (map[string]secret.Text, error) {
	text, phase, ok := strings.Cut(secrets[keysSecret].Reveal(), " ")
	keys := strings.Split(text, ",")
	if err := k.CheckSpec(spec); err != nil || !ok {
		if k.sys.fault == "a turn quotes the keys" {
			return nil, fmt.Errorf("bad keys %s", text)
		}
		return nil, errors.New("bad secrets or spec")
	}
	switch {
	case secrets[adminSecret].Reveal() != adminPassword:
		return nil, errors.New("bad secrets")
	case turn == issuers.KeyPublish && (phase == "-" || k.sys.fault == "a second key is published"):
		keys, phase = append(keys, newKeyName()), "published"
		if k.sys.fault == "a new key signs at once" {
			slices.Reverse(keys)
		}
	case turn == issuers.KeyUse && phase == "published":
		slices.Reverse(keys)
		phase = "used"
		if k.sys.fault == "use forgets the old key" {
			keys = keys[:1]
		}
	case turn == issuers.KeyRetire && phase == "used":
		phase = "-"
		if k.sys.fault != "retire forgets nothing" {
			keys = keys[:1]
		}
	default:
		return nil, errors.New("the step does not fit")
	}
	return map[string]secret.Text{keysSecret: secret.New(strings.Join(keys, ",") + " " + phase)}, nil
}

// signingKeys are the target's, the one that signs first.
func (i *issuer) signingKeys() []string {
	text, _, _ := strings.Cut(i.target.Secrets[keysSecret].Reveal(), " ")
	return strings.Split(text, ",")
}

// public is what verifiers know of a key.
func public(key string) string { return fmt.Sprintf("%x", key[len(key)-8:]) }

func (i *issuer) Publish(context.Context) (map[string][]byte, error) {
	var out []string
	for _, k := range i.signingKeys() {
		out = append(out, public(k))
	}
	return map[string][]byte{"keys": []byte(strings.Join(out, "\n"))}, nil
}

func memoryKeys() *issuertest.Keys {
	return &issuertest.Keys{Verify: func(_ context.Context, documents map[string][]byte, c issuers.Credential) error {
		if !strings.Contains(string(documents["keys"]), c.Public["signed_by"]) {
			return errors.New("signed by nobody known")
		}
		return nil
	}}
}

// Fence has nothing to end: no call of this system outlives its context.
func (i *issuer) Fence(context.Context) error { return nil }
