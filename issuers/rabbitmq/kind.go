// Package rabbitmq mints users on RabbitMQ and proves that they are gone:
// issuers.Kind "rabbitmq".
//
// A lease's account is one internal user with a hashed password, the permissions
// that its scope compiles to, and the broker's mark among its tags. The package
// talks to the management plugin's HTTP API; it speaks AMQP no further than to see
// that a listener answers. DESIGN.md beside this file says why each step stands
// where it does. The package must know nothing of the broker: no ledger, no
// policy, no API of its own.
package rabbitmq

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

// KindName is the word in a Target's `type`.
const KindName = "rabbitmq"

// Secrets of a target, by their names in [issuers.Target.Secrets].
const (
	SecretPassword = "admin_password"
	SecretMark     = "mark_key" // made by the broker: what tells this target's users from another's
)

// Kind implements [issuers.Kind], [issuers.RoleWriter],
// [issuers.SecretMaker] and [issuers.AdminHolder]. The zero value is ready for use.
type Kind struct{}

// The abilities that this kind and its issuers have.
var (
	_ issuers.Kind        = Kind{}
	_ issuers.RoleWriter  = Kind{}
	_ issuers.SecretMaker = Kind{}
	_ issuers.AdminHolder = Kind{}
	_ issuers.Issuer      = (*Issuer)(nil)
	_ issuers.Rotator     = (*Issuer)(nil)
	_ issuers.Presenter   = (*Issuer)(nil)
	_ issuers.Extender    = (*Issuer)(nil)
	_ issuers.Checker     = (*Issuer)(nil)
	_ issuers.Lister      = (*Issuer)(nil)
	_ issuers.Sweeper     = (*Issuer)(nil)
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
	if _, err := parseSpec(spec); err != nil {
		return err
	}
	_, err := compile(s)
	return err
}

// CredentialName implements [issuers.Kind]. The name does not depend on the
// generation: a re-mint replaces the user.
func (Kind) CredentialName(leaseID string, _ uint64) string { return userPrefix + leaseID }

// Revocable implements [issuers.Kind].
func (Kind) Revocable() bool { return true }

// MakeSecrets implements [issuers.SecretMaker].
func (Kind) MakeSecrets(json.RawMessage) (map[string]secret.Text, error) {
	var key [32]byte
	if _, err := rand.Read(key[:]); err != nil {
		return nil, err
	}
	return map[string]secret.Text{SecretMark: secret.New(hex.EncodeToString(key[:]))}, nil
}

// Roles implements [issuers.RoleWriter]. Neither role may declare or delete
// queues and exchanges: that is `configure`.
func (Kind) Roles(spec json.RawMessage) ([]issuers.RoleTemplate, error) {
	parsed, err := parseSpec(spec)
	if err != nil {
		return nil, err
	}
	var out []issuers.RoleTemplate
	for _, role := range []struct {
		suffix  string
		actions []string
	}{{"readonly", []string{"read"}}, {"readwrite", []string{"read", "write"}}} {
		s, err := scope.Scope{{Type: scopeType, Identifier: parsed.VHost, Actions: role.actions}}.Normalise()
		if err != nil {
			return nil, err
		}
		out = append(out, issuers.RoleTemplate{Suffix: role.suffix, Scope: s, DefaultTTL: time.Hour, MaxTTL: 8 * time.Hour})
	}
	return out, nil
}

// Open implements [issuers.Kind]. It makes no connection.
func (Kind) Open(t issuers.Target) (issuers.Issuer, error) {
	sp, err := parseSpec(t.Spec)
	if err != nil {
		return nil, err
	}
	key := t.Secrets[SecretMark]
	if len(key.Reveal()) < 32 {
		return nil, errors.New("rabbitmq: the target lacks its secret mark_key, which the broker makes when the target is written; write the target again")
	}
	log := t.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	a, err := newAPI(sp, t.Secrets[SecretPassword])
	if err != nil {
		return nil, err
	}
	return &Issuer{spec: sp, term: t.Term, api: a, own: targetTag(key), log: log.With("target", t.Name), minting: newLocks(), patience: abandoned}, nil
}
