package mysql

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
	"unicode/utf8"

	"github.com/mayfly-broker/mayfly/issuers"
)

// Limits of a target's spec.
const (
	maxConnections  = 200
	defaultConns    = 16 // a default server has 151
	maxDatabases    = 64
	maxHosts        = 8
	maxPooledScopes = 10_000
	defaultPooled   = 500
	maxIdentifier   = 64 // characters: what the servers keep of databases, tables, columns
	maxHostName     = 60 // MySQL before 8.0.17
)

// TLS modes a spec can name. There is none that encrypts without verifying.
const (
	tlsDisable    = "disable"
	tlsVerifyFull = "verify-full"
)

// Authentication plugins a spec can name. "" is the server's own: the native one
// on MariaDB, caching_sha2_password on MySQL.
const (
	authNative  = "mysql_native_password"
	authEd25519 = "ed25519"
	authSHA2    = "caching_sha2_password"
)

// What an account's connections must have.
const (
	requireNone = "none"
	requireSSL  = "ssl"
	requireX509 = "x509"
)

// How scopes are granted.
const (
	grantsAuto   = "auto"
	grantsPooled = "pooled"
	grantsDirect = "direct"
)

// spec is a Target's spec as far as this kind is concerned.
type spec struct {
	Address   string   `json:"address"`
	Database  string   `json:"database"`
	Databases []string `json:"databases"`
	Hosts     []string `json:"hosts"`
	TLS       tlsSpec  `json:"tls"`
	Admin     struct {
		Username string `json:"username"`
	} `json:"admin"`
	Auth            string `json:"auth"`
	Require         string `json:"require"`
	Grants          string `json:"grants"`
	MaxPooledScopes int    `json:"max_pooled_scopes"`
	MaxConnections  int    `json:"max_connections"`

	host string
	port uint16
}

type tlsSpec struct {
	Mode   string `json:"mode"`
	CA     string `json:"ca"`      // PEM
	CAFile string `json:"ca_file"` // on the broker's nodes
	// ServerName is what the server's certificate is for, if not the address's
	// host.
	ServerName string `json:"server_name"`
}

func parseSpec(raw json.RawMessage) (spec, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	var s spec
	if err := issuers.ReadableSpec(dec.Decode(&s)); err != nil {
		return s, fmt.Errorf("mysql: %w; allowed keys are address, database, databases, hosts, tls (mode, ca, ca_file, server_name), admin (username), "+
			"auth, require, grants, max_pooled_scopes, max_connections", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return s, errors.New("mysql: more follows after the spec's object")
	}
	for _, check := range []func() error{s.checkAddress, s.checkNames, s.checkHosts, s.checkTLS, s.checkWords, s.checkNumbers} {
		if err := check(); err != nil {
			return s, fmt.Errorf("mysql: %w", err)
		}
	}
	return s, nil
}

func (s *spec) checkAddress() error {
	host, port, err := net.SplitHostPort(s.Address)
	if err != nil || host == "" {
		return fmt.Errorf("address: %q must be host:port, as in db.internal:3306", s.Address)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return fmt.Errorf("address: port %q must be a number from 1 to 65535", port)
	}
	if strings.ContainsAny(host, "/,@() \x00") {
		return fmt.Errorf("address: %q is not one host name or IP address", host)
	}
	s.host, s.port = host, uint16(n)
	return nil
}

// systemSchemas are out of reach of every scope. Servers may compare names
// without regard to case (lower_case_table_names), so this does too.
var systemSchemas = []string{"mysql", "sys", "information_schema", "performance_schema", schemaName}

func (s *spec) checkNames() error {
	if len(s.Databases) > maxDatabases {
		return fmt.Errorf("databases: %d; at most %d are allowed", len(s.Databases), maxDatabases)
	}
	all := append([]string{s.Database}, s.Databases...)
	for i, d := range all {
		field := "databases"
		if i == 0 {
			field = "database"
		}
		if err := checkIdentifier(field, d); err != nil {
			return err
		}
		if strings.ContainsAny(d, ".*") {
			return fmt.Errorf("%s: %q holds a dot or a star, which a scope's tables cannot name", field, d)
		}
		if slices.ContainsFunc(systemSchemas, func(sys string) bool { return strings.EqualFold(sys, d) }) {
			return fmt.Errorf("%s: %q is a system schema, on which nothing is minted", field, d)
		}
	}
	slices.Sort(all)
	s.Databases = slices.Compact(all)
	switch n := len(s.Admin.Username); {
	case n == 0 || n > 128 || strings.ContainsAny(s.Admin.Username, "\x00"):
		return errors.New("admin.username: the broker's own account is needed, of at most 128 bytes")
	case accountPattern.MatchString(s.Admin.Username):
		return errors.New("admin.username: this is the name of a lease's account")
	}
	return nil
}

// checkIdentifier accepts any name that the servers keep whole: up to 64
// characters of the Unicode plane 0, no NUL, no space at the end.
func checkIdentifier(field, name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%s: a name is needed", field)
	case utf8.RuneCountInString(name) > maxIdentifier:
		return fmt.Errorf("%s: %q has %d characters; the server keeps %d", field, name, utf8.RuneCountInString(name), maxIdentifier)
	case !utf8.ValidString(name) || strings.ContainsRune(name, 0):
		return fmt.Errorf("%s: %q is not valid UTF-8 without NUL", field, name)
	case strings.HasSuffix(name, " "):
		return fmt.Errorf("%s: %q ends in a space, which the server does not allow", field, name)
	case strings.ContainsFunc(name, func(r rune) bool { return r > 0xFFFF }):
		return fmt.Errorf("%s: %q holds a character beyond U+FFFF, which the server does not allow in names", field, name)
	}
	return nil
}

