package kubernetes

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"crypto/x509"

	"github.com/mayfly-broker/mayfly/issuers"
)

// spec is a Target's spec as far as this kind is concerned.
type spec struct {
	Address           string   `json:"address"`
	Namespace         string   `json:"namespace"`
	Namespaces        []string `json:"namespaces"`
	ServiceAccounts   []string `json:"service_accounts"`
	Audiences         []string `json:"audiences"`
	TokenFile         string   `json:"token_file"`
	ClientCertificate string   `json:"client_certificate"`
	TLS               tlsSpec  `json:"tls"`
	Settle            string   `json:"settle"`
	MaxTTL            string   `json:"max_ttl"`
	MaxConnections    int      `json:"max_connections"`

	server url.URL // scheme, host and perhaps a path
	settle time.Duration
	maxTTL time.Duration
}

type tlsSpec struct {
	Mode       string `json:"mode"`
	CA         string `json:"ca"`          // PEM
	CAFile     string `json:"ca_file"`     // on the broker's nodes
	ServerName string `json:"server_name"` // in the server's certificate; the address's host when empty
}

const allowedKeys = "allowed keys are address, namespace, namespaces, service_accounts, audiences, token_file, client_certificate, " +
	"tls (mode, ca, ca_file, server_name), settle, max_ttl, max_connections"

// allNamespaces in a spec's namespaces: the whole cluster.
const allNamespaces = "*"

// defaultNamespace is the broker's own.
const defaultNamespace = "mayfly"

func parseSpec(raw json.RawMessage) (spec, error) {
	var s spec
	if len(raw) > maxSpecBytes {
		return s, fmt.Errorf("kubernetes: spec: %d bytes; at most %d are allowed", len(raw), maxSpecBytes)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := issuers.ReadableSpec(dec.Decode(&s)); err != nil {
		return s, fmt.Errorf("kubernetes: %w; %s", err, allowedKeys)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return s, errors.New("kubernetes: more follows after the spec's object")
	}
	for _, check := range []func() error{s.checkAddress, s.checkPlaces, s.checkTimes, s.checkLogin} {
		if err := check(); err != nil {
			return s, fmt.Errorf("kubernetes: %w", err)
		}
	}
	return s, nil
}

// checkAddress reads host:port, or https://host:port with a path, as a proxy
// before several clusters has.
func (s *spec) checkAddress() error {
	text := s.Address
	if !strings.Contains(text, "://") {
		text = "https://" + text
	}
	u, err := url.Parse(text)
	switch {
	case s.Address == "" || err != nil || u.Hostname() == "":
		return fmt.Errorf("address: %q must be host:port or https://host:port", s.Address)
	case u.Scheme != "https":
		return fmt.Errorf("address: %q; an API server is reached by https alone", s.Address)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return errors.New("address: no user, query or fragment may stand in it")
	case len(u.Host) > 260 || len(u.Path) > 256 || strings.ContainsAny(u.Path, "%\\ ") || strings.Contains(u.Path, ".."):
		return fmt.Errorf("address: %q is too long, or its path is not plain", s.Address)
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return fmt.Errorf("address: port %q must be a number from 1 to 65535", port)
		}
	} else {
		u.Host = net.JoinHostPort(u.Hostname(), "443")
	}
	s.server = url.URL{Scheme: "https", Host: u.Host, Path: strings.TrimRight(u.Path, "/")}
	return nil
}

func (s *spec) checkPlaces() error {
	if s.Namespace == "" {
		s.Namespace = defaultNamespace
	}
	if !isNamespace(s.Namespace) {
		return fmt.Errorf("namespace: %q is no namespace's name", s.Namespace)
	}
	if len(s.Namespaces)+len(s.ServiceAccounts) == 0 {
		return errors.New("namespaces and service_accounts are both empty: give the namespaces in which leases may get rights, or the service accounts whose tokens they may be")
	}
	if len(s.Namespaces) > maxNamespaces || len(s.ServiceAccounts) > maxNamespaces || len(s.Audiences) > maxNamespaces {
		return fmt.Errorf("namespaces, service_accounts, audiences: at most %d each are allowed", maxNamespaces)
	}
	for _, ns := range s.Namespaces {
		switch {
		case ns == allNamespaces:
			if len(s.Namespaces) > 1 {
				return errors.New(`namespaces: "*" is the whole cluster and stands alone`)
			}
		case !isNamespace(ns):
			return fmt.Errorf("namespaces: %q is no namespace's name", ns)
		case ns == s.Namespace:
			return fmt.Errorf("namespaces: %q is the broker's own; who has rights there could take over other leases", ns)
		}
	}
	for _, a := range s.ServiceAccounts {
		ns, name, ok := strings.Cut(a, "/")
		if !ok || !isNamespace(ns) || !isAccount(name) {
			return fmt.Errorf("service_accounts: %q must be namespace/name, as in shop/deployer", a)
		}
		if ns == s.Namespace {
			return fmt.Errorf("service_accounts: %q is in the broker's own namespace", a)
		}
	}
	for _, a := range s.Audiences {
		if err := checkAudience(a); err != nil {
			return fmt.Errorf("audiences: %w", err)
		}
	}
	return nil
}

