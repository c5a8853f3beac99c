package redis

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/mayfly-broker/mayfly/issuers"
)

// Limits of a target's spec.
const (
	maxSpecBytes   = 256 << 10 // a CA bundle is the largest part
	maxAddresses   = 16
	maxConnections = 200
	defaultConns   = 16 // per node; Redis runs commands one at a time anyway
	maxName        = 128
)

// Topologies a spec can name.
const (
	topologyStandalone = "standalone"
	topologySentinel   = "sentinel"
	topologyCluster    = "cluster"
)

// What makes the server's users survive its restart.
const (
	persistNone    = "none"
	persistACLFile = "aclfile"
	persistConfig  = "config"
)

// TLS modes a spec can name. There is none that encrypts without verifying.
const (
	tlsDisable    = "disable"
	tlsVerifyFull = "verify-full"
)

// spec is a Target's spec as far as this kind is concerned.
type spec struct {
	Address    string   `json:"address"`
	Addresses  []string `json:"addresses"`
	Topology   string   `json:"topology"`
	MasterName string   `json:"master_name"`
	Deployment string   `json:"deployment"`
	Persist    string   `json:"persist"`
	TLS        tlsSpec  `json:"tls"`
	Admin      struct {
		Username string `json:"username"`
	} `json:"admin"`
	SentinelUsername string `json:"sentinel_username"`
	MaxConnections   int    `json:"max_connections"`

	seeds []string // address and addresses
}

type tlsSpec struct {
	Mode       string `json:"mode"`
	CA         string `json:"ca"`          // PEM
	CAFile     string `json:"ca_file"`     // on the broker's nodes
	ServerName string `json:"server_name"` // in every node's certificate; the address's host when empty
}

const allowedKeys = "allowed keys are address, addresses, topology, master_name, deployment, persist, tls (mode, ca, ca_file, server_name), " +
	"admin (username), sentinel_username, max_connections"

var wordPattern = regexp.MustCompile(`^[A-Za-z0-9._:/-]+$`)

func parseSpec(raw json.RawMessage) (spec, error) {
	var s spec
	if len(raw) > maxSpecBytes {
		return s, fmt.Errorf("redis: spec: %d bytes; at most %d are allowed", len(raw), maxSpecBytes)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := issuers.ReadableSpec(dec.Decode(&s)); err != nil {
		return s, fmt.Errorf("redis: %w; %s", err, allowedKeys)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return s, errors.New("redis: more follows after the spec's object")
	}
	for _, check := range []func() error{s.checkAddresses, s.checkTopology, s.checkNames, s.checkTLS} {
		if err := check(); err != nil {
			return s, fmt.Errorf("redis: %w", err)
		}
	}
	return s, nil
}

func (s *spec) checkAddresses() error {
	if len(s.Addresses) > maxAddresses {
		return fmt.Errorf("addresses: %d; at most %d are allowed", len(s.Addresses), maxAddresses)
	}
	s.seeds = nil
	for _, a := range append([]string{s.Address}, s.Addresses...) {
		if err := checkAddress(a); err != nil {
			return err
		}
		if !slices.Contains(s.seeds, a) {
			s.seeds = append(s.seeds, a)
		}
	}
	return nil
}

func checkAddress(a string) error {
	host, port, err := net.SplitHostPort(a)
	if err != nil || host == "" {
		return fmt.Errorf("address: %q must be host:port, as in cache.internal:6379", a)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("address: port %q must be a number from 1 to 65535", port)
	}
	if len(host) > 255 || strings.ContainsAny(host, "/,@ \x00\r\n") {
		return fmt.Errorf("address: %q is not one host name or IP address", host)
	}
	return nil
}

func (s *spec) checkTopology() error {
	if s.Topology == "" {
		s.Topology = topologyStandalone
	}
	switch s.Topology {
	case topologyStandalone:
		if len(s.seeds) > 1 {
			return errors.New("addresses: a standalone server has one address; topology is sentinel or cluster where there are more")
		}
	case topologySentinel:
		if s.MasterName == "" {
			return errors.New("master_name: topology sentinel needs the name by which the Sentinels know the master, as in mymaster")
		}
	case topologyCluster:
	default:
		return fmt.Errorf("topology: %q; allowed are standalone, sentinel and cluster", s.Topology)
	}
	if s.Topology != topologySentinel && (s.MasterName != "" || s.SentinelUsername != "") {
		return errors.New("master_name and sentinel_username have a meaning with topology sentinel alone")
	}
	if s.Persist == "" {
		s.Persist = persistNone
	}
	if !slices.Contains([]string{persistNone, persistACLFile, persistConfig}, s.Persist) {
		return fmt.Errorf("persist: %q; allowed are none, aclfile and config", s.Persist)
	}
	return nil
}

func (s *spec) checkNames() error {
	for _, n := range []struct{ field, value string }{
		{"master_name", s.MasterName}, {"deployment", s.Deployment}, {"admin.username", s.Admin.Username}, {"sentinel_username", s.SentinelUsername},
	} {
		if n.value != "" && (len(n.value) > maxName || !wordPattern.MatchString(n.value)) {
			return fmt.Errorf("%s: %q must be up to %d characters of A-Z, a-z, 0-9 and . _ : / -", n.field, n.value, maxName)
		}
	}
	if s.Admin.Username == "" {
		return errors.New("admin.username: the name of the broker's own ACL user is needed; the account without a name is called default")
	}
	if userPattern.MatchString(s.Admin.Username) {
		return fmt.Errorf("admin.username: %q is a name that leases have", s.Admin.Username)
	}
	if s.MaxConnections == 0 {
		s.MaxConnections = defaultConns
	}
	if s.MaxConnections < 1 || s.MaxConnections > maxConnections {
		return fmt.Errorf("max_connections: %d; allowed are 1 to %d", s.MaxConnections, maxConnections)
	}
	return nil
}

func (s *spec) checkTLS() error {
	switch s.TLS.Mode {
	case "":
		s.TLS.Mode = tlsVerifyFull
	case tlsVerifyFull:
	case tlsDisable:
		for _, a := range s.seeds {
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
