package issuertest_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

// system is a target in memory: accounts with one password each and sessions.
// fault names one way in which it (or its issuer) breaks a promise.
type system struct {
	fault    string
	mu       sync.Mutex
	accounts map[string]*account

	lasting map[string]*lasting // accounts that are no lease's
	open    map[*lasting][]*session
	frozen  chan struct{} // closed once the system answers again; nil while it does
}

const adminPassword = "the-password-of-the-admin"

type account struct {
	found    issuers.Found
	password string
	notAfter time.Time
	stuck    bool
	sessions []*session
}

type session struct {
	sys  *system
	dead bool
}

func (s *session) Alive(context.Context) error {
	s.sys.mu.Lock()
	defer s.sys.mu.Unlock()
	if s.dead {
		return errors.New("ended by the target")
	}
	return nil
}

func (s *session) Close() error { return nil }

// kind is the kind of target that system is.
type kind struct{ sys *system }

func (k kind) Name() string    { return "memory" }
func (k kind) Revocable() bool { return true }

func (k kind) CheckSpec(spec json.RawMessage) error {
	var s struct {
		Address string `json:"address"`
	}
	dec := json.NewDecoder(bytes.NewReader(spec))
	if k.sys.fault != "lax spec" {
		dec.DisallowUnknownFields()
	}
	if err := dec.Decode(&s); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("text after the end")
	}
	return nil
}

func (k kind) CheckScope(_ json.RawMessage, s scope.Scope) error {
	if len(s) == 0 {
		return errors.New("an empty scope")
	}
	for _, d := range s {
		allowed := func(a string) bool { return a == "read" || a == "write" }
		if d.Type != "memory" || slices.ContainsFunc(d.Actions, func(a string) bool { return !allowed(a) }) {
			return errors.New("type is memory; actions are read and write")
		}
		if len(d.Tables) > 0 {
			return errors.New("there are no tables")
		}
	}
	return nil
}

func (k kind) CredentialName(leaseID string, _ uint64) string {
	if k.sys.fault == "truncated names" {
		return "mf-" + leaseID[:20]
	}
	return "mf-" + leaseID
}

func (k kind) Open(t issuers.Target) (issuers.Issuer, error) {
	return &issuer{kind: k, target: t}, nil
}

type issuer struct {
	kind   kind
	target issuers.Target
	mu     sync.Mutex
	closed bool
}

func (i *issuer) usable(ctx context.Context) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed || ctx.Err() != nil || bytes.Contains(i.target.Spec, []byte("nowhere")) {
		return &issuers.Error{Kind: issuers.Unreachable, Detail: "nothing was sent"}
	}
	return nil
}

func (i *issuer) Mint(ctx context.Context, l issuers.Lease) (issuers.Credential, error) {
	sys, none := i.kind.sys, issuers.Credential{}
	if err := i.usable(ctx); err != nil {
		return none, err
	}
	if err := i.kind.CheckScope(i.target.Spec, l.Scope); err != nil && sys.fault != "mints any scope" {
		return none, &issuers.Error{Kind: issuers.Refused, Detail: err.Error()}
	}
	if err := i.entered(); err != nil {
		return none, err
	}
	sys.mu.Lock()
	defer sys.mu.Unlock()
	if sys.fault == "acts after the deadline" {
		sys.put(l, "late")
	}
	if time.Now().After(l.MintDeadline) {
		return none, &issuers.Error{Kind: issuers.TooLate, Detail: "past the deadline"}
	}
	if a := sys.accounts[l.Name]; a != nil && a.found.Generation > l.Generation && sys.fault != "lower generation wins" {
		return none, &issuers.Error{Kind: issuers.Superseded, Detail: "a newer generation was here"}
	}
	password := rand.Text()
	sys.put(l, password)
	c := issuers.Credential{
		Public: map[string]string{"username": l.Name, "signed_by": public(i.signingKeys()[0])},
		Secret: map[string]secret.Text{"password": secret.New(password)},
		Env:    map[string]string{"MEMORYUSER": "username"},
	}
	switch sys.fault {
	case "secret in public":
		c.Public["url"] = "memory://" + l.Name + ":" + password + "@x"
	case "secret in log":
		i.target.Log.Debug("minted", "password", password)
	}
	return c, nil
}

func (s *system) put(l issuers.Lease, password string) {
	a := s.accounts[l.Name]
	if a == nil {
		a = &account{}
		s.accounts[l.Name] = a
	}
	a.found = issuers.Found{Name: l.Name, LeaseID: l.ID, Generation: l.Generation}
	a.password, a.notAfter = password, l.NotAfter
}

