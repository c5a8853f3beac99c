// Package vault reads secrets from an existing Vault or OpenBao under leases, and
// proves that they have ended: issuers.Kind "vault".
//
// A lease is one token of Vault's, whose id is derived from the lease's own, so
// that it can be found again whatever was lost; everything that the lease reads is
// read with that token and ends with it. DESIGN.md beside this file says why each
// step stands where it does. The package must know nothing of the broker: no
// ledger, no policy, no HTTP server.
package vault

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

// KindName is the word in a Target's `type`.
const KindName = "vault"

// Secrets of a target, by their names in [issuers.Target.Secrets].
const (
	SecretToken     = "auth_token"     // auth.method token
	SecretSecretID  = "auth_secret_id" // auth.method approle
	SecretClientKey = "tls_client_key" // of tls.client_cert
	SecretMark      = "mark_key"       // made by the broker: what only it can derive tokens from
)

// Kind implements [issuers.Kind], [issuers.RoleWriter], [issuers.SecretMaker] and
// [issuers.Bounder]. The zero value is ready for use.
type Kind struct{}

// The abilities that this kind and its issuers have.
var (
	_ issuers.Kind        = Kind{}
	_ issuers.RoleWriter  = Kind{}
	_ issuers.SecretMaker = Kind{}
	_ issuers.Bounder     = Kind{}
	_ issuers.Issuer      = (*Issuer)(nil)
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

// CheckScope implements [issuers.Kind]. It also accepts locations that end in /*
// or ?*, which a role may have and no mint can read: a request must narrow them,
// and is told so ([issuers.BadScope]).
func (Kind) CheckScope(spec json.RawMessage, s scope.Scope) error {
	parsed, err := parseSpec(spec)
	if err != nil {
		return err
	}
	_, err = compile(parsed, s)
	return err
}

// CredentialName implements [issuers.Kind]. It is the display name of the lease's
// token, to which Vault adds "token-" in front. It does not depend on the
// generation: a re-mint ends the token and makes it anew.
func (Kind) CredentialName(leaseID string, _ uint64) string { return namePrefix + leaseID }

// Revocable implements [issuers.Kind]. What Vault itself cannot revoke is told in
// each receipt ([issuers.ProofExpiresOnly]).
func (Kind) Revocable() bool { return true }

// MaxTTL implements [issuers.Bounder]: the spec's max_ttl.
func (Kind) MaxTTL(spec json.RawMessage) time.Duration {
	parsed, err := parseSpec(spec)
	if err != nil {
		return 0
	}
	return parsed.maxTTL
}

// MakeSecrets implements [issuers.SecretMaker].
func (Kind) MakeSecrets(json.RawMessage) (map[string]secret.Text, error) {
	var key [32]byte
	if _, err := rand.Read(key[:]); err != nil {
		return nil, err
	}
	return map[string]secret.Text{SecretMark: secret.New(hex.EncodeToString(key[:]))}, nil
}

// Roles implements [issuers.RoleWriter]: one role for each of the spec's paths
// that is whole. What paths there are is known to nobody but who mounted them.
func (Kind) Roles(spec json.RawMessage) ([]issuers.RoleTemplate, error) {
	parsed, err := parseSpec(spec)
	if err != nil {
		return nil, err
	}
	longest := 8 * time.Hour
	if parsed.maxTTL > 0 {
		longest = min(longest, parsed.maxTTL)
	}
	var out []issuers.RoleTemplate
	for _, p := range parsed.Paths {
		if strings.HasSuffix(p, "*") || strings.Contains(p, "?") {
			continue
		}
		s, err := scope.Scope{{Type: scopeType, Actions: []string{actionRead}, Locations: []string{p}}}.Normalise()
		if err != nil {
			return nil, err
		}
		out = append(out, issuers.RoleTemplate{Suffix: strings.ReplaceAll(p, "/", "-"), Scope: s, DefaultTTL: min(time.Hour, longest), MaxTTL: longest})
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
		return nil, errors.New("vault: the target lacks its secret mark_key, which the broker makes when the target is written; write the target again")
	}
	log := t.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	f, err := newFleet(sp, t.Secrets)
	if err != nil {
		return nil, err
	}
	is := &Issuer{spec: sp, term: t.Term, fleet: f, marks: marker{key}, log: log.With("target", t.Name), minting: newLocks()}
	is.own = newLogin(sp, t.Secrets, f)
	return is, nil
}
