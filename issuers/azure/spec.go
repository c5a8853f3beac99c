package azure

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
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
	longestMaxTTL = 24 * time.Hour // a user delegation key lives a week at most
)

// What a lease's credential is.
const (
	waySAS   = "sas"
	wayToken = "token"
)

// Microsoft's own words and places.
const (
	publicAuthority = "https://login.microsoftonline.com"
	publicBlobs     = ".blob.core.windows.net"
	audience        = "api://AzureADTokenExchange"
	storageScope    = "https://storage.azure.com/.default"
)

// spec is a Target's spec as far as this kind is concerned.
type spec struct {
	// Way is what leases get: "sas" (also when empty) or "token".
	Way      string       `json:"way"`
	Tenant   string       `json:"tenant"`
	Client   string       `json:"client_id"`
	Identity identitySpec `json:"identity"`
	// Account is the storage account, and Hierarchical says that it has a
	// hierarchical namespace, where a directory can have a SAS.
	Account      string `json:"account"`
	Hierarchical bool   `json:"hierarchical"`
	// Resources, where given, are the only locations that scopes may name; with way
	// token they must be given.
	Resources []string `json:"resources"`
	// IPRange is where a SAS may be used from: an IPv4 address, or two with a hyphen.
	IPRange string `json:"ip_range"`
	MaxTTL  string `json:"max_ttl"`
	// Authority and BlobEndpoint are other places of Entra and of the account: a
	// sovereign cloud's, a private endpoint's.
	Authority    string  `json:"authority"`
	BlobEndpoint string  `json:"blob_endpoint"`
	TLS          tlsSpec `json:"tls"`

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

const allowedKeys = "allowed keys are way, tenant, client_id, identity (issuer, audience), account, hierarchical, resources, ip_range, max_ttl, authority, blob_endpoint, tls (ca, ca_file)"

var (
	guidPattern     = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
	accountPattern  = regexp.MustCompile(`^[a-z0-9]{3,24}$`)
	audiencePattern = regexp.MustCompile(`^[\x21-\x7e]{1,255}$`)
	resourcePattern = regexp.MustCompile(`^(https|api)://[A-Za-z0-9.-]{1,200}(/[A-Za-z0-9._-]{1,100})?$`)
)

func parseSpec(raw json.RawMessage) (spec, error) {
	var s spec
	if len(raw) > maxSpecBytes {
		return s, fmt.Errorf("azure: spec: %d bytes; at most %d are allowed", len(raw), maxSpecBytes)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		return s, fmt.Errorf("azure: %w; %s", err, allowedKeys)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return s, errors.New("azure: more follows after the spec's object")
	}
	for _, check := range []func() error{s.checkWho, s.checkWay, s.checkEndpoints, s.checkTTL, s.checkRange} {
		if err := check(); err != nil {
			return s, fmt.Errorf("azure: %w", err)
		}
	}
	return s, nil
}

func (s *spec) checkWho() error {
	if !guidPattern.MatchString(s.Tenant) || !guidPattern.MatchString(s.Client) {
		return errors.New("tenant and client_id: the ids of the tenant and of the application are needed, as in 72f988bf-86f1-41af-91ab-2d7cd011db47")
	}
	if s.Identity.Audience == "" {
		s.Identity.Audience = audience
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

func (s *spec) checkWay() error {
	if len(s.Resources) > scope.MaxMembers {
		return fmt.Errorf("resources: %d; at most %d are allowed", len(s.Resources), scope.MaxMembers)
	}
	switch s.Way {
	case "", waySAS:
		s.Way = waySAS
		if !accountPattern.MatchString(s.Account) {
			return fmt.Errorf("account: %q must be the name of a storage account", clip(s.Account))
		}
		for _, r := range s.Resources {
			if _, err := s.parsePlace(r); err != nil {
				return fmt.Errorf("resources: %w", err)
			}
		}
	case wayToken:
		if s.Account != "" || s.Hierarchical || s.IPRange != "" || s.BlobEndpoint != "" {
			return errors.New("account, hierarchical, ip_range and blob_endpoint have a meaning with way sas alone")
		}
		if len(s.Resources) == 0 {
			return errors.New("resources: with way token the resources are named for which tokens may be made, as in https://management.azure.com: such a token may do all that the application may")
		}
		for _, r := range s.Resources {
			if !resourcePattern.MatchString(r) {
				return fmt.Errorf("resources: %q must be a resource such as https://management.azure.com, without a * and a final slash", clip(r))
			}
		}
	default:
		return fmt.Errorf("way: %q; allowed are sas and token", clip(s.Way))
	}
	return nil
}

func (s *spec) checkEndpoints() error {
	for _, e := range []struct {
		field string
		value *string
		none  string
		path  bool
	}{{"authority", &s.Authority, publicAuthority, false}, {"blob_endpoint", &s.BlobEndpoint, "https://" + s.Account + publicBlobs, true}} {
		if *e.value == "" {
			*e.value = e.none
		}
		u, err := url.Parse(*e.value)
		switch {
		case err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || !e.path && strings.Trim(u.Path, "/") != "":
			return fmt.Errorf("%s: %q must be a URL such as %s", e.field, *e.value, e.none)
		case u.Scheme != "https":
			return fmt.Errorf("%s: %q is not https", e.field, *e.value)
		}
		*e.value = strings.TrimSuffix(*e.value, "/")
	}
	if s.TLS.CA != "" && s.TLS.CAFile != "" {
		return errors.New("tls: give ca or ca_file, not both")
	}
	return nil
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
		return fmt.Errorf("max_ttl: %s; allowed are 1m to 24h", s.maxTTL)
	}
	return nil
}

func (s *spec) checkRange() error {
	if s.IPRange == "" {
		return nil
	}
	first, last, two := strings.Cut(s.IPRange, "-")
	a, err := netip.ParseAddr(first)
	b := a
	if err == nil && two {
		b, err = netip.ParseAddr(last)
	}
	if err != nil || !a.Is4() || !b.Is4() || b.Less(a) {
		return fmt.Errorf("ip_range: %q must be an IPv4 address or two, as in 203.0.113.7 or 203.0.113.0-203.0.113.255", clip(s.IPRange))
	}
	return nil
}

// within says whether the spec lets scopes name that location. Both may end in *.
func (s *spec) within(location string) bool {
	return len(s.Resources) == 0 || slices.ContainsFunc(s.Resources, func(r string) bool {
		prefix, open := strings.CutSuffix(r, "*")
		return r == location || s.Way == waySAS && open && strings.HasPrefix(location, prefix)
	})
}
