// Package mysql mints users on MariaDB and MySQL and proves that they are gone:
// issuers.Kind "mysql".
//
// These servers commit every CREATE USER and GRANT by itself, so that a mint is
// never one transaction. What makes it whole is a row that the broker owns,
// committed before the account, and a named lock that mint and withdrawal share.
// DESIGN.md beside this file says why each step stands where it does. The package
// must know nothing of the broker: no ledger, no policy, no HTTP.
package mysql

import (
	"encoding/json"
	"log/slog"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/scope"
)

// KindName is the word in a Target's `type`.
const KindName = "mysql"

// SecretPassword is the name of the admin account's password in
// [issuers.Target.Secrets].
const SecretPassword = "admin_password"

// Kind implements [issuers.Kind] and [issuers.RoleWriter]. The zero value is
// ready for use.
type Kind struct{}

// The abilities that this kind's issuers have.
var (
	_ issuers.Kind       = Kind{}
	_ issuers.RoleWriter = Kind{}
	_ issuers.Issuer     = (*Issuer)(nil)
	_ issuers.Extender   = (*Issuer)(nil)
	_ issuers.Checker    = (*Issuer)(nil)
	_ issuers.Lister     = (*Issuer)(nil)
	_ issuers.Fencer     = (*Issuer)(nil)
	_ issuers.Sweeper    = (*Issuer)(nil)

	_ issuers.AdminHolder = Kind{}
	_ issuers.Rotator     = (*Issuer)(nil)
)

// Name implements [issuers.Kind].
func (Kind) Name() string { return KindName }

// CheckSpec implements [issuers.Kind].
func (Kind) CheckSpec(spec json.RawMessage) error {
	_, err := parseSpec(spec)
	return err
}

// CheckScope implements [issuers.Kind].
func (Kind) CheckScope(spec json.RawMessage, s scope.Scope) error {
	parsed, err := parseSpec(spec)
	if err != nil {
		return err
	}
	_, err = compile(parsed, s)
	return err
}

// CredentialName implements [issuers.Kind]. It has exactly the 32 characters
// that MySQL keeps of a user name, hence no underscore after the prefix. The name
// does not depend on the generation: a re-mint replaces the account's secret.
func (Kind) CredentialName(leaseID string, _ uint64) string { return accountPrefix + leaseID }

// Revocable implements [issuers.Kind].
func (Kind) Revocable() bool { return true }

// Roles implements [issuers.RoleWriter].
func (Kind) Roles(spec json.RawMessage) ([]issuers.RoleTemplate, error) {
	parsed, err := parseSpec(spec)
	if err != nil {
		return nil, err
	}
	template := func(suffix string, actions ...string) (issuers.RoleTemplate, error) {
		s, err := scope.Scope{{
			Type: scopeType, Identifier: parsed.Database, Actions: actions, Tables: []scope.Table{{Name: parsed.Database + ".*"}},
		}}.Normalise()
		return issuers.RoleTemplate{Suffix: suffix, Scope: s, DefaultTTL: time.Hour, MaxTTL: 8 * time.Hour}, err
	}
	readonly, err := template("readonly", "select")
	if err != nil {
		return nil, err
	}
	readwrite, err := template("readwrite", "select", "insert", "update", "delete")
	if err != nil {
		return nil, err
	}
	return []issuers.RoleTemplate{readonly, readwrite}, nil
}

// Open implements [issuers.Kind]. It reads the CA file, if one is named, and
// makes no connection.
func (Kind) Open(t issuers.Target) (issuers.Issuer, error) {
	spec, err := parseSpec(t.Spec)
	if err != nil {
		return nil, err
	}
	log := t.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	srv, err := newServer(spec, t)
	if err != nil {
		return nil, err
	}
	is := &Issuer{spec: spec, term: t.Term, server: srv, log: log.With("target", t.Name)}
	is.pooled = &pooledRoles{server: srv, spec: spec, log: is.log, ready: map[string]bool{}}
	return is, nil
}

// Issuer mints and withdraws accounts on one server. It is safe for concurrent
// use; [Kind.Open] makes one.
type Issuer struct {
	spec   spec
	term   uint64
	server *server
	pooled *pooledRoles
	log    *slog.Logger
}

// Close implements [issuers.Issuer]. It waits for calls that are under way.
func (is *Issuer) Close() error {
	is.pooled.close()
	return is.server.close()
}
