package nats

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/mayfly-broker/mayfly/issuers"
)

// Limits of a target's spec.
const (
	maxSpecBytes = 256 << 10 // a CA bundle is the largest part
	maxAddresses = 16
	maxSubjects  = 64
	maxNetworks  = 16

	minMaxTTL     = time.Minute        // below, clocks that differ a little refuse every credential
	defaultMaxTTL = time.Hour          // what cannot be revoked is short (HAZARDS 18)
	longestMaxTTL = 24 * time.Hour     // beyond, it is a static key
	revocableTTL  = 24 * time.Hour     // where it can be revoked
	longestHeld   = 7 * 24 * time.Hour // a revocation stands in the account's JWT as long as the credential would have lived
)

// TLS modes a spec can name. There is none that encrypts without verifying.
const (
	tlsDisable    = "disable"
	tlsVerifyFull = "verify-full"
)

// defaultInbox is the root of inboxes that every client library uses.
const defaultInbox = "_INBOX"

// spec is a Target's spec as far as this kind is concerned.
type spec struct {
	Address   string   `json:"address"`
	Addresses []string `json:"addresses"`
	TLS       tlsSpec  `json:"tls"`
	// Account is the account's public key; where the signing key given is the
	// account's identity, it may be left out.
	Account       string          `json:"account"`
	Subjects      []string        `json:"subjects"`
	MaxTTL        string          `json:"max_ttl"`
	InboxPrefix   string          `json:"inbox_prefix"`
	RequesterKeys bool            `json:"requester_keys"`
	Users         usersSpec       `json:"users"`
	Revocation    *revocationSpec `json:"revocation"`

	addresses []string // address and addresses
	maxTTL    time.Duration
}

type tlsSpec struct {
	Mode       string `json:"mode"`
	CA         string `json:"ca"`          // PEM
	CAFile     string `json:"ca_file"`     // on the broker's nodes
	ServerName string `json:"server_name"` // in every server's certificate; the address's host when empty
}

// usersSpec is what every user is limited to, whatever its scope.
type usersSpec struct {
	SourceNetworks   []string `json:"source_networks"`
	ConnectionTypes  []string `json:"connection_types"`
	MaxSubscriptions int64    `json:"max_subscriptions"` // 0 is no limit
	MaxPayload       int64    `json:"max_payload"`       // bytes; 0 is no limit but the account's
	Responses        struct {
		Max int    `json:"max"`
		TTL string `json:"ttl"`
	} `json:"responses"`

	responseTTL time.Duration
}

// revocationSpec says how to revoke; its keys are secrets.
type revocationSpec struct {
	// SystemAccount is the system account's public key.
	SystemAccount string `json:"system_account"`
	// Operator is the public identity key of the operator that the servers trust.
	Operator string `json:"operator"`
}

const allowedKeys = "allowed keys are address, addresses, tls (mode, ca, ca_file, server_name), account, subjects, max_ttl, inbox_prefix, requester_keys, " +
	"users (source_networks, connection_types, max_subscriptions, max_payload, responses (max, ttl)), revocation (system_account, operator)"

// connectionTypes are those of clients. A leaf node is a server of somebody's own.
var connectionTypes = []string{jwt.ConnectionTypeStandard, jwt.ConnectionTypeWebsocket, jwt.ConnectionTypeMqtt, jwt.ConnectionTypeMqttWS}

var inboxPattern = regexp.MustCompile(`^_[A-Za-z0-9_-]{1,32}$`)

