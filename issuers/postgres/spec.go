package postgres

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/mayfly-broker/mayfly/issuers"
)

// Limits of a target's spec.
const (
	maxIterations     = 100_000 // a mint would cost 60 ms of the target's CPU
	defaultIterations = 4096    // what PostgreSQL itself uses; some drivers refuse fewer
	maxConnections    = 200
	defaultConns      = 16 // more than its cores gain nothing but their share of a busy machine; a default server has 100
	maxDatabases      = 64
	maxPooledScopes   = 10_000
	defaultPooled     = 500
	maxStock          = 10_000
	defaultStock      = 256 // a burst of one second on a target of two cores
	maxIdentifier     = 63  // NAMEDATALEN - 1: PostgreSQL cuts longer names off silently
)

// Logins a spec can name.
const (
	loginPassword    = "password"
	loginCertificate = "certificate"
)

// TLS modes a spec can name. There is none that encrypts without verifying.
const (
	tlsDisable    = "disable"
	tlsVerifyCA   = "verify-ca"
	tlsVerifyFull = "verify-full"
)

// spec is a Target's spec as far as this kind is concerned.
type spec struct {
	Address   string   `json:"address"`
	Database  string   `json:"database"`
	Databases []string `json:"databases"`
	TLS       tlsSpec  `json:"tls"`
	Admin     struct {
		Username string `json:"username"`
	} `json:"admin"`
	Login           string `json:"login"`
	ScramIterations int    `json:"scram_iterations"`
	MaxPooledScopes int    `json:"max_pooled_scopes"`
	MaxConnections  int    `json:"max_connections"`
	VerifierStock   int    `json:"verifier_stock"`

	host string
	port uint16
}

type tlsSpec struct {
	Mode   string `json:"mode"`
	CA     string `json:"ca"`      // PEM
	CAFile string `json:"ca_file"` // on the broker's nodes
}

func parseSpec(raw json.RawMessage) (spec, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	var s spec
	if err := issuers.ReadableSpec(dec.Decode(&s)); err != nil {
		return s, fmt.Errorf("postgres: %w; allowed keys are address, database, databases, tls (mode, ca, ca_file), admin (username), "+
			"login, scram_iterations, verifier_stock, max_pooled_scopes, max_connections", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return s, errors.New("postgres: more follows after the spec's object")
	}
	for _, check := range []func() error{s.checkAddress, s.checkNames, s.checkTLS, s.checkNumbers} {
		if err := check(); err != nil {
			return s, fmt.Errorf("postgres: %w", err)
		}
	}
	return s, nil
}

func (s *spec) checkAddress() error {
	host, port, err := net.SplitHostPort(s.Address)
	if err != nil || host == "" {
		return fmt.Errorf("address: %q must be host:port, as in db.internal:5432", s.Address)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return fmt.Errorf("address: port %q must be a number from 1 to 65535", port)
	}
	if strings.ContainsAny(host, "/,@ \x00") {
		return fmt.Errorf("address: %q is not one host name or IP address", host)
	}
	s.host, s.port = host, uint16(n)
	return nil
}

func (s *spec) checkNames() error {
	if len(s.Databases) > maxDatabases {
		return fmt.Errorf("databases: %d; at most %d are allowed", len(s.Databases), maxDatabases)
	}
	if err := checkIdentifier("database", s.Database); err != nil {
		return err
	}
	for _, d := range s.Databases {
		if err := checkIdentifier("databases", d); err != nil {
			return err
		}
	}
	s.Databases = append([]string{s.Database}, s.Databases...)
	slices.Sort(s.Databases)
	s.Databases = slices.Compact(s.Databases)
	return checkIdentifier("admin.username", s.Admin.Username)
}

// checkIdentifier accepts any name that PostgreSQL keeps whole.
func checkIdentifier(field, name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%s: a name is needed", field)
	case len(name) > maxIdentifier:
		return fmt.Errorf("%s: %q has %d bytes; PostgreSQL keeps %d", field, name, len(name), maxIdentifier)
	case !utf8.ValidString(name) || strings.ContainsRune(name, 0):
		return fmt.Errorf("%s: %q is not valid UTF-8 without NUL", field, name)
	}
	return nil
}

func (s *spec) checkTLS() error {
	switch s.TLS.Mode {
	case "":
		s.TLS.Mode = tlsVerifyFull
	case tlsVerifyCA, tlsVerifyFull:
	case tlsDisable:
		if ip := net.ParseIP(s.host); s.host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return fmt.Errorf("tls.mode: disable is allowed for loopback addresses alone, and %q is none; use verify-full", s.host)
		}
		if s.TLS.CA != "" || s.TLS.CAFile != "" {
			return errors.New("tls: a CA has no meaning with mode disable")
		}
		return nil
	default:
		return fmt.Errorf("tls.mode: %q; allowed are verify-full, verify-ca, and disable for loopback addresses", s.TLS.Mode)
	}
	if s.TLS.CA != "" && s.TLS.CAFile != "" {
		return errors.New("tls: give ca or ca_file, not both")
	}
	if s.TLS.Mode == tlsVerifyCA && s.TLS.CA == "" && s.TLS.CAFile == "" {
		return errors.New("tls: verify-ca needs ca or ca_file, or any certificate of a public CA would do")
	}
	return nil
}

func (s *spec) checkNumbers() error {
	if s.Login == "" {
		s.Login = loginPassword
	}
	if s.Login != loginPassword && s.Login != loginCertificate {
		return fmt.Errorf("login: %q; allowed are password and certificate", s.Login)
	}
	for _, n := range []struct {
		name           string
		value          *int
		standard, most int
	}{
		{"scram_iterations", &s.ScramIterations, defaultIterations, maxIterations},
		{"max_pooled_scopes", &s.MaxPooledScopes, defaultPooled, maxPooledScopes},
		{"max_connections", &s.MaxConnections, defaultConns, maxConnections},
		{"verifier_stock", &s.VerifierStock, defaultStock, maxStock},
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
