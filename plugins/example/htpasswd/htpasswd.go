// Package htpasswd is a kind of target: the password files by which nginx,
// Apache, Caddy and many a reverse proxy let people and programs in (HTTP basic
// authentication). A credential is a line in such a file.
//
// It is the example of a plugin: it stands on package issuers and the standard
// library, as any kind does, and knows nothing of being served out of process.
package htpasswd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/scope"
)

// scopeType and action are the words of a scope.
const (
	scopeType = "htpasswd"
	action    = "login"
)

const maxRealms = 16

var realmName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)

// Kind is the kind of target "htpasswd".
type Kind struct{}

var _ issuers.RoleWriter = Kind{}

// spec is a target's configuration.
type spec struct {
	// Realms are the password files by the name that scopes use for them.
	Realms map[string]string `json:"realms"`
}

// Name implements [issuers.Kind].
func (Kind) Name() string { return "htpasswd" }

// Revocable implements [issuers.Kind].
func (Kind) Revocable() bool { return true }

// CredentialName implements [issuers.Kind].
func (Kind) CredentialName(leaseID string, _ uint64) string { return "mf-" + leaseID }

// CheckSpec implements [issuers.Kind].
func (Kind) CheckSpec(raw json.RawMessage) error {
	_, err := parse(raw)
	return err
}

func parse(raw json.RawMessage) (spec, error) {
	var s spec
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		return s, fmt.Errorf("%w; the one key is realms, as in realms: {intranet: /srv/auth/intranet.htpasswd}", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return s, errors.New("more follows after the spec")
	}
	if len(s.Realms) == 0 || len(s.Realms) > maxRealms {
		return s, fmt.Errorf("realms: 1 to %d are allowed, as in realms: {intranet: /srv/auth/intranet.htpasswd}", maxRealms)
	}
	paths := map[string]string{}
	for _, name := range s.names() {
		path := s.Realms[name]
		switch {
		case !realmName.MatchString(name):
			return s, fmt.Errorf("realms: %.80q is not a realm's name: small letters, digits, - and _", name)
		case !filepath.IsAbs(path) || filepath.Clean(path) != path || len(path) > 1024 || strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == 0x7f }):
			return s, fmt.Errorf("realms: %s: %.200q is not an absolute path in its shortest form", name, path)
		case paths[path] != "":
			return s, fmt.Errorf("realms: %s and %s are the same file", paths[path], name)
		}
		paths[path] = name
	}
	return s, nil
}

func (s spec) names() []string { return slices.Sorted(maps.Keys(s.Realms)) }

// CheckScope implements [issuers.Kind].
func (Kind) CheckScope(raw json.RawMessage, sc scope.Scope) error {
	s, err := parse(raw)
	if err != nil {
		return err
	}
	_, err = s.compile(sc)
	return err
}

// compile returns the names of the realms that a scope opens.
func (s spec) compile(sc scope.Scope) ([]string, error) {
	n, err := sc.Normalise()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, d := range n {
		if d.Type != scopeType || !slices.Equal(d.Actions, []string{action}) {
			return nil, fmt.Errorf("a scope here has the type %s and the action %s, not %.60q and %.60q", scopeType, action, d.Type, d.Actions)
		}
		if d.Identifier != "" || d.Datatypes != nil || d.Privileges != nil || d.Tables != nil {
			return nil, fmt.Errorf("a scope here has a type, actions and locations, and no more: the locations are realms, %s", strings.Join(s.names(), ", "))
		}
		if d.Locations == nil { // no restriction
			out = append(out, s.names()...)
		}
		for _, l := range d.Locations {
			if s.Realms[l] == "" {
				return nil, fmt.Errorf("there is no realm %.80q; the realms are %s", l, strings.Join(s.names(), ", "))
			}
			out = append(out, l)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// Roles implements [issuers.RoleWriter]: one role for all realms, and where there
// are several, one for each.
func (Kind) Roles(raw json.RawMessage) ([]issuers.RoleTemplate, error) {
	s, err := parse(raw)
	if err != nil {
		return nil, err
	}
	role := func(suffix string, locations ...string) issuers.RoleTemplate {
		return issuers.RoleTemplate{
			Suffix: suffix, DefaultTTL: time.Hour, MaxTTL: 8 * time.Hour,
			Scope: scope.Scope{{Type: scopeType, Actions: []string{action}, Locations: locations}},
		}
	}
	out := []issuers.RoleTemplate{role("login", s.names()...)}
	for _, name := range s.names() {
		if suffix := "login-" + strings.ReplaceAll(name, "_", "-"); len(s.Realms) > 1 && len(out) < 16 && len(suffix) <= 32 {
			out = append(out, role(suffix, name))
		}
	}
	return out, nil
}

// Open implements [issuers.Kind].
func (Kind) Open(t issuers.Target) (issuers.Issuer, error) {
	s, err := parse(t.Spec)
	if err != nil {
		return nil, err
	}
	return &Issuer{spec: s}, nil
}