func parseSpec(raw json.RawMessage) (spec, error) {
	var s spec
	if len(raw) > maxSpecBytes {
		return s, fmt.Errorf("nats: spec: %d bytes; at most %d are allowed", len(raw), maxSpecBytes)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := issuers.ReadableSpec(dec.Decode(&s)); err != nil {
		return s, fmt.Errorf("nats: %w; %s", err, allowedKeys)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return s, errors.New("nats: more follows after the spec's object")
	}
	for _, check := range []func() error{s.checkAddresses, s.checkTLS, s.checkKeys, s.checkTTL, s.checkSubjects, s.checkUsers} {
		if err := check(); err != nil {
			return s, fmt.Errorf("nats: %w", err)
		}
	}
	return s, nil
}

func (s *spec) checkAddresses() error {
	if len(s.Addresses) > maxAddresses {
		return fmt.Errorf("addresses: %d; at most %d are allowed", len(s.Addresses), maxAddresses)
	}
	for _, a := range append([]string{s.Address}, s.Addresses...) {
		host, port, err := net.SplitHostPort(a)
		if err != nil || host == "" {
			return fmt.Errorf("address: %q must be host:port, as in nats.internal:4222", a)
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return fmt.Errorf("address: port %q must be a number from 1 to 65535", port)
		}
		if len(host) > 255 || strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`/,@"\`, r) }) {
			return fmt.Errorf("address: %q is not one host name or IP address", host)
		}
		if !slices.Contains(s.addresses, a) {
			s.addresses = append(s.addresses, a)
		}
	}
	return nil
}

func (s *spec) checkTLS() error {
	switch s.TLS.Mode {
	case "":
		s.TLS.Mode = tlsVerifyFull
	case tlsVerifyFull:
	case tlsDisable:
		for _, a := range s.addresses {
			host, _, _ := net.SplitHostPort(a) // checked above
			if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
				return fmt.Errorf("tls.mode: disable is allowed for loopback addresses alone, and %q is none; use verify-full", host)
			}
		}
		if s.TLS != (tlsSpec{Mode: tlsDisable}) {
			return errors.New("tls: ca, ca_file and server_name have no meaning with mode disable")
		}
	default:
		return fmt.Errorf("tls.mode: %q; allowed are verify-full, and disable for loopback addresses", s.TLS.Mode)
	}
	if s.TLS.CA != "" && s.TLS.CAFile != "" {
		return errors.New("tls: give ca or ca_file, not both")
	}
	return nil
}

// checkKeys: public keys begin with a letter that says of what they are, and end
// in a checksum.
func (s *spec) checkKeys() error {
	if s.Account != "" && !nkeys.IsValidPublicAccountKey(s.Account) {
		return errors.New("account: the account's public key is needed, which begins with A: nsc describe account")
	}
	r := s.Revocation
	if r == nil {
		return nil
	}
	switch {
	case !nkeys.IsValidPublicAccountKey(r.SystemAccount):
		return errors.New("revocation.system_account: the system account's public key is needed, which begins with A: nsc describe account SYS")
	case !nkeys.IsValidPublicOperatorKey(r.Operator):
		return errors.New("revocation.operator: the operator's public identity key is needed, which begins with O: nsc describe operator")
	case r.SystemAccount == s.Account:
		return errors.New("account: leases in the system account could do everything; name another")
	case s.RequesterKeys:
		return errors.New("requester_keys: has no place beside revocation. A revocation ends every credential of a key up to a moment, so the end of one lease would end " +
			"others that its holder, or somebody else, has for the same key")
	}
	return nil
}

func (s *spec) checkTTL() error {
	longest := longestMaxTTL
	s.maxTTL = defaultMaxTTL
	if s.Revocation != nil {
		s.maxTTL, longest = revocableTTL, longestHeld
	}
	if s.MaxTTL != "" {
		var err error
		if s.maxTTL, err = time.ParseDuration(s.MaxTTL); err != nil {
			return fmt.Errorf("max_ttl: %q is not a duration such as 15m", s.MaxTTL)
		}
	}
	if s.maxTTL < minMaxTTL || s.maxTTL > longest {
		return fmt.Errorf("max_ttl: %s; allowed are 1m to %s here (24h where credentials cannot be revoked, 168h where they can)", s.maxTTL, longest)
	}
	return nil
}

func (s *spec) checkSubjects() error {
	if s.InboxPrefix == "" {
		s.InboxPrefix = defaultInbox
	}
	if !inboxPattern.MatchString(s.InboxPrefix) {
		return fmt.Errorf("inbox_prefix: %q must be one word that begins with _ and holds A-Z, a-z, 0-9, _ or -", s.InboxPrefix)
	}
	if len(s.Subjects) > maxSubjects {
		return fmt.Errorf("subjects: %d; at most %d are allowed", len(s.Subjects), maxSubjects)
	}
	for _, l := range s.Subjects {
		if _, err := subject(l); err != nil {
			return fmt.Errorf("subjects: %w", err)
		}
	}
	return nil
}

func (s *spec) checkUsers() error {
	u := &s.Users
	if len(u.SourceNetworks) > maxNetworks {
		return fmt.Errorf("users.source_networks: %d; at most %d are allowed", len(u.SourceNetworks), maxNetworks)
	}
	for i, n := range u.SourceNetworks {
		p, err := netip.ParsePrefix(n)
		if err != nil {
			return fmt.Errorf("users.source_networks: %q is not a network such as 10.0.0.0/8", n)
		}
		u.SourceNetworks[i] = p.Masked().String()
	}
	if len(u.ConnectionTypes) == 0 {
		u.ConnectionTypes = []string{jwt.ConnectionTypeStandard}
	}
	for _, c := range u.ConnectionTypes {
		if !slices.Contains(connectionTypes, c) {
			return fmt.Errorf("users.connection_types: %q; allowed are %s", c, strings.Join(connectionTypes, ", "))
		}
	}
	slices.Sort(u.ConnectionTypes)
	u.ConnectionTypes = slices.Compact(u.ConnectionTypes)
	if u.MaxSubscriptions < 0 || u.MaxPayload < 0 {
		return errors.New("users: max_subscriptions and max_payload are 0, for no limit, or more")
	}
	if u.Responses.Max == 0 {
		u.Responses.Max = 1
	}
	u.responseTTL = 2 * time.Minute
	if u.Responses.TTL != "" {
		var err error
		if u.responseTTL, err = time.ParseDuration(u.Responses.TTL); err != nil {
			return fmt.Errorf("users.responses.ttl: %q is not a duration such as 30s", u.Responses.TTL)
		}
	}
	if u.Responses.Max < 1 || u.Responses.Max > 1<<20 || u.responseTTL < time.Second || u.responseTTL > 24*time.Hour {
		return errors.New("users.responses: allowed are max from 1 to 1048576, and ttl from 1s to 24h")
	}
	return nil
}
