package aws

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

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/federation"
	"github.com/mayfly-broker/mayfly/scope"
)

// Limits of a target's spec.
const (
	maxSpecBytes  = 256 << 10 // a CA bundle is the largest part
	defaultMaxTTL = time.Hour // what cannot be revoked is short (HAZARDS 18)
	minMaxTTL     = time.Minute
	longestMaxTTL = 12 * time.Hour // no role's sessions last longer (AssumeRole, DurationSeconds)
)

// The ways to a session.
const (
	wayAssumeRole  = "assume_role"
	wayWebIdentity = "web_identity"
	wayFederation  = "federation_token"
)

// audienceSTS is the audience that AWS's own documents use for STS.
const audienceSTS = "sts.amazonaws.com"

// spec is a Target's spec as far as this kind is concerned.
type spec struct {
	Way    string `json:"way"`
	Region string `json:"region"`
	// RoleARN is the role whose sessions leases are; none for federation_token.
	RoleARN string `json:"role_arn"`
	// Endpoint is the STS to ask; the region's own when empty.
	Endpoint string `json:"endpoint"`
	// ServiceEndpoint is handed to clients as AWS_ENDPOINT_URL, for systems that
	// speak AWS's protocols somewhere else.
	ServiceEndpoint string  `json:"service_endpoint"`
	FIPS            bool    `json:"fips"`
	TLS             tlsSpec `json:"tls"`
	Admin           struct {
		Username string `json:"username"` // the broker's access key id
	} `json:"admin"`
	ExternalID  string       `json:"external_id"`
	WebIdentity identitySpec `json:"web_identity"`
	// Tags and SourceIdentity tell AWS more of a lease than the session's name
	// does; the role's trust policy must allow them.
	Tags           bool   `json:"tags"`
	SourceIdentity bool   `json:"source_identity"`
	MaxTTL         string `json:"max_ttl"`
	// Resources, where given, are the only ones that scopes may name.
	Resources []string `json:"resources"`
	// AnyResource lets scopes name the location "*".
	AnyResource bool `json:"any_resource"`
	// LastingActions lets scopes name actions whose effect outlasts the lease.
	LastingActions bool `json:"lasting_actions"`
	// IAMUser, where given, has every lease be an IAM user: the last resort.
	IAMUser *userSpec `json:"iam_user"`

	maxTTL  time.Duration
	publish time.Duration
	role    arn
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
	// KeyPublish is how long a new key is published before it signs.
	KeyPublish string `json:"key_publish"`
}

const allowedKeys = "allowed keys are way, region, role_arn, endpoint, service_endpoint, fips, tls (ca, ca_file), admin (username), external_id, " +
	"web_identity (issuer, audience, key_publish), tags, source_identity, max_ttl, resources, any_resource, lasting_actions, " +
	"iam_user (path, permissions_boundary, endpoint)"

var (
	regionPattern   = regexp.MustCompile(`^[a-z][a-z0-9-]{1,31}$`)
	keyIDPattern    = regexp.MustCompile(`^[A-Za-z0-9_.+=,@-]{3,128}$`)
	externalPattern = regexp.MustCompile(`^[A-Za-z0-9_+=,.@:/-]{2,256}$`) // AssumeRole, ExternalId; AWS takes longer ones
	audiencePattern = regexp.MustCompile(`^[\x21-\x7e]{1,255}$`)
)

