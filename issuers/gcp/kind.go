// Package gcp mints short, narrowed Google Cloud access tokens: issuers.Kind "gcp".
//
// The target is an OpenID provider of its own (workload identity federation). A
// lease's credential is a service account's access token, cut down by a credential
// access boundary that is compiled from the lease's scope. DESIGN.md beside this
// file says why. The package must know nothing of the broker: no ledger, no policy
// of the broker's, no HTTP but Google's token services.
package gcp

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/federation"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

// KindName is the word in a Target's `type`.
const KindName = "gcp"

// alg is how identity tokens are signed: Google takes RS256 and ES256.
const alg = jose.ES256

// Kind implements [issuers.Kind], [issuers.RoleWriter], [issuers.SecretMaker],
// [issuers.KeyTurner] and [issuers.Bounder]. The zero value is ready for use.
type Kind struct{}

// The abilities that this kind and its issuers have.
var (
	_ issuers.Kind        = Kind{}
	_ issuers.RoleWriter  = Kind{}
	_ issuers.SecretMaker = Kind{}
	_ issuers.KeyTurner   = Kind{}
	_ issuers.Bounder     = Kind{}
	_ issuers.Issuer      = (*Issuer)(nil)
	_ issuers.Checker     = (*Issuer)(nil)
	_ issuers.Publisher   = (*Issuer)(nil)
)

// Name implements [issuers.Kind].
func (Kind) Name() string { return KindName }

// Revocable is false: Google takes no service account's token back before its time
// (HAZARDS 18).
func (Kind) Revocable() bool { return false }

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

// CredentialName is the id (jti) of the identity token that a mint begins with. It
// differs between generations: each re-mint is a token of its own, since none can
// take an earlier one back.
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
	return sp.Longest
}

// MakeSecrets implements [issuers.SecretMaker]: the first key of the target's own
// identity provider.
func (Kind) MakeSecrets(json.RawMessage) (map[string]secret.Text, error) {
	return federation.MakeSecrets(alg)
}

// TurnKeys implements [issuers.KeyTurner].
func (Kind) TurnKeys(_ context.Context, raw json.RawMessage, secrets map[string]secret.Text, turn issuers.KeyTurn) (map[string]secret.Text, error) {
	if _, err := parseSpec(raw); err != nil {
		return nil, err
	}
	changed, err := federation.TurnKeys(secrets, alg, turn)
	if err != nil {
		return nil, fmt.Errorf("gcp: %w", err)
	}
	return changed, nil
}

// KeyTimes implements [issuers.KeyTurner]. What the keys sign lives only as long
// as a mint may take; the old one is honoured as long as a lease, all the same.
func (k Kind) KeyTimes(json.RawMessage) (publish, honour time.Duration) {
	return federation.KeyPublish, longestMaxTTL + federation.KeySlack
}

// What the offered roles may do.
var (
	readActions  = []string{actionGet, actionList}
	writeActions = []string{actionCreate, actionDelete, actionGet, actionList}
)

// Roles offers to read and to write the objects that the spec's resources name;
// none where it names none, since only the administrator knows the buckets.
func (Kind) Roles(raw json.RawMessage) ([]issuers.RoleTemplate, error) {
	sp, err := parseSpec(raw)
	if err != nil {
		return nil, err
	}
	var objects []string
	for _, r := range sp.Resources {
		if strings.HasSuffix(r, "*") { // one object cannot be listed
			objects = append(objects, r)
		}
	}
	if len(objects) == 0 {
		return nil, nil
	}
	var out []issuers.RoleTemplate
	for _, t := range []struct {
		suffix  string
		actions []string
	}{{"readonly", readActions}, {"readwrite", writeActions}} {
		s, err := scope.Scope{{Type: scopeType, Actions: slices.Clone(t.actions), Locations: slices.Clone(objects)}}.Normalise()
		if err != nil {
			return nil, err
		}
		if _, err := sp.compile(s); err != nil {
			return nil, fmt.Errorf("resources: a role for all of them is more than one token can hold: %w", err)
		}
		out = append(out, issuers.RoleTemplate{Suffix: t.suffix, Scope: s, DefaultTTL: min(15*time.Minute, sp.Longest), MaxTTL: sp.Longest})
	}
	return out, nil
}

// Open implements [issuers.Kind]. It makes no connection.
func (Kind) Open(t issuers.Target) (issuers.Issuer, error) {
	sp, err := parseSpec(t.Spec)
	if err != nil {
		return nil, err
	}
	is := &Issuer{spec: sp}
	if err := is.Init(t, alg, &sp.Spec); err != nil {
		return nil, fmt.Errorf("gcp: %w", err)
	}
	return is, nil
}