func (i *issuer) Withdraw(ctx context.Context, leases []issuers.Lease) []issuers.Outcome {
	out := make([]issuers.Outcome, len(leases))
	sys := i.kind.sys
	for n, l := range leases {
		if err := i.usable(ctx); err != nil {
			out[n].Err = err
			continue
		}
		out[n] = sys.remove(l)
	}
	if sys.fault == "outcomes out of order" {
		slices.Reverse(out)
	}
	return out
}

func (s *system) remove(l issuers.Lease) issuers.Outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.accounts[l.Name]
	receipt := issuers.Receipt{Proof: issuers.ProofAbsent, Detail: "looked for " + l.Name + ": not there"}
	switch {
	case a == nil && s.fault == "gone is an error":
		return issuers.Outcome{Err: &issuers.Error{Kind: issuers.Gone, Detail: "no such account"}}
	case a == nil:
		return issuers.Outcome{Receipt: receipt}
	case a.stuck:
		a.password = ""
		return issuers.Outcome{Err: &issuers.Error{Kind: issuers.Poison, Detail: "somebody must look"}}
	}
	for _, session := range a.sessions {
		session.dead = s.fault != "sessions survive"
		receipt.SessionsEnded++
	}
	if s.fault != "withdraws nothing" {
		delete(s.accounts, l.Name)
	}
	if s.fault == "no proof" {
		receipt.Proof = ""
	}
	return issuers.Outcome{Receipt: receipt}
}

func (i *issuer) Close() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.closed = i.kind.sys.fault != "open after close"
	return nil
}

func (i *issuer) Extend(_ context.Context, l issuers.Lease) error {
	sys := i.kind.sys
	sys.mu.Lock()
	defer sys.mu.Unlock()
	a := sys.accounts[l.Name]
	if a == nil {
		if sys.fault == "extend revives" {
			sys.put(l, "revived")
			return nil
		}
		return &issuers.Error{Kind: issuers.Gone, Detail: "no such account"}
	}
	if l.NotAfter.After(a.notAfter) {
		a.notAfter = l.NotAfter
	}
	return nil
}

func (i *issuer) List(context.Context) ([]issuers.Found, error) {
	sys := i.kind.sys
	sys.mu.Lock()
	defer sys.mu.Unlock()
	var out []issuers.Found
	for _, a := range sys.accounts {
		f := a.found
		if sys.fault == "list forgets the generation" {
			f.Generation = 0
		}
		out = append(out, f)
	}
	return out, nil
}

// login finds the account of a credential.
func (s *system) login(c issuers.Credential) (*account, error) {
	a := s.accounts[c.Public["username"]]
	if a == nil || a.password != c.Secret["password"].Reveal() || time.Now().After(a.notAfter) {
		return nil, errors.New("login refused")
	}
	return a, nil
}

func harness(fault string) issuertest.Harness {
	sys := &system{
		fault: fault, accounts: map[string]*account{},
		lasting: map[string]*lasting{"admin": {password: adminPassword}}, open: map[*lasting][]*session{},
	}
	secrets, _ := kind{sys}.MakeSecrets(nil)
	detail := func(actions ...string) scope.Scope { return scope.Scope{{Type: "memory", Actions: actions}} }
	return issuertest.Harness{
		Kind:         kind{sys},
		Target:       issuers.Target{Name: "memory", Spec: json.RawMessage(`{"address":"here"}`), Secrets: secrets},
		Rotation:     sys.rotation(),
		Keys:         memoryKeys(),
		Scope:        detail("read", "write"),
		Narrower:     detail("read"),
		Invalid:      []scope.Scope{detail("drop")},
		RefusesOlder: true,
		Unreachable:  json.RawMessage(`{"address":"nowhere"}`),
		Use: func(_ context.Context, c issuers.Credential) error {
			sys.mu.Lock()
			defer sys.mu.Unlock()
			_, err := sys.login(c)
			return err
		},
		Gone: func(_ context.Context, l issuers.Lease) error {
			sys.mu.Lock()
			defer sys.mu.Unlock()
			if sys.accounts[l.Name] != nil {
				return fmt.Errorf("the account %s is there", l.Name)
			}
			return nil
		},
		Hold: func(_ context.Context, c issuers.Credential) (issuertest.Session, error) {
			sys.mu.Lock()
			defer sys.mu.Unlock()
			a, err := sys.login(c)
			if err != nil {
				return nil, err
			}
			s := &session{sys: sys}
			a.sessions = append(a.sessions, s)
			return s, nil
		},
		Stick: func(_ context.Context, l issuers.Lease, _ issuers.Credential) (func() error, error) {
			return func() error { sys.stick(l.Name, false); return nil }, sys.stick(l.Name, true)
		},
	}
}

func (s *system) stick(name string, stuck bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.accounts[name]
	if a == nil {
		return fmt.Errorf("no account %s", name)
	}
	a.stuck = stuck
	return nil
}