func checkAudience(a string) error {
	if a == "" || len(a) > maxAudience || strings.ContainsFunc(a, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '*' || r > 0x10ffff }) {
		return fmt.Errorf("%q must be up to %d characters without spaces and *", a, maxAudience)
	}
	return nil
}

func (s *spec) checkTimes() error {
	s.settle, s.maxTTL = defaultSettle, defaultMaxTTL
	if len(s.Audiences) > 0 {
		s.maxTTL = defaultMaxTTLForeign
	}
	for _, d := range []struct {
		field, text string
		into        *time.Duration
		min, max    time.Duration
	}{{"settle", s.Settle, &s.settle, 0, maxSettle}, {"max_ttl", s.MaxTTL, &s.maxTTL, minToken, longestMaxTTL}} {
		if d.text == "" {
			continue
		}
		v, err := time.ParseDuration(d.text)
		if err != nil || v < d.min || v > d.max {
			return fmt.Errorf("%s: %q; allowed are durations from %s to %s", d.field, d.text, d.min, d.max)
		}
		*d.into = v
	}
	if s.MaxConnections == 0 {
		s.MaxConnections = defaultConnections
	}
	if s.MaxConnections < 1 || s.MaxConnections > maxConnections {
		return fmt.Errorf("max_connections: %d; allowed are 1 to %d", s.MaxConnections, maxConnections)
	}
	return nil
}

func (s *spec) checkLogin() error {
	if s.TLS.Mode != "" && s.TLS.Mode != "verify-full" {
		return fmt.Errorf("tls.mode: %q; an API server is always verified: verify-full", s.TLS.Mode)
	}
	if s.TLS.CA != "" && s.TLS.CAFile != "" {
		return errors.New("tls: give ca or ca_file, not both")
	}
	if s.TLS.ServerName != "" && !isAccount(strings.ToLower(s.TLS.ServerName)) {
		return fmt.Errorf("tls.server_name: %q is no host name", s.TLS.ServerName)
	}
	if s.TokenFile != "" && s.ClientCertificate != "" {
		return errors.New("give token_file or client_certificate, not both")
	}
	if s.TokenFile != "" && !strings.HasPrefix(s.TokenFile, "/") {
		return fmt.Errorf("token_file: %q must be an absolute path on the broker's nodes", s.TokenFile)
	}
	return nil
}

// readCA returns the CA in PEM; empty where the system's own are meant.
func (s spec) readCA() (string, error) {
	ca := s.TLS.CA
	if s.TLS.CAFile != "" {
		b, err := readBounded(s.TLS.CAFile, maxSpecBytes)
		if err != nil {
			return "", fmt.Errorf("kubernetes: tls.ca_file: %w", err)
		}
		ca = string(b)
	}
	if ca != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(ca)) {
		return "", errors.New("kubernetes: tls: the CA holds no PEM certificate")
	}
	return ca, nil
}

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("more than %d bytes", limit)
	}
	return b, err
}

func (s spec) wholeCluster() bool { return slices.Contains(s.Namespaces, allNamespaces) }

// grants says whether the target may give rights at all: accounts of its own are
// then made.
func (s spec) grants() bool { return len(s.Namespaces) > 0 }

// accountNamespaces are those of the service accounts that exist already.
func (s spec) accountNamespaces() []string {
	var out []string
	for _, a := range s.ServiceAccounts {
		ns, _, _ := strings.Cut(a, "/")
		out = append(out, ns)
	}
	slices.Sort(out)
	return slices.Compact(out)
}
