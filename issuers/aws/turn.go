package aws

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/federation"
	"github.com/mayfly-broker/mayfly/secret"
)

// defaultPublish is how long a new key is published before it signs: STS looks
// again when it meets a kid that it does not know, but copies of the documents
// are made by hand or by jobs.
const (
	defaultPublish = time.Hour
	minPublish     = time.Minute
	longestPublish = 720 * time.Hour
	// clockSlack is how long after a turn a leader that has not heard of it may sign.
	clockSlack = time.Minute
)

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
func (k Kind) TurnKeys(_ context.Context, raw json.RawMessage, secrets map[string]secret.Text, turn issuers.KeyTurn) (map[string]secret.Text, error) {
	if err := k.TurnsKeysOn(raw); err != nil {
		return nil, fmt.Errorf("aws: %w", err)
	}
	changed, err := federation.TurnKeys(secrets, jose.ES256, turn)
	if err != nil {
		return nil, fmt.Errorf("aws: %w", err)
	}
	return changed, nil
}