// hostPattern is what may follow the @ of an account: names, addresses, networks
// as address/netmask, and the patterns % and _.
var hostPattern = regexp.MustCompile(`^[0-9a-z.:%_-]+(/[0-9.]+)?$`)

func (s *spec) checkHosts() error {
	if len(s.Hosts) == 0 {
		s.Hosts = []string{"%"}
	}
	if len(s.Hosts) > maxHosts {
		return fmt.Errorf("hosts: %d; at most %d are allowed", len(s.Hosts), maxHosts)
	}
	for _, h := range s.Hosts {
		if len(h) > maxHostName || !hostPattern.MatchString(h) {
			return fmt.Errorf(`hosts: %q; allowed are lower-case names, addresses and patterns of at most %d characters, as in "10.%%", "%%.internal" or "10.1.0.0/255.255.0.0"`, h, maxHostName)
		}
	}
	hosts := slices.Clone(s.Hosts)
	slices.Sort(hosts)
	s.Hosts = slices.Compact(hosts)
	return nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (s *spec) checkTLS() error {
	switch s.TLS.Mode {
	case "":
		s.TLS.Mode = tlsVerifyFull
	case tlsVerifyFull:
	case tlsDisable:
		if !isLoopback(s.host) {
			return fmt.Errorf("tls.mode: disable is allowed for loopback addresses alone, and %q is none; use verify-full", s.host)
		}
		if s.TLS.CA != "" || s.TLS.CAFile != "" || s.TLS.ServerName != "" {
			return errors.New("tls: a CA or server_name has no meaning with mode disable")
		}
		return nil
	default:
		return fmt.Errorf("tls.mode: %q; allowed are verify-full (with server_name where the certificate is for another name), and disable for loopback addresses", s.TLS.Mode)
	}
	if s.TLS.CA != "" && s.TLS.CAFile != "" {
		return errors.New("tls: give ca or ca_file, not both")
	}
	return nil
}

func (s *spec) checkWords() error {
	if s.Grants == "" {
		s.Grants = grantsAuto
	}
	if s.Require == "" {
		s.Require = requireSSL
		if s.TLS.Mode == tlsDisable {
			s.Require = requireNone
		}
	}
	for _, w := range []struct {
		key, value string
		allowed    []string
	}{
		{"auth", s.Auth, []string{"", authNative, authEd25519, authSHA2}},
		{"require", s.Require, []string{requireNone, requireSSL, requireX509}},
		{"grants", s.Grants, []string{grantsAuto, grantsPooled, grantsDirect}},
	} {
		if !slices.Contains(w.allowed, w.value) {
			return fmt.Errorf("%s: %q; allowed are %s", w.key, w.value, strings.TrimPrefix(strings.Join(w.allowed, ", "), ", "))
		}
	}
	if s.Require != requireNone && s.TLS.Mode == tlsDisable {
		return fmt.Errorf("require: %s needs TLS, and tls.mode is disable", s.Require)
	}
	return nil
}

func (s *spec) checkNumbers() error {
	for _, n := range []struct {
		name           string
		value          *int
		standard, most int
	}{
		{"max_pooled_scopes", &s.MaxPooledScopes, defaultPooled, maxPooledScopes},
		{"max_connections", &s.MaxConnections, defaultConns, maxConnections},
	} {
		if *n.value == 0 {
			*n.value = n.standard
		}
		if *n.value < 1 || *n.value > n.most {
			return fmt.Errorf("%s: %d; allowed are 1 to %d", n.name, *n.value, n.most)
		}
	}
	return nil
}