func parseSpec(raw json.RawMessage) (spec, error) {
	var s spec
	if len(raw) > maxSpecBytes {
		return s, fmt.Errorf("aws: spec: %d bytes; at most %d are allowed", len(raw), maxSpecBytes)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := issuers.ReadableSpec(dec.Decode(&s)); err != nil {
		return s, fmt.Errorf("aws: %w; %s", err, allowedKeys)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return s, errors.New("aws: more follows after the spec's object")
	}
	for _, check := range []func() error{s.checkWay, s.checkRole, s.checkEndpoints, s.checkTTL, s.checkResources, s.checkUsers} {
		if err := check(); err != nil {
			return s, fmt.Errorf("aws: %w", err)
		}
	}
	return s, nil
}

func (s *spec) checkWay() error {
	hasKey := s.Admin.Username != ""
	switch s.Way {
	case wayWebIdentity:
		if hasKey {
			return errors.New("admin: way web_identity needs no access key; that is what it is for")
		}
	case wayAssumeRole, wayFederation:
		if !keyIDPattern.MatchString(s.Admin.Username) {
			return errors.New("admin.username: the id of the broker's own access key is needed, as in AKIAIOSFODNN7EXAMPLE")
		}
	default:
		return fmt.Errorf("way: %q; allowed are web_identity (no key at all), assume_role and federation_token", s.Way)
	}
	if s.Way != wayWebIdentity && s.WebIdentity != (identitySpec{}) {
		return errors.New("web_identity has a meaning with way web_identity alone")
	}
	if s.ExternalID != "" && (s.Way != wayAssumeRole || !externalPattern.MatchString(s.ExternalID)) {
		return errors.New("external_id has a meaning with way assume_role alone, and is 2 to 256 characters of A-Z, a-z, 0-9 and _ + = , . @ : / -")
	}
	if s.WebIdentity.Audience == "" {
		s.WebIdentity.Audience = audienceSTS
	}
	if !audiencePattern.MatchString(s.WebIdentity.Audience) {
		return errors.New("web_identity.audience: up to 255 printable characters are allowed")
	}
	if err := s.checkPublish(); err != nil {
		return err
	}
	if s.WebIdentity.Issuer != "" {
		if err := federation.CheckIssuer(s.WebIdentity.Issuer); err != nil {
			return fmt.Errorf("web_identity.issuer: %w", err)
		}
	}
	return nil
}

func (s *spec) checkPublish() (err error) {
	s.publish = defaultPublish
	if text := s.WebIdentity.KeyPublish; text != "" {
		s.publish, err = time.ParseDuration(text)
	}
	if err != nil || s.publish < minPublish || s.publish > longestPublish {
		return fmt.Errorf("web_identity.key_publish: %q; allowed are %s to %s", s.WebIdentity.KeyPublish, minPublish, longestPublish)
	}
	return nil
}

func (s *spec) checkRole() error {
	if s.Way == wayFederation {
		if s.RoleARN != "" || s.SourceIdentity {
			return errors.New("role_arn and source_identity have no meaning with way federation_token: its sessions are the access key's user's")
		}
		return nil
	}
	if s.RoleARN == "" {
		return errors.New("role_arn: the role whose sessions leases are is needed, as in arn:aws:iam::123456789012:role/mayfly-orders")
	}
	a, err := parseARN(s.RoleARN)
	if err != nil {
		return fmt.Errorf("role_arn: %w; a role's is arn:aws:iam::123456789012:role/mayfly-orders", err)
	}
	if a.service != "iam" || !strings.HasPrefix(a.resource, "role/") || strings.ContainsAny(a.resource, "* ") || len(s.RoleARN) < 20 || len(s.RoleARN) > 2048 {
		return fmt.Errorf("role_arn: %q must name one role, as in arn:aws:iam::123456789012:role/mayfly-orders", s.RoleARN)
	}
	s.role = a
	return nil
}

func (s *spec) checkEndpoints() error {
	if !regionPattern.MatchString(s.Region) {
		return fmt.Errorf("region: %q must be a region such as eu-central-1; without one no endpoint is near and no signature valid", s.Region)
	}
	for _, e := range []struct{ field, value string }{{"endpoint", s.Endpoint}, {"service_endpoint", s.ServiceEndpoint}} {
		if err := checkURL(e.field, e.value); err != nil {
			return err
		}
	}
	if s.FIPS && s.Endpoint != "" {
		return errors.New("fips chooses the region's own endpoint; name a FIPS endpoint in endpoint instead, or leave it out")
	}
	if s.TLS.CA != "" && s.TLS.CAFile != "" {
		return errors.New("tls: give ca or ca_file, not both")
	}
	return nil
}

// checkURL takes an endpoint of one's own, or none.
func checkURL(field, value string) error {
	if value == "" {
		return nil
	}
	u, err := url.Parse(value)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "":
		return fmt.Errorf("%s: %q must be a URL such as https://sts.internal:9000", field, value)
	case u.Scheme != "https" && (u.Scheme != "http" || !isLoopback(u.Hostname())):
		return fmt.Errorf("%s: %q is not https; http is allowed for loopback addresses alone", field, value)
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
			return fmt.Errorf("max_ttl: %q is not a duration such as 15m", s.MaxTTL)
		}
	}
	if s.IAMUser != nil {
		if s.maxTTL < minMaxTTL || s.maxTTL > longestUserTTL {
			return fmt.Errorf("max_ttl: %s; allowed are 1m to 168h with iam_user", s.maxTTL)
		}
		return nil
	}
	if s.maxTTL < minMaxTTL || s.maxTTL > longestMaxTTL {
		return fmt.Errorf("max_ttl: %s; allowed are 1m to 12h, and no more than the role's own maximum session duration", s.maxTTL)
	}
	return nil
}

func (s *spec) checkResources() error {
	if len(s.Resources) > scope.MaxMembers {
		return fmt.Errorf("resources: %d; at most %d are allowed", len(s.Resources), scope.MaxMembers)
	}
	for _, r := range s.Resources {
		if _, err := parseARN(r); err != nil {
			return fmt.Errorf("resources: %w", err)
		}
	}
	if s.AnyResource && len(s.Resources) > 0 {
		return errors.New("any_resource would undo resources; give one of them")
	}
	return nil
}

// within says whether the spec lets scopes name that resource. Both may end in *.
func (s *spec) within(resource string) bool {
	return len(s.Resources) == 0 || slices.ContainsFunc(s.Resources, func(r string) bool {
		prefix, open := strings.CutSuffix(r, "*")
		return r == resource || open && strings.HasPrefix(resource, prefix)
	})
}
