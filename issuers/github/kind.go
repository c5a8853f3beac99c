// Package github mints installation access tokens of a GitHub App, narrowed to
// repositories and permissions: issuers.Kind "github".
//
// A token lives for one hour whatever is asked, and only its holder can revoke it. So
// this process keeps what it mints in memory until it has ended, and says so where it
// does not have it. DESIGN.md beside this file says why. The package must know
// nothing of the broker: no ledger, no policy, no HTTP but GitHub's own.
package github

import (
	"encoding/json"
	"errors"
	"log/slog"
	"strconv"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/scope"
)

// KindName is the word in a Target's `type`.
const KindName = "github"

// SecretKey names the App's private key among a target's secrets: RSA in PEM,
// PKCS#1 or PKCS#8.
const SecretKey = "private_key"

// Kind implements [issuers.Kind], [issuers.RoleWriter] and [issuers.Bounder]. [New]
// makes one. The zero value mints and checks, too, but each issuer that it opens
// knows its own tokens alone.
type Kind struct{ memory *memory }

// New returns a kind whose issuers share what they remember, so that a target that
// is opened anew can withdraw what was minted before. It is safe for concurrent use.
func New() Kind { return Kind{memory: newMemory()} }

// The abilities that this kind and its issuers have.
var (
	_ issuers.Kind       = Kind{}
	_ issuers.RoleWriter = Kind{}
	_ issuers.Bounder    = Kind{}
	_ issuers.Issuer     = (*Issuer)(nil)
	_ issuers.Checker    = (*Issuer)(nil)
)

// Name implements [issuers.Kind].
func (Kind) Name() string { return KindName }

// Revocable is true: the process that minted a token revokes it. What it no longer
// holds ends by itself, and the lease does not end before that.
func (Kind) Revocable() bool { return true }

// CheckSpec implements [issuers.Kind].
func (Kind) CheckSpec(raw json.RawMessage) error {
	_, err := parseSpec(raw)
	return err
}

// CheckScope implements [issuers.Kind].
func (Kind) CheckScope(raw json.RawMessage, s scope.Scope) error {
	sp, err := parseSpec(raw)
	if err != nil {
		return err
	}
	_, err = sp.compile(s)
	return err
}

// CredentialName tells one token from another here; GitHub has no place for it. It
// differs between generations, each of which is a token of its own.
func (Kind) CredentialName(leaseID string, generation uint64) string {
	return "mf-" + leaseID + "-" + strconv.FormatUint(generation, 10)
}

// MaxTTL implements [issuers.Bounder]: the spec's max_ttl, at most the hour that a
// token lives. A spec that does not read allows nothing longer than a millisecond.
func (Kind) MaxTTL(raw json.RawMessage) time.Duration {
	sp, err := parseSpec(raw)
	if err != nil {
		return time.Millisecond
	}
	return sp.maxTTL
}

// Roles offers to read and to write the repositories that the spec names; none
// where it names none.
func (Kind) Roles(raw json.RawMessage) ([]issuers.RoleTemplate, error) {
	sp, err := parseSpec(raw)
	if err != nil || len(sp.Repositories) == 0 {
		return nil, err
	}
	var out []issuers.RoleTemplate
	for _, t := range []struct {
		suffix  string
		actions []string
	}{
		{"readonly", []string{"contents:read", "metadata:read"}},
		{"readwrite", []string{"contents:read", "contents:write", "metadata:read", "pull_requests:read", "pull_requests:write"}},
	} {
		s, err := scope.Scope{{Type: scopeType, Actions: t.actions, Locations: sp.Repositories}}.Normalise()
		if err != nil {
			return nil, err
		}
		if _, err := sp.compile(s); err != nil {
			return nil, err
		}
		out = append(out, issuers.RoleTemplate{Suffix: t.suffix, Scope: s, DefaultTTL: min(15*time.Minute, sp.maxTTL), MaxTTL: sp.maxTTL})
	}
	return out, nil
}

// Open implements [issuers.Kind]. It makes no connection.
func (k Kind) Open(t issuers.Target) (issuers.Issuer, error) {
	sp, err := parseSpec(t.Spec)
	if err != nil {
		return nil, err
	}
	if t.Secrets[SecretKey].IsZero() {
		return nil, errors.New("github: the target lacks the App's private key; give private_key: {from_file: FILE}")
	}
	is := &Issuer{spec: sp, log: t.Log, memory: k.memory}
	if is.memory == nil {
		is.memory = newMemory()
	}
	if is.log == nil {
		is.log = slog.New(slog.DiscardHandler)
	}
	if is.app, err = newApp(sp, t.Secrets[SecretKey]); err != nil {
		return nil, err
	}
	is.client, err = newClient(sp)
	return is, err
}
