package gcp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/issuers/federation"
	"github.com/mayfly-broker/mayfly/scope"
)

// Limits of a target's spec.
const (
	maxSpecBytes  = 256 << 10 // a CA bundle is the largest part
	defaultMaxTTL = time.Hour // what cannot be revoked is short (HAZARDS 18)
	minMaxTTL     = time.Minute
	longestMaxTTL = time.Hour // generateAccessToken, lifetime
)

// Google's own endpoints.
const (
	stsEndpoint = "https://sts.googleapis.com"
	iamEndpoint = "https://iamcredentials.googleapis.com"
)

// spec is a Target's spec as far as this kind is concerned.
type spec struct {
	// ServiceAccount is the account whose tokens leases are: the widest that any of
	// them can do.
	ServiceAccount string `json:"service_account"`
	// Provider is the workload identity provider that trusts this target.
	Provider string       `json:"provider"`
	Identity identitySpec `json:"identity"`
	// Resources, where given, are the only ones that scopes may name.
	Resources []string `json:"resources"`
	MaxTTL    string   `json:"max_ttl"`
	// STSEndpoint and IAMEndpoint are other places of Google's token services, as
	// Private Service Connect has.
	STSEndpoint string  `json:"sts_endpoint"`
	IAMEndpoint string  `json:"iam_endpoint"`
	TLS         tlsSpec `json:"tls"`

	maxTTL time.Duration
}

type tlsSpec struct {
	CA     string `json:"ca"`      // PEM
	CAFile string `json:"ca_file"` // on the broker's nodes
}

type identitySpec struct {
	// Issuer is where the two public documents stand; the broker's own URL for
	// them when empty.
	Issuer   string `json:"issuer"`
	Audience string `json:"audience"`
}

const allowedKeys = "allowed keys are service_account, provider, identity (issuer, audience), resources, max_ttl, sts_endpoint, iam_endpoint, tls (ca, ca_file)"

var (
	accountPattern  = regexp.MustCompile(`^[a-z0-9-]{1,63}@[a-z0-9.:-]{1,190}\.gserviceaccount\.com$`)
	providerPattern = regexp.MustCompile(`^projects/([0-9]{1,20})/locations/global/workloadIdentityPools/([a-z0-9-]{4,32})/providers/([a-z0-9-]{4,32})$`)
	audiencePattern = regexp.MustCompile(`^[\x21-\x7e]{1,255}$`)
)

func parseSpec(raw json.RawMessage) (spec, error) {
	var s spec
	if len(raw) > maxSpecBytes {
		return s, fmt.Errorf("gcp: spec: %d bytes; at most %d are allowed", len(raw), maxSpecBytes)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		return s, fmt.Errorf("gcp: %w; %s", err, allowedKeys)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return s, errors.New("gcp: more follows after the spec's object")
	}
	for _, check := range []func() error{s.checkWho, s.checkEndpoints, s.checkTTL, s.checkResources} {
		if err := check(); err != nil {
			return s, fmt.Errorf("gcp: %w", err)
		}
	}
	return s, nil
}

func (s *spec) checkWho() error {
	if !accountPattern.MatchString(s.ServiceAccount) {
		return fmt.Errorf("service_account: %q must be a service account's address, as in mayfly-orders@my-project.iam.gserviceaccount.com", clip(s.ServiceAccount))
	}
	if !providerPattern.MatchString(s.Provider) {
		return fmt.Errorf("provider: %q must be a workload identity provider's full name, as in projects/123456789/locations/global/workloadIdentityPools/mayfly/providers/prod; the project is given by its number", clip(s.Provider))
	}
	if s.Identity.Audience == "" {
		s.Identity.Audience = "https:" + s.audience()
	}
	if !audiencePattern.MatchString(s.Identity.Audience) {
		return errors.New("identity.audience: up to 255 printable characters are allowed")
	}
	if s.Identity.Issuer != "" {
		if err := federation.CheckIssuer(s.Identity.Issuer); err != nil {
			return fmt.Errorf("identity.issuer: %w", err)
		}
	}
	return nil
}

// audience is the provider's full resource name.
func (s *spec) audience() string { return "//iam.googleapis.com/" + s.Provider }

func (s *spec) checkEndpoints() error {
	for _, e := range []struct {
		field string
		value *string
		none  string
	}{{"sts_endpoint", &s.STSEndpoint, stsEndpoint}, {"iam_endpoint", &s.IAMEndpoint, iamEndpoint}} {
		if *e.value == "" {
			*e.value = e.none
		}
		u, err := url.Parse(*e.value)
		switch {
		case err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "":
			return fmt.Errorf("%s: %q must be a URL such as %s", e.field, *e.value, e.none)
		case u.Scheme != "https" && (u.Scheme != "http" || !isLoopback(u.Hostname())):
			return fmt.Errorf("%s: %q is not https; http is allowed for loopback addresses alone", e.field, *e.value)
		}
		*e.value = strings.TrimSuffix(*e.value, "/")
	}
	if s.TLS.CA != "" && s.TLS.CAFile != "" {
		return errors.New("tls: give ca or ca_file, not both")
	}
	return nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (s *spec) checkTTL() error {
	s.maxTTL = defaultMaxTTL
	if s.MaxTTL != "" {
		var err error
		if s.maxTTL, err = time.ParseDuration(s.MaxTTL); err != nil {
			return fmt.Errorf("max_ttl: %q is not a duration such as 15m", clip(s.MaxTTL))
		}
	}
	if s.maxTTL < minMaxTTL || s.maxTTL > longestMaxTTL {
		return fmt.Errorf("max_ttl: %s; allowed are 1m to 1h", s.maxTTL)
	}
	return nil
}

func (s *spec) checkResources() error {
	if len(s.Resources) > scope.MaxMembers {
		return fmt.Errorf("resources: %d; at most %d are allowed", len(s.Resources), scope.MaxMembers)
	}
	for _, r := range s.Resources {
		if _, err := parsePlace(r); err != nil {
			return fmt.Errorf("resources: %w", err)
		}
	}
	return nil
}

// within says whether the spec lets scopes name that location. Both may end in *.
func (s *spec) within(location string) bool {
	return len(s.Resources) == 0 || slices.ContainsFunc(s.Resources, func(r string) bool {
		prefix, open := strings.CutSuffix(r, "*")
		return r == location || open && strings.HasPrefix(location, prefix)
	})
}
