package protocol

import (
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

// Nothing is an empty message.
type Nothing struct{}

// Manifest is what a plugin says of itself at the handshake.
type Manifest struct {
	// Name is the kind that it serves: a Target's `type`.
	Name      string `json:"name"`
	Revocable bool   `json:"revocable"`
	// CredentialName is how the kind names a credential: text in which {lease} is
	// the lease's id and {generation}, where it stands, the generation. The node
	// makes the names itself, so that a lease has its name while the plugin is not
	// there, and no plugin can name an account that is not its own.
	CredentialName string `json:"credential_name"`
	// Abilities are what the kind and its issuers can do beyond the minimum.
	Abilities []Ability `json:"abilities"`
	// Build is for people: the plugin's own version.
	Build string `json:"build,omitempty"`
}

// Ability names one of the optional interfaces of package issuers.
type Ability string

// The abilities: three of kinds, seven of issuers.
const (
	AbleRoles   Ability = "roles"   // issuers.RoleWriter
	AbleSecrets Ability = "secrets" // issuers.SecretMaker
	AbleBound   Ability = "bound"   // issuers.Bounder
	AbleExtend  Ability = "extend"  // issuers.Extender
	AbleCheck   Ability = "check"   // issuers.Checker
	AbleList    Ability = "list"    // issuers.Lister
	AbleFence   Ability = "fence"   // issuers.Fencer
	AbleSweep   Ability = "sweep"   // issuers.Sweeper
	AblePublish Ability = "publish" // issuers.Publisher
	AbleRevoked Ability = "revoked" // issuers.RevocationPublisher
)

// KindAbilities returns what a kind can do beyond the minimum.
func KindAbilities(k issuers.Kind) []Ability {
	out := []Ability{}
	if _, ok := k.(issuers.RoleWriter); ok {
		out = append(out, AbleRoles)
	}
	if _, ok := k.(issuers.SecretMaker); ok {
		out = append(out, AbleSecrets)
	}
	if _, ok := k.(issuers.Bounder); ok {
		out = append(out, AbleBound)
	}
	return out
}

// IssuerAbilities returns what an issuer can do beyond the minimum.
func IssuerAbilities(i issuers.Issuer) []Ability {
	out := []Ability{}
	if _, ok := i.(issuers.Extender); ok {
		out = append(out, AbleExtend)
	}
	if _, ok := i.(issuers.Checker); ok {
		out = append(out, AbleCheck)
	}
	if _, ok := i.(issuers.Lister); ok {
		out = append(out, AbleList)
	}
	if _, ok := i.(issuers.Fencer); ok {
		out = append(out, AbleFence)
	}
	if _, ok := i.(issuers.Sweeper); ok {
		out = append(out, AbleSweep)
	}
	if _, ok := i.(issuers.Publisher); ok {
		out = append(out, AblePublish)
	}
	if _, ok := i.(issuers.RevocationPublisher); ok {
		out = append(out, AbleRevoked)
	}
	return out
}

// Can says whether the manifest has an ability.
func (m Manifest) Can(a Ability) bool { return slices.Contains(m.Abilities, a) }

// SpecRequest carries a target's spec.
type SpecRequest struct {
	Spec []byte `json:"spec"`
}

// Examination is all that a kind says of a spec.
type Examination struct {
	// Problem is why the spec is refused; empty means that it is accepted.
	Problem string `json:"problem,omitempty"`
	// MaxTTL is in nanoseconds; 0 means no bound.
	MaxTTL time.Duration `json:"max_ttl,omitempty"`
	Roles  []Role        `json:"roles,omitempty"`
	// RolesProblem is why no roles could be proposed.
	RolesProblem string `json:"roles_problem,omitempty"`
}

// Role is an issuers.RoleTemplate; times are in nanoseconds.
type Role struct {
	Suffix     string        `json:"suffix"`
	Scope      scope.Scope   `json:"scope"`
	DefaultTTL time.Duration `json:"default_ttl"`
	MaxTTL     time.Duration `json:"max_ttl"`
}

// ScopeRequest carries a scope for a target with that spec.
type ScopeRequest struct {
	Spec  []byte      `json:"spec"`
	Scope scope.Scope `json:"scope"`
}

// Verdict is a yes, or why not.
type Verdict struct {
	Error *Error `json:"error,omitempty"`
}

// Error is an *issuers.Error, its kind in a word.
type Error struct {
	Kind   string `json:"kind"`
	Detail string `json:"detail"`
	Cause  string `json:"cause,omitempty"`
}

// EncodeError makes err fit to travel; nil stays nil. An error that is no
// *issuers.Error is of kind unknown.
func EncodeError(err error) *Error {
	if err == nil {
		return nil
	}
	var e *issuers.Error
	if !errors.As(err, &e) {
		return &Error{Kind: issuers.Unknown.String(), Detail: err.Error()}
	}
	out := &Error{Kind: e.Kind.String(), Detail: e.Detail}
	if e.Err != nil {
		out.Cause = e.Err.Error()
	}
	return out
}

// KindOf returns the kind that the word names; a word that names none is Unknown,
// the most cautious one.
func (e *Error) KindOf() issuers.ErrorKind {
	for k := issuers.Unknown; k <= issuers.BadScope; k++ {
		if k.String() == e.Kind {
			return k
		}
	}
	return issuers.Unknown
}

// Secrets are secret values by name, in base64.
type Secrets struct {
	Error  *Error            `json:"error,omitempty"`
	Values map[string][]byte `json:"values,omitempty"`
}

// EncodeSecrets reveals secrets for the way to the other side.
func EncodeSecrets(in map[string]secret.Text) map[string][]byte {
	out := make(map[string][]byte, len(in))
	for k, v := range in {
		out[k] = []byte(v.Reveal())
	}
	return out
}

// DecodeSecrets is the other direction.
func DecodeSecrets(in map[string][]byte) map[string]secret.Text {
	out := make(map[string]secret.Text, len(in))
	for k, v := range in {
		out[k] = secret.New(string(v))
	}
	return out
}

// OpenRequest opens a target under a handle that the node chose and has not used
// before in this process.
type OpenRequest struct {
	Handle  uint64            `json:"handle"`
	Name    string            `json:"name"`
	Spec    []byte            `json:"spec"`
	Secrets map[string][]byte `json:"secrets"`
	Term    uint64            `json:"term"`
	Issuer  string            `json:"issuer"`
}

// HandleRequest names an opened target.
type HandleRequest struct {
	Handle uint64 `json:"handle"`
}

// LeaseRequest carries one lease.
type LeaseRequest struct {
	Handle uint64 `json:"handle"`
	Lease  Lease  `json:"lease"`
}

// LeasesRequest carries a batch.
type LeasesRequest struct {
	Handle uint64  `json:"handle"`
	Leases []Lease `json:"leases"`
}

// Lease is an issuers.Lease.
type Lease struct {
	ID           string          `json:"id"`
	Name         string          `json:"name"`
	Generation   uint64          `json:"generation"`
	Role         string          `json:"role"`
	RoleVersion  uint64          `json:"role_version"`
	OwnedOnEnd   string          `json:"owned_on_end"`
	ReassignTo   string          `json:"reassign_to"`
	Scope        scope.Scope     `json:"scope"`
	Principal    string          `json:"principal"`
	Chain        []string        `json:"chain"`
	TaskID       string          `json:"task_id"`
	Purpose      string          `json:"purpose"`
	NotBefore    time.Time       `json:"not_before"`
	NotAfter     time.Time       `json:"not_after"`
	MintDeadline time.Time       `json:"mint_deadline"`
	CSR          []byte          `json:"csr"`
	PublicKey    json.RawMessage `json:"public_key"`
}

// EncodeLease makes a lease fit to travel.
func EncodeLease(l issuers.Lease) Lease {
	return Lease{
		ID: l.ID, Name: l.Name, Generation: l.Generation, Role: l.Role, RoleVersion: l.RoleVersion,
		OwnedOnEnd: l.RoleSpec.OwnedOnEnd, ReassignTo: l.RoleSpec.ReassignTo, Scope: l.Scope, Principal: l.Principal,
		Chain: l.Chain, TaskID: l.TaskID, Purpose: l.Purpose, NotBefore: l.NotBefore, NotAfter: l.NotAfter,
		MintDeadline: l.MintDeadline, CSR: l.CSR, PublicKey: l.PublicKey,
	}
}

// Decode is the other direction.
func (l Lease) Decode() issuers.Lease {
	out := issuers.Lease{
		ID: l.ID, Name: l.Name, Generation: l.Generation, Role: l.Role, RoleVersion: l.RoleVersion,
		RoleSpec: issuers.RoleSpec{OwnedOnEnd: l.OwnedOnEnd, ReassignTo: l.ReassignTo}, Scope: l.Scope, Principal: l.Principal,
		Chain: l.Chain, TaskID: l.TaskID, Purpose: l.Purpose, NotBefore: l.NotBefore, NotAfter: l.NotAfter,
		MintDeadline: l.MintDeadline, CSR: l.CSR,
	}
	if string(l.PublicKey) != "null" { // how JSON writes none
		out.PublicKey = l.PublicKey
	}
	return out
}

// Minted is a credential, or why there is none.
type Minted struct {
	Error  *Error            `json:"error,omitempty"`
	Public map[string]string `json:"public,omitempty"`
	Secret map[string][]byte `json:"secret,omitempty"`
	Env    map[string]string `json:"env,omitempty"`
}

// Withdrawn has one outcome for each lease, in order.
type Withdrawn struct {
	Error    *Error    `json:"error,omitempty"` // the target is not open
	Outcomes []Outcome `json:"outcomes,omitempty"`
}

// Outcome is a receipt or an error.
type Outcome struct {
	Receipt *issuers.Receipt `json:"receipt,omitempty"`
	Error   *Error           `json:"error,omitempty"`
}

// Findings is a check's result.
type Findings struct {
	Error    *Error            `json:"error,omitempty"`
	Findings []issuers.Finding `json:"findings,omitempty"`
}

// Listed is what bears the broker's mark.
type Listed struct {
	Error *Error  `json:"error,omitempty"`
	Found []Found `json:"found,omitempty"`
}

// Found is an issuers.Found.
type Found struct {
	Name       string `json:"name"`
	LeaseID    string `json:"lease_id,omitempty"`
	Generation uint64 `json:"generation,omitempty"`
}

// Published are documents by name, in base64.
type Published struct {
	Error     *Error            `json:"error,omitempty"`
	Documents map[string][]byte `json:"documents,omitempty"`
}

// RevokedRequest asks for the lists of what was withdrawn: all of it, at most
// [MaxRevoked] leases.
type RevokedRequest struct {
	Handle    uint64   `json:"handle"`
	Withdrawn []Ending `json:"withdrawn"`
}

// Ending is what a revocation list needs of a lease.
type Ending struct {
	ID       string    `json:"id"`
	NotAfter time.Time `json:"not_after"`
}
