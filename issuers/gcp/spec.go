package gcp

import (
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/issuers/federation"
)

// Limits of a target's spec.
const (
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
	Provider string `json:"provider"`
	// STSEndpoint and IAMEndpoint are other places of Google's token services, as
	// Private Service Connect has.
	STSEndpoint string `json:"sts_endpoint"`
	IAMEndpoint string `json:"iam_endpoint"`
	federation.Spec
}

const allowedKeys = "service_account, provider, identity (issuer, audience), resources, max_ttl, sts_endpoint, iam_endpoint, tls (ca, ca_file)"

var (
	accountPattern  = regexp.MustCompile(`^[a-z0-9-]{1,63}@[a-z0-9.:-]{1,190}\.gserviceaccount\.com$`)
	providerPattern = regexp.MustCompile(`^projects/([0-9]{1,20})/locations/global/workloadIdentityPools/([a-z0-9-]{4,32})/providers/([a-z0-9-]{4,32})$`)
)

func parseSpec(raw json.RawMessage) (spec, error) {
	var s spec
	if err := federation.Decode(raw, &s, allowedKeys); err != nil {
		return s, fmt.Errorf("gcp: %w", err)
	}
	for _, check := range []func() error{s.checkWho, s.checkEndpoints, s.checkResources} {
		if err := check(); err != nil {
			return s, fmt.Errorf("gcp: %w", err)
		}
	}
	return s, nil
}

func (s *spec) checkWho() error {
	if !accountPattern.MatchString(s.ServiceAccount) {
		return fmt.Errorf("service_account: %q must be a service account's address, as in mayfly-orders@my-project.iam.gserviceaccount.com", federation.Clip(s.ServiceAccount))
	}
	if !providerPattern.MatchString(s.Provider) {
		return fmt.Errorf("provider: %q must be a workload identity provider's full name, as in projects/123456789/locations/global/workloadIdentityPools/mayfly/providers/prod; the project is given by its number", federation.Clip(s.Provider))
	}
	return s.Check("https:"+s.audience(), longestMaxTTL)
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
	return nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (s *spec) checkResources() error {
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
