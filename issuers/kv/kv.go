// Package kv is the kind of target that holds static secrets: issuers.Kind "kv",
// the last resort for what no other kind can mint.
//
// The target itself is the store: its spec names the entries, their values are its
// sealed secrets, and no server is asked. A lease on an entry hands out what stands
// there; nothing can take it back, and every receipt says so. The package must know
// nothing of the broker, and nothing of the systems that the secrets are for.
package kv

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/scope"
)

// KindName is the word in a Target's `type`.
const KindName = "kv"

// maxRoles bounds what target add proposes: one role for each entry.
const maxRoles = 32

// Kind implements [issuers.Kind], [issuers.RoleWriter] and [issuers.Bounder]. The
// zero value is ready for use.
type Kind struct{}

// The abilities that this kind and its issuers have.
var (
	_ issuers.Kind       = Kind{}
	_ issuers.RoleWriter = Kind{}
	_ issuers.Bounder    = Kind{}
	_ issuers.Issuer     = (*issuer)(nil)
	_ issuers.Checker    = (*issuer)(nil)
)

// Name implements [issuers.Kind].
func (Kind) Name() string { return KindName }

// Revocable is false: who has read a secret knows it (HAZARDS 18).
func (Kind) Revocable() bool { return false }

// CheckSpec implements [issuers.Kind].
func (Kind) CheckSpec(raw json.RawMessage) error {
	_, err := parseSpec(raw)
	return err
}

// CheckScope implements [issuers.Kind]. It does not look at the clock: an entry
// that has expired is refused when it is asked for, with the reason.
func (Kind) CheckScope(raw json.RawMessage, s scope.Scope) error {
	sp, err := parseSpec(raw)
	if err != nil {
		return err
	}
	_, err = sp.compile(s)
	return err
}

// CredentialName tells one delivery from another; nothing on a target bears it. It
// differs between generations, since none can take an earlier one back.
func (Kind) CredentialName(leaseID string, generation uint64) string {
	return "mf-" + leaseID + "-" + strconv.FormatUint(generation, 10)
}

// MaxTTL implements [issuers.Bounder]: the spec's max_ttl. A spec that does not
// read allows nothing longer than a millisecond; CheckSpec refused it before.
func (Kind) MaxTTL(raw json.RawMessage) time.Duration {
	sp, err := parseSpec(raw)
	if err != nil {
		return time.Millisecond
	}
	return sp.maxTTL
}

// Roles offers one role for each entry, named after it: whoever needs one secret
// gets one. None where there are many, since nobody would read so many permits.
func (Kind) Roles(raw json.RawMessage) ([]issuers.RoleTemplate, error) {
	sp, err := parseSpec(raw)
	if err != nil {
		return nil, err
	}
	if len(sp.names) > maxRoles {
		return nil, nil
	}
	var out []issuers.RoleTemplate
	for _, name := range sp.names {
		out = append(out, issuers.RoleTemplate{
			Suffix:     strings.ReplaceAll(name, "/", "-"), // distinct, as the variables are
			Scope:      scope.Scope{{Type: scopeType, Actions: []string{actionRead}, Locations: []string{name}}},
			DefaultTTL: min(15*time.Minute, sp.maxTTL), MaxTTL: sp.maxTTL,
		})
	}
	return out, nil
}
