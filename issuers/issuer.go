// Package issuers defines what Mayfly asks of a target: to mint a credential
// under a name that the ledger already holds, and to prove that it is gone.
//
// One folder per kind of target stands below this one. A kind is added by its
// folder and one line in cmd/mayfly's registry. The package must know nothing
// of the broker: no ledger, no policy, no HTTP.
package issuers

import (
	"context"
	"encoding/json"
	"iter"
	"log/slog"
	"time"

	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

// Kind describes one kind of target: how its configuration and scopes read, and
// how to open one. Implementations are safe for concurrent use, and stateless but
// for what one must hold to withdraw it and may not write down (issuers/github).
type Kind interface {
	// Name is the word in a Target's `type`: "postgres", "jwt", "x509".
	Name() string

	// CheckSpec validates a Target's spec (the kind's own keys; unknown keys are
	// errors). The error text goes to the operator as it is; it says what is
	// allowed.
	CheckSpec(spec json.RawMessage) error

	// CheckScope validates a scope for a target with that spec: action names,
	// table names, columns. It is called for a role's scope when the role is
	// written and for a request's scope before policy decides. Whatever it
	// accepts, Mint can compile.
	CheckScope(spec json.RawMessage, s scope.Scope) error

	// CredentialName derives the exact name a credential has on its target
	// (user name, serial, jti) from a lease id and generation. It is pure, so
	// that the ledger can hold the name before the target hears of it.
	CredentialName(leaseID string, generation uint64) string

	// Revocable reports whether Withdraw can end a credential before its own
	// expiry. False means that receipts say [ProofExpiresOnly]. A kind that can
	// on some of its targets alone says false, and is a [SometimesRevocable].
	Revocable() bool

	// Open connects to one target. It must not block on an unreachable target:
	// connections are made when first needed.
	Open(t Target) (Issuer, error)
}

// RoleWriter is implemented by kinds that can propose working roles for
// `mayfly target add`.
type RoleWriter interface {
	// Roles returns role templates for a target with that spec.
	Roles(spec json.RawMessage) ([]RoleTemplate, error)
}

// SecretMaker is implemented by kinds whose target needs secrets made by the
// broker itself (a CA key, a signing key). Called once, when the target is
// first written; the result is sealed in the ledger and given to Open.
type SecretMaker interface {
	MakeSecrets(spec json.RawMessage) (map[string]secret.Text, error)
}

// Bounder is implemented by kinds whose credentials cannot be revoked, or whose
// target allows only short ones, and which therefore cap how long a lease may
// live, whatever role and policy say (HAZARDS 18).
type Bounder interface {
	// MaxTTL returns the longest life of a credential on a target with that
	// spec; 0 means no bound.
	MaxTTL(spec json.RawMessage) time.Duration
}

// SometimesRevocable is implemented by kinds that can revoke on some of their
// targets alone: on those where the broker was given the right. [Revocable] asks it.
type SometimesRevocable interface {
	// RevocableOn is Kind.Revocable for a target with that spec.
	RevocableOn(spec json.RawMessage) bool
}

// Revocable reports whether credentials that k mints on a target with that spec
// can be ended before their own expiry.
func Revocable(k Kind, spec json.RawMessage) bool {
	if s, ok := k.(SometimesRevocable); ok {
		return s.RevocableOn(spec)
	}
	return k.Revocable()
}

// RoleTemplate is a role that `target add` offers. Suffix "readonly" on target
// "orders" becomes the role "orders/readonly".
type RoleTemplate struct {
	Suffix     string
	Scope      scope.Scope
	DefaultTTL time.Duration
	MaxTTL     time.Duration
}

// Target is one configured target, as Open gets it.
type Target struct {
	Name string
	Spec json.RawMessage
	// Secrets are the target's own: the admin password, a CA key. Never logged.
	Secrets map[string]secret.Text
	// Version is the target's document's version, which grows with every change of
	// it and of its secrets; 0 for a Draft.
	Version uint64
	// Term is the fencing number of the leader that opens the target; it only
	// grows (HAZARDS 8). Zero is valid for a target opened without a cluster.
	Term uint64
	// Issuer is the broker's external URL, for kinds that name it (`iss`).
	Issuer string
	// Draft says that the target is not written yet: it is opened to be checked, and
	// secrets of the kind's own making are not those that it will have.
	Draft bool
	Log   *slog.Logger
}

// Lease is what the ledger holds of one credential when it is minted or
// withdrawn.
type Lease struct {
	ID   string // 26 lower-case characters, random part included
	Name string // from CredentialName
	// Generation counts re-mints of this lease, from 1. The target refuses a
	// generation lower than one it has seen (HAZARDS 9).
	Generation  uint64
	Role        string
	RoleVersion uint64
	RoleSpec    RoleSpec
	Scope       scope.Scope
	Principal   string
	// Chain holds the delegation chain, outermost actor first; empty when the
	// principal acts for itself.
	Chain     []string
	TaskID    string
	Purpose   string
	NotBefore time.Time
	// NotAfter is the lease's end. The credential carries it where the target
	// can.
	NotAfter time.Time
	// MintDeadline is the instant after which a mint still in flight must fail,
	// by the target's clock (HAZARDS 8).
	MintDeadline time.Time
	// CSR is the requester's PKCS#10 request (DER), for certificate kinds.
	CSR []byte
	// PublicKey is the requester's public key as a JWK, for kinds that bind a
	// credential to it.
	PublicKey json.RawMessage
}

// RoleSpec is what a role says to its issuer about the end of its credentials.
type RoleSpec struct {
	// OwnedOnEnd is what becomes of objects the account owns: "drop" (also when
	// empty) or "reassign" (HAZARDS 11).
	OwnedOnEnd string
	// ReassignTo names the no-login owner for OwnedOnEnd "reassign".
	ReassignTo string
}

// Credential is what a mint yields. It is delivered once and never stored.
type Credential struct {
	// Public fields are not secret: username, host, port.
	Public map[string]string
	// Secret fields: password, url, token, private_key.
	Secret map[string]secret.Text
	// Env maps an environment variable that the target's own clients read to
	// the field that holds its value: PGHOST → host.
	Env map[string]string
}

// Proofs a receipt can carry.
const (
	ProofAbsent      = "absent"       // the target's own catalogue does not list the credential, and no session of it lives
	ProofExpiresOnly = "expires-only" // the credential cannot be revoked; it ends by itself at NotAfter
	ProofRevoked     = "revoked"      // the target lists the credential as revoked (a CRL entry)
)

// Receipt says how the end of a credential was proven.
type Receipt struct {
	Proof string `json:"proof"`
	// Detail is one line: what was asked of the target and what it answered.
	Detail string `json:"detail"`
	// SessionsEnded counts the live sessions that were ended.
	SessionsEnded int `json:"sessions_ended,omitempty"`
	// OwnedDropped counts objects of the account's own that were dropped or
	// reassigned.
	OwnedDropped int `json:"owned_dropped,omitempty"`
}

// Outcome is the result of one lease's withdrawal: a receipt or an error.
type Outcome struct {
	Receipt Receipt
	Err     error
}

// Issuer mints and withdraws credentials on one target. It is safe for
// concurrent use.
type Issuer interface {
	// Mint creates the credential that lease names. Minting the same lease
	// twice yields one account on the target, with the newest generation's
	// secret. It returns an *Error: [Unreachable] when nothing was sent,
	// [Unknown] when the target may have acted, [Refused], [Superseded],
	// [Foreign] or [TooLate].
	Mint(ctx context.Context, lease Lease) (Credential, error)

	// Withdraw ends the leases' credentials and the live sessions they opened.
	// What is already gone counts as ended. The result has one Outcome per
	// lease, in order; one lease that cannot be ended never stops the others.
	Withdraw(ctx context.Context, leases []Lease) []Outcome

	// Close releases connections. The issuer is not used afterwards.
	Close() error
}

// Extender is implemented where a live credential's expiry can be moved.
type Extender interface {
	// Extend moves the credential's expiry to lease.NotAfter, never backwards
	// and never creating it anew: a credential that is gone is [Gone].
	Extend(ctx context.Context, lease Lease) error
}

// Checker is implemented where the connection and the admin account's rights
// can be examined.
type Checker interface {
	// Check reports every right the issuer needs and whether it is there. The
	// error is for a target that could not be asked.
	Check(ctx context.Context) ([]Finding, error)
}

// Finding is one line of a rights check.
type Finding struct {
	// Name is a stable word: "connect", "createrole", "grant public.*".
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	// Warning marks a finding that does not stop minting (HAZARDS 10).
	Warning bool   `json:"warning,omitempty"`
	Detail  string `json:"detail,omitempty"`
	// Fix is what the target's administrator can run, where one command does it.
	Fix string `json:"fix,omitempty"`
}

// Lister is implemented where the target can list what bears the broker's mark.
type Lister interface {
	// List returns every credential on the target that bears our mark.
	List(ctx context.Context) ([]Found, error)
}

// Found is a credential found on a target.
type Found struct {
	Name       string
	LeaseID    string // from the mark; empty where the mark is unreadable
	Generation uint64
}

// Fencer is implemented where a deposed leader's statements may still run.
type Fencer interface {
	// Fence ends every connection of terms older than the target's Term and
	// waits until they are gone (HAZARDS 8).
	Fence(ctx context.Context) error
}

// Sweeper is implemented where the target holds things pooled between leases.
type Sweeper interface {
	// Sweep removes pooled things that no credential uses (HAZARDS 15).
	Sweep(ctx context.Context) error
}

// Publisher is implemented by kinds that publish verification material.
type Publisher interface {
	// Publish returns documents by name: "jwks", "ca", "crl".
	Publish(ctx context.Context) (map[string][]byte, error)
}

// RevocationPublisher is implemented by kinds whose verifiers fetch a list of
// what was withdrawn before its time. The list is made from the ledger and never
// from what an issuer remembers: it must name what earlier leaders withdrew.
type RevocationPublisher interface {
	// PublishRevoked returns documents by name, such as "krl", that name every
	// lease of withdrawn which a verifier might still accept. The caller hands
	// over, in any order, all of the target's leases that are ending or have
	// ended, by expiry or otherwise; it may leave out those whose NotAfter lies
	// more than an hour in the past. A lease counts from the moment that its end
	// is committed, before and whether or not Withdraw is called. Of each lease
	// ID and NotAfter are read. An error means that nothing may be
	// published: a list that lacks entries would revive them.
	PublishRevoked(ctx context.Context, withdrawn iter.Seq[Lease]) (map[string][]byte, error)
}
