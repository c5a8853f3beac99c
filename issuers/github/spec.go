package github

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
	maxSpecBytes    = 64 << 10
	maxRepositories = 64        // of one token; GitHub takes 500, and answers with all it knows of each
	tokenLife       = time.Hour // of every token (docs.github.com, Generating an installation access token)
	minMaxTTL       = time.Minute
	publicAPI       = "https://api.github.com"
)

// spec is a Target's spec as far as this kind is concerned.
type spec struct {
	// ClientID or AppID names the App.
	ClientID string `json:"client_id"`
	AppID    int64  `json:"app_id"`
	// Owner is the account that the App is installed on: an organisation or a user.
	Owner string `json:"owner"`
	// InstallationID is looked up by the owner where it is 0.
	InstallationID int64 `json:"installation_id"`
	// API is https://api.github.com when empty; https://HOST/api/v3 of an Enterprise Server.
	API string  `json:"api"`
	TLS tlsSpec `json:"tls"`
	// Repositories, where given, are the only ones that scopes may name.
	Repositories []string `json:"repositories"`
	// LastingPermissions lets scopes name permissions whose effect outlasts the lease.
	LastingPermissions bool   `json:"lasting_permissions"`
	MaxTTL             string `json:"max_ttl"`

	maxTTL time.Duration
}

type tlsSpec struct {
	CA     string `json:"ca"`      // PEM
	CAFile string `json:"ca_file"` // on the broker's nodes
}

const allowedKeys = "allowed keys are client_id or app_id, owner, installation_id, api, tls (ca, ca_file), repositories, lasting_permissions, max_ttl and, in its document, private_key: {from_file: FILE}"

var (
	clientPattern = regexp.MustCompile(`^[A-Za-z0-9._-]{4,64}$`)
	ownerPattern  = regexp.MustCompile(`^[A-Za-z0-9](-?[A-Za-z0-9_])*$`) // "_" in names of Enterprise Managed Users
	// repoPattern is what GitHub makes of a repository's name when one is created.
	repoPattern = regexp.MustCompile(`^[A-Za-z0-9._-]{1,100}$`)
)

func parseSpec(raw json.RawMessage) (spec, error) {
	var s spec
	if len(raw) > maxSpecBytes {
		return s, fmt.Errorf("github: spec: %d bytes; at most %d are allowed", len(raw), maxSpecBytes)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := issuers.ReadableSpec(dec.Decode(&s)); err != nil {
		return s, fmt.Errorf("github: %w; %s", err, allowedKeys)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return s, errors.New("github: more follows after the spec's object")
	}
	for _, check := range []func() error{s.checkApp, s.checkAPI, s.checkRepositories, s.checkTTL} {
		if err := check(); err != nil {
			return s, fmt.Errorf("github: %w", err)
		}
	}
	return s, nil
}

func (s *spec) checkApp() error {
	switch {
	case (s.ClientID == "") == (s.AppID == 0) || s.AppID < 0:
		return errors.New("client_id or app_id is needed, one of them; the App's settings page shows both")
	case s.ClientID != "" && !clientPattern.MatchString(s.ClientID):
		return errors.New("client_id: it looks like Iv23liABCDEF0123456789")
	case len(s.Owner) > 100 || !ownerPattern.MatchString(s.Owner):
		return errors.New("owner: the organisation or user that the App is installed on is needed, as in its page's address")
	case s.InstallationID < 0:
		return errors.New("installation_id: a positive number, or leave it out to have it looked up by owner")
	}
	return nil
}

func (s *spec) checkAPI() error {
	if s.API == "" {
		s.API = publicAPI
	}
	s.API = strings.TrimSuffix(s.API, "/")
	u, err := url.Parse(s.API)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || len(s.API) > 255 || strings.ContainsAny(u.Path, "%.") || strings.Contains(u.Path, "//"):
		return errors.New("api: a URL such as https://github.example/api/v3 is needed")
	case u.Scheme != "https" && (u.Scheme != "http" || !isLoopback(u.Hostname())):
		return errors.New("api: https is needed; http is allowed for loopback addresses alone")
	case s.TLS.CA != "" && s.TLS.CAFile != "":
		return errors.New("tls: give ca or ca_file, not both")
	}
	return nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (s *spec) checkRepositories() error {
	if len(s.Repositories) > maxRepositories {
		return fmt.Errorf("repositories: %d; at most %d are allowed", len(s.Repositories), maxRepositories)
	}
	for _, r := range s.Repositories {
		if _, err := s.repository(r); err != nil {
			return fmt.Errorf("repositories: %w", err)
		}
	}
	return nil
}

// repository returns the bare name of a full one, which GitHub asks for.
func (s *spec) repository(full string) (string, error) {
	owner, name, ok := strings.Cut(full, "/")
	if !ok || owner != s.Owner || !repoPattern.MatchString(name) || name == "." || name == ".." || strings.HasSuffix(name, ".git") {
		return "", fmt.Errorf("%q is not a repository's full name such as %s/orders; there are no patterns, since GitHub takes none", full, s.Owner)
	}
	return name, nil
}

// within says whether the spec lets scopes name that repository.
func (s *spec) within(full string) bool {
	return len(s.Repositories) == 0 || slices.Contains(s.Repositories, full)
}

func (s *spec) checkTTL() error {
	s.maxTTL = tokenLife
	if s.MaxTTL != "" {
		var err error
		if s.maxTTL, err = time.ParseDuration(s.MaxTTL); err != nil {
			return fmt.Errorf("max_ttl: %q is not a duration such as 15m", s.MaxTTL)
		}
	}
	if s.maxTTL < minMaxTTL || s.maxTTL > tokenLife {
		return fmt.Errorf("max_ttl: %s; allowed are 1m to 1h, since GitHub's tokens live for one hour", s.maxTTL)
	}
	return nil
}
