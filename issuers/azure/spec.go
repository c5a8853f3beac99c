package azure

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/issuers/federation"
)

// Limits of a target's spec.
const (
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
	Way    string `json:"way"`
	Tenant string `json:"tenant"`
	Client string `json:"client_id"`
	// Account is the storage account, and Hierarchical says that it has a
	// hierarchical namespace, where a directory can have a SAS.
	Account      string `json:"account"`
	Hierarchical bool   `json:"hierarchical"`
	// IPRange is where a SAS may be used from: an IPv4 address, or two with a hyphen.
	IPRange string `json:"ip_range"`
	// Authority and BlobEndpoint are other places of Entra and of the account: a
	// sovereign cloud's, a private endpoint's.
	Authority    string `json:"authority"`
	BlobEndpoint string `json:"blob_endpoint"`
	// With way token, resources must be given.
	federation.Spec
}

const allowedKeys = "way, tenant, client_id, identity (issuer, audience), account, hierarchical, resources, ip_range, max_ttl, authority, blob_endpoint, tls (ca, ca_file)"

var (
	guidPattern     = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
	accountPattern  = regexp.MustCompile(`^[a-z0-9]{3,24}$`)
	resourcePattern = regexp.MustCompile(`^(https|api)://[A-Za-z0-9.-]{1,200}(/[A-Za-z0-9._-]{1,100})?$`)
)

func parseSpec(raw json.RawMessage) (spec, error) {
	var s spec
	if err := federation.Decode(raw, &s, allowedKeys); err != nil {
		return s, fmt.Errorf("azure: %w", err)
	}
	for _, check := range []func() error{s.checkWho, s.checkWay, s.checkEndpoints, s.checkRange} {
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
	return s.Check(audience, longestMaxTTL)
}

func (s *spec) checkWay() error {
	switch s.Way {
	case "", waySAS:
		s.Way = waySAS
		if !accountPattern.MatchString(s.Account) {
			return fmt.Errorf("account: %q must be the name of a storage account", federation.Clip(s.Account))
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
				return fmt.Errorf("resources: %q must be a resource such as https://management.azure.com, without a * and a final slash", federation.Clip(r))
			}
		}
	default:
		return fmt.Errorf("way: %q; allowed are sas and token", federation.Clip(s.Way))
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
		return fmt.Errorf("ip_range: %q must be an IPv4 address or two, as in 203.0.113.7 or 203.0.113.0-203.0.113.255", federation.Clip(s.IPRange))
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
