// Package jwt is the kind of target whose credentials are JSON Web Tokens that
// the broker signs itself (RFC 9068 access tokens). The services that accept
// them verify offline, against the published key set.
//
// Nothing is kept: a token is a pure function of its lease and the signing key,
// up to the signature's own randomness, and it cannot be revoked. The package
// must know nothing of the broker's own session tokens, which have other keys.
package jwt

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

// Limits of a spec and of what is put into a token.
const (
	maxSpecBytes  = 16 << 10
	defaultMaxTTL = time.Hour      // what cannot be revoked is short (HAZARDS 18)
	minMaxTTL     = time.Minute    // below, clocks that differ a little refuse every token
	longestMaxTTL = 24 * time.Hour // beyond, it is a static key
	// how long verifiers may keep a key set before they look again
	defaultPublish = time.Hour
	minPublish     = time.Minute
	longestPublish = 720 * time.Hour
	maxScopeBytes  = 4 << 10 // a token must fit an HTTP header; many servers stop at 8 KiB
	maxTextBytes   = 256     // a principal, a task id
	maxChain       = 16      // actors in a delegation chain
)

// spec is a Target's spec.
type spec struct {
	// Alg is ES256 (also when empty) or EdDSA.
	Alg jose.SignatureAlgorithm `json:"alg"`
	// MaxTTL caps a token's life, as a Go duration; 1h when empty.
	MaxTTL string `json:"max_ttl"`
	// Audiences, where given, are the only audiences that roles may name.
	Audiences []string `json:"audiences"`
	// KeyPublish is how long a new key is published before it signs, as a Go
	// duration; 1h when empty.
	KeyPublish string `json:"key_publish"`

	maxTTL, publish time.Duration
}

func parseSpec(raw json.RawMessage) (spec, error) {
	var s spec
	if err := decodeStrictly(raw, &s); err != nil {
		return s, fmt.Errorf("%w; allowed keys are alg (ES256 or EdDSA), max_ttl (1m to 24h), audiences and key_publish (1m to 720h)", err)
	}
	switch s.Alg {
	case "":
		s.Alg = jose.ES256
	case jose.ES256, jose.EdDSA:
	default:
		return s, fmt.Errorf("alg: %q; allowed are ES256 and EdDSA", s.Alg)
	}
	s.maxTTL = defaultMaxTTL
	if s.MaxTTL != "" {
		var err error
		if s.maxTTL, err = time.ParseDuration(s.MaxTTL); err != nil {
			return s, fmt.Errorf("max_ttl: %q is not a duration such as 15m", s.MaxTTL)
		}
	}
	if s.maxTTL < minMaxTTL || s.maxTTL > longestMaxTTL {
		return s, fmt.Errorf("max_ttl: %s; allowed are 1m to 24h, since a token cannot be revoked", s.maxTTL)
	}
	s.publish = defaultPublish
	if s.KeyPublish != "" {
		var err error
		if s.publish, err = time.ParseDuration(s.KeyPublish); err != nil || s.publish < minPublish || s.publish > longestPublish {
			return s, fmt.Errorf("key_publish: %q is not a duration from 1m to 720h, such as 1h", s.KeyPublish)
		}
	}
	if len(s.Audiences) > 0 {
		if err := checkAudiences(s.Audiences); err != nil {
			return s, fmt.Errorf("audiences: %w", err)
		}
	}
	return s, nil
}

