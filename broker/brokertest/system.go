// Package brokertest holds what tests of the engine stand on: a target in
// memory whose statements can be delayed, lost or fenced, and a log in one
// process. It must know nothing of the engine that is tested.
package brokertest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
)

// Bugs are promises that a System breaks on purpose, so that a test can show
// that its checks notice.
type Bugs struct {
	IgnoresDeadline   bool // a late mint still takes effect
	IgnoresGeneration bool // an older generation overwrites a newer one
	KeepsSessions     bool // withdrawing leaves sessions alive
	WithdrawsNothing  bool // receipts are lies
	FencesNothing     bool // a deposed leader's statements go on
	RevivesOnExtend   bool // extending creates what is gone
}

// Account is one credential as the system itself holds it.
type Account struct {
	Name       string
	LeaseID    string
	Generation uint64
	Password   string
	// Until is the account's own expiry, by the system's clock.
	Until    time.Time
	Sessions int // alive
}

// Call is one statement on its way to the system.
type Call struct {
	Verb   string // mint, extend, withdraw, fence, list
	System string
	Term   uint64
	Leases []issuers.Lease
}

// System is a target in memory. The zero value is not usable; see NewSystem.
// Its fields are set before it is used.
type System struct {
	Name string
	Bugs Bugs
	// Now is the system's own clock; time.Now where nil.
	Now func() time.Time
	// Wire, where set, carries each statement: it runs act, at once, later or
	// never, and returns what the client hears.
	Wire func(ctx context.Context, c Call, act func() error) error
	// Fenced is told of a term whose forerunners' statements must end.
	Fenced func(term uint64)
	// Changed is told of each account that was made or altered.
	Changed func(before, after *Account)

	mu       sync.Mutex
	accounts map[string]*Account
	stuck    map[string]bool
	counter  uint64
	calls    map[string]int
	made     []string // every password ever made
}

// NewSystem returns an empty system.
func NewSystem(name string) *System {
	return &System{Name: name, accounts: map[string]*Account{}, stuck: map[string]bool{}, calls: map[string]int{}}
}

func (s *System) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

// carry sends a statement over the wire.
func (s *System) carry(ctx context.Context, c Call, act func() error) error {
	s.mu.Lock()
	s.calls[c.Verb]++
	s.mu.Unlock()
	if s.Wire != nil {
		return s.Wire(ctx, c, act)
	}
	return act()
}

// Calls returns how many statements of a verb were sent.
func (s *System) Calls(verb string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[verb]
}

// Accounts returns a copy of what lives on the system, by name.
func (s *System) Accounts() []Account {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Account, 0, len(s.accounts))
	for _, name := range slices.Sorted(maps.Keys(s.accounts)) {
		out = append(out, *s.accounts[name])
	}
	return out
}

// Account returns one account.
func (s *System) Account(name string) (Account, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.accounts[name]
	if a == nil {
		return Account{}, false
	}
	return *a, true
}

// Passwords returns every secret that the system ever held.
func (s *System) Passwords() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.made)
}

// Login opens a session, as a client with that credential would.
func (s *System) Login(name, password string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.accounts[name]
	if a == nil || a.Password != password || !s.now().Before(a.Until) {
		return errors.New("login refused")
	}
	a.Sessions++
	return nil
}

// Plant puts a stranger's account on the system.
func (s *System) Plant(a Account) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.accounts[a.Name] = &a
}

// Stick makes an account one that cannot be ended alone; free undoes it.
func (s *System) Stick(name string, stuck bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stuck[name] = stuck
}

// mint is the one server-side statement that makes an account: it fails past
// the deadline by the system's own clock (HAZARDS 8).
func (s *System) mint(l issuers.Lease, deadline, until time.Time) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.now().Before(deadline) && !s.Bugs.IgnoresDeadline {
		return "", &issuers.Error{Kind: issuers.TooLate, Detail: "past the deadline"}
	}
	old := s.accounts[l.Name]
	if old != nil && old.LeaseID != l.ID {
		return "", &issuers.Error{Kind: issuers.Foreign, Detail: "the name is somebody else's"}
	}
	if old != nil && old.Generation > l.Generation && !s.Bugs.IgnoresGeneration {
		return "", &issuers.Error{Kind: issuers.Superseded, Detail: "a newer generation was here"}
	}
	s.counter++
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %s %d %d", s.Name, l.Name, l.Generation, s.counter))
	fresh := &Account{Name: l.Name, LeaseID: l.ID, Generation: l.Generation, Password: hex.EncodeToString(sum[:16]), Until: until}
	if old != nil {
		fresh.Sessions = old.Sessions
		if old.Until.After(until) { // a renewal has come first: never backwards
			fresh.Until = old.Until
		}
	}
	s.put(fresh)
	s.made = append(s.made, fresh.Password)
	return fresh.Password, nil
}

func (s *System) put(a *Account) {
	var before *Account
	if old := s.accounts[a.Name]; old != nil {
		copied := *old
		before = &copied
	}
	s.accounts[a.Name] = a
	if s.Changed != nil {
		copied := *a
		s.Changed(before, &copied)
	}
}

func (s *System) extend(l issuers.Lease, until time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.accounts[l.Name]
	if a == nil {
		if s.Bugs.RevivesOnExtend {
			s.put(&Account{Name: l.Name, LeaseID: l.ID, Generation: l.Generation, Until: until})
			return nil
		}
		return &issuers.Error{Kind: issuers.Gone, Detail: "no such account"}
	}
	if until.After(a.Until) {
		moved := *a
		moved.Until = until
		s.put(&moved)
	}
	return nil
}

func (s *System) withdraw(l issuers.Lease) issuers.Outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.accounts[l.Name]
	receipt := issuers.Receipt{Proof: issuers.ProofAbsent, Detail: "looked for " + l.Name + ": not there"}
	switch {
	case a == nil:
		return issuers.Outcome{Receipt: receipt}
	case s.stuck[l.Name]:
		return issuers.Outcome{Err: &issuers.Error{Kind: issuers.Poison, Detail: "a prepared transaction holds it"}}
	case s.Bugs.WithdrawsNothing:
		return issuers.Outcome{Receipt: receipt}
	}
	receipt.SessionsEnded = a.Sessions
	if s.Bugs.KeepsSessions && a.Sessions > 0 {
		a.Password, a.Until = "", time.Time{}
		return issuers.Outcome{Receipt: receipt}
	}
	delete(s.accounts, l.Name)
	return issuers.Outcome{Receipt: receipt}
}

func (s *System) list() []issuers.Found {
	var out []issuers.Found
	for _, a := range s.Accounts() {
		out = append(out, issuers.Found{Name: a.Name, LeaseID: a.LeaseID, Generation: a.Generation})
	}
	return out
}

// specOf reads a target's spec.
func specOf(raw json.RawMessage) (name string, err error) {
	var spec struct {
		System string `json:"system"`
	}
	if err := json.Unmarshal(raw, &spec); err != nil || spec.System == "" {
		return "", errors.New(`the spec is {"system": NAME}`)
	}
	return spec.System, nil
}
