package issuertest

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/scope"
)

func testSpec(t *testing.T, s *suite) {
	if err := s.Kind.CheckSpec(s.Target.Spec); err != nil {
		t.Fatalf("CheckSpec refuses the harness's own spec: %v", err)
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(s.Target.Spec, &members); err != nil {
		t.Fatalf("the harness's spec is not a JSON object: %v", err)
	}
	members["no_such_key"] = json.RawMessage(`true`)
	unknown, err := json.Marshal(members)
	if err != nil {
		t.Fatal(err)
	}
	for name, spec := range map[string]string{
		"an unknown key":     string(unknown),
		"an array":           `[]`,
		"no JSON":            `{`,
		"text after the end": string(s.Target.Spec) + ` {}`,
	} {
		if err := s.Kind.CheckSpec(json.RawMessage(spec)); err == nil || err.Error() == "" {
			t.Errorf("CheckSpec accepts %s (or refuses it without a word)", name)
		}
	}
}

// invalidScopes are the harness's and those that no kind accepts.
func (s *suite) invalidScopes() []scope.Scope {
	action := append(scope.Scope{}, s.Scope...)
	action[0].Actions = []string{"no-such-action"}
	foreign := append(scope.Scope{}, s.Scope...)
	foreign = append(foreign, scope.Detail{Type: "no-such-type", Actions: []string{"use"}})
	// a row filter that a kind does not keep is worse than none, and none can be
	// kept on tables that are not named
	rows := append(scope.Scope{}, s.Scope...)
	rows[0].Tables = []scope.Table{{Name: "*.*", Rows: []scope.Condition{{Column: "id", Op: "eq", Values: []string{"1"}}}}}
	return append([]scope.Scope{action, foreign, rows, {}, nil}, s.Invalid...)
}

func testScope(t *testing.T, s *suite) {
	if err := scope.Covers(s.Scope, s.Narrower); err != nil {
		t.Fatalf("the harness's Narrower is not within its Scope: %v", err)
	}
	if scope.Covers(s.Narrower, s.Scope) == nil {
		t.Fatal("the harness's Narrower is not narrower than its Scope")
	}
	for _, good := range append([]scope.Scope{s.Scope, s.Narrower}, s.Accepted...) {
		if err := s.Kind.CheckScope(s.Target.Spec, good); err != nil {
			t.Errorf("CheckScope refuses %s: %v", good, err)
		}
	}
	for _, bad := range s.invalidScopes() {
		if err := s.Kind.CheckScope(s.Target.Spec, bad); err == nil || err.Error() == "" {
			t.Errorf("CheckScope accepts %s (or refuses it without a word)", bad)
		}
	}
}

// testNames: a name is a pure function of lease and generation, whole ids count
// (HAZARDS 16: truncation), and re-mints of one lease never meet another lease.
func testNames(t *testing.T, s *suite) {
	id := NewLeaseID()
	near := []string{id, flip(id, 0), flip(id, len(id)/2), flip(id, len(id)-1)}
	for range 2000 {
		near = append(near, NewLeaseID())
	}
	owner := map[string]string{}
	for _, id := range near {
		for _, generation := range []uint64{1, 2, 11, 1 << 40} {
			name := s.Kind.CredentialName(id, generation)
			if name == "" || name != s.Kind.CredentialName(id, generation) {
				t.Fatalf("CredentialName(%q, %d) is empty or varies: %q", id, generation, name)
			}
			if other, taken := owner[name]; taken && other != id {
				t.Fatalf("hazard 16: leases %s and %s share the name %s", id, other, name)
			}
			owner[name] = id
		}
	}
}

// flip changes one character of a lease id.
func flip(id string, i int) string {
	c := byte('0')
	if id[i] == c {
		c = '1'
	}
	return id[:i] + string(c) + id[i+1:]
}

func testCredentialFields(t *testing.T, s *suite) {
	c := s.mint(t, s.lease(t))
	if len(c.Secret) == 0 && !s.NoSecret {
		t.Error("the credential has no secret field")
	}
	for field, v := range c.Secret {
		if len(v.Reveal()) < 16 {
			t.Errorf("secret field %s has %d bytes; fewer than 16 can be guessed", field, len(v.Reveal()))
		}
		if _, twice := c.Public[field]; twice {
			t.Errorf("field %s is public and secret at once", field)
		}
		for public, text := range c.Public {
			if strings.Contains(text, v.Reveal()) {
				t.Errorf("public field %s holds the secret field %s", public, field)
			}
		}
	}
	for variable, field := range c.Env {
		_, public := c.Public[field]
		if _, secret := c.Secret[field]; !public && !secret {
			t.Errorf("Env maps %s to the field %q, which is not there", variable, field)
		}
	}
}

// testRefusedScope: what CheckScope refuses, Mint refuses too, and does nothing.
func testRefusedScope(t *testing.T, s *suite) {
	for _, bad := range s.invalidScopes() {
		l := s.lease(t)
		l.Scope = bad
		s.withdrawAtEnd(t, l)
		if _, err := s.issuer.Mint(s.ctx, l); issuers.KindOf(err) != issuers.Refused {
			t.Errorf("Mint with the scope %s: %v; want an error of kind refused", bad, err)
		}
		s.mustBeGone(t, "after a refused mint", l)
	}
}

func testAcceptedScopes(t *testing.T, s *suite) {
	for _, good := range append([]scope.Scope{s.Scope, s.Narrower}, s.Accepted...) {
		l := s.lease(t)
		l.Scope = good
		s.mint(t, l)
		s.withdraw(t, l)
		s.mustBeGone(t, "after the withdrawal", l)
	}
}

func testHostileScopes(t *testing.T, s *suite) {
	for _, hostile := range s.Hostile {
		l := s.lease(t)
		l.Scope = hostile
		s.withdrawAtEnd(t, l)
		_, err := s.issuer.Mint(s.ctx, l)
		if s.Kind.CheckScope(s.Target.Spec, hostile) == nil {
			if err != nil {
				t.Errorf("CheckScope accepts %s, but Mint does not: %v", hostile, err)
			}
		} else if issuers.KindOf(err) != issuers.Refused {
			t.Errorf("CheckScope refuses %s, but Mint says: %v; want an error of kind refused", hostile, err)
		}
		s.mustBeIntact(t)
	}
}

// testHostileNames puts hostile text into every member of a lease that people
// or clients choose. The kind mints or refuses; it never fails half-way.
func testHostileNames(t *testing.T, s *suite) {
	for _, text := range HostileStrings() {
		l := s.lease(t)
		l.Role, l.Principal, l.TaskID, l.Purpose = text, text, text, text
		l.Chain = []string{text, text}
		s.withdrawAtEnd(t, l)
		c, err := s.issuer.Mint(s.ctx, l)
		switch {
		case err == nil:
			s.mustWork(t, c, "minted with hostile text")
			s.withdraw(t, l)
		case issuers.KindOf(err) != issuers.Refused:
			t.Errorf("Mint with %.60q: %v; want a credential or an error of kind refused", text, err)
		}
		s.mustBeGone(t, "after hostile text", l)
		s.mustBeIntact(t)
	}
}

func (s *suite) mustBeIntact(t *testing.T) {
	t.Helper()
	if s.Intact == nil {
		return
	}
	if err := s.Intact(s.ctx); err != nil {
		t.Fatalf("a hostile input did harm: %v", err)
	}
}

// mintError mints and returns the *issuers.Error, or fails the case.
func (s *suite) mintError(t *testing.T, r *recorder, l issuers.Lease, why string) *issuers.Error {
	t.Helper()
	_, err := r.Mint(s.ctx, l)
	var typed *issuers.Error
	if !errors.As(err, &typed) {
		t.Fatalf("Mint %s: %v; want an *issuers.Error", why, err)
	}
	return typed
}
