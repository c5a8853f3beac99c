package vault

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
)

// Limits of a target's spec.
const (
	maxSpecBytes   = 256 << 10 // a CA bundle is the largest part
	maxAddresses   = 16
	maxPaths       = 64
	maxConnections = 200
	defaultConns   = 16
	maxName        = 128
	maxRequest     = 30 * time.Minute
	shortestTTL    = 10 * time.Second
)

// How the broker logs in to Vault.
const (
	authToken      = "token"
	authAppRole    = "approle"
	authJWT        = "jwt"
	authKubernetes = "kubernetes"
	authCert       = "cert"
)

// defaultJWTFile is where Kubernetes puts a pod's own token.
const defaultJWTFile = "/var/run/secrets/kubernetes.io/serviceaccount/token"

// spec is a Target's spec as far as this kind is concerned.
type spec struct {
	Address     string   `json:"address"`
	Addresses   []string `json:"addresses"`
	Namespace   string   `json:"namespace"`
	TLS         tlsSpec  `json:"tls"`
	Auth        authSpec `json:"auth"`
	TokenRole   string   `json:"token_role"`
	TokenPolicy string   `json:"token_policy"`
	Paths       []string `json:"paths"`
	MaxTTL      string   `json:"max_ttl"`
	MaxRequest  string   `json:"max_request_duration"`
	MaxConns    int      `json:"max_connections"`

	seeds      []string // address and addresses, as https://host:port
	maxTTL     time.Duration
	maxRequest time.Duration
}

type tlsSpec struct {
	CA         string `json:"ca"`          // PEM
	CAFile     string `json:"ca_file"`     // on the broker's nodes
	ServerName string `json:"server_name"` // in every server's certificate; the address's host when empty
	ClientCert string `json:"client_cert"` // PEM; its key is the secret tls.client_key
}

type authSpec struct {
	Method  string `json:"method"`
	Mount   string `json:"mount"`
	RoleID  string `json:"role_id"`
	Role    string `json:"role"`
	JWTFile string `json:"jwt_file"`
}

const allowedKeys = "allowed keys are address, addresses, namespace, tls (ca, ca_file, server_name, client_cert), auth (method, mount, role_id, role, jwt_file), " +
	"token_role, token_policy, paths, max_ttl, max_request_duration, max_connections"

var (
	wordPattern = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)
	textPattern = regexp.MustCompile(`^[A-Za-z0-9._:/@-]+$`)
)

func parseSpec(raw json.RawMessage) (spec, error) {
	var s spec
	if len(raw) > maxSpecBytes {
		return s, fmt.Errorf("vault: spec: %d bytes; at most %d are allowed", len(raw), maxSpecBytes)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := issuers.ReadableSpec(dec.Decode(&s)); err != nil {
		return s, fmt.Errorf("vault: %w; %s", err, allowedKeys)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return s, errors.New("vault: more follows after the spec's object")
	}
	for _, check := range []func() error{s.checkAddresses, s.checkAuth, s.checkNames, s.checkTimes, s.checkPaths} {
		if err := check(); err != nil {
			return s, fmt.Errorf("vault: %w", err)
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
		a, err := checkAddress(a)
		if err != nil {
			return err
		}
		if !slices.Contains(s.seeds, a) {
			s.seeds = append(s.seeds, a)
		}
	}
	if s.TLS.CA != "" && s.TLS.CAFile != "" {
		return errors.New("tls: give ca or ca_file, not both")
	}
	if s.TLS != (tlsSpec{}) && slices.ContainsFunc(s.seeds, func(a string) bool { return strings.HasPrefix(a, "http:") }) {
		return errors.New("tls: its keys have no meaning with an http address")
	}
	return nil
}

// checkAddress accepts a scheme, a host and a port, and puts the usual port where
// there is none.
func checkAddress(a string) (string, error) {
	u, err := url.Parse(a)
	if err != nil || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" || len(a) > 512 {
		return "", fmt.Errorf("address: %.80q must be like https://vault.internal:8200", a)
	}
	host := u.Hostname()
	switch u.Scheme {
	case "https":
	case "http":
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return "", fmt.Errorf("address: http is allowed for loopback addresses alone, and %q is none; use https", host)
		}
	default:
		return "", fmt.Errorf("address: %.80q must begin with https://", a)
	}
	port := u.Port()
	if port == "" {
		port = "8200"
	}
	return u.Scheme + "://" + net.JoinHostPort(host, port), nil
}