// decodeStrictly reads one JSON object without unknown keys.
func decodeStrictly(raw []byte, into any) error {
	if len(raw) > maxSpecBytes {
		return fmt.Errorf("spec: %d bytes; at most %d are allowed", len(raw), maxSpecBytes)
	}
	if !bytes.HasPrefix(bytes.TrimSpace(raw), []byte("{")) {
		return errors.New("spec: an object is needed")
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := issuers.ReadableSpec(dec.Decode(into)); err != nil {
		return fmt.Errorf("spec: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("spec: more follows after the object")
	}
	return nil
}

// Kind is the kind "jwt". The zero value is ready to use.
type Kind struct{}

var (
	_ issuers.Kind        = Kind{}
	_ issuers.SecretMaker = Kind{}
	_ issuers.RoleWriter  = Kind{}
	_ issuers.KeyTurner   = Kind{}
)

// Name implements [issuers.Kind].
func (Kind) Name() string { return "jwt" }

// Revocable is false: a token is accepted until its `exp` by whoever verifies
// offline.
func (Kind) Revocable() bool { return false }

// CheckSpec implements [issuers.Kind].
func (Kind) CheckSpec(raw json.RawMessage) error {
	_, err := parseSpec(raw)
	return err
}

// CredentialName is the token's `jti`. It differs between generations: each
// re-mint is a token of its own, since none can take an earlier one back.
func (Kind) CredentialName(leaseID string, generation uint64) string {
	return "mf-" + leaseID + "-" + strconv.FormatUint(generation, 10)
}

// CheckScope accepts exactly one detail of type jwt. One token says one thing
// to all of its audiences: from two details, the first's audience would read the
// second's privileges as its own.
func (Kind) CheckScope(raw json.RawMessage, s scope.Scope) error {
	sp, err := parseSpec(raw)
	if err != nil {
		return err
	}
	_, err = sp.compile(s)
	return err
}

// compile checks a scope and returns its one detail, normalised.
func (sp spec) compile(in scope.Scope) (scope.Scope, error) {
	s, err := in.Normalise()
	if err != nil {
		return nil, err
	}
	if len(s) != 1 {
		return nil, fmt.Errorf("a token has one authorization detail, not %d: its audiences would read each other's privileges; ask for one token each", len(s))
	}
	d := s[0]
	switch {
	case d.Type != "jwt":
		return nil, fmt.Errorf("type: %q; allowed is jwt", d.Type)
	case !slices.Contains(d.Actions, "use"):
		return nil, errors.New(`actions: "use" is needed; further words are passed on in authorization_details`)
	case d.Identifier != "" || len(d.Datatypes) > 0 || len(d.Tables) > 0:
		return nil, errors.New("identifier, datatypes and tables mean nothing for a token; allowed are locations (audiences), actions and privileges (scope values)")
	}
	if err := checkAudiences(d.Locations); err != nil {
		return nil, fmt.Errorf("locations: %w", err)
	}
	for _, l := range d.Locations {
		if len(sp.Audiences) > 0 && !slices.Contains(sp.Audiences, l) {
			return nil, fmt.Errorf("locations: the target does not issue for the audience %q", l)
		}
	}
	if n := len(s.String()); n > maxScopeBytes {
		return nil, fmt.Errorf("scope: %d bytes; a token holds at most %d", n, maxScopeBytes)
	}
	return s, nil
}

// checkAudiences: a token names its audiences exactly, because a verifier
// compares them as strings. A pattern would be accepted by nobody, or by too many.
func checkAudiences(audiences []string) error {
	if len(audiences) == 0 {
		return errors.New("at least one audience is needed")
	}
	if len(audiences) > scope.MaxMembers {
		return fmt.Errorf("%d audiences; at most %d are allowed", len(audiences), scope.MaxMembers)
	}
	for _, a := range audiences {
		if bytes.ContainsRune([]byte(a), '*') {
			return fmt.Errorf("%q: an audience is named exactly, without *", a)
		}
		if err := checkText("audience", a); err != nil {
			return err
		}
	}
	return nil
}

// Roles offers a role for the target's audiences; none where the spec leaves
// them open, since only the administrator knows who verifies the tokens.
func (Kind) Roles(raw json.RawMessage) ([]issuers.RoleTemplate, error) {
	sp, err := parseSpec(raw)
	if err != nil || len(sp.Audiences) == 0 {
		return nil, err
	}
	s, err := sp.compile(scope.Scope{{Type: "jwt", Locations: sp.Audiences, Actions: []string{"use"}}})
	if err != nil {
		return nil, err
	}
	return []issuers.RoleTemplate{{
		Suffix: "use", Scope: s, DefaultTTL: min(15*time.Minute, sp.maxTTL), MaxTTL: sp.maxTTL,
	}}, nil
}

// MakeSecrets makes the target's first signing key.
func (Kind) MakeSecrets(raw json.RawMessage) (map[string]secret.Text, error) {
	sp, err := parseSpec(raw)
	if err != nil {
		return nil, err
	}
	key, err := newKey(sp.Alg)
	if err != nil {
		return nil, err
	}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{key}})
	if err != nil {
		return nil, fmt.Errorf("encode the signing key: %w", err)
	}
	return map[string]secret.Text{SecretKeys: secret.New(string(set))}, nil
}

// MaxTTL implements [issuers.Bounder]: the spec's max_ttl. A spec that does not
// read allows nothing longer than a millisecond; CheckSpec refused it before.
func (Kind) MaxTTL(raw json.RawMessage) time.Duration {
	s, err := parseSpec(raw)
	if err != nil {
		return time.Millisecond
	}
	return s.maxTTL
}
