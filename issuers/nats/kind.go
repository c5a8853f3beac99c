// Package nats mints user JWTs for accounts of NATS servers that run in operator
// mode: issuers.Kind "nats".
//
// A mint signs a JWT with a signing key of the account and asks no server. Where
// the target also holds an operator's signing key and one of the system account,
// its credentials can be revoked: the account's own JWT is signed anew with the
// revocation and pushed. DESIGN.md beside this file says why each step stands
// where it does. The package must know nothing of the broker: no ledger, no
// policy, no HTTP.
package nats

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

// KindName is the word in a Target's `type`.
const KindName = "nats"

// Secrets of a target, by their names in [issuers.Target.Secrets]. The keys are
// NATS's own seeds.
const (
	// SecretSigning is a seed of the account's that an operator gives: of one of
	// its signing keys, or of its identity.
	SecretSigning = "signing_key"
	// SecretMadeSigning is made by the broker, and used where none is given, or once
	// the key was rotated: then it is a [ring].
	SecretMadeSigning = "made_signing_key"
	// SecretUsers is made by the broker: what users' keys are derived from.
	SecretUsers = "user_key"
	// SecretOperator and SecretSystem are for revocation: seeds of a signing key of
	// the operator and of the system account.
	SecretOperator = "operator_key"
	SecretSystem   = "system_key"
)

// Kind implements [issuers.Kind], [issuers.RoleWriter], [issuers.SecretMaker],
// [issuers.Bounder], [issuers.SometimesRevocable], [issuers.SometimesKeyTurner] and
// [issuers.KeyHolder]. The zero value is ready for use.
type Kind struct{}

// The abilities that this kind and its issuers have.
var (
	_ issuers.Kind               = Kind{}
	_ issuers.RoleWriter         = Kind{}
	_ issuers.SecretMaker        = Kind{}
	_ issuers.Bounder            = Kind{}
	_ issuers.SometimesRevocable = Kind{}
	_ issuers.KeyTurner          = Kind{}
	_ issuers.SometimesKeyTurner = Kind{}
	_ issuers.KeyHolder          = Kind{}
	_ issuers.Issuer             = (*Issuer)(nil)
	_ issuers.Checker            = (*Issuer)(nil)
	_ issuers.Fencer             = (*Issuer)(nil)
	_ issuers.Sweeper            = (*Issuer)(nil)
	_ issuers.Publisher          = (*Issuer)(nil)
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

// CredentialName implements [issuers.Kind]: it is the JWT's `name`, which servers
// show beside each connection. Generations differ, since each has a key of its
// own: an earlier one can then be revoked alone.
func (Kind) CredentialName(leaseID string, generation uint64) string {
	return userName(leaseID, generation)
}

// Revocable implements [issuers.Kind]: not by itself; see RevocableOn.
func (Kind) Revocable() bool { return false }

// RevocableOn implements [issuers.SometimesRevocable].
func (Kind) RevocableOn(spec json.RawMessage) bool {
	parsed, err := parseSpec(spec)
	return err == nil && parsed.Revocation != nil
}

// MaxTTL implements [issuers.Bounder].
func (Kind) MaxTTL(spec json.RawMessage) time.Duration {
	parsed, err := parseSpec(spec)
	if err != nil {
		return minMaxTTL // such a target cannot be opened either
	}
	return parsed.maxTTL
}

// MakeSecrets implements [issuers.SecretMaker].
func (Kind) MakeSecrets(json.RawMessage) (map[string]secret.Text, error) {
	var users [32]byte
	if _, err := rand.Read(users[:]); err != nil {
		return nil, err
	}
	pair, err := nkeys.CreateAccount()
	if err != nil {
		return nil, err
	}
	seed, err := pair.Seed()
	if err != nil {
		return nil, err
	}
	return map[string]secret.Text{
		SecretUsers:       secret.New(hex.EncodeToString(users[:])),
		SecretMadeSigning: secret.New(string(seed)),
	}, nil
}

// Roles implements [issuers.RoleWriter]. Where the target names no subjects, the
// roles are for all of them, and then without requests: replies to others must
// stay out of a pattern that means everything.
func (Kind) Roles(spec json.RawMessage) ([]issuers.RoleTemplate, error) {
	parsed, err := parseSpec(spec)
	if err != nil {
		return nil, err
	}
	var subjects []string
	for _, s := range parsed.Subjects {
		if !isJetStream(s) {
			subjects = append(subjects, s)
		}
	}
	writing := []string{actionPublish, actionSubscribe, actionRequest, actionReply}
	switch {
	case len(parsed.Subjects) == 0:
		writing = []string{actionPublish, actionSubscribe}
	case len(subjects) == 0:
		return nil, nil
	}
	longest := min(8*time.Hour, parsed.maxTTL)
	template := func(suffix string, actions ...string) (issuers.RoleTemplate, error) {
		s, err := scope.Scope{{Type: scopeType, Actions: actions, Locations: subjects}}.Normalise()
		if err == nil {
			_, err = compile(parsed, s)
		}
		return issuers.RoleTemplate{Suffix: suffix, Scope: s, DefaultTTL: min(time.Hour, longest), MaxTTL: longest}, err
	}
	readonly, err := template("readonly", actionSubscribe)
	if err != nil {
		return nil, fmt.Errorf("propose roles: %w", err)
	}
	readwrite, err := template("readwrite", writing...)
	if err != nil {
		return nil, fmt.Errorf("propose roles: %w", err)
	}
	return []issuers.RoleTemplate{readonly, readwrite}, nil
}

// Open implements [issuers.Kind]. It makes no connection.
func (Kind) Open(t issuers.Target) (issuers.Issuer, error) {
	is, err := open(t)
	if err != nil {
		return nil, err
	}
	return is, nil
}

func open(t issuers.Target) (*Issuer, error) {
	sp, err := parseSpec(t.Spec)
	if err != nil {
		return nil, err
	}
	k, err := readKeys(sp, t.Secrets)
	if err != nil {
		return nil, fmt.Errorf("nats: %w", err)
	}
	tlsConfig, err := tlsConfig(sp)
	if err != nil {
		return nil, err
	}
	log := t.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	is := &Issuer{spec: sp, keys: k, dialer: dialer{addresses: sp.addresses, tls: tlsConfig}, log: log.With("target", t.Name)}
	if sp.Revocation != nil {
		is.revoker = newRevoker(is, t.Term)
	}
	return is, nil
}

var errClosed = errors.New("the issuer is closed")
