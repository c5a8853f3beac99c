package federation

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/scope"
)

// Limits of a target's spec.
const (
	maxSpecBytes  = 256 << 10 // a CA bundle is the largest part
	defaultMaxTTL = time.Hour // what cannot be revoked is short (HAZARDS 18)
	minMaxTTL     = time.Minute
)

// Spec is what the specs of such kinds have in common. Kinds embed it.
type Spec struct {
	Identity struct {
		// Issuer is where the two public documents stand; the broker's own URL for
		// them when empty.
		Issuer   string `json:"issuer"`
		Audience string `json:"audience"`
	} `json:"identity"`
	// Resources, where given, are the only locations that scopes may name.
	Resources []string `json:"resources"`
	MaxTTL    string   `json:"max_ttl"`
	TLS       struct {
		CA     string `json:"ca"`      // PEM
		CAFile string `json:"ca_file"` // on the broker's nodes
	} `json:"tls"`

	// Longest is MaxTTL as [Spec.Check] read it.
	Longest time.Duration `json:"-"`
}

var audiencePattern = regexp.MustCompile(`^[\x21-\x7e]{1,255}$`)

// Decode reads a spec strictly. allowed lists the keys for who wrote another.
func Decode(raw json.RawMessage, into any, allowed string) error {
	if len(raw) > maxSpecBytes {
		return fmt.Errorf("spec: %d bytes; at most %d are allowed", len(raw), maxSpecBytes)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := issuers.ReadableSpec(dec.Decode(into)); err != nil {
		return fmt.Errorf("%w; allowed keys are %s", err, allowed)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more follows after the spec's object")
	}
	return nil
}

// Check checks what is common, and fills in what is left out: the audience, and a
// life of an hour, which may be set up to longest.
func (s *Spec) Check(audience string, longest time.Duration) error {
	if s.Identity.Audience == "" {
		s.Identity.Audience = audience
	}
	if !audiencePattern.MatchString(s.Identity.Audience) {
		return errors.New("identity.audience: up to 255 printable characters are allowed")
	}
	if s.Identity.Issuer != "" {
		if err := CheckIssuer(s.Identity.Issuer); err != nil {
			return fmt.Errorf("identity.issuer: %w", err)
		}
	}
	if s.TLS.CA != "" && s.TLS.CAFile != "" {
		return errors.New("tls: give ca or ca_file, not both")
	}
	if len(s.Resources) > scope.MaxMembers {
		return fmt.Errorf("resources: %d; at most %d are allowed", len(s.Resources), scope.MaxMembers)
	}
	s.Longest = defaultMaxTTL
	if s.MaxTTL != "" {
		var err error
		if s.Longest, err = time.ParseDuration(s.MaxTTL); err != nil {
			return fmt.Errorf("max_ttl: %q is not a duration such as 15m", Clip(s.MaxTTL))
		}
	}
	if s.Longest < minMaxTTL || s.Longest > longest {
		return fmt.Errorf("max_ttl: %s; allowed are 1m to %dh", s.Longest, int(longest.Hours()))
	}
	return nil
}

// Clip keeps error messages short.
func Clip(s string) string {
	if len(s) > 120 {
		return strings.ToValidUTF8(s[:120], "") + "…"
	}
	return s
}
