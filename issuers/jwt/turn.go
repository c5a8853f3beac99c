package jwt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// Phases of a rotation, as the sealed key set says them: a member "turn" beside
// "keys" (RFC 7517 §5 has readers ignore it). A set without it is in none.
const (
	turnPublished = "published" // the last key is new and does not sign
	turnUsed      = "used"      // the keys after the first sign no more
)

// skew is how much later than its exp a token may be accepted, by verifiers whose
// clock is behind or who allow a leeway.
const skew = 5 * time.Minute

// sealedSet is the secret [SecretKeys].
type sealedSet struct {
	Keys []jose.JSONWebKey `json:"keys"`
	Turn string            `json:"turn,omitempty"`
}

// KeyTimes implements [issuers.KeyTurner]: the spec's key_publish, and max_ttl with
// what clocks may differ.
func (Kind) KeyTimes(raw json.RawMessage) (publish, honour time.Duration) {
	sp, err := parseSpec(raw)
	if err != nil {
		return defaultPublish, longestMaxTTL + skew
	}
	return sp.publish, sp.maxTTL + skew
}

// TurnKeys implements [issuers.KeyTurner].
func (Kind) TurnKeys(_ context.Context, raw json.RawMessage, secrets map[string]secret.Text, turn issuers.KeyTurn) (map[string]secret.Text, error) {
	sp, err := parseSpec(raw)
	if err != nil {
		return nil, fmt.Errorf("jwt: %w", err)
	}
	keys, phase, err := readKeys(secrets[SecretKeys])
	if err != nil {
		return nil, fmt.Errorf("jwt: %w", err)
	}
	out := sealedSet{}
	switch {
	case turn == issuers.KeyPublish && len(keys) == 1 && phase == "":
		key, err := newKey(sp.Alg)
		if err != nil {
			return nil, fmt.Errorf("jwt: %w", err)
		}
		out = sealedSet{append(keys, key), turnPublished}
	case turn == issuers.KeyUse && phase == turnPublished:
		last := len(keys) - 1
		out = sealedSet{append([]jose.JSONWebKey{keys[last]}, keys[:last]...), turnUsed}
	case turn == issuers.KeyRetire && (phase == turnUsed || phase == "" && len(keys) > 1):
		// keys that were put there by hand do not sign either, unless they are first
		out.Keys = slices.Clone(keys[:1])
	default:
		return nil, errors.New("jwt: the step does not fit the target's keys: a new key is published, then used, then the old one retired")
	}
	text, err := json.Marshal(out)
	if err != nil {
		return nil, errors.New("jwt: the keys could not be encoded")
	}
	return map[string]secret.Text{SecretKeys: secret.New(string(text))}, nil
}
