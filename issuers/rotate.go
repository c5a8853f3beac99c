package issuers

import (
	"context"
	"encoding/json"
	"time"

	"github.com/mayfly-broker/mayfly/secret"
)

// Rotator is implemented by issuers of targets on which the secret of an account
// that lives on can be replaced: an Account object's, or the admin account's own.
//
// The next secret stands sealed in the ledger before Replace is called, and all
// that the account may hold stands there until TryLogin has told which one it is:
// so after a crash at any instant somebody still knows the secret.
type Rotator interface {
	// Replace makes r.Next the one secret that the account r.Username logs in by;
	// the target takes every other one from it (a second password, a key). It
	// changes nothing else of the account, and never makes one: an account that
	// does not exist is [Gone], one that bears the mark of a lease is [Foreign].
	// Replacing twice by the same secret is as good as once. Like a mint it fails
	// by the target's clock once r.Deadline has passed, with [TooLate]. Sessions
	// that are open already are left alone.
	Replace(ctx context.Context, r Replacement) error

	// TryLogin logs in as username on a connection of its own, and out again; it
	// needs no right and no admin connection. nil says that the target took this
	// secret just now. [Refused] says that the target itself turned the secret down
	// (and for no other reason: a locked account, an unknown database or a full
	// connection table are [Unknown]); [Unreachable] that it was not asked.
	TryLogin(ctx context.Context, username string, candidate secret.Text) error
}

// Presenter is implemented by issuers whose accounts can be given out.
type Presenter interface {
	// Present returns what a client needs to log in as username: the same fields as
	// of a credential that was minted there.
	Present(ctx context.Context, username string, s secret.Text) (Credential, error)
}

// Replacement is one account's next secret.
type Replacement struct {
	Username string
	Next     secret.Text
	// Deadline is the instant after which a statement still in flight must fail, by
	// the target's clock (HAZARDS 8).
	Deadline time.Time
}

// AdminHolder is implemented by kinds whose targets know the broker by an account
// with a secret that can be rotated, so that after the first rotation no person
// knows it. The opened issuer is a [Rotator], too.
type AdminHolder interface {
	// Admin returns the account's name, and the name of its secret in
	// [Target.Secrets]. An empty secretName says that a target with that spec is not
	// entered by one (a client certificate, a peer login).
	Admin(spec json.RawMessage) (username, secretName string, err error)
}

// KeyTurn is one step of a signing key's rotation.
type KeyTurn int

// The steps, in order. Between the first two verifiers learn the new key; between
// the last two, what the old one signed ends.
const (
	// KeyPublish makes a new key, which is published and does not sign yet.
	KeyPublish KeyTurn = iota + 1
	// KeyUse has the new key sign; the old one stays published.
	KeyUse
	// KeyRetire forgets the old key.
	KeyRetire
)

// KeyTurner is implemented by kinds whose secrets are signing keys that the broker
// made itself (see [SecretMaker]): token keys, certificate authorities.
type KeyTurner interface {
	// TurnKeys returns what a target's secrets are after one step; what it leaves
	// out stays as it is. It is pure but for the new key's randomness, except where
	// verifiers do not fetch keys but are told of them: there KeyUse has them take
	// the new key, and KeyRetire give up the old one, and each returns only when they
	// did, or an error when ctx ends or half a minute is over. What KeyUse puts there stands in the
	// secrets already, and a step that is taken again, by whomever, does no harm.
	// A step that does not fit the secrets (a second KeyPublish, a KeyUse before it)
	// is an error that quotes none of them.
	TurnKeys(ctx context.Context, spec json.RawMessage, secrets map[string]secret.Text, turn KeyTurn) (map[string]secret.Text, error)

	// KeyTimes returns how long a new key is to be published before it signs, and
	// how long the old one is honoured after that: at least the longest life of what
	// it signed.
	KeyTimes(spec json.RawMessage) (publish, honour time.Duration)
}

// SometimesKeyTurner is implemented by a [KeyTurner] that has keys to turn on some
// of its targets alone.
type SometimesKeyTurner interface {
	// TurnsKeysOn returns why a target with that spec has no keys that turn, or nil.
	TurnsKeysOn(spec json.RawMessage) error
}

// KeyHolder is implemented by kinds whose signing keys people may give, so that two
// targets can have the same one: then the other mints what no verifier accepts once
// one of them has retired it.
type KeyHolder interface {
	// SigningKeys names what a target signs with, and what it signed with in a turn
	// that is not over: words for people, the same for the same key, and nothing
	// secret. It returns none where the secrets cannot be read.
	SigningKeys(spec json.RawMessage, secrets map[string]secret.Text) []string
}

// TurnsKeys returns how the signing keys of a target of kind k turn. ok is false
// where the kind has none; err says why there are none on this target.
func TurnsKeys(k Kind, spec json.RawMessage) (t KeyTurner, ok bool, err error) {
	t, ok = k.(KeyTurner)
	if s, sometimes := k.(SometimesKeyTurner); ok && sometimes {
		err = s.TurnsKeysOn(spec)
	}
	return t, ok, err
}
