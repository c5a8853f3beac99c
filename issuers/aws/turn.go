package aws

import (
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

// defaultPublish is how long a new key is published before it signs: STS looks
// again when it meets a kid that it does not know, but copies of the documents
// are made by hand or by jobs.
const (
	defaultPublish = time.Hour
	minPublish     = time.Minute
	longestPublish = 720 * time.Hour
)

// sealedSet is the secret [SecretJWKS].
type sealedSet struct {
	Keys []jose.JSONWebKey `json:"keys"`
	Turn string            `json:"turn,omitempty"`
}

// KeyTimes implements [issuers.KeyTurner]. What the keys sign are identity tokens
// that live as long as a mint has, and sessions outlive them; a leader that has
// not heard of the turn may sign a while longer.
func (Kind) KeyTimes(raw json.RawMessage) (publish, honour time.Duration) {
	sp, err := parseSpec(raw)
	if err != nil {
		return defaultPublish, longestMaxTTL + clockSlack
	}
	return sp.publish, sp.maxTTL + clockSlack
}

// TurnsKeysOn implements [issuers.SometimesKeyTurner].
func (Kind) TurnsKeysOn(raw json.RawMessage) error {
	sp, err := parseSpec(raw)
	if err == nil && sp.Way != wayWebIdentity {
		err = errors.New("only way web_identity has a key of its own; an access key is replaced at AWS, and written into the target")
	}
	return err
}

// TurnKeys implements [issuers.KeyTurner].
func (k Kind) TurnKeys(raw json.RawMessage, secrets map[string]secret.Text, turn issuers.KeyTurn) (map[string]secret.Text, error) {
	if err := k.TurnsKeysOn(raw); err != nil {
		return nil, fmt.Errorf("aws: %w", err)
	}
	keys, phase, err := readSet(secrets[SecretJWKS])
	if err != nil {
		return nil, err
	}
	out := sealedSet{}
	switch {
	case turn == issuers.KeyPublish && phase == "" && len(keys) < maxKeys:
		key, err := newKey()
		if err != nil {
			return nil, err
		}
		out = sealedSet{append(slices.Clone(keys), key), turnPublished}
	case turn == issuers.KeyUse && phase == turnPublished && len(keys) > 1:
		last := len(keys) - 1
		out = sealedSet{append([]jose.JSONWebKey{keys[last]}, keys[:last]...), turnUsed}
	case turn == issuers.KeyRetire && phase == turnUsed:
		out.Keys = keys[:1]
	default:
		return nil, errors.New("aws: the step does not fit the target's keys: a new key is published, then used, then the old one retired")
	}
	text, err := json.Marshal(out)
	if err != nil {
		return nil, errors.New("aws: the keys could not be encoded")
	}
	return map[string]secret.Text{SecretJWKS: secret.New(string(text))}, nil
}
