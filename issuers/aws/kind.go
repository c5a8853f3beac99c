// Package aws mints short AWS sessions by STS: issuers.Kind "aws".
//
// A lease's credential is one STS session whose session policy is compiled from
// the lease's scope and allows nothing once the lease has ended. On a target that
// asks for it, it is an IAM user of its own instead, which can be deleted. DESIGN.md beside
// this file says why. The package must know nothing of the broker: no ledger, no
// policy of the broker's, no HTTP but STS's and IAM's.
package aws

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
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
const KindName = "aws"

// Secrets of a target, by their names in [issuers.Target.Secrets].
const (
	SecretKey  = "admin_password"      // the secret access key that belongs to admin.username
	SecretJWKS = federation.SecretKeys // made by the broker: the keys of its own identity provider
)

// Kind implements [issuers.Kind], [issuers.RoleWriter], [issuers.SecretMaker],
// [issuers.Bounder] and [issuers.KeyTurner]. The zero value is ready for use.
type Kind struct{}

// The abilities that this kind and its issuers have.
var (
	_ issuers.Kind        = Kind{}
	_ issuers.RoleWriter  = Kind{}
	_ issuers.SecretMaker = Kind{}
	_ issuers.Bounder     = Kind{}
	_ issuers.KeyTurner   = Kind{}

	_ issuers.SometimesKeyTurner = Kind{}
	_ issuers.SometimesRevocable = Kind{}
	_ issuers.Issuer             = (*Issuer)(nil)
	_ issuers.Checker            = (*Issuer)(nil)
	_ issuers.Publisher          = identityIssuer{}
	_ issuers.Issuer             = (*users)(nil)
	_ issuers.Checker            = (*users)(nil)
	_ issuers.Lister             = (*users)(nil)
	_ issuers.Publisher          = identityUsers{}
)

// Name implements [issuers.Kind].
func (Kind) Name() string { return KindName }

// Revocable is false: STS takes no session back before its time (HAZARDS 18).
func (Kind) Revocable() bool { return false }

// RevocableOn implements [issuers.SometimesRevocable]: IAM users can be deleted.
func (Kind) RevocableOn(raw json.RawMessage) bool {
	sp, err := parseSpec(raw)
	return err == nil && sp.IAMUser != nil
}

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
	_, err = sp.compile(s, time.Unix(0, 0)) // every instant is as long as another
	return err
}

// CredentialName is the session's name, which AWS writes into its own records of
// what the session did. It differs between generations: each re-mint is a session
// of its own, since none can take an earlier one back.
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

// MakeSecrets implements [issuers.SecretMaker]: the first key of the target's own
// identity provider, whichever way the target goes today.
func (Kind) MakeSecrets(json.RawMessage) (map[string]secret.Text, error) {
	return federation.MakeSecrets(jose.ES256)
}

// What the offered roles may do on S3.
var (
	readActions  = []string{"s3:getobject", "s3:listbucket"}
	writeActions = []string{"s3:abortmultipartupload", "s3:deleteobject", "s3:getobject", "s3:listbucket", "s3:putobject"}
)

// Roles offers to read and to write the objects that the spec's resources name;
// none where it names no objects, since only the administrator knows what else
// there is to do.
func (Kind) Roles(raw json.RawMessage) ([]issuers.RoleTemplate, error) {
	sp, err := parseSpec(raw)
	if err != nil {
		return nil, err
	}
	var objects []string
	for _, r := range sp.Resources {
		if a, err := parseARN(r); err == nil && a.service == "s3" && strings.HasSuffix(a.resource, "*") && strings.Contains(a.resource, "/") {
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
		s, err := scope.Scope{{Type: sp.scopeType(), Actions: slices.Clone(t.actions), Locations: slices.Clone(objects)}}.Normalise()
		if err != nil {
			return nil, err
		}
		if _, err := sp.compile(s, time.Unix(0, 0)); err != nil {
			return nil, fmt.Errorf("resources: a role for all of them is too long for one session: %w", err)
		}
		out = append(out, issuers.RoleTemplate{Suffix: t.suffix, Scope: s, DefaultTTL: min(15*time.Minute, sp.maxTTL), MaxTTL: sp.maxTTL})
	}
	return out, nil
}

// Open implements [issuers.Kind]. It makes no connection.
func (Kind) Open(t issuers.Target) (issuers.Issuer, error) {
	sp, err := parseSpec(t.Spec)
	if err != nil {
		return nil, err
	}
	is := &Issuer{spec: sp, target: t.Name, log: t.Log}
	if is.log == nil {
		is.log = slog.New(slog.DiscardHandler)
	}
	if sp.Way == wayWebIdentity {
		if is.provider, err = federation.Open(t, jose.ES256, sp.WebIdentity.Issuer, sp.WebIdentity.Audience); err != nil {
			return nil, fmt.Errorf("aws: %w", err)
		}
	} else if t.Secrets[SecretKey].IsZero() {
		return nil, errors.New("aws: the target lacks its secret access key; give admin.initial_password, or --password-file")
	}
	if is.sts, err = newClient(sp, t.Secrets[SecretKey]); err != nil {
		return nil, err
	}
	if sp.IAMUser != nil {
		return openUsers(is, t)
	}
	if is.provider != nil {
		return identityIssuer{is}, nil
	}
	return is, nil
}
