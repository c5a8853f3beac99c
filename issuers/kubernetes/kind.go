// Package kubernetes mints tokens of Kubernetes service accounts and proves that
// they are gone: issuers.Kind "kubernetes".
//
// A lease is a Secret without content, its anchor, and a token that is bound to it
// by TokenRequest. The token is either of a service account that exists already, or
// of one that is made for the lease, with roles and bindings compiled from its
// scope. DESIGN.md beside this file says why each step stands where it does. The
// package must know nothing of the broker: no ledger, no policy, and of HTTP the
// client's side alone.
package kubernetes

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
const KindName = "kubernetes"

// Secrets of a target, by their names in [issuers.Target.Secrets].
const (
	SecretToken     = "token"      // the broker's own bearer token
	SecretClientKey = "client_key" // the key of spec.client_certificate, PEM
	SecretMark      = "mark_key"   // made by the broker: what only it can mark objects with
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
	_ issuers.Checker     = (*Issuer)(nil)
	_ issuers.Lister      = (*Issuer)(nil)
	_ issuers.Fencer      = (*Issuer)(nil)
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
	sp, err := parseSpec(spec)
	if err != nil {
		return err
	}
	p, err := compile(s)
	if err != nil {
		return err
	}
	return p.within(sp)
}

// CredentialName implements [issuers.Kind]. The name does not depend on the
// generation: a re-mint replaces the anchor, and with it every token of before.
func (Kind) CredentialName(leaseID string, _ uint64) string { return namePrefix + leaseID }

// Revocable implements [issuers.Kind]. What is said of tokens for other
// audiences stands in the receipt.
func (Kind) Revocable() bool { return true }

// MaxTTL implements [issuers.Bounder]: the spec's max_ttl. Clusters cut longer
// tokens short; and those for other audiences cannot be revoked (HAZARDS 18). A
// spec that does not read allows nothing longer than a millisecond.
func (Kind) MaxTTL(spec json.RawMessage) time.Duration {
	sp, err := parseSpec(spec)
	if err != nil {
		return time.Millisecond
	}
	return sp.maxTTL
}

// MakeSecrets implements [issuers.SecretMaker].
func (Kind) MakeSecrets(json.RawMessage) (map[string]secret.Text, error) {
	var key [32]byte
	if _, err := rand.Read(key[:]); err != nil {
		return nil, err
	}
	return map[string]secret.Text{SecretMark: secret.New(hex.EncodeToString(key[:]))}, nil
}

// templates are the roles that target add proposes: the cluster's own roles for
// its users.
var templates = []struct{ suffix, clusterRole string }{{"readonly", "view"}, {"readwrite", "edit"}}

// Roles implements [issuers.RoleWriter]. Where the target's namespaces are all of
// them, or more than a scope may name, the administrator must choose.
func (Kind) Roles(spec json.RawMessage) ([]issuers.RoleTemplate, error) {
	sp, err := parseSpec(spec)
	if err != nil {
		return nil, err
	}
	if len(sp.Namespaces) == 0 || sp.wholeCluster() || len(sp.Namespaces) > maxScopeNamespaces {
		return nil, nil
	}
	var out []issuers.RoleTemplate
	for _, t := range templates {
		d := scope.Detail{Type: scopeType, Actions: []string{actionClusterRole}, Privileges: []string{t.clusterRole}}
		for _, ns := range sp.Namespaces {
			d.Locations = append(d.Locations, ns+"/*")
		}
		s, err := scope.Scope{d}.Normalise()
		if err != nil {
			return nil, err
		}
		out = append(out, issuers.RoleTemplate{Suffix: t.suffix, Scope: s, DefaultTTL: min(time.Hour, sp.maxTTL), MaxTTL: min(8*time.Hour, sp.maxTTL)})
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
		return nil, errors.New("kubernetes: the target lacks its secret mark_key, which the broker makes when the target is written; write the target again")
	}
	ca, err := sp.readCA()
	if err != nil {
		return nil, err
	}
	log := t.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	mint, err := newClient(sp, ca, t.Secrets, sp.MaxConnections)
	if err != nil {
		return nil, err
	}
	end, err := newClient(sp, ca, t.Secrets, endConnections)
	if err != nil {
		return nil, err
	}
	return &Issuer{
		spec: sp, term: t.Term, ca: ca, mint: mint, end: end, marks: newMarker(key),
		log: log.With("target", t.Name), minting: newLocks(), opened: time.Now(),
	}, nil
}