func (s *spec) checkAuth() error {
	a := &s.Auth
	if a.Method == "" {
		a.Method = authToken
	}
	if a.Mount == "" {
		a.Mount = a.Method
	}
	a.Mount = strings.Trim(a.Mount, "/")
	switch a.Method {
	case authToken:
	case authAppRole:
		if a.RoleID == "" {
			return errors.New("auth.role_id: method approle needs the role_id; its secret_id is the secret auth.secret_id")
		}
	case authJWT, authKubernetes:
		if a.Role == "" {
			return fmt.Errorf("auth.role: method %s needs the role to log in as", a.Method)
		}
		if a.JWTFile == "" && a.Method == authKubernetes {
			a.JWTFile = defaultJWTFile
		}
		if !strings.HasPrefix(a.JWTFile, "/") {
			return errors.New("auth.jwt_file: an absolute path on the broker's nodes is needed")
		}
	case authCert:
		if s.TLS.ClientCert == "" {
			return errors.New("tls.client_cert: method cert needs a client certificate; its key is the secret tls.client_key")
		}
	default:
		return fmt.Errorf("auth.method: %.40q; allowed are token, approle, jwt, kubernetes and cert", a.Method)
	}
	if a.Method != authAppRole && a.RoleID != "" || a.Method != authJWT && a.Method != authKubernetes && a.JWTFile != "" {
		return errors.New("auth: role_id has a meaning with approle alone, jwt_file with jwt and kubernetes alone")
	}
	return nil
}

func (s *spec) checkNames() error {
	for _, d := range []struct {
		field *string
		value string
	}{{&s.TokenRole, "mayfly"}, {&s.TokenPolicy, "mayfly-leases"}} {
		if *d.field == "" {
			*d.field = d.value
		}
	}
	for _, n := range []struct {
		field, value string
		pattern      *regexp.Regexp
	}{
		{"namespace", s.Namespace, textPattern}, {"auth.mount", s.Auth.Mount, textPattern}, {"auth.role_id", s.Auth.RoleID, textPattern},
		{"auth.role", s.Auth.Role, textPattern}, {"token_role", s.TokenRole, wordPattern}, {"token_policy", s.TokenPolicy, wordPattern},
	} {
		if n.value != "" && (len(n.value) > maxName || !n.pattern.MatchString(n.value) || strings.Contains(n.value, "..")) {
			return fmt.Errorf("%s: %.80q must be up to %d plain characters (%s)", n.field, n.value, maxName, n.pattern)
		}
	}
	if strings.EqualFold(s.TokenPolicy, "root") || strings.EqualFold(s.TokenPolicy, endedPolicy) {
		return fmt.Errorf("token_policy: %s is not one that leases may have", s.TokenPolicy)
	}
	if s.MaxConns == 0 {
		s.MaxConns = defaultConns
	}
	if s.MaxConns < 1 || s.MaxConns > maxConnections {
		return fmt.Errorf("max_connections: %d; allowed are 1 to %d", s.MaxConns, maxConnections)
	}
	return nil
}

func (s *spec) checkTimes() error {
	s.maxRequest = 90 * time.Second // what Vault allows a request unless it is told otherwise
	for _, d := range []struct {
		field, value string
		shortest     time.Duration
		longest      time.Duration
		into         *time.Duration
	}{{"max_ttl", s.MaxTTL, shortestTTL, 1 << 62, &s.maxTTL}, {"max_request_duration", s.MaxRequest, time.Second, maxRequest, &s.maxRequest}} {
		if d.value == "" {
			continue
		}
		v, err := time.ParseDuration(d.value)
		if err != nil || v < d.shortest || v > d.longest {
			return fmt.Errorf("%s: %.40q; write a length of time like 90s or 8h, at least %s", d.field, d.value, d.shortest)
		}
		*d.into = v
	}
	return nil
}

func (s *spec) checkPaths() error {
	if len(s.Paths) > maxPaths {
		return fmt.Errorf("paths: %d; at most %d are allowed", len(s.Paths), maxPaths)
	}
	for _, p := range s.Paths {
		if _, err := parseLocation(p); err != nil {
			return fmt.Errorf("paths: %w", err)
		}
	}
	return nil
}

// allows says whether the target's paths let a location be read.
func (s *spec) allows(location string) bool {
	if len(s.Paths) == 0 {
		return true
	}
	path, _, _ := strings.Cut(location, "?")
	return slices.ContainsFunc(s.Paths, func(p string) bool {
		if prefix, ok := strings.CutSuffix(p, "*"); ok {
			return strings.HasPrefix(location, prefix)
		}
		return p == location || p == path
	})
}
